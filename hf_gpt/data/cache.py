"""The cache: what was made once from something else, and is believed only if it proves to be that.

The one idea: an entry says of itself what it is. It is a folder with an `entry.json`, or for a few facts (a *note*)
that file alone. The file holds the key that the entry was made for, the hash of every other file, and a hash of
itself. All of it is compared each time the entry is opened, the files by their content. What does not fit (damaged,
edited, swapped with another, written by an earlier version) is made again, with one line on stderr. Everything here
can be.

The hash is XXH3: 5 GB/s on one core of a Xeon of 2023, where SHA-256 does 1.4 and BLAKE2b 0.5, so that even a token
store of gigabytes is read whole before it is used. It finds what happens to files. It is no protection from a person
who may write here and wants to deceive.

What is kept, and under which key, is for the files that make it to say.
"""

import contextlib
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import xxhash
from tqdm.auto import tqdm

from ..errors import UserError
from ..storage import local_path, remove, remove_leftovers, temporary_path, translate_disk_errors

_ENTRY = "entry.json"
_DAY = 86_400.0


def cache_folder() -> Path:
    """`$HF_GPT_CACHE`, or `hf_gpt` in the Hugging Face home."""
    if os.environ.get("HF_GPT_CACHE"):
        return local_path(os.environ["HF_GPT_CACHE"], "HF_GPT_CACHE").absolute()
    from huggingface_hub.constants import HF_HOME

    if HF_HOME.startswith("~"):  # it would be made here, as a folder of that name
        raise UserError("there is no home folder to keep the cache in; set HF_GPT_CACHE to a folder")
    return Path(HF_HOME).absolute() / "hf_gpt"


def digest(*parts: str) -> str:
    """SHA-256 (hex) of the parts, each with its length."""
    sha256 = hashlib.sha256()
    for part in parts:
        data = part.encode("utf-8", "surrogateescape")  # a path may hold bytes that are no characters
        sha256.update(len(data).to_bytes(8, "little") + data)
    return sha256.hexdigest()


# Folders ------------------------------------------------------------------------------------------------------------


def kept(
    folder: Path, key: str, make: Callable[[], None], fits: Callable[[dict[str, Any]], bool] = lambda facts: True
) -> dict[str, Any]:
    """The facts with which the cache's `folder` was sealed under `key`, by `make` now unless the folder is good.

    `make` leaves a sealed folder there, in one rename; the place is empty by then. `fits` may look at the facts too.
    If several processes of a machine want the same entry at once, one makes it and the others wait.

    Raises:
        UserError: what `make` raises; nothing can be written there.
    """
    facts, _ = _look(folder, folder / _ENTRY, key, fits)
    if facts is not None:
        return facts

    from filelock import FileLock

    try:
        with translate_disk_errors(folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
            lock = folder.with_suffix(".lock")
            if lock.is_dir():
                remove(lock)
            with FileLock(lock):
                facts, wrong = _look(folder, folder / _ENTRY, key, fits)  # perhaps made while this process waited
                if facts is None:
                    if wrong:
                        _say(folder, wrong)
                        remove(folder)
                    _remove_old_leftovers()
                    make()
                    facts, wrong = _look(folder, folder / _ENTRY, key, fits)
                    if facts is None:
                        raise UserError(f"{folder}: is not what was written there: {wrong or 'it is gone'}")
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"the cache {folder.parent} cannot be written: {reason}; set HF_GPT_CACHE") from error
    return facts


def seal(folder: Path, key: str, **facts: Any) -> None:
    """Write into a filled folder what `kept` compares when it opens it."""
    entry = {"key": key, "facts": facts, "files": _hashes(folder)}
    (folder / _ENTRY).write_text(json.dumps({**entry, "checksum": _checksum(entry)}))


# Notes --------------------------------------------------------------------------------------------------------------


