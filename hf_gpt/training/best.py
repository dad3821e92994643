"""Which checkpoint of a run is its best: that with the lowest loss on the text that the run is judged by.

That text may change when a run is resumed (`evaluation.best_on`). Losses on different texts are never compared: from
then on the best is chosen anew, among the checkpoints that are there and were evaluated on the new text.
"""

from pathlib import Path

from .. import checkpoint
from ..texts import label_of, loss_of
from .run_log import read_lines
from .state import Progress


def offer(progress: Progress, step: int, loss: float) -> None:
    """The checkpoint of `step`, which is about to be written, is the best if no other has a lower loss."""
    if progress.best_validation_loss is None or loss < progress.best_validation_loss:
        progress.best_validation_loss, progress.best_step = loss, step


def judge_by(text: str | None, progress: Progress, run_dir: Path) -> str | None:
    """Choose the best anew if it was judged by another text. Returns a line for people if it was.

    A run that has no text to be judged by keeps the best that it has.
    """
    if text in (None, progress.best_on):
        return None
    had_best = progress.best_step is not None
    progress.best_on, progress.best_validation_loss, progress.best_step = text, None, None
    kept = {checkpoint.step_of(path) for path in (*checkpoint.checkpoints(run_dir), *checkpoint.milestones(run_dir))}
    for line in read_lines(run_dir / "metrics.jsonl"):
        if loss_of(text) in line and line["step"] in kept and line["step"] <= progress.step:
            offer(progress, line["step"], line[loss_of(text)])
    if not had_best:
        return None
    found = progress.best_step
    which = "none of the checkpoints was evaluated on it" if found is None else f"now {checkpoint.name_of(found)}"
    return f"best       is judged by {label_of(text)} from here on: {which}"
