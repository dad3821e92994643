"""The two recipes for ladders of checkpoints, run small: published on the Hub of the tests, and loaded by revision."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from forking import ForkServer
from hub_server import HubServer

from hf_gpt import checkpoint
from hf_gpt.display import exact_number

CONFIGS = Path(__file__).parent.parent / "configs"
SMALL = [
    *("--train.batch_size", "1", "--train.global_batch_size", "2", "--train.device", "cpu"),
    *("--evaluation.every", "1000", "--evaluation.tokens", "64", "--evaluation.sample_tokens", "2"),
]
# As BabyLM's pipeline loads a checkpoint. Of each: what it is, the sum of its logits, and what it makes of padding.
LOAD = """
import json, sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
repo, *revisions = sys.argv[1:]
for revision in revisions:
    model = AutoModelForCausalLM.from_pretrained(repo, revision=revision, trust_remote_code=True).eval()
    tokenizer = AutoTokenizer.from_pretrained(repo, revision=revision, trust_remote_code=True)
    logits = model(torch.arange(8)[None]).logits.double().sum().item()
    print(json.dumps([type(model).__name__, logits, tokenizer.pad_token, model.config.pad_token_id]))
"""


@pytest.fixture(scope="module")
def shared_hub():
    with HubServer() as hub:
        yield hub


@pytest.fixture(scope="module")
def environment(shared_hub, tmp_path_factory) -> dict[str, str]:
    return {**shared_hub.environment(tmp_path_factory.mktemp("home")), "HF_HUB_DOWNLOAD_TIMEOUT": "5"}


@pytest.fixture(scope="module")
def commands(environment):
    server = ForkServer(environment)
    yield server
    server.close()


def load(environment: dict[str, str], repo: str, *revisions: str) -> list:
    command = [sys.executable, "-c", LOAD, repo, *revisions]
    done = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def here(run: Path, step: int) -> float:
    """The sum of the logits of a checkpoint of a run, as `LOAD` has it."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(run / "checkpoints" / checkpoint.name_of(step)).eval()
    return model(torch.arange(8)[None]).logits.double().sum().item()


WORDS = [*range(20, 201, 20), *range(400, 2001, 200)]


@pytest.fixture(scope="module")
def babylm(commands, tmp_path_factory) -> Path:
    """A run of BabyLM's recipe with words in units of 20 instead of a million."""
    folder = tmp_path_factory.mktemp("babylm")
    for name, lines in (("train_10M/a.train", 18), ("train_10M/b.train", 18), ("dev/a.dev", 9)):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("".join(f"{name[-7]} says: {i} dogs and {i * i} cats.\n" for i in range(lines)))
    assert sum(len(path.read_text().split()) for path in folder.glob("train_10M/*")) in range(200, 300)
    code, printed = commands.run(
        *("train", CONFIGS / "babylm-strict-small.yaml", "--output_dir", folder / "run", *SMALL),
        *("--data.source", folder / "train_10M/*.train", "--data.validation_source", folder / "dev/*.dev"),
        *("--model", "{emb_dim: 16, n_layers: 1, n_heads: 2}", "--data.context_length", "8"),
        *("--tokenizer.train.vocab_size", "300", "--train.max_words", "2000"),
        *("--checkpoint.milestones.words", str(WORDS), "--hub.repo_id", "someone/babylm"),
    )
    assert code == 0, printed
    assert "milestones 19 checkpoints that stay" in printed
    return folder / "run"


def test_babylm_is_published_as_the_branches_that_its_evaluation_reads(hub, babylm, commands, environment):
    names = {f"chck_{exact_number(words)}" for words in WORDS}
    assert set(hub.refs("someone/babylm")["branches"]) == {"main", "training", *names}
    milestones = {folder: checkpoint.milestone(folder) for folder in checkpoint.milestones(babylm)}
    for folder, facts in milestones.items():
        lines = [json.loads(line) for line in (babylm / "metrics.jsonl").read_text().splitlines()]
        (asked,) = facts["asked"]["words"]
        assert facts["words"] >= asked
        assert facts["step"] == checkpoint.step_of(folder) <= lines[-1]["step"]
    (seventh,) = (facts["step"] for facts in milestones.values() if facts["asked"]["words"] == [140])
    last = checkpoint.step_of(checkpoint.checkpoints(babylm)[-1])
    for found, step in zip(load(environment, "someone/babylm", "chck_140", "main"), (seventh, last), strict=True):
        kind, logits, padding, padding_id = found
        assert (kind, padding) == ("GPT2LMHeadModel", "<pad>")
        assert isinstance(padding_id, int)
        assert logits == pytest.approx(here(babylm, step), abs=1e-3)
    code, printed = commands.run("push", babylm, "someone/babylm", "--milestones", "--check")
    assert code == 0, printed


@pytest.mark.slow
def test_babylm_loads_by_revision_in_transformers_4(hub, babylm, environment, transformers_4):
    asked = ("someone/babylm", "chck_20", "chck_140", "chck_2k")
    for there, here in zip(load({**environment, "PYTHONPATH": transformers_4}, *asked), load(environment, *asked)):
        assert there == pytest.approx(here, abs=1e-4)


def test_two_seeds_of_the_pythia_ladder_are_two_commands(hub, commands, environment, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("".join(f"Line {i}: {i} dogs and {i * i} cats.\n" for i in range(400)))
    sums = {}
    for seed in (1, 2):
        code, printed = commands.run(
            *("train", CONFIGS / "pythia-ladder.yaml", "--output_dir", f"{tmp_path}/ladder-seed{{seed}}", *SMALL),
            *("--data.source", text, "--data.validation_fraction", "0.1", "--seed", str(seed)),
            *("--model.hidden_size", "16", "--model.intermediate_size", "16", "--model.num_hidden_layers", "1"),
            *("--model.num_attention_heads", "2", "--model.max_position_embeddings", "16"),
            *("--tokenizer.train.vocab_size", "300", "--train.max_steps", "24"),
            *("--hub.repo_id", "someone/ladder-seed{seed}"),
            *("--checkpoint.milestones.powers_of_two_until", "8", "--checkpoint.milestones.every_steps", "10"),
        )
        assert code == 0, printed
        run, repo = tmp_path / f"ladder-seed{seed}", f"someone/ladder-seed{seed}"
        steps = [0, 1, 2, 4, 8, 10, 20]
        assert [*map(checkpoint.step_of, checkpoint.milestones(run))] == steps
        assert set(hub.refs(repo)["branches"]) == {"main", "training", *(f"step{step}" for step in steps)}
        (kind, logits, *_), (_, first, *_) = load(environment, repo, "step8", "step0")
        assert kind == "GPTNeoXForCausalLM"
        assert logits == pytest.approx(here(run, 8), abs=1e-3)
        sums[seed] = (first, logits)
    assert len({*sums[1], *sums[2]}) == 4
