"""Atomic files and directories: whenever the process dies, each is either the old one or the complete new one.

Everything is written under a temporary name, forced to disk, then renamed; only records, which grow, are appended to.
Reading keeps three things apart: what is not there, what is damaged, and what cannot be read. The last says nothing
about the content, so it is refused by name, and nothing takes its place. What the files mean is for others to say.
"""

import contextlib
import itertools
import json
import os
import re
import shutil
import stat
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import psutil

from .errors import UserError

_DEEPEST = 100  # levels of a JSON value


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically, as UTF-8."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically. If the path is a link, the file that it points to is replaced; a device is written to.

    Raises:
        OSError: it cannot be written. The error names `path`, which is unchanged.
    """
    target = Path(os.path.realpath(path))
    temporary = temporary_path(target)
    try:
        if target.exists() and not target.is_file() and not target.is_dir():  # such as /dev/null, or a pipe
            with open(target, "wb") as file:
                file.write(content)
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(content)
            flush_file(file)
        temporary.replace(target)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise OSError(error.errno, error.strerror, str(path)) from None


def temporary_path(path: Path) -> Path:
    """Where this thread writes what then becomes `path`; `remove_leftovers` knows such names."""
    return path.with_name(f".writing-{os.getpid()}-{threading.get_native_id()}-{path.name}")


@contextlib.contextmanager
def replacing_directory(final: Path) -> Iterator[Path]:
    """A directory to fill. If the block ends without an error, it is forced to disk and replaces `final`."""
    temporary = temporary_path(final)
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


def append(path: Path, content: bytes) -> None:
    """Append whole lines to a file, all of them or none. What another program left without a line end is ended first.

    The file is opened each time: whoever replaces it meanwhile gets what follows.

    Raises:
        OSError: it cannot be written, or what is there is not a file.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | getattr(os, "O_NONBLOCK", 0), 0o666)
    with open(descriptor, "r+b", buffering=0) as file:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(None, "not a file", str(path))
        if content and found.st_size and file.seek(-1, os.SEEK_END) >= 0 and file.read(1) != b"\n":
            content = b"\n" + content
        try:
            while content:
                content = content[file.write(content) :]
        except OSError:
            file.truncate(found.st_size)
            raise


@contextlib.contextmanager
def reading(path: Path) -> Iterator[IO[bytes] | None]:
    """A file to read from; None if nothing is there.

    Raises:
        UserError: something is there and cannot be read: no permission, a disk that fails, a link that leads nowhere,
            a directory or a pipe.
    """
    with refusing_unreadable(path):
        if not _is_there(path):
            yield None
            return
        with open(path, "rb", opener=_open_at_once) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise OSError(None, "it is not a file")
            yield file


@contextlib.contextmanager
def refusing_unreadable(path: Path) -> Iterator[None]:
    """An `OSError` in the block, which only reads `path`, becomes a :class:`UserError` that names it."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error


def read_file(path: Path) -> bytes | None:
    """The content of a file; None if nothing is there. Raises as `reading` does."""
    with reading(path) as file:
        return None if file is None else file.read()


def is_there(path: Path) -> bool:
    """Whether there is anything at `path`, be it a link that leads nowhere.

    Raises:
        UserError: the folder cannot be looked into.
    """
    with refusing_unreadable(path):
        return _is_there(path)


def entries(folder: Path) -> list[Path]:
    """What is in a folder, in order; nothing if it is not there.

    Raises:
        UserError: it cannot be read.
    """
    with refusing_unreadable(folder):
        return sorted(folder.iterdir()) if _is_there(folder) else []


def parse_json(content: bytes) -> Any:
    """The value of a JSON text; a `ValueError` where there is none, or one nested deeper than any of ours."""
    try:
        value = json.loads(content)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    level = [value]
    for _ in range(_DEEPEST):
        level = [item for part in level if isinstance(part, (dict, list)) for item in _parts(part)]
        if not level:
            return value
    raise ValueError("nested too deeply")


def read_json(path: Path) -> dict[str, Any]:
    """The object that `write_json` wrote; `{}` if there is no such file.

    Raises:
        UserError: it is damaged, or cannot be read.
    """
    content = read_file(path)
    if content is None:
        return {}
    with contextlib.suppress(ValueError):
        if isinstance(value := parse_json(content), dict):
            return value
    raise UserError(f"{path}: is damaged; remove it to continue without it")


def set_aside(path: Path) -> Path:
    """Rename what is damaged to `damaged-NAME`, or `damaged-NAME-2` and so on: nothing is ever replaced by it."""
    aside = name_aside(path)
    path.rename(aside)
    return aside


def name_aside(path: Path) -> Path:
    """Where `path` would be set aside."""
    names = (f"damaged-{path.name}{f'-{number}' * (number > 1)}" for number in itertools.count(1))
    return next(aside for name in names if not is_there(aside := path.with_name(name)))


def local_path(name: str | os.PathLike, field: str | None = None) -> Path:
    """The path that a person wrote, with `~` expanded; it may not exist. `field` is what was given it.

    Raises:
        UserError: the home of `~` or `~someone` is not known, or the system takes no such name.
    """
    try:
        path = Path(name).expanduser()
        os.fsencode(path)
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            os.stat(path)
    except RuntimeError:
        raise UserError(f"{name}: nobody's home folder is known by that name", field=field) from None
    except UnicodeEncodeError:
        raise UserError("the path is not UTF-8", field=field) from None
    except (OSError, ValueError) as error:  # too long, not allowed, links in a circle; a NUL
        why = getattr(error, "strerror", None) or error
        raise UserError(f"'{str(name)[:100]}' cannot be opened: {why}", field=field) from None
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
        (final.parent / f"{temporary_path(final).name}-").exists()  # raises where the temporary name is too long
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


def _is_there(path: Path) -> bool:
    try:
        os.lstat(path)
    except FileNotFoundError:
        os.stat(next(parent for parent in path.absolute().parents if os.path.lexists(parent)))  # a link to nowhere
        return False
    return True


def _open_at_once(path: str, flags: int) -> int:
    """Opening a pipe would wait for somebody to write into it."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _parts(value: dict | list) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value
