"""`estimate(recipe)`: what a run takes, as numbers and as lines for people.

Parameters and tokens are counted on the model and on the tokenised text. Memory is that of a trial run with fake
tensors, time that of one with real tensors (`trial.py`), or it follows from a device's published speed (`devices.py`).
"""

import dataclasses
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import psutil
import torch
from torch import nn
from transformers import PreTrainedModel

from ..data.batches import BatchPlan
from ..display import Shown, duration, short_number
from ..errors import UserError
from ..recipe import Recipe
from ..structure import attention_classes, matrices, position_tables
from ..training.data import batch_plan, prepare_data
from ..training.hardware import resolve_hardware
from ..training.model import find_pretrained
from ..training.seen import num_steps
from ..training.utilization import flops_per_token
from .devices import Plan, check_plan, plan_run
from .memory import HEAP_KEEPS, MIB, Memory
from .trial import MOST_SECONDS, memory_of_run, seconds_of_steps

# A step of more operations than this may take too long: a step of one window is timed first.
_LONG_STEP = 1e12

_PARTS = ("embeddings", "positions", "attention", "feed-forward", "norms", "other", "output head")


def estimate(
    recipe: Recipe, device: str | None = None, devices: int = 1, utilization: float = 0.4, measure: bool = True
) -> "Estimate":
    """What the run of `recipe` takes: on this machine, or on `devices` of another `device`.

    Args:
        device: a name in :data:`hf_gpt.estimate.devices.DEVICES`.
        utilization: the part of that device's published speed that training is assumed to reach.
        measure: whether to time some real steps, for this machine and if the run fits into its memory.

    Raises:
        UserError: something in the recipe cannot work, or there is no such device.
    """
    check_plan(device, devices, utilization)
    is_here = device is None
    if not is_here:
        if recipe.train.mixed_precision == "no":
            message = "no, but the published figures of devices are for bf16; use auto or bf16"
            raise UserError(message, field="train.mixed_precision")
        train = dataclasses.replace(recipe.train, device="cpu", mixed_precision="bf16")
        recipe = dataclasses.replace(recipe, train=train)
    pretrained = find_pretrained(recipe.model)
    recipe = resolve_hardware(recipe, None, pretrained)
    on_cpu = is_here and recipe.train.device == "cpu"
    data = prepare_data(recipe, pretrained)
    batches = batch_plan(data.recipe, data.windows, devices)
    model, memory = memory_of_run(recipe, data, batches, on_gpu=not on_cpu)
    steps = num_steps(recipe.train, batches)
    found = Estimate(
        parameters=parameters_by_part(model),
        tied=data.config.get_text_config().tie_word_embeddings,
        flops_per_token=flops_per_token(model, data.windows.context_length),
        memory=memory,
        # By now everything that a run needs is imported.
        program=psutil.Process().memory_info().rss if on_cpu else 0,
        kept_by_heap=min(memory.in_heap, HEAP_KEEPS) if on_cpu else 0,
        available=_available(recipe.train.device) if is_here else None,
        text_tokens=data.windows.store.num_tokens,
        windows=len(data.windows),
        context_length=data.windows.context_length,
        steps=steps,
        windows_per_step=batches.global_batch_size,
        steps_per_epoch=batches.steps_per_epoch,
        tokens=_tokens(batches, steps),
    )
    if is_here:
        return _timed(found, recipe) if measure and found.fits and steps else found
    # With gradient checkpointing the forward pass, a third of the work, is done twice.
    passes = 4 / 3 if recipe.train.gradient_checkpointing else 1
    plan = plan_run(
        device,
        devices,
        utilization,
        flops=found.tokens * found.flops_per_token * passes,
        memory=memory,
        parameters=found.parameters,
        num_layers=data.config.get_text_config().num_hidden_layers,
    )
    return dataclasses.replace(found, plan=plan)


