"""Trackers, through accelerate: what they are told, and that a resumed run continues in the same place."""

from pathlib import Path

import pytest
from test_training import changed

import hf_gpt


@pytest.fixture
def tracked(tiny) -> dict:
    pytest.importorskip("tensorboard", reason="needs tensorboard: pip install 'hf_gpt[tensorboard]'")
    return changed(tiny, tracking={"to": ["tensorboard"]})


def read_back(run_dir: str, name: str) -> list[tuple[int, float]]:
    """(step, value) of one curve, as tensorboard shows it."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(Path(run_dir) / Path(run_dir).name)).Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]


def test_a_tracker_is_told_what_the_metrics_say(tracked):
    run = hf_gpt.train(tracked)
    for name in ("train_loss", "validation_loss", "lr", "tokens_per_second", "mfu", "peak_memory_bytes"):
        shown = read_back(tracked["output_dir"], name)
        assert [step for step, _ in shown] == [line["step"] for line in run.metrics if name in line]
        assert [value for _, value in shown] == pytest.approx([x[name] for x in run.metrics if name in x], rel=1e-6)


def test_a_tracker_that_comes_later_is_told_the_recipe(tiny, tracked):
    hf_gpt.train(changed(tiny, train__max_steps=4))
    hf_gpt.train(changed(tracked, train__max_steps=8))
    (told,) = Path(tracked["output_dir"]).rglob("hparams.yml")
    assert "train.max_steps: 8" in told.read_text()
    hf_gpt.train(tracked)
    assert [*Path(tracked["output_dir"]).rglob("hparams.yml")] == [told]  # and once is enough


def test_a_run_that_goes_on_is_one_curve_in_its_tracker(tracked):
    hf_gpt.train(tracked)
    newest = Path(tracked["output_dir"]) / "checkpoints" / "step-00000012" / "model.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1])  # steps 9 to 12 are made and told once more
    hf_gpt.train(tracked)
    assert [step for step, _ in read_back(tracked["output_dir"], "train_loss")] == list(range(1, 13))


def test_a_branch_is_a_curve_of_its_own(tracked, tiny, tmp_path):
    hf_gpt.train(tracked)
    branch = changed(tracked, output_dir=str(tmp_path / "branch"))
    hf_gpt.train(branch, parent=f"{tracked['output_dir']}@8")
    assert [step for step, _ in read_back(branch["output_dir"], "train_loss")] == list(range(9, 13))
