"""Files and directories that are there whole or not at all, whenever the process dies.

Everything is written under a temporary name, forced to disk, then renamed. What the files mean is for others to say.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from .errors import UserError


def write_text(path: Path, text: str) -> None:
    """Write a file of text, as UTF-8, whole."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole: temporary name, flush, rename. Where the path is a link, it stays one to what is written.

    Raises:
        OSError: it cannot be written; the error names `path`, which is as it was.
    """
    target = Path(os.path.realpath(path))
    temporary = target.with_name(f".{target.name}.writing")
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


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file whole."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def copy_file(source: Path, path: Path) -> None:
    """Copy a file whole: under a temporary name, then renamed."""
    temporary = path.with_name(f".{path.name}.writing")
    shutil.copyfile(source, temporary)
    flush_path(temporary)
    temporary.replace(path)


def read_json(path: Path) -> dict[str, Any]:
    """What `write_json` wrote; nothing where there is no such file.

    Raises:
        UserError: it is damaged.
    """
    try:
        return json.loads(path.read_bytes()) if path.is_file() else {}
    except ValueError:
        raise UserError(f"{path}: is damaged; remove it if the run is to go on without it") from None


@contextlib.contextmanager
def replacing_directory(final: Path) -> Iterator[Path]:
    """A directory to fill; when the block ends without an error it is flushed and takes the place of `final`."""
    temporary = final.with_name(f".writing-{os.getpid()}-{final.name}")
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


def refuse_unwritable(folder: Path, field: str) -> None:
    """Refuse, before any work, a folder that cannot be created or written to.

    The nearest folder that exists must accept new files.

    Raises:
        UserError: it does not; the error names `field`.
    """
    nearest = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not nearest.is_dir():
        raise UserError(f"{nearest} is a file", field=field)
    if not os.access(nearest, os.W_OK):
        raise UserError(f"{nearest} cannot be written to", field=field)


def flush_file(file: IO[Any]) -> None:
    """Force what was written to an open file to disk."""
    file.flush()
    os.fsync(file.fileno())


def flush_path(path: Path) -> None:
    """Force a file to disk, or a directory: then a rename in it lasts."""
    if os.name != "posix" and path.is_dir():
        return  # there is no such call, and no need of it, on Windows
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def flush_tree(directory: Path) -> None:
    """Force a directory and all that is in it to disk."""
    for path in (*directory.rglob("*"), directory):
        flush_path(path)
