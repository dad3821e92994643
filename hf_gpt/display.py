"""Text and numbers for people: strangers' text made safe to look at, one format for each kind of number, what a
result shows of itself, and a stderr that costs nobody their work."""

import contextlib
import html
import math
import os
import re
import sys
from collections.abc import Iterable, Iterator
from decimal import Decimal
from typing import IO, Any

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


def exact_number(number: int) -> str:
    """7000000 -> 7M, 1500000 -> 1.5M, 10000 -> 10k; one that is more than three digits keeps all: 1234567."""
    short = short_number(number)
    return short if whole_number(short) == number else str(number)


def perplexity(loss: float) -> str:
    """The exponential of a loss: `48,725.8`."""
    return f"{math.exp(loss):,.1f}" if loss < 15 else f"{math.exp(loss):.1e}" if loss < 700 else "too large"


class Shown:
    """A result that shows itself: `in_short` as its repr, and the lines of `describe` in a notebook."""

    def in_short(self) -> str:
        """A few words."""
        raise NotImplementedError

    def describe(self) -> Iterable[str]:
        """Lines for people."""
        return [self.in_short()]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({escape_unprintable(self.in_short(), one_line=True)})"

    def _repr_html_(self) -> str:
        lines = "\n".join(self.describe())
        return f"<pre>{html.escape(escape_unprintable(lines))}</pre>"


@contextlib.contextmanager
def unfailing_stderr() -> Iterator[None]:
    """Inside, what cannot be written to stderr is lost and nothing fails: `hf-gpt train ... 2>&1 | head` trains on."""
    before = sys.stderr
    sys.stderr = before if isinstance(before, _Unfailing) else _Unfailing(before)
    try:
        yield
    finally:
        sys.stderr = before


class _Unfailing:
    """A stream whose reader may go away."""

    def __init__(self, stream: IO[str] | None):
        self._stream = stream or open(os.devnull, "w")  # noqa: SIM115 - as long as the process

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        self._attempt(self._stream.write, text)
        return len(text)

    def flush(self) -> None:
        self._attempt(self._stream.flush)

    def _attempt(self, write: Any, *text: str) -> None:
        try:
            write(*text)
        except BrokenPipeError:  # for what was not written yet, for other streams, and for child processes
            with contextlib.suppress(OSError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
        except (OSError, ValueError):  # a full disk, a terminal that is gone, a stream that is closed
            pass
