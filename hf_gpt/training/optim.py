"""The optimizer, and the learning rate as a pure function of the step.

There is no scheduler object: a schedule that is state has to be saved, restored and kept in step with the processes,
and each of these has gone wrong somewhere. `learning_rate(step, ...)` needs nothing but its arguments.
"""

import math

import torch
from torch import nn

from ..recipe import OptimizerRecipe, ScheduleRecipe


def build_optimizer(model: nn.Module, recipe: OptimizerRecipe) -> torch.optim.Optimizer:
    """AdamW over the trainable parameters of `model`, in PyTorch's fused form where the device has one.

    With `decay: matrices` weight decay spares biases and LayerNorm, as GPT-2 and nanoGPT do; `decay: all` is
    `torch.optim.AdamW(model.parameters())`, which the book uses.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if recipe.decay == "all":
        groups = [{"params": parameters, "weight_decay": recipe.weight_decay}]
    else:
        groups = [
            {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": recipe.weight_decay},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ]
    fused = all(p.device.type in ("cpu", "cuda", "mps", "xpu") for p in parameters)
    return torch.optim.AdamW(groups, lr=recipe.lr, betas=tuple(recipe.betas), eps=recipe.eps, fused=fused)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Use `lr` in the next update, for every parameter group."""
    for group in optimizer.param_groups:
        group["lr"] = lr


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
