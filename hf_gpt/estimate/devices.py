"""Time and memory on accelerators that are not here, from the figures that their makers publish.

Time is operations over speed; what part of the published speed training reaches, the caller assumes. Memory per device
under DDP and FSDP2 is calculated from that of one process; it was not checked on several devices.
"""

from dataclasses import dataclass

from ..errors import UserError
from .memory import Memory


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


@dataclass(frozen=True)
class Plan:
    """A run on such devices. Time is in seconds, memory in bytes per device."""

    device: str
    devices: int
    utilization: float  # assumed: the part of the published speed that training reaches
    tflops: float  # of each device, as published
    capacity: int  # memory of each device
    seconds: float
    memory_ddp: int
    memory_fsdp2: int


def find_device(name: str) -> str:
    """The key of `DEVICES` that `name` means, in any capitalisation."""
    key = name.upper().replace(" ", "-").replace("_", "-")
    if key not in DEVICES:
        raise UserError(f"unknown; valid names: {', '.join(DEVICES)}", field="device", value=name)
    return key


def check_plan(device: str | None, devices: int, utilization: float) -> None:
    """Refuse an unknown or missing device, a number of devices below 1, and an impossible utilization."""
    if device is not None:
        find_device(device)
    if devices < 1:
        raise UserError("must be 1 or more", field="devices", value=devices)
    if devices > 1 and device is None:
        raise UserError("give the device too, such as H100", field="devices", value=devices)
    if not 0 < utilization <= 1:
        raise UserError("must be above 0 and at most 1, such as 0.4", field="utilization", value=utilization)


def plan_run(
    device: str,
    devices: int,
    utilization: float,
    *,
    flops: float,
    memory: Memory,
    parameters: dict[str, int],
    num_layers: int,
) -> Plan:
    """The run on `devices` devices.

    Args:
        flops: operations of the whole run, on all devices together.
        memory: of one process that trains alone.
        parameters: how many, by part, as `forecast.parameters_by_part` counts them.
    """
    name = find_device(device)
    published = DEVICES[name]
    ddp = fsdp2 = memory.peak
    if devices > 1:
        # DDP holds gradients a second time, in the buckets that it sends.
        ddp += memory.largest["gradients"]
        # FSDP2 divides the state among the devices. Not divided at the peak are the weights outside of the blocks and
        # those of two blocks: one is fetched while the other computes.
        state = sum(size for kind, size in memory.at_peak.items() if kind != "activations")
        outside = sum(parameters.get(part, 0) for part in ("embeddings", "positions", "output head"))
        in_blocks = sum(parameters.values()) - outside
        undivided = 4 * (outside + 2 * in_blocks // num_layers)
        fsdp2 += undivided - state * (devices - 1) // devices
    return Plan(
        name,
        devices,
        utilization,
        tflops=published.tflops,
        capacity=published.gigabytes * 10**9,
        seconds=flops / (devices * published.tflops * 1e12 * utilization),
        memory_ddp=ddp,
        memory_fsdp2=fsdp2,
    )
