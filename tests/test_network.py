"""Every command that asks the Hub ends in one line, soon, whatever the Hub does; and no text tells a secret."""

import json
import random
from pathlib import Path

import pytest
from forking import ForkServer, recipe_file
from hub_server import Fault, HubServer
from huggingface_hub import HfApi, constants, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import close_session

from hf_gpt.cli import main
from hf_gpt.errors import HubError, UserError, without_secrets
from hf_gpt.network import hub_requests

FILES = "/(resolve|cdn)/"


@pytest.fixture(scope="module")
def shared_hub(folder):
    """A Hub with a model, and a dataset."""
    with HubServer() as hub:
        hub.add_repo("someone/model", {path.name: path for path in Path(folder).iterdir()})
        rows = "\n".join(json.dumps({"text": f"Row {i} of a dataset.\n"}) for i in range(200))
        hub.add_repo("someone/rows", {"README.md": b"---\nconfigs: []\n---\n", "a.jsonl": rows.encode()}, "dataset")
        yield hub


@pytest.fixture(scope="module")
def commands(shared_hub, tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    server = ForkServer({**shared_hub.environment(home), "HF_HUB_DOWNLOAD_TIMEOUT": "1"})
    yield server
    server.close()


@pytest.fixture
def arguments(folder, tmp_path):
    """Each command that may ask the Hub, by what it asks for."""
    base = {
        "model": {"context_length": 16, "emb_dim": 16, "n_layers": 1, "n_heads": 2},
        "tokenizer": {"name": "bytes"},
        "data": {"source": str(tmp_path / "text.txt")},
        "train": {"max_steps": 1, "batch_size": 2, "device": "cpu"},
    }
    (tmp_path / "text.txt").write_text("some words of a text\n" * 50)

    def recipe(name: str, **sections) -> Path:
        return recipe_file({**base, **sections, "output_dir": str(tmp_path / name)}, tmp_path / f"{name}.json")

    model, name = {"from_pretrained": "someone/model"}, {"name": "someone/model"}
    return {
        "generate": ["generate", "someone/model", "--prompt", "a", "--max-new-tokens", "1"],
        "evaluate": ["evaluate", "someone/model", "--text", tmp_path / "text.txt"],
        "a dataset to evaluate": ["evaluate", folder, "--dataset", "someone/rows", "--split", "train"],
        "explain": ["explain", "someone/model", "--text", "abc"],
        "decode": ["decode", "someone/model", "--prompt", "abc"],
        "convert": ["convert", "someone/model", tmp_path / "out", "--to", "gpt2"],
        "a model to train": ["train", recipe("model", model=model)],
        "a tokenizer": ["train", recipe("tokenizer", tokenizer=name)],
        "a text": ["train", recipe("text", data={"source": "someone/rows"})],
        "a stream": ["train", recipe("stream", data={"source": "someone/rows", "streaming": True})],
        "estimate": ["estimate", recipe("estimate", model=model)],
        "tokenize": ["tokenize", recipe("tokenize", tokenizer=name)],
        "push": ["push", folder, "someone/pushed"],
    }


def ended(commands, arguments: dict[str, list], caches: Path) -> dict[str, tuple[int, str]]:
    """Run commands side by side, each with a cache of its own: their exit codes and what they printed."""
    running = {}
    for number, (name, argv) in enumerate(arguments.items()):
        running[name] = commands.start(*argv, env={"HF_GPT_CACHE": str(caches / f"cache-{number}")})
    return {name: (command.wait(), command.printed) for name, command in running.items()}


@pytest.mark.parametrize("fault", [Fault(cut_request_after=0), Fault(hang=True)], ids=["closed", "hangs"])
def test_every_command_ends_in_one_line(hub, commands, arguments, tmp_path, fault):
    hub.fail(fault)
    says = "no answer in time" if fault.hang else "the connection was cut"
    for name, (code, printed) in ended(commands, arguments, tmp_path).items():
        assert code == (1 if name == "push" else 2), (name, printed)
        assert len(printed.splitlines()) == 1, (name, printed)
        assert says in printed, (name, printed)
        assert "Traceback" not in printed
    asked = [(asked.method, asked.path) for asked in hub.requests]
    assert max(map(asked.count, asked)) <= 3 * len(arguments)


FAULTS = {
    "a login page": (Fault(status=200, body="<html>log in</html>"), "something else than a Hub"),
    "other json": (Fault(status=200, body="[]"), "something else than a Hub"),
    "redirects": (Fault(status=302, headers={"Location": "/x"}), "it redirects without end"),
    "429": (Fault(status=429, headers={"RateLimit": '"api";r=0;t=500'}), "too many requests (429)"),
    "answers that are cut": (Fault("/api/", cut_response_after=5), "the connection was cut"),
    "a reset": (Fault("/api/", cut_response_after=5, reset=True), "Connection reset by peer"),
    "stalls": (Fault("/api/", cut_response_after=5, stalls=True), "no answer in time"),
    "files that are cut": (Fault(FILES, method="GET", cut_response_after=5), "the connection was cut"),
    "another file": (Fault(FILES, method="GET", status=200, body="short"), "a file did not arrive whole"),
    "503 of files": (Fault(FILES, method="GET", status=503), "a server error (503)"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_went_wrong_is_said(hub, commands, arguments, tmp_path, name):
    fault, says = FAULTS[name]
    hub.fail(fault)
    caches = {"HF_HUB_CACHE": str(tmp_path / "hub")}
    code, printed = commands.run(*arguments["generate"], env=caches)
    assert code == 2, printed
    assert len(printed.splitlines()) == 1, printed
    assert says in printed


def test_what_is_in_the_cache_is_used_when_the_hub_is_not_reached(hub, commands, arguments, tmp_path):
    code, written = commands.run(*arguments["generate"])
    assert code == 0, written
    for fault in (Fault(cut_request_after=0), Fault(hang=True), Fault(status=503)):
        hub.mend()
        hub.fail(fault)
        assert commands.run(*arguments["generate"]) == (0, written)


def test_a_download_that_is_cut_again_and_again_goes_on_and_outside_nothing_is_limited(hub, on_line, tmp_path):
    content = random.Random(0).randbytes(5_000_000)
    hub.add_repo("someone/large", {"large.bin": content})
    hub.fail(Fault("/cdn/", method="GET", cut_response_after=1_100_000, times=4))
    with hub_requests("it"):
        assert Path(hf_hub_download("someone/large", "large.bin", cache_dir=tmp_path)).read_bytes() == content
    hub.fail(Fault("/refs", status=503, headers={"Retry-After": "3600"}))
    with pytest.raises(HubError, match=r"^it: the Hub is not ready \(503\)$") as refused, hub_requests("it"):
        HfApi().list_repo_refs("someone/large")
    assert (refused.value.is_transient, refused.value.retry_after) == (True, 3600)
    with pytest.raises(HfHubHTTPError):
        HfApi().list_repo_refs("someone/large")


@pytest.fixture
def on_line(hub, monkeypatch):
    """This process's client with our Hub."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setenv("NO_PROXY", "*")
    close_session()
    yield
    close_session()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://me:secret@host/x and https://tok@host", "http://host/x and https://host"),
        ("https://u:p%40ss@[::1]:80/a?b=c@d", "https://[::1]:80/a?b=c@d"),
        ("hf_" + "aB3" * 11 + ", hf_oauth_" + "x" * 30 + ".", "hf_..., hf_...."),
        (
            "see https://s3/x?X-Amz-Signature=ab12&size=3&token=t",
            "see https://s3/x?X-Amz-Signature=...&size=3&token=...",
        ),
        ("Authorization: Bearer abcdefghijklmnopqrst", "Authorization: Bearer ..."),
        ("proxy of-the-proxy, 100%", "proxy ..., 100%"),  # the password of HTTPS_PROXY
        (
            "hf_gpt_and_other_names, a@b.c, Basic training, my-own-token",
            "hf_gpt_and_other_names, a@b.c, Basic training, ...",
        ),
    ],
)
def test_no_text_tells_a_secret(monkeypatch, text, shown):
    monkeypatch.setenv("HTTPS_PROXY", "http://me:of-the-proxy@host:80")
    monkeypatch.setenv("HF_TOKEN", "my-own-token")
    assert without_secrets(text) == shown
    assert str(UserError(text, field="it")) == f"it: {shown}"
    assert str(HubError(text)) == shown


def test_a_password_with_odd_characters_is_not_told(monkeypatch):
    for password in ("a/b#c?d@e", "pa ss", "p"):
        monkeypatch.setenv("HF_ENDPOINT", f"https://me:{password}@host")
        assert without_secrets(f"https://me:{password}@host/x is not") == "https://host/x is not"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("HF_ENDPOINT", "http://me:pa/ss-word@127.0.0.1:9"),
        ("HF_ENDPOINT", "http://[x"),
        ("HF_ENDPOINT", "http://x:99999"),
        ("HF_HUB_DOWNLOAD_TIMEOUT", "2.5"),
    ],
)
def test_a_variable_with_which_huggingface_hub_cannot_be_imported_is_refused(monkeypatch, capsys, name, value):
    monkeypatch.setenv(name, value)
    assert main(["plot", "nowhere"]) == 2
    line = capsys.readouterr().err
    assert line.startswith(f"hf-gpt: {name}: this environment variable is not a")
    assert line.count("\n") == 1
    assert "ss-word" not in line
