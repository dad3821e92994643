"""DeepSpeed's ZeRO under the same loop: all that its engine does in a way of its own.

A launcher that asks for DeepSpeed (`configs/accelerate/deepspeed-zero2.yaml`) makes accelerate wrap the model in
DeepSpeed's engine, which reduces, clips and updates within `accelerator.backward`; the loop's own calls for that do
nothing then. An update whose gradient is not finite is not made, and its norm is infinite, which is what the loop
looks for.

The recipe stays the one source of what a step is: what it says is written into the engine's configuration, whatever
the launch file says. bf16 is torch's autocast over fp32 weights, as under DDP. DeepSpeed's own bf16 keeps weights in
two bytes a parameter, this keeps four; for that the numbers are those of DDP, and a run may be resumed with or without
DeepSpeed. The engine also reads the gradient's norm back from the device in each step. Left out: fp16, whose scaler is
the engine's; offloading, whose Adam is DeepSpeed's own; Muon, which needs matrices where ZeRO keeps flat pieces; and
ZeRO-3, for which FSDP2 is there.
"""

import importlib.metadata
import os
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, is_deepspeed_available, parse_flag_from_env
from torch import nn

from ..data.batches import BatchPlan
from ..errors import UserError
from ..recipe import Recipe

_MOMENTS = ("exp_avg", "exp_avg_sq")  # what AdamW keeps of each parameter


def asked_for() -> bool:
    """Whether the launcher wants DeepSpeed."""
    return parse_flag_from_env("ACCELERATE_USE_DEEPSPEED")


def version() -> str | None:
    """The version of DeepSpeed, if this run uses it."""
    return importlib.metadata.version("deepspeed") if asked_for() else None


def accelerator_options(recipe: Recipe) -> dict[str, Any]:
    """What makes accelerate use DeepSpeed. On a CPU it also needs the backend of its processes (gloo).

    Raises:
        UserError: DeepSpeed is not installed, or cannot do what the recipe asks for.
    """
    if not is_deepspeed_available():
        raise UserError("train: DeepSpeed is not installed; pip install 'hf_gpt[deepspeed]', or use fsdp2.yaml")
    if "LOCAL_RANK" not in os.environ:
        raise UserError("train: DeepSpeed needs a launcher, also for one process: accelerate launch or torchrun")
    if recipe.train.mixed_precision == "fp16":
        raise UserError("train.mixed_precision: fp16 is not used with DeepSpeed; use bf16 or no")
    if recipe.optimizer.name == "muon":
        raise UserError(
            "optimizer.name: muon needs whole matrices, which DeepSpeed flattens; use adamw, or fsdp2.yaml"
        )
    handlers = []
    if recipe.train.device == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        handlers.append(InitProcessGroupKwargs(backend="gloo"))
    # With cpu=True accelerate would not look at DeepSpeed; its precision is set in `configure`.
    return {"cpu": False, "mixed_precision": "no", "kwargs_handlers": handlers}


def configure(accelerator: Accelerator, recipe: Recipe, plan: BatchPlan) -> None:
    """Let the recipe decide what DeepSpeed does in a step.

    Raises:
        UserError: DeepSpeed's own configuration asks for what a run here cannot do.
    """
    config, train = accelerator.deepspeed_plugin.deepspeed_config, recipe.train
    if accelerator.device.type != train.device:
        raise UserError(f"train.device: {train.device}, but DeepSpeed works on {accelerator.device.type} here")
    zero = config.get("zero_optimization") or {}
    if (stage := zero.get("stage", 0)) not in (1, 2):
        raise UserError(f"train: ZeRO stage {stage} is not used here; use 1 or 2, or configs/accelerate/fsdp2.yaml")
    for name in ("optimizer", "scheduler"):
        if name in config:
            raise UserError(f"train: DeepSpeed's configuration has a section '{name}', which the recipe decides")
    for what in ("offload_optimizer", "offload_param"):
        if (zero.get(what) or {}).get("device", "none") != "none":
            raise UserError(f"train: DeepSpeed's {what} is not used here; set its device to none")
    config |= {
        "train_micro_batch_size_per_gpu": train.batch_size,
        "gradient_accumulation_steps": plan.accumulation,
        "train_batch_size": train.batch_size * plan.accumulation * accelerator.num_processes,
        "gradient_clipping": train.max_grad_norm or 0.0,
        "fp16": {"enabled": False},
        "bf16": {"enabled": False},
        # No modules whose gradients are reduced in bf16.
        "torch_autocast": {
            "enabled": train.mixed_precision == "bf16",
            "dtype": "bfloat16",
            "lower_precision_safe_modules": [],
        },
    }


def is_engine(model: nn.Module) -> bool:
    """Whether `model` was wrapped by DeepSpeed."""
    return hasattr(model, "zero_optimization_stage")


def optimizer_state(engine: nn.Module) -> dict[str, Any]:
    """The optimizer's state by parameter name of the model inside, as torch.distributed.checkpoint gives it.

    All processes call it; the first has it, on the CPU, and the others have its groups alone.
    """
    from deepspeed.utils import safe_get_full_optimizer_state

    _make_state(engine)
    step = next(iter(engine.basic_optimizer.state.values()))["step"].cpu()
    names = {parameter: name for name, parameter in engine.module.model.named_parameters()}
    state = {}
    for parameter, name in names.items():
        if parameter.requires_grad:
            gathered = {kind: safe_get_full_optimizer_state(parameter, kind) for kind in _MOMENTS}
            if engine.global_rank == 0:
                state[name] = {kind: moment.cpu() for kind, moment in gathered.items()} | {"step": step.clone()}
    groups = [
        {key: value for key, value in group.items() if key != "params"} | {"params": [names[p] for p in parameters]}
        for group, parameters in zip(engine.basic_optimizer.param_groups, engine.optimizer.bit16_groups)
    ]
    return {"state": state, "param_groups": groups}


def set_optimizer_state(engine: nn.Module, state: dict[str, dict[str, torch.Tensor]]) -> None:
    """Put back what `optimizer_state` gave, and let the optimizer use the weights that the model has now."""
    from deepspeed.utils import safe_set_full_optimizer_state

    engine.optimizer.refresh_fp32_params()
    _make_state(engine)
    for name, parameter in engine.module.model.named_parameters():
        if parameter.requires_grad:
            for kind in _MOMENTS:
                safe_set_full_optimizer_state(parameter, state[name][kind].to(parameter.device), kind)
    (step,) = {float(values["step"]) for values in state.values()}  # each update was one of all parameters
    for values in engine.basic_optimizer.state.values():
        values["step"].fill_(step)


def _make_state(engine: nn.Module) -> None:
    """Let each parameter have its optimizer state, which is made in the first update.

    Before that one, this makes one that changes nothing, of no gradient at no learning rate.
    """
    from deepspeed.utils.mixed_precision_linkage import lazy_init_hp_params_optimizer_state

    zero, state = engine.optimizer, engine.basic_optimizer.state
    if not state:
        groups = zero.param_groups
        rates = [group["lr"] for group in groups]
        for group in groups:
            group["lr"] = 0.0
        engine.set_gradient_accumulation_boundary(True)
        engine.backward(sum(parameter.sum() for parameter in engine.module.parameters()) * 0.0)
        engine.step()
        for group, rate in zip(groups, rates):
            group["lr"] = rate
        for values in state.values():
            values["step"].zero_()
    # DeepSpeed does this once, after the update of its first group, when the others have no state yet.
    for parameters, flat in zip(zero.bit16_groups, zero.single_partition_of_fp32_groups):
        lazy_init_hp_params_optimizer_state(parameters, flat, state)