def parameters_by_part(model: PreTrainedModel) -> dict[str, int]:
    """How many parameters each kind of part has; together `model.num_parameters()`, since a tied head has none.

    A part that the model has not is left out. Experts and their routers are feed-forward, and a mixer that is no
    attention, such as Mamba's, is other.
    """
    attention, multiplying = attention_classes(model), {id(module) for module, _ in matrices(model)}
    positions, head = {id(table) for table in position_tables(model)}, model.get_output_embeddings()

    def part_of(module: nn.Module) -> str | None:
        """What all of `module` is, or None: see what its children are."""
        children = list(module.children())
        if isinstance(module, attention):
            return "attention"
        if module is head:
            return "output head"
        if isinstance(module, nn.Embedding):
            return "positions" if id(module.weight) in positions else "embeddings"
        if any(isinstance(child, nn.Conv1d) for child in children):
            return "other"
        if id(module) in multiplying:
            return "feed-forward"
        return "norms" if not children and all(parameter.ndim == 1 for parameter in module.parameters()) else None

    parts: dict[str, str | None] = {}
    for path, module in model.named_modules():  # parents before their children
        parts[path] = parts.get(path.rpartition(".")[0]) or part_of(module)
    counts = dict.fromkeys(_PARTS, 0)
    for name, parameter in model.named_parameters():  # which names a tied parameter once
        counts[parts[name.rpartition(".")[0]] or "other"] += parameter.numel()
    return {part: number for part, number in counts.items() if number or part == "output head"}


@dataclass(frozen=True, repr=False)
class Estimate(Shown):
    """What a run takes. Memory is in bytes, time in seconds."""

    parameters: dict[str, int]  # by part
    tied: bool
    flops_per_token: int
    memory: Memory
    program: int  # the process without tensors; 0 if they are not in the same memory
    kept_by_heap: int  # freed memory that malloc keeps; other devices have other allocators
    available: int | None  # memory that is free on this machine
    text_tokens: int
    windows: int
    context_length: int
    steps: int
    windows_per_step: int
    steps_per_epoch: int
    tokens: int
    step_seconds: float | None = None  # median of the steps that were timed
    measured_steps: int = 0
    measured_windows: int = 0  # in each of these steps: 1 where whole steps would have taken too long
    plan: Plan | None = None

    @property
    def num_parameters(self) -> int:
        return sum(self.parameters.values())

    @property
    def peak_memory(self) -> int:
        return self.memory.peak + self.program + self.kept_by_heap

    @property
    def fits(self) -> bool:
        """Whether the memory that is free here is enough; True if that is unknown."""
        return self.available is None or self.peak_memory - self.program < self.available

    def to_dict(self) -> dict[str, Any]:
        """All of it as JSON values."""
        values = dataclasses.asdict(self)
        values |= {"num_parameters": self.num_parameters, "peak_memory": self.peak_memory}
        if self.step_seconds is not None:
            values["seconds"] = self.step_seconds * self.steps
        return values

    def in_short(self) -> str:
        found = [f"{self.num_parameters:,} parameters", f"{_mib(self.peak_memory)} MiB", f"{self.steps:,} steps"]
        seconds = self.plan.seconds if self.plan else (self.step_seconds or 0) * self.steps
        return ", ".join([*found, duration(seconds)] if seconds else found)

    def describe(self) -> Iterator[str]:
        """The same for people, line by line."""
        yield _row("parameters", f"{self.num_parameters:,}")
        for part, count in self.parameters.items():
            tied = "tied to the embeddings" if part == "output head" and self.tied else ""
            yield _row(f"  {part}", f"{count:,}", tied)
        flops = short_number(self.flops_per_token)
        yield _row("operations", flops, "FLOPs per token, forward and backward (PaLM, appendix B)")
        yield from self._describe_memory()
        yield _row("text", f"{self.text_tokens:,}", f"tokens, {self.windows:,} windows of {self.context_length:,}")
        yield _row(
            "training",
            f"{self.tokens:,}",
            f"tokens: {self.steps:,} steps of {self.windows_per_step:,} windows,"
            f" {self.steps / self.steps_per_epoch:.2f} epochs of {self.steps_per_epoch:,} steps",
        )
        yield from self._describe_time() if self.plan is None else _describe_plan(self.plan)

    def _describe_memory(self) -> Iterator[str]:
        free = "" if self.available is None else f"; {_mib(self.available)} MiB are free"
        yield _row("memory", _mib(self.peak_memory), f"MiB at most{free}")
        if self.program:
            yield _row("  program", _mib(self.program), "MiB: Python and the libraries")
        for kind, size in self.memory.largest.items():
            then = self.memory.at_peak[kind]
            less = f" ({_mib(then)} at the peak of an update)" if (size - then) > size // 100 else ""
            yield _row(f"  {kind}", _mib(size), f"MiB{less}")
        if self.program:
            yield _row("  malloc", _mib(self.kept_by_heap), "MiB, about: freed but kept by the allocator")
        if self.memory.evaluating > sum(self.memory.at_peak.values()):
            yield _row("  evaluation", _mib(self.memory.evaluating), "MiB of tensors, more than an update")

    def _describe_time(self) -> Iterator[str]:
        if self.step_seconds is not None:
            speed = short_number(self.flops_per_token * self.tokens / self.steps / self.step_seconds)
            how = f"median of {self.measured_steps}"
            if self.measured_windows < self.windows_per_step:
                how = f"{self.windows_per_step:,} times a step of one window"
            yield _row(
                "time",
                duration(self.step_seconds * self.steps),
                f"without evaluating and saving: {self.step_seconds:.3g} s per step, {how} ({speed} FLOPs per second)",
            )
        elif not self.fits:
            yield _row("time", "?", "not measured: the run does not fit into the memory of this machine")


