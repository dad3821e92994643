"""Where matrix products are fast in bf16: a rule on what a device has, never on its name or a clock."""

import torch


@torch.compiler.assume_constant_result
def multiplies_bf16(device_type: str) -> bool:
    """Whether a device has units for products of bf16 matrices; elsewhere these are slower than in fp32.

    A CPU: AVX-512 BF16, AMX, or Arm's bf16 matrix instructions, used by way of oneDNN. What `ATEN_CPU_CAPABILITY`
    says of vector instructions does not change it.
    """
    if device_type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device_type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    return bool(_units())


def describe_cpu() -> str:
    """What decides the last digits of sums and products on this CPU: its vector instructions, and bf16 units."""
    return ", ".join([torch.backends.cpu.get_cpu_capability(), *_units()])


def _units() -> list[str]:
    """This CPU's units for bf16; none where an earlier torch cannot tell."""
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()
    return [name for name in ("avx512_bf16", "amx_bf16", "bf16") if capabilities.get(name, False)]
