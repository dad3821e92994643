"""Checkpoints go to the Hub and come back, over real HTTP; whatever the Hub does, nothing is lost or torn."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
import torch
from any_model import TYPES, save, tiny
from forking import ForkServer, recipe_file
from hub_repos import wikitext_files
from hub_server import Fault, HubServer

from hf_gpt import checkpoint
from hf_gpt.errors import UserError
from hf_gpt.hub import background
from hf_gpt.hub.background import BackgroundPush
from hf_gpt.hub.push import _files
from hf_gpt.recipe import HubRecipe
from hf_gpt.training.run_log import read_lines

REPO = "someone/my-gpt"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("hub")


@pytest.fixture(scope="module")
def shared_hub():
    with HubServer() as hub:
        yield hub


@pytest.fixture(scope="module")
def commands(shared_hub, folder):
    """`hf-gpt` commands whose Hub is ours."""
    environment = {**shared_hub.environment(folder / "home"), "HF_HUB_DOWNLOAD_TIMEOUT": "2"}
    server = ForkServer(environment, "import hf_gpt.hub.background; hf_gpt.hub.background.LAST_PAUSES = (0.1, 0.2)")
    yield server
    server.close()


@pytest.fixture(scope="module")
def recipe(folder) -> dict:
    text = folder / "text.txt"
    text.write_text("".join(f"Line {i}: the quick brown fox jumps over {i * i} lazy dogs.\n" for i in range(200)))
    return {
        "model": {
            "context_length": 32,
            "emb_dim": 32,
            "n_layers": 2,
            "n_heads": 2,
            "drop_rate": 0.1,
            "qkv_bias": True,
        },
        "tokenizer": {"name": "bytes"},
        "data": {"source": str(text), "validation_fraction": 0.1},
        "train": {"max_steps": 12, "batch_size": 2, "log_every": 1, "device": "cpu"},
        "evaluation": {"every": 4, "tokens": 512, "prompts": ["Line"], "sample_tokens": 8},
        "checkpoint": {"every": 4, "keep": None},
    }


@pytest.fixture(scope="module")
def run(commands, recipe, folder) -> Path:
    """A finished run of 12 steps with checkpoints at 4, 8 and 12, which knows of no Hub."""
    path = folder / "run"
    code, printed = commands.run("train", recipe_file({**recipe, "output_dir": str(path)}, folder / "recipe.json"))
    assert code == 0, printed
    return path


@pytest.fixture
def step(run):
    return lambda number: run / "checkpoints" / checkpoint.name_of(number)


def in_a_fresh_process(code: str, environment: dict[str, str]) -> dict:
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


# Pushing ------------------------------------------------------------------------------------------------------------


def test_a_model_is_one_commit_and_loads_by_name_tag_and_commit(hub, commands, step, tmp_path):
    repo = "someone/loads"
    for number, options in ((4, ["--tag", "v1"]), (8, [])):
        code, printed = commands.run("push", step(number), repo, *options, "--json")
        assert code == 0, printed
    pushed = json.loads(printed.splitlines()[-1])
    messages = [commit["title"] for commit in hub.commits(repo)]
    assert messages[:2] == ["Step 8", "Step 4"]
    assert len(messages) == 3  # and the one that made the repository
    local = {path.name: path.read_bytes() for path in step(8).iterdir() if path.is_file()}
    there = hub.files(repo)
    assert {name: there[name] for name in local if name != "README.md"} == {
        name: content for name, content in local.items() if name != "README.md"
    }
    assert not [name for name in there if name.startswith("training_state")]

    code = f"""
import json, torch, hf_gpt
from transformers import AutoModelForCausalLM, AutoTokenizer
ids = torch.arange(20).unsqueeze(0)
def logits(name, **options):
    return AutoModelForCausalLM.from_pretrained(name, **options).eval()(ids).logits
same = lambda a, b: bool(torch.equal(a, b))
new, old = logits({str(step(8))!r}), logits({str(step(4))!r})
print(json.dumps([
    same(new, logits({repo!r})), same(old, logits({repo!r}, revision="v1")),
    same(new, logits({repo!r}, revision={pushed["commit"]!r})), same(new, old),
    AutoTokenizer.from_pretrained({repo!r})("é").input_ids,
]))"""
    assert in_a_fresh_process(code, hub.environment(tmp_path)) == [True, True, True, False, [195, 169]]
    code, printed = commands.run("generate", f"{repo}@v1", "--prompt", "Line", "--max-new-tokens", "4")
    assert code == 0, printed


def test_pushing_again_sends_nothing(hub, commands, step):
    assert commands.run("push", step(4), "someone/twice", "--tag", "v1")[0] == 0
    hub.requests.clear()
    code, printed = commands.run("push", step(4), "someone/twice", "--tag", "v1")
    assert code == 0, printed
    assert not [asked for asked in hub.requests if "/commit/" in asked.path or asked.method == "PUT"]


def test_a_tag_moves_and_a_branch_is_made(hub, commands, step):
    for number in (4, 8):
        code, printed = commands.run("push", step(number), "someone/moves", "--tag", "best", "--revision", "training")
        assert code == 0, printed
    refs = hub.refs("someone/moves")
    assert refs["tags"]["best"] == refs["branches"]["training"] != refs["branches"]["main"]
    assert "config.json" not in hub.files("someone/moves")


def test_training_state_goes_only_when_asked_and_leaves_with_the_model_it_is_of(hub, commands, run, step):
    repo = "someone/state"
    assert commands.run("push", step(4), repo, "--with-training-state")[0] == 0
    there = hub.files(repo)
    for name in ("optimizer.safetensors", "state.json", "run/recipe.yaml", "run/metrics.jsonl"):
        assert f"training_state/{name}" in there
    assert commands.run("push", run, repo)[0] == 0  # the run's best
    assert not [name for name in hub.files(repo) if name.startswith("training_state")]


def test_the_records_of_a_run_go_along_from_within_its_folder(hub, step, tmp_path):
    code = f"""
