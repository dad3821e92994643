"""A run, tried out before it begins: once without contents, for its memory, and a few real steps, for its time.

Both are the run of `loop.py` itself, in a scratch folder that is gone afterwards: nothing is written where the run
will be, and a run that is already there is not looked at. The first one has fake tensors, so that a model of any size
is made, trained for two updates and evaluated in some seconds and next to no memory. It always is on the CPU, and
stands in for another device's run: the tensors are the same but in attention, where GPUs have kernels for dropout, and
in the loss, whose logits a GPU goes without only where there are more of them (`modeling_gpt.tokens_per_chunk`).
"""

import dataclasses
import itertools
import statistics
import tempfile
import time
from typing import Any

import psutil
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from ..configuration_gpt import GPTConfig
from ..data.batches import BatchPlan
from ..errors import UserError
from ..estimate import Estimate, Memory, MemoryTracker, device_named, parameters_by_part
from ..modeling_gpt import GPTForCausalLM
from ..recipe import CheckpointRecipe, EvaluationRecipe, ModelRecipe, Recipe, TrackingRecipe
from ..run import find_pretrained, prepare_run
from .data import Data, batch_plan, num_steps, prepare_data
from .hardware import resolve_hardware
from .loop import TrainingRun, run
from .observers import Observer
from .utilization import flops_per_token

# Two updates, the second of which finds the optimizer's state; then an evaluation.
_UPDATES = 2
# Steps are measured until there are so many, or for so long. The first, which is slower, counts only if it is alone.
_MEASURED_STEPS = 20
_SECONDS = 30
# Where a step has more operations than this, one of a single window is measured first: there may be no time for more.
_LONG_STEP = 1e12


class _Enough(Exception):
    """Ends the trial run."""


def estimate(
    recipe: Recipe, device: str | None = None, devices: int = 1, utilization: float = 0.4, measure: bool = True
) -> Estimate:
    """What the run of `recipe` takes: here, or on `devices` of a `device` that is not here.

    Args:
        device: a name in :data:`hf_gpt.estimate.DEVICES`.
        utilization: the part of that device's peak that is assumed to be reached.
        measure: whether to time some real steps, where the run is to be here and fits.

    Raises:
        UserError: something in the recipe cannot work, or there is no such device.
    """
    if device is not None:
        device_named(device)
        if recipe.train.mixed_precision == "no":
            raise UserError("train.mixed_precision: no, but the figures of --device are for bf16; use auto or bf16")
        train = dataclasses.replace(recipe.train, device="cpu", mixed_precision="bf16")
        recipe = dataclasses.replace(recipe, train=train)
    recipe = resolve_hardware(recipe, None)
    here = device is None
    fused_dropout = not here or recipe.train.device != "cpu"
    data = prepare_data(recipe, find_pretrained(recipe.model))
    plan = batch_plan(data.recipe, data.windows, devices)
    model, memory = _without_contents(recipe, data, plan, fused_dropout)
    program = psutil.Process().memory_info().rss  # which by now has imported all that a run does
    steps = num_steps(recipe.train, plan)
    found = Estimate(
        parameters=parameters_by_part(model),
        num_layers=data.config.num_hidden_layers,
        tied=data.config.tie_word_embeddings,
        flops_per_token=flops_per_token(model, data.windows.context_length),
        gradient_checkpointing=recipe.train.gradient_checkpointing,
        memory=memory,
        program=program if here and recipe.train.device == "cpu" else None,
        available=_available(recipe.train.device) if here else None,
        text_tokens=data.windows.store.num_tokens,
        windows=len(data.windows),
        context_length=data.windows.context_length,
        steps=steps,
        windows_per_step=plan.global_batch_size,
        steps_per_epoch=plan.steps_per_epoch,
        tokens=_tokens(plan, steps),
    )
    if device is not None:
        return found.planned(device, devices, utilization)
    if not measure or not found.fits or not steps:
        return found
    return _measured(found, recipe)


