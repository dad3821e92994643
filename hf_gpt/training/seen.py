"""What a run has seen by a step, in tokens and words, and so how many steps it takes to see so many.

A token counts where it is a target, a word where the token with its first character is one; epochs add up. Both are
functions of the text and the plan of its batches, which are known before step 1. A branch continues the counts of
its parent, which may have had another text.
"""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ..data.batches import BatchPlan
from ..data.words import words_in, words_of_windows
from ..errors import UserError
from ..recipe import TrainRecipe

Seen = Literal["tokens", "words"]
_MOST_EPOCHS = 10_000  # that are looked through one by one, where each leaves out other words


@dataclass(frozen=True)
class Begun:
    """Where a run begins: a branch at a step of its parent, which has seen this much; any other at zero."""

    step: int = 0
    tokens: int = 0
    words: int = 0
    is_branch: bool = False


def begun(parent: Mapping[str, Any] | None, plan: BatchPlan) -> Begun:
    """Where a run begins, by what its `environment.json` says of its parent, if it has one.

    What an earlier version did not write down there is counted by the run's own plan.
    """
    if parent is None:
        return Begun()
    step, kinds = parent["step"], ("tokens", "words")
    counts = [parent[seen] if seen in parent else count_until(plan, seen, step) for seen in kinds]
    return Begun(step, *counts, is_branch=True)


def num_steps(train: TrainRecipe, plan: BatchPlan, begun: Begun = Begun()) -> int:
    """How long a run is, whether its recipe counts in steps, epochs, tokens or words."""
    for seen in ("tokens", "words"):
        if (most := getattr(train, f"max_{seen}")) is not None:
            (step,) = first_steps(plan, seen, [most], begun=begun)
            return step
    return train.max_steps if train.max_steps is not None else max(1, round(train.epochs * plan.steps_per_epoch))


def words_of_step(plan: BatchPlan, step: int) -> int:
    """The words that begin in the targets of the global batch."""
    return words_in(plan.windows, plan.indices(step))


def first_steps(
    plan: BatchPlan, seen: Seen, values: list[int], max_steps: int | None = None, begun: Begun = Begun()
) -> list[int | None]:
    """The first step at or past each of `values`; None where that is behind `max_steps`.

    Of those that a branch has reached where it begins, it is that step.

    Raises:
        UserError: the text has none to count, or too few to look for so many.
    """
    ahead = [value for value in values if value > getattr(begun, seen)]
    epochs = _Epochs(plan, seen) if ahead else None
    shift = getattr(begun, seen) - epochs.until(begun.step) if ahead else 0  # of a plan that began at step 1
    steps = {value: epochs.first_step(value - shift, max_steps) for value in ahead}
    found = [steps.get(value, begun.step) for value in values]
    return [step if max_steps is None or step <= max_steps else None for step in found]


def count_until(plan: BatchPlan, seen: Seen, step: int, begun: Begun = Begun()) -> int:
    """How many tokens or words were seen up to `step`."""
    epochs = _Epochs(plan, seen)
    return getattr(begun, seen) + epochs.until(step) - epochs.until(begun.step)


class _Epochs:
    """What the steps of a plan see, epoch by epoch. Where every epoch sees the same in all, none is passed through."""

    def __init__(self, plan: BatchPlan, seen: Seen):
        self._plan, self._steps = plan, plan.steps_per_epoch
        self._sums = functools.lru_cache(maxsize=2)(self._sums_of)
        sees_all = self._steps * plan.global_batch_size >= len(plan.windows) or not plan.shuffle
        self._of_windows = words_of_windows(plan.windows) if seen == "words" else None
        if seen == "tokens":
            self._tokens = np.full(self._steps, plan.num_targets(1), np.int64)
            self._tokens[-1] = plan.num_targets(self._steps)
        self._total = int(self._sums(0)[-1]) if seen == "tokens" or sees_all else None
        if self._total == 0:
            raise UserError(f"{plan.windows.store.name}: there are no {seen} in it to count")

    def until(self, step: int) -> int:
        """What all steps up to this one see."""
        epoch, rest = divmod(step, self._steps)
        within = int(self._sums(epoch)[rest - 1]) if rest else 0
        if self._total is not None:
            return epoch * self._total + within
        return sum(int(self._sums(number)[-1]) for number in range(epoch)) + within

    def first_step(self, value: int, max_steps: int | None) -> int:
        """The first step by which `value` is seen, or one behind `max_steps`."""
        if self._total is not None:
            epoch = (value - 1) // self._total
            return epoch * self._steps + self._within(epoch, value - epoch * self._total)
        before = 0
        for epoch in range(_MOST_EPOCHS):
            of_epoch = int(self._sums(epoch)[-1])
            if before + of_epoch >= value:
                return epoch * self._steps + self._within(epoch, value - before)
            before += of_epoch
            if max_steps is not None and (epoch + 1) * self._steps >= max_steps:
                return max_steps + 1
        name = self._plan.windows.store.name
        raise UserError(f"{name}: has {before:,} words in {_MOST_EPOCHS:,} epochs, and {value:,} are asked for")

    def _within(self, epoch: int, value: int) -> int:
        return int(np.searchsorted(self._sums(epoch), value)) + 1

    def _sums_of(self, epoch: int) -> np.ndarray:
        """What was seen of an epoch after each of its steps."""
        if self._of_windows is None:
            return self._tokens.cumsum()
        words = self._of_windows[self._plan.indices(epoch * self._steps + 1, self._steps)]
        return np.add.reduceat(words, np.arange(0, len(words), self._plan.global_batch_size)).cumsum()
