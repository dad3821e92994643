"""The plots of a run, or of several: matplotlib draws them, as SVG into a page and as PNG, PDF or SVG for a paper.

`loss_plot` is the picture of the book. `loss_plots` and `training_plots` say what a report shows, over steps, tokens
or seconds; `draw` and `as_image` draw it. A page that is dark inverts its plots, in style.css.
"""

import base64
import contextlib
import functools
import io
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..display import escape_unprintable, short_number
from ..errors import UserError
from ..storage import local_path, write_bytes
from ..texts import VALIDATION, label_of, loss_label, loss_of
from ..training.run_log import read_metrics
from . import fonts
from .html import PALETTE
from .notebook import Picture, picture_format
from .records import RunRecord, common_texts, has_losses, is_number
from .seeds import group_labels

if TYPE_CHECKING:
    from matplotlib.figure import Figure

X_AXES = {"steps": "step", "tokens": "tokens", "seconds": "seconds"}  # the column of metrics.jsonl of each
_FAINT = {"alpha": 0.35, "linewidth": 1}
# What a loss is called, and how it is drawn where one run is shown.
LOSSES = {
    "train_loss": ("training batch", {"color": PALETTE["blue"], **_FAINT}),
    "eval_train_loss": ("training text", {"color": PALETTE["blue"], "marker": "o"}),
    "validation_loss": ("validation text", {"color": PALETTE["vermilion"], "marker": "s"}),
}
DASHES = ("solid", (0, (6, 2)), (0, (2, 1.5)), (0, (7, 2, 1.5, 2)))
MOST_RUNS = len(PALETTE) * len(DASHES)
_MOST_MARKERS = 40  # a longer curve has none
_MANY_SEEDS = 5  # of so many curves the mean and the band are enough
_MANY_POINTS = 200  # of a noisy curve: beyond it the means of 100 stretches are drawn too
_WATCHED = (  # column, title, label, unit, noisy
    ("lr", "Learning rate", "learning rate", 1, False),
    ("grad_norm", "Gradient norm, before clipping", "norm of the gradient", 1, True),
    ("tokens_per_second", "Speed", "tokens per second", 1, True),
    ("mfu", "Model FLOPs utilisation", "% of the measured peak", 0.01, True),
    ("aux_loss", "Auxiliary loss, of the experts' balance", "auxiliary loss", 1, True),
    ("peak_memory_bytes", "Peak memory of the process", "memory (MiB)", 2**20, False),
)


@dataclass(frozen=True)
class Curve:
    """A line through points; `style` is what matplotlib's `plot` takes.

    Curves of one label are of runs that differ in their seeds alone. They are put together at common `steps`.
    """

    label: str
    x: np.ndarray
    y: np.ndarray
    style: dict[str, Any]
    steps: np.ndarray | None = None
    deviation: np.ndarray | None = None  # half of the band around it

    def at(self, places: np.ndarray, how: Callable[[np.ndarray], np.ndarray] = lambda y: y) -> "Curve":
        """The curve at some of its points, `how` changed."""
        steps = None if self.steps is None else self.steps[places]
        return replace(self, x=self.x[places], y=how(self.y[places]), steps=steps)


@dataclass(frozen=True)
class Plot:
    """Curves over one axis."""

    title: str
    x_label: str
    y_label: str
    curves: list[Curve] = field(default_factory=list)
    log: bool = False
    bottom: float | None = None  # limits of the vertical axis, where it is linear
    top: float | None = None
    mark: tuple[float, str] | None = None  # an upright line: where, and what it means
    tokens_per_x: float | None = None  # adds an axis of tokens above


def loss_plot(
    run_dir: str | Path, path: str | Path | None = None, *, until: int | None = None, dpi: int = 150
) -> Picture:
    """Draw the losses of a run over epochs, with tokens on the upper axis, as the book does.

    Args:
        path: a .png, .pdf or .svg; by default `<run_dir>/loss.png`. Returned: a notebook shows the picture.
        until: the last step to show.

    Raises:
        UserError: the run has written no loss yet, or `path` ends otherwise.
    """
    run_dir = local_path(run_dir)
    path = local_path(path or run_dir / "loss.png", "path")
    picture_format(path)
    metrics = [line for line in read_metrics(run_dir) if until is None or line["step"] <= until]
    if not has_losses(metrics):
        raise UserError(f"{run_dir}: metrics.jsonl holds no loss yet")
    run = RunRecord(run_dir, metrics)
    counted = [line for line in metrics if is_number(line.get("tokens")) and is_number(line.get("epoch"))]
    last = max(counted, key=lambda line: line["tokens"], default={})
    per_epoch = last["tokens"] / last["epoch"] if last.get("tokens") and last["epoch"] else None
    plot = Plot("Loss", "epochs", "loss (nats per token)", [*_losses(run, "epoch")], tokens_per_x=per_epoch)
    return draw(path, [plot], size=(8, 5), dpi=dpi)


