"""What a step sees: windows into the token store, in an order that is computed from (seed, epoch).

The one idea: there is no iterator. The windows of step s are a function of s, so a run has no data state to save or to
lose, and every process computes its own part of the same global batch without communication. The order of an epoch is
a keyed permutation, computed point by point: an epoch of ten billion windows is set up as fast as one of ten.

The trade: such a permutation is not drawn uniformly (that needs a list); it only shows no pattern to training. And
windows are read from all over the store, which costs disk seeks the first time.

The tokens belong to token_store.py. Moving batches to a device is the loop's.
"""

import dataclasses
import functools
import hashlib
import math

import numpy as np
import torch

from ..errors import UserError
from .token_store import TokenStore

IGNORED = -100
"""Label of a position that is not trained on, as in transformers."""


@dataclasses.dataclass(frozen=True)
class Windows:
    """The windows of a store: inputs `tokens[i : i + T]` and targets `tokens[i + 1 : i + T + 1]`, for every `stride`.

    As in the book, they start at `range(0, num_tokens - context_length, stride)`; `stride` defaults to the context
    length. With `isolate_documents` batches also have positions, which restart at 0 on every document's beginning: its
    BOS, else the separator before it. The last token of a document predicts the separator, and the separator, without
    any context, predicts the first token of the next document.

    Raises:
        UserError: the store is shorter than one window. The message proposes to lower the context length or `remedy`.
    """

    store: TokenStore
    context_length: int
    stride: int | None = None
    isolate_documents: bool = False
    remedy: str = dataclasses.field(default="give more text", compare=False)

    def __post_init__(self) -> None:
        if len(self) == 0:
            raise UserError(
                f"{self.store.name}: {self.store.num_tokens} tokens, and a window takes {self.context_length + 1}; "
                f"lower data.context_length or {self.remedy}"
            )

    def __len__(self) -> int:
        return len(range(0, self.store.num_tokens - self.context_length, self.stride or self.context_length))

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """One row of a batch, so that windows are a dataset for torch's `DataLoader`: tensors of shape (time,)."""
        index = range(len(self))[index]  # also -1, and an IndexError past the end
        return {name: rows[0] for name, rows in self.batch(np.array([index])).items()}

    def window(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and targets, each of shape (time,): views into the store."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        start = index * (self.stride or self.context_length)
        tokens = self.store.tokens[start : start + self.context_length + 1]
        return tokens[:-1], tokens[1:]

    def batch(self, indices: np.ndarray, size: int | None = None) -> dict[str, torch.Tensor]:
        """`input_ids`, `shift_labels` (and `position_ids`) of some windows: int64 of shape (batch, time).

        If `size` is given, the batch is padded to that many rows with windows without targets (all labels -100).
        """
        shape = (len(indices) if size is None else size, self.context_length)
        input_ids, shift_labels = np.zeros(shape, np.int64), np.full(shape, IGNORED, np.int64)
        for row, index in enumerate(indices):
            input_ids[row], shift_labels[row] = self.window(int(index))
        batch = {"input_ids": torch.from_numpy(input_ids), "shift_labels": torch.from_numpy(shift_labels)}
        if self.isolate_documents:
            begin, separator = self.store.begin_id, self.store.separator_id
            batch["position_ids"] = _positions(batch["input_ids"], separator if begin is None else begin)
        return batch


@dataclasses.dataclass(frozen=True)
class BatchPlan:
    """Which windows each step sees: a pure function of (windows, seed, step), for any number of processes.

    A step takes `batch_size` windows on each of `world_size` processes, `accumulation` times. Which windows these are
    depends only on the product. Steps are counted from 1 and continue through the epochs. An epoch's last global batch
    may be short (or is left out with `drop_last`). Then every process still runs the same number of micro-batches of
    the same shape, padded with windows without targets.
    """

    windows: Windows
    batch_size: int
    world_size: int = 1
    accumulation: int = 1
    seed: int = 0
    shuffle: bool = True
    drop_last: bool = False

    def __post_init__(self) -> None:
        if self.steps_per_epoch == 0:
            raise UserError(
                f"{self.windows.store.name}: has {len(self.windows)} windows, fewer than the {self.global_batch_size} "
                "of a step; lower train.batch_size or set data.drop_last to false"
            )

    @property
    def global_batch_size(self) -> int:
        """Windows of a full step, over all processes."""
        return self.batch_size * self.world_size * self.accumulation

    @property
    def steps_per_epoch(self) -> int:
        full, rest = divmod(len(self.windows), self.global_batch_size)
        return full + (rest > 0 and not self.drop_last)

    def epoch(self, step: int) -> int:
        """The epoch of `step`, counted from 0."""
        if step < 1:
            raise IndexError(f"steps are counted from 1, found {step}")
        return (step - 1) // self.steps_per_epoch

    def indices(self, step: int, num_steps: int = 1) -> np.ndarray:
        """The windows of the global batch, in order: int64 of shape (up to global_batch_size,), or of several."""
        first = (step - 1) % self.steps_per_epoch * self.global_batch_size
        places = np.arange(first, min(first + num_steps * self.global_batch_size, len(self.windows)))
        return permuted(places, len(self.windows), f"{self.seed}/{self.epoch(step)}") if self.shuffle else places

    def num_targets(self, step: int) -> int:
        """Target tokens of the global batch, over all processes: what a summed loss is divided by."""
        first = (step - 1) % self.steps_per_epoch * self.global_batch_size
        return min(self.global_batch_size, len(self.windows) - first) * self.windows.context_length

    def micro_batches(self, step: int, rank: int = 0) -> list[dict[str, torch.Tensor]]:
        """What process `rank` runs in `step`: batches of shape (batch_size, time), at most `accumulation` of them."""
        indices = self.indices(step)
        # Micro-batch m of rank r takes block m * world_size + r. So processes share each micro-step evenly, and all of
        # them leave out the micro-steps for which no windows are left.
        num_micro_steps = -(-len(indices) // (self.batch_size * self.world_size))
        starts = ((m * self.world_size + rank) * self.batch_size for m in range(num_micro_steps))
        return [self.windows.batch(indices[start : start + self.batch_size], self.batch_size) for start in starts]


def permuted(places: np.ndarray, size: int, key: str) -> np.ndarray:
    """Where a pseudo-random permutation of `range(size)` sends `places`: int64, elementwise, without a table.

    A generalised Feistel network with cycle walking (Black and Rogaway, Ciphers with Arbitrary Finite Domains, 2002).
    A place is written as a pair (left, right) with left < a, right < b and a * b just above `size`. Each of eight
    rounds adds to one half, modulo a or b, a function of the other half and of a key. Subtracting the same undoes a
    round, so no two places get the same result. A result that is no place (not below `size`) is permuted again until
    it is one. The function is the finalizer of SplitMix64 (Steele, Lea and Flood, 2014): a good mixer, which leaves no
    pattern, but not a cipher. Integer arithmetic gives every platform the same order.
    """
    # At least 8 x 8: with fewer pairs the rounds do not reach every order.
    a = np.uint64(max(8, math.isqrt(size - 1) + 1))
    b = np.uint64(max(8, -(-size // int(a))))
    values = places.astype(np.uint64)
    walking = np.arange(len(values))
    while len(walking):
        left, right = np.divmod(values[walking], b)
        for left_key, right_key in _round_keys(key):
            left = (left + _mixed(right + left_key) % a) % a
            right = (right + _mixed(left + right_key) % b) % b
        values[walking] = moved = left * b + right
        walking = walking[moved >= size]
    return values.astype(np.int64)


@functools.lru_cache(maxsize=8)
def _round_keys(key: str) -> np.ndarray:
    """The keys of eight rounds, in pairs."""
    return np.frombuffer(hashlib.blake2b(key.encode()).digest(), "<u8").astype(np.uint64).reshape(4, 2)


def _mixed(x: np.ndarray) -> np.ndarray:
    """SplitMix64's finalizer: every output bit depends on every input bit."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _positions(input_ids: torch.Tensor, begin_id: int | None) -> torch.Tensor:
    """Positions that restart at 0 on each `begin_id` and at the start of each window. (batch, time) -> same shape."""
    places = torch.arange(input_ids.shape[1]).expand_as(input_ids)
    if begin_id is None:
        return places.contiguous()
    starts = torch.where(input_ids == begin_id, places, torch.zeros_like(places)).cummax(dim=1).values
    return places - starts
