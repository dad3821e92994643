"""Text to the token store: tokenised once, in parallel, into a file that every later run maps into memory.

The one idea: the store's folder is named by a hash of everything that decides its content (corpus, separators,
cleaning, tokenizer, format). So a store that is found is the right one, and no recipe can get another's. It appears
atomically, and its checksum is compared before it is used.

- **Memory stays flat.** Text passes through in blocks of a few megabytes, cut only where a cut changes no token. The
  ids are those of each document encoded at once.
- **Separators are ids.** Between documents stands the *id* of the separator; `<|endoftext|>` written in a text stays
  text. It stands between them only: one document is exactly its text (the book's 5,145 tokens), and a store of n
  documents has n - 1 separators. Where the tokenizer puts BOS before a text, each document begins with its id.
- **Making it can be resumed.** The store grows in shards of some 8 million characters, in a `.part` folder. A finished
  shard is forced to disk and then entered in `shards.jsonl` with its checksum. After a crash the next process checks
  the shards, skips the text up to the end of the last good one, and continues to the same bytes.
- **All cores are busy.** tiktoken and tokenizers release Python's lock. Each core encodes a block, while the next is
  read and the one before is written.

The trades: the whole corpus is tokenised before the first step, at tens of megabytes a second; in return, training
never waits for text and can start at any position. And a store is read whole when it is opened, at 2 to 5 GB/s
where it is in memory already, else as fast as the disk; in return, a wrong one is never trained on.

Where text comes from is in corpus.py, windows and their order in batches.py.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import UserError
from ..storage import flush_file, flush_path, flush_tree, remove
from .cache import cache_folder, digest, kept, seal
from .corpus import Corpus, Pieces
from .cutting import repair_surrogates
from .encoding import Encoder, encoder_of
from .tokenizer import begin_id, fingerprint, separator_id

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_FORMAT = 1  # of the store's files; part of its name


@dataclasses.dataclass(frozen=True)
class TokenStore:
    """A tokenised corpus. `tokens` is a read-only memory map of shape (num_tokens,), of the smallest type that fits.

    `num_characters` and `num_bytes` (UTF-8) count the text without separators. `separator_id` is what stands between
    documents, `begin_id` what each begins with, None if nothing does. `origin` is that of the corpus.
    """

    name: str
    path: Path
    tokens: np.ndarray = dataclasses.field(repr=False, compare=False)
    separator_id: int | None
    num_characters: int
    num_bytes: int
    num_documents: int
    begin_id: int | None = None
    origin: Mapping[str, Any] = dataclasses.field(default_factory=dict, repr=False, compare=False)

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
    progress: Callable[[int], None] = lambda num_characters: None,
) -> TokenStore:
    """The token store of `corpus`, from the cache or made now.

    `progress` is called with the number of characters done since its last call, including those that an earlier
    attempt tokenised. If several processes of a machine want the same store at once, one makes it and the others wait
    on a file lock, for as long as it takes. If that one dies, another resumes from its last shard.

    Raises:
        UserError: no text in the corpus, no separator in the tokenizer for several documents, no place for the cache.
    """
    separator, begin = _marks(corpus, tokenizer)
    key = _key(corpus, tokenizer)
    folder = cache_folder() / "tokens" / key[:32]

    def make() -> None:
        _make(folder, key, corpus, encoder_of(tokenizer), separator, begin, progress)

    facts = kept(folder, key, make, fits=lambda facts: corpus.has_characters(facts["num_characters"]))
    tokens = np.memmap(folder / "tokens.bin", dtype=np.dtype(facts.pop("dtype")), mode="r")
    return TokenStore(name=corpus.name, path=folder, tokens=tokens, origin=corpus.origin, **facts)


def store_name(corpus: Corpus, tokenizer: "PreTrainedTokenizerFast") -> str:
    """The name of the folder of a store: a hash of everything that decides its content. The text is not read."""
    return _key(corpus, tokenizer)[:32]


def _key(corpus: Corpus, tokenizer: "PreTrainedTokenizerFast") -> str:
    separator, begin = _marks(corpus, tokenizer)
    marks = str(separator) if begin is None else f"{separator} {begin}"
    return hashlib.sha256(f"{_FORMAT} {corpus.identity} {fingerprint(tokenizer)} {marks}".encode()).hexdigest()


def _marks(corpus: Corpus, tokenizer: "PreTrainedTokenizerFast") -> tuple[int | None, int | None]:
    """The ids of the separator and of what a document begins with."""
    return separator_id(tokenizer) if corpus.separated else None, begin_id(tokenizer)


def fraction_of_split_characters(
    store: TokenStore, tokenizer: "PreTrainedTokenizerFast", sample: int = 20_000
) -> float:
    """The fraction of the first `sample` tokens that hold only some of a character's bytes.

    Near 0 for English under `gpt2`, above a half for Chinese. From about 0.2 on, training a BPE on the text is worth
    suggesting (`tokenizer: {train: {vocab_size: 4096}}`). For byte-level tokenizers; for others it is 0.
    """
    ids = np.asarray(store.tokens[:sample])
    distinct, counts = np.unique(ids, return_counts=True)
    texts = tokenizer.batch_decode([[int(i)] for i in distinct], clean_up_tokenization_spaces=False)
    # A token that is not complete UTF-8 decodes to U+FFFD. A token that spells U+FFFD itself is rare enough.
    split = np.array(["\ufffd" in text for text in texts])
    return float(counts[split].sum() / counts.sum())


# Making a store -----------------------------------------------------------------------------------------------------

_CHUNK = 1 << 18  # characters of one text given to the tokenizer
_BATCH = 1 << 22  # characters that a thread encodes at once
_SHARD = 1 << 23  # characters, at least, of a shard


def _make(
    folder: Path,
    key: str,
    corpus: Corpus,
    encoder: Encoder,
    separator: int | None,
    begin: int | None,
    progress: Callable[[int], None],
) -> None:
    """Make the store at `folder`, resuming from an earlier attempt. The caller holds the lock."""
    part = folder.with_suffix(".part")
    if os.path.lexists(part) and not (part.is_dir() and all(path.is_file() for path in part.iterdir())):
        remove(part)  # whatever it is, it is not ours
    part.mkdir(exist_ok=True)
    dtype = encoder.dtype.newbyteorder("<")
    try:
        with contextlib.closing(_Shards(part, key, dtype)) as shards:
            texts = _texts(corpus, encoder, shards.counts["num_characters"], progress)
            if begin is not None and not shards.counts["num_tokens"]:
                shards.append(np.array([begin], dtype).tobytes(), {"num_tokens": 1})
            marks = [separator] if begin in (None, separator) else [separator, begin]
            encode = partial(_encode, corpus.name, encoder, marks if separator is not None else [], dtype)
            for ids, counts in _in_background(encode, _batches(texts), encoder.num_threads):
                shards.append(ids, counts)
                progress(counts["num_characters"])
            shards.finish()
        if not shards.counts["num_characters"]:
            raise UserError(f"{corpus.name}: has no text; there is nothing to train on")
        counts = {name: count for name, count in shards.counts.items() if name != "num_tokens"}
        counts |= {} if begin is None else {"begin_id": begin}
        seal(part, key, dtype=dtype.str, separator_id=separator, **counts)
        flush_tree(part)
        part.rename(folder)
        flush_path(folder.parent)
    finally:
        lines = part / "shards.jsonl"
        if not (lines.is_file() and lines.stat().st_size):
            shutil.rmtree(part, ignore_errors=True)  # there is no shard to resume from


class _Shards:
    """A store in the making: ids are appended to `tokens.bin`, and each finished shard has a line in `shards.jsonl`.

    A line holds the counts from the beginning of the store to the end of its shard, and a checksum of these, of the
    shard, and of the store's key. What an earlier attempt left behind the last shard with a correct checksum is cut
    off.
    """

    def __init__(self, folder: Path, key: str, dtype: np.dtype):
        self._key = key
        self.counts = {"num_tokens": 0, "num_characters": 0, "num_bytes": 0, "num_documents": 0}
        self._itemsize = dtype.itemsize
        self._ids = open(folder / "tokens.bin", "a+b")  # noqa: SIM115 - closed by `close`
        self._lines = open(folder / "shards.jsonl", "a+b")  # noqa: SIM115
        flush_path(folder)
        flush_path(folder.parent)
        self._keep_good_shards()
        self._num_finished = self.counts["num_characters"]
        self._hash = hashlib.blake2b(digest_size=16)

    def append(self, ids: bytes, counts: dict[str, int]) -> None:
        """Add ids, and what they add to the counts."""
        self._ids.write(ids)
        self._hash.update(ids)
        if not self.counts["num_documents"]:
            self.counts["num_documents"] = 1  # the first, which has no separator before it
        self.counts = {name: self.counts[name] + counts.get(name, 0) for name in self.counts}
        if self.counts["num_characters"] - self._num_finished >= _SHARD:
            self._finish_shard()

    def finish(self) -> None:
        """Finish the last shard."""
        if self.counts["num_characters"] > self._num_finished:
            self._finish_shard()
        flush_file(self._ids)

    def close(self) -> None:
        self._ids.close()
        self._lines.close()

    def _keep_good_shards(self) -> None:
        self._ids.seek(0)
        self._lines.seek(0)
        end_of_lines, most = 0, os.fstat(self._ids.fileno()).st_size
        for line in self._lines:
            try:
                shard = json.loads(line)
                counts = {name: int(shard[name]) for name in self.counts}
                size = (counts["num_tokens"] - self.counts["num_tokens"]) * self._itemsize
                found = hashlib.blake2b(self._ids.read(min(size, most)), digest_size=16)
                if not line.endswith(b"\n") or self._checksum(counts, found.hexdigest()) != shard["checksum"]:
                    break
            except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
                break
            self.counts = counts
            end_of_lines += len(line)
        self._lines.truncate(end_of_lines)
        self._ids.truncate(self.counts["num_tokens"] * self._itemsize)

    def _finish_shard(self) -> None:
        flush_file(self._ids)  # before the line that says that they are there
        line = json.dumps({**self.counts, "checksum": self._checksum(self.counts, self._hash.hexdigest())})
        self._lines.write(line.encode() + b"\n")
        flush_file(self._lines)
        self._num_finished = self.counts["num_characters"]
        self._hash = hashlib.blake2b(digest_size=16)

    def _checksum(self, counts: dict[str, int], hash_of_ids: str) -> str:
        return digest(self._key, json.dumps(counts), hash_of_ids)[:32]


def _encode(
    name: str, encoder: Encoder, between: list[int], dtype: np.dtype, batch: list[str | None]
) -> tuple[bytes, dict[str, int]]:
    """The ids of a batch as they stand in the file, and what they add to the counts of a store."""
    texts = [text for text in batch if text is not None]
    if not between and len(texts) < len(batch):
        raise UserError(
            f"{name}: the tokenizer has no <|endoftext|> or EOS token to put between documents; "
            "set data.separator to false or choose another tokenizer"
        )
    encoded = iter(encoder.encode(texts))
    marks = np.array(between, dtype)
    ids = np.concatenate([marks if text is None else next(encoded) for text in batch])
    return ids.astype(dtype, copy=False).tobytes(), {
        "num_tokens": len(ids),
        "num_characters": sum(map(len, texts)),
        "num_bytes": sum(len(text) if text.isascii() else len(repair_surrogates(text).encode()) for text in texts),
        "num_documents": len(batch) - len(texts),
    }


def _in_background(function: Callable[[Any], Any], items: Iterator[Any], num_threads: int) -> Iterator[Any]:
    """`map(function, items)`, with `num_threads` calls running while an item is read or a result is used."""
    with ThreadPoolExecutor(num_threads) as pool:
        ahead = deque()
        for item in items:
            ahead.append(pool.submit(function, item))
            if len(ahead) > num_threads:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def _texts(corpus: Corpus, encoder: Encoder, num_done: int, progress: Callable[[int], None]) -> Iterator[str | None]:
    """The documents in chunks, None between two of them. Documents without text are left out.

    The first `num_done` characters are skipped: they end inside a document, at the end of a chunk.
    """
    pieces = corpus.pieces()
    begun = num_done > 0
    if begun:
        pieces = _skip(pieces, num_done, progress)
        yield from encoder.cut(_rest_of_document(pieces), _CHUNK)
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
            yield from encoder.cut(chain([first, second or ""], rest), _CHUNK)


def _skip(pieces: Pieces, num_characters: int, progress: Callable[[int], None]) -> Pieces:
    """Read the first `num_characters`, and return what follows them."""
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
