"""Where a run begins to learn its training text by heart.

The book's lesson of chapter 5: the loss on training text falls on, the loss on validation text turns. Everything after
the turn makes the model worse on text that it has not seen, so the checkpoint to use is the one at the turn.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..report import is_number

# Nats. A rise of perplexity by less than 3 percent is no reason to stop a run.
_MATTERS = 0.03
# Evaluations after the lowest one: so many are needed, and so many of the newest are averaged.
_NEEDED, _AVERAGED = 2, 3
# How far back noise is looked for, and how much of it is too little to tell.
_BEFORE, _NOISES = 20, 1.5


@dataclass(frozen=True)
class Turn:
    """The step where validation loss was lowest before it rose."""

    step: int
    validation_loss: float
    rise: float  # nats, from there to the mean of the newest evaluations


def turning_point(metrics: Sequence[Mapping[str, Any]]) -> Turn | None:
    """The evaluation after which a run over-fits, or None where none can be told yet.

    It is the one with the lowest validation loss, if since then

    - there were at least two evaluations,
    - the mean validation loss of the newest three (or two) lies above what it was around the lowest (the middle one of
      it and its neighbours) by 0.03 nats, and by more than the noise: one and a half times the largest step that the
      curve took against its direction, a fall after the lowest point or a rise in the 20 evaluations before it,
    - and the loss on the training text, at the same evaluations, is lower than it was. Where both rise the run does
      not over-fit, it diverges.

    Of 300 made-up curves of 200 evaluations that fall for ever, with noise of 0.02 nats, 7 were marked for a while and
    1 at its end.

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
    num_after = len(validation) - 1 - lowest
    if num_after < _NEEDED:
        return None
    changes = [after - before for before, after in itertools.pairwise(validation)]
    noise = max([0.0, *changes[max(lowest - _BEFORE, 0) : lowest], *(-change for change in changes[lowest:])])
    newest = min(_AVERAGED, num_after)
    there = sorted(validation[max(lowest - 1, 0) : lowest + 2])[1]  # the lowest itself may be luck
    rise = sum(validation[-newest:]) / newest - there
    still_learns = sum(training[-newest:]) / newest < training[lowest]
    if rise <= max(_MATTERS, _NOISES * noise) or not still_learns:
        return None
    return Turn(evaluated[lowest]["step"], validation[lowest], rise)
