"""The book's bar chart of the next token's probabilities under several temperatures, drawn for a real model.

Bars are what `generate()` samples from. An outline is the probability, without top-k and top-p, of a token that they
leave out. Dots are the draws. A character that no font of the machine has is written as `U+4E2D`; `missing_characters`
lists them.
"""

from typing import TYPE_CHECKING

from ..report import fonts
from ..report.html import PALETTE
from .decoding import Decoding, distribution, others
from .token_text import show

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# In this order their lightness changes from bar to bar.
_COLOURS = [PALETTE[name] for name in ("blue", "gold", "green", "sky", "vermilion", "purple")]


def chart(decoding: Decoding, top: int = 10) -> "Figure":
    """The `top` likeliest tokens and all others together, a bar for each setting; without pyplot's global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    ids = decoding.likeliest(top)
    labels = [_label(decoding.names(token)) for token in ids]
    if num_others := len(decoding.logits) - len(ids):
        labels.append(f"{num_others:,}\nothers")
    bar = 0.8 / len(decoding.settings)
    inches = min(24.0, max(7.0, 1.8 + len(labels) * max(0.42, 0.2 * len(decoding.settings))))
    figure = Figure(figsize=(inches, 5.4), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for index, (setting, counts, colour) in enumerate(zip(decoding.settings, decoding.counts, _COLOURS)):
        left = [place - 0.4 + bar * (index + 0.5) for place in range(len(labels))]
        name = f"temperature {setting.temperature:g}" if setting.temperature else "greedy"
        axes.bar(left, _with_others(setting.probabilities, ids), bar * 0.92, color=colour, label=name)
        if decoding.filters and setting.temperature:
            before = distribution(decoding.logits, setting.temperature).probabilities
            out = [(x, before[token].item()) for x, token in zip(left, ids) if not setting.kept[token]]
            if out:
                axes.bar(*zip(*out), bar * 0.92, fill=False, edgecolor=colour, linewidth=1.3, linestyle=":")
        if decoding.num_draws:
            shares = [count / decoding.num_draws for count in _with_others(counts, ids)]
            drawn = [(x, share) for x, share in zip(left, shares) if share]
            axes.plot(*zip(*drawn), "o", color="white", markeredgecolor="black", markersize=3.5, clip_on=False)
    title = _title(decoding.prompt)
    text = {"family": fonts.families_for("".join([*labels, title])), "parse_math": False}
    axes.set_title(title, loc="left", fontsize=11, **text)
    axes.set_xticks(
        range(len(labels)), labels, fontsize=10, rotation=45, rotation_mode="anchor", ha="right", va="top", **text
    )
    axes.tick_params(axis="x", length=0)
    axes.set(
        xlim=(-0.6, len(labels) - 0.4), ylim=(0, 1.02), xlabel="next token, likeliest first", ylabel="probability"
    )
    axes.grid(axis="y", alpha=0.25)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    _add_legend(figure, axes, decoding)
    return figure


def missing_characters(decoding: Decoding, top: int = 10) -> str:
    """What no font of this machine can draw of a chart's labels."""
    names = "".join(map(decoding.names, decoding.likeliest(top)))
    return fonts.missing_characters(names + _on_one_line(decoding.prompt))


def _add_legend(figure, axes, decoding: Decoding) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles, _ = axes.get_legend_handles_labels()
    if decoding.filters:
        outline = {"facecolor": "none", "edgecolor": "black", "linestyle": ":"}
        handles.append(Patch(**outline, label=f"left out by {decoding.filters}"))
    if decoding.num_draws:
        dot = {"color": "none", "marker": "o", "markerfacecolor": "white", "markeredgecolor": "black"}
        handles.append(Line2D([], [], **dot, markersize=3.5, label=f"share of {decoding.num_draws:,} draws"))
    columns = len(handles) if len(handles) <= 4 else 3
    figure.legend(handles=handles, loc="outside upper right", frameon=False, fontsize=9, ncols=columns)


def _with_others(values, ids: list[int]) -> list[float]:
    shown = values[ids].tolist()
    return shown if len(ids) == len(values) else [*shown, others(values, ids)]


def _title(prompt: str, longest: int = 40) -> str:
    """The end of a prompt, on one line."""
    text = fonts.drawable(_on_one_line(prompt))
    return f"after “{text if len(text) <= longest else '…' + text[1 - longest :]}”"


def _on_one_line(prompt: str) -> str:
    """Only a space at the end is shown as a sign: it matters."""
    return show(" ".join(prompt.split()).encode()).replace("␣", " ") + "␣" * prompt[-1:].isspace()


def _label(token: str, longest: int = 16) -> str:
    text = fonts.drawable(token)
    return text if len(text) <= longest else text[: longest - 1] + "…"
