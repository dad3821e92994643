"""Files, identified by their content, and the folder where facts about them are cached.

The one idea: a hash of the content identifies a file, wherever it lies. The hash is cached with the file's size, times
and inode, so an unchanged file is recognised without opening it. Text is checked to be UTF-8 in the same pass.
Everything in the cache can be made again.

What the bytes mean is in corpus.py.
"""

import codecs
import gzip
import hashlib
import io
import json
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from ..errors import UserError
from ..storage import local_path

KINDS = {
    "txt": "text",
    "md": "text",
    "jsonl": "json",
    "ndjson": "json",
    "json": "json",
    "parquet": "parquet",
    "csv": "csv",
}
"""Ending of a file's name -> how it is read."""

EMPTY = hashlib.sha256().hexdigest()
"""`content_hash` of an empty file."""


def cache_folder() -> Path:
    """`$HF_GPT_CACHE`, or `hf_gpt` in the Hugging Face home."""
    if os.environ.get("HF_GPT_CACHE"):
        return local_path(os.environ["HF_GPT_CACHE"], "HF_GPT_CACHE").absolute()
    from huggingface_hub.constants import HF_HOME

    if HF_HOME.startswith("~"):  # it would be made here, as a folder of that name
        raise UserError("there is no home folder to keep the cache in; set HF_GPT_CACHE to a folder")
    return Path(HF_HOME).absolute() / "hf_gpt"


def kind_of(path: Path) -> str | None:
    """The kind of a file by its name, not counting `.gz` or `.zst`; None if it is unknown."""
    name = path.name[: -len(path.suffix)] if is_compressed(path) else path.name
    return KINDS.get(name.lower().rpartition(".")[2])


def is_compressed(path: Path) -> bool:
    """Whether the name ends in .gz or .zst, also in capitals."""
    return path.suffix.lower() in (".gz", ".zst")


def open_bytes(path: Path) -> IO[bytes]:
    """The opened file, decompressed if its name ends in .gz or .zst."""
    if path.suffix.lower() == ".gz":
        return gzip.open(path, "rb")
    if path.suffix.lower() == ".zst":
        try:
            import zstandard
        except ImportError:
            raise UserError(f"{path}: zstd files need the module zstandard: pip install 'hf_gpt[zstd]'") from None
        return io.BufferedReader(zstandard.open(path, "rb"))  # zstandard's reader has no lines
    return open(path, "rb")


def read_blocks(path: Path) -> Iterator[bytes]:
    """The decompressed bytes, 1 MiB at a time."""
    try:
        with open_bytes(path) as file:
            while block := file.read(1 << 20):
                yield block
    except UserError:
        raise
    except Exception as error:  # gzip, zlib and zstandard each raise their own
        raise UserError(f"{path}: cannot be read: {error}") from error


def read_text(path: Path) -> Iterator[str]:
    """The text, unchanged, about 1 MiB at a time.

    Raises:
        UserError: with the offset of the first byte that is not UTF-8.
    """
    decoder, offset = codecs.getincrementaldecoder("utf-8")(), 0
    try:
        for block in read_blocks(path):
            offset += len(block)
            yield decoder.decode(block)
        decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        at = offset - len(error.object) + error.start
        found = error.object[error.start]
        raise UserError(f"{path}: byte {at} (0x{found:02x}) is not UTF-8; save the file as UTF-8") from None


def content_hash(path: Path, is_text: bool) -> str:
    """SHA-256 of the decompressed content. `is_text`: check that it is UTF-8, as :func:`read_text` does."""
    stamp = file_stamp(path)
    key = digest("file", str(path.absolute()), str(is_text))
    known = cache_get(key)
    if known and known["stamp"] == stamp:
        return known["sha256"]
    sha256 = hashlib.sha256()
    for block in (text.encode() for text in read_text(path)) if is_text else read_blocks(path):
        sha256.update(block)
    # A second change within one tick of the file system's clock (on FAT 2 s) would not show. So the hash of a file
    # that was written just now is not cached.
    if file_stamp(path) == stamp and time.time_ns() - stamp[1] > 2_000_000_000:
        cache_put(key, {"stamp": stamp, "sha256": sha256.hexdigest()})
    return sha256.hexdigest()


def file_stamp(path: Path) -> list[int]:
    """What changes when the file changes: size, times and inode."""
    try:
        found = path.stat()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]


def check_unchanged(paths: Sequence[Path], stamps: Sequence[list[int]]) -> None:
    """Raise a :class:`UserError` if a file has changed since its stamp was taken and its content was hashed."""
    for path, stamp in zip(paths, stamps):
        if file_stamp(path) != stamp:
            raise UserError(f"{path}: changed while it was read; run again when it is complete")


def cache_get(key: str) -> dict[str, Any] | None:
    """What :func:`cache_put` stored under `key`; None if there is nothing, or it cannot be read."""
    try:
        return json.loads(_cache_file(key).read_text())
    except (OSError, ValueError):
        return None


def cache_put(key: str, facts: dict[str, Any]) -> None:
    """Store `facts` for :func:`cache_get`, atomically.

    They are not forced to disk, which would take long for a folder of thousands of files: lost facts are made again.
    """
    path = _cache_file(key)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}.part")
        part.write_text(json.dumps(facts))
        part.replace(path)
    except OSError as error:
        raise UserError(f"the cache {path.parent} cannot be written: {error.strerror}; set HF_GPT_CACHE") from error


def _cache_file(key: str) -> Path:
    return cache_folder() / "notes" / f"{key}.json"


def digest(*parts: str) -> str:
    """SHA-256 (hex) of the parts, each with its length."""
    sha256 = hashlib.sha256()
    for part in parts:
        data = part.encode()
        sha256.update(len(data).to_bytes(8, "little") + data)
    return sha256.hexdigest()
