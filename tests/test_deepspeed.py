"""DeepSpeed's ZeRO on two processes, over gloo on the CPU: the run it was without, saved and gone on with exactly.

DeepSpeed compiles a part of itself when it first runs on a CPU, which takes a compiler and minutes.
"""

import importlib.util
import signal
from pathlib import Path

import pytest
from forking import ForkServer, recipe_file
from test_accelerate_configs import train_on_two
from test_processes import Workers, everything, lines

from hf_gpt.training.run_log import read_lines

needs_deepspeed = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None, reason="needs DeepSpeed: pip install 'hf_gpt[deepspeed]'"
)
ASKED_FOR = {"ACCELERATE_USE_DEEPSPEED": "true"}


def train(forks: ForkServer, *argv: str | Path, stage: int = 2, ends_with: int = 0) -> str:
    """Train on two processes under ZeRO; what the first of them printed."""
    zero = {**ASKED_FOR, "ACCELERATE_DEEPSPEED_ZERO_STAGE": str(stage)}
    workers = Workers(forks, 2, *argv, own={0: zero, 1: zero})
    assert workers.wait() == [ends_with] * 2, workers[0].printed + workers[1].printed
    return workers[0].printed


@pytest.fixture
def short_batch(tiny) -> dict:
    """Six batches accumulated on each of two processes, but two in step 14, the last of an epoch."""
    tiny["train"] |= {"max_steps": 16, "global_batch_size": 24, "gradient_accumulation_steps": None}
    tiny["evaluation"]["every"] = tiny["checkpoint"]["every"] = 8
    tiny["schedule"] = {"name": "constant"}
    return tiny


@needs_deepspeed
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(("stage", "precision"), [(1, "no"), (2, "no"), (2, "bf16")])
def test_zero_learns_what_one_process_learns(forks, short_batch, tmp_path, stage, precision):
    short_batch["model"]["drop_rate"] = 0.0  # each process draws its own dropout
    short_batch["train"]["mixed_precision"] = precision
    recipe = recipe_file(short_batch, tmp_path / "recipe.yaml")
    assert "on 2 x cpu" in train(forks, recipe, stage=stage)
    code, printed = forks.run("train", recipe, "--output_dir", tmp_path / "alone")
    assert code == 0, printed
    assert len([line for line in lines(tmp_path / "alone") if "train_loss" in line]) == 16
    for ours, theirs in zip(lines(short_batch["output_dir"]), lines(tmp_path / "alone"), strict=True):
        if precision == "bf16":  # rounds so coarsely that norms soon differ in the third digit, under DDP too
            ours.pop("grad_norm", None), theirs.pop("grad_norm", None)
        assert ours == pytest.approx(theirs, rel=1e-4 if precision == "no" else 1e-3)


