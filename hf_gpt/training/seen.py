"""What a run has seen by a step, in tokens and words, and so how many steps it takes to see so many.

A token counts where it is a target, a word where the token with its first character is one; epochs add up. Both are
functions of the text and the plan of its batches, which are known before step 1.
"""

import math
from typing import Literal

import numpy as np

from ..data.batches import BatchPlan
from ..data.words import words_in, words_of_windows
from ..errors import UserError
from ..recipe import TrainRecipe

Seen = Literal["tokens", "words"]
_MOST_EPOCHS = 10_000  # that are looked through one by one, where each leaves out other words


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
    """The first step at or past each of `values`, which ascend; None where that is behind `max_steps`.

    Raises:
        UserError: the text has none to count, or too few to look for so many.
    """
    epochs, found = _Epochs(plan, seen), []
    for value in values:
        epoch, before = epochs.reaching(value, max_steps)
        within = int(np.searchsorted(epochs[epoch].cumsum(), value - before))
        step = epoch * plan.steps_per_epoch + within + 1 if value else 0
        found.append(step if max_steps is None or step <= max_steps else None)
    return found


def count_until(plan: BatchPlan, seen: Seen, step: int) -> int:
    """How many tokens or words the steps up to `step` see."""
    epochs = _Epochs(plan, seen)
    epoch, rest = divmod(step, plan.steps_per_epoch)
    return epochs.before(epoch) + int(epochs[epoch][:rest].sum())


class _Epochs:
    """What each step of an epoch sees: int64 of shape (steps,) by the epoch's number."""

    def __init__(self, plan: BatchPlan, seen: Seen):
        self._plan = plan
        steps = plan.steps_per_epoch
        sees_all = steps * plan.global_batch_size >= len(plan.windows) or not plan.shuffle
        self._of_windows = words_of_windows(plan.windows) if seen == "words" else None
        if seen == "tokens":
            self._tokens = np.full(steps, plan.num_targets(1), np.int64)
            self._tokens[-1] = plan.num_targets(steps)
        self._total = int(self[0].sum()) if seen == "tokens" or sees_all else None  # of each, where they are equal
        if self._total == 0:
            raise UserError(f"{plan.windows.store.name}: there are no {seen} in it to count")

    def __getitem__(self, epoch: int) -> np.ndarray:
        if self._of_windows is None:
            return self._tokens
        steps = self._plan.steps_per_epoch
        words = self._of_windows[self._plan.indices(epoch * steps + 1, steps)]
        return np.add.reduceat(words, np.arange(0, len(words), self._plan.global_batch_size))

    def before(self, epoch: int) -> int:
        """What all epochs before this one see."""
        if self._total is not None:
            return epoch * self._total
        return sum(int(self[number].sum()) for number in range(epoch))

    def reaching(self, value: int, max_steps: int | None) -> tuple[int, int]:
        """The epoch in which `value` is reached, or that is behind `max_steps`; and what those before it see."""
        if self._total is not None:
            epoch = max(0, value - 1) // self._total
            return epoch, epoch * self._total
        before = 0
        for epoch in range(_MOST_EPOCHS):
            of_epoch = int(self[epoch].sum())
            if before + of_epoch >= value or (max_steps or math.inf) <= epoch * self._plan.steps_per_epoch:
                return epoch, before
            before += of_epoch
        name = self._plan.windows.store.name
        raise UserError(f"{name}: has {before:,} words in {_MOST_EPOCHS:,} epochs, and {value:,} are asked for")
