"""Curves as small inline SVG pictures for a page, and as PNG files for papers.

matplotlib draws; what a page needs on top is added to its SVG. Colours become CSS variables, so that one picture suits
light and dark; ids get a prefix of their own, since many pictures share a page; text stays text, in the page's font.
Values are told on hover by the titles of invisible bands over the plot, which need no script. However many points a
curve has, about 500 are drawn: the lowest and the highest of each small stretch, so that no spike is lost.

Text in pictures is never read as mathematics: names of runs are a stranger's.
"""

import html
import io
import itertools
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .fonts import families_for
from .records import short, write_png

# Okabe and Ito's palette, which colour-blind eyes tell apart, and brighter shades of it for a dark page.
COLOURS = {
    "training": ("#0072B2", "#5AB4F0"),
    "validation": ("#D55E00", "#FF9A4D"),
    "mark": ("#9A2F73", "#E9A6CF"),
    "text": ("#1C1F23", "#E6E8EB"),
    "faint": ("#5F6670", "#A3ABB6"),
    "grid": ("#DADDE2", "#3A4049"),
    "run0": ("#0072B2", "#5AB4F0"),
    "run1": ("#D55E00", "#FF9A4D"),
    "run2": ("#009E73", "#3DD3A6"),
    "run3": ("#B0558A", "#EBA6CE"),
    "run4": ("#B57F00", "#F2BE4A"),
    "run5": ("#3F9BCB", "#A6DBF7"),
    "run6": ("#555B64", "#C4CAD2"),
}
NUM_RUN_COLOURS = 7
DASHES = ("solid", (0, (6, 2)), (0, (2, 1.5)), (0, (7, 2, 1.5, 2)))

MOST_POINTS = 500
_MARKERS_UP_TO = 40  # points that get a marker each
_HEIGHT = 0.63  # of a picture, in widths
_LEFT, _RIGHT, _TOP, _BOTTOM = 62, 14, 22, 48
_DPI = 300

# What matplotlib is told in place of a colour of the page.
_PLACEHOLDERS = {name: f"#0100{number:02x}" for number, name in enumerate(COLOURS, start=1)}


@dataclass(frozen=True)
class Curve:
    """A line through points; `x` ascends."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    colour: str  # a key of COLOURS
    faint: bool = False
    dash: Any = "solid"
    marker: str = "o"


@dataclass(frozen=True)
class Picture:
    """One plot: curves over an axis, marked steps, and what is told on hover."""

    title: str
    x_label: str
    y_label: str
    curves: Sequence[Curve]
    log: bool = False
    marks: Sequence[tuple[float, str]] = ()  # (x, what is there)
    told: Sequence[tuple[float, str]] = ()  # (x, what is told where the pointer is nearest to it); x ascends
    floor: float | None = None  # the lowest value that the vertical axis shows,
    roof: float | None = None  # and the highest, of a linear one
    width: int = 460  # CSS pixels; the height is in proportion
    ids: str = field(default="", compare=False)


def thinned(x: Sequence[float], y: Sequence[float], most: int = MOST_POINTS, log: bool = False) -> tuple[Any, Any]:
    """At most about `most` of the points, among them the first, the last, and the extremes of each stretch."""
    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    if len(x) <= most:
        return x, y
    along = np.log(x) if log else x
    span = along[-1] - along[0]
    num_stretches = (most - 2) // 2
    stretch = np.minimum((along - along[0]) / (span or 1.0) * num_stretches, num_stretches - 1).astype(int)
    starts = np.flatnonzero(np.diff(stretch, prepend=-1))
    kept = {0, len(x) - 1}
    for start, end in zip(starts, [*starts[1:], len(x)]):
        kept |= {start + int(np.argmin(y[start:end])), start + int(np.argmax(y[start:end]))}
    chosen = sorted(kept)
    return x[chosen], y[chosen]


def averaged(x: Any, y: Any, stretches: int = 120) -> tuple[Any, Any]:
    """The means of so many stretches of a long curve."""
    return tuple(np.array([piece.mean() for piece in np.array_split(values, stretches)]) for values in (x, y))


# SVG ----------------------------------------------------------------------------------------------------------------


def svg(picture: Picture) -> str:
    """The picture as an `<svg>` element; `picture.ids` must be unlike that of any other on the page."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    settings = {"svg.fonttype": "none", "svg.hashsalt": "hf_gpt", "text.parse_math": False, "font.size": 12}
    with matplotlib.rc_context(settings):
        width, height = picture.width, round(_HEIGHT * picture.width)
        figure = Figure(figsize=(width / 72, height / 72), dpi=72)
        FigureCanvasSVG(figure)
        figure.patch.set_visible(False)
        size = (1 - (_LEFT + _RIGHT) / width, 1 - (_TOP + _BOTTOM) / height)
        axes = figure.add_axes((_LEFT / width, _BOTTOM / height, *size))
        _draw(axes, picture, _PLACEHOLDERS)
        frame = "".join(_frame(axes, picture, width, height))
        axes.set_axis_off()
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg")
        bands = "".join(_bands(axes, picture.told, width, height))
    body = buffer.getvalue()
    body = body[body.index("<defs>") :]
    body = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", body, flags=re.DOTALL)
    body = re.sub(r"<[^>]+>", lambda tag: re.sub(r"(\d\.\d\d)\d+", r"\1", tag[0]), body)
    body = re.sub(r'( id="|href="#|url\(#)', rf"\g<1>{picture.ids}-", body)
    for name, placeholder in _PLACEHOLDERS.items():
        body = body.replace(placeholder, f"var(--{name})")
    body = body.replace("</svg>", f'<g class="told">{bands}</g></svg>')
    label = html.escape(f"{picture.title}: {picture.y_label} over {picture.x_label}")
    return f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{label}">{frame}{body.strip()}'


