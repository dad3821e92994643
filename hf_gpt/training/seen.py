"""What a run has seen by a step, in tokens and words, and so how many steps it takes to see so many.

A token counts where it is a target, a word where the token with its first character is one; epochs add up. Both are
functions of the text and the plan of its batches, which are known before step 1. A branch goes on with the counts of
its parent, which may have had another text.
"""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ..data.batches import BatchPlan
from ..data.words import words_in, words_of_windows
from ..errors import UserError
from ..recipe import TrainRecipe

Seen = Literal["tokens", "words"]
_MOST_EPOCHS = 1_000_000  # each is looked at


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
    """The first step at or past each of `values`, which ascend; None where that is behind `max_steps`.

    Of those that a branch has reached where it begins, it is that step.
    """
    found: list[int | None] = []
    total, done = getattr(begun, seen), begun.step
    for counts in _by_epoch(plan, seen, done) if values else ():
        sums = np.cumsum(np.concatenate([[total], counts]))
        while len(found) < len(values) and values[len(found)] <= sums[-1]:
            step = done + int(np.searchsorted(sums, values[len(found)]))
            found.append(step if max_steps is None or step <= max_steps else None)
        if sums[-1] == total and len(counts) == plan.steps_per_epoch:
            raise UserError(f"{plan.windows.store.name}: there are no {seen} in it to count")
        if max_steps is None and values[-1] - total > _MOST_EPOCHS * int(counts.sum()) > 0:
            what = f"{values[-1]:,} is more than {_MOST_EPOCHS:,} epochs of {plan.windows.store.name}"
            raise UserError(what, field=f"train.max_{seen}")
        total, done = int(sums[-1]), done + len(counts)
        if len(found) == len(values) or (max_steps is not None and done >= max_steps):
            break
    return found + [None] * (len(values) - len(found))


def count_until(plan: BatchPlan, seen: Seen, step: int, begun: Begun = Begun()) -> int:
    """How many tokens or words were seen up to `step`."""
    total, left = getattr(begun, seen), step - begun.step
    for counts in _by_epoch(plan, seen, begun.step) if left > 0 else ():
        total, left = total + int(counts[:left].sum()), left - len(counts)
        if left <= 0:
            break
    return total


def _by_epoch(plan: BatchPlan, seen: Seen, done: int) -> Iterator[np.ndarray]:
    """What each step of an epoch sees, int64 of shape (steps,), for one epoch after the other without end.

    The first steps, which are `done`, are left out.
    """
    steps = plan.steps_per_epoch
    if seen == "tokens":
        tokens = np.full(steps, plan.num_targets(1), np.int64)
        tokens[-1] = plan.num_targets(steps)
        yield tokens[done % steps :]
        yield from itertools.repeat(tokens)
    of_windows = words_of_windows(plan.windows)
    for first in itertools.count(done - done % steps, steps):
        words = of_windows[plan.indices(first + 1, steps)]
        yield np.add.reduceat(words, np.arange(0, len(words), plan.global_batch_size))[max(0, done - first) :]
