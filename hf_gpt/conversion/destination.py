"""Where a result goes: there whole or not at all, and never over anything that somebody else put there.

A result is written under a temporary name, `.writing-<process>-<name>`: beside a directory that is not there yet,
which it then becomes in one rename, or inside an empty one, which is filled and stays the directory it was (somebody's
working directory, a mounted volume), `config.json` last, for without it there is no model. If something came there in
the meantime it is left alone, and the result is given up. What a process that was killed left behind, the next
conversion to the same place removes.
"""

import contextlib
import errno
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..errors import UserError
from ..storage import flush_path, flush_tree

_WHAT_WORKS = "name a directory that is not there yet, or an empty one"
_IS_FILLED = (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR)


@dataclass(frozen=True)
class Destination:
    """A place that a result can go to; `name` is what the user called it."""

    name: str
    path: Path

    @classmethod
    def of(cls, name: str) -> "Destination":
        """The place that the user calls `name`: a path with nothing there yet, or an empty directory.

        Raises:
            UserError: something is there, or nothing can be written there.
        """
        if not name.strip():
            raise UserError(f"the destination is {name!r}, no path; {_WHAT_WORKS}")
        try:
            destination = cls(name, Path(name).expanduser().resolve())
            destination._refuse_what_is_there()
            # Now rather than after the minutes that a conversion takes; access rights alone do not tell.
            destination._temporary.mkdir()
            destination._temporary.rmdir()
        except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle, or a home that nobody has
            why = getattr(error, "strerror", None) or error
            raise UserError(f"{name}: nothing can be written there: {why}; {_WHAT_WORKS}") from None
        return destination

    @contextlib.contextmanager
    def writing(self) -> Iterator[Path]:
        """A directory to fill; when the block ends without an error it is flushed, and is the destination or in it.

        Raises:
            UserError: something has come there in the meantime. It stays, and nothing of the result does.
        """
        temporary = self._temporary
        temporary.mkdir()
        try:
            yield temporary
            flush_tree(temporary)
            if temporary.parent == self.path:
                self._fill(temporary)
            else:
                self._become(temporary)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        flush_path(self.path.parent)

    @property
    def _temporary(self) -> Path:
        """In the nearest directory that is there: those between it and the destination are made at the end."""
        return self._nearest / f".writing-{os.getpid()}-{self.path.name}"

    @property
    def _nearest(self) -> Path:
        return next(path for path in (self.path, *self.path.parents) if path.exists())

    def _refuse_what_is_there(self) -> None:
        nearest = self._nearest
        if not nearest.is_dir():
            what = "is a file" if nearest == self.path else f"{nearest} is a file"
            raise UserError(f"{self.name}: {what}; {_WHAT_WORKS}")
        for path in nearest.iterdir():
            if self._is_left_behind(path):
                shutil.rmtree(path)
        if nearest == self.path and any(self.path.iterdir()):
            raise UserError(f"{self.name}: is not empty; {_WHAT_WORKS}")

    def _is_left_behind(self, path: Path) -> bool:
        found = re.fullmatch(rf"\.writing-(\d+)-{re.escape(self.path.name)}", path.name)
        return found is not None and not _is_alive(int(found[1]))

    def _become(self, temporary: Path) -> None:
        new = [path for path in (self.path.parent, *self.path.parent.parents) if not path.exists()]
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            os.rename(temporary, self.path)  # which takes the place of nothing but an empty directory
        except OSError as error:
            for path in new:
                with contextlib.suppress(OSError):
                    path.rmdir()
            if error.errno in _IS_FILLED:
                raise self._came_in_between() from None
            raise

    def _fill(self, temporary: Path) -> None:
        if list(self.path.iterdir()) != [temporary]:
            raise self._came_in_between()
        for path in sorted(temporary.iterdir(), key=lambda path: path.name == "config.json"):
            os.rename(path, self.path / path.name)
        temporary.rmdir()
        flush_path(self.path)

    def _came_in_between(self) -> UserError:
        return UserError(
            f"{self.name}: something has come there during the conversion; it was left alone, and nothing was written"
        )


def _is_alive(process: int) -> bool:
    """Whether a process of another number than ours runs; where that cannot be asked without harm, yes."""
    if os.name != "posix":
        return True
    if process == os.getpid():  # which was somebody else's then: containers number theirs from 1
        return False
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True
