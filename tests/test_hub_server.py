"""The Hub of the tests, asked by the real clients: it does what the package's tests rely on."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hub_server import Fault, HubServer
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, RemoteEntryNotFoundError, RepositoryNotFoundError
from huggingface_hub.utils import close_session

REPO = "someone/model"


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
        yield server
    close_session()


@pytest.fixture
def api(hub) -> HfApi:
    return HfApi(endpoint=hub.url, token=hub.token)


def commit(api: HfApi, *operations, **options) -> str:
    return api.create_commit(REPO, operations, commit_message="a commit", **options).oid


def test_a_folder_is_uploaded_once_and_comes_back_as_it_was(hub, api, tmp_path):
    folder = tmp_path / "folder"
    (folder / "deep").mkdir(parents=True)
    (folder / "README.md").write_text("---\nlibrary_name: transformers\ntags: [small]\n---\n# A model\n")
    (folder / "deep" / "naïve name.txt").write_text("ä")
    (folder / "model.safetensors").write_bytes(os.urandom(300_000))
    api.create_repo("model")
    for _ in range(2):
        api.upload_folder(repo_id=REPO, folder_path=folder, commit_message="all of it")
    assert [commit["title"] for commit in hub.commits(REPO)] == ["all of it", "initial commit"]
    assert [asked.method for asked in hub.requests if asked.path.startswith("/cdn/")] == ["PUT"]
    came = Path(snapshot_download(REPO, token=hub.token, endpoint=hub.url))
    for path in (path for path in folder.rglob("*") if path.is_file()):
        assert (came / path.relative_to(folder)).read_bytes() == path.read_bytes()
    assert (api.model_info(REPO).library_name, api.model_info(REPO).tags) == ("transformers", ["small"])


def test_a_commit_changes_all_or_nothing(hub, api):
    parent = hub.add_repo(REPO, {"a.txt": b"1", "e.txt": b"4"})
    with pytest.raises(RemoteEntryNotFoundError):
        commit(api, CommitOperationAdd("new.txt", b"new"), CommitOperationDelete("not-there.txt"))
    assert hub.commits(REPO)[0]["id"] == parent
    made = commit(api, CommitOperationDelete("e.txt"), parent_commit=parent)
    assert hub.files(REPO) == {"a.txt": b"1"}
    assert set(hub.files(REPO, revision=parent)) == {"a.txt", "e.txt"}
    with pytest.raises(HfHubHTTPError) as failure:
        commit(api, CommitOperationAdd("late.txt", b""), parent_commit=parent)
    assert failure.value.response.status_code == 412
    assert hub.commits(REPO)[0]["id"] == made
    with pytest.raises(ValueError, match=r"Invalid metadata in README\.md"):
        commit(api, CommitOperationAdd("README.md", b"---\n- no mapping\n---\n"))


def test_who_may_do_what(hub, api):
    nobody, forger = HfApi(hub.url, token=False), HfApi(hub.url, token="hf_forger")
    api.create_repo("secret", private=True)
    hub.add_repo("other/model", {})
    assert api.model_info("someone/secret").private
    for asking, repo, status in ((nobody, "someone/secret", 401), (nobody, "no/such", 401), (api, "no/such", 404)):
        with pytest.raises(RepositoryNotFoundError) as failure:
            asking.model_info(repo)
        assert failure.value.response.status_code == status
    with pytest.raises(HfHubHTTPError, match="Invalid credentials"):
        forger.model_info("other/model")
    with pytest.raises(HfHubHTTPError, match="403"):
        api.create_commit("other/model", [CommitOperationAdd("a.txt", b"")], commit_message="m")


def test_a_fault_lasts_until_it_is_mended(hub, api):
    before = hub.add_repo(REPO, {"a.txt": b"1"})
    for fault in (Fault("/commit/", status=503), Fault("/commit/", cut_request_after=9)):
        hub.fail(fault)
        with pytest.raises(Exception, match=r"503|disconnected|reset|closed"):
            commit(api, CommitOperationAdd("a.txt", b"2"))
        assert hub.commits(REPO)[0]["id"] == before
        hub.mend()
    assert commit(api, CommitOperationAdd("a.txt", b"2")) != before


READ = """
import json
from datasets import load_dataset
from huggingface_hub import HfApi
from transformers import AutoConfig
found = {"layers": AutoConfig.from_pretrained("someone/model").n_layer, "me": HfApi().whoami()["name"]}
for streaming in (True, False):
    data = load_dataset("org/rows", "one", streaming=streaming)
    found[str(streaming)] = {split: [row["text"] for row in rows] for split, rows in data.items()}
print(json.dumps(found))
"""


def test_transformers_and_datasets_of_another_process_read_from_it(hub, tmp_path):
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a", "b"]}), tmp_path / "rows.parquet")
    configs = "configs:\n- config_name: one\n  data_files:\n  - {split: test, path: one/test-*}\n"
    files = {"README.md": f"---\n{configs}---\n".encode(), "one/test-0.parquet": tmp_path / "rows.parquet"}
    hub.add_repo(REPO, {"config.json": b'{"model_type": "gpt2", "n_layer": 3}'}, private=True)
    hub.add_repo("org/rows", files, kind="dataset")
    environment = {**os.environ, **hub.environment(tmp_path / "caches")}
    done = subprocess.run([sys.executable, "-c", READ], env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found == {"layers": 3, "me": "someone", "True": {"test": ["a", "b"]}, "False": {"test": ["a", "b"]}}
