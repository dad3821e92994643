"""Where a run begins to learn its training text by heart.

The book's lesson of chapter 5: the loss on training text falls on, the loss on validation text turns. Everything after
the turn makes the model worse on text that it has not seen, so the checkpoint to use is the one at the turn.
"""

import itertools
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from .records import is_number

# Nats. A rise of perplexity by less than 3 percent is no reason to stop a run.
_MATTERS = 0.03
# Evaluations after the lowest one: so many are needed, and so many of the newest are averaged.
_NEEDED, _AVERAGED = 2, 3
# How far back noise is looked for, how much of it is too little to tell, and how far a change must be above all others
# to be a single mishap and no noise.
_BEFORE, _NOISES, _MISHAP = 20, 1.5, 4.0
# Where training text's loss rises by a larger part of what validation's does, both rise.
_BOTH_RISE = 0.1


@dataclass(frozen=True)
class Course:
    """How validation loss has gone: its lowest point, and what it has done since.

    `falls`: the newest is the lowest, or not far above it. `over-fits`: it rises while training goes on to learn.
    `diverges`: both rise. `unsettled`: the newest lies above the lowest, but not for long enough, or not clearly
    enough, to tell. `too early`: fewer than three evaluations.
    """

    trend: Literal["too early", "falls", "over-fits", "diverges", "unsettled"]
    step: int  # of the lowest
    validation_loss: float  # there
    rise: float  # nats, from there to the mean of the newest evaluations


def turning_point(metrics: Sequence[Mapping[str, Any]]) -> Course | None:
    """The evaluation after which a run over-fits, or None where none can be told yet."""
    found = course(metrics)
    return found if found is not None and found.trend == "over-fits" else None


def course(metrics: Sequence[Mapping[str, Any]]) -> Course | None:
    """What the evaluations of a run say; None if there is none with a loss on both texts.

    A run over-fits after its lowest validation loss, if since then

    - there were at least two evaluations,
    - the newest three (or two) lie no lower than what it was around the lowest (the middle one of it and its
      neighbours), and their mean lies above that by 0.03 nats and by more than the noise: one and a half times the
      largest step that the curve took against its direction, a fall after the lowest point or a rise in the 20
      evaluations before it. One such step that is four times all others, a spike, is left out.
    - and the loss on the training text, at the same evaluations, has not risen along. Where both rise the run does
      not over-fit, it diverges.

    Of 300 made-up curves of 200 evaluations that fall for ever, with noise of 0.02 nats, 19 were marked for a while
    and none at its end.

    Args:
        metrics: the lines of metrics.jsonl; those that are no evaluation do not count.
    """
    keys = ("validation_loss", "eval_train_loss")
    evaluated = [line for line in metrics if all(is_number(line.get(key)) for key in keys)]
    if not evaluated:
        return None
    validation = [line["validation_loss"] for line in evaluated]
    training = [line["eval_train_loss"] for line in evaluated]
    lowest = validation.index(min(validation))
    around = statistics.median(validation[max(lowest - 1, 0) : lowest + 2])  # the lowest itself may be luck
    newest = slice(-min(_AVERAGED, max(len(validation) - 1 - lowest, 1)), None)
    rise = statistics.fmean(validation[newest]) - around
    along = statistics.fmean(training[newest]) - training[lowest]

    def so(trend: Any) -> Course:
        return Course(trend, evaluated[lowest]["step"], validation[lowest], rise)

    if len(validation) < _NEEDED + 1:
        return so("too early")
    noise = _noise(validation, lowest)
    if validation[-1] <= validation[lowest] + max(_MATTERS, noise):
        return so("falls")
    rises = rise > max(_MATTERS, _NOISES * noise) and min(validation[newest]) >= around
    if len(validation) - 1 - lowest < _NEEDED or not rises:
        return so("unsettled")
    return so("diverges" if along > _BOTH_RISE * rise else "over-fits")


def _noise(losses: Sequence[float], lowest: int) -> float:
    """The largest step against the direction of the curve, down to its lowest point and up from there."""
    changes = [after - before for before, after in itertools.pairwise(losses)]
    against = [*changes[max(lowest - _BEFORE, 0) : lowest], *(-change for change in changes[lowest:])]
    second, largest = sorted([0.0, 0.0, *against])[-2:]
    return second if largest > _MISHAP * second else largest