import os
os.chdir({str(step(8).parent)!r})
from hf_gpt.hub.push import push
print(int(push("step-00000008", "someone/relative", with_training_state=True).revision == "main"))"""
    assert in_a_fresh_process(code, hub.environment(tmp_path)) == 1
    there = hub.files("someone/relative")
    assert {"training_state/run/recipe.yaml", "training_state/run/metrics.jsonl"} <= set(there)
    assert hub.commits("someone/relative")[0]["title"] == "Step 8"


def test_private_is_private_and_what_is_public_is_not_taken_for_it(hub, commands, step, tmp_path):
    assert commands.run("push", step(4), "someone/secret", "--private")[0] == 0
    nobody = {**hub.environment(tmp_path), "HF_TOKEN": "", "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1"}
    code = """
import huggingface_hub
try:
    huggingface_hub.HfApi().repo_info("someone/secret")
    print(1)
except OSError:
    print(0)"""
    assert in_a_fresh_process(code, nobody) == 0
    assert commands.run("push", step(4), "someone/open")[0] == 0
    code, printed = commands.run("push", step(8), "someone/open", "--private")
    assert code == 2
    assert "someone/open is public already" in printed
    assert hub.commits("someone/open")[0]["title"] == "Step 4"


def test_as_gpt2_needs_neither_this_package_nor_remote_code(hub, commands, run, step, tmp_path):
    code, printed = commands.run("push", step(12), "someone/stock", "--format", "gpt2")
    assert code == 0, printed
    code = f"""
import json, sys, torch
from transformers import AutoModelForCausalLM
stock = AutoModelForCausalLM.from_pretrained("someone/stock")
assert "hf_gpt" not in sys.modules
import hf_gpt
ours = AutoModelForCausalLM.from_pretrained({str(step(12))!r})
ids = torch.arange(20).unsqueeze(0)
print(json.dumps([type(stock).__name__, float((stock.eval()(ids).logits - ours.eval()(ids).logits).abs().max())]))"""
    name, difference = in_a_fresh_process(code, hub.environment(tmp_path))
    assert name == "GPT2LMHeadModel"
    assert difference < 1e-5
    for saved in (
        hub.files("someone/stock")["tokenizer_config.json"],
        (step(12) / "tokenizer_config.json").read_bytes(),
    ):
        assert json.loads(saved)["tokenizer_class"] == "PreTrainedTokenizerFast"  # which transformers 4 knows too
    card = hub.files("someone/stock")["README.md"].decode()
    assert "trust_remote_code" not in card
    assert "someone/stock" in card


def test_a_stock_type_needs_nothing_but_transformers(hub, commands, step, tmp_path):
    """Also where our GPT was: its code leaves with it. What generates and chats comes along, no training state."""
    ids, repo = torch.arange(20).unsqueeze(0), "someone/types"
    code, printed = commands.run("push", step(12), repo)
    assert code == 0, printed
    for name in TYPES:
        folder, model = tmp_path / name, tiny(name)
        model.generation_config.update(do_sample=True, temperature=0.6)
        save(model, folder)
        (folder / "chat_template.jinja").write_text("{{ messages }}")
        shutil.copytree(step(12) / "training_state", folder / "training_state")
        (folder / checkpoint.MANIFEST).unlink()
        code, printed = commands.run("push", folder, repo, "--tag", name)
        assert code == 0, printed
        files = {"config.json", "generation_config.json", "model.safetensors", "chat_template.jinja"}
        files |= {"tokenizer.json", "tokenizer_config.json", "README.md", ".gitattributes"}
        assert files - {".gitattributes"} <= set(hub.files(repo)) <= files
        assert b"auto_map" not in hub.files(repo)["config.json"]
        torch.save(model(ids).logits.detach(), folder / "logits.pt")
    code = f"""
import json, sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
found = {{}}
for name in {[*TYPES]}:
    model = AutoModelForCausalLM.from_pretrained({repo!r}, revision=name)
    difference = model.eval()(torch.arange(20).unsqueeze(0)).logits - torch.load(f"{tmp_path}/{{name}}/logits.pt")
    found[name] = float(difference.abs().max()), AutoTokenizer.from_pretrained({repo!r}, revision=name)("é").input_ids
assert "hf_gpt" not in sys.modules
print(json.dumps(found))"""
    found = in_a_fresh_process(code, hub.environment(tmp_path / "home"))
    for name, (difference, tokens) in found.items():
        assert difference < 1e-6, name
        assert tokens == [195, 169]


def test_a_persons_words_in_the_card_stay(hub, commands, step):
    repo = "someone/edited"
    assert commands.run("push", step(4), repo)[0] == 0
    card = hub.files(repo)["README.md"].decode()
    assert repo in card  # in the code that loads it
    edited = card.rstrip() + "\n\n## Thanks\n\nTo my grandmother.\n"
    code = f"""
