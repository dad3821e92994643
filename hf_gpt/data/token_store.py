"""Text -> the token store: tokenised once, in parallel, into a file that every later run maps into memory.

The one idea: the store's folder is named by a hash of all that decides its content (corpus, separators, cleaning,
tokenizer, format), so finding it *is* knowing that it is right, and no recipe can get another's. It appears whole or
not at all, and is checked before it is trusted.

Text passes through in blocks of a few megabytes, so memory stays flat however long the corpus; cuts are made where
it is proven that they change nothing, so the ids are those of each document encoded at once. Between documents goes
the separator's *id*: `<|endoftext|>` written in a text stays text. It goes between them only, so that one document is
exactly its text (the book's 5,145 tokens) and a store of n documents has n - 1 separators.

A store is made in shards of some 8 million characters: stretches of one file, each forced to disk and then entered
in `shards.jsonl` with its checksum. A process that dies leaves those in a `.part` folder; the next one checks them,
reads the text up to where they end without encoding it, and goes on, to the same bytes. One file needs no second copy
to become one memory map; what keeps all cores busy is not several files but that both encoders (tiktoken and
tokenizers) let go of Python's lock: two blocks are encoded at any time, by all cores together, while a third is read
and the one before is written. Reading a megabyte takes from a hundredth (plain text) to a fifteenth (rows of parquet)
of the time in which one core encodes it, which is how many cores can be kept busy this way.

The trades: the whole corpus is tokenised before the first step. At tens of megabytes a second that is seconds for a
book, minutes for what one machine trains on; in return, training never waits for text and can start at any position.
And a store that is opened is read whole only up to 64 MiB, beyond that in 64 places, so that a second run starts at
once; shards are checked whole when an unfinished store is gone on with.

Where text comes from is corpus.py's; windows and their order are batches.py's.
"""

import dataclasses
import hashlib
import json
import shutil
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from ..errors import UserError
from ..storage import flush_file, flush_path
from .corpus import Corpus, Pieces
from .files import cache_folder
from .tokenizer import cut_exactly, encode_ordinary, fingerprint, separator_id, token_dtype

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_FORMAT = 1  # of the store's files; part of its name


@dataclasses.dataclass(frozen=True)
class TokenStore:
    """A tokenised corpus. `tokens` is a read-only memory map of shape (num_tokens,), of the smallest type that fits.

    `num_characters` and `num_bytes` (UTF-8) count the text without separators. `separator_id` is what stands between
    documents, None if nothing does. `from_cache` says that no text was read to get it.
    """

    name: str
    path: Path
    tokens: np.ndarray = dataclasses.field(repr=False, compare=False)
    separator_id: int | None
    num_characters: int
    num_bytes: int
    num_documents: int
    from_cache: bool = dataclasses.field(compare=False)
    origin: Mapping[str, Any] = dataclasses.field(default_factory=dict, repr=False, compare=False)  # of its corpus

    @property
    def num_tokens(self) -> int:
        return len(self.tokens)

    @property
    def characters_per_token(self) -> float:
        return self.num_characters / self.num_tokens


def tokenize(
    corpus: Corpus,
    tokenizer: "PreTrainedTokenizerFast",
    *,
    progress: Callable[[int], None] | None = None,
) -> TokenStore:
    """The token store of `corpus`: from the cache, or made now.

    `progress` is called with the number of characters done since its last call, those that an earlier attempt
    tokenised included. Of several processes of a machine that want the same store at once, one makes it and the
    others wait on a file lock, however long that takes; if the one dies, another goes on from its last shard.

    Raises:
        UserError: no text in the corpus, no separator in the tokenizer for several documents, no place for the cache.
    """
    separator = separator_id(tokenizer) if corpus.separated else None
    key = hashlib.sha256(f"{_FORMAT} {corpus.identity} {fingerprint(tokenizer)} {separator}".encode()).hexdigest()
    folder = cache_folder() / "tokens" / key[:32]
    store = _open(folder, corpus.name)
    if store is None:
        from filelock import FileLock

        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(folder.with_suffix(".lock")):
                store = _open(folder, corpus.name)
                if store is None:
                    _write(folder, corpus, tokenizer, separator, progress or (lambda _: None))
                    store = dataclasses.replace(_open(folder, corpus.name), from_cache=False)
        except OSError as error:
            reason = error.strerror or error
            raise UserError(f"cannot write the token store in {folder.parent}: {reason}; set HF_GPT_CACHE") from error
    return dataclasses.replace(store, origin=corpus.origin)


def fraction_of_split_characters(
    store: TokenStore, tokenizer: "PreTrainedTokenizerFast", sample: int = 20_000
) -> float:
    """The part of the first `sample` tokens that hold only some of a character's bytes.

    Near 0 for English under `gpt2`, over a half for Chinese: such a text wants a BPE trained on it (`tokenizer:
    {train: {vocab_size: 4096}}`); 0.2 is a good place to say so. Byte-level tokenizers only: others give 0.
    """
    ids = np.asarray(store.tokens[:sample])
    distinct, counts = np.unique(ids, return_counts=True)
    texts = tokenizer.batch_decode([[int(i)] for i in distinct], clean_up_tokenization_spaces=False)
    # A token that is not whole UTF-8 decodes to U+FFFD; one that spells U+FFFD itself is rare enough.
    split = np.array(["\ufffd" in text for text in texts])
    return float(counts[split].sum() / counts.sum())


