"""The loss of a causal language model, without its logits where they are many.

`CausalLMLoss` is a module around a model: token ids and targets in, the summed loss or the loss of each token out. It
is what training prepares, compiles and calls, and what every evaluation calls; so DDP, FSDP2 and DeepSpeed see one
forward pass. The parameters are those of the model inside, and checkpoints hold that model's names.

The logits of 4 x 1024 tokens over GPT-2's vocabulary take 800 MB, and the plain loss makes three tensors of that size.
Where that is the case (`tokens_per_chunk`) the loss is computed from the decoder's hidden states and the output
embeddings, a chunk of tokens at a time: make their logits, use them, forget them. That is right only where
`head(decoder(ids))` is all there is to the logits. A model may do more (scale them, cap them), which is found out when
the module is made (`probing.py`); there the loss is computed from the model's own logits.

A mixture of experts has an auxiliary loss, which training adds so that its routers use all of them. It is a mean over
tokens, not a sum, and part of no loss that is reported as the model's.
"""

from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.functional import cross_entropy, linear, nll_loss
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from . import probing
from .data.batches import IGNORED
from .precision import multiplies_bf16
from .structure import is_plain_linear

try:
    from torch.nn import LinearCrossEntropyOptions
    from torch.nn.functional import linear_cross_entropy
except ImportError:  # torch before 2.13
    linear_cross_entropy = None

# Without gradients, chunks are so small that their logits (32 MiB in fp32) come from glibc's heap, which keeps them:
# mapping larger blocks took half of the time with a vocabulary of 50,257. On a CPU log-probabilities take their place.
_LOGITS_WITHOUT_GRADIENTS = 2**23


