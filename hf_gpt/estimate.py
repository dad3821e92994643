"""What a run will take, before it begins: parameters, FLOPs, memory and time.

Memory is not computed by formula. The run itself is made with tensors that have shapes and no contents (torch's
`FakeTensorMode`), which takes seconds for a model of any size, while `MemoryTracker` writes down when each tensor
appears and goes. So the forecast follows whatever model, loss, optimizer, precision and checkpointing really do. What
it cannot see is what a kernel takes for itself while it runs, and what an allocator keeps of what was given back.

Running that, and timing some real steps, is the business of `training/trial.py`. Here are the counts, the tracker, the
published figures of devices, and what a person reads.
"""

import dataclasses
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .errors import UserError
from .modeling_gpt import GPTForCausalLM

MIB = 2**20
# glibc takes blocks of 32 MiB and more from the system and gives them back; smaller ones come from its heap, which
# keeps what was freed, in gaps and at its end (mallopt(3), M_MMAP_THRESHOLD and M_TRIM_THRESHOLD). For seven models of
# 5 M to 52 M parameters that was 0 to 340 MiB, mostly 80 to 200, and did not grow with the model. Taken here: as much
# as comes and goes in such blocks, up to 128 MiB.
_HEAP_BLOCK = 32 * MIB
_HEAP_KEEPS = 128 * MIB


@dataclass(frozen=True)
class Device:
    """An accelerator as its maker describes it: dense bf16 matrix products with fp32 sums, without sparsity."""

    tflops: float  # 10^12 operations per second
    gigabytes: int  # 10^9 bytes


# NVIDIA's data sheets print the tensor cores' figures with sparsity, which is twice the dense figure used here.
DEVICES = {
    "A10": Device(125, 24),  # NVIDIA A10 data sheet: 125 | 250 with sparsity
    "A100": Device(312, 80),  # NVIDIA A100 data sheet: 312 | 624 with sparsity
    "A100-40GB": Device(312, 40),  # the same
    "B200": Device(2250, 180),  # NVIDIA HGX B200 data sheet: 8 GPUs have 36 PFLOPS with sparsity and 1.4 TB
    "H100": Device(989, 80),  # NVIDIA H100 data sheet, SXM: 1,979 with sparsity
    "H100-NVL": Device(835, 94),  # NVIDIA H100 data sheet, NVL: 1,671 with sparsity
    "H100-PCIE": Device(756, 80),  # NVIDIA H100 PCIe product brief: 1,513 with sparsity
    "H200": Device(989, 141),  # NVIDIA H200 data sheet, SXM: 1,979 with sparsity
    "L4": Device(121, 24),  # NVIDIA L4 data sheet: 242 with sparsity
    "L40S": Device(362, 48),  # NVIDIA L40S data sheet: 362 | 733 with sparsity
    "MI250X": Device(383, 128),  # AMD Instinct MI250X data sheet; two dies, each a device of its own with half of it
    "MI300X": Device(1307, 192),  # AMD Instinct MI300X data sheet: 1,307.4
    "MI325X": Device(1307, 256),  # AMD Instinct MI325X data sheet: 1,307.4
    "RTX-3090": Device(71, 24),  # NVIDIA GA102 white paper: 71 | 142 with sparsity
    "RTX-4090": Device(165, 24),  # NVIDIA Ada white paper: 165.2 | 330.4 with sparsity
    "RTX-5090": Device(209, 32),  # NVIDIA RTX Blackwell white paper: 209.5 | 419 with sparsity
}


def device_named(name: str) -> tuple[str, Device]:
    """The device of that name, however it is capitalised.

    Raises:
        UserError: there is none.
    """
    known = name.upper().replace(" ", "-").replace("_", "-")
    if known not in DEVICES:
        raise UserError(f"--device {name}: unknown; valid names: {', '.join(DEVICES)}")
    return known, DEVICES[known]


