"""Several processes (DDP over gloo, on the CPU) see what one sees, and only the main one prints and writes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import hf_gpt
from hf_gpt.report import read_lines

SCRIPT = Path(__file__).parent.parent / "scripts" / "train.py"


def launch(recipe: Path) -> str:
    """Train in two processes; what they print."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(SCRIPT)]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, str(recipe)], env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stderr


def lines(run_dir: str | Path) -> list[dict]:
    return [
        {key: value for key, value in line.items() if key not in ("seconds", "tokens_per_second")}
        for line in read_lines(Path(run_dir) / "metrics.jsonl")
    ]


def test_two_processes_repeat_one_and_resume_exactly(tiny, tmp_path):
    tiny["model"]["drop_rate"] = 0.0  # each process draws its own dropout
    one = hf_gpt.train(tiny)

    two = {**tiny, "output_dir": str(tmp_path / "two")}
    two["train"] = {**tiny["train"], "gradient_accumulation_steps": 1}
    recipe = tmp_path / "two.yaml"
    recipe.write_text(yaml.safe_dump(two))
    printed = launch(recipe)
    assert printed.count("loss plot") == 1
    whole = lines(two["output_dir"])
    assert len(whole) == len(lines(one.output_dir))
    for ours, theirs in zip(whole, lines(one.output_dir)):
        assert ours == pytest.approx(theirs, rel=1e-4)

    weights = tmp_path / "two" / "checkpoints" / "step-00000012" / "model.safetensors"
    before = weights.read_bytes()
    weights.write_bytes(before[:-1])  # damaged, so that step 8 is gone on from
    assert "going on after step 8" in launch(recipe)
    assert lines(two["output_dir"]) == whole
    assert weights.read_bytes() == before
