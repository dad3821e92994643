"""What decoding does to the distribution of the next token: temperature, top-k and top-p on a real model.

This is what `generate()` samples from, computed by the same code: the logits are its own, temperature, top-k and top-p
are transformers' logits processors in its order, and a draw is its `torch.multinomial`. Tests compare the two.

`next_token_logits` is the one forward pass of a prompt. `distribution`, `count_draws` and `compare` work on its
logits. None of them changes torch's global random stream.
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

from ..display import Shown
from ..errors import UserError
from ..generation import (
    check_prompt,
    check_sampling,
    check_seed,
    encode_prompt,
    generate,
    plain_options,
    refuse_past_window,
)
from ..probing import evaluating
from .token_text import aligned

_NUMBERS_AT_ONCE = 1 << 20  # of a chunk of draws


@dataclass(frozen=True, repr=False)
class NextToken(Shown):
    """The distribution of the next token under one setting. Tensors are (vocab_size,), on the CPU.

    `probabilities` are float32 and sum to 1. `kept` is true where top-k and top-p keep a token; its probability may
    still be too small for float32, and so 0. Temperature 0 is greedy: the likeliest token has probability 1.
    """

    temperature: float
    top_k: int | None
    top_p: float | None
    probabilities: torch.Tensor
    kept: torch.Tensor

    def in_short(self) -> str:
        settings = f"temperature {self.temperature:g}, top-k {self.top_k}, top-p {self.top_p}"
        return f"{settings}: {int(self.kept.sum()):,} of {len(self.kept):,} tokens kept"


def next_token_logits(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str) -> torch.Tensor:
    """The logits (vocab_size,) from which `generate()` chooses the token after a prompt; float32, on the CPU.

    The model reads the end of a prompt that is longer than its window. What its generation config does without
    sampling is in the logits: a repetition penalty, forbidden tokens (-inf).

    Raises:
        UserError: an empty prompt, one too long for a model whose window does not slide, or logits that are NaN.
    """
    check_prompt(prompt)
    input_ids = encode_prompt(model, tokenizer, prompt)
    refuse_past_window(model, input_ids.shape[1] + 1, "prompt", "with the next token it makes")
    with evaluating(model):
        output = generate(
            model,
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
        UserError: a value that defines no distribution.
    """
    check_sampling(temperature, top_k, top_p)
    scores = logits.detach().float().cpu()
    if temperature == 0:
        kept = torch.arange(len(scores)) == scores.argmax()
        return NextToken(0.0, top_k, top_p, kept.float(), kept)
    # What `GenerationMixin._get_logits_processor` puts together for these values.
    processors = LogitsProcessorList([TemperatureLogitsWarper(float(temperature))])
    if top_k is not None:
        processors.append(TopKLogitsWarper(top_k))
    if top_p is not None and top_p < 1:
        processors.append(TopPLogitsWarper(top_p))
    scores = processors(None, scores.unsqueeze(0)).squeeze(0)
    return NextToken(float(temperature), top_k, top_p, scores.softmax(dim=-1), scores > -torch.inf)