import json, huggingface_hub as h
h.HfApi().upload_file(path_or_fileobj={edited!r}.encode(), path_in_repo="README.md", repo_id={repo!r})
print(1)"""
    in_a_fresh_process(code, hub.environment(step(4).parent / "home"))
    assert commands.run("push", step(8), repo)[0] == 0
    new = hub.files(repo)["README.md"].decode()
    assert "To my grandmother." in new
    assert new.replace("To my grandmother.", "") != edited.replace("To my grandmother.", "")


@pytest.mark.parametrize(
    ("model", "repo_id", "options", "says"),
    [
        ("nowhere", REPO, [], "no such directory"),
        (None, "not a name", [], "it is no Hub id (OWNER/NAME)"),
        (None, REPO, ["--format", "gpt2", "--with-training-state"], "--format: excludes the training state"),
    ],
)
def test_what_cannot_be_pushed_is_one_line(commands, step, model, repo_id, options, says):
    code, printed = commands.run("push", model or step(4), repo_id, *options)
    assert code == 2
    assert says in printed
    assert len(printed.splitlines()) == 1


def test_what_others_put_beside_the_model_stays_and_a_model_without_a_card_claims_nothing(
    hub, commands, step, tmp_path
):
    others = ("lora/adapter_model.safetensors", "tokenizer_notes.md", "onnx/model.onnx", "vocab.txt", "spiece.model")
    repo = "someone/shared"
    assert commands.run("push", step(4), repo)[0] == 0
    card = hub.files(repo)["README.md"].decode() + "\n\nThanks to all.\n"
    adds = [(name, b"theirs") for name in (*others, "merges.txt")] + [("README.md", card.encode())]
    code = f"""
