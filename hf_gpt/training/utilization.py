"""How well a run uses its device: the peak it could reach, and the memory it took.

Model FLOPs utilisation (PaLM, Chowdhery et al. 2022, appendix B) is the part of a device's peak that training reaches.
Data sheets print a peak that no program sees, and none at all for most CPUs. So the peak is measured here: large
matrix products in the run's precision, for a fifth of a second before the run begins. Nothing is drawn at random.
"""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from ..structure import attention_classes, matrices
from .observers import Observer

if TYPE_CHECKING:
    from .loop import TrainingRun

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
_SECONDS = 0.2
_SMALLEST, _TELLING, _LARGEST = 256, 1024, 8192  # width of the square matrices
_SHORT = 0.05  # seconds
_STATUS = Path("/proc/self/status")


class Utilization(Observer):
    """Adds to each train line `mfu`, of all devices together, and `peak_memory_bytes`, of the main process so far."""

    def began(self, training: "TrainingRun") -> None:
        device, processes = training.accelerator.device, training.accelerator.num_processes
        if "peak_flops" not in training.environment:
            peak = measured_peak(device, training.recipe.train.mixed_precision)
            training.environment["peak_flops"] = peak
        self._peak_flops = training.environment["peak_flops"] * processes
        self._flops_per_token = flops_per_token(training.model, training.job.data.windows.context_length)

    def stepped(self, training: "TrainingRun", step: int, metrics: dict[str, Any] | None) -> None:
        if metrics is not None and "tokens_per_second" in metrics:
            metrics["mfu"] = self._flops_per_token * metrics["tokens_per_second"] / self._peak_flops
            if memory := peak_memory_bytes(training.accelerator.device):
                metrics["peak_memory_bytes"] = memory


def measured_peak(device: torch.device, mixed_precision: str, seconds: float = _SECONDS) -> float:
    """Floating-point operations per second in matrix products on one device, the best that was seen.

    Sizes are doubled as long as there is time for the next one: large matrices reach more, and no size is good
    everywhere. It takes about `seconds`, and leaves no trace in random streams or in the peak of allocated memory.

    Args:
        mixed_precision: of the recipe: `bf16`, `fp16` or `no`.
    """
    dtype = _DTYPES.get(mixed_precision, torch.float32)
    best, size, began = 0.0, _SMALLEST, time.monotonic()
    while size <= _LARGEST:
        # No constants: on a GPU products of those take less power, and so run faster than real ones.
        values = torch.arange(size * size, device=device, dtype=torch.float32).remainder(251).sub(125).div(125)
        matrix = values.view(size, size).to(dtype)
        product = matrix @ matrix  # the first product of a size also chooses its kernel
        took = _product_seconds(matrix, product)
        if took < _SHORT:
            took = min(took, *(_product_seconds(matrix, product) for _ in range(2)))
        left = began + seconds - time.monotonic()
        # The next size takes up to 8 times as long. Where cores are busy, small products wait more than they work.
        if last := size == _LARGEST or (12 * took > left and (size >= _TELLING or took > _SHORT)):
            took = min([took, *(_product_seconds(matrix, product) for _ in range(min(100, int(left / took))))])
        best = max(best, 2 * size**3 / took)
        if last:
            break
        size *= 2
    if device.type == "cuda":
        del values, matrix, product
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    return best


def peak_memory_bytes(device: torch.device) -> int | None:
    """The most memory there ever was: of tensors on a CUDA device, else of this process, where /proc tells it."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        return None
    return int(line.split()[1]) * 1024  # it says kB, and means KiB


def _product_seconds(matrix: torch.Tensor, product: torch.Tensor) -> float:
    _wait(matrix.device)
    start = time.perf_counter()
    torch.mm(matrix, matrix, out=product)
    _wait(matrix.device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        getattr(torch, device.type).synchronize()


def flops_per_token(model: PreTrainedModel, context_length: int) -> int:
    """Floating-point operations that training on one token takes, forward and backward.

    As in PaLM (Chowdhery et al. 2022, appendix B): 6 for each parameter in a matrix product, a tied head included, and
    12 * heads * head_dim * context for the products of queries, keys and values of each layer that attends. A token
    goes through some of the experts alone, and looks no further than a sliding window. Within that attention counts as
    if nothing were masked; recomputation (gradient checkpointing), convolutions and the scans of state-space models
    do not count.
    """
    config, classes = model.config.get_text_config(), attention_classes(model)
    routed = (module.top_k for module in model.modules() if isinstance(getattr(module, "top_k", None), int))
    experts_used = next(routed, getattr(config, "num_experts_per_tok", None))
    total = 0
    for _, weight in matrices(model):
        stacked = weight.shape[0] if weight.ndim == 3 else 1
        total += 6 * weight.numel() * min(stacked, experts_used or stacked) // stacked
    for module in model.modules():
        if isinstance(module, classes):
            total += 6 * _width_of_attention(module, config) * _span_of_attention(module, config, context_length)
    return total


def _width_of_attention(module: nn.Module, config: PreTrainedConfig) -> int:
    """Numbers of one token's query and value in all heads; 0 where there are none, as in RWKV."""
    heads = getattr(module, "num_heads", None) or getattr(config, "num_attention_heads", 0)
    head_dim = getattr(module, "head_dim", None) or config.hidden_size // max(heads, 1)
    return heads * (getattr(module, "qk_head_dim", head_dim) + getattr(module, "v_head_dim", head_dim))


def _span_of_attention(module: nn.Module, config: PreTrainedConfig, context_length: int) -> int:
    window = getattr(module, "sliding_window", getattr(config, "sliding_window", None))
    return min(window or context_length, context_length)
