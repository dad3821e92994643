"""The loss of a causal language model, without its logits where they are many.

`CausalLMLoss` is a module around a model: token ids and targets in, the summed loss or the loss of each token out. It
is what training prepares, compiles and calls, and what every evaluation calls; so DDP, FSDP2 and DeepSpeed see one
forward pass. The parameters are those of the model inside, and checkpoints hold that model's names.

The logits of 4 x 1024 tokens over GPT-2's vocabulary take 800 MB, and the plain loss makes three tensors of that size.
Where that is the case (`tokens_per_chunk`) the loss is computed from the decoder's hidden states and the output
embeddings, a chunk of tokens at a time: make their logits, use them, forget them. That is right only where
`head(decoder(ids))` is all there is to the logits. A model may do more (scale them, cap them), so the two are compared
once, on three tokens, when the module is made; where they differ, the loss is computed from the model's own logits.
"""

import contextlib
from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.functional import cross_entropy, linear
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from .data.batches import IGNORED
from .precision import multiplies_bf16

try:
    from torch.nn import LinearCrossEntropyOptions
    from torch.nn.functional import linear_cross_entropy
except ImportError:  # torch before 2.13
    linear_cross_entropy = None

# Without gradients, chunks are so small that their logits (32 MiB in fp32) come from glibc's heap, which keeps them:
# mapping larger blocks took half of the time with a vocabulary of 50,257.
_LOGITS_WITHOUT_GRADIENTS = 2**23


class CausalLMLoss(nn.Module):
    """The loss of `model` on given targets.

    `answer` is that of `head_makes_logits` where it is known, so that the model need not have weights.
    Accelerate and DeepSpeed ask a model for `config` and `tie_weights`; they get those of the model inside.
    """

    def __init__(self, model: PreTrainedModel, answer: bool | None = None):
        super().__init__()
        self.model = model
        self.head_makes_logits = head_makes_logits(model) if answer is None else answer
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
        **inputs: Any,
    ) -> torch.Tensor:
        """
        Args:
            input_ids: (batch, time).
            shift_labels: (batch, time), the target of each position; `IGNORED` counts for nothing.
            inputs: what else the model takes, such as `position_ids`.

        Returns:
            The cross entropy in nats, in float32: the sum over all targets, or for `"none"` (batch * time,), 0 where
            the target is ignored.

        Raises:
            ValueError: `shift_labels` has another shape than `input_ids`.
        """
        if shift_labels.shape != input_ids.shape:
            raise ValueError(f"targets of shape {tuple(shift_labels.shape)} for input of {tuple(input_ids.shape)}")
        inputs = {"input_ids": input_ids, "use_cache": False, **inputs}
        chunk = self._tokens_per_chunk(shift_labels)
        if chunk is None or (reduction == "none" and torch.is_grad_enabled()):
            logits = self.model(**inputs).logits
            return _cross_entropy(logits.flatten(0, 1), shift_labels.flatten(), reduction)
        hidden_states = self.model.get_decoder()(**inputs).last_hidden_state.flatten(0, 1)
        head, targets = self.model.get_output_embeddings(), shift_labels.flatten().to(hidden_states.device)
        if reduction == "sum":
            return _sum_without_logits(hidden_states, head.weight, targets, chunk)
        losses = torch.empty(len(targets), device=hidden_states.device)  # small tensors kept would fragment the heap
        for rows, of_rows, into in zip(hidden_states.split(chunk), targets.split(chunk), losses.split(chunk)):
            into.copy_(_cross_entropy(head(rows), of_rows, "none"))
        return losses

    def _tokens_per_chunk(self, targets: torch.Tensor) -> int | None:
        """How many tokens' logits are made at once; None for all of them."""
        head, num_tokens = self.model.get_output_embeddings(), targets.numel()
        if not self.head_makes_logits or not isinstance(head.weight, torch.Tensor):  # quantised layers have methods
            return None
        if not torch.is_grad_enabled():
            chunk = max(1, _LOGITS_WITHOUT_GRADIENTS // head.weight.shape[0])
            return chunk if chunk < num_tokens else None
        if not _is_plain_linear(head):
            return None
        return tokens_per_chunk(num_tokens, head.weight.shape[0], self.stands_for or targets.device.type)


def head_makes_logits(model: PreTrainedModel) -> bool:
    """Whether a model's logits are its output embeddings applied to its decoder's hidden states, and nothing more.

    The hidden states are enlarged until logits reach 100: at initialisation they are so small that a soft cap or a
    bias would not show. Nothing is drawn, and the model's mode is put back.
    """
    decoder, head = model.get_decoder(), model.get_output_embeddings()
    if decoder is None or head is None or decoder is model:
        return False
    window = getattr(model.config.get_text_config(), "max_position_embeddings", None) or 3
    ids = torch.arange(min(3, window), device=model.get_input_embeddings().weight.device).unsqueeze(0)
    scale = 1.0

    def enlarge(module: nn.Module, args: Any, output: Any) -> Any:
        output.last_hidden_state = output.last_hidden_state * scale
        return output

    with evaluating(model):
        hook = decoder.register_forward_hook(enlarge)
        try:
            largest = head(decoder(input_ids=ids, use_cache=False).last_hidden_state).abs().max().item()
            scale = 100.0 / largest if largest > 0 else 1.0
            expected = head(decoder(input_ids=ids, use_cache=False).last_hidden_state)
            logits = model(input_ids=ids, use_cache=False).logits
        finally:
            hook.remove()
        return logits.shape == expected.shape and (logits - expected).abs().max().item() <= 0.01


@contextlib.contextmanager
def evaluating(*models: nn.Module) -> Iterator[None]:
    """Evaluation mode (no dropout), no gradients; afterwards every module is in the mode that it had.

    Nothing is compiled: what was compiled for the one shape of training would be compiled again for each other one.
    """
    modes = [(module, module.training) for model in models for module in model.modules()]
    for model in models:
        model.eval()
    try:
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            yield
    finally:
        for module, mode in modes:
            module.training = mode


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


def _is_plain_linear(head: nn.Module) -> bool:
    """Whether calling `head` multiplies by its weight and does nothing else, so that it need not be called.

    Not so for LoRA and quantised layers, nor where the weight is sharded, or brought by a hook.
    """
    return (
        type(head) is nn.Linear
        and type(head.weight) in (nn.Parameter, torch.Tensor, FakeTensor)
        and head.bias is None
        and "forward" not in vars(head)
        and not (head._forward_hooks or head._forward_pre_hooks)
        and not (head._backward_hooks or head._backward_pre_hooks)
    )
