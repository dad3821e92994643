"""Which pictures show a run, or several beside each other: their curves, their axes, what is told on hover.

A `Picture` says what is drawn; report_figures.py draws it.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..display import escape_unprintable
from .figures import DASHES, NUM_RUN_COLOURS, Curve, Picture, averaged
from .fonts import missing_characters
from .hover import Voice, told
from .overfitting import Course
from .records import RunRecord, is_number, short
from .wording import duration, figure, perplexity_of, tokens_of

_MANY, _MANY_BESIDE_OTHERS = 200, 50  # points, beyond which their means are drawn


@dataclass(frozen=True)
class _Axis:
    """What losses are drawn over."""

    key: str
    label: str
    unit: float = 1.0


@dataclass(frozen=True)
class _Loss:
    """A loss that is written down, and how it is drawn where a single run is shown."""

    key: str
    name: str
    colour: str
    faint: bool = False
    marker: str = "o"


LOSSES = (
    _Loss("train_loss", "training batch", "training", faint=True),
    _Loss("eval_train_loss", "training text", "training"),
    _Loss("validation_loss", "validation text", "validation", marker="s"),
)


@dataclass(frozen=True)
class _Quantity:
    """What is written down while a run trains."""

    key: str
    title: str
    label: str
    unit: float = 1.0
    wobbles: bool = True


_WATCHED = (
    _Quantity("lr", "Learning rate", "learning rate", wobbles=False),
    _Quantity("grad_norm", "Gradient norm, before clipping", "norm of the gradient"),
    _Quantity("tokens_per_second", "Speed", "tokens per second"),
    _Quantity("mfu", "Model FLOPs utilisation", "% of the measured peak", unit=0.01),
    _Quantity("peak_memory_bytes", "Peak memory of the process", "memory (MiB)", unit=2**20, wobbles=False),
)


def run_labels(runs: Sequence[RunRecord]) -> list[str]:
    """A number for each run and as much of its path as tells it from the others."""
    parts = [run.run_dir.absolute().parts for run in runs]
    names = []
    for own in parts:
        length = 1
        while length < len(own) and sum(other[-length:] == own[-length:] for other in parts) > 1:
            length += 1
        names.append("/".join(own[-length:]))
    return [
        f"{number}. {escape_unprintable(name, one_line=True, limit=60)}" for number, name in enumerate(names, start=1)
    ]


def picture_labels(runs: Sequence[RunRecord]) -> list[str]:
    """The same for the legend of a PNG: a number alone where this machine's fonts lack a character."""
    return [
        f"{number}." if missing_characters(label) else label for number, label in enumerate(run_labels(runs), start=1)
    ]


def loss_views(runs: Sequence[RunRecord], turn: Course | None = None) -> list[list[Picture]]:
    """Loss and perplexity over steps, tokens and time, each linear and logarithmic: six views of two pictures."""
    views = []
    for axis in _axes(runs):
        kinds = ("validation_loss", "eval_train_loss", "train_loss")
        curves = [*(_loss_curves(runs[0], axis) if len(runs) == 1 else _first_of(runs, axis, kinds))]
        marks = []
        if turn is not None and len(runs) == 1:
            at = next((x for x in runs[0].evaluated if x["step"] == turn.step and is_number(x.get(axis.key))), None)
            if at is not None:
                marks = [(at[axis.key] / axis.unit, f"lowest validation loss: step {turn.step:,}")]
        for log in (False, True):
            said = _losses_told(runs, axis, log)
            loss = Picture("Loss", axis.label, "loss (nats per token)", curves, log, marks, said)
            in_perplexity = [_as_perplexity(curve) for curve in curves if not curve.faint] or [
                _as_perplexity(curve) for curve in curves
            ]
            roof = None if log else _roof(in_perplexity)
            title = "Perplexity" if roof is None else "Perplexity (its beginning lies above)"
            perplexity = dataclasses.replace(loss, title=title, y_label="perplexity", curves=in_perplexity, roof=roof)
            if len(runs) == 1:
                views.append([loss, perplexity])
                continue
            validated = all(len(run.points(axis.key, "validation_loss")[0]) for run in runs)
            shown = "Loss on validation text" if validated else "Loss on validation text, or training text without one"
            of_what = "validation loss" if validated else "loss"
            training = dataclasses.replace(
                loss,
                title="Loss on training text",
                y_label="training loss (nats per token)",
                curves=[*_first_of(runs, axis, kinds[1:])],
            )
            named = dataclasses.replace(loss, title=shown, y_label=f"{of_what} (nats per token)")
            three = [named, perplexity, training]
            views.append([dataclasses.replace(picture, width=380) for picture in three])
    return views


def training_pictures(runs: Sequence[RunRecord]) -> list[Picture]:
    """Learning rate, gradient norm, speed, utilisation and memory over steps; those that were written down."""
    pictures = (_watched(quantity, runs) for quantity in _WATCHED)
    return [picture for picture in pictures if picture.curves]


