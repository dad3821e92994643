"""What a model makes of earlier and later tokens, of its hidden states and its routers: it is run on a few tokens.

Nothing is drawn; modes and weights are put back.
"""

import contextlib
import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from transformers import PreTrainedModel

from .errors import UserError
from .loading import num_positions

# Of the largest logit. Rounding is a hundred times smaller; a new BERT's logits change by a hundred times more.
_NO_CHANGE = 1e-5
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


@contextlib.contextmanager
def plain_attention(model: PreTrainedModel) -> Iterator[None]:
    """Attention that runs on any device, for a trial."""
    attention = model.config._attn_implementation
    model.config._attn_implementation = "eager"
    try:
        yield
    finally:
        model.config._attn_implementation = attention


def refuse_later_tokens(model: PreTrainedModel, name: str) -> None:
    """Refuse a model in which a token's logits depend on later tokens. Some are in transformers' map of causal ones.

    Trained here it would copy the next token from its input, to a loss near zero; evaluated it would seem to know it.

    Raises:
        UserError: it is one; `name` is what the user calls it.
    """
    if _change(model, changed=-1, looked_at=slice(-1)) > _NO_CHANGE and _looks_ahead(model):
        kind = model.config.model_type
        raise UserError(f"{name}: what a {kind} model makes of a token depends on later ones; it is not causal")


def _looks_ahead(model: PreTrainedModel) -> bool:
    """Whether a token's logits have a derivative by later tokens, in any dtype: what is masked has one of exactly 0.

    A mixture of experts multiplies the tokens of an expert together. Another last token is another number of them, and
    in bf16 that alone rounds by more than a small dependence would change.
    """
    if model.dtype == torch.float32:
        return True
    seen: list[torch.Tensor] = []

    def watch(module: nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
        seen.append(output.detach().requires_grad_())
        return seen[0]

    hook = model.get_input_embeddings().register_forward_hook(watch)
    try:
        with evaluating(model), plain_attention(model), torch.enable_grad():
            logits = model(input_ids=_few_tokens(model, 4), use_cache=False).logits[0, :-1].float()
            (derivative,) = torch.autograd.grad(logits.square().sum(), seen)
    finally:
        hook.remove()
    return bool(derivative[0, -1].any())


def changes_weights(model: PreTrainedModel) -> bool:
    """Whether evaluation changes the weights, as RWKV's does, which halves those of later layers until it trains."""
    before = [weight._version for weight in model.parameters()]
    with evaluating(model), plain_attention(model):
        model(input_ids=_few_tokens(model, 3), use_cache=False)
    return before != [weight._version for weight in model.parameters()]


def isolates_documents(model: PreTrainedModel) -> bool:
    """Whether positions that begin again keep a token from seeing those before, of other documents."""
    if "position_ids" not in inspect.signature(model.forward).parameters:
        return False
    positions = torch.tensor([[0, 1, 0, 1]], device=model.device)
    return _change(model, changed=0, looked_at=slice(2, None), position_ids=positions) <= _NO_CHANGE


def _change(model: PreTrainedModel, changed: int, looked_at: slice, **inputs: Any) -> float:
    """By how much some of four tokens' logits change with the token at `changed`, relative to the largest logit."""
    ids = _few_tokens(model, 4)
    others = ids.clone()
    others[0, changed] = ids[0, changed + 1]
    with evaluating(model), plain_attention(model):
        before, after = (model(input_ids=i, use_cache=False, **inputs).logits[0].float() for i in (ids, others))
    changes = (before - after).abs().amax(-1)[looked_at].tolist()
    return max(changes, default=0.0) / max(before.abs().max().item(), 1e-30)


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
    with evaluating(model), plain_attention(model):
        try:
            logits = model(input_ids=_few_tokens(model, 3), use_cache=False).logits
            if largest := logits.abs().max().item():
                scale = 100.0 / largest
            for tensor in (*model.parameters(), *model.buffers()):
                if tensor.shape == logits.shape[-1:] and tensor.is_floating_point():
                    biases.append((tensor, tensor.clone()))
                    tensor.add_(1.0)
            logits = model(input_ids=_few_tokens(model, 3), use_cache=False).logits
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
    with evaluating(model), plain_attention(model):  # a type with a mixture of experts may have none in its layers
        outputs = model.get_decoder()(input_ids=_few_tokens(model, 3), use_cache=False, output_router_logits=True)
    return coefficient if getattr(outputs, "router_logits", None) else 0.0


def _few_tokens(model: PreTrainedModel, count: int) -> torch.Tensor:
    """(1, count), or as many as the model has positions for."""
    embeddings = model.get_input_embeddings().weight
    ids = torch.arange(count, device=embeddings.device)[: num_positions(model.config)]
    return ids.unsqueeze(0) % embeddings.shape[0]


def _equal(found: Any, expected: Any) -> bool:
    """Whether two tensors hold the same numbers, bit for bit."""
    if not (isinstance(found, torch.Tensor) and isinstance(expected, torch.Tensor)) or found.shape != expected.shape:
        return False
    return bool((found == expected.to(found.device)).all())
