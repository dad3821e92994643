"""Text and numbers for people: strangers' text made safe to look at, and one format for each kind of number."""

import math

from .errors import escape_unprintable as escape_unprintable  # which errors need too, and nothing is below them


def duration(seconds: float) -> str:
    """`45 s`, `3 min 20 s`, `2 h 5 min`, `3 d 4 h`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def short_number(number: float, digits: int = 3) -> str:
    """12000 -> 12k, 3400000 -> 3.4M"""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= size:
            return f"{number / size:.{digits}g}{letter}"
    return f"{number:.{digits}g}"


def perplexity(loss: float) -> str:
    """The exponential of a loss: `48,725.8`."""
    return f"{math.exp(loss):,.1f}" if loss < 15 else f"{math.exp(loss):.1e}" if loss < 700 else "too large"