def count_draws(probabilities: torch.Tensor, num_draws: int = 1000, seed: int = 123) -> torch.Tensor:
    """How often each token is drawn: (vocab_size,), int64.

    Each draw is one `torch.multinomial(probabilities, num_samples=1)`, as in `generate()` and in the book's loop, from
    a random stream of its own that starts at `seed`.
    """
    generator = torch.Generator().manual_seed(seed)
    counts = torch.zeros(len(probabilities), dtype=torch.int64)
    at_once = max(1, _NUMBERS_AT_ONCE // len(probabilities))  # rows take their numbers from the stream in turn
    for start in range(0, num_draws, at_once):
        rows = probabilities.expand(min(at_once, num_draws - start), -1)
        drawn = torch.multinomial(rows, num_samples=1, generator=generator)
        counts += torch.bincount(drawn.flatten(), minlength=len(probabilities))
    return counts


@dataclass(frozen=True, repr=False)
class Decoding(Shown):
    """The logits after a prompt under several settings.

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

    def in_short(self) -> str:
        temperatures = ", ".join(f"{setting.temperature:g}" for setting in self.settings)
        return f"{len(self.logits):,} tokens at temperature {temperatures}, {self.num_draws:,} draws each"

    def describe(self) -> list[str]:
        return [self.table()]

    def table(self, top: int = 10) -> str:
        """Each of the likeliest tokens with its probability and its draws under each setting; `-` where left out."""
        ids, vocab_size = self.likeliest(top), len(self.logits)
        columns = [
            ["token", *map(self.names, ids), f"{vocab_size - len(ids):,} others", "kept"],
            ["id", *map(str, ids), "", ""],
            ["logit", *(f"{self.logits[token]:.2f}" for token in ids), "", f"of {vocab_size:,}"],
        ]
        for setting, counts in zip(self.settings, self.counts):
            kept = [bool(setting.kept[token]) for token in ids]
            shown = [f"{setting.probabilities[token]:.4f}" if keeps else "-" for token, keeps in zip(ids, kept)]
            drawn = [f"{counts[token]:,}" if keeps else "-" for token, keeps in zip(ids, kept)]
            name = f"T={setting.temperature:g}" if setting.temperature else "greedy"
            columns.append([name, *shown, f"{others(setting.probabilities, ids):.4f}", f"{int(setting.kept.sum()):,}"])
            if self.num_draws:
                columns.append(["draws", *drawn, f"{others(counts, ids):,.0f}", ""])
        rows = [*zip(*columns)]
        if vocab_size == len(ids):
            del rows[-2]
        return "\n".join(aligned(rows, "<" + ">" * (len(columns) - 1)))

    def to_dict(self, top: int = 10) -> dict[str, Any]:
        """The same for programs. A token that the model's generation config forbids has the logit None, not -inf."""
        ids = self.likeliest(top)
        logits = self.logits[ids].tolist()
        return {
            "prompt": self.prompt,
            "vocabulary": len(self.logits),
            "seed": self.seed,
            "draws": self.num_draws,
            "tokens": [
                {"id": token, "text": self.names(token), "logit": logit if math.isfinite(logit) else None}
                for token, logit in zip(ids, logits)
            ],
            "settings": [
                {
                    "temperature": setting.temperature,
                    "top_k": setting.top_k,
                    "top_p": setting.top_p,
                    "kept": int(setting.kept.sum()),
                    "probabilities": setting.probabilities[ids].tolist(),
                    "draws": counts[ids].tolist(),
                    "others": {"probability": others(setting.probabilities, ids), "draws": int(others(counts, ids))},
                }
                for setting, counts in zip(self.settings, self.counts)
            ],
        }


def compare(
    logits: torch.Tensor,
    names: Callable[[int], str],
    prompt: str,
    temperatures: Sequence[float] = (0.1, 1.0, 5.0),
    top_k: int | None = None,
    top_p: float | None = None,
    num_draws: int = 1000,
    seed: int = 123,
) -> Decoding:
    """The distributions that these temperatures make of the logits after a prompt, each with draws of its own.

    The default temperatures are the book's.

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
    """Refuse settings of `compare` that cannot work, without logits."""
    for temperature in temperatures:
        check_sampling(temperature, top_k, top_p)
    if not 1 <= len(temperatures) <= 6:
        raise UserError(f"{len(temperatures)} of them; 1 to 6 can be told apart", field="temperature")
    if not 0 <= num_draws <= 1_000_000:
        raise UserError("must be 0 to 1,000,000", field="num_draws", value=num_draws)
    check_seed(seed)


def others(values: torch.Tensor, ids: list[int]) -> float:
    """The sum of all values but those of the given ids."""
    others = torch.ones(len(values), dtype=torch.bool)
    others[ids] = False
    return values[others].sum(dtype=torch.float64).item()