@needs_deepspeed
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(("stage", "precision"), [(1, "no"), (2, "no"), (2, "bf16")])
def test_a_run_under_zero_goes_on_exactly(forks, short_batch, tmp_path, stage, precision):
    short_batch["train"]["mixed_precision"] = precision
    recipe = recipe_file(short_batch, tmp_path / "recipe.yaml")
    train(forks, recipe, stage=stage)
    whole = everything(short_batch["output_dir"], 16)
    weights = Path(short_batch["output_dir"], "checkpoints", "step-00000016", "model.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1])  # damaged, so that step 8 is gone on from
    assert "resuming after step 8" in train(forks, recipe, stage=stage)
    assert everything(short_batch["output_dir"], 16) == whole


@needs_deepspeed
@pytest.mark.timeout(1200)
def test_a_run_goes_on_with_deepspeed_and_without_it_again(forks, short_batch, tmp_path):
    short_batch["model"]["drop_rate"] = 0.0
    recipe = recipe_file(short_batch, tmp_path / "recipe.yaml")
    moved = tmp_path / "moved"

    def alone(*argv) -> None:
        code, printed = forks.run("train", recipe, "--output_dir", *argv)
        assert code == 0, printed

    alone(tmp_path / "alone")
    alone(moved, "--train.max_steps", "4")
    assert "resuming after step 4" in train(forks, recipe, "--output_dir", moved, "--train.max_steps", "12")
    alone(moved)
    ours, theirs = ([x for x in lines(run) if "train_loss" in x] for run in (moved, tmp_path / "alone"))
    assert [line["step"] for line in ours] == list(range(1, 17))
    for one, other in zip(ours, theirs, strict=True):
        assert one == pytest.approx(other, rel=1e-4)


@needs_deepspeed
@pytest.mark.timeout(1200)
def test_its_launch_file_starts_as_many_processes_as_it_is_asked_for(tiny, tmp_path):
    printed = train_on_two("deepspeed-zero2", recipe_file(tiny, tmp_path / "recipe.yaml"))
    assert "on 2 x cpu" in printed
    assert "step 12/12" in printed


@needs_deepspeed
@pytest.mark.timeout(1200)
def test_a_signal_to_one_process_saves_both_at_one_step(forks, tiny, tmp_path):
    tiny["train"]["max_steps"], tiny["checkpoint"]["every"], tiny["evaluation"]["every"] = 100000, None, 100000
    workers = Workers(forks, 2, recipe_file(tiny, tmp_path / "recipe.yaml"), own={0: ASKED_FOR, 1: ASKED_FOR})
    workers.wait_for_lines(tiny["output_dir"], 12)
    workers[1].send(signal.SIGUSR1)
    assert workers.wait() == [75, 75], workers[0].printed
    assert "SIGUSR1: stopped and saved after step" in workers[0].printed.splitlines()[-1]


@needs_deepspeed
@pytest.mark.timeout(1200)
def test_the_norm_that_is_clipped_to_is_the_recipes(forks, short_batch, tmp_path):
    short_batch["model"]["drop_rate"] = 0.0
    short_batch["train"] |= {"max_steps": 4, "max_grad_norm": 0.1}
    recipe = recipe_file(short_batch, tmp_path / "recipe.yaml")
    train(forks, recipe)
    code, printed = forks.run("train", recipe, "--output_dir", tmp_path / "alone")
    assert code == 0, printed
    for ours, theirs in zip(lines(short_batch["output_dir"]), lines(tmp_path / "alone"), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)


@needs_deepspeed
@pytest.mark.timeout(1200)
def test_updates_that_are_not_finite_are_skipped_and_then_end_the_run(forks, short_batch, tmp_path):
    short_batch["train"] |= {"skip_nonfinite": 2, "max_grad_norm": None}
    short_batch["model"]["drop_rate"] = 0.0
    short_batch["optimizer"]["lr"] = 1e4
    recipe = recipe_file(short_batch, tmp_path / "recipe.yaml")
    code, _ = forks.run("train", recipe, "--output_dir", tmp_path / "alone")
    assert "is not finite" in train(forks, recipe, ends_with=code)

    def history(run_dir: str | Path) -> list[tuple]:
        return [(event["event"], event["step"]) for event in read_lines(Path(run_dir) / "events.jsonl")]

    assert [what for what, _ in history(tmp_path / "alone")] == ["skipped", "skipped", "not finite"]
    assert history(short_batch["output_dir"]) == history(tmp_path / "alone")


@needs_deepspeed
@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ({"ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"}, "ZeRO stage 3 is not used here"),
        ({"ACCELERATE_DEEPSPEED_OFFLOAD_OPTIMIZER_DEVICE": "cpu"}, "offload_optimizer is not used here"),
    ],
)
@pytest.mark.timeout(1200)
def test_what_deepspeed_would_decide_is_refused_in_one_line(forks, tiny, tmp_path, asked, found):
    asked = {**ASKED_FOR, **asked}
    workers = Workers(forks, 2, recipe_file(tiny, tmp_path / "recipe.yaml"), own={0: asked, 1: asked})
    assert workers.wait() == [2, 2], workers[0].printed
    assert found in workers[0].printed.splitlines()[-1]
    assert not Path(tiny["output_dir"]).exists()


@needs_deepspeed
def test_deepspeed_without_a_launcher_is_refused(forks, tiny, tmp_path):
    code, printed = forks.run("train", recipe_file(tiny, tmp_path / "recipe.yaml"), env=ASKED_FOR)
    assert code == 2
    assert printed.startswith("hf-gpt: train: DeepSpeed needs a launcher")
    assert len(printed.splitlines()) == 1


@needs_deepspeed
def test_muon_under_deepspeed_is_refused(forks, tiny, tmp_path):
    tiny["optimizer"]["name"] = "muon"
    code, printed = forks.run(
        "train", recipe_file(tiny, tmp_path / "recipe.yaml"), env={**ASKED_FOR, "LOCAL_RANK": "0"}
    )
    assert code == 2
    assert printed.startswith("hf-gpt: optimizer.name: muon needs whole matrices")


@pytest.mark.skipif(importlib.util.find_spec("deepspeed") is not None, reason="DeepSpeed is installed")
def test_deepspeed_that_is_not_installed_is_asked_for_in_one_line(forks, tiny, tmp_path):
    code, printed = forks.run("train", recipe_file(tiny, tmp_path / "recipe.yaml"), env=ASKED_FOR)
    assert code == 2
    assert printed.startswith("hf-gpt: train: DeepSpeed is not installed; pip install 'hf_gpt[deepspeed]'")
    assert len(printed.splitlines()) == 1
    assert not Path(tiny["output_dir"]).exists()
