"""What a run has seen by a step, in tokens and words, and so how many steps it takes to see so many.

A token counts where it is a target, a word where the token with its first character is one; epochs add up. Both are
functions of the text and the plan of its batches, which are known before step 1.
"""

import itertools
from collections.abc import Iterator
from typing import Literal

import numpy as np

from ..data.batches import BatchPlan
from ..data.words import words_in, words_of_windows
from ..errors import UserError
from ..recipe import TrainRecipe

Seen = Literal["tokens", "words"]


def num_steps(train: TrainRecipe, plan: BatchPlan) -> int:
    """How long a run is, whether its recipe counts in steps, epochs, tokens or words."""
    for seen in ("tokens", "words"):
        if (most := getattr(train, f"max_{seen}")) is not None:
            (step,) = first_steps(plan, seen, [most])
            return step
    return train.max_steps if train.max_steps is not None else max(1, round(train.epochs * plan.steps_per_epoch))


def words_of_step(plan: BatchPlan, step: int) -> int:
    """The words that begin in the targets of the global batch."""
    return words_in(plan.windows, plan.indices(step))


def first_steps(plan: BatchPlan, seen: Seen, values: list[int], max_steps: int | None = None) -> list[int | None]:
    """The first step at or past each of `values`, which ascend; None where that is behind `max_steps`."""
    found: list[int | None] = []
    total, done = 0, 0
    for counts in _by_epoch(plan, seen) if values else ():
        sums = total + np.cumsum(counts)
        while len(found) < len(values) and values[len(found)] <= sums[-1]:
            step = done + int(np.searchsorted(sums, values[len(found)])) + 1 if values[len(found)] else 0
            found.append(step if max_steps is None or step <= max_steps else None)
        if sums[-1] == total:
            raise UserError(f"{plan.windows.store.name}: there are no {seen} in it to count")
        total, done = int(sums[-1]), done + len(counts)
        if len(found) == len(values) or (max_steps is not None and done >= max_steps):
            break
    return found + [None] * (len(values) - len(found))


def count_until(plan: BatchPlan, seen: Seen, step: int) -> int:
    """How many tokens or words the steps up to `step` see."""
    total = 0
    for counts in _by_epoch(plan, seen) if step else ():
        total, step = total + int(counts[:step].sum()), step - len(counts)
        if step <= 0:
            break
    return total


def _by_epoch(plan: BatchPlan, seen: Seen) -> Iterator[np.ndarray]:
    """What each step of an epoch sees, int64 of shape (steps,), for one epoch after the other without end."""
    steps = plan.steps_per_epoch
    if seen == "tokens":
        tokens = np.full(steps, plan.num_targets(1), np.int64)
        tokens[-1] = plan.num_targets(steps)
        yield from itertools.repeat(tokens)
    of_windows = words_of_windows(plan.windows)
    for first in itertools.count(1, steps):
        words = of_windows[plan.indices(first, steps)]
        yield np.add.reduceat(words, np.arange(0, len(words), plan.global_batch_size))
