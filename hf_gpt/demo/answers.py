"""What the demo shows for a prompt and settings: the bars of the next token, and text as it is generated.

Nothing is computed in a way of its own. Text is `generation.stream_text`, bars are `explain.decoding.distribution` on
the logits of one forward pass for each prompt. There is no Gradio here: page.py connects this to its controls.
"""

import collections
import functools
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..checkpoint import checkpoints, load_model, pointed, resolve_model, step_of
from ..errors import UserError
from ..explain.decoding import distribution, next_token_logits
from ..explain.token_text import show_token
from ..generation import check_request, encode_prompt, stream_text, window_slides
from ..loading import num_positions
from ..report.html import render
from ..storage import local_path

MOST_NEW_TOKENS = 512
LONGEST_PROMPT = 100_000  # characters
LABELS = {
    "prompt": "Prompt",
    "temperature": "Temperature",
    "top_k": "Top-k",
    "top_p": "Top-p",
    "max_new_tokens": "New tokens",
    "seed": "Seed",
    "checkpoints": "Checkpoints",
}
_NUM_BARS = 15


def stages_of(model: str) -> dict[str, str]:
    """The models that a MODEL is shown as, by name, oldest first: itself, or up to five checkpoints of a run.

    Of more than five they are the oldest, the newest and those at the quarters between; the best one takes the place
    of the one between that it is nearest to.

    Raises:
        UserError: as `resolve_model`.
    """
    best = resolve_model(model)
    found = checkpoints(local_path(model))
    if len(found) < 2:
        return {Path(best).resolve().name if Path(best).is_dir() else best: best}
    shown = {found[round(part * (len(found) - 1) / 4)] for part in range(5)} if len(found) > 4 else set(found)
    named = pointed(model, "best")
    if named is not None and named not in shown:
        inner = sorted(shown - {found[0], found[-1]}, key=lambda one: abs(step_of(one) - step_of(named)))
        shown = shown - set(inner[:1]) | {named}
    return {f"step {step_of(path):,}" + " (best)" * (path == named): str(path) for path in sorted(shown, key=step_of)}


class Answers:
    """The answers of the page's models, one of which is loaded at once and the others when they are needed.

    Raises:
        UserError: the model cannot be loaded.
    """

    def __init__(self, model: str):
        self.stages = stages_of(model)
        self.first = next((name for name in self.stages if "best" in name), list(self.stages)[-1])
        self._models = _Models(self.stages)
        self.first_model, _ = self._models[self.first]
        self._logits = functools.lru_cache(maxsize=32)(
            lambda name, prompt: next_token_logits(*self._models[name], prompt)
        )

    def facts(self) -> str:
        """A line about the model."""
        context = num_positions(self.first_model.config)
        facts = [f"{self.first_model.num_parameters():,} parameters", f"vocabulary {self.vocab_size:,}"]
        facts += [f"context length {context:,}"] if context is not None else []
        return " · ".join([*facts, self.first_model.device.type])

    @property
    def vocab_size(self) -> int:
        return self.first_model.config.get_text_config().vocab_size

    def bars(self, prompt: str, name: str, temperature: Any, top_k: Any, top_p: Any) -> str:
        """The likeliest next tokens as HTML: filled bars can be drawn, hatched ones are left out and say why.

        Whatever goes wrong is a line in place of them.
        """
        try:
            settings = _decoding(temperature, top_k, top_p)
            _refuse_long(prompt)
            logits = self._logits(name, prompt)
            model, tokenizer = self._models[name]
            length = _length_in_words(model, tokenizer, prompt)
            return bars_html(logits, functools.partial(show_token, tokenizer), length, **settings)
        except Exception as error:
            return render("demo/templates/bars.html", problem=problem(error))

    def texts(
        self,
        prompt: str,
        chosen: Sequence[str],
        temperature: Any,
        top_k: Any,
        top_p: Any,
        max_new_tokens: Any,
        seed: Any,
    ) -> Iterator[dict[str, tuple[str, str]]]:
        """The text and the state of each chosen checkpoint, by name, again and again while they are generated.

        They are generated one after the other. One that fails says so, and the next one follows.

        Raises:
            UserError: the request cannot work.
        """
        settings = _decoding(temperature, top_k, top_p)
        settings["max_new_tokens"] = _whole("max_new_tokens", max_new_tokens, MOST_NEW_TOKENS)
        settings["seed"] = _whole("seed", seed)
        _refuse_long(prompt)
        check_request(prompt, **settings)
        texts = {name: (prompt, "waiting") for name in self.stages if name in chosen}
        if not texts:
            raise UserError("none is chosen; tick at least one", field="checkpoints")
        for name in texts:
            try:
                texts[name] = prompt, "loading"
                yield texts
                for piece in stream_text(*self._models[name], prompt, **settings):
                    texts[name] = prompt + piece.text, f"{piece.num_tokens:,} tokens …"
                    yield texts
                ended = " · end of the text" * (piece.num_tokens < settings["max_new_tokens"])
                texts[name] = texts[name][0], f"{piece.num_tokens:,} tokens{ended}"
            except Exception as error:
                texts[name] = texts[name][0], f"failed: {problem(error)}"
            yield texts