# Making a store -----------------------------------------------------------------------------------------------------

_CHUNK = 1 << 18  # characters of one text given to the tokenizer
_BATCH = 1 << 22  # characters encoded at once, by all threads together
_SHARD = 1 << 23  # characters, at least, between two times that what is done is made safe


def _write(
    folder: Path,
    corpus: Corpus,
    tokenizer: "PreTrainedTokenizerFast",
    separator: int | None,
    progress: Callable[[int], None],
) -> None:
    """Makes the store at `folder`, or goes on with making it, whole or not at all. Called with its lock held."""
    part = folder.with_suffix(".part")
    part.mkdir(exist_ok=True)
    dtype = token_dtype(tokenizer).newbyteorder("<")
    try:
        with _Shards(part, dtype) as shards:
            texts = _texts(corpus, tokenizer, shards.counts["num_characters"], progress)
            encode = partial(_encode, corpus.name, tokenizer, separator, dtype)
            for ids, counts in _in_background(encode, _batches(texts)):
                shards.append(ids, counts)
                progress(counts["num_characters"])
            shards.finish()
        if not shards.counts["num_tokens"]:
            raise UserError(f"{corpus.name}: has no text; there is nothing to train on")
        meta = {"format": _FORMAT, "dtype": dtype.str, "separator_id": separator, **shards.counts}
        with open(part / "store.json", "w") as file:
            json.dump({**meta, "checksum": _checksum(part / "tokens.bin")}, file)
            flush_file(file)
        shutil.rmtree(folder, ignore_errors=True)  # a store that was not to be trusted
        part.rename(folder)
        flush_path(folder.parent)
    finally:
        lines = part / "shards.jsonl"
        if not (lines.is_file() and lines.stat().st_size):
            shutil.rmtree(part, ignore_errors=True)  # nothing that would be gone on with


class _Shards:
    """A store in the making: ids appended to `tokens.bin`, and in `shards.jsonl` a line for what is safely there.

    A line holds the counts from the beginning of the store to the end of its shard, and the shard's checksum. What
    follows the last line whose shard is as it was written does not count, and is overwritten.
    """

    def __init__(self, folder: Path, dtype: np.dtype):
        self.counts = {"num_tokens": 0, "num_characters": 0, "num_bytes": 0, "num_documents": 0}
        self._itemsize = dtype.itemsize
        self._ids, self._lines = (_open_for_update(folder / name) for name in ("tokens.bin", "shards.jsonl"))
        flush_path(folder)
        flush_path(folder.parent)
        self._recover()
        self._characters_safe = self.counts["num_characters"]
        self._checksum = hashlib.blake2b(digest_size=16)

    def append(self, ids: bytes, counts: dict[str, int]) -> None:
        """Adds ids, and what they add to the counts."""
        self._ids.write(ids)
        self._checksum.update(ids)
        if not self.counts["num_documents"]:
            self.counts["num_documents"] = 1  # the first, which has no separator before it
        self.counts = {name: self.counts[name] + counts[name] for name in self.counts}
        if self.counts["num_characters"] - self._characters_safe >= _SHARD:
            self._make_safe()

    def finish(self) -> None:
        """Makes the last shard safe and leaves nothing behind it."""
        if self.counts["num_characters"] > self._characters_safe:
            self._make_safe()
        self._ids.truncate()
        flush_file(self._ids)

    def __enter__(self) -> "_Shards":
        return self

    def __exit__(self, *_: object) -> None:
        self._ids.close()
        self._lines.close()

    def _recover(self) -> None:
        """Goes to the end of the last shard that is as it was written."""
        end_of_lines = 0
        for line in self._lines:
            try:
                shard = json.loads(line)
                counts = {name: int(shard[name]) for name in self.counts}
                size = (counts["num_tokens"] - self.counts["num_tokens"]) * self._itemsize
                if not line.endswith(b"\n") or _checksum_of(self._ids, size) != shard["checksum"]:
                    break
            except (ValueError, KeyError, TypeError):
                break
            self.counts = counts
            end_of_lines += len(line)
        self._lines.seek(end_of_lines)
        self._lines.truncate()
        self._ids.seek(self.counts["num_tokens"] * self._itemsize)

    def _make_safe(self) -> None:
        flush_file(self._ids)  # before the line that says it is there
        line = json.dumps({**self.counts, "checksum": self._checksum.hexdigest()})
        self._lines.write(line.encode() + b"\n")
        flush_file(self._lines)
        self._characters_safe = self.counts["num_characters"]
        self._checksum = hashlib.blake2b(digest_size=16)


