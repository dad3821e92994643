"""What a run looked like, from the files it left.

`loss_plot` draws the picture the book draws: training and validation loss over epochs, with the tokens seen on the
upper axis. It reads `metrics.jsonl` alone, so it works on a run that is going on, has died, or came from elsewhere.
`read_run` reads all that there is; the page made of it is report_page.py's.
"""

import functools
import io
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from .. import checkpoint
from ..errors import UserError
from ..storage import read_json, write_bytes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's palette: blue and vermilion stay apart for colour-blind eyes, and in grey.
_TRAINING, _VALIDATION = "#0072B2", "#D55E00"

_BEYOND_ANY_RUN = 1e30


def loss_plot(
    run_dir: str | Path, path: str | Path | None = None, *, until: int | None = None, dpi: int = 150
) -> Path:
    """Draw the losses of a run, up to step `until`, into `path` (`<run_dir>/loss.png`), and return that.

    Raises:
        UserError: the run has written no loss yet.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    metrics = [line for line in _of_steps(read_metrics(run_dir)) if until is None or line["step"] <= until]
    trained = [line for line in metrics if "train_loss" in line]
    evaluated = [line for line in metrics if "eval_train_loss" in line]
    if not has_losses(metrics):
        raise UserError(f"{run_dir}: metrics.jsonl holds no loss yet")

    figure = Figure(figsize=(8, 5), dpi=dpi, layout="constrained")
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
    write_png(path, figure)
    return path


def write_png(path: Path, figure: "Figure") -> None:
    """A matplotlib figure as a PNG file that is there whole or not at all."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    write_bytes(path, buffer.getvalue())


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


@dataclass(frozen=True)
class RunRecord:
    """What a run has left so far. Of its files only metrics.jsonl must be there and whole."""

    run_dir: Path
    metrics: list[dict[str, Any]]  # in the order they were written
    samples: list[dict[str, Any]] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    environment: dict[str, Any] = field(default_factory=dict)
    recipe: dict[str, Any] = field(default_factory=dict)
    recipe_text: str = ""
    checkpoints: list[int] = field(default_factory=list)  # the steps whose checkpoints are kept
    best: int | None = None  # the step that checkpoints/best names
    problems: list[str] = field(default_factory=list)  # files that could not be read

    @property
    def name(self) -> str:
        return self.run_dir.absolute().name

    def points(self, x: str, y: str) -> tuple[Any, Any]:
        """What was written down under two names, as arrays in the order of the first; only lines that have both."""
        xs, ys = self._column(x), self._column(y)
        both = np.isfinite(xs) & np.isfinite(ys)
        order = np.argsort(xs[both], kind="stable")
        return xs[both][order], ys[both][order]

    def _column(self, key: str) -> Any:
        if key not in self._columns:
            values = [line.get(key) for line in self.metrics]
            self._columns[key] = np.array([v if is_number(v) else math.nan for v in values], dtype=float)
        return self._columns[key]

    @functools.cached_property
    def _columns(self) -> dict[str, Any]:
        return {}

    @functools.cached_property
    def trained(self) -> list[dict[str, Any]]:
        return [line for line in self.metrics if is_number(line.get("train_loss"))]

    @functools.cached_property
    def evaluated(self) -> list[dict[str, Any]]:
        return [line for line in self.metrics if is_number(line.get("eval_train_loss"))]

    @functools.cached_property
    def by_step(self) -> list[dict[str, Any]]:
        """What was written down of training and of evaluation at a step, as one."""
        found: dict[int, dict[str, Any]] = {}
        for line in (*self.trained, *self.evaluated):
            found[line["step"]] = {**found.get(line["step"], {}), **line}
        return [*found.values()]

    @property
    def last(self) -> dict[str, Any]:
        """The newest line of metrics, empty if there is none."""
        return max(self.metrics, key=lambda line: line["step"], default={})


def read_run(run_dir: str | Path) -> RunRecord:
    """All files of a run. One that is odd is named in `problems`, and what can be read is.

    Raises:
        UserError: the directory holds no run, or its metrics.jsonl is damaged.
    """
    run_dir, problems = Path(run_dir), []

    def attempt(read: Callable[[Path], Any], name: str, kind: type) -> Any:
        try:
            found = read(run_dir / name)
            if isinstance(found, kind):
                return found
            problems.append(f"{name}: is something else than expected")
        except (UserError, OSError, ValueError, yaml.YAMLError) as error:
            problems.append(f"{name}: {str(error).splitlines()[0] if str(error) else type(error).__name__}")
        return kind()

    def text(path: Path) -> str:
        return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""

    recipe_text = attempt(text, "recipe.yaml", str)
    best = checkpoint.pointed(run_dir, "best")
    return RunRecord(
        run_dir=run_dir,
        metrics=_of_steps(read_metrics(run_dir)),
        samples=[line for line in _of_steps(attempt(read_lines, "samples.jsonl", list)) if "text" in line],
        events=_of_steps(attempt(read_lines, "events.jsonl", list)),
        environment=attempt(read_json, "environment.json", dict),
        recipe=attempt(lambda _: yaml.safe_load(recipe_text) if recipe_text else {}, "recipe.yaml", dict),
        recipe_text=recipe_text,
        checkpoints=[checkpoint.step_of(path) for path in checkpoint.checkpoints(run_dir)],
        best=checkpoint.step_of(best) if best else None,
        problems=problems,
    )


def is_number(value: Any) -> bool:
    """Whether a value of a metrics file can be drawn; what is beyond any run's figures makes no picture."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < _BEYOND_ANY_RUN


def _of_steps(lines: list[Any]) -> list[dict[str, Any]]:
    return [line for line in lines if isinstance(line, dict) and isinstance(line.get("step"), int)]


def _series(lines: list[dict[str, Any]], key: str) -> tuple[list[float], list[float]]:
    points = [
        (line["epoch"], line[key]) for line in lines if is_number(line.get("epoch")) and is_number(line.get(key))
    ]
    return [x for x, _ in points], [y for _, y in points]


def _tokens_axis(axes: Any, metrics: list[dict[str, Any]]) -> None:
    """A second axis above: tokens are proportional to epochs."""
    counted = [line for line in metrics if is_number(line.get("tokens")) and is_number(line.get("epoch"))]
    last = max(counted, key=lambda line: line["tokens"], default={})
    if not last.get("tokens") or not last["epoch"]:
        return
    per_epoch = last["tokens"] / last["epoch"]
    above = axes.secondary_xaxis("top", functions=(lambda e: e * per_epoch, lambda t: t / per_epoch))
    above.set_xlabel("tokens seen")
    above.xaxis.set_major_formatter(lambda tokens, _: short(tokens))


def short(count: float, digits: int = 3) -> str:
    """12000 -> 12k, 3400000 -> 3.4M"""
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(count) >= size:
            return f"{count / size:.{digits}g}{letter}"
    return f"{count:.{digits}g}"
