"""What decoding does to the distribution of the next token: temperature, top-k and top-p on a real model.

The one idea: nothing is computed a second time in another way. The logits are those that `generate()` comes to the
choice with, temperature, top-k and top-p are transformers' own logits processors in the order in which `generate()`
applies them, and a draw is the `torch.multinomial` that it makes. So what is shown is what a model would do; a test
holds it to the scores that `generate()` returns.

`next_token_logits` is the forward pass, once for a prompt. Everything after it works on one tensor of logits, without
the model, in well under a millisecond; only the draws take longer. No function touches the global random stream.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import (
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from ..errors import UserError
from ..evaluation import evaluating
from ..generation import check_prompt, check_sampling, check_seed, encode_prompt, plain_options, refuse_past_window
from .token_text import aligned

BOOK_TEMPERATURES = (0.1, 1.0, 5.0)
_NUMBERS_AT_ONCE = 1 << 20  # of a chunk of draws


@dataclass(frozen=True)
class NextToken:
    """The distribution that one setting of decoding draws the next token from. Tensors are (vocab_size,), on the CPU.

    `probabilities` are float32 and sum to 1. `kept` tells what top-k and top-p leave in; a token may be kept and have
    the probability 0, where float32 holds nothing smaller. Temperature 0 is greedy: the likeliest token has it all.
    """

    temperature: float
    top_k: int | None
    top_p: float | None
    probabilities: torch.Tensor
    kept: torch.Tensor

    @property
    def name(self) -> str:
        return f"T={self.temperature:g}" if self.temperature else "greedy"


def next_token_distribution(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> NextToken:
    """What `generate_text` draws the first token after a prompt from.

    Raises:
        UserError: an empty prompt, or a value that no distribution can be made with.
    """
    check_sampling(temperature, top_k, top_p)
    return distribution(next_token_logits(model, tokenizer, prompt), temperature, top_k, top_p)


def next_token_logits(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str) -> torch.Tensor:
    """The logits (vocab_size,) that `generate()` chooses the token after a prompt by; float32, on the CPU.

    They come out of `generate()` itself. So a prompt longer than the window is seen through the window, and what a
    model's own generation config adds without sampling (a repetition penalty, forbidden tokens) is in them.

    Raises:
        UserError: an empty prompt, one too long for a model whose window does not slide, or logits that are no
            numbers. (-inf is one: a token that the generation config forbids.)
    """
    check_prompt(prompt)
    input_ids = encode_prompt(model, tokenizer, prompt)
    refuse_past_window(model, input_ids.shape[1] + 1, "prompt", "with the next token it makes")
    with evaluating(model):
        output = model.generate(
            input_ids,
            max_new_tokens=1,
            do_sample=False,
            output_scores=True,
            return_dict_in_generate=True,
            **plain_options(tokenizer, input_ids),
        )
    logits = output.scores[0][0].float().cpu()
    if (logits.isnan() | (logits == torch.inf)).any():
        raise UserError("the model's logits are not finite numbers; its weights are damaged")
    return logits


def distribution(
    logits: torch.Tensor, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None
) -> NextToken:
    """Logits (vocab_size,) -> probabilities, as `generate()` makes them.

    Raises:
        UserError: a value that no distribution can be made with.
    """
    check_sampling(temperature, top_k, top_p)
    scores = logits.detach().float().cpu()
    if temperature == 0:
        kept = torch.zeros(len(scores), dtype=torch.bool)
        kept[scores.argmax()] = True
        return NextToken(0.0, top_k, top_p, kept.float(), kept)
    scores = _processors(temperature, top_k, top_p)(None, scores.unsqueeze(0)).squeeze(0)
    return NextToken(float(temperature), top_k, top_p, scores.softmax(dim=-1), scores > -torch.inf)


def _processors(temperature: float, top_k: int | None, top_p: float | None) -> LogitsProcessorList:
    """What `generate(do_sample=True)` puts together for these values (`GenerationMixin._get_logits_processor`)."""
    processors = LogitsProcessorList()
    if temperature != 1:
        processors.append(TemperatureLogitsWarper(float(temperature)))
    if top_k is not None:
        processors.append(TopKLogitsWarper(top_k))
    if top_p is not None and top_p < 1:
        processors.append(TopPLogitsWarper(top_p))
    return processors


def count_draws(probabilities: torch.Tensor, num_draws: int = 1000, seed: int = 123) -> torch.Tensor:
    """How often each token comes in so many draws: (vocab_size,), int64.

    Each draw is one `torch.multinomial(probabilities, num_samples=1)`, as in `generate()` and in the book's loop, from
    a stream of its own that begins at `seed`.
    """
    generator = torch.Generator().manual_seed(seed)
    counts = torch.zeros(len(probabilities), dtype=torch.int64)
    at_once = max(1, _NUMBERS_AT_ONCE // len(probabilities))  # rows, which take their numbers from the stream in turn
    for start in range(0, num_draws, at_once):
        rows = probabilities.expand(min(at_once, num_draws - start), -1)
        drawn = torch.multinomial(rows, num_samples=1, generator=generator)
        counts += torch.bincount(drawn.flatten(), minlength=len(probabilities))
    return counts


@dataclass(frozen=True)
class Decoding:
    """One tensor of logits under several settings, to be shown: as `table()`, as `to_dict()`, as a picture
    (`next_token_chart.chart`).

    `names` gives the text to show for a token id; `counts[i]` are the draws under `settings[i]`.
    """

    prompt: str
    logits: torch.Tensor
    names: Callable[[int], str]
    settings: tuple[NextToken, ...]
    counts: tuple[torch.Tensor, ...]
    num_draws: int
    seed: int

    @property
    def filters(self) -> str:
        """`top-k 5, top-p 0.9`, or nothing."""
        top_k, top_p = self.settings[0].top_k, self.settings[0].top_p
        words = [f"top-k {top_k}"] if top_k is not None else []
        return ", ".join([*words, f"top-p {top_p:g}"] if top_p is not None else words)

    def likeliest(self, top: int) -> list[int]:
        """Token ids by falling logit. No temperature changes their order."""
        return self.logits.topk(min(top, len(self.logits))).indices.tolist()

    def _logit(self, token: int) -> float | None:
        """None for a token that the model's generation config forbids: JSON has no -inf."""
        logit = self.logits[token].item()
        return logit if math.isfinite(logit) else None

    def table(self, top: int = 10) -> str:
        """Each of the likeliest tokens with its probability and its draws under each setting; `-` where left out."""
        ids = self.likeliest(top)
        rows = [["token", "id", "logit"]]
        rows += [[self.names(token), str(token), f"{self.logits[token]:.2f}"] for token in ids]
        vocab = len(self.logits)
        if vocab > len(ids):
            rows.append([f"{vocab - len(ids):,} others", "", ""])
        kept = ["kept", "", f"of {vocab:,}"]
        for setting, counts in zip(self.settings, self.counts):
            cells = [[setting.name, "draws"]]
            for token in ids:
                is_kept = bool(setting.kept[token])
                cells.append([f"{setting.probabilities[token]:.4f}", f"{counts[token]:,}"] if is_kept else ["-", "-"])
            if vocab > len(ids):
                cells.append([f"{_left(setting.probabilities, ids):.4f}", f"{int(_left(counts, ids)):,}"])
            for row, cell in zip(rows, cells):
                row.extend(cell if self.num_draws else cell[:1])
            kept.extend([f"{int(setting.kept.sum()):,}", ""] if self.num_draws else [f"{int(setting.kept.sum()):,}"])
        return "\n".join(aligned([*rows, kept], "<" + ">" * (len(kept) - 1)))

    def to_dict(self, top: int = 10) -> dict[str, Any]:
        """The same for programs."""
        ids = self.likeliest(top)
        return {
            "prompt": self.prompt,
            "vocabulary": len(self.logits),
            "seed": self.seed,
            "draws": self.num_draws,
            "tokens": [{"id": token, "text": self.names(token), "logit": self._logit(token)} for token in ids],
            "settings": [
                {
                    "temperature": setting.temperature,
                    "top_k": setting.top_k,
                    "top_p": setting.top_p,
                    "kept": int(setting.kept.sum()),
                    "probabilities": setting.probabilities[ids].tolist(),
                    "draws": counts[ids].tolist(),
                    "others": {
                        "probability": _left(setting.probabilities, ids),
                        "draws": int(_left(counts, ids)),
                    },
                }
                for setting, counts in zip(self.settings, self.counts)
            ],
        }