def loss_plots(runs: Sequence[RunRecord], x: str = "steps", log: bool = False, turn: int | None = None) -> list[Plot]:
    """Loss and perplexity of a run, with a mark at step `turn`; of several: validation, perplexity, training loss,
    and that on each further text."""
    x_label, unit = _x_axis(runs, x)
    column = X_AXES[x]
    if len(runs) == 1:
        losses, curves = "loss (nats per token)", [*_losses(runs[0], column, unit)]
        each = curves
        at = next((line.get(column) for line in runs[0].evaluated if line["step"] == turn), None)
        mark = (at / unit, f"lowest {loss_label(runs[0].judge)}: step {turn:,}") if is_number(at) else None
        plots = [Plot("Loss", x_label, losses, curves, log, mark=mark)]
    else:
        text, *further = common_texts(runs) or [VALIDATION]
        keys = (loss_of(text), "eval_train_loss", "train_loss")
        each, mark = [*_first_loss(runs, keys, column, unit)], None
        curves = [*_over_seeds(each)]
        validated = all(len(run.points(column, keys[0])[0]) for run in runs)
        shown = f"Loss on {label_of(text)}{'' if validated else ', or on training text without one'}"
        plots = [Plot(shown, x_label, "loss (nats per token)", curves, log)]
        training = [*_over_seeds([*_first_loss(runs, keys[1:], column, unit)])]
        plots.append(Plot("Loss on training text", x_label, "training loss (nats per token)", training, log))
        for text in further:
            others = [*_over_seeds([*_first_loss(runs, [loss_of(text)], column, unit)])]
            plots.append(Plot(f"Loss on {label_of(text)}", x_label, "loss (nats per token)", others, log))
    evaluated = [curve for curve in each if curve.label != LOSSES["train_loss"][0]] or each
    low = [curve.at(low, np.exp) for curve in evaluated if len(low := np.flatnonzero(curve.y < 100))]
    in_perplexity = [*_over_seeds(low)]
    top = None if log else _top_without_beginning(in_perplexity)
    title = "Perplexity" if top is None else "Perplexity (its beginning lies above)"
    plots.insert(1, Plot(title, x_label, "perplexity", in_perplexity, log, 0 if top else None, top, mark))
    return [plot for plot in plots if plot.curves]


def training_plots(runs: Sequence[RunRecord], x: str = "steps") -> list[Plot]:
    """Learning rate, gradient norm, speed, utilisation and memory, of which there are figures."""
    x_label, x_unit = _x_axis(runs, x)
    plots = []
    for key, title, label, unit, noisy in _WATCHED:
        each = []
        for run, (name, style) in zip(runs, curve_names(runs)):
            steps, at, values = run.points("step", X_AXES[x], key)
            if len(at):
                each.append(Curve(name, at / x_unit, values / unit, style, steps))
        curves = [*_over_seeds(each, _smooth if noisy else lambda curve: curve)]
        if noisy and len(runs) == len(each) == 1 and len(each[0].x) > _MANY_POINTS:
            curves.insert(0, replace(each[0], label="_each", style={**each[0].style, **_FAINT}))
        plots.append(Plot(title, x_label, label, curves, bottom=0))
    return [plot for plot in plots if plot.curves]


def benchmark_plots(run: RunRecord) -> list[Plot]:
    """What the checkpoints of a run reached, over tokens: a plot for each metric, a curve for each task."""
    curves: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for one in run.benchmarks:
        if one.tokens is not None:
            curves.setdefault(one.metric, {}).setdefault(one.label, []).append((one.tokens, one.value))
    return [
        Plot(
            f"Benchmarks: {metric}",
            "tokens seen",
            metric,
            [
                Curve(label, *np.array(sorted(points)).T, {**run_style(number), "marker": "o"})
                for number, (label, points) in enumerate(of_tasks.items())
            ],
        )
        for metric, of_tasks in curves.items()
    ]


def run_labels(runs: Sequence[RunRecord]) -> list[str]:
    """A number for each run and as much of its path as tells it from the others."""
    paths = [run.run_dir.absolute().parts for run in runs]
    labels = []
    for number, path in enumerate(paths, start=1):
        length = 1
        while length < len(path) and sum(other[-length:] == path[-length:] for other in paths) > 1:
            length += 1
        labels.append(f"{number}. {escape_unprintable('/'.join(path[-length:]), one_line=True, limit=60)}")
    return labels


def curve_names(runs: Sequence[RunRecord]) -> list[tuple[str, dict[str, Any]]]:
    """Label and style of each run's curve; those that differ in their seeds alone have the same ones."""
    labels = group_labels(runs, run_labels(runs))
    styles = {label: run_style(number) for number, label in enumerate(dict.fromkeys(labels))}
    return [(label, styles[label]) for label in labels]