def _bands(axes: Any, told: Sequence[tuple[float, str]], width: int, height: int) -> Iterator[str]:
    """Invisible upright bands, each nearest to one x, with a title that a browser shows on hover."""
    low, high = axes.get_xlim()
    inside = [(x, text) for x, text in told if low <= x <= high]
    at = [float(axes.transData.transform((x, axes.get_ylim()[0]))[0]) for x, _ in inside]
    edges = [float(_LEFT), *((a + b) / 2 for a, b in itertools.pairwise(at)), float(width - _RIGHT)]
    height -= _TOP + _BOTTOM
    for (_, text), left, right in zip(inside, edges, edges[1:]):
        yield (
            f'<rect x="{left:.1f}" y="{_TOP}" width="{right - left:.1f}" height="{height}">'
            f"<title>{html.escape(text)}</title></rect>"
        )


def _draw(axes: Any, picture: Picture, colours: dict[str, str]) -> None:
    if picture.log:
        axes.set_xscale("log")
        axes.set_yscale("log")
    for curve in picture.curves:
        xs, ys = np.asarray(curve.x, dtype=float), np.asarray(curve.y, dtype=float)
        if picture.log:
            drawable = (xs > 0) & (ys > 0)
            xs, ys = xs[drawable], ys[drawable]
        if not len(xs):
            continue
        colour = colours[curve.colour]
        few = len(xs) <= _MARKERS_UP_TO
        x, y = thinned(xs, ys, log=picture.log)
        if curve.faint:
            axes.plot(x, y, color=colour, alpha=0.35, linewidth=1, marker="." if len(xs) == 1 else None)
            if len(xs) > 4 * MOST_POINTS:
                axes.plot(*averaged(xs, ys), color=colour, alpha=0.8, linewidth=1)
            continue
        axes.plot(
            x,
            y,
            color=colour,
            linewidth=1.8,
            linestyle=curve.dash,
            marker=curve.marker if few else None,
            markersize=3.5,
            label=curve.label,
        )
    _scales(axes, picture)
    low, high = axes.get_xlim()
    for x, text in picture.marks:
        if not low <= x <= high:
            continue
        axes.axvline(x, color=colours["mark"], linewidth=1.3, linestyle=(0, (4, 3)))
        place = float(axes.transAxes.inverted().transform(axes.transData.transform((x, axes.get_ylim()[0])))[0])
        side = "left" if place < 0.35 else "right" if place > 0.65 else "center"
        axes.annotate(
            text, (place, 1.0), xycoords="axes fraction", xytext=(0, 4), textcoords="offset points", ha=side,
            color=colours["mark"], fontsize=11.5,
        )  # fmt: skip


def _frame(axes: Any, picture: Picture, width: int, height: int) -> Iterator[str]:
    """Grid, ticks and labels of an SVG. matplotlib would take three quarters of all its time for them."""
    left, right, top, bottom = _LEFT, width - _RIGHT, _TOP, height - _BOTTOM
    shown = {}
    for name, axis, limits in (("x", axes.xaxis, axes.get_xlim()), ("y", axes.yaxis, axes.get_ylim())):
        ticks = [float(tick) for tick in axis.get_major_locator()() if limits[0] <= tick <= limits[1]]
        corner = axes.get_xlim()[0], axes.get_ylim()[0]
        points = [(tick, corner[1]) if name == "x" else (corner[0], tick) for tick in ticks]
        places = axes.transData.transform(points) if points else []
        shown[name] = [(float(place[int(name == "y")]), label) for place, label in zip(places, tick_labels(ticks))]
    grid = "".join(f"M{at:.1f} {top}V{bottom}" for at, _ in shown["x"])
    grid += "".join(f"M{left} {height - at:.1f}H{right}" for at, _ in shown["y"])
    ticks = "".join(f"M{at:.1f} {bottom}v3" for at, _ in shown["x"])
    ticks += "".join(f"M{left} {height - at:.1f}h-3" for at, _ in shown["y"])
    yield f'<path class="gridlines" d="{grid}"/><path class="frame" d="M{left} {top}V{bottom}H{right}{ticks}"/>'
    for at, text in shown["x"]:
        yield f'<text x="{at:.1f}" y="{bottom + 16}" text-anchor="middle">{text}</text>'
    for at, text in shown["y"]:
        yield f'<text x="{left - 6}" y="{height - at + 4:.1f}" text-anchor="end">{text}</text>'
    middle = (top + bottom) / 2
    yield f'<text class="label" x="{(left + right) / 2}" y="{height - 10}" text-anchor="middle">'
    yield f"{html.escape(picture.x_label)}</text>"
    yield f'<text class="label" transform="translate(13 {middle}) rotate(-90)" text-anchor="middle">'
    yield f"{html.escape(picture.y_label)}</text>"


