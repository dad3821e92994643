"""What the demo's page has beside Gradio's controls: the bars of the next token, cards of written text, lines.

Whatever a person typed or a model wrote is escaped here.
"""

import html
import traceback
from collections.abc import Callable

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..errors import UserError
from ..explain.decoding import NextToken, distribution
from ..generation import Piece, context_length, encode_prompt, window_slides

_NUM_BARS = 15
NOTHING_YET = '<p class="facts">Write lets the model go on from the prompt.</p>'
NOT_BEGUN = "stopped before it began"


def distribution_html(
    logits: torch.Tensor,
    show: Callable[[int], str],
    temperature: float,
    top_k: int | None = None,
    top_p: float | None = None,
) -> str:
    """The likeliest tokens as bars: filled where they may be drawn, hatched and named where they were left out.

    A kept token's bar is the probability that it is drawn with; another's what it was before it was left out.
    """
    after, before = distribution(logits, temperature, top_k, top_p), distribution(logits, temperature or 1.0)
    ids = logits.topk(min(_NUM_BARS, len(logits))).indices.tolist()
    values = [(after if after.kept[token] else before).probabilities[token].item() for token in ids]
    scale = next((mark for mark in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5) if mark >= max(values) - 1e-6), 1.0)
    reasons = _why_left_out(logits, after, ids)
    rows = [_bar_html(token, show(token), value, why, scale) for token, value, why in zip(ids, values, reasons)]
    return (
        f'<div class="legend"><span class="kept"><i class="bar"></i> can be drawn</span>'
        f'<span class="cut"><i class="bar"></i> {"cut by top-k or top-p" if temperature else "not taken: greedy"}'
        f"</span><span>a full bar is {scale:.0%}</span></div>"
        f'<ol class="bars">{"".join(rows)}</ol><p class="facts">{_kept_in_words(after, ids, reasons)}.</p>'
    )


def _why_left_out(logits: torch.Tensor, after: NextToken, ids: list[int]) -> list[str]:
    """For each token why it cannot be drawn; nothing where it can be."""
    by_top_k = distribution(logits, after.temperature, after.top_k).kept

    def why(token: int) -> str:
        if after.kept[token]:
            return ""
        if logits[token] == -torch.inf:
            return "forbidden"
        if after.temperature == 0:
            return "not likeliest"
        return "cut: top-p" if by_top_k[token] else "cut: top-k"

    return [why(token) for token in ids]


def _bar_html(token: int, shown: str, value: float, why: str, scale: float) -> str:
    return (
        f'<li class="{"cut" if why else "kept"}" data-id="{token}">'
        f'<span class="token" title="id {token}">{html.escape(shown)}</span>'
        f'<span class="track"><span class="bar" style="width:{100 * value / scale:.2f}%"></span></span>'
        f'<span class="value">{_percent(value)}</span><span class="why">{why}</span></li>'
    )


def _kept_in_words(after: NextToken, ids: list[int], reasons: list[str]) -> str:
    """How many tokens can be drawn, what those not among `ids` have together, and why some are left out."""
    num_tokens, num_kept = len(after.kept), int(after.kept.sum())
    words = [f"{num_kept:,} of {num_tokens:,} tokens can be drawn"]
    if num_kept > int(after.kept[ids].sum()):
        others = 1 - after.probabilities[ids].sum().item()
        words.append(f"those not shown: {_percent(max(0.0, others))} together")
    if num_kept < num_tokens:
        words.append("a hatched bar is how likely a token was before it was left out")
    if "forbidden" in reasons:
        words.append("forbidden is what the model's generation config rules out")
    return "; ".join(words)


def _percent(value: float) -> str:
    return f"{value:.1%}" if value >= 0.001 or value == 0 else "<0.1%"


def card_html(name: str, prompt: str, state: str = "waiting", piece: Piece | None = None, problem: str = "") -> str:
    """A checkpoint's text as far as it is written, `state` in words, and HTML about what went wrong."""
    num_tokens = f"{_tokens(piece.num_tokens)} · " if piece else ""
    cursor = '<span class="cursor">▍</span>' if state == "writing" else ""
    return (
        f'<article class="written" data-state="{state}"><header><b>{html.escape(name)}</b>'
        f'<span class="facts">{num_tokens}{state}</span></header>'
        f'<div class="paper"><p><span class="given">{html.escape(prompt)}</span>'
        f'<span class="new">{html.escape(piece.text if piece else "")}</span>{cursor}</p></div>{problem}</article>'
    )


def cards_html(cards: dict[str, str]) -> str:
    return f'<div class="side-by-side">{"".join(cards.values())}</div>'


def problem_html(error: Exception) -> str:
    """An error as a line in the page; what is no fault of the person before it goes to the terminal whole, too."""
    if isinstance(error, UserError):
        line = str(error.renamed(_LABELS))
    else:
        traceback.print_exception(error)
        line = f"Something went wrong: {type(error).__name__}: {error}; the terminal says more"
    return f'<p class="problem" role="alert"><b aria-hidden="true">!</b> {html.escape(line)}</p>'


_LABELS = {
    "prompt": "Prompt",
    "max_new_tokens": "New tokens",
    "temperature": "Temperature",
    "top_k": "Top-k",
    "top_p": "Top-p",
    "seed": "Seed",
}


