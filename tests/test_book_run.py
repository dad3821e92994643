"""`hf-gpt train configs/verdict-book.yaml`: the book's run by this package's own loop.

The book's DataLoaders draw from the random stream that dropout uses and our loop does not, so after the losses before
training, which are exact, it stays near the book's figures for as long as dropout has not led it elsewhere.
`test_book_model.py` has the book's own loop around our model, which repeats all of them.
"""

from pathlib import Path

import pytest
from figures import published

import hf_gpt

RECIPE = Path(__file__).parent.parent / "configs" / "verdict-book.yaml"
BOOK = {1: (9.740, 10.112), 6: (8.000, 8.506), 11: (6.736, 7.205), 16: (6.030, 6.752)}  # step: training, validation


def train(data_dir, output_dir, *flags: str) -> list[dict]:
    """The evaluation lines of a run, which is removed at once: its checkpoint takes 1.5 GB."""
    source = ["--data.source", str(data_dir / "the-verdict.txt"), "--output_dir", str(output_dir)]
    recipe = hf_gpt.Recipe.from_yaml(RECIPE, [*source, "--train.device", "cpu", *flags])
    run = hf_gpt.train(recipe)
    for path in run.output_dir.rglob("*.safetensors"):
        path.unlink()
    return [line for line in run.metrics if "eval_train_loss" in line]


@pytest.mark.figures
def test_the_losses_before_training_are_the_books(data_dir, tmp_path):
    all_windows = ["--evaluation.first", "0", "--evaluation.tokens", "null", "--evaluation.prompts", "[]"]
    (before,) = train(data_dir, tmp_path, "--train.epochs", "null", "--train.max_steps", "0", *all_windows)
    assert before["eval_train_loss"] == published("10.98758")
    assert before["validation_loss"] == published("10.98111")


@pytest.mark.parametrize("steps", [1, pytest.param(16, marks=pytest.mark.slow)])
def test_the_first_steps_stay_near_the_book(data_dir, tmp_path, steps):
    flags = ["--train.epochs", "null", "--train.max_steps", str(steps), "--evaluation.prompts", "[]"]
    lines = {
        line["step"]: (line["eval_train_loss"], line["validation_loss"]) for line in train(data_dir, tmp_path, *flags)
    }
    assert list(lines) == [step for step in BOOK if step <= steps]
    for step, losses in lines.items():
        assert losses == pytest.approx(BOOK[step], abs=0.02), step
