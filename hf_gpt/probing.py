"""What a causal language model makes of its hidden states and its routers, found by running it on a few tokens.

Nothing is drawn; modes and weights are put back.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from transformers import PreTrainedModel

# What transformers' models call the factor of their auxiliary loss, which balances the experts of a mixture.
_AUX_COEFFICIENTS = ("router_aux_loss_coef", "aux_loss_coef")


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


def head_makes_logits(model: PreTrainedModel) -> bool:
    """Whether a model's logits are its output embeddings applied to its decoder's hidden states, and nothing more.

    Its own forward pass is watched: what the decoder returns must go into the output embeddings, and what they return
    must be the logits. The hidden states are enlarged until logits reach 100, and biases of the logits are made
    non-zero: at initialisation they are so small that a soft cap or a bias would not show.
    """
    decoder, head = model.get_decoder(), model.get_output_embeddings()
    if decoder is None or head is None or decoder is model:
        return False
    scale, seen = 1.0, {}

    def enlarge(module: nn.Module, args: Any, output: Any) -> None:
        if isinstance(hidden_states := getattr(output, "last_hidden_state", None), torch.Tensor):
            seen["hidden_states"] = hidden_states * scale
            output.last_hidden_state = seen["hidden_states"].clone()  # may be changed in place, as may logits

    def watch(module: nn.Module, args: Any, output: Any) -> None:
        seen["into_head"] = args[0].clone() if args else None
        seen["out_of_head"] = output if isinstance(output, FakeTensor) else output.clone()

    hooks = decoder.register_forward_hook(enlarge), head.register_forward_hook(watch)
    biases: list[tuple[torch.Tensor, torch.Tensor]] = []  # with their values
    with evaluating(model):
        try:
            logits = model(**_few_tokens(model), use_cache=False).logits
            if largest := logits.abs().max().item():
                scale = 100.0 / largest
            for tensor in (*model.parameters(), *model.buffers()):
                if tensor.shape == logits.shape[-1:] and tensor.is_floating_point():
                    biases.append((tensor, tensor.clone()))
                    tensor.add_(1.0)
            logits = model(**_few_tokens(model), use_cache=False).logits
        finally:
            for hook in hooks:
                hook.remove()
            for tensor, values in biases:
                tensor.copy_(values)
        if not _equal(seen.get("into_head"), seen.get("hidden_states")):
            return False
        made = seen["out_of_head"]  # a fake one holds no numbers to compare
        return logits is made if isinstance(made, FakeTensor) else _equal(logits, made)


def aux_loss_coefficient(model: PreTrainedModel) -> float:
    """What the auxiliary loss of a model's routers is multiplied by in the loss; 0 where it has no such loss."""
    coefficient = next((c for name in _AUX_COEFFICIENTS if (c := getattr(model, name, None))), 0.0)
    if coefficient <= 0:
        return 0.0
    with evaluating(model):  # a type with a mixture of experts may have none in its layers
        outputs = model.get_decoder()(**_few_tokens(model), use_cache=False, output_router_logits=True)
    return coefficient if getattr(outputs, "router_logits", None) else 0.0


def is_plain_linear(head: nn.Module) -> bool:
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


def _few_tokens(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    window = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return {"input_ids": torch.arange(3, device=model.get_input_embeddings().weight.device)[:window].unsqueeze(0)}


def _equal(found: Any, expected: Any) -> bool:
    """Whether two tensors hold the same numbers, bit for bit."""
    if not (isinstance(found, torch.Tensor) and isinstance(expected, torch.Tensor)) or found.shape != expected.shape:
        return False
    return bool((found == expected.to(found.device)).all())