def run_style(number: int) -> dict[str, Any]:
    """Colour and dashes of a run. The numbers of both have no common factor: `MOST_RUNS` runs differ."""
    colours = [*PALETTE.values()]
    return {"color": colours[number % len(colours)], "linestyle": DASHES[number % len(DASHES)]}


def _losses(run: RunRecord, column: str, unit: float = 1) -> Iterator[Curve]:
    further = [text for text in run.texts if loss_of(text) not in LOSSES]
    named = {
        loss_of(text): (label_of(text), {**run_style(number), "marker": "^"}) for number, text in enumerate(further, 2)
    }
    for key, (name, style) in {**LOSSES, **named}.items():
        x, y = run.points(column, key)
        if len(x):
            yield Curve(name, x / unit, y, style)


def _first_loss(runs: Sequence[RunRecord], keys: Sequence[str], column: str, unit: float) -> Iterator[Curve]:
    """Of each run the first of these losses that it has; of runs that differ in seeds alone, that all of them have."""
    named = [*zip(runs, curve_names(runs))]
    for run, (name, style) in named:
        alike = [other for other, (label, _) in named if label == name]
        key = next((key for key in keys if all(len(one.points(column, key)[0]) for one in alike)), None)
        if key is not None:
            steps, x, y = run.points("step", column, key)
            yield Curve(name, x / unit, y, style, steps)


def _over_seeds(each: Sequence[Curve], smooth: Callable[[Curve], Curve] = lambda curve: curve) -> Iterator[Curve]:
    """The curves, but of those with one label their mean, at the steps that all have, and where they are few, each."""
    for label in dict.fromkeys(curve.label for curve in each):
        curves = [curve for curve in each if curve.label == label]
        common = functools.reduce(np.intersect1d, [curve.steps for curve in curves]) if len(curves) > 1 else ()
        if not len(common):
            yield from map(smooth, curves)
            continue
        if len(curves) < _MANY_SEEDS:
            yield from (replace(smooth(curve), label="_each", style={**curve.style, **_FAINT}) for curve in curves)
        curves = [smooth(curve.at(np.intersect1d(curve.steps, common, return_indices=True)[1])) for curve in curves]
        x, y = (np.array([getattr(curve, axis) for curve in curves]) for axis in "xy")
        yield Curve(label, x.mean(0), y.mean(0), curves[0].style, deviation=y.std(0, ddof=1))


def _smooth(curve: Curve) -> Curve:
    """The means of 100 stretches of a long curve."""
    if len(curve.x) <= _MANY_POINTS:
        return curve
    x, y = (np.array([part.mean() for part in np.array_split(values, 100)]) for values in (curve.x, curve.y))
    return replace(curve, x=x, y=y, steps=None)


def _x_axis(runs: Sequence[RunRecord], x: str) -> tuple[str, float]:
    """The label of the axis, and what its values are divided by."""
    if x not in X_AXES:
        raise UserError(f"is no axis; give {', '.join(X_AXES)}", field="x", value=repr(x))
    if x != "seconds":
        return {"steps": "steps", "tokens": "tokens seen"}[x], 1
    longest = max((at[-1] for run in runs if len(at := run.points("seconds", "step")[0])), default=0)
    units = ((86400, "days"), (3600, "hours"), (60, "minutes"), (1, "seconds"))
    unit, name = next((unit for unit in units if longest >= 3 * unit[0]), units[-1])
    return f"time ({name})", unit


def _top_without_beginning(curves: Sequence[Curve]) -> float | None:
    """Where a linear axis ends, if the beginnings of the curves would make everything else flat."""
    highest = max((curve.y.max() for curve in curves), default=0)
    later = max((curve.y[curve.x >= 0.15 * curve.x[-1]].max() for curve in curves), default=highest)
    return 1.1 * later if 2.5 * later < highest else None


# Drawing ------------------------------------------------------------------------------------------------------------

_STYLE = {
    "font.size": 11,
    "text.parse_math": False,  # names of runs are strangers' text
    "lines.linewidth": 1.8,
    "lines.markersize": 3.5,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.formatter.limits": (-3, 7),
    "axes.formatter.useoffset": False,
    "grid.alpha": 0.3,
    "legend.frameon": False,
    "path.simplify_threshold": 1.0,  # pixels: 100,000 points become some 30 KB of SVG, and no spike is lost
    "svg.fonttype": "none",
    "svg.hashsalt": "hf_gpt",  # the same plot, the same bytes
}