def parameters_by_part(model: GPTForCausalLM) -> dict[str, int]:
    """How many parameters each kind of part has; together `model.num_parameters()`, since a tied head has none."""
    parts = dict.fromkeys(("embeddings", "positions", "attention", "feed-forward", "norms", "output head"), 0)
    for name, parameter in model.named_parameters():  # which names a tied parameter once
        if "embed_tokens" in name:
            part = "embeddings"
        elif "embed_positions" in name:
            part = "positions"
        elif "self_attn" in name:
            part = "attention"
        elif "mlp" in name:
            part = "feed-forward"
        else:
            part = "norms" if "norm" in name else "output head"
        parts[part] += parameter.numel()
    return parts


@dataclass(frozen=True)
class Memory:
    """Bytes of tensors in one process, and when there are most of them.

    Kinds are weights, gradients, optimizer, and activations: all else that comes and goes, logits and the batch too.
    """

    largest: dict[str, int]  # each kind for itself
    at_peak: dict[str, int]  # of an update, when all kinds together are largest: not all gradients need be there then
    evaluating: int  # the most while evaluating
    in_heap: int  # the most that comes and goes in blocks which malloc takes from its heap

    @property
    def peak(self) -> int:
        return max(sum(self.at_peak.values()), self.evaluating)


class MemoryTracker(TorchDispatchMode):
    """Writes down when the storage of each tensor appears and goes, while code runs inside this context.

    Works on fake tensors, and is entered after their mode. A number that is read from a fake tensor, which holds none,
    is a zero, or true: losses are finite, nothing overflows. What is a weight, a gradient or the state of an optimizer
    is learned from the optimizers that make a step meanwhile.
    """

    def __init__(self):
        super().__init__()
        self._changes: list[tuple[int, int]] = []  # (number of the storage, bytes: negative where it goes)
        self._kinds: dict[int, str] = {}
        self._numbers: dict[int, int] = {}  # of the storages that are alive, by id
        self._count = 0
        self._updates_end = 0

    def __enter__(self) -> "MemoryTracker":
        self._hooks = [
            register_optimizer_step_pre_hook(self._before_update),
            register_optimizer_step_post_hook(self._after_update),
        ]
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        for hook in self._hooks:
            hook.remove()
        super().__exit__(*error)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._local_scalar_dense.default:
            dtype = args[0].dtype
            return True if dtype is torch.bool else 0.0 if dtype.is_floating_point else 0
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self._number(leaf)
        return result

    def memory(self) -> Memory:
        """What was in memory at the worst moment up to the last update, and at the worst one after it."""
        alive = dict.fromkeys(("weights", "gradients", "optimizer", "activations"), 0)
        largest, at_peak, evaluating, in_heap, most_in_heap = dict(alive), dict(alive), 0, 0, 0
        for position, (number, size) in enumerate(self._changes):
            kind = self._kinds.get(number, "activations")
            alive[kind] += size
            if abs(size) < _HEAP_BLOCK and kind in ("gradients", "activations"):
                in_heap += size
                most_in_heap = max(most_in_heap, in_heap)
            if position >= self._updates_end:
                evaluating = max(evaluating, sum(alive.values()))
                continue
            largest[kind] = max(largest[kind], alive[kind])
            if sum(alive.values()) > sum(at_peak.values()):
                at_peak = dict(alive)
        return Memory(largest, at_peak, evaluating, most_in_heap)

    def _number(self, tensor: torch.Tensor) -> int:
        """The number of a tensor's storage, which is a new one when it is seen for the first time."""
        storage = tensor.untyped_storage()
        if id(storage) not in self._numbers:
            self._numbers[id(storage)] = self._count
            self._changes.append((self._count, storage.nbytes()))
            weakref.finalize(storage, self._gone, id(storage), storage.nbytes())
            self._count += 1
        return self._numbers[id(storage)]

    def _gone(self, key: int, size: int) -> None:
        self._changes.append((self._numbers.pop(key), -size))

    def _before_update(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        for parameter in (p for group in optimizer.param_groups for p in group["params"]):
            self._kinds[self._number(parameter)] = "weights"
            if parameter.grad is not None:
                self._kinds[self._number(parameter.grad)] = "gradients"

    def _after_update(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        for leaf in tree_leaves(list(optimizer.state.values())):
            if isinstance(leaf, torch.Tensor):
                self._kinds[self._number(leaf)] = "optimizer"
        self._updates_end = len(self._changes)


@dataclass(frozen=True)
class Plan:
    """A run on other devices than this machine's, by their published figures."""

    device: str
    devices: int
    utilization: float  # assumed: the part of the peak that training reaches
    seconds: float
    memory_ddp: int  # bytes a device
    memory_fsdp2: int

    @property
    def capacity(self) -> int:
        return DEVICES[self.device].gigabytes * 10**9


@dataclass(frozen=True)
class Estimate:
    """What a run takes. Memory is in bytes, time in seconds."""

    parameters: dict[str, int]  # by part
    num_layers: int
    tied: bool
    flops_per_token: int
    gradient_checkpointing: bool
    memory: Memory
    program: int | None  # the process without tensors, where the two share a memory
    available: int | None  # memory that is free here
    text_tokens: int
    windows: int
    context_length: int
    steps: int
    windows_per_step: int
    steps_per_epoch: int
    tokens: int
    step_seconds: float | None = None  # the median of the steps that were measured here
    measured_steps: int = 0
    measured_windows: int = 0  # of each of these steps: 1 where there was no time for whole ones
    plan: Plan | None = None

    @property
    def num_parameters(self) -> int:
        return sum(self.parameters.values())

    @property
    def peak_memory(self) -> int:
        return self.memory.peak + (self.program or 0) + self.kept_by_heap

    @property
    def kept_by_heap(self) -> int:
        """What malloc does not give back in between; other devices have allocators of their own."""
        return min(self.memory.in_heap, _HEAP_KEEPS) if self.program else 0

    @property
    def fits(self) -> bool:
        """Whether what is free here is enough; unknown counts as enough."""
        return self.available is None or self.peak_memory - (self.program or 0) < self.available

    def planned(self, device: str, devices: int, utilization: float) -> "Estimate":
        """With the time and memory on `devices` of the `DEVICES` named `device`; tokens are those of all of them."""
        name, figures = device_named(device)
        # With gradient checkpointing the forward pass, a third of the work, is done twice.
        work = self.tokens * self.flops_per_token * (4 / 3 if self.gradient_checkpointing else 1)
        ddp = fsdp2 = self.memory.peak
        if devices > 1:
            # DDP keeps gradients once more, in the buckets that it sends.
            ddp += self.memory.largest["gradients"]
            # FSDP2 has a part of the state on each device. Whole are, for a time, the weights outside of blocks and
            # those of two blocks, since one comes while the other works.
            state = sum(size for kind, size in self.memory.at_peak.items() if kind != "activations")
            of_blocks = sum(self.parameters[part] for part in ("attention", "feed-forward", "norms"))
            whole = 4 * (self.num_parameters - of_blocks + 2 * of_blocks // self.num_layers)
            fsdp2 += whole - state * (devices - 1) // devices
        plan = Plan(
            device=name,
            devices=devices,
            utilization=utilization,
            seconds=work / (devices * figures.tflops * 1e12 * utilization),
            memory_ddp=ddp,
            memory_fsdp2=fsdp2,
        )
        return dataclasses.replace(self, plan=plan)

    def to_dict(self) -> dict[str, Any]:
        """All of it for `--json`."""
        values = dataclasses.asdict(self)
        values |= {"num_parameters": self.num_parameters, "peak_memory": self.peak_memory}
        values["kept_by_heap"] = self.kept_by_heap
        if self.step_seconds is not None:
            values["seconds"] = self.step_seconds * self.steps
        if self.plan is not None:
            values["plan"] |= {"capacity": self.plan.capacity, **dataclasses.asdict(DEVICES[self.plan.device])}
        return values

    def describe(self) -> Iterator[str]:
        """The same for people, line by line."""
        yield _row("parameters", f"{self.num_parameters:,}")
        for part, count in self.parameters.items():
            yield _row(
                f"  {part}", f"{count:,}", "the embeddings again" if part == "output head" and self.tied else ""
            )
        amount, unit = _scaled(self.flops_per_token)
        yield _row("operations", amount, f"{unit}FLOP a token, forward and backward (PaLM, appendix B)")
        room = "" if self.available is None else f"; {self.available / MIB:,.0f} MiB are free here"
        yield _row("memory", f"{self.peak_memory / MIB:,.0f}", f"MiB at the most{room}")
        if self.program is not None:
            yield _row("  program", f"{self.program / MIB:,.0f}", "MiB: Python and the libraries")
        for kind, size in self.memory.largest.items():
            then = self.memory.at_peak[kind]
            less = f", {then / MIB:,.0f} of it when an update needs the most" if (size - then) > size // 100 else ""
            yield _row(f"  {kind}", f"{size / MIB:,.0f}", f"MiB{less}")
        if self.program is not None:
            yield _row("  malloc", f"{self.kept_by_heap / MIB:,.0f}", "MiB that its heap keeps, about")
        if self.memory.evaluating > sum(self.memory.at_peak.values()):
            yield _row("  evaluating", f"{self.memory.evaluating / MIB:,.0f}", "MiB of tensors, more than an update")
        yield _row("text", f"{self.text_tokens:,}", f"tokens, {self.windows:,} windows of {self.context_length:,}")
        yield _row(
            "training",
            f"{self.tokens:,}",
            f"tokens: {self.steps:,} steps of {self.windows_per_step:,} windows,"
            f" {self.steps / self.steps_per_epoch:.2f} epochs of {self.steps_per_epoch:,} steps",
        )
        if self.plan is not None:
            yield from self._describe_plan(self.plan)
        elif self.step_seconds is not None:
            speed, unit = _scaled(self.flops_per_token * self.tokens / self.steps / self.step_seconds)
            how = f"median of {self.measured_steps}"
            if self.measured_windows < self.windows_per_step:
                how = f"{self.windows_per_step:,} times that of a single window"
            yield _row(
                "time",
                _duration(self.step_seconds * self.steps),
                f"here: {self.step_seconds:.3g} s a step, {how} ({speed} {unit}FLOP/s);"
                " evaluating and saving come on top",
            )
        elif not self.fits:
            yield _row("time", "?", "no step was tried: the run does not fit into this machine's memory")

    def _describe_plan(self, plan: Plan) -> Iterator[str]:
        figures = DEVICES[plan.device]
        yield _row(
            "time",
            _duration(plan.seconds),
            f"on {plan.devices:,} x {plan.device}, {figures.tflops:,.0f} TFLOP/s each in bf16 as published, if"
            f" {plan.utilization:.0%} of that is reached (assumed: --utilization)",
        )
        ways = (
            {"one device": plan.memory_ddp}
            if plan.devices == 1
            else {
                "  a device, DDP": plan.memory_ddp,
                "  a device, FSDP2": plan.memory_fsdp2,
            }
        )
        for way, size in ways.items():
            what = (
                "the whole state on each" if "DDP" in way else "a part of the state on each" if "FSDP" in way else ""
            )
            verdict = "fits" if size < plan.capacity else "does not fit"
            yield _row(
                way, f"{size / MIB:,.0f}", f"MiB of {plan.capacity / MIB:,.0f}: {verdict}{'; ' * bool(what)}{what}"
            )


def _row(label: str, number: str, words: str = "") -> str:
    return f"{label:18}{number:>15} {words}".rstrip()


def _scaled(number: float) -> tuple[str, str]:
    """Three digits, and the letter for the thousands left out."""
    letters = iter("kMGTP")
    letter = ""
    while number >= 999.5:
        number, letter = number / 1000, next(letters)
    return f"{number:.3g}", letter


def _duration(seconds: float) -> str:
    minutes, hours = seconds / 60, seconds / 3600
    if seconds < 100:
        return f"{seconds:.0f} s"
    if minutes < 100:
        return f"{minutes:.0f} min"
    return f"{hours:.1f} h" if hours < 72 else f"{hours / 24:.1f} days"
