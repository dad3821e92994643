"""The Hub of the tests, asked by the real clients: what they rely on it does, and what the Hub refuses it refuses."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import httpx2
import pyarrow
import pyarrow.parquet
import pytest
from hub_server import Fault, HubServer, wikitext_files
from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    ModelCard,
    constants,
    get_hf_file_metadata,
    hf_api,
    hf_hub_download,
    hf_hub_url,
    snapshot_download,
)
from huggingface_hub.errors import (
    BadRequestError,
    GatedRepoError,
    HfHubHTTPError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import _http, close_session
from huggingface_hub.utils.sha import git_hash

REPO = "someone/model"
WEIGHTS = os.urandom(300_000)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A Hub, and this process's client with it: on line, without xet, with a cache of its own."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    close_session()
    with HubServer() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(hf_api.api, "endpoint", server.url)  # of the functions without an `HfApi`
        yield server
    close_session()


@pytest.fixture
def api(hub) -> HfApi:
    return HfApi(endpoint=hub.url, token=hub.token)


@pytest.fixture
def waits(monkeypatch) -> list[float]:
    """The seconds that the client would have waited before it tries again."""
    seconds = []
    monkeypatch.setattr(_http, "time", SimpleNamespace(sleep=seconds.append))
    return seconds


@pytest.fixture
def folder(tmp_path) -> Path:
    root = tmp_path / "folder"
    (root / "deep" / "er").mkdir(parents=True)
    (root / "README.md").write_text("---\nlibrary_name: transformers\ntags: [small]\n---\n# A model\n")
    (root / "config.json").write_text('{"model_type": "gpt2", "n_layer": 3}')
    (root / "model.safetensors").write_bytes(WEIGHTS)
    (root / "deep" / "er" / "naïve name.txt").write_text("ä")
    (root / "deep" / "empty.bin").write_bytes(b"")
    return root


def add(path: str, content: bytes) -> CommitOperationAdd:
    return CommitOperationAdd(path, content)


def commit(api: HfApi, *operations, message: str = "a commit", **options) -> str:
    return api.create_commit(REPO, operations, commit_message=message, **options).oid


def contents(folder: str | Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in Path(folder).rglob("*") if p.is_file()}


def asked(hub: HubServer, path: str) -> list[tuple[str, int | None]]:
    return [(request.method, request.status) for request in hub.requests if path in request.path]


def test_a_folder_is_uploaded_and_comes_back_as_it_was(hub, api, folder):
    assert api.whoami()["name"] == "someone"
    assert api.create_repo("model").repo_id == REPO
    made = api.upload_folder(repo_id=REPO, folder_path=folder, commit_message="all of it", commit_description="why")
    assert made.oid == hub.refs(REPO)["branches"]["main"]
    assert [c["title"] for c in hub.commits(REPO)] == ["all of it", "initial commit"]
    assert hub.commits(REPO)[0]["message"] == "why"
    expected = {".gitattributes": hub.files(REPO)[".gitattributes"], **contents(folder)}
    assert hub.files(REPO) == expected
    assert contents(snapshot_download(REPO, token=hub.token)) == expected
    info = api.model_info(REPO)
    assert (info.sha, info.library_name, info.tags) == (made.oid, "transformers", ["small"])


def test_large_and_binary_files_travel_by_the_storage_which_never_sees_the_token(hub, api, folder):
    api.create_repo(REPO)
    api.upload_folder(repo_id=REPO, folder_path=folder)
    snapshot_download(REPO, token=hub.token)
    assert asked(hub, "/cdn/") == [("PUT", 200), ("GET", 200)]  # the weights; the empty .bin is no LFS object
    assert not any(request.authorised for request in hub.requests if request.path.startswith("/cdn/"))
    (request,) = [r for r in hub.requests if r.path.endswith("/verify")]
    assert (request.authorised, request.status) == (True, 200)
    refused = httpx2.get(f"{hub.storage_url}/cdn/0", headers={"Authorization": f"Bearer {hub.token}"}, trust_env=False)
    assert refused.status_code == 400
    big = add("vocabulary.txt", b"x" * (10 * 2**20 + 1))
    commit(api, big, add("other.txt", b"x"))
    lfs = {e.path: e.lfs and e.lfs.size for e in api.list_repo_tree(REPO, recursive=True) if hasattr(e, "lfs")}
    assert (lfs["vocabulary.txt"], lfs["other.txt"], lfs["model.safetensors"]) == (10 * 2**20 + 1, None, 300_000)


def test_what_is_there_is_neither_sent_nor_committed_again(hub, api, folder):
    api.create_repo(REPO)
    first = api.upload_folder(repo_id=REPO, folder_path=folder)
    assert api.upload_folder(repo_id=REPO, folder_path=folder).oid == first.oid
    assert commit(api, add("copy.safetensors", WEIGHTS)) != first.oid
    assert len(asked(hub, "/cdn/")) == 1
    assert hub.files(REPO)["copy.safetensors"] == WEIGHTS
    assert len(hub.commits(REPO)) == 3


def test_what_gitignore_names_is_left_out(hub, api, folder):
    (folder / ".gitignore").write_text("deep/\n# no\n*.json\n")
    api.create_repo(REPO)
    api.upload_folder(repo_id=REPO, folder_path=folder)
    assert set(hub.files(REPO)) == {".gitattributes", ".gitignore", "README.md", "model.safetensors"}


def test_branches_tags_and_commit_ids_name_trees(hub, api):
    first = hub.add_repo(REPO, {"a.txt": b"1"})
    api.create_tag(REPO, tag="v1.0")
    api.create_branch(REPO, branch="runs/step-2")
    second = commit(api, add("a.txt", b"2"), revision="runs/step-2")
    assert hub.refs(REPO) == {"branches": {"main": first, "runs/step-2": second}, "tags": {"v1.0": first}}
    refs = api.list_repo_refs(REPO)
    assert {r.ref: r.target_commit for r in refs.branches + refs.tags} == {
        "refs/heads/main": first,
        "refs/heads/runs/step-2": second,
        "refs/tags/v1.0": first,
    }
    for revision, content in {"main": "1", "v1.0": "1", "runs/step-2": "2", first: "1", second: "2"}.items():
        path = hf_hub_download(REPO, "a.txt", revision=revision, token=hub.token)
        assert Path(path).read_text() == content
        assert Path(path).parent.name == (first if content == "1" else second)
    assert [c.commit_id for c in api.list_repo_commits(REPO, revision="runs/step-2")] == [second, first]
    for make in (api.create_tag, api.create_branch):
        name = {"tag": "v1.0"} if make == api.create_tag else {"branch": "runs/step-2"}
        with pytest.raises(HfHubHTTPError) as failure:
            make(REPO, **name)
        assert failure.value.response.status_code == 409
        make(REPO, **name, exist_ok=True)
    with pytest.raises(HfHubHTTPError, match="403"):
        api.delete_branch(REPO, branch="main")
    api.delete_tag(REPO, tag="v1.0")
    api.delete_branch(REPO, branch="runs/step-2")
    assert hub.refs(REPO) == {"branches": {"main": first}, "tags": {}}
    for lost in ("v1.0", "runs/step-2", "0" * 40):
        with pytest.raises(RevisionNotFoundError):
            api.model_info(REPO, revision=lost)
        with pytest.raises(RevisionNotFoundError):
            commit(api, add("b.txt", b""), revision=lost)


def test_a_commit_changes_all_or_nothing(hub, api):
    parent = hub.add_repo(REPO, {"a.txt": b"1", "d/b.txt": b"2", "d/c.txt": b"3", "e.txt": b"4"})
    with pytest.raises(RemoteEntryNotFoundError):
        commit(api, add("new.txt", b"new"), CommitOperationDelete("nöt-there.txt"))
    with pytest.raises(RemoteEntryNotFoundError):
        commit(api, CommitOperationDelete("d"))  # a folder, not a file
    assert hub.commits(REPO)[0]["id"] == parent
    made = commit(api, CommitOperationDelete("d/"), CommitOperationDelete("e.txt"), parent_commit=parent)
    assert hub.files(REPO) == {"a.txt": b"1"}
    assert hub.files(REPO, revision=parent)["d/b.txt"] == b"2"
    with pytest.raises(HfHubHTTPError) as failure:
        commit(api, add("late.txt", b""), parent_commit=parent)
    assert failure.value.response.status_code == 412
    assert hub.commits(REPO)[0]["id"] == made


def test_of_many_commits_on_one_parent_one_is_made_and_readers_see_whole_trees(hub, api):
    parent = hub.add_repo(REPO, {"a.txt": b"", "b.txt": b""})
    done, seen, torn, refusals = threading.Event(), set(), [], []

    def read() -> None:
        while not done.is_set():
            sha = api.model_info(REPO).sha
            found = {httpx2.get(hf_hub_url(REPO, f"{f}.txt", revision=sha), trust_env=False).content for f in "ab"}
            torn.extend([found] if len(found) > 1 else [])
            seen.add(sha)

    def write(number: int) -> None:
        content = str(number).encode()
        try:
            commit(api, add("a.txt", content), add("b.txt", content), parent_commit=parent)
        except HfHubHTTPError as error:
            refusals.append(error.response.status_code)
            return
        deadline = time.monotonic() + 20
        while len(seen) < 4 and time.monotonic() < deadline:
            content += b"."
            commit(api, add("a.txt", content), add("b.txt", content))

    with ThreadPoolExecutor(9) as pool:
        reading = pool.submit(read)
        list(pool.map(write, range(8)))
        done.set()
    reading.result()
    assert refusals == [412] * 7
    assert len(seen) >= 4
    assert not torn


def test_files_and_folders_are_listed_as_they_are(hub, api):
    hub.add_repo(REPO, {"a.txt": b"1", "d/b.txt": b"22", "d/e/w.npy": b"333"})
    assert [e.path for e in api.list_repo_tree(REPO)] == ["a.txt", "d"]
    assert [e.path for e in api.list_repo_tree(REPO, "d")] == ["d/b.txt", "d/e"]
    assert [e.path for e in api.list_repo_tree(REPO, "d/e")] == ["d/e/w.npy"]
    everything = [e.path for e in api.list_repo_tree(REPO, recursive=True)]
    assert everything == ["a.txt", "d", "d/b.txt", "d/e", "d/e/w.npy"]
    with pytest.raises(RemoteEntryNotFoundError):
        list(api.list_repo_tree(REPO, "d/f"))
    found = {e.path: e for e in api.get_paths_info(REPO, ["a.txt", "d/e", "d/e/w.npy", "no"])}
    assert list(found) == ["a.txt", "d/e", "d/e/w.npy"]
    assert (found["a.txt"].size, found["a.txt"].blob_id) == (1, git_hash(b"1"))
    assert (found["d/e/w.npy"].lfs.size, found["d/e/w.npy"].lfs.sha256) == (3, hashlib.sha256(b"333").hexdigest())
    siblings = {s.rfilename: s for s in api.model_info(REPO, files_metadata=True).siblings}
    assert siblings["d/e/w.npy"].lfs["sha256"] == hashlib.sha256(b"333").hexdigest()
    expanded = api.model_info(REPO, expand=["sha"])
    assert expanded.sha == hub.commits(REPO)[0]["id"]
    assert expanded.siblings is None


def test_a_file_is_known_by_its_hash_and_sent_in_parts(hub):
    sha = hub.add_repo(REPO, {"a.txt": b"0123456789", "w.npy": b"abcdefghij"})
    text, array = (hf_hub_url(REPO, name) for name in ("a.txt", "w.npy"))
    found = get_hf_file_metadata(text)
    assert (found.commit_hash, found.etag, found.size) == (sha, git_hash(b"0123456789"), 10)
    found = get_hf_file_metadata(array)
    digest = hashlib.sha256(b"abcdefghij").hexdigest()
    assert (found.commit_hash, found.etag, found.size) == (sha, digest, 10)
    assert found.location == f"{hub.storage_url}/cdn/{digest}"
    for span, status, part in (("2-4", 206, "234"), ("7-", 206, "789"), ("-2", 206, "89"), ("5-99", 206, "56789")):
        answer = httpx2.get(text, headers={"Range": f"bytes={span}"}, trust_env=False)
        assert (answer.status_code, answer.text) == (status, part)
    answer = httpx2.get(text, headers={"Range": "bytes=10-"}, trust_env=False)
    assert (answer.status_code, answer.headers["Content-Range"]) == (416, "bytes */10")
    with pytest.raises(RemoteEntryNotFoundError) as failure:
        get_hf_file_metadata(hf_hub_url(REPO, "b.txt"))
    assert failure.value.response.headers["X-Repo-Commit"] == sha


def test_an_lfs_object_is_what_its_hash_says_or_it_is_not_there(hub, api):
    hub.add_repo(REPO, {})
    oid = hashlib.sha256(b"good").hexdigest()
    storage = f"{hub.storage_url}/cdn/{oid}"
    header = {"Authorization": f"Bearer {hub.token}"}
    with httpx2.Client(headers=header, trust_env=False) as client:
        assert httpx2.put(storage, content=b"good", trust_env=False).status_code == 403  # not announced
        batch = {"operation": "upload", "transfers": ["basic"], "objects": [{"oid": oid, "size": 4}]}
        (answer,) = client.post(f"{hub.url}/{REPO}.git/info/lfs/objects/batch", json=batch).json()["objects"]
        assert answer["actions"]["upload"]["href"] == storage
        lines = [{"key": "header", "value": {"summary": "s"}}]
        lines += [{"key": "lfsFile", "value": {"path": "w.npy", "algo": "sha256", "oid": oid, "size": 4}}]
        body = "\n".join(map(json.dumps, lines))
        for wrong in (b"evil", b"goo", b"good or not"):
            assert httpx2.put(storage, content=wrong, trust_env=False).status_code == 400
            verified = client.post(answer["actions"]["verify"]["href"], json={"oid": oid, "size": 4})
            assert verified.status_code == 404
            made = client.post(f"{hub.url}/api/models/{REPO}/commit/main", content=body)
            assert (made.status_code, "has not arrived" in made.text) == (400, True)
        assert httpx2.put(storage, content=b"good", trust_env=False).status_code == 200
        assert client.post(f"{hub.url}/api/models/{REPO}/commit/main", content=body).status_code == 200
    assert hub.files(REPO) == {"w.npy": b"good"}


def test_who_may_do_what(hub):
    someone, nobody = HfApi(hub.url, token=hub.token), HfApi(hub.url, token=False)
    hub.add_user("ada", "hf_ada")
    hub.add_user("reader", "hf_reader", role="read")
    ada, reader, forger = (HfApi(hub.url, token=f"hf_{name}") for name in ("ada", "reader", "forger"))
    someone.create_repo("secret", private=True)
    assert someone.model_info("someone/secret").private
    hub.add_repo("someone/gated", {"a.txt": b"1"}, gated=True)
    hub.add_repo("reader/own", {})
    for api, status in ((nobody, 401), (ada, 404)):
        for missing in ("someone/secret", "someone/nothing"):
            with pytest.raises(RepositoryNotFoundError) as failure:
                api.model_info(missing)
            assert failure.value.response.status_code == status
    for repo in ("someone/secret", "someone/gated", "reader/own"):
        with pytest.raises(HfHubHTTPError, match="Invalid credentials"):
            forger.model_info(repo)
    assert ada.model_info("someone/gated").gated == "auto"
    for api, status in ((nobody, 401), (ada, 403)):
        with pytest.raises(GatedRepoError) as failure:
            api.auth_check("someone/gated")
        assert failure.value.response.status_code == status
        with pytest.raises(GatedRepoError):
            get_hf_file_metadata(hf_hub_url("someone/gated", "a.txt"), token=api.token)
    someone.auth_check("someone/gated")
    for api, repo, status in ((nobody, "reader/own", 401), (ada, "reader/own", 403), (reader, "reader/own", 403)):
        with pytest.raises(HfHubHTTPError) as failure:
            api.create_commit(repo, [add("a.txt", b"")], commit_message="m")
        assert failure.value.response.status_code == status
        with pytest.raises(HfHubHTTPError) as failure:
            api.create_repo("reader/another")
        assert failure.value.response.status_code == status
    with pytest.raises(HfHubHTTPError, match="Invalid user token"):
        forger.whoami()
    with pytest.raises(HfHubHTTPError, match=r"409"):
        someone.create_repo("secret")
    assert someone.create_repo("secret", exist_ok=True).repo_id == "someone/secret"


@pytest.mark.parametrize("metadata", ["a: [1", "- ä\n- b", "just text"])
def test_a_card_whose_metadata_is_no_mapping_is_refused(hub, api, monkeypatch, metadata):
    hub.add_repo(REPO, {})
    text = f"---\n{metadata}\n---\n# Card\n"
    with pytest.raises(ValueError, match=r"Invalid metadata in README\.md"):
        commit(api, add("README.md", text.encode()))
    monkeypatch.setattr(HfApi, "_validate_yaml", lambda *_, **__: None)  # a client that does not ask
    with pytest.raises(BadRequestError, match=r"rejected because of README\.md"):
        commit(api, add("README.md", text.encode()))
    assert hub.files(REPO) == {}


def test_a_good_card_passes_and_one_without_metadata_is_warned_of(hub, api):
    hub.add_repo(REPO, {})
    ModelCard("---\nlicense: mit\n---\n# Card\n").push_to_hub(REPO, token=hub.token)
    assert hub.files(REPO)["README.md"].startswith(b"---\nlicense: mit\n---")
    with pytest.warns(UserWarning, match="empty or missing yaml metadata"):
        commit(api, add("README.md", b"# Card\n"))


LOST = httpx2.RemoteProtocolError
# What goes wrong, what the client raises, how often it asks and how long it waits. Of a commit it never asks twice.
FAULTS = {
    "no token": (Fault("/preupload/", status=401), HfHubHTTPError, 1, []),
    "no right": (Fault("/commit/", status=403), HfHubHTTPError, 1, []),
    "too large": (Fault("/commit/", status=413), HfHubHTTPError, 1, []),
    "busy once": (Fault("/preupload/", status=429, headers={"Retry-After": "3"}, times=1), None, 2, [4]),
    "busy": (Fault("/batch$", "POST", status=429, headers={"Retry-After": "3"}), HfHubHTTPError, 6, [4] * 5),
    "down once": (Fault("/cdn/", "PUT", status=503, times=1), None, 2, [1]),
    "down": (Fault("/cdn/", status=500), RuntimeError, 6, [1, 2, 4, 8, 8]),
    "down at the commit": (Fault("/commit/", status=503, times=1), HfHubHTTPError, 1, []),
    "cut at the commit": (Fault("/commit/", cut_request_after=9), LOST, 1, []),
    "cut in a file once": (Fault("/cdn/", cut_request_after=100_000, times=1), None, 2, [1]),
    "cut in a file": (Fault("/cdn/", cut_request_after=100_000), RuntimeError, 6, [1, 2, 4, 8, 8]),
    "answer cut": (Fault("/preupload/", cut_response_after=5, times=1), None, 2, [1]),
    "answer lost": (Fault("/commit/", cut_response_after=0), LOST, 1, []),
    "slow": (Fault("/commit/", delay=0.3), None, 1, []),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_what_the_client_makes_of_it(hub, api, folder, waits, name):
    fault, error, num_tries, expected_waits = FAULTS[name]
    api.create_repo(REPO)
    before = hub.files(REPO)
    hub.fail(fault)
    start = time.monotonic()
    if error:
        with pytest.raises(error) as failure:
            api.upload_folder(repo_id=REPO, folder_path=folder)
        if error is HfHubHTTPError:
            assert failure.value.response.status_code == fault.status
    else:
        api.upload_folder(repo_id=REPO, folder_path=folder)
    assert time.monotonic() - start >= fault.delay
    assert len(asked(hub, fault.path.rstrip("$"))) == num_tries
    assert waits == expected_waits
    if error and name != "answer lost":  # which is of a commit that was made
        assert hub.files(REPO) == before
        hub.mend()
        api.upload_folder(repo_id=REPO, folder_path=folder)
    assert contents(folder).items() <= hub.files(REPO).items()


@pytest.mark.parametrize("path", ["/cdn/", "/resolve/"])
def test_a_download_that_is_cut_goes_on_where_it_was(hub, monkeypatch, path):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 50_000)  # what is less than a chunk is asked for again
    hub.add_repo(REPO, {"w.npy": WEIGHTS, "t.txt": WEIGHTS})
    hub.fail(Fault(path, "GET", cut_response_after=200_000, times=1))
    found = hf_hub_download(REPO, "w.npy" if path == "/cdn/" else "t.txt", token=hub.token)
    assert Path(found).read_bytes() == WEIGHTS
    assert [each for each in asked(hub, path) if each[0] == "GET"] == [("GET", 200), ("GET", 206)]


def test_it_closes_at_once_though_a_request_hangs(hub, api):
    hub.add_repo(REPO, {})
    hub.fail(Fault("/commit/", hang=True))
    with ThreadPoolExecutor(1) as pool:
        hanging = pool.submit(commit, api, add("a.txt", b""))
        while not asked(hub, "/commit/"):
            time.sleep(0.01)
        time.sleep(0.2)
        assert not hanging.done()
        start = time.monotonic()
        hub.close()
        with pytest.raises(LOST):
            hanging.result(timeout=5)
        assert time.monotonic() - start < 1
    assert hub.requests[-1].status is None


def test_nothing_is_printed_and_no_token_kept(hub, api, folder, capfd):
    api.create_repo(REPO)
    api.upload_folder(repo_id=REPO, folder_path=folder)
    with pytest.raises(HfHubHTTPError):
        HfApi(hub.url, token="hf_of_nobody").model_info(REPO)
    hub.add_user("ada", "hf_ada")
    HfApi(hub.url, token="hf_ada").whoami()
    assert all(
        request.authorised for request in hub.requests if "/api/models/" in request.path and request.status < 300
    )
    kept = {name: value for name, value in vars(hub).items() if name != "token"}
    for token in (hub.token, "hf_of_nobody", "hf_ada"):
        assert token not in repr(kept)
    out, err = capfd.readouterr()
    assert out == ""
    assert "HTTP/1.1" not in err
    assert hub.token not in err


# --- other processes -------------------------------------------------------------------------------------------------

READ = """
import json, sys
from datasets import load_dataset
from huggingface_hub import get_token, HfApi
from transformers import AutoConfig
found = {"layers": AutoConfig.from_pretrained("someone/model").n_layer, "me": HfApi().whoami()["name"]}
for streaming in (True, False):
    data = load_dataset(sys.argv[1], sys.argv[2], streaming=streaming)
    found[str(streaming)] = {split: [row["text"] for row in rows] for split, rows in data.items()}
