"""From logits to loss, for each token of a text: the six steps that the book prints in chapter 5.

Logits, their probabilities, those of the tokens that followed, the logarithms, their mean, and its negative: the loss,
whose exponential is the perplexity. `explain` keeps each step for each token, with the likeliest tokens there, and
compares the loss with that of `torch.nn.functional.cross_entropy`.
"""

from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..display import Shown
from ..errors import UserError
from ..evaluation import perplexity
from ..generation import refuse_broken_text, token_ids
from ..loading import num_positions
from ..probing import evaluating
from .token_text import aligned, show, show_token, spelled_together, token_bytes


@dataclass(frozen=True)
class Alternative:
    """A likely token at the place of another."""

    id: int
    text: str
    probability: float


@dataclass(frozen=True)
class ExplainedToken:
    """A token, and how well the model predicted it from all tokens before it.

    `text` is as token_text.py shows it. A token that is a part of a character is number `part` of the `num_parts`
    tokens that spell `part_of` together. `rank` 1 is the likeliest token. `loss` is `-log_probability`, in nats. The
    first token of a text has no figures: nothing predicts it.
    """

    id: int
    text: str
    part_of: str | None = None
    part: int | None = None
    num_parts: int | None = None
    probability: float | None = None
    rank: int | None = None
    log_probability: float | None = None
    loss: float | None = None
    alternatives: tuple[Alternative, ...] = ()

    @property
    def described(self) -> str:
        """`<E4>, 1/3 of 中`"""
        return f"{self.text}, {self.part}/{self.num_parts} of {self.part_of}" if self.part_of else self.text


@dataclass(frozen=True, repr=False)
class Explanation(Shown):
    """The tokens of a text and the steps from their log-probabilities to the loss.

    `sum` and `mean` are of the log-probabilities of all tokens but the first, in nats. The loss is `-mean`;
    `cross_entropy` is the same figure from torch's own function.
    """

    text: str
    tokens: tuple[ExplainedToken, ...]
    sum: float
    mean: float
    perplexity: float
    cross_entropy: float

    @property
    def loss(self) -> float:
        return 0.0 - self.mean  # no -0.0

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "loss": self.loss}

    def in_short(self) -> str:
        return f"{len(self.tokens)} tokens, loss {self.loss:.4f}, perplexity {self.perplexity:,.2f}"

    def describe(self) -> list[str]:
        return [self.table()]

    def table(self) -> str:
        """A line for each token with the likeliest tokens there, then the steps to the loss."""
        rows = [["token", "id", "probability", "rank", "log-prob.", "loss", "likeliest"]]
        for token in self.tokens:
            row = [token.described, str(token.id)]
            if token.loss is None:
                row += ["", "", "", "", "(the first: nothing before it)"]
            else:
                row += [show_probability(token.probability), f"{token.rank:,}"]
                row += [f"{token.log_probability:.4f}", f"{token.loss:.4f}"]
                row.append("  ".join(f"{one.text} {one.probability:.3f}" for one in token.alternatives))
            rows.append(row)
        return "\n".join([*aligned(rows, "<>>>>><"), "", *aligned(self.steps(), "<><")])

    def steps(self) -> list[tuple[str, str, str]]:
        """From the sum of the log-probabilities to the perplexity: name, figure, unit."""
        count = len(self.tokens) - 1
        return [
            ("sum of log-probabilities", f"{self.sum:.4f}", f"nats, {count:,} token{'s' * (count != 1)}"),
            ("mean", f"{self.mean:.4f}", "nats per token"),
            ("loss", f"{self.loss:.4f}", "nats per token, -mean"),
            ("perplexity", f"{self.perplexity:,.2f}", "exp(loss)"),
            ("cross_entropy", f"{self.cross_entropy:.4f}", "nats per token, torch's, from the logits"),
        ]


def explain(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str, top: int = 5) -> Explanation:
    """How well a model predicts each token of a text, and the `top` likeliest tokens there.

    Raises:
        UserError: the text is shorter than two tokens, longer than the model's window, or not UTF-8; or the model's
            logits are not finite.
    """
    refuse_broken_text("text", text)
    ids = token_ids(model, tokenizer, text)
    _check_length(model, tokenizer, ids)
    input_ids = torch.tensor([ids], device=model.device)
    with evaluating(model):
        logits = model(input_ids=input_ids, use_cache=False).logits[0, :-1].float().cpu()  # (time - 1, vocab)
    if not logits.isfinite().all():
        raise UserError("the model's logits are not finite numbers; its weights are damaged")
    targets = torch.tensor(ids[1:])
    log_probabilities = logits.log_softmax(dim=-1)
    of_targets = log_probabilities.gather(1, targets.unsqueeze(1))  # (time - 1, 1)
    ranks = (log_probabilities > of_targets).sum(dim=-1) + 1
    likeliest = log_probabilities.topk(min(top, logits.shape[-1]))
    tokens = _tokens(tokenizer, ids)
    for position, log_probability in enumerate(of_targets.flatten().tolist()):
        alternatives = zip(likeliest.indices[position].tolist(), likeliest.values[position].exp().tolist())
        tokens[position + 1] = replace(
            tokens[position + 1],
            probability=of_targets[position].exp().item(),
            rank=ranks[position].item(),
            log_probability=log_probability,
            loss=0.0 - log_probability,
            alternatives=tuple(Alternative(id, show_token(tokenizer, id), chance) for id, chance in alternatives),
        )
    mean = of_targets.mean(dtype=torch.float64).item()
    return Explanation(
        text=text,
        tokens=tuple(tokens),
        sum=of_targets.sum(dtype=torch.float64).item(),
        mean=mean,
        perplexity=perplexity(-mean),
        cross_entropy=cross_entropy(logits, targets).item(),
    )


def show_probability(probability: float) -> str:
    """`0.1234`, or `7.45e-05` where four places would show too little of it."""
    return f"{probability:.4f}" if probability >= 0.001 else f"{probability:.2e}"


def _check_length(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> None:
    if len(ids) < 2:
        raise UserError(
            f"it is {len(ids)} token{'s' * (len(ids) != 1)}; give at least 2: the second is predicted from the first",
            field="text",
        )
    window = num_positions(model.config)
    if window is not None and len(ids) > window:
        fits = len(tokenizer.decode(ids[:window]))
        raise UserError(
            f"it is {len(ids):,} tokens, and the model has {window:,} positions; give about its first {fits:,}"
            " characters, or evaluate the whole text",
            field="text",
        )


def _tokens(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> list[ExplainedToken]:
    parts = [token_bytes(tokenizer, token) for token in ids]
    tokens = [ExplainedToken(id, show(part) or f"<id {id}>") for id, part in zip(ids, parts)]
    for run in spelled_together(parts):
        if len(run) > 1:
            together = show(b"".join(parts[run.start : run.stop]))
            for part, index in enumerate(run, start=1):
                tokens[index] = replace(tokens[index], part_of=together, part=part, num_parts=len(run))
    return tokens