def _encode(
    name: str,
    tokenizer: "PreTrainedTokenizerFast",
    separator: int | None,
    dtype: np.dtype,
    batch: list[str | None],
) -> tuple[bytes, dict[str, int]]:
    """The ids of a batch as they stand in the file, and what they add to the counts of a store."""
    texts = [text for text in batch if text is not None]
    if separator is None and len(texts) < len(batch):
        raise UserError(
            f"{name}: the tokenizer has no <|endoftext|> or EOS token to put between documents; "
            "set data.separator to false or choose another tokenizer"
        )
    encoded = iter(encode_ordinary(tokenizer, texts))
    between = np.array([separator or 0], dtype)
    ids = np.concatenate([between if text is None else next(encoded) for text in batch])
    return ids.astype(dtype, copy=False).tobytes(), {
        "num_tokens": len(ids),
        "num_characters": sum(map(len, texts)),
        "num_bytes": sum(len(text) if text.isascii() else len(text.encode("utf-8", "replace")) for text in texts),
        "num_documents": len(batch) - len(texts),
    }


def _in_background(function: Callable[[Any], Any], items: Iterator[Any], num_ahead: int = 2) -> Iterator[Any]:
    """`map(function, items)` with `num_ahead` calls under way while an item is read or a result is used."""
    with ThreadPoolExecutor(num_ahead) as pool:
        ahead = deque()
        for item in items:
            ahead.append(pool.submit(function, item))
            if len(ahead) > num_ahead:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def _texts(
    corpus: Corpus, tokenizer: "PreTrainedTokenizerFast", num_done: int, progress: Callable[[int], None]
) -> Iterator[str | None]:
    """The documents in chunks, None between two of them; documents without text are left out.

    The first `num_done` characters are left out too: they end inside a document, at the end of a chunk.
    """
    pieces = corpus.pieces()
    begun = num_done > 0
    if begun:
        pieces = _skipped(pieces, num_done, progress)
        yield from cut_exactly(tokenizer, _rest_of_document(pieces), _CHUNK)
    for first in pieces:
        if not first:
            continue
        if begun:
            yield None
        begun = True
        second = next(pieces, None)
        if second is None and len(first) <= _CHUNK:  # a row of a table: most texts are this short
            yield first
        else:
            rest = _rest_of_document(pieces) if second is not None else ()
            yield from cut_exactly(tokenizer, chain([first, second or ""], rest), _CHUNK)


def _skipped(pieces: Pieces, num_characters: int, progress: Callable[[int], None]) -> Pieces:
    """What follows the first `num_characters`, which are read and not looked at."""
    for piece in pieces:
        size = len(piece or "")
        if size >= num_characters:
            progress(num_characters)
            return chain([piece[num_characters:]], pieces)
        num_characters -= size
        progress(size)
    return pieces


def _rest_of_document(pieces: Pieces) -> Iterator[str]:
    return iter(lambda: next(pieces, None), None)


def _batches(texts: Iterator[str | None]) -> Iterator[list[str | None]]:
    batch, size = [], 0
    for text in texts:
        batch.append(text)
        size += len(text or "")
        if size >= _BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


# Finding one --------------------------------------------------------------------------------------------------------


def _open(folder: Path, name: str) -> TokenStore | None:
    """The store at `folder`; None if there is none, or it is not what was written there."""
    try:
        meta = json.loads((folder / "store.json").read_text())
        path = folder / "tokens.bin"
        dtype = np.dtype(meta["dtype"])
        whole = path.stat().st_size == meta["num_tokens"] * dtype.itemsize and _checksum(path) == meta["checksum"]
        if meta["format"] != _FORMAT or not whole:
            return None
        return TokenStore(
            name=name,
            path=folder,
            tokens=np.memmap(path, dtype=dtype, mode="r"),
            from_cache=True,
            **{key: meta[key] for key in ("separator_id", "num_characters", "num_bytes", "num_documents")},
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _checksum(path: Path, num_blocks: int = 64) -> str:
    """Of up to 64 blocks of 1 MiB, spread evenly: all of a store below 64 MiB, a fixed cost for any other."""
    size, block = path.stat().st_size, 1 << 20
    digest = hashlib.blake2b(str(size).encode(), digest_size=16)
    last = max(0, -(-size // block) - 1)
    with open(path, "rb") as file:
        for index in sorted({last * i // (num_blocks - 1) for i in range(num_blocks)}):
            file.seek(index * block)
            digest.update(file.read(block))
    return digest.hexdigest()


def _checksum_of(file: IO[bytes], size: int) -> str | None:
    """Of the next `size` bytes; None if there are fewer."""
    digest = hashlib.blake2b(digest_size=16)
    while size > 0:
        block = file.read(min(size, 1 << 20))
        if not block:
            return None
        digest.update(block)
        size -= len(block)
    return digest.hexdigest()


def _open_for_update(path: Path) -> IO[bytes]:
    """The file, made if there is none, to be read and written anywhere."""
    path.touch()
    return open(path, "r+b")