def _measured(found: Estimate, recipe: Recipe) -> Estimate:
    """With the time that some real steps of the run take."""
    if found.flops_per_token * found.context_length * found.windows_per_step > _LONG_STEP:
        train = dataclasses.replace(
            recipe.train, batch_size=1, global_batch_size=None, gradient_accumulation_steps=None
        )
        seconds = _seconds_of_steps(dataclasses.replace(recipe, train=train))
        in_full = statistics.median(seconds) * found.windows_per_step
        if in_full * 2 > _SECONDS:
            return dataclasses.replace(found, step_seconds=in_full, measured_steps=len(seconds), measured_windows=1)
    seconds = _seconds_of_steps(recipe)
    return dataclasses.replace(
        found,
        step_seconds=statistics.median(seconds),
        measured_steps=len(seconds),
        measured_windows=found.windows_per_step,
    )


def _without_contents(
    recipe: Recipe, data: Data, plan: BatchPlan, fused_dropout: bool
) -> tuple[GPTForCausalLM, Memory]:
    """The model and the memory of the run, from fake tensors on the CPU."""
    config = {name: getattr(data.config, name) for name in GPTConfig._own_names() - set(GPTConfig.attribute_map)}
    train = dataclasses.replace(
        recipe.train,
        device="cpu",
        compile=False,
        global_batch_size=None,
        gradient_accumulation_steps=min(2, plan.accumulation),  # the second finds gradients, others are like it
    )
    if fused_dropout:
        if train.mixed_precision == "fp16":  # of the same size
            train.mixed_precision = "bf16"
        if train.attn_implementation != "eager":  # no kernel of a GPU keeps the weights that dropout is drawn for
            train.attn_implementation = "sdpa"
            config["attention_dropout"] = 0.0
    with tempfile.TemporaryDirectory(prefix="hf_gpt-estimate-") as scratch:
        recipe = dataclasses.replace(
            _in_scratch(data.recipe, scratch),
            model=ModelRecipe(config=config),  # not the weights of a model that was trained
            train=train,
            evaluation=EvaluationRecipe(first=_UPDATES, tokens=1, prompts=[]),
        )
        with FakeTensorMode(allow_non_fake_inputs=True), MemoryTracker() as tracker:
            job = prepare_run(recipe)
            job.max_steps = _UPDATES + 1
            job.accelerator.device_placement = False  # the model is there, and fake weights cannot be moved
            run(job, until=_UPDATES)
    return job.model, tracker.memory()


def _seconds_of_steps(recipe: Recipe) -> list[float]:
    """How long each of some real steps takes."""
    times: list[float] = []

    class Clock(Observer):
        required = True  # so that _Enough ends the run

        def stepped(self, training: TrainingRun, step: int, metrics: dict[str, Any] | None) -> None:
            times.append(time.monotonic())
            if times[-1] - times[0] > _SECONDS:
                raise _Enough

    with tempfile.TemporaryDirectory(prefix="hf_gpt-estimate-") as scratch:
        recipe = dataclasses.replace(
            _in_scratch(recipe, scratch),
            train=dataclasses.replace(recipe.train, log_every=1),  # which waits for the device in each step
            evaluation=EvaluationRecipe(first=10**9),
        )
        job = prepare_run(recipe)
        job.max_steps = max(job.max_steps, _MEASURED_STEPS + 2)  # the last step would be saved
        times.append(time.monotonic())
        try:
            run(job, [Clock()], until=_MEASURED_STEPS + 1)
        except _Enough:
            pass
        except KeyboardInterrupt:
            raise KeyboardInterrupt("interrupted; nothing was kept") from None
    seconds = [end - start for start, end in itertools.pairwise(times)]
    return seconds[1:] or seconds


def _in_scratch(recipe: Recipe, folder: str) -> Recipe:
    return dataclasses.replace(
        recipe, output_dir=folder, checkpoint=CheckpointRecipe(every=None), tracking=TrackingRecipe()
    )


def _tokens(plan: BatchPlan, steps: int) -> int:
    """Target tokens of so many steps; an epoch's last one may be short."""
    epochs, rest = divmod(steps, plan.steps_per_epoch)
    of_an_epoch = min(len(plan.windows), plan.steps_per_epoch * plan.global_batch_size)
    windows = epochs * of_an_epoch + min(rest * plan.global_batch_size, of_an_epoch)
    return windows * plan.windows.context_length


def _available(device: str) -> int | None:
    """Memory that is free here for tensors."""
    if device == "cpu":
        return psutil.virtual_memory().available
    return torch.cuda.mem_get_info()[0] if device == "cuda" else None