def _watched(quantity: _Quantity, runs: Sequence[RunRecord]) -> Picture:
    """One quantity of all runs; where it wobbles much, the means of stretches, and behind a single run's all of it."""
    alone = len(runs) == 1
    curves, voices = [], []
    for number, (run, name) in enumerate(zip(runs, picture_labels(runs))):
        x, y = run.points("step", quantity.key)
        if not len(x):
            continue
        y = y / quantity.unit
        line = Curve(name, x, y, "training" if alone else colour_of(number), marker="o" if len(x) == 1 else "None")
        if quantity.wobbles and len(x) > (_MANY if alone else _MANY_BESIDE_OTHERS):
            if alone:
                curves.append(dataclasses.replace(line, faint=True))
            x_means, y_means = averaged(x, y, 120 if alone else 40)
            line = dataclasses.replace(line, x=x_means, y=y_means)
        curves.append(line if alone else dataclasses.replace(line, dash=dash_of(number)))
        who = "" if alone else f"run {number + 1}, "
        voices.append(Voice(x, functools.partial(_quantity_told, who, x, y, quantity.label)))
    ends = [end for voice in voices for end in (voice.x[0], voice.x[-1])]
    said = told(voices, [ends, *(voice.x for voice in voices)])
    return Picture(quantity.title, "steps", quantity.label, curves, told=said, floor=0.0, width=380)


def _quantity_told(who: str, x: Sequence[float], y: Sequence[float], label: str, place: int) -> str:
    return f"{who}step {x[place]:,.0f}: {figure(y[place])} {label}"


def _axes(runs: Sequence[RunRecord]) -> list[_Axis]:
    longest = max((float(at[-1]) for run in runs if len(at := run.points("seconds", "step")[0])), default=0.0)
    units = ((86400, "days", 3), (3600, "hours", 2), (60, "minutes", 3), (1, "seconds", 0))
    unit, name, _ = next(u for u in units if longest >= u[0] * u[2])
    return [
        _Axis("step", "steps"),
        _Axis("tokens", "tokens seen"),
        _Axis("seconds", f"time ({name})", unit),
    ]


def _loss_curves(run: RunRecord, axis: _Axis) -> Iterator[Curve]:
    """Of a single run: the batches it was trained on, and both texts."""
    for loss in LOSSES:
        x, y = run.points(axis.key, loss.key)
        if len(x):
            yield Curve(loss.name, x / axis.unit, y, loss.colour, loss.faint, marker=loss.marker)


def _first_of(runs: Sequence[RunRecord], axis: _Axis, keys: Sequence[str]) -> Iterator[Curve]:
    """Of each of several runs the first of these losses that it has."""
    for number, (run, label) in enumerate(zip(runs, picture_labels(runs))):
        for key in keys:
            x, y = run.points(axis.key, key)
            if len(x):
                yield Curve(label, x / axis.unit, y, colour_of(number), dash=dash_of(number))
                break


def dash_of(number: int) -> Any:
    """With `colour_of` it tells as many runs apart as there are pairs: the numbers of both have no common factor."""
    return DASHES[number % len(DASHES)]


def colour_of(number: int) -> str:
    return f"run{number % NUM_RUN_COLOURS}"


def _roof(curves: Sequence[Curve]) -> float | None:
    """Where a linear axis should end, if the beginnings of the curves would make everything else flat."""
    highest = max((float(np.max(curve.y)) for curve in curves if len(curve.y)), default=0.0)
    later = [curve.y[curve.x >= 0.15 * curve.x[-1]] for curve in curves if len(curve.x)]
    roof = max((float(np.max(y)) for y in later if len(y)), default=highest)
    return 1.1 * roof if 2.5 * roof < highest else None


def _as_perplexity(curve: Curve) -> Curve:
    drawable = np.asarray(curve.y) < 100
    return dataclasses.replace(curve, x=np.asarray(curve.x)[drawable], y=np.exp(np.asarray(curve.y)[drawable]))


def _losses_told(runs: Sequence[RunRecord], axis: _Axis, log: bool) -> list[tuple[float, str]]:
    """What is told of the losses: of a single run each line that it wrote, of several their evaluations."""
    names = run_labels(runs) if len(runs) > 1 else [""]
    voices, first, evaluated, others = [], [], [], []
    for run, name in zip(runs, names):
        lines = [line for line in run.by_step if is_number(line.get(axis.key))]
        lines.sort(key=lambda line: line[axis.key])
        evaluations = [line for line in lines if is_number(line.get("eval_train_loss"))]
        if len(runs) > 1:
            lines = evaluations or lines
        validated = [line for line in evaluations if is_number(line.get("validation_loss"))]
        lowest = min(validated, key=lambda line: line["validation_loss"], default=None)
        first += [*([lowest] if lowest else []), *lines[:1], *lines[-1:]]
        evaluated += evaluations
        others += lines
        at = [line[axis.key] / axis.unit for line in lines]
        voices.append(Voice(at, functools.partial(_line_told, name, lines)))
    tiers = [[line[axis.key] / axis.unit for line in tier] for tier in (first, evaluated, others)]
    return told(voices, tiers, log)


def _line_told(name: str, lines: Sequence[dict[str, Any]], place: int) -> str:
    line = lines[place]
    losses = [(loss.name, line[loss.key]) for loss in LOSSES if is_number(line.get(loss.key))]
    if name:
        shown = ", ".join(f"{what} {loss:.3f}" for what, loss in losses)
        return f"{name}, step {line['step']:,}: {shown}"
    words = [f"step {line['step']:,}"]
    words += [f"{what}: loss {loss:.3f}, perplexity {perplexity_of(loss)}" for what, loss in losses]
    return "\n".join([*words, f"{short(tokens_of(line))} tokens, {duration(line.get('seconds', 0))}"])
