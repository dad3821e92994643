"""How far a long read has come, for whoever waits: a bar where there is a screen, else a plain line now and then.

It comes from the one process that works. Those that wait for it never call it, and so show nothing.
"""

import contextlib
import os
import sys
import time
from typing import Any

from tqdm.auto import tqdm

# Seconds before anything is shown: most texts are done by then. And between two lines in a log file.
_DELAY = 2.0
_LINE_EVERY = 30.0


class ReadingProgress:
    """A function to call with the number of characters done since the last call; shows their sum on stderr.

    In a terminal or notebook that is tqdm's bar, in a log file lines without control characters.
    """

    def __init__(self, description: str):
        self._description = description
        self._num_characters = 0
        self._bar: tqdm | None = None
        self._started = self._next_line = 0.0

    def __call__(self, num_characters: int) -> None:
        self._num_characters += num_characters
        if self._bar is None:
            self._start()
        self._bar.update(num_characters)
        if self._bar.disable and time.monotonic() >= self._next_line:
            self._line()

    def __enter__(self) -> "ReadingProgress":
        return self

    def __exit__(self, *_: Any) -> None:
        if self._bar is not None:
            self._bar.close()

    def _start(self) -> None:
        self._started = time.monotonic()
        self._next_line = self._started + _DELAY
        self._bar = tqdm(
            desc=self._description,
            unit=" characters",
            unit_scale=True,
            delay=_DELAY,
            file=sys.stderr,
            disable=not shows_bar(),
        )

    def _line(self) -> None:
        now = time.monotonic()
        self._next_line = now + _LINE_EVERY
        elapsed = tqdm.format_interval(now - self._started)
        print(f"{self._description}: {self._num_characters:,} characters in {elapsed}", file=sys.stderr, flush=True)


def shows_bar() -> bool:
    """Whether somebody watches a notebook, or a terminal that has a width, where a bar can move."""
    return tqdm.__name__ == "tqdm_notebook" or (sys.stderr.isatty() and _has_width())


def _has_width() -> bool:
    """Not all terminals do: in one of no columns a bar is nothing."""
    with contextlib.suppress(OSError):  # nor do all say
        return os.get_terminal_size(sys.stderr.fileno()).columns > 0
    return True
