"""An explanation as an HTML page: the text with each token coloured by its loss, then all the figures as a table.

One file, no script, nothing fetched; light or dark as the reader's system is. The colours are steps of one scale whose
lightness goes one way only, so that their order is seen with any colour vision and in grey; each is paired with a text
colour of enough contrast (WCAG AA, which a test works out). The steps are the same on every page: two pages compare.
"""

from bisect import bisect_right
from html import escape

from .scores import ExplainedToken, Explanation, show_probability

# Lower ends of the steps, in nats. A guess among 50,257 tokens costs 10.8, a coin 0.69.
LOSS_STEPS = (0.0, 0.5, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 10.0)
# (background, text) for each step. ColorBrewer's YlOrBr, and one from near the page's black to bright for dark.
LIGHT = (
    ("#ffffe5", "#1a1a1a"),
    ("#fff7bc", "#1a1a1a"),
    ("#fee391", "#1a1a1a"),
    ("#fec44f", "#1a1a1a"),
    ("#fe9929", "#1a1a1a"),
    ("#ec7014", "#000000"),
    ("#b64a06", "#ffffff"),
    ("#8c3504", "#ffffff"),
    ("#5c2305", "#ffffff"),
)
DARK = (
    ("#22222a", "#f2f2f2"),
    ("#332a26", "#f2f2f2"),
    ("#4a3220", "#f2f2f2"),
    ("#653d1a", "#ffffff"),
    ("#824a14", "#ffffff"),
    ("#b8660f", "#000000"),
    ("#dd8a2c", "#000000"),
    ("#f5b55e", "#000000"),
    ("#ffe3ae", "#000000"),
)


def page(explanation: Explanation, model: str = "") -> str:
    """The page, whole. `model` is named in it."""
    name = f" under {escape(model)}" if model else ""
    steps = "\n".join(
        f"<tr><th>{escape(label)}</th><td>{value}</td><td class=l>{escape(unit)}</td></tr>"
        for label, value, unit in explanation.steps()
    )
    rows = "\n".join(_row(number, token) for number, token in enumerate(explanation.tokens, start=1))
    return f"""<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Loss of each token{name}</title>
<style>{_style()}</style>
<h1>Loss of each token{name}</h1>
<p class="text" dir="auto">{_text(explanation)}</p>
<p class="legend">loss in nats per token: {_legend()}</p>
<p class="note">A token is coloured by its loss, -log of the probability that the model gave it after reading all
before it; hold the pointer over one for its figures. ␣ is a space, ⏎ a line break, ⇥ a tab, \\x1b a control character;
&lt;E4 B8&gt; are bytes of a character that several tokens spell, which stands above them.</p>
<h2>From probabilities to the loss</h2>
<table class="steps">
{steps}
</table>
<h2>Token by token</h2>
<div class="wide"><table>
<tr><th>#</th><th class=l>token</th><th>id</th><th>probability</th><th>rank</th><th>log-probability<br>(nats)</th>
<th>loss<br>(nats)</th><th class=l>likeliest here, with probabilities</th></tr>
{rows}
</table></div>
</html>
"""


def loss_step(loss: float) -> int:
    """Which of the `LOSS_STEPS` a loss lies in."""
    return max(0, bisect_right(LOSS_STEPS, loss) - 1)


def _text(explanation: Explanation) -> str:
    """The tokens in a row; those that spell a character together have it above them."""
    shown = []
    for token in explanation.tokens:
        if token.part == 1:
            shown.append(f'<span class="whole"><b>{escape(token.part_of)}</b><span>')
        shown.append(_span(token))
        if token.part is not None and token.part == token.num_parts:
            shown.append("</span></span>")
        shown.append("<br>" * token.text.count("⏎"))
    return "".join(shown)


def _span(token: ExplainedToken) -> str:
    step = "none" if token.loss is None else f"s{loss_step(token.loss)}"
    text = escape(token.text).replace("␣", "<i>␣</i>")
    return f'<span class="t {step}" title="{escape(_figures(token))}">{text}</span>'