class CausalLMLoss(nn.Module):
    """The loss of `model` on given targets.

    `head_makes_logits` is the answer to that question where it is known: then the model need not have weights.
    Accelerate and DeepSpeed ask a model for `config` and `tie_weights`; they get those of the model inside.
    """

    def __init__(self, model: PreTrainedModel, head_makes_logits: bool | None = None):
        super().__init__()
        self.model = model
        self.head_makes_logits = probing.head_makes_logits(model) if head_makes_logits is None else head_makes_logits
        self.aux_loss_coefficient = probing.aux_loss_coefficient(model)
        self.stands_for: str | None = None  # the device that an estimate's tensors on the CPU are in place of

    @property
    def config(self) -> Any:
        return self.model.config

    def tie_weights(self, *args: Any, **kwargs: Any) -> Any:
        return self.model.tie_weights(*args, **kwargs)

    def forward(
        self,
        input_ids: torch.LongTensor,
        shift_labels: torch.LongTensor,
        reduction: Literal["sum", "none"] = "sum",
        with_aux: bool = False,
        **inputs: Any,
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """
        Args:
            input_ids: (batch, time).
            shift_labels: (batch, time), the target of each position; `IGNORED` counts for nothing.
            with_aux: also return the auxiliary loss.
            inputs: what else the model takes, such as `position_ids`.

        Returns:
            The cross entropy in nats, in float32: the sum over all targets, or for `"none"` (batch * time,), 0 where
            the target is ignored. The auxiliary loss is a float32 scalar, multiplied by the model's coefficient: of
            the rows that have targets, and 0 if there are none or the model has no such loss.

        Raises:
            ValueError: `shift_labels` has another shape than `input_ids`.
        """
        if shift_labels.shape != input_ids.shape:
            raise ValueError(f"targets of shape {tuple(shift_labels.shape)} for input of {tuple(input_ids.shape)}")
        inputs = {"input_ids": input_ids, "use_cache": False, **inputs}
        chunk = self._tokens_per_chunk(shift_labels)
        if reduction == "none" and torch.is_grad_enabled():
            chunk = None
        aux_loss = torch.zeros((), device=input_ids.device)
        if with_aux and self.aux_loss_coefficient:
            outputs, aux_loss = self._with_aux_loss(inputs, shift_labels, chunk is None)
        elif chunk is None:
            outputs = self.model(**inputs).logits
        else:
            outputs = self.model.get_decoder()(**inputs).last_hidden_state
        loss = self._loss_of(outputs.flatten(0, 1), shift_labels.flatten().to(outputs.device), reduction, chunk)
        return (loss, aux_loss) if with_aux else loss

    def describe(self, num_tokens: int, device_type: str) -> Iterator[str]:
        """A line for people, where training makes the logits of so many tokens at once though they are many."""
        size = self.config.get_text_config().vocab_size
        by_chunks = self.head_makes_logits and is_plain_linear(self.model.get_output_embeddings())
        if not by_chunks and tokens_per_chunk(num_tokens, size, device_type):
            more = f"{self.config.model_type}'s are more than output embeddings times hidden states"
            yield f"loss       from {num_tokens:,} x {size:,} logits at once: {more}"

    def _loss_of(self, outputs: torch.Tensor, targets: torch.Tensor, how: str, chunk: int | None) -> torch.Tensor:
        """Of logits, or of hidden states, `chunk` at a time."""
        if chunk is None:
            return _cross_entropy(outputs, targets, how)
        head = self.model.get_output_embeddings()
        if torch.is_grad_enabled():
            return _sum_without_logits(outputs, head.weight, targets, chunk)
        losses = torch.empty(len(targets), device=outputs.device)  # small tensors kept would fragment the heap
        for rows, of_rows, into in zip(outputs.split(chunk), targets.split(chunk), losses.split(chunk)):
            logits = head(rows).float()
            found = torch.log_softmax(logits, -1, out=logits if logits.device.type == "cpu" else None)
            into.copy_(nll_loss(found, of_rows.to(found.device), ignore_index=IGNORED, reduction="none"))
        return losses if how == "none" else losses.sum()

    def _with_aux_loss(self, inputs: Any, targets: torch.Tensor, logits: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """The model's logits or its decoder's hidden states, and its auxiliary loss as its own forward pass makes it.

        The attention mask keeps rows without targets out of the auxiliary loss. The decoder is not given it: it needs
        none, and with one would take no notice of `position_ids` that restart with each document.
        """
        has_targets = (targets != IGNORED).any(dim=1, keepdim=True)
        mask = (has_targets | ~has_targets.any()).long().expand_as(targets)
        decoder, made = self.model.get_decoder(), []

        def without_mask(module: nn.Module, args: Any, given: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            return args, {**given, "attention_mask": None}

        hooks = (
            decoder.register_forward_pre_hook(without_mask, with_kwargs=True),
            decoder.register_forward_hook(lambda module, args, output: made.append(output.last_hidden_state)),
        )
        try:
            few = {} if logits else {"logits_to_keep": 1}
            outputs = self.model(**inputs, attention_mask=mask, output_router_logits=True, **few)
        finally:
            for hook in hooks:
                hook.remove()
        aux_loss = self.aux_loss_coefficient * outputs.aux_loss.float() * has_targets.any()
        return outputs.logits if logits else made[0], aux_loss

    def _tokens_per_chunk(self, targets: torch.Tensor) -> int | None:
        """How many tokens' logits are made at once; None for all of them."""
        head, num_tokens = self.model.get_output_embeddings(), targets.numel()
        if not self.head_makes_logits or not isinstance(head.weight, torch.Tensor):  # quantised layers have methods
            return None
        if not torch.is_grad_enabled():
            chunk = max(1, _LOGITS_WITHOUT_GRADIENTS // head.weight.shape[0])
            return chunk if chunk < num_tokens else None
        if not is_plain_linear(head):
            return None
        return tokens_per_chunk(num_tokens, head.weight.shape[0], self.stands_for or targets.device.type)


def tokens_per_chunk(num_tokens: int, vocab_size: int, device_type: str) -> int | None:
    """How many tokens' logits training makes at once; None for all, which is the plain loss.

    A rule on shapes and device, never on a clock: a resumed run does the arithmetic of the one that stopped. It comes
    from these ratios of CPU seconds, chunked / plain, of the loss and its gradient on one thread (fp32, torch 2.13):

        tokens x vocabulary x width    chunks of 128   256    512    1024
        256 x 50257 x 768                       1.07   1.02
        512 x 50257 x 768                       0.97   0.87   0.89

    Below 2**25 logits (128 MiB) there is little memory to gain, and the plain loss keeps its bits.
    """
    few_logits = 2**25 if device_type == "cpu" else 2**28
    return None if num_tokens < 512 or num_tokens * vocab_size < few_logits else 512


def chunked_cross_entropy(
    hidden_states: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, chunk: int
) -> torch.Tensor:
    """The summed cross entropy of `hidden_states @ weight.T`, of which there are never more than `chunk` rows.

    Args:
        hidden_states: (num_tokens, hidden), float32 or bfloat16.
        weight: (vocab_size, hidden), of the same dtype.
        targets: (num_tokens,).

    Returns a float32 scalar. It has first derivatives and, where it is torch's, no second.
    """
    if hidden_states.dtype == torch.bfloat16:  # in which the chunks' gradients of the weight are added up
        chunk = max(chunk, len(targets) // 8)
    if linear_cross_entropy is None:
        total = torch.zeros((), device=hidden_states.device)
        for rows, of_rows in zip(hidden_states.split(chunk), targets.split(chunk)):
            total = total + checkpoint(_linear_and_cross_entropy, rows, weight, of_rows, use_reentrant=False)
        return total
    # A bf16 sum comes back rounded to bf16, 2 to 5% off; the rounding of the losses of single tokens cancels out, to
    # some 1e-4 of the mean. On a CPU torch's function would multiply in fp32, which takes four times as long.
    losses = linear_cross_entropy(
        hidden_states,
        weight,
        targets,
        reduction="sum" if hidden_states.dtype == torch.float32 else "none",
        ignore_index=IGNORED,
        options=LinearCrossEntropyOptions(
            batch_chunk_size=chunk,
            acc_dtype=hidden_states.dtype if hidden_states.device.type == "cpu" else None,
            allow_retain_graph=torch.compiler.is_compiling(),  # which would set it, with a warning
        ),
    )
    return losses.float().sum()


def _sum_without_logits(
    hidden_states: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, chunk: int
) -> torch.Tensor:
    """`chunked_cross_entropy` in the precision that autocast asks for; torch's function does not look at it."""
    device_type = hidden_states.device.type
    if torch.is_autocast_enabled(device_type):
        dtype = torch.get_autocast_dtype(device_type)
        hidden_states, weight = hidden_states.to(dtype), weight.to(dtype)
    # Where a CPU is no faster in bf16, the loss may keep its digits. Torch's function has no fp16.
    if (device_type == "cpu" and not multiplies_bf16("cpu")) or hidden_states.dtype not in (
        torch.float32,
        torch.bfloat16,
    ):
        hidden_states, weight = hidden_states.float(), weight.float()
    with torch.autocast(device_type, enabled=False):
        return chunked_cross_entropy(hidden_states, weight, targets, chunk)


def _linear_and_cross_entropy(rows: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return _cross_entropy(linear(rows, weight), targets, "sum")


def _cross_entropy(logits: torch.Tensor, targets: torch.Tensor, reduction: str) -> torch.Tensor:
    """(num_tokens, vocab_size), (num_tokens,) -> a scalar, or (num_tokens,)."""
    return cross_entropy(logits.float(), targets.to(logits.device), ignore_index=IGNORED, reduction=reduction)
