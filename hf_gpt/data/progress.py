"""Progress of long work on a text: a bar in a terminal or notebook, a line now and then in a log file.

Only the process that works reports progress, so processes that wait for it show nothing.
"""

import contextlib
import os
import sys
import time
from typing import Any

from tqdm.auto import tqdm

from ..display import escape_unprintable

_DELAY = 2.0  # seconds before anything is shown: most texts are done by then
_LINE_EVERY = 30.0  # seconds between two lines in a log file


class WorkProgress:
    """Call it with the number of characters, or other units, done since the last call; it shows their sum on stderr.

    In a terminal or notebook it is tqdm's bar, in a log file it is lines without control characters. `total` is how
    many there are, where that is known.
    """

    def __init__(self, description: str, unit: str = "characters", total: int | None = None):
        self._description = description = escape_unprintable(description, one_line=True)  # it holds a file's name
        self._unit, self._total, self._num_done = unit, total, 0
        self._started = time.monotonic()
        self._next_line = self._started + _DELAY
        self._bar = tqdm(
            desc=description,
            total=total,
            unit=f" {unit}",
            unit_scale=True,
            delay=_DELAY,
            file=sys.stderr,
            disable=not shows_bar(),
        )

    def __call__(self, num_done: int) -> None:
        self._num_done += num_done
        self._bar.update(num_done)
        now = time.monotonic()
        if self._bar.disable and now >= self._next_line:
            self._next_line = now + _LINE_EVERY
            elapsed = tqdm.format_interval(now - self._started)
            of = f" of {self._total:,}" if self._total is not None else ""
            line = f"{self._description}: {self._num_done:,}{of} {self._unit} in {elapsed}"
            print(line, file=sys.stderr, flush=True)

    def __enter__(self) -> "WorkProgress":
        return self

    def __exit__(self, *_: Any) -> None:
        self._bar.close()


def shows_bar() -> bool:
    """Whether stderr is a notebook, or a terminal that can show a bar: one that does not report zero columns."""
    if tqdm.__name__ == "tqdm_notebook" or not sys.stderr.isatty():
        return tqdm.__name__ == "tqdm_notebook"
    with contextlib.suppress(OSError):  # a terminal that reports no size
        return os.get_terminal_size(sys.stderr.fileno()).columns > 0
    return True