def _figures(token: ExplainedToken) -> str:
    """What the pointer shows: a few lines of text."""
    lines = [f"{token.described}  (id {token.id})"]
    if token.loss is None:
        return "\n".join([*lines, "the first token: nothing before it to foresee it from"])
    lines.append(f"loss {token.loss:.4f} nats, probability {show_probability(token.probability)}, rank {token.rank:,}")
    lines.append("likeliest: " + ", ".join(f"{one.text} {one.probability:.3f}" for one in token.alternatives))
    return "\n".join(lines)


def _legend() -> str:
    ends = [*(f"{end:g}" for end in LOSS_STEPS[1:]), None]
    names = [f"{start:g} to {end}" if end else f"{start:g} or more" for start, end in zip(LOSS_STEPS, ends)]
    swatches = (f'<span class="t s{step}">{name}</span>' for step, name in enumerate(names))
    return " ".join([*swatches, '<span class="t none">first token, no loss</span>'])


def _row(number: int, token: ExplainedToken) -> str:
    cells = f'<td>{number}</td><td class="l tok"><bdi>{escape(token.described)}</bdi></td><td>{token.id}</td>'
    if token.loss is None:
        return f"<tr>{cells}<td></td><td></td><td></td><td></td><td class=l>the first: nothing before it</td></tr>"
    likeliest = " ".join(
        f"<span class=alt><bdi class=tok>{escape(one.text)}</bdi> {one.probability:.3f}</span>"
        for one in token.alternatives
    )
    return (
        f"<tr>{cells}<td>{show_probability(token.probability)}</td><td>{token.rank:,}</td>"
        f'<td>{token.log_probability:.4f}</td><td class="t s{loss_step(token.loss)}">{token.loss:.4f}</td>'
        f"<td class=l>{likeliest}</td></tr>"
    )


def _style() -> str:
    dark = "\n".join(_colours(DARK))
    light = "\n".join(_colours(LIGHT))
    return f"""
:root {{ color-scheme: light dark; --page: #ffffff; --ink: #1a1a1a; --faint: #595959; --line: #d5d5d5; }}
body {{ background: var(--page); color: var(--ink); max-width: 70rem; margin: 2rem auto; padding: 0 1rem;
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", "Noto Sans", "Noto Sans CJK SC",
  "PingFang SC", "Microsoft YaHei", sans-serif; }}
h1 {{ font-size: 1.4rem; }} h2 {{ font-size: 1.15rem; margin-top: 2rem; }}
.text {{ font-size: 1.15rem; line-height: 2.1; }}
.t {{ border-radius: 3px; }}
.text .t {{ display: inline-block; max-width: 100%; overflow-wrap: anywhere; unicode-bidi: isolate; line-height: 1.5;
  padding: 0 0.1em; margin-right: 2px; box-shadow: 0 0 0 1px var(--line); }}
.whole {{ display: inline-flex; flex-direction: column; align-items: center; vertical-align: bottom;
  margin: 0 5px 0.3em 0; line-height: 1.4; }}
.whole b {{ font-weight: normal; }} .whole .t {{ font-size: 0.8rem; }}
.t i {{ font-style: normal; opacity: 0.65; }}
.none {{ color: var(--faint); }}
.legend {{ font-size: 0.875rem; line-height: 2.2; }}
.legend .t {{ padding: 0.2em 0.5em; margin-left: 0.2em; box-shadow: 0 0 0 1px var(--line); white-space: nowrap; }}
.note {{ font-size: 0.875rem; color: var(--faint); max-width: 45rem; }}
.wide {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 0.9375rem; }}
th, td {{ padding: 0.2rem 0.7rem; text-align: right; vertical-align: top; border-bottom: 1px solid var(--line); }}
td.t {{ border-radius: 0; }}
th {{ font-weight: 600; }} .wide th {{ white-space: nowrap; }} .l, .steps th {{ text-align: left; }}
.tok {{ white-space: pre-wrap; font-family: ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, "Noto Sans CJK SC",
  monospace; overflow-wrap: anywhere; }}
td.tok {{ min-width: 9rem; }}
.alt {{ display: inline-block; margin-right: 1rem; }}
{light}
@media (prefers-color-scheme: dark) {{
:root {{ --page: #16161a; --ink: #eaeaea; --faint: #a9a9a9; --line: #3c3c44; }}
{dark}
}}
"""


def _colours(steps: tuple[tuple[str, str], ...]) -> list[str]:
    return [f".s{step} {{ background: {back}; color: {text}; }}" for step, (back, text) in enumerate(steps)]