def compare(
    logits: torch.Tensor,
    names: Callable[[int], str],
    prompt: str,
    *,
    temperatures: Sequence[float] = BOOK_TEMPERATURES,
    top_k: int | None = None,
    top_p: float | None = None,
    num_draws: int = 1000,
    seed: int = 123,
) -> Decoding:
    """Logits under several temperatures, each with `num_draws` draws from a stream that begins at `seed`.

    Raises:
        UserError: a value that cannot work.
    """
    check_settings(temperatures, top_k, top_p, num_draws, seed)
    settings = tuple(distribution(logits, temperature, top_k, top_p) for temperature in temperatures)
    counts = tuple(count_draws(setting.probabilities, num_draws, seed) for setting in settings)
    return Decoding(prompt, logits.float().cpu(), names, settings, counts, num_draws, seed)


def check_settings(
    temperatures: Sequence[float], top_k: int | None, top_p: float | None, num_draws: int, seed: int
) -> None:
    """Refuse, in one line, what cannot be compared."""
    for temperature in temperatures:
        check_sampling(temperature, top_k, top_p)
    if not 1 <= len(temperatures) <= 6:
        raise UserError(f"{len(temperatures)} of them; 1 to 6 can be told apart", field="temperature")
    if not 0 <= num_draws <= 1_000_000:
        raise UserError("must be 0 to 1,000,000", field="num_draws", value=num_draws)
    check_seed(seed)


def _left(values: torch.Tensor, ids: list[int]) -> float:
    """The sum of all values but those of the given ids."""
    others = torch.ones(len(values), dtype=torch.bool)
    others[ids] = False
    return values[others].sum(dtype=torch.float64).item()
