"""Loss, perplexity and bits per byte.

Two questions, one measure (mean nats per target token). While a run trains, `loss_on_windows` looks at the first
windows of a token store: which ones depends on the corpus, the tokenizer and the context alone, never on the batch
size or the number of processes, so the losses of different runs compare. For a finished model, `evaluate_tokens`
scores a whole text, every token but the first exactly once, with as much context before each as the stride allows
(text_evaluation.py finds the text).

Both sum the loss of each token in float64; both leave training's random streams untouched, since a model in evaluation
mode draws nothing.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .data.batches import IGNORED, Windows
from .data.byte_counts import bits_per_byte, byte_sizes, num_bytes
from .display import Shown
from .loading import num_positions
from .loss import CausalLMLoss
from .probing import evaluating

# Tokens a forward pass takes: fixed, so that a loss never depends on the batch size somebody trains with.
_TOKENS_AT_ONCE = 2048


@dataclass(frozen=True, repr=False)
class Evaluation(Shown):
    """How well a model predicts a text.

    `loss` is in nats per scored token, `perplexity` is its exponential, `bits_per_byte` divides the bits of all scored
    tokens by their UTF-8 bytes, which makes models with different tokenizers comparable.
    """

    loss: float
    perplexity: float
    bits_per_byte: float
    tokens: int
    scored_tokens: int
    bytes: int
    context_length: int
    stride: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def in_short(self) -> str:
        figures = f"loss {self.loss:.4f}, perplexity {self.perplexity:.2f}, {self.bits_per_byte:.4f} bits per byte"
        return f"{figures}, {self.scored_tokens:,} tokens scored"


def perplexity(loss: float) -> float:
    """`exp(loss)`; infinite where a float cannot hold it."""
    return math.exp(loss) if loss < 709 else math.inf


def loss_on_windows(
    loss: nn.Module, windows: Windows, tokens: int | None = None, accelerator: Accelerator | None = None
) -> float:
    """Mean loss over the first windows of a store, as many as `tokens` target tokens fill (None: all of them).

    `loss` is a `CausalLMLoss`, as it is or prepared by `accelerator`, whose processes each take a share of the windows
    and all get the same result.
    """
    count = _num_windows(windows, tokens)
    rank, processes = (accelerator.process_index, accelerator.num_processes) if accelerator else (0, 1)
    device = accelerator.device if accelerator else next(loss.parameters()).device
    at_once = max(1, _TOKENS_AT_ONCE // windows.context_length)
    total = torch.zeros((), dtype=torch.float64)
    with evaluating(loss):
        # Each process makes the same number of passes, of one shape: under FSDP each pass is a collective.
        for start in range(0, count, at_once * processes):
            mine = np.arange(start + rank, min(start + at_once * processes, count), processes)
            batch = {name: tensor.to(device) for name, tensor in windows.batch(mine, at_once).items()}
            total += loss(**batch, reduction="none").double().sum().cpu()
    if accelerator is not None:
        widest = torch.float32 if device.type == "mps" else torch.float64
        total = accelerator.reduce(total.to(device, dtype=widest), reduction="sum").cpu()
    return total.item() / (count * windows.context_length)


def targets_and_bytes(
    windows: Windows, tokenizer: PreTrainedTokenizerBase, tokens: int | None = None
) -> tuple[int, int] | None:
    """The targets that `loss_on_windows` looks at and their UTF-8 bytes, if they can be counted (byte_counts.py)."""
    sizes = byte_sizes(windows.store, tokenizer)
    if sizes is None:
        return None
    num_targets = _num_windows(windows, tokens) * windows.context_length
    return num_targets, num_bytes(windows.store.tokens[1 : num_targets + 1], sizes)


def evaluate_tokens(
    model: PreTrainedModel,
    tokens: np.ndarray,
    num_bytes: int,
    stride: int | None = None,
    progress: Callable[[int], None] = lambda num_scored: None,
    context: int | None = None,
) -> Evaluation:
    """Score every token of a text but the first, each once, by a window that slides by `stride`.

    Args:
        model: a causal language model.
        tokens: the text, (num_tokens,).
        num_bytes: UTF-8 bytes of the text that the scored tokens stand for.
        stride: how far the window moves. The context length (the default) is fastest; a smaller one gives each token
            at least `context_length - stride` tokens of context, as in Hugging Face's guide to perplexity.
        progress: called with the number of tokens scored since its last call.
        context: the context length, by default all of the model's positions.
    """
    context = context or num_positions(model.config)
    stride = min(stride or context, context)
    device = next(model.parameters()).device
    num_targets = len(tokens) - 1
    at_once = max(1, _TOKENS_AT_ONCE // context)
    total, token_losses = 0.0, CausalLMLoss(model)
    with evaluating(model):
        spans = _spans(num_targets, context, stride)
        while rows := list(islice(spans, at_once)):
            inputs = torch.stack([torch.from_numpy(tokens[a:b].astype(np.int64)) for a, b, _ in rows]).to(device)
            labels = torch.stack([torch.from_numpy(tokens[a + 1 : b + 1].astype(np.int64)) for a, b, _ in rows])
            for row, (_, _, already) in zip(labels, rows):
                row[:already] = IGNORED
            total += token_losses(inputs, labels.to(device), reduction="none").double().sum().item()
            progress(int((labels != IGNORED).sum()))
    loss = total / num_targets
    return Evaluation(
        loss=loss,
        perplexity=perplexity(loss),
        bits_per_byte=bits_per_byte(loss, num_targets, num_bytes),
        tokens=len(tokens),
        scored_tokens=num_targets,
        bytes=num_bytes,
        context_length=context,
        stride=stride,
    )


def _num_windows(windows: Windows, tokens: int | None) -> int:
    return len(windows) if tokens is None else min(len(windows), max(1, tokens // windows.context_length))


def _spans(num_targets: int, context: int, stride: int) -> Iterator[tuple[int, int, int]]:
    """(start, end, targets already scored) of each window of inputs; together they score every target once.

    All windows have the same length.
    """
    start, end = 0, min(context, num_targets)
    yield start, end, 0
    while end < num_targets:
        scored = end
        end = min(end + stride, num_targets)
        # The last window reaches back, so that its tokens have as much context as the others.
        start = max(0, end - context)
        yield start, end, scored - start