def cache_get(key: str) -> dict[str, Any] | None:
    """What :func:`cache_put` stored under `key`; None if there is nothing, or it is not what was stored."""
    try:
        path = _note(key)
    except UserError:  # there is no place for a cache
        return None
    facts, wrong = _look(path, path, key)
    if wrong and wrong != _EARLIER:  # of which there may be thousands
        _say(path, wrong)
    return facts


def cache_put(key: str, facts: dict[str, Any]) -> None:
    """Store `facts` for :func:`cache_get`, atomically, if they can be stored: lost facts are found out again.

    So they are not forced to disk either, which would take long for a folder of thousands of files.
    """
    try:
        path = _note(key)
    except UserError:
        return
    entry = {"key": key, "facts": facts, "files": {}}
    temporary = temporary_path(path)
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps({**entry, "checksum": _checksum(entry)}))
        if path.is_dir():
            remove(path)
        temporary.replace(path)
    with contextlib.suppress(OSError):  # where the disk is full
        temporary.unlink()


def _note(key: str) -> Path:
    return cache_folder() / "notes" / f"{key}.json"


# Comparing ----------------------------------------------------------------------------------------------------------

_EARLIER = "it is from an earlier version"


def _look(
    place: Path, entry_file: Path, key: str, fits: Callable[[dict[str, Any]], bool] = lambda facts: True
) -> tuple[dict[str, Any] | None, str]:
    """The facts of the entry at `place`, or None and what is wrong with it: nothing if there is none."""
    if not os.path.lexists(place):
        return None, ""
    if not entry_file.is_file():  # a pipe would be waited for
        return None, f"it has no {entry_file.name}" + (" (an earlier version made none)" if place.is_dir() else "")
    try:
        entry = json.loads(entry_file.read_bytes())
        if "checksum" not in entry and entry:
            return None, _EARLIER
        if entry.pop("checksum") != _checksum(entry):
            return None, f"{entry_file.name} was changed"
        if entry["key"] != key:
            return None, "it is another entry"
        if place != entry_file and entry["files"] != _hashes(place):
            return None, "its files were changed"
        facts = entry["facts"]
    except OSError as error:
        return None, f"it cannot be read: {error.strerror}"
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None, f"{entry_file.name} is damaged"
    return (facts, "") if fits(facts) else (None, "it is of another text")


def _checksum(entry: dict[str, Any]) -> str:
    return xxhash.xxh3_128_hexdigest(json.dumps(entry, sort_keys=True).encode())


def _hashes(folder: Path) -> dict[str, str]:
    """The hash of every file of a folder but its `entry.json`. One file too many is as wrong as one too few."""
    files = sorted(path for path in folder.rglob("*") if not path.is_dir() and path != folder / _ENTRY)
    return {path.relative_to(folder).as_posix(): _hash(path) for path in files}


def _hash(path: Path) -> str:
    if not path.is_file():
        return ""
    found, block = xxhash.xxh3_128(), memoryview(bytearray(1 << 18))
    with open(path, "rb", buffering=0) as file:
        while size := file.readinto(block):
            found.update(block[:size])
    return found.hexdigest()


def _say(place: Path, wrong: str) -> None:
    tqdm.write(f"cache: {place.parent.name}/{place.name}: {wrong}; it is made again", file=sys.stderr)


def _remove_old_leftovers() -> None:
    """Remove what processes that are gone left half-written.

    They may be of another machine that shares the folder, so it also has to be a day old. A token store, which another
    process can resume, has to be a week old, and nobody holds its lock.
    """
    from filelock import FileLock, Timeout

    for kind in filter(Path.is_dir, cache_folder().iterdir()):
        remove_leftovers(kind, min_age=_DAY)
        for part in kind.glob("*.part"):
            with contextlib.suppress(OSError, Timeout), contextlib.ExitStack() as held:
                written = max(path.lstat().st_mtime for path in (part, *part.glob("*")))
                if time.time() - written > 7 * _DAY:
                    if part.is_dir():
                        held.enter_context(FileLock(part.with_suffix(".lock"), timeout=0))
                    remove(part)
