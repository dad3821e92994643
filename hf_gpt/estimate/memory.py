"""The memory that a run's tensors take, recorded while it is tried out.

Memory is not computed by a formula. The run itself is executed with tensors that have a shape and no contents (torch's
`FakeTensorMode`), which takes seconds for a model of any size, while `MemoryTracker` records when each tensor appears
and goes. So the forecast follows whatever model, loss, optimizer, precision and checkpointing really do. It does not
see what a kernel takes for itself while it runs, nor what an allocator keeps of the memory that was freed.
"""

import weakref
from dataclasses import dataclass
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

MIB = 2**20
# glibc returns freed blocks of 32 MiB and more to the system; smaller ones stay in its heap (mallopt(3),
# M_MMAP_THRESHOLD and M_TRIM_THRESHOLD). For seven models of 5 M to 52 M parameters the heap kept 0 to 340 MiB, mostly
# 80 to 200, and no more for larger models. So the forecast is what comes and goes in small blocks, up to 128 MiB.
_HEAP_BLOCK = 32 * MIB
HEAP_KEEPS = 128 * MIB


@dataclass(frozen=True)
class Memory:
    """Bytes of tensors in one process, by kind: weights, gradients, optimizer, and activations.

    Activations are everything else, also logits and the batch.
    """

    largest: dict[str, int]  # of each kind, at its own maximum
    at_peak: dict[str, int]  # when an update takes the most in total: not all gradients need to exist then
    evaluating: int  # maximum while evaluating
    in_heap: int  # maximum of what comes and goes in blocks that malloc takes from its heap

    @property
    def peak(self) -> int:
        return max(sum(self.at_peak.values()), self.evaluating)


class MemoryTracker(TorchDispatchMode):
    """Records when the storage of each tensor appears and goes, while code runs inside this context.

    It is entered after the mode that makes tensors fake. Reading a number from a fake tensor gives zero, or true, so
    that losses are finite and nothing overflows. What is a weight, a gradient or optimizer state is taken from the
    optimizers that step in this context.
    """

    def __init__(self):
        super().__init__()
        self._changes: list[tuple[int, int]] = []  # (number of the storage, bytes: negative where it goes)
        self._kinds: dict[int, str] = {}
        self._numbers: dict[int, int] = {}  # of the storages that exist, by id
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
        if func.name() == "aten::_grouped_mm":  # of experts; without contents torch has it in bf16 alone
            first, second, offsets = args[:3]
            stacked = (len(offsets),) if first.ndim == second.ndim else ()
            result = first.new_empty(*stacked, first.shape[-2], second.shape[-1])
        else:
            result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self._number(leaf)
        return result

    def memory(self) -> Memory:
        """The maximum up to the last update, and the maximum after it, which is that of evaluating."""
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
        """The number of a tensor's storage; a new storage gets the next one."""
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