def draw(path: Path, plots: Sequence[Plot], size: tuple[float, float] = (4.6, 3.7), dpi: int = 300) -> Picture:
    """The plots side by side, `size` inches each, with one legend."""
    with _figure(plots, (size[0] * len(plots), size[1]), dpi, layout="constrained") as figure:
        handles: dict[str, Any] = {}
        for axes in figure.axes:
            for handle, label in zip(*axes.get_legend_handles_labels()):
                handles.setdefault(label, handle)
        has_legend = len(handles) > 1 or any(curve.deviation is not None for plot in plots for curve in plot.curves)
        if len(plots) > 1 and has_legend:
            columns = min(len(handles), 2 * len(plots))
            figure.legend(handles.values(), handles, loc="outside lower center", ncols=columns)
        elif has_legend:
            figure.axes[0].legend()
        return write_picture(path, figure)


def write_picture(path: Path, figure: "Figure") -> Picture:
    """A matplotlib figure as the file that its name says: PNG, PDF or SVG, replaced atomically."""
    buffer, kind = io.BytesIO(), picture_format(path)
    undated = {"png": {}, "pdf": {"CreationDate": None}, "svg": {"Date": None}}
    figure.savefig(buffer, format=kind, metadata=undated[kind])
    write_bytes(path, buffer.getvalue())
    return Picture(path)


def as_image(plot: Plot, legend: bool) -> str:
    """A plot as SVG, in the form that an `<img>` of a page takes as its `src`."""
    width, height = 4.6, 3.0
    with _figure([plot], (width, height), dpi=72) as figure:
        figure.subplots_adjust(0.88 / width, 0.55 / height, 1 - 0.12 / width, 1 - 0.1 / height)
        if legend and len(figure.axes[0].get_legend_handles_labels()[1]) > 1:
            figure.axes[0].legend(fontsize=9.5)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return f"data:image/svg+xml;base64,{base64.b64encode(buffer.getvalue()).decode()}"


@contextlib.contextmanager
def _figure(plots: Sequence[Plot], size: tuple[float, float], dpi: int, layout: str | None = None) -> Iterator[Any]:
    """A figure of the plots on a canvas of its own: nothing of pyplot, no window, no global state."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    labels = "".join(curve.label for plot in plots for curve in plot.curves)
    with matplotlib.rc_context({**_STYLE, "font.family": fonts.families_for(labels)}):
        figure = Figure(size, dpi=dpi, layout=layout)
        FigureCanvasAgg(figure)
        for number, plot in enumerate(plots, start=1):
            _draw(figure.add_subplot(1, len(plots), number), plot)
        yield figure


def _draw(axes: Any, plot: Plot) -> None:
    for curve in plot.curves:
        x, y, deviation = curve.x, curve.y, curve.deviation
        if plot.log:
            shown = (x > 0) & (y > 0)
            x, y, deviation = x[shown], y[shown], None if deviation is None else deviation[shown]
        marker = curve.style.get("marker", "o" if len(x) == 1 else None) if len(x) <= _MOST_MARKERS else None
        if deviation is not None and len(x):
            low = y - deviation
            if plot.log:  # it cannot reach 0, and ends at the lowest point that is drawn
                low = np.maximum(low, min(y.min(), low[low > 0].min(initial=np.inf)))
            axes.fill_between(x, low, y + deviation, color=curve.style["color"], alpha=0.2, linewidth=0)
        axes.plot(x, y, label=fonts.drawable(curve.label), **{**curve.style, "marker": marker})
    if plot.mark is not None:
        at, meaning = plot.mark
        axes.axvline(at, color=PALETTE["purple"], linewidth=1.3, linestyle=(0, (4, 3)), label=meaning)
    axes.set_xlabel(plot.x_label)
    axes.set_ylabel(plot.y_label)
    if plot.log:
        axes.set(xscale="log", yscale="log")
        for axis, limits in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
            _log_ticks(axis, limits)
    else:
        axes.set_ylim(plot.bottom, plot.top)
    axes.yaxis.set_major_formatter(lambda value, _: short_number(value, digits=4))
    if plot.x_label == "tokens seen":
        axes.xaxis.set_major_formatter(lambda tokens, _: short_number(tokens))
    if plot.tokens_per_x:
        each = plot.tokens_per_x
        above = axes.secondary_xaxis("top", functions=(lambda x: x * each, lambda tokens: tokens / each))
        above.set_xlabel("tokens seen")
        above.xaxis.set_major_formatter(lambda tokens, _: short_number(tokens))


def _log_ticks(axis: Any, limits: tuple[float, float]) -> None:
    """A handful of round numbers, written as such: matplotlib's own are powers of ten."""
    from matplotlib.ticker import LogLocator, NullLocator

    decades = math.log10(limits[1] / limits[0])
    few, some, many = (1,), (1, 3), (1, 2, 3, 5)
    subs = (
        few if decades > 3 else some if decades > 1.5 else many if decades > 0.7 else (1, 1.5, 2, 2.5, 3, 4, 5, 6, 8)
    )
    axis.set_major_locator(LogLocator(subs=subs))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(lambda value, _: short_number(value))
