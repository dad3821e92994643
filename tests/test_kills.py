"""Killed by SIGKILL at any instant and started again, a run leaves what it would have left: bit for bit.

Some kills come from outside at a random time; others at a random file-system event, which is how a save, the making of
the token store and the moments between two files are hit. The run has dropout, accumulation and samples, and ends in
the middle of an epoch.
"""

import json
import random
import re
import shutil
import time
from pathlib import Path

import pytest
from forking import ForkServer, recipe_file

from hf_gpt.training.run_log import read_lines

CLOCK = ("seconds", "tokens_per_second", "mfu", "peak_memory_bytes")
KILLS_EACH = 7


def left_behind(run_dir: Path) -> dict:
    """Everything a run leaves that is not the time it took, by the bytes of its files."""
    metrics = [{k: v for k, v in line.items() if k not in CLOCK} for line in read_lines(run_dir / "metrics.jsonl")]
    steps = [(line["step"], "train_loss" in line) for line in metrics]
    assert len(steps) == len(set(steps)), "a step stands in metrics.jsonl twice"
    files = {
        str(path.relative_to(run_dir)): timeless_card(path.read_text()) if path.suffix == ".md" else path.read_bytes()
        for path in sorted((run_dir / "checkpoints").rglob("*"))
        if path.is_file() and path.name not in ("state.json", "manifest.json", ".lock")
    }
    states = []
    for path in sorted((run_dir / "checkpoints").rglob("state.json")):
        state = json.loads(path.read_text())
        del state["progress"]["seconds"]
        states.append(state)
    return {"metrics": metrics, "samples": (run_dir / "samples.jsonl").read_bytes(), "files": files, "states": states}


def timeless_card(card: str) -> str:
    """A model card without the time that the run took, and the run's own name; its marks have hashes of the text."""
    card = re.sub(r"^\| time \| .*$", "", card, flags=re.M)
    card = re.sub(r"^# (run|whole)$|^output_dir: (run|whole)$|^- name: (run|whole)$", "", card, flags=re.M)
    card = re.sub(r'"model-index": "[0-9a-f]{8}"', "", card)
    return re.sub(r"(<!-- hf_gpt: begin \w+ )[0-9a-f]{8}", r"\1", card)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> dict:
    text = tmp_path_factory.mktemp("text") / "text.txt"
    lines = (f"Line {i}: the quick brown fox jumps over {i * i} lazy dogs.\n" for i in range(300))
    text.write_text("".join(lines))
    return {
        "model": {"context_length": 16, "emb_dim": 16, "n_layers": 1, "n_heads": 2, "drop_rate": 0.2},
        "tokenizer": {"train": {"vocab_size": 300}},
        "data": {"source": str(text), "validation_fraction": 0.1},
        "optimizer": {"lr": 3e-3},
        "train": {"max_steps": 30, "batch_size": 2, "gradient_accumulation_steps": 2, "log_every": 1, "device": "cpu"},
        "evaluation": {"every": 5, "tokens": 200, "prompts": ["Line"], "sample_tokens": 4, "temperature": 1.0},
        "checkpoint": {"every": 3, "keep": 2},
    }


@pytest.mark.parametrize(
    "changes",
    [
        {},
        pytest.param({"train": {"mixed_precision": "bf16"}}, marks=pytest.mark.slow),
        {"evaluation": {"every": 3}},  # the best checkpoint moves
        pytest.param(
            {"data": {"isolate_documents": True}, "schedule": {"name": "wsd", "warmup_steps": 5}},
            marks=pytest.mark.slow,
        ),
        {"optimizer": {"name": "muon"}},
        {"checkpoint": {"milestones": {"powers_of_two_until": 16, "words": [100, 300], "every_steps": 6}}},
    ],
    ids=["fp32", "bf16", "best", "packed", "muon", "milestones"],
)
def test_a_run_killed_at_any_instant_repeats_the_uninterrupted_one(changes, recipe, forks: ForkServer, tmp_path):
    seed = random.Random(repr(changes))
    run_dir, cache = tmp_path / "run", tmp_path / "cache"
    recipe = {section: {**values, **changes.get(section, {})} for section, values in {**changes, **recipe}.items()}
    file = recipe_file({**recipe, "output_dir": str(run_dir)}, tmp_path / "recipe.yaml")
    environment = {"HF_GPT_CACHE": str(cache)}

    started = time.monotonic()
    code, printed = forks.run("train", file, "--output_dir", tmp_path / "whole", env=environment)
    took = time.monotonic() - started
    assert code == 0, printed
    whole = left_behind(tmp_path / "whole")
    environment = {"HF_GPT_CACHE": str(tmp_path / "another cache")}  # so that the text is tokenised again

    kills = attempts = 0
    while kills < KILLS_EACH:
        attempts += 1
        assert attempts < 10 * KILLS_EACH
        if attempts % 2:
            # The tokenizer and the token store come first; a checkpoint takes about 40 events.
            where = tmp_path / "another cache" if attempts == 1 else run_dir
            command = forks.start("train", file, env=environment, die_at=(seed.randint(1, 80), str(where)))
        else:
            command = forks.start("train", file, env=environment)
            time.sleep(seed.uniform(0, 0.5 * took))
            command.send(9)
        if command.wait() == -9:
            kills += 1
        else:  # it came to its end: once more from the beginning
            shutil.rmtree(run_dir)
    code, printed = forks.run("train", file, env=environment)
    assert code == 0, printed

    again = left_behind(run_dir)
    assert "missing lines" not in (run_dir / "events.jsonl").read_text()
    assert again["metrics"] == whole["metrics"]
    assert again["samples"] == whole["samples"]
    assert again["states"] == whole["states"]
    assert again["files"].keys() == whole["files"].keys()
    assert [name for name in whole["files"] if again["files"][name] != whole["files"][name]] == []
