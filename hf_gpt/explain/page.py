"""An explanation as an HTML page: the text with each token coloured by its loss, then all figures as a table.

The lightness of the colours only rises or only falls with the loss, so their order is seen with any colour vision and
in grey. The text on each has enough contrast (WCAG AA; a test computes it). All pages have the same steps.
"""

from bisect import bisect_right

from ..report.html import render
from .scores import Explanation, show_probability

# Lower ends of the steps, in nats. A guess among 50,257 tokens costs 10.8, a coin 0.69.
LOSS_STEPS = (0.0, 0.5, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 10.0)
# A colour for each step, and that of the text on it. ColorBrewer's YlOrBr, and a scale from near black for dark pages.
LIGHT = ["#ffffe5", "#fff7bc", "#fee391", "#fec44f", "#fe9929", "#ec7014", "#b64a06", "#8c3504", "#5c2305"]
LIGHT_TEXT = 6 * ["#000"] + 3 * ["#fff"]
DARK = ["#22222a", "#332a26", "#4a3220", "#653d1a", "#824a14", "#b8660f", "#dd8a2c", "#f5b55e", "#ffe3ae"]
DARK_TEXT = 5 * ["#fff"] + 4 * ["#000"]


def page(explanation: Explanation, model: str = "") -> str:
    """The whole page; `model` is the name that it shows."""
    return render(
        "explain/templates/page.html",
        title="Loss of each token",
        subtitle=f"of a text under {model}" if model else "",
        explanation=explanation,
        loss_steps=LOSS_STEPS,
        loss_step=loss_step,
        show_probability=show_probability,
        light=[*zip(LIGHT, LIGHT_TEXT)],
        dark=[*zip(DARK, DARK_TEXT)],
    )


def loss_step(loss: float) -> int:
    """Which of the `LOSS_STEPS` a loss lies in."""
    return max(0, bisect_right(LOSS_STEPS, loss) - 1)
