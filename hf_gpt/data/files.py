"""Files, identified by their content.

The one idea: a hash of the content identifies a file, wherever it lies. The hash is cached with the file's size, times
and inode, so an unchanged file is recognised without opening it. Text is checked to be UTF-8 in the same pass.

What the bytes mean is in corpus.py.
"""

import codecs
import gzip
import hashlib
import io
import shlex
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from ..errors import UserError
from .cache import cache_get, cache_put, digest
from .charset import ALSO_CALLED, is_binary, is_damaged_utf8, likely_encoding, wide_encoding

KINDS = {
    "txt": "text",
    "md": "text",
    "jsonl": "json",
    "ndjson": "json",
    "json": "json",
    "parquet": "parquet",
    "csv": "csv",
    "tsv": "csv",
    "arrow": "arrow",
}
"""Ending of a file's name -> how it is read."""

EMPTY = hashlib.sha256().hexdigest()
"""`content_hash` of an empty file."""


def kind_of(path: Path) -> str | None:
    """The kind of a file by its name, not counting `.gz` or `.zst`; None if it is unknown."""
    name = path.name[: -len(path.suffix)] if is_compressed(path) else path.name
    return KINDS.get(name.lower().rpartition(".")[2])


def is_compressed(path: Path) -> bool:
    """Whether the name ends in .gz or .zst, also in capitals."""
    return path.suffix.lower() in (".gz", ".zst")


def open_bytes(path: Path, opened: IO[bytes] | None = None) -> IO[bytes]:
    """The opened file, decompressed if its name ends in .gz or .zst. `opened`: its bytes, from elsewhere."""
    if path.suffix.lower() == ".gz":
        return gzip.open(opened or path, "rb")
    if path.suffix.lower() == ".zst":
        return io.BufferedReader(_Zstd(path, opened))
    return opened or open(path, "rb")


class _Zstd(io.RawIOBase):
    """The content of a zstd file. zstandard's own reader takes a file that was cut off for a whole one."""

    def __init__(self, path: Path, opened: IO[bytes] | None):
        try:
            import zstandard
        except ImportError:
            raise UserError(f"{path}: zstd files need the module zstandard: pip install 'hf_gpt[zstd]'") from None
        self._file = opened or open(path, "rb")  # noqa: SIM115 - closed by `close`
        self._new_frame = lambda: zstandard.ZstdDecompressor().decompressobj()
        self._frame, self._ahead, self._content = None, b"", memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._content:
            data = self._ahead or self._file.read(1 << 14)
            if not data:
                if self._frame is not None:
                    raise EOFError("it ends before its end-of-stream marker")
                return 0
            self._frame = self._frame or self._new_frame()
            self._content = memoryview(self._frame.decompress(data))
            self._ahead = self._frame.unused_data if self._frame.eof else b""
            if self._frame.eof:
                self._frame = None
        size = min(len(buffer), len(self._content))
        buffer[:size], self._content = self._content[:size], self._content[size:]
        return size

    def close(self) -> None:
        self._file.close()
        super().close()


def read_blocks(path: Path) -> Iterator[bytes]:
    """The decompressed bytes, 1 MiB at a time."""
    try:
        with open_bytes(path) as file:
            while block := file.read(1 << 20):
                yield block
    except UserError:
        raise
    except Exception as error:  # gzip, zlib and zstandard each raise their own
        raise UserError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error


def read_text(path: Path) -> Iterator[str]:
    """The text, about 1 MiB at a time, unchanged but for a byte order mark at its start, which is no part of a text.

    Raises:
        UserError: with the offset of the first byte that is not UTF-8, and what the file probably is instead.
    """
    decoder, offset = codecs.getincrementaldecoder("utf-8-sig")(), 0
    try:
        for block in read_blocks(path):
            if not offset and (encoding := wide_encoding(block)):  # which may be valid UTF-8, full of NUL
                raise UserError(f"{path}: is {encoding}, not UTF-8; {_how_to_convert(path, encoding)}")
            offset += len(block)
            yield decoder.decode(block)
        decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        at = offset - len(error.object) + error.start
        problem = f"{path}: byte {at} (0x{error.object[error.start]:02x}) is not UTF-8"
        sample = error.object[max(0, error.start - (1 << 14)) // 4 * 4 :][: 1 << 16]
        if is_damaged_utf8(sample) or error.reason == "unexpected end of data":
            raise UserError(f"{problem}, though the text around it is; the file is damaged there") from None
        encoding = likely_encoding(sample)
        advice = "it is no text" if is_binary(sample) else "save it as UTF-8"
        if encoding:
            advice = f"it is probably {ALSO_CALLED.get(encoding, encoding)}; {_how_to_convert(path, encoding)}"
        raise UserError(f"{problem}; {advice}") from None


def _how_to_convert(path: Path, encoding: str) -> str:
    content = {".gz": "gzip -dc {} | ", ".zst": "zstd -dc {} | "}.get(path.suffix.lower(), "")
    name = path.with_suffix("") if content else path
    source = "" if content else f" {shlex.quote(str(path))}"
    converted = shlex.quote(str(name.with_name(f"{name.stem}-utf8{name.suffix}")))
    return f"{content.format(shlex.quote(str(path)))}iconv -f {encoding} -t UTF-8{source} > {converted}"


def content_hash(path: Path, kind: str) -> str:
    """SHA-256 of the decompressed content: of the text of a plain text, without a byte order mark, else of all bytes.

    What should be text (`kind` text, json or csv) is checked to be UTF-8, as :func:`read_text` does.
    """
    stamp = file_stamp(path)
    key = digest("content", str(path.absolute()), kind)
    known = cache_get(key)
    if known and known["stamp"] == stamp:
        return known["sha256"]
    if kind in ("json", "csv"):
        for _ in read_text(path):
            pass
    sha256 = hashlib.sha256()
    for block in (text.encode() for text in read_text(path)) if kind == "text" else read_blocks(path):
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


def check_unchanged(path: Path, stamp: list[int]) -> None:
    """Raise a :class:`UserError` if a file has changed since its stamp was taken and its content was hashed."""
    if file_stamp(path) != stamp:
        raise UserError(f"{path}: changed while it was read; run again when it is complete")
