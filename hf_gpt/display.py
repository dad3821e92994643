"""Text and numbers for people: strangers' text made safe to look at, and one format for each kind of number."""

import math
import re
from decimal import Decimal

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


_POWERS = {"": 0, "k": 3, "K": 3, "M": 6, "B": 9, "G": 9, "T": 12}
_WRITTEN = re.compile(r"([-+]?(?:[0-9][0-9_]*)?(?:\.[0-9]+)?(?:[eE][-+]?[0-9]{1,2})?)([kKMBGT]?)")


def whole_number(text: str) -> int:
    """What `10M`, `1.5k`, `1e6`, `1_000` and `12` say, exactly; the inverse of `short_number` where that is exact.

    Raises:
        ValueError: it is no whole number, or one of more than 40 digits.
    """
    match = _WRITTEN.fullmatch(text.strip())
    if match is None or len(text) > 40:
        raise ValueError(f"not a whole number: {text[:40]!r}")
    try:
        sign, digits, power = Decimal(match[1].replace("_", "")).as_tuple()
    except ArithmeticError:
        raise ValueError(f"not a whole number: {text!r}") from None
    number, power = int("".join(map(str, digits))), power + _POWERS[match[2]]
    whole, rest = (number * 10**power, 0) if power >= 0 else divmod(number, 10**-power)
    if rest:
        raise ValueError(f"not a whole number: {text!r}")
    return -whole if sign else whole


def perplexity(loss: float) -> str:
    """The exponential of a loss: `48,725.8`."""
    return f"{math.exp(loss):,.1f}" if loss < 15 else f"{math.exp(loss):.1e}" if loss < 700 else "too large"