import huggingface_hub as h
h.HfApi().create_commit({repo!r}, [h.CommitOperationAdd(*add) for add in {adds!r}], commit_message="more")
print(1)"""
    in_a_fresh_process(code, hub.environment(tmp_path))
    bare = tmp_path / "bare"
    shutil.copytree(step(8), bare, ignore=shutil.ignore_patterns("training_state", "README.md"))
    (bare / "optimizer.pt").write_bytes(b"a pickle")
    code, printed = commands.run("push", bare, repo)
    assert code == 0, printed
    there = hub.files(repo)
    assert set(others) <= set(there)
    assert not {"merges.txt", "optimizer.pt"} & set(there)
    card = there["README.md"].decode()
    assert "Thanks to all." in card
    assert "model-index" not in card
    assert "## Samples" not in card


def test_a_revision_is_a_branch(hub, commands, step):
    assert commands.run("push", step(4), "someone/tagged", "--tag", "v1")[0] == 0
    code, printed = commands.run("push", step(8), "someone/tagged", "--revision", "v1")
    assert code == 2
    assert "'v1' is a tag of someone/tagged" in printed
    code, printed = commands.run("push", step(8), "someone/tagged", "--tag", "main")
    assert code == 2
    assert "--tag: 'main' is a branch of someone/tagged" in printed
    assert set(hub.refs("someone/tagged")["tags"]) == {"v1"}


def test_a_branch_that_holds_another_run_is_left_alone(hub, commands, recipe, step, tmp_path):
    where = ["someone/taken", "--revision", "training", "--with-training-state"]
    assert commands.run("push", step(4), *where)[0] == 0
    code, printed = trained(commands, recipe, tmp_path, train={"max_steps": 1})
    assert code == 0, printed
    code, printed = commands.run("push", tmp_path / "run" / "checkpoints" / "step-00000001", *where)
    assert code == 2
    assert "holds another run" in printed


# Faults -------------------------------------------------------------------------------------------------------------

FAULTS = {
    "401": (Fault("/commit/", status=401), "not accepted (401)"),
    "403": (Fault("/commit/", status=403), "someone/faulty: the token may not do this (403)"),
    "413": (Fault("/commit/", status=413), "too large"),
    "429": (Fault("/commit/", status=429, headers={"Retry-After": "77"}), "too many requests (429)"),
    "503": (Fault("/commit/", status=503), "a server error (503)"),
    "cut while sending": (Fault("/commit/", cut_request_after=100), "was not reached"),
    "cut while answering": (Fault("/api/models/", method="GET", cut_response_after=5), "was not reached"),
    "hangs": (Fault("/commit/", hang=True), "no answer in time"),
    "400": (Fault("/commit/", status=400, body='{"error": "see https://signed/x: no"}'), "(400): see ... no"),
    "a long pause before": (
        Fault("/preupload/", status=429, headers={"Retry-After": "3600"}),
        "too many requests (429)",
    ),
    "a long pause within": (
        Fault("/objects/batch", status=503, headers={"Retry-After": "3600"}),
        "is not ready (503)",
    ),
    "a long pause of the storage": (Fault("/cdn/", status=429, headers={"Retry-After": "3600"}), "too many requests"),
    "403 of the storage": (Fault("/cdn/", status=403), "(403)"),
    "403 of a look": (Fault("/refs", status=403), "(403)"),
}
WAITS = {"429": 77, "a long pause before": 3600, "a long pause within": 3600, "a long pause of the storage": 3600}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_one_line_and_the_repository_stays_as_it_was(hub, commands, step, tmp_path, name):
    repo, (fault, says) = "someone/faulty", FAULTS[name]
    assert commands.run("push", step(4), repo)[0] == 0
    before = hub.commits(repo), hub.files(repo)
    model = tmp_path / "model"
    shutil.copytree(step(8), model, ignore=shutil.ignore_patterns("training_state"))
    (model / "new.png").write_bytes(os.urandom(100))  # which the storage does not have yet
    hub.fail(fault)
    code, printed = commands.run("push", model, repo, "--json")
    answer, line = printed.splitlines()[0], printed.splitlines()[1:]
    hub.mend()
    assert code == 1, printed
    assert says in json.loads(answer)["error"]
    assert len(line) == 1
    assert hub.token not in printed
    assert json.loads(answer)["retry_after"] == WAITS.get(name)
    assert (hub.commits(repo), hub.files(repo)) == before


def test_without_a_token_it_says_how_to_get_one(hub, commands, step):
    code, printed = commands.run("push", step(4), REPO, env={"HF_TOKEN": "", "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1"})
    assert code == 1
    assert "hf auth login" in printed
    assert len(printed.splitlines()) == 1


def test_a_model_that_the_hub_does_not_give_is_one_line(hub, commands, step):
    assert commands.run("push", step(4), "someone/there")[0] == 0
    says = {
        "someone/nothing": "no such repository",
        "someone/there@nowhere": "it has no such branch, tag or commit",
        "not a name": "it is no Hub id (OWNER/NAME)",
        "someone/closed": "accept the conditions on its page",
    }
    hub.fail(Fault("/someone/closed", status=403, headers={"X-Error-Code": "GatedRepo"}))
    for model, text in says.items():
        code, printed = commands.run("generate", model, "--prompt", "Line")
        assert code == 2
        assert f"hf-gpt: {model}: neither a directory here nor found on the Hub: " in printed
        assert text in printed
        assert len(printed.splitlines()) == 1


# During training ----------------------------------------------------------------------------------------------------


def trained(commands, recipe: dict, folder: Path, **changes) -> tuple[int, str]:
    """Train into `folder`/run; `changes` are sections."""
    sections = {name: {**recipe.get(name, {}), **values} for name, values in changes.items()}
    folder.mkdir(exist_ok=True)
    file = recipe_file({**recipe, **sections, "output_dir": str(folder / "run")}, folder / "recipe.json")
    return commands.run("train", file)


def test_steps_become_tags_and_the_best_becomes_main(hub, commands, recipe, tmp_path):
    repo = "someone/published"
    code, printed = trained(commands, recipe, tmp_path, hub={"repo_id": repo})
    assert code == 0, printed
    refs = hub.refs(repo)
    assert "step-00000012" in refs["tags"]
    assert set(refs["tags"]) <= {f"step-{number:08d}" for number in (4, 8, 12)}
    for tag, commit in refs["tags"].items():
        local = (tmp_path / "run" / "checkpoints" / tag / "model.safetensors").read_bytes()
        assert hub.files(repo, commit)["model.safetensors"] == local
    best = checkpoint.pointed(tmp_path / "run", "best")
    assert hub.files(repo)["model.safetensors"] == (best / "model.safetensors").read_bytes()
    assert repo in hub.files(repo)["README.md"].decode()
    assert "hub: step-00000012 is at" in printed


@pytest.mark.parametrize("fault", [Fault(status=503), Fault("/commit/", hang=True)], ids=["503", "hangs"])
def test_a_run_ends_well_whatever_the_hub_does_and_says_what_finishes_the_job(hub, commands, recipe, tmp_path, fault):
    repo = f"someone/late-{fault.status}"
    hub.fail(fault)
    code, printed = trained(commands, recipe, tmp_path, hub={"repo_id": repo})
    assert code == 0, printed
    assert checkpoint.pointed(tmp_path / "run", "latest").name == "step-00000012"
    told = [line for line in printed.splitlines() if line.startswith("hub: ")]
    troubles = [line for line in told if "sending" not in line and "not everything" not in line]
    assert len(troubles) == 2, told
    assert troubles[1] == "hub: trying again for some 0 minutes; Ctrl-C leaves it for later"
    assert told[-1].startswith("hub: not everything was sent; this sends the rest: hf-gpt push ")

    hub.mend()
    for command in told[-1].partition("rest: ")[2].split(" && "):
        code, printed = commands.run(*command.split()[1:])
        assert code == 0, printed
    best = checkpoint.pointed(tmp_path / "run", "best")
    assert hub.files(repo)["model.safetensors"] == (best / "model.safetensors").read_bytes()
    assert "step-00000012" in hub.refs(repo)["tags"]


@pytest.mark.parametrize(
    ("fault", "attempts", "is_sent"),
    [
        (Fault("/commit/", status=503, times=3), 5, True),
        (Fault("/commit/", cut_request_after=9, times=2), 4, True),
        (Fault("/commit/", status=403, times=2), 2, False),  # waiting would not help
        (Fault("/commit/", status=429, headers={"Retry-After": "77"}, times=1), 1, False),  # longer than it would wait
    ],
    ids=["503", "cut", "403", "a long pause"],
)
def test_what_is_left_is_tried_again_while_the_hub_stumbles(hub, step, on_line, monkeypatch, fault, attempts, is_sent):
    monkeypatch.setattr(background, "LAST_PAUSES", (0.1, 0.2, 0.2, 0.2))
    repo = f"someone/stumbles-{attempts}-{fault.status}"
    hub.fail(fault)
    publisher = BackgroundPush(HubRecipe(repo_id=repo))
    publisher.offer(step(8), step(4))
    told = list(publisher.finish())
    assert len([asked for asked in hub.requests if "/commit/" in asked.path]) == attempts
    assert ("not everything was sent" not in told[-1]) == is_sent
    assert len([line for line in told if "trying again" in line]) == is_sent
    if is_sent:
        assert [hub.commits(repo, branch)[0]["title"] for branch in ("training", "main")] == ["Step 8", "Step 4"]


def test_ctrl_c_leaves_the_rest_to_a_command_at_once(hub, step, on_line, monkeypatch):
    monkeypatch.setattr(background, "LAST_PAUSES", (1e6,))
    hub.fail(Fault(status=503))
    publisher, told = BackgroundPush(HubRecipe(repo_id="someone/left")), []
    publisher.offer(step(4), None)
    for line in publisher.finish():
        told.append(line)
        if "trying again" in line:
            threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
    assert told[-1].count("hf-gpt push") == 1


@pytest.fixture
def on_line(hub, tmp_path, monkeypatch):
    """The processes that push from this one have our Hub."""
    for name, value in hub.environment(tmp_path / "home").items():
        monkeypatch.setenv(name, value)


def test_what_was_overtaken_is_not_sent_and_pauses_grow(hub, step, tmp_path, monkeypatch):
    repo = "someone/overtaken"
    for name, value in hub.environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    hub.fail(Fault("/commit/training", status=503, times=2))
    hub.fail(Fault("/commit/training", status=429, headers={"Retry-After": "3"}, times=1))
    publisher, told, waits = BackgroundPush(HubRecipe(repo_id=repo), first_pause=0.5), [], []

    def go_on_until(condition) -> None:
        deadline = time.monotonic() + 300
        while not condition():
            assert time.monotonic() < deadline, told
            told.extend(publisher.tick())
            time.sleep(0.02)

    commits = lambda: [a for a in hub.requests if "/commit/training" in a.path]  # noqa: E731
    publisher.offer(step(4), step(4))
    go_on_until(lambda: len(commits()) == 1)
    publisher.offer(step(8), step(8))
    publisher.offer(step(12), step(4))
    for number in (1, 2, 3):
        go_on_until(lambda number=number: len(commits()) > number)
        waits.append(time.monotonic())
    go_on_until(lambda: not publisher.needs(None))
    assert set(hub.refs(repo)["tags"]) == {"step-00000012"}
    assert hub.commits(repo)[0]["title"] == "Step 4"  # main: the best
    assert waits[1] - waits[0] > 0.6  # twice the first pause
    assert waits[2] - waits[1] > 2.2  # what the Hub asked for
    assert [line.partition("(")[0] for line in told] == [
        f"hub: {repo}: the Hub has a server error ",
        f"hub: {repo}: too many requests ",
        "hub: pushing works again; step-00000012 is at " + hub.url + f"/{repo}/tree/training",
    ]


def test_the_two_branches_take_turns(hub, step, tmp_path, monkeypatch):
    repo = "someone/turns"
    for name, value in hub.environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    publisher = BackgroundPush(HubRecipe(repo_id=repo))
    publisher.offer(step(4), step(4))
    deadline = time.monotonic() + 300
    while "config.json" not in hub_files(hub, repo):
        assert time.monotonic() < deadline
        list(publisher.tick())
        publisher.offer(step(8 if publisher.needs(None) == {step(4)} else 4), step(4))  # always something new
        time.sleep(0.02)
    list(publisher.left())


def hub_files(hub, repo: str) -> dict[str, bytes]:
    """Of `main`; none where there is no repository yet."""
    return hub.files(repo) if any("/commit/main" in asked.path for asked in hub.requests) else {}


def train_with_a_hub_that_hangs(hub, commands, recipe, folder: Path, repo_id: str):
    """The command of a run that is published there, and whose pushes are never answered."""
    hub.fail(Fault("/commit/", hang=True))
    (folder / "run").mkdir()
    recipe = {**recipe, "output_dir": str(folder / "run"), "hub": {"repo_id": repo_id}}
    return commands.start("train", recipe_file(recipe, folder / "recipe.json"), env={"HF_HUB_DOWNLOAD_TIMEOUT": "60"})


def test_a_run_that_is_told_to_stop_while_it_waits_for_the_hub_says_how_to_finish(hub, commands, recipe, tmp_path):
    command = train_with_a_hub_that_hangs(hub, commands, recipe, tmp_path, "someone/slow")
    command.wait_until(lambda: "hub: sending" in command.printed)
    command.send(signal.SIGTERM)
    assert command.wait() == 0
    assert "this sends the rest: hf-gpt push" in command.printed


def test_a_push_ends_with_its_run(hub, commands, recipe, tmp_path):
    command = train_with_a_hub_that_hangs(hub, commands, recipe, tmp_path, "someone/orphan")
    pushes = lambda: [p for p in psutil.process_iter(["cmdline"]) if "someone/orphan" in (p.info["cmdline"] or [])]  # noqa: E731
    command.wait_until(lambda: any("/commit/" in asked.path for asked in hub.requests))
    assert pushes()
    command.send(signal.SIGKILL)
    command.wait()
    deadline = time.monotonic() + 300
    while pushes():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_what_was_kept_only_to_be_sent_goes_when_it_was(hub, commands, recipe, tmp_path):
    hub.fail(Fault("/commit/", delay=1))
    code, printed = trained(commands, recipe, tmp_path, hub={"repo_id": "someone/kept"}, checkpoint={"keep": 1})
    assert code == 0, printed
    newest, best = (checkpoint.pointed(tmp_path / "run", name) for name in ("latest", "best"))
    assert set(checkpoint.checkpoints(tmp_path / "run")) == {newest, best}


def test_without_a_network_it_says_so_and_waits(step, tmp_path, monkeypatch, hub):
    for name, value in {**hub.environment(tmp_path), "HF_ENDPOINT": "http://127.0.0.1:9"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(background, "LAST_PAUSES", ())
    publisher = BackgroundPush(HubRecipe(repo_id="someone/nowhere"))
    publisher.offer(step(4), step(4))
    told = list(publisher.finish())
    assert told.count("hub: someone/nowhere: 127.0.0.1 was not reached: Connection refused") == 1
    assert told[-1].count("hf-gpt push") == 2


def test_another_machine_resumes_bit_for_bit(hub, commands, recipe, run, step, tmp_path):
    repo = "someone/moved"
    code, printed = commands.run(
        "push", step(8), repo, "--revision", "training", "--tag", "step-00000008", "--with-training-state"
    )
    assert code == 0, printed
    code, printed = trained(commands, recipe, tmp_path, hub={"repo_id": repo}, checkpoint={"resume": "hub"})
    assert code == 0, printed
    assert "resuming after step 8" in printed
    here, there = tmp_path / "run", run
    for name in ("model.safetensors", "training_state/optimizer.safetensors", "training_state/random.safetensors"):
        last = Path("checkpoints", "step-00000012", name)
        assert (here / last).read_bytes() == (there / last).read_bytes(), name
    assert (here / "samples.jsonl").read_bytes() == (there / "samples.jsonl").read_bytes()
    losses = [[line.get("train_loss") for line in read_lines(path / "metrics.jsonl")] for path in (here, there)]
    assert losses[0] == losses[1]
    assert "step-00000012" in hub.refs(repo)["tags"]  # and it went on publishing


@pytest.mark.parametrize("best", ["of another run", "without its state"])
def test_a_best_checkpoint_that_is_not_this_runs_stays_away(hub, commands, recipe, step, tmp_path, best):
    repo = f"someone/{best.replace(' ', '-')}"
    state = json.loads((step(12) / "training_state" / "state.json").read_text())
    if best == "of another run":
        code, printed = trained(commands, recipe, tmp_path / "other", train={"max_steps": 4})
        assert code == 0, printed
        theirs = ["--tag", "step-00000004", "--revision", "theirs", "--with-training-state"]
        other = tmp_path / "other" / "run" / "checkpoints" / "step-00000004"
        assert commands.run("push", other, repo, *theirs)[0] == 0
    else:
        assert commands.run("push", step(4), repo, "--tag", "step-00000004")[0] == 0
    run = shutil.copytree(step(12).parent.parent, tmp_path / "mine")
    last = run / "checkpoints" / checkpoint.name_of(12)
    state["progress"]["best_step"] = 4
    (last / "training_state" / "state.json").write_text(json.dumps(state))
    shutil.rmtree(run / "checkpoints" / "step-00000004")
    with checkpoint.writing(run, 12) as directory:  # with a manifest of the new state
        shutil.copytree(last, directory, ignore=shutil.ignore_patterns("manifest.json"), dirs_exist_ok=True)
    mine = ["--revision", "training", "--tag", "step-00000012", "--with-training-state"]
    code, printed = commands.run("push", last, repo, *mine)
    assert code == 0, printed
    code, printed = trained(commands, recipe, tmp_path / "here", hub={"repo_id": repo}, checkpoint={"resume": "hub"})
    assert code == 0, printed
    assert [path.name for path in checkpoint.checkpoints(tmp_path / "here" / "run")] == ["step-00000012"]


UPLOAD = """
import sys
import huggingface_hub
where = {"path_in_repo": sys.argv[1], "repo_id": sys.argv[2], "revision": "training"}
huggingface_hub.HfApi().upload_file(path_or_fileobj=sys.argv[3].encode(), **where)
print(1)"""


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("model.safetensors", "other weights", "model.safetensors: truncated or altered"),
        ("training_state/manifest.json", "null", "manifest.json is missing or damaged"),
        ("training_state/state.json", '{"progress": [8]}', "state.json: is damaged"),
        ("training_state/run/recipe.yaml", "seed: [", "not valid YAML"),
        ("training_state/run/environment.json", "[]", "is damaged"),
    ],
)
def test_what_is_damaged_on_the_hub_changes_nothing_here(hub, commands, recipe, step, tmp_path, name, content, says):
    repo = f"someone/damaged-{Path(name).stem}"
    sent = ["push", step(8), repo, "--revision", "training", "--with-training-state"]
    assert commands.run(*sent)[0] == 0
    in_a_fresh_process(
        UPLOAD.replace("sys.argv", repr(["", name, repo, content])), hub.environment(tmp_path / "upload")
    )
    run = tmp_path / "run"
    shutil.copytree(step(4), run / "checkpoints" / "step-00000004")
    for record in ("recipe.yaml", "environment.json", "metrics.jsonl"):
        shutil.copy(step(4).parents[1] / record, run)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    code, printed = trained(commands, recipe, tmp_path, hub={"repo_id": repo}, checkpoint={"resume": "hub"})
    assert code == 2, printed
    assert says in printed.splitlines()[-1]
    after = {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and "lock" not in path.name}
    assert after == before


def test_only_what_the_manifest_lists_is_sent_and_no_link(step, tmp_path):
    listed = shutil.copytree(step(8), tmp_path / "listed")
    files = _files(listed, with_training_state=False)
    (tmp_path / "secret").write_text("secret")
    (listed / "adapter_model.safetensors").write_text("other weights")
    (listed / "notes.json").symlink_to(tmp_path / "secret")
    assert _files(listed, with_training_state=False) == files
    for name in ("README.md", "config.json"):
        folder = shutil.copytree(step(8), tmp_path / f"with {name}")
        (folder / name).unlink()
        (folder / name).symlink_to(tmp_path / "secret")
        with pytest.raises(UserError, match=f"{name}: is a link"):
            _files(folder, with_training_state=False)
    plain = shutil.copytree(step(8), tmp_path / "plain", ignore=shutil.ignore_patterns("training_state"))
    assert _files(plain, with_training_state=False).keys() == files.keys()
    for name in ("notes.json", "notes"):
        (plain / name).symlink_to(tmp_path / "secret" if name == "notes.json" else tmp_path)
        with pytest.raises(UserError, match=f"{name}: is a link, and could send any file of this machine"):
            _files(plain, with_training_state=False)
        (plain / name).unlink()


def test_one_hiccup_does_not_stop_a_run_that_resumes_from_the_hub(hub, commands, recipe, tmp_path):
    hub.fail(Fault("/revision/", status=503, times=1))
    changes = {"hub": {"repo_id": "someone/hiccup"}, "checkpoint": {"resume": "hub"}, "train": {"max_steps": 1}}
    code, printed = trained(commands, recipe, tmp_path, **changes)
    assert code == 0, printed
    assert "a server error (503); asking again in 5 s" in printed


def test_resume_from_the_hub_starts_where_there_is_nothing_yet(hub, commands, recipe, tmp_path):
    changes = {"hub": {"repo_id": "someone/new"}, "checkpoint": {"resume": "hub"}, "train": {"max_steps": 1}}
    code, printed = trained(commands, recipe, tmp_path / "a", **changes)
    assert code == 0, printed
    code, printed = trained(commands, recipe, tmp_path / "b", **changes)
    assert code == 2
    assert "holds no training state" in printed
    hub.fail(Fault(status=401))
    code, printed = trained(commands, recipe, tmp_path / "c", **changes)
    assert code == 1
    assert "not accepted (401)" in printed
    assert not (tmp_path / "c" / "run" / "recipe.yaml").exists()


def test_the_token_is_nowhere_in_what_a_run_leaves(hub, commands, recipe, tmp_path):
    repo = "someone/careful"
    code, printed = trained(commands, recipe, tmp_path, hub={"repo_id": repo, "with_training_state": True})
    assert code == 0, printed
    left = {str(path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    left |= {"printed": printed.encode(), **hub.files(repo), **hub.files(repo, "training")}
    assert len(left) > 20
    assert not [name for name, content in left.items() if hub.token.encode() in content]


def test_a_password_in_the_address_of_the_hub_is_nowhere(hub, recipe, step, tmp_path):
    """Nor one of a proxy, or of an address in a recipe, whether the Hub works or not; also not in a traceback."""
    environment = {**hub.environment(tmp_path / "home"), "HF_ENDPOINT": hub.url_with_password}
    environment |= {"HTTPS_PROXY": f"http://someone:{hub.password}@127.0.0.1:9", "HF_HUB_DOWNLOAD_TIMEOUT": "2"}
    commands = ForkServer(environment, "import hf_gpt.hub.background; hf_gpt.hub.background.LAST_PAUSES = ()")
    source, told = f"https://someone:{hub.password}@127.0.0.1/rows.jsonl", ""
    recipe = {**recipe, "hub": {"repo_id": "someone/hidden"}, "evaluation": {"prompts": []}}
    for number, fault in enumerate((None, Fault(cut_request_after=0))):
        hub.mend()
        if fault:
            hub.fail(fault)
        changes = {"output_dir": str(tmp_path / f"run-{number}"), "train": {**recipe["train"], "max_steps": 1}}
        file = recipe_file({**recipe, **changes}, tmp_path / f"{number}.json")
        for arguments, expected in (
            (["train", file], 0),
            (["train", file, "--data.source", source, "--output_dir", tmp_path / "other", "--debug"], 99),
            (["generate", "someone/nothing", "--prompt", "a", "--debug"], 99),
            (["push", step(8 if fault else 4), "someone/hidden", "--json"], 1 if fault else 0),
        ):
            code, printed = commands.run(*arguments)
            assert code == expected, printed
            told += printed
    commands.close()
    assert told.count("Traceback") >= 4
    left = {str(path): path.read_text(errors="replace") for path in tmp_path.rglob("*") if path.is_file()}
    left = {name: content for name, content in left.items() if "/home/" not in name}
    assert len(left) > 20
    assert not [name for name, text in {**left, "printed": told}.items() if hub.password in text or hub.token in text]


# Made from what is on the Hub ---------------------------------------------------------------------------------------


def test_model_tokenizer_and_text_come_by_id_and_revision_and_offline_from_the_cache(
    hub, commands, recipe, step, folder, tmp_path
):
    for number in (4, 8):
        tag = ["--tag", "wanted"] if number == 4 else []
        assert commands.run("push", step(number), "someone/base", *tag)[0] == 0
    rows = [json.dumps({"text": f"Row {i} of a dataset with some words in it.\n"}) for i in range(400)]
    files = {"README.md": b"---\nconfigs: []\n---\n", "train.jsonl": "\n".join(rows).encode()}
    commit = hub.add_repo("someone/rows", files, kind="dataset")
    code = """
