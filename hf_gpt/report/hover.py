"""What a picture tells where the pointer is: some thirty places along its axis, and what each run says there."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

_MOST_PLACES = 32
_TOO_NEAR = 1 / 200  # of the axis


@dataclass(frozen=True)
class Voice:
    """What one run can tell: `tell(i)` is its text for `x[i]`; `x` ascends."""

    x: Sequence[float]
    tell: Callable[[int], str]

    def at(self, place: float) -> str | None:
        """What it says nearest to a place; nothing before it began and after it ended."""
        if not len(self.x) or not self.x[0] <= place <= self.x[-1]:
            return None
        after = int(np.searchsorted(self.x, place))
        return self.tell(min((max(after - 1, 0), after), key=lambda i: abs(self.x[i] - place)))


def told(voices: Sequence[Voice], tiers: Iterable[Iterable[float]], log: bool = False) -> list[tuple[float, str]]:
    """Some thirty places at the most, ascending, with what all voices say there.

    Places are taken from the first tier, then from the next, those of a tier spread evenly over the axis, as long as
    there is room.
    """
    far: Callable[[float], float] = math.log if log else float
    chosen: list[float] = []
    candidates = [sorted({x for x in tier if x > 0 or not log}) for tier in tiers]
    ends = [far(x) for tier in candidates for x in (tier[:1] + tier[-1:])]
    reach = _TOO_NEAR * (max(ends) - min(ends)) if ends else 0.0
    for tier in candidates:
        free = [x for x in tier if all(abs(far(x) - far(other)) > reach for other in chosen)]
        chosen += _spread(free, _MOST_PLACES - len(chosen), far)
    texts = ((place, [text for voice in voices if (text := voice.at(place))]) for place in sorted(chosen))
    return [(place, "\n".join(words)) for place, words in texts if words]


def _spread(ascending: Sequence[float], count: int, far: Callable[[float], float]) -> list[float]:
    """At most `count` of the values, evenly over the distance that they span."""
    if len(ascending) <= count:
        return [*ascending]
    distances = [far(x) for x in ascending]
    targets = np.linspace(distances[0], distances[-1], count)
    nearest = np.clip(np.searchsorted(distances, targets), 0, len(distances) - 1)
    return [ascending[i] for i in sorted(set(nearest.tolist()))]