def tick_labels(ticks: Sequence[float]) -> list[str]:
    """12k, 0.5, 8e-4: never wide, with as many digits as tell them apart."""
    for digits in range(3, 10):
        labels = [_number(tick, digits) for tick in ticks]
        if len(set(labels)) == len(labels):
            break
    return labels


def _number(value: float, digits: int) -> str:
    if 0 < abs(value) < 0.01:
        return re.sub(r"\.?0*e-0?", "e-", f"{value:.{digits - 1}e}")
    return short(value, digits)


def _style_axes(axes: Any, picture: Picture, colours: dict[str, str]) -> None:
    """The same of a PNG, by matplotlib."""
    from matplotlib.ticker import Formatter

    class Labels(Formatter):
        def format_ticks(self, values: Sequence[float]) -> list[str]:
            return tick_labels(values)

    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(colours["faint"])
    axes.patch.set_visible(False)
    axes.grid(color=colours["grid"], linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(colors=colours["faint"], labelcolor=colours["text"], which="both", labelsize=11.5, length=3)
    axes.tick_params(which="minor", length=0, labelsize=0)
    axes.set_xlabel(picture.x_label, color=colours["text"], labelpad=5)
    axes.set_ylabel(picture.y_label, color=colours["text"], labelpad=4)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(Labels())


def _scales(axes: Any, picture: Picture) -> None:
    """Limits with a little room, and a handful of round numbers on each axis."""
    from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator

    if not axes.lines:
        axes.set_xlim(0.1 if picture.log else 0, 1)
        axes.set_ylim(0.1 if picture.log else 0, 1)
    if picture.floor is not None and not picture.log:
        axes.set_ylim(bottom=picture.floor)
    if picture.roof is not None and not picture.log:
        axes.set_ylim(0, picture.roof)
    for axis, limits, most in ((axes.xaxis, axes.get_xlim(), 6), (axes.yaxis, axes.get_ylim(), 6)):
        if picture.log:
            axis.set_major_locator(FixedLocator(log_ticks(*limits)))
            axis.set_minor_locator(NullLocator())
        else:
            axis.set_major_locator(MaxNLocator(most, steps=[1, 2, 2.5, 5, 10]))


def log_ticks(low: float, high: float) -> list[float]:
    """About five round numbers between two, spread as a logarithmic axis wants them."""
    for digits in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 7)):
        found = [
            digit * 10.0**power
            for power in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
            for digit in digits
            if low <= digit * 10.0**power <= high
        ]
        if len(found) >= 4:
            return found[:: math.ceil(len(found) / 6)]
    from matplotlib.ticker import MaxNLocator

    return [float(tick) for tick in MaxNLocator(5).tick_values(low, high) if low <= tick <= high]


# PNG ----------------------------------------------------------------------------------------------------------------


def png(path: Path, pictures: Sequence[Picture]) -> Path:
    """The pictures side by side in one file of 300 dots per inch, with one legend below them."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    colours = {name: light for name, (light, _) in COLOURS.items()}
    families = families_for("".join(curve.label for picture in pictures for curve in picture.curves))
    with matplotlib.rc_context({"text.parse_math": False, "font.family": families, "font.size": 10.5}):
        figure = Figure(figsize=(4.6 * len(pictures), 3.7), dpi=_DPI, layout="constrained")
        FigureCanvasAgg(figure)
        handles: dict[str, Any] = {}
        for number, picture in enumerate(pictures, start=1):
            axes = figure.add_subplot(1, len(pictures), number)
            _draw(axes, picture, colours)
            _style_axes(axes, picture, colours)
            for line, label in zip(*axes.get_legend_handles_labels()):
                handles.setdefault(label, line)
        if handles:
            columns = min(len(handles), 2 * len(pictures))
            figure.legend([*handles.values()], [*handles], loc="outside lower center", ncols=columns, frameon=False)
        write_png(path, figure)
    return path