import huggingface_hub
where = {"path_in_repo": "train.jsonl", "repo_id": "someone/rows", "repo_type": "dataset"}
huggingface_hub.HfApi().upload_file(path_or_fileobj=b'{"text": "another text"}', **where)
print(1)"""
    in_a_fresh_process(code, hub.environment(tmp_path / "another"))
    base = {"name": "someone/base", "revision": "wanted"}
    here = {
        **{key: value for key, value in recipe.items() if key != "model"},
        "model": {"from_pretrained": "someone/base", "revision": "wanted"},
        "tokenizer": base,
        "data": {"source": "someone/rows", "revision": commit, "validation_fraction": 0.1},
        "train": {**recipe["train"], "max_steps": 2},
    }
    code, printed = trained(commands, here, tmp_path / "online")
    assert code == 0, printed
    (tmp_path / "offline").mkdir()
    file = recipe_file({**here, "output_dir": str(tmp_path / "offline" / "run")}, tmp_path / "offline.json")
    offline = {**hub.environment(folder / "home"), "HF_HUB_OFFLINE": "1", "HF_ENDPOINT": "http://127.0.0.1:9"}
    offline["HF_GPT_CACHE"] = str(tmp_path / "cache")  # where nothing is tokenised yet
    done = subprocess.run(
        [sys.executable, "-m", "hf_gpt.cli", "train", str(file)],
        env={**os.environ, **offline},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    first, second = (
        [line.get("train_loss") for line in read_lines(tmp_path / where / "run" / "metrics.jsonl")]
        for where in ("online", "offline")
    )
    assert first == second
    sources = json.loads((tmp_path / "online" / "run" / "environment.json").read_text())["sources"]
    assert sources["training"]["revision"] == commit
    assert sources["model"] == {"hub": "someone/base", "revision": hub.refs("someone/base")["tags"]["wanted"]}
    at_revision = {**here, "model": {"from_pretrained": "someone/base@wanted"}, "tokenizer": {}}
    code, printed = trained(commands, at_revision, tmp_path / "at")
    assert code == 0, printed
    environment = json.loads((tmp_path / "at" / "run" / "environment.json").read_text())
    assert environment["sources"]["model"] == sources["model"]


def test_training_continues_from_a_gpt2(hub, commands, recipe, step, tmp_path):
    assert commands.run("push", step(12), "someone/gpt2", "--format", "gpt2")[0] == 0
    ours = {"model": {"from_pretrained": str(step(12))}, "train": {**recipe["train"], "max_steps": 0}}
    stock = {**ours, "model": {"from_pretrained": "someone/gpt2"}}
    shared = {key: value for key, value in recipe.items() if key not in ("model", "tokenizer")}
    losses = []
    for name, sections in (("ours", ours), ("stock", stock)):
        code, printed = trained(commands, {**shared, **sections}, tmp_path / name)
        assert code == 0, printed
        losses.append(read_lines(tmp_path / name / "run" / "metrics.jsonl")[0]["validation_loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_the_wikitext_recipe_runs_by_the_datasets_id(hub, commands, data_dir, tmp_path):
    hub.add_repo("Salesforce/wikitext", wikitext_files(data_dir), kind="dataset")
    smaller = {"model.preset": "null", "model.emb_dim": 16, "model.n_layers": 1, "model.n_heads": 2}
    smaller |= {
        "model.context_length": 64,
        "train.max_steps": 2,
        "train.global_batch_size": 2,
        "train.batch_size": 2,
        "evaluation.tokens": 256,
    }
    flags = [str(word) for name, value in smaller.items() for word in (f"--{name}", value)]
    recipe = Path(__file__).parent.parent / "configs" / "wikitext2-124m.yaml"
    environment = {"TIKTOKEN_CACHE_DIR": os.environ["TIKTOKEN_CACHE_DIR"]}
    code, printed = commands.run("train", recipe, "--output_dir", tmp_path / "run", *flags, env=environment)
    assert code == 0, printed
    assert "lines of one text, joined as they are" in printed
    sources = json.loads((tmp_path / "run" / "environment.json").read_text())["sources"]
    assert sources["training"]["dataset"] == "Salesforce/wikitext"
    assert len(sources["training"]["revision"]) == 40
