"""The optimizer, and the learning rate as a pure function of the step.

There is no scheduler object: a schedule that is state has to be saved, restored and kept in step with the processes,
and each of these has gone wrong somewhere. `learning_rate(step, ...)` needs nothing but its arguments.
"""

import math

import torch
from torch import nn
from transformers import PreTrainedModel

from ..recipe import OptimizerRecipe, ScheduleRecipe
from ..structure import is_bias_or_state, matrices
from .muon import Muon


def build_optimizer(model: nn.Module, recipe: OptimizerRecipe, mixed_precision: str = "no") -> torch.optim.Optimizer:
    """AdamW over the trainable parameters of `model`, in PyTorch's fused form where the device has one.

    With `decay: matrices` weight decay spares norms, biases and the rates of state-space models, as GPT-2, nanoGPT and
    Mamba do; `decay: all` is `torch.optim.AdamW(model.parameters())`, which the book uses. With `name: muon` the
    matrices that hidden states are multiplied by are updated by :class:`Muon`, routers and each expert included, as in
    Moonlight (Liu et al. 2025). Embeddings and the head stay with AdamW, which suits rows that are rarely used.

    Raises:
        ValueError: `name: muon`, and a model without such a matrix.
    """
    parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    muon_lr_ratio = (recipe.muon_lr or recipe.lr) / recipe.lr
    head = model.get_output_embeddings() if isinstance(model, PreTrainedModel) else None
    of_muon = {id(matrix) for module, matrix in matrices(model) if recipe.name == "muon" and module is not head}
    orthogonal = [parameter for parameter in parameters.values() if id(parameter) in of_muon]
    if recipe.name == "muon" and not orthogonal:
        raise ValueError("Muon updates the weights of linear layers and experts, the head apart; this model has none")
    rest = {name: parameter for name, parameter in parameters.items() if id(parameter) not in of_muon}
    spared = [] if recipe.decay == "all" else [n for n, p in rest.items() if p.ndim < 2 or is_bias_or_state(n)]
    groups = [{"params": [p for n, p in rest.items() if n not in spared], "weight_decay": recipe.weight_decay}]
    if recipe.decay != "all":
        groups.append({"params": [rest[name] for name in spared], "weight_decay": 0.0})
    fused = all(p.device.type in ("cpu", "cuda", "mps", "xpu") for p in rest.values())
    adamw = {"lr": recipe.lr, "betas": tuple(recipe.betas), "eps": recipe.eps, "fused": fused}
    if recipe.name == "adamw":
        return torch.optim.AdamW(groups, **adamw)
    groups.append(
        {"params": orthogonal, "orthogonal": True, "weight_decay": recipe.weight_decay, "lr_ratio": muon_lr_ratio}
    )
    return Muon(groups, momentum=recipe.muon_momentum, mixed_precision=mixed_precision, **adamw)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Use `lr` in the next update, for every parameter group; a group's `lr_ratio` is its learning rate over `lr`."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_ratio", 1.0)


def learning_rate(step: int, max_steps: int, peak: float, schedule: ScheduleRecipe) -> float:
    """The learning rate of the update that ends `step` (1 .. max_steps).

    It climbs linearly to `peak` at `warmup_steps`, then follows the schedule down to `min_lr_ratio * peak` at
    `max_steps`: cosine (GPT-3, appendix B), linear, constant, or `wsd`, which stays at the peak and decays linearly
    over the last `decay_fraction` of the run (MiniCPM, section 4).
    """
    if step <= schedule.warmup_steps:
        return peak * step / schedule.warmup_steps
    if schedule.name == "constant":
        return peak
    start = schedule.warmup_steps
    if schedule.name == "wsd":
        start = max(start, max_steps - round(schedule.decay_fraction * max_steps))
    progress = min(max(step - start, 0) / max(max_steps - start, 1), 1.0)
    remaining = 0.5 * (1 + math.cos(math.pi * progress)) if schedule.name == "cosine" else 1 - progress
    return peak * (schedule.min_lr_ratio + (1 - schedule.min_lr_ratio) * remaining)