class _Models:
    """Models by name, loaded when first used. The last used ones stay while they fit into half of the memory that was
    free at the start."""

    def __init__(self, stages: dict[str, str]):
        self._stages = stages
        self._loaded: collections.OrderedDict[str, tuple[PreTrainedModel, PreTrainedTokenizerBase]]
        self._loaded = collections.OrderedDict()
        self._lock = threading.Lock()
        self._budget = psutil.virtual_memory().available // 2  # bytes

    def __getitem__(self, name: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        with self._lock:
            if name not in self._loaded:
                self._loaded[name] = load_model(self._stages[name])
            self._loaded.move_to_end(name)
            while len(self._loaded) > 1 and self._num_bytes() > self._budget:
                self._loaded.popitem(last=False)
            return self._loaded[name]

    def _num_bytes(self) -> int:
        return sum(model.get_memory_footprint() for model, _ in self._loaded.values())


def bars_html(
    logits: torch.Tensor,
    show: Callable[[int], str],
    length: str,
    temperature: float,
    top_k: int | None = None,
    top_p: float | None = None,
) -> str:
    """A kept token's bar is the probability that it is drawn with; another's what it was before it was left out."""
    after, before = distribution(logits, temperature, top_k, top_p), distribution(logits, temperature or 1.0)
    by_top_k = distribution(logits, temperature, top_k).kept
    ids = logits.topk(min(_NUM_BARS, len(logits))).indices.tolist()
    values = [(after if after.kept[token] else before).probabilities[token].item() for token in ids]
    scale = next((mark for mark in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5) if mark >= max(values) - 1e-6), 1.0)

    def why_left_out(token: int) -> str:
        if after.kept[token]:
            return ""
        if logits[token] == -torch.inf:
            return "forbidden"
        if temperature == 0:
            return "not likeliest"
        return "cut: top-p" if by_top_k[token] else "cut: top-k"

    bars = [
        {
            "id": token,
            "text": show(token),
            "percent": _percent(value),
            "width": 100 * value / scale,
            "why": why_left_out(token),
        }
        for token, value in zip(ids, values)
    ]
    return render(
        "demo/templates/bars.html",
        problem="",
        length=length,
        bars=bars,
        scale=scale,
        left_out="cut by top-k or top-p" if temperature else "not taken: greedy",
        num_kept=int(after.kept.sum()),
        num_tokens=len(logits),
        num_shown=int(after.kept[ids].sum()),
        others=_percent(max(0.0, 1 - after.probabilities[ids].sum().item())),
    )


def _percent(value: float) -> str:
    return f"{value:.1%}" if value >= 0.001 or value == 0 else "<0.1%"


def problem(error: Exception) -> str:
    """An error as one line, in the words of the page; a bug's traceback goes to the terminal."""
    if isinstance(error, UserError):
        return str(error.renamed(LABELS))
    traceback.print_exception(error)
    return f"{type(error).__name__}: {error}; the terminal says more"


def _length_in_words(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str) -> str:
    """How long a prompt is, and what of it the model sees."""
    num_tokens, context = encode_prompt(model, tokenizer, prompt).shape[1], num_positions(model.config)
    words = [f"{num_tokens:,} token{'s' * (num_tokens != 1)}"]
    if context is not None:
        words.append(f"context length {context:,}")
        if num_tokens > context and window_slides(model):
            words.append(f"the model sees the last {context:,} of them")
    return "; ".join(words)


def _refuse_long(prompt: str) -> None:
    if len(prompt) > LONGEST_PROMPT:
        raise UserError(f"it has {len(prompt):,} characters; give at most {LONGEST_PROMPT:,}", field="prompt")


def _decoding(temperature: Any, top_k: Any, top_p: Any) -> dict[str, Any]:
    """The values of the sliders: top-k at 0 and top-p at 1 are off."""
    top_p = _number("top_p", top_p)
    return {
        "temperature": _number("temperature", temperature),
        "top_k": _whole("top_k", top_k) or None,
        "top_p": None if top_p == 1 else top_p,
    }


def _number(field: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise UserError("it is empty; give a number", field=field) from None


def _whole(field: str, value: Any, most: int = 2**63 - 1) -> int:
    number = _number(field, value)
    if not 0 <= number <= most or number != int(number):
        raise UserError(f"must be a whole number from 0 to {most:,}", field=field, value=number)
    return int(number)
