"""What a run looked like, from the files it left.

`loss_plot` draws the picture the book draws: training and validation loss over epochs, with the tokens seen on the
upper axis. It reads `metrics.jsonl` alone, so it works on a run that is going on, has died, or came from elsewhere.
"""

import json
from pathlib import Path
from typing import Any

from .errors import UserError

# Okabe and Ito's palette: blue and vermilion stay apart for colour-blind eyes, and in grey.
_TRAINING, _VALIDATION = "#0072B2", "#D55E00"


def loss_plot(run_dir: str | Path, path: str | Path | None = None, *, until: int | None = None) -> Path:
    """Draw the losses of a run, up to step `until`, into `path` (`<run_dir>/loss.png`), and return that.

    Raises:
        UserError: the run has written no loss yet.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    metrics = [line for line in read_metrics(run_dir) if until is None or line["step"] <= until]
    trained = [line for line in metrics if "train_loss" in line]
    evaluated = [line for line in metrics if "eval_train_loss" in line]
    if not has_losses(metrics):
        raise UserError(f"{run_dir}: metrics.jsonl holds no loss yet")

    figure = Figure(figsize=(8, 5), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    if trained:
        x, y = _series(trained, "train_loss")
        axes.plot(x, y, color=_TRAINING, alpha=0.25, linewidth=1, label="training batch")
    few = len(evaluated) <= 40
    for key, label, colour, marker in (
        ("eval_train_loss", "training text", _TRAINING, "o"),
        ("validation_loss", "validation text", _VALIDATION, "s"),
    ):
        x, y = _series(evaluated, key)
        if x:
            axes.plot(x, y, color=colour, linewidth=2, marker=marker if few else None, markersize=4, label=label)
    axes.set_xlabel("epochs")
    axes.set_ylabel("loss (nats per token)")
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    for side in ("top", "right"):
        axes.spines[side].set_visible(side == "top")
    _tokens_axis(axes, metrics)

    path = Path(path or Path(run_dir) / "loss.png")
    temporary = path.with_name(".loss.writing.png")
    figure.savefig(temporary)
    temporary.replace(path)
    return path


def has_losses(metrics: list[dict[str, Any]]) -> bool:
    """Whether there is something to draw."""
    return any("train_loss" in line or "eval_train_loss" in line for line in metrics)


def read_metrics(run_dir: str | Path) -> list[dict[str, Any]]:
    """The lines of a run's `metrics.jsonl`, oldest first.

    Raises:
        UserError: the directory holds no run.
    """
    path = Path(run_dir) / "metrics.jsonl"
    if not path.is_file():
        raise UserError(f"{run_dir}: not a run: there is no metrics.jsonl in it")
    return read_lines(path)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a .jsonl file of a run; a torn last line is left out, a missing file has none.

    Raises:
        UserError: another line is damaged.
    """
    lines = path.read_bytes().split(b"\n")[:-1] if path.is_file() else []
    found = []
    for number, line in enumerate(lines, start=1):
        try:
            if line:
                found.append(json.loads(line))
        except ValueError:
            raise UserError(f"{path}: line {number} is damaged; remove it, or the file") from None
    return found


def _series(lines: list[dict[str, Any]], key: str) -> tuple[list[float], list[float]]:
    points = [(line["epoch"], line[key]) for line in lines if line.get(key) is not None]
    return [x for x, _ in points], [y for _, y in points]


def _tokens_axis(axes: Any, metrics: list[dict[str, Any]]) -> None:
    """A second axis above: tokens are proportional to epochs."""
    last = max(metrics, key=lambda line: line["tokens"])
    if not last["tokens"]:
        return
    per_epoch = last["tokens"] / last["epoch"]
    above = axes.secondary_xaxis("top", functions=(lambda e: e * per_epoch, lambda t: t / per_epoch))
    above.set_xlabel("tokens seen")
    above.xaxis.set_major_formatter(lambda tokens, _: _short(tokens))


def _short(count: float) -> str:
    """12000 -> 12k, 3400000 -> 3.4M"""
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(count) >= size:
            return f"{count / size:.3g}{letter}"
    return f"{count:.3g}"