print(json.dumps(found))
"""


def read_in_a_process(hub: HubServer, folder: Path, *arguments: str) -> dict:
    command = [sys.executable, "-c", READ, *arguments]
    environment = {**os.environ, **hub.environment(folder / "caches")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_transformers_and_datasets_of_another_process_read_from_it(hub, tmp_path):
    def rows(*texts: str) -> Path:
        path = tmp_path / f"{texts[0]}.parquet"
        pyarrow.parquet.write_table(pyarrow.table({"text": list(texts)}), path)
        return path

    configs = "configs:\n- config_name: one\n  data_files:\n  - {split: test, path: one/test-*}\n"
    files = {"README.md": f"---\n{configs}---\n".encode(), "one/test-0.parquet": rows("a", "b")}
    hub.add_repo("someone/model", {"config.json": b'{"model_type": "gpt2", "n_layer": 3}'}, private=True)
    hub.add_repo("org/rows", {**files, "one/other.parquet": rows("c")}, kind="dataset")
    found = read_in_a_process(hub, tmp_path, "org/rows", "one")
    assert found == {"layers": 3, "me": "someone", "True": {"test": ["a", "b"]}, "False": {"test": ["a", "b"]}}
    assert {p.name for p in (tmp_path / "caches" / "hub").iterdir()} >= {"models--someone--model"}
    assert [r.path for r in hub.requests if r.status is None or r.status >= 500] == []


def test_wikitext_is_read_by_its_name(hub, tmp_path, data_dir):
    hub.add_repo("someone/model", {"config.json": b'{"model_type": "gpt2", "n_layer": 3}'})
    hub.add_repo("Salesforce/wikitext", wikitext_files(data_dir), kind="dataset")
    found = read_in_a_process(hub, tmp_path, "Salesforce/wikitext", "wikitext-2-raw-v1")
    assert {split: len(rows) for split, rows in found["False"].items()} == {
        "test": 4358,
        "train": 4358,
        "validation": 3760,
    }
    assert found["True"] == found["False"]
    assert found["True"]["test"][1] == " = Robert <unk> = \n"  # a stand-in: the raw rows have the name
    card = hub.files("Salesforce/wikitext", kind="dataset")["README.md"]
    assert b"in both configs the rows of wikitext-2-v1" in card


def test_it_serves_on_its_own_until_it_is_interrupted(hub):
    command = [sys.executable, str(Path(__file__).with_name("hub_server.py"))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        said = dict(word.split("=") for word in process.stdout.readline().split())
        assert HfApi(said["HF_ENDPOINT"], token=said["HF_TOKEN"]).whoami()["name"] == "someone"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=10)
    assert (process.returncode, out, err) == (0, "", "")
