"""What commands print, and where: results on stdout, everything else on stderr."""

import contextlib
import errno
import io
import json
import os
import sys
from collections.abc import Iterator
from typing import Any

from ..display import unfailing_stderr
from ..errors import UserError, one_line


@contextlib.contextmanager
def standard_streams() -> Iterator[None]:
    """Streams that a shell closed (`>&-`) are there: stderr loses what it gets, stdout refuses it.

    Their numbers are taken, so that no file that is opened gets one, and with it what a library prints. What they did
    not take is dropped at the end, where Python would try again, print a traceback and change the exit code.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
    if sys.stdout is None:
        sys.stdout = _Closed()
    try:
        with unfailing_stderr():
            yield
    finally:
        for stream in filter(None, (sys.stdout, sys.stderr)):
            try:
                stream.flush()
            except OSError:
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


class _Closed(io.TextIOBase):
    """A stdout that is closed."""

    encoding = "utf-8"

    def write(self, text: str) -> int:
        raise OSError(errno.EBADF, "it is closed, and the result has no other place", "stdout")


def print_json(value: Any) -> None:
    """Print one JSON object; other characters than ASCII are escaped where stdout is not UTF-8."""
    is_utf = (sys.stdout.encoding or "").lower().startswith("utf")
    print(json.dumps(value, ensure_ascii=not is_utf, allow_nan=False))


def say(line: str) -> None:
    """Print a line for people, in which names cannot move the cursor."""
    print(one_line(line), file=sys.stderr)


def set_up_hub(*, show_bars: bool = True) -> None:
    """Before any traffic with the Hub: bars only where they can move."""
    from huggingface_hub.utils import disable_progress_bars

    from ..data.progress import shows_bar

    if not (show_bars and shows_bar()):
        disable_progress_bars()


def check_output_file(file: str | None, field: str) -> None:
    """Refuse, before the work, a file that cannot be written after it."""
    from ..storage import local_path, refuse_unwritable

    if file is None:
        return
    path = local_path(file, field)
    if path.is_dir():
        raise UserError("is a folder; give a file", field=field, value=repr(file))
    refuse_unwritable(path.parent, field)