def facts_of(model: PreTrainedModel) -> str:
    context = context_length(model)
    facts = [f"{model.num_parameters():,} parameters", f"vocabulary {vocab_size(model):,}"]
    facts += [f"context length {context:,}"] if context is not None else []
    return " · ".join([*facts, model.device.type])


def counts_html(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str) -> str:
    num_tokens, context = encode_prompt(model, tokenizer, prompt).shape[1] if prompt else 0, context_length(model)
    words = [_tokens(num_tokens)]
    if context is not None:
        words.append(f"context length {context:,}")
        if num_tokens > context:
            seen = f"the model sees the last {context:,} of them"
            words.append(seen if window_slides(model) else "longer than the model's context")
    return f'<p class="facts">{"; ".join(words)}</p>'


def _tokens(count: int) -> str:
    return f"{count:,} token{'' if count == 1 else 's'}"


def vocab_size(model: PreTrainedModel) -> int:
    return model.config.get_text_config().vocab_size


# Fonts of the machine; for Chinese, where several have a character, those with its shapes. Blue and grey are told
# apart by lightness, and a cut token by hatching and words besides.
FONTS = ("system-ui", "-apple-system", "Segoe UI", "Noto Sans", "Noto Sans CJK SC", "PingFang SC", "sans-serif")
MONO_FONTS = (
    "ui-monospace",
    "Menlo",
    "Consolas",
    "DejaVu Sans Mono",
    "Noto Sans Mono CJK SC",
    "Noto Sans CJK SC",
    "monospace",
)
CSS = """
.gradio-container { --bar: #0072B2; --gone: #5b6472; --faint: #586170; --track: #eef1f5;
  --alarm: #9a3412; --alarm-fill: #fff4e5; }
.dark, .dark .gradio-container { --bar: #56B4E9; --gone: #a9b2bf; --faint: #b4bcc8; --track: #2b3340;
  --alarm: #ffd7a8; --alarm-fill: #43290c; }
.gradio-container { --body-text-color-subdued: var(--faint); --block-info-text-color: var(--faint); }
h1.model { font-size: 1.5rem; font-weight: 600; margin: 0; overflow-wrap: anywhere; }
h2.part { font-size: 1.15rem; font-weight: 600; margin: 0; }
#of-what { align-items: center; flex-wrap: wrap; }
#of-what > * { min-width: min(100%, 11rem) !important; }
.facts { color: var(--faint); font-size: .95rem; margin: .2rem 0; }
ol.bars { list-style: none; margin: .4rem 0; padding: 0; display: grid; column-gap: .6rem;
  grid-template-columns: fit-content(9rem) 1fr 3.6rem auto; }
ol.bars li { display: grid; grid-column: 1 / -1; grid-template-columns: subgrid; align-items: center; margin: 0;
  padding: .12rem 0; font-size: 1rem; line-height: 1.4; }
.token { font-family: var(--font-mono); text-align: right; overflow: hidden; text-overflow: ellipsis;
  white-space: nowrap; }
.track { background: var(--track); height: 1.05rem; border-radius: 2px; }
input[type=range]::-webkit-slider-thumb { border: 2px solid var(--bar) !important; }
.bar { display: block; height: 100%; min-width: 1px; border-radius: 2px; box-sizing: border-box; }
.kept .bar { background: var(--bar); }
.cut .bar { border: 1.5px dashed var(--gone);
  background: repeating-linear-gradient(135deg, transparent 0 4px, var(--gone) 4px 5px); }
.cut .token, .cut .value, .cut .why { color: var(--faint); }
.value { text-align: right; font-variant-numeric: tabular-nums; }
.why { font-size: .875rem; white-space: nowrap; }
.legend { display: flex; flex-wrap: wrap; gap: .3rem 1.4rem; font-size: .95rem; }
.legend .bar { display: inline-block; width: 1.8rem; height: .8rem; }
.side-by-side { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 17rem), 1fr)); gap: 1rem; }
.written { border: 1px solid var(--border-color-primary); border-radius: 6px; padding: .8rem 1rem;
  background: var(--background-fill-primary); }
.written header { display: flex; flex-wrap: wrap; justify-content: space-between; gap: 0 1rem; }
.paper p { white-space: pre-wrap; overflow-wrap: anywhere; font-size: 1.05rem; line-height: 1.6; margin: .4rem 0 0; }
.paper { max-height: 26rem; overflow-y: auto; margin-top: .4rem; }
[data-state=writing] .paper { display: flex; flex-direction: column-reverse; } /* stays at what is being written */
.given { color: var(--faint); }
.cursor { color: var(--bar); }
.problem { border-left: 4px solid var(--alarm); background: var(--alarm-fill); color: var(--alarm);
  padding: .6rem .9rem; margin: 0; font-size: 1rem; }
.written .problem { margin-top: .6rem; overflow-wrap: anywhere; }
@media (max-width: 640px) {
  ol.bars { grid-template-columns: fit-content(5.5rem) 1fr 3.4rem; }
  .why { grid-column: 2 / 4; margin-top: -.3rem; }
  .why:empty { display: none; }
}
"""
