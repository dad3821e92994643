"""Milestones: checkpoints that a run keeps for ever, at steps, or where it has seen so many tokens or words.

Like the order of the data they are a pure function of the recipe and the text: each is the first step at or past what
was asked, which is known before step 1. So one that the run would not reach is refused then, and a run that was killed
and resumed has the same ladder as one that was not. A milestone is a checkpoint like any other, with one file more:

    milestone.json    {"step": 512, "tokens": 7003211, "words": 5312345, "asked": {"tokens": [7000000], "words": []}}

The first three are what was reached. Its training state is kept as long as `checkpoint.keep` keeps that of others, or
always with `training_state: true`; a milestone at another step than `checkpoint.every` is saved without one.

A run that resumes from a step before a milestone, perhaps with another learning rate, saves that milestone again: if
its weights are the same it is left alone, else it is replaced (`checkpoint.writing`).
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .. import checkpoint
from ..data.batches import BatchPlan
from ..display import short_number
from ..errors import UserError
from ..recipe import MilestonesRecipe
from ..storage import write_json
from .seen import Begun, count_until, first_steps, num_steps

if TYPE_CHECKING:
    from .loop import TrainingRun
    from .setup import Job

_MOST = 100_000  # checkpoints that stay


@dataclass(frozen=True)
class Milestone:
    """A step, and the values of tokens and words that were asked for and fall on it, usually one or none."""

    step: int
    tokens: tuple[int, ...] = ()
    words: tuple[int, ...] = ()


def schedule(asked: MilestonesRecipe, plan: BatchPlan, max_steps: int, begun: Begun) -> dict[int, Milestone]:
    """The milestones of a run of `max_steps`, by step; of a branch, those behind the step that it begins with.

    Raises:
        UserError: one lies behind the end of the run.
    """
    every, until = asked.every_steps, asked.powers_of_two_until
    steps = [("steps", step) for step in asked.steps]
    if every is not None:
        if max_steps // every > _MOST:
            what = f"{every:,}, and {max_steps:,} steps would leave {max_steps // every:,} checkpoints"
            raise UserError(f"checkpoint.milestones.every_steps: {what}; at most {_MOST:,} may stay")
        steps += [("every_steps", step) for step in range(every, max(max_steps, every) + 1, every)]
    if until is not None:
        powers = [1 << power for power in range(until.bit_length())]
        steps += [("powers_of_two_until", step) for step in (0, *powers)]
    if late := [(field, step) for field, step in steps if step > max_steps]:
        field, step = late[0]
        raise UserError(f"checkpoint.milestones.{field}: step {step:,}, and the run ends at step {max_steps:,}")
    places = {}
    for seen in ("tokens", "words"):
        values = sorted(set(getattr(asked, seen)))
        places[seen] = dict(zip(values, first_steps(plan, seen, values, max_steps, begun)))
        if late := [value for value, step in places[seen].items() if step is None]:
            total = count_until(plan, seen, max_steps, begun)
            where = f"the run ends at {total:,} {seen}, step {max_steps:,}"
            raise UserError(f"checkpoint.milestones.{seen}: {late[0]:,} is not reached: {where}")
    found = {step for _, step in steps} | {step for at in places.values() for step in at.values()}
    return {
        step: Milestone(step, *(tuple(v for v, at in places[seen].items() if at == step) for seen in places))
        for step in sorted(found)
        if step > begun.step or not begun.is_branch
    }


# In a run -----------------------------------------------------------------------------------------------------------


def refuse_added(job: "Job", step: int) -> None:
    """Refuse milestones of a run that is resumed at `step`, which lie behind it and were not asked for then.

    Also a number of tokens or words that falls on an earlier milestone, which does not know of it.
    """
    last = num_steps(job.earlier.train, job.plan, job.begun)
    earlier = schedule(job.earlier.checkpoint.milestones, job.plan, last, job.begun)
    for at, milestone in job.milestones.items():
        before = earlier.get(at)
        new = [*({*milestone.tokens} - {*before.tokens}), *({*milestone.words} - {*before.words})] if before else []
        if at <= step and (before is None or new):
            what = f"step {at:,}{f' for {new[0]:,}' if new else ''} is a new one"
            what += f", and the run in {job.run_dir} is at step {step:,}"
            raise UserError(f"checkpoint.milestones: {what}; a milestone can only be added ahead of it")


def describe(training: "TrainingRun") -> Iterator[str]:
    """How many there will be, and what they take on disk."""
    milestones, model = training.job.milestones, training.model
    if milestones:
        state = 8 if training.recipe.checkpoint.milestones.training_state else 0  # bytes of a parameter, for AdamW
        sizes = ((p.numel(), training.dtypes[name].itemsize + state) for name, p in model.named_parameters())
        each = sum(number * size for number, size in sizes)
        total = short_number(len(milestones) * each)
        yield (
            f"milestones {len(milestones)} checkpoints that stay, at steps {min(milestones):,} to {max(milestones):,}:"
            f" about {short_number(each)}B each, {total}B in all"
        )


@contextlib.contextmanager
def writing(training: "TrainingRun", step: int, with_state: bool) -> Iterator[Path]:
    """`checkpoint.writing`, of a milestone with its `milestone.json`; the main process calls it.

    If one with other weights was there, of a trajectory that the run has left, that is said.
    """
    final = training.run_dir / "checkpoints" / checkpoint.name_of(step)
    before = checkpoint.hashes_of_weights(final) if checkpoint.is_whole(final) else None
    with checkpoint.writing(training.run_dir, step, with_state=with_state) as directory:
        yield directory
        if milestone := training.job.milestones.get(step):
            reached = {"step": step, "tokens": training.progress.tokens, "words": training.progress.words}
            asked = {"tokens": [*milestone.tokens], "words": [*milestone.words]}
            write_json(directory / checkpoint.MILESTONE, {**reached, "asked": asked})
    if before is not None and before != checkpoint.hashes_of_weights(final):
        what = f"{final}: replaced: its weights were those of a trajectory that the run has left"
        training.event("replaced", what, step=step, milestone=final.name)


def drop_abandoned(training: "TrainingRun") -> None:
    """Remove milestones ahead of where the run begins or is resumed, if it will not save them again."""
    job, step = training.job, training.progress.step if training.resumed_from else -1
    for path in checkpoint.milestones(training.run_dir):
        if checkpoint.step_of(path) > step and checkpoint.step_of(path) not in job.milestones:
            what = f"{path}: removed: the run went back to step {max(step, 0)}, and will not save it again"
            training.event("removed", what, milestone=path.name)
            checkpoint.discard(path)