def _describe_plan(plan: Plan) -> Iterator[str]:
    yield _row(
        "time",
        duration(plan.seconds),
        f"on {plan.devices:,} x {plan.device}, if training reaches {plan.utilization:.0%} (utilization) of the"
        f" published {plan.tflops:,.0f} TFLOP/s in bf16",
    )
    if plan.devices == 1:
        rows = [("one device", plan.memory_ddp, "")]
    else:
        rows = [
            ("  per device, DDP", plan.memory_ddp, "; the whole state on each (calculated, not checked)"),
            ("  per device, FSDP2", plan.memory_fsdp2, "; a part of the state on each (calculated, not checked)"),
        ]
    for label, size, how in rows:
        fits = "fits" if size < plan.capacity else "does not fit"
        yield _row(label, _mib(size), f"MiB of {_mib(plan.capacity)}: {fits}{how}")


def _timed(found: Estimate, recipe: Recipe) -> Estimate:
    """With the time that some real steps of the run take."""
    if found.flops_per_token * found.context_length * found.windows_per_step > _LONG_STEP:
        train = dataclasses.replace(
            recipe.train, batch_size=1, global_batch_size=None, gradient_accumulation_steps=None
        )
        seconds = seconds_of_steps(dataclasses.replace(recipe, train=train))
        whole_step = statistics.median(seconds) * found.windows_per_step
        if whole_step * 2 > MOST_SECONDS:
            return dataclasses.replace(found, step_seconds=whole_step, measured_steps=len(seconds), measured_windows=1)
    seconds = seconds_of_steps(recipe)
    return dataclasses.replace(
        found,
        step_seconds=statistics.median(seconds),
        measured_steps=len(seconds),
        measured_windows=found.windows_per_step,
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


def _row(label: str, number: str, words: str = "") -> str:
    return f"{label:20}{number:>15} {words}".rstrip()


def _mib(num_bytes: int) -> str:
    return f"{num_bytes / MIB:,.0f}"
