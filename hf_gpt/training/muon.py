"""Muon: momentum, orthogonalised, for the matrices that hidden states go through; AdamW for everything else.

Where AdamW scales each number of an update by its own history, Muon replaces the momentum of a weight matrix by the
nearest orthogonal matrix, so that an update moves all directions of the matrix alike (Jordan et al. 2024,
https://kellerjordan.github.io/posts/muon/). The update is scaled to the size AdamW's have (Liu et al. 2025,
"Muon is scalable for LLM training", section 2.2), so that learning rates and weight decay mean what they mean there.

`torch.optim.Muon` is the same update, one matrix at a time and in bf16. Here matrices of equal shape are
orthogonalised together, and in bf16 only where a device has units for it: elsewhere torch's costs more than the rest
of a small model's step. And it is one optimizer with AdamW, since everything that wraps, saves and restores
an optimizer expects one. Where weights are sharded (FSDP2) each process gathers a stack of momenta, orthogonalises it
as all others do, and keeps its own rows: the arithmetic is that of one process.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from ..precision import multiplies_bf16

# The quintic of Jordan et al.: steepest at zero, so that few iterations do; singular values end near 1.
_QUINTIC = (3.4445, -4.7750, 2.0315)
_ITERATIONS = 5
# Matrices are stacked up to this many numbers, 64 MiB in fp32; larger stacks are no faster and take more memory.
_STACKED_NUMBERS = 2**24


class Muon(torch.optim.AdamW):
    """AdamW, whose groups with `orthogonal: True` hold matrices, or stacks of them, and are updated by Muon instead.

    Args:
        momentum: of the orthogonalised groups, in Nesterov's form.
        mixed_precision: of the recipe. A CPU orthogonalises in bf16 only if it is `bf16`; a GPU wherever it is fast.

    The other arguments are AdamW's. An orthogonalised group uses its own `lr` and `weight_decay` (decoupled, as in
    AdamW), and its state is one `momentum_buffer` for each parameter.
    """

    def __init__(self, groups: list[dict], *, momentum: float = 0.95, mixed_precision: str = "no", **adamw):
        self._bf16_on_cpu = mixed_precision == "bf16"
        for group in groups:
            group.setdefault("orthogonal", False)
            group["momentum"] = momentum
            if group["orthogonal"] and any(parameter.ndim not in (2, 3) for parameter in group["params"]):
                raise ValueError(
                    "Muon orthogonalises matrices and stacks of them; give other parameters in a group without"
                    " `orthogonal`"
                )
        super().__init__(groups, **adamw)
        # Fused AdamW would be left to find overflowing gradients by itself; the scaler does it for both.
        self._step_supports_amp_scaling = False

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        """One update of every parameter that has a gradient."""
        groups = self.param_groups
        self.param_groups = [group for group in groups if not group["orthogonal"]]
        try:
            loss = super().step(closure)
        finally:
            self.param_groups = groups
        for group in groups:
            if group["orthogonal"]:
                self._update(group)
        return loss

    def __getstate__(self) -> dict:
        return {**super().__getstate__(), "_bf16_on_cpu": self._bf16_on_cpu}

    def __setstate__(self, state: dict) -> None:
        torch.optim.Optimizer.__setstate__(self, state)  # AdamW's looks for its own state in every group

    def _update(self, group: dict) -> None:
        parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
        if not parameters:
            return
        gradients = [parameter.grad for parameter in parameters]
        for parameter in parameters:
            if "momentum_buffer" not in self.state[parameter]:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        momenta = [self.state[parameter]["momentum_buffer"] for parameter in parameters]
        torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
        torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        updates = torch._foreach_lerp(gradients, momenta, group["momentum"])
        for stack in _stacks(updates):
            together = torch.stack([_whole(updates[number]) for number in stack])
            directions = self._orthogonalized(together.flatten(0, -3)).view_as(together)
            # the root mean square of AdamW's updates is about 0.2, that of an orthogonal matrix 1 / sqrt(longer side)
            size = 0.2 * max(directions.shape[-2:]) ** 0.5
            for number, direction in zip(stack, directions):
                parameter = parameters[number]
                parameter.add_(_spread_as(parameter, direction), alpha=-group["lr"] * size)

    def _orthogonalized(self, matrices: Tensor) -> Tensor:
        device_type = matrices.device.type
        in_bf16 = multiplies_bf16(device_type) and (device_type != "cpu" or self._bf16_on_cpu)
        parts = matrices.split(max(1, _STACKED_NUMBERS // matrices[0].numel()))  # one parameter may stack many experts
        return torch.cat([orthogonalized(x.bfloat16() if in_bf16 else x).to(matrices.dtype) for x in parts])


def orthogonalized(matrices: Tensor) -> Tensor:
    """`matrices` (number, rows, columns), each with its singular values moved near 1 by Newton-Schulz iterations."""
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7)  # the iterations need singular values of at most 1
    a, b, c = _QUINTIC
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def _stacks(matrices: list[Tensor]) -> Iterator[list[int]]:
    """Numbers of matrices, or stacks of them, that can be stacked: of one shape, and not too many."""
    of_shape = defaultdict(list)
    for number, matrix in enumerate(matrices):
        of_shape[matrix.shape].append(number)
    for shape, numbers in of_shape.items():
        at_once = max(1, _STACKED_NUMBERS // shape.numel())
        for first in range(0, len(numbers), at_once):
            yield numbers[first : first + at_once]


def _whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _spread_as(parameter: Tensor, whole: Tensor) -> Tensor:
    """This process's part of `whole`, which all of them have, as `parameter` is spread."""
    if not isinstance(parameter, DTensor):
        return whole
    return distribute_tensor(whole, parameter.device_mesh, parameter.placements, src_data_rank=None)
