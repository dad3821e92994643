"""Which pictures show a run, or several beside each other: their curves, their axes, what is told on hover.

A `Picture` says what is drawn; report_figures.py draws it.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..report import RunRecord, is_number, short
from ..untrusted import visible
from .overfitting import Turn
from .report_figures import DASHES, NUM_RUN_COLOURS, Curve, Picture, averaged, can_show
from .wording import duration, figure, perplexity_of, tokens_of

_MANY = 200  # points, beyond which their mean is drawn


@dataclass(frozen=True)
class _Axis:
    """What losses are drawn over."""

    key: str
    name: str
    label: str
    unit: float = 1.0


@dataclass(frozen=True)
class _Quantity:
    """What is written down while a run trains."""

    key: str
    title: str
    label: str
    unit: float = 1.0
    floor: float | None = 0.0
    wobbles: bool = True


_WATCHED = (
    _Quantity("lr", "Learning rate", "learning rate (1)", wobbles=False),
    _Quantity("grad_norm", "Gradient norm, before clipping", "norm of the gradient (1)"),
    _Quantity("tokens_per_second", "Speed", "tokens per second"),
    _Quantity("mfu", "Model FLOPs utilisation", "% of the measured peak", unit=0.01),
    _Quantity("peak_memory_bytes", "Peak memory so far", "memory (MiB)", unit=2**20, wobbles=False),
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
    return [f"{number}. {visible(name, one_line=True, limit=60)}" for number, name in enumerate(names, start=1)]


def picture_labels(runs: Sequence[RunRecord]) -> list[str]:
    """The same for the legend of a PNG: a number alone where this machine's fonts lack a character."""
    return [
        label if label.isascii() or can_show(label) else f"{number}."
        for number, label in enumerate(run_labels(runs), start=1)
    ]


def loss_views(runs: Sequence[RunRecord], turn: Turn | None = None) -> list[list[Picture]]:
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
        told = _told(runs, axis)
        for log in (False, True):
            loss = Picture("Loss", axis.label, "loss (nats per token)", curves, log, marks, told)
            in_perplexity = [_as_perplexity(curve) for curve in curves if not curve.faint] or [
                _as_perplexity(curve) for curve in curves
            ]
            roof = None if log else _roof(in_perplexity)
            title = "Perplexity" if roof is None else "Perplexity (its beginning lies above)"
            perplexity = dataclasses.replace(
                loss, title=title, y_label="perplexity (1)", curves=in_perplexity, roof=roof
            )
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
    pictures, names = [], picture_labels(runs)
    for quantity in _WATCHED:
        curves, told = [], []
        for number, run in enumerate(runs):
            x, y = run.points("step", quantity.key)
            y = y / quantity.unit
            colour, dash = ("training", "solid") if len(runs) == 1 else (f"run{number % NUM_RUN_COLOURS}", "solid")
            if len(x):
                dash = dash if len(runs) == 1 else dash_of(number)
                label = names[number]
                if quantity.wobbles and len(x) > _MANY:
                    if len(runs) == 1:
                        curves.append(Curve(label, x, y, colour, faint=True))
                    curves.append(Curve(label, *averaged(x, y), colour, dash=dash, marker="None"))
                else:
                    curves.append(Curve(label, x, y, colour, dash=dash, marker="None"))
                who = f"run {number + 1}, " if len(runs) > 1 else ""
                every = max(1, len(x) // 48)
                told += [(at, f"{who}step {at:,.0f}: {figure(v)}") for at, v in zip(x[::every], y[::every])]
        if curves:
            pictures.append(
                Picture(
                    quantity.title, "steps", quantity.label, curves, told=sorted(told), floor=quantity.floor, width=380
                )
            )
    return pictures


def _axes(runs: Sequence[RunRecord]) -> list[_Axis]:
    longest = max((float(at[-1]) for run in runs if len(at := run.points("seconds", "step")[0])), default=0.0)
    units = ((86400, "days", 3), (3600, "hours", 2), (60, "minutes", 3), (1, "seconds", 0))
    unit, name, _ = next(u for u in units if longest >= u[0] * u[2])
    return [
        _Axis("step", "steps", "steps"),
        _Axis("tokens", "tokens", "tokens seen"),
        _Axis("seconds", "time", f"time ({name})", unit),
    ]


def _loss_curves(run: RunRecord, axis: _Axis) -> Iterator[Curve]:
    """Of a single run: the batches it was trained on, and both texts."""
    for key, label, colour, faint, marker in (
        ("train_loss", "training batch", "training", True, "o"),
        ("eval_train_loss", "training text", "training", False, "o"),
        ("validation_loss", "validation text", "validation", False, "s"),
    ):
        x, y = run.points(axis.key, key)
        if len(x):
            yield Curve(label, x / axis.unit, y, colour, faint, "solid", marker)


def _first_of(runs: Sequence[RunRecord], axis: _Axis, keys: Sequence[str]) -> Iterator[Curve]:
    """Of each of several runs the first of these losses that it has."""
    for number, (run, label) in enumerate(zip(runs, picture_labels(runs))):
        for key in keys:
            x, y = run.points(axis.key, key)
            if len(x):
                colour = f"run{number % NUM_RUN_COLOURS}"
                yield Curve(label, x / axis.unit, y, colour, dash=dash_of(number))
                break


def dash_of(number: int) -> Any:
    return DASHES[(number + number // NUM_RUN_COLOURS) % len(DASHES)]


def _roof(curves: Sequence[Curve]) -> float | None:
    """Where a linear axis should end, if the beginning would make everything else flat."""
    highest = max((float(np.max(curve.y)) for curve in curves if len(curve.y)), default=0.0)
    last = max((float(curve.x[-1]) for curve in curves if len(curve.x)), default=0.0)
    later = [curve.y[curve.x >= 0.15 * last] for curve in curves]
    roof = max((float(np.max(y)) for y in later if len(y)), default=highest)
    return 1.1 * roof if 2.5 * roof < highest else None


def _as_perplexity(curve: Curve) -> Curve:
    drawable = np.asarray(curve.y) < 100
    return dataclasses.replace(curve, x=np.asarray(curve.x)[drawable], y=np.exp(np.asarray(curve.y)[drawable]))


def _told(runs: Sequence[RunRecord], axis: _Axis) -> list[tuple[float, str]]:
    """What is told on hover: of each evaluation (or, where there is none, each train line) its step and losses."""
    told = []
    names = run_labels(runs) if len(runs) > 1 else [""]
    for run, name in zip(runs, names):
        lines = run.evaluated or run.trained
        for line in lines[:: max(1, len(lines) // 64)]:
            if not is_number(line.get(axis.key)):
                continue
            words = [f"{name}, step {line['step']:,}" if name else f"step {line['step']:,}"]
            for key, what in (
                ("train_loss", "training batch"),
                ("eval_train_loss", "training text"),
                ("validation_loss", "validation text"),
            ):
                if is_number(line.get(key)):
                    words.append(f"{what}: loss {line[key]:.3f}, perplexity {perplexity_of(line[key])}")
            words.append(f"{short(tokens_of(line))} tokens, {duration(line.get('seconds', 0))}")
            told.append((line[axis.key] / axis.unit, "\n".join(words)))
    return sorted(told)
