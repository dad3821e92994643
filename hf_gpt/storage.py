"""Atomic files and directories: whenever the process dies, each is either the old one or the complete new one.

Everything is written under a temporary name, forced to disk, then renamed. What the files mean is for others to say.
"""

import contextlib
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import psutil

from .errors import UserError


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically, as UTF-8."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically. If the path is a link, the file that it points to is replaced.

    Raises:
        OSError: it cannot be written. The error names `path`, which is unchanged.
    """
    target = Path(os.path.realpath(path))
    temporary = _temporary(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(content)
            flush_file(file)
        temporary.replace(target)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise OSError(error.errno, error.strerror, str(path)) from None


@contextlib.contextmanager
def replacing_directory(final: Path) -> Iterator[Path]:
    """A directory to fill. If the block ends without an error, it is forced to disk and replaces `final`."""
    temporary = _temporary(final)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        flush_tree(temporary)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    shutil.rmtree(final, ignore_errors=True)
    temporary.rename(final)
    flush_path(final.parent)


def read_json(path: Path) -> dict[str, Any]:
    """What `write_json` wrote; `{}` if there is no such file.

    Raises:
        UserError: it is damaged.
    """
    try:
        return json.loads(path.read_bytes()) if path.is_file() else {}
    except ValueError:
        raise UserError(f"{path}: is damaged; remove it to continue without it") from None


def local_path(name: str | os.PathLike, field: str | None = None) -> Path:
    """The path that a person wrote, with `~` expanded; it may not exist. `field` is what was given it.

    Raises:
        UserError: the home of `~` or `~someone` is not known, or the system takes no such name.
    """
    try:
        path = Path(name).expanduser()
        str(path).encode()
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            os.stat(path)
    except RuntimeError:
        raise UserError(f"{name}: nobody's home folder is known by that name", field=field) from None
    except UnicodeEncodeError:
        raise UserError("the path is not UTF-8", field=field) from None
    except (OSError, ValueError) as error:  # too long, not allowed, links in a circle; a NUL
        why = getattr(error, "strerror", None) or error
        raise UserError(f"{str(name)[:100]!r} cannot be opened: {why}", field=field) from None
    return path


def refuse_unwritable(folder: Path, field: str) -> None:
    """Refuse, before any work, a folder that cannot be created or written to; the error names `field`."""
    nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not nearest.is_dir():
        raise UserError(f"{nearest} is a file", field=field)
    try:
        tempfile.TemporaryFile(dir=nearest).close()  # access rights alone do not tell
    except OSError as error:
        raise UserError(f"{nearest} cannot be written to: {error.strerror}", field=field) from None


@contextlib.contextmanager
def new_directory(name: str) -> Iterator[Path]:
    """A directory to fill; when the block ends without an error it becomes the one that the user calls `name`.

    Raises:
        UserError: something is there, before the block or when it ends, or nothing can be written there.
    """
    what_works = "name a directory that is not there yet, or an empty one"
    try:
        final = local_path(name).resolve()
        (final.parent / f"{_temporary(final).name}-").exists()  # raises where the temporary name is too long
        if _is_occupied(final):
            raise UserError(f"{name}: {'is not empty' if final.is_dir() else 'is a file'}; {what_works}")
        if final == Path.cwd() or final.is_mount():
            raise UserError(f"{name or repr(name)}: cannot be replaced by another directory; name a new one in it")
        final.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=final.parent).close()  # now, not after minutes; access rights alone do not tell
    except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle
        why = getattr(error, "strerror", None) or error
        raise UserError(f"{name}: nothing can be written there: {why}; {what_works}") from None
    with replacing_directory(final) as temporary:
        yield temporary
        flush_tree(temporary)  # first, so that nothing can come there between the look and the rename
        if _is_occupied(final):
            raise UserError(f"{name}: it was created meanwhile; it was left alone, nothing was written")


def _is_occupied(path: Path) -> bool:
    return any(path.iterdir()) if path.is_dir() else path.exists()


def flush_file(file: IO[Any]) -> None:
    """Force what was written to an open file to disk."""
    file.flush()
    os.fsync(file.fileno())


def flush_path(path: Path) -> None:
    """Force a file to disk, or a directory, so that a rename in it lasts."""
    if os.name != "posix" and path.is_dir():
        return  # Windows has no such call, and does not need it
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def flush_tree(directory: Path) -> None:
    """Force a directory and all that is in it to disk."""
    for path in (*directory.rglob("*"), directory):
        flush_path(path)


def remove(path: Path) -> None:
    """Remove a file, or a folder with all that is in it."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def remove_leftovers(folder: Path, min_age: float = 0) -> None:
    """Remove from `folder` what processes of this machine that are gone left half-written, `min_age` seconds ago."""
    for path in folder.glob(".writing-*-*"):
        process = path.name.split("-")[1]
        with contextlib.suppress(FileNotFoundError):  # another process removes it too
            written = path.lstat().st_mtime
            if process.isdigit() and time.time() - written >= min_age and not _was_running(int(process), written):
                remove(path)


def _was_running(process: int, at: float) -> bool:
    """Whether a process of this number runs, and did `at` that time: numbers are given again."""
    try:
        return psutil.Process(process).create_time() <= at + 1
    except psutil.NoSuchProcess:
        return False
    except psutil.Error:
        return True


@contextlib.contextmanager
def translate_disk_errors(path: Path) -> Iterator[None]:
    """A full disk is an `OSError`, also where safetensors and tokenizers raise something of their own."""
    try:
        yield
    except Exception as error:
        code = re.search(r"\(os error (\d+)\)", str(error))
        if isinstance(error, (OSError, UserError)) or code is None:
            raise
        raise OSError(int(code[1]), os.strerror(int(code[1])), str(path)) from error


def _temporary(path: Path) -> Path:
    return path.with_name(f".writing-{os.getpid()}-{path.name}")
