"""Text to the token store: tokenised once, in parallel, into a file that every later run maps into memory.

The one idea: the store's folder is named by a hash of everything that decides its content (corpus, separators,
cleaning, tokenizer). So a store that is found is the right one, and no recipe can get another's. It appears
atomically, and its checksum is compared before it is used.

- **Memory stays flat.** Text passes through in blocks of a few megabytes, cut only where a cut changes no token. The
  ids are those of each document encoded at once.
- **Separators are ids.** Between documents stands the *id* of the separator; `<|endoftext|>` written in a text stays
  text. It stands between them only: one document is exactly its text (the book's 5,145 tokens), and a store of n
  documents has n - 1 separators. Where the tokenizer puts BOS before a text, each document begins with its id.
- **Making it can be resumed.** The store grows in shards of some 8 million characters, in a `.part` folder. A finished
  shard is forced to disk and then entered in `shards.jsonl` with its checksum. After a crash the next process checks
  the shards, skips the text up to the end of the last good one, and continues to the same bytes.
- **Words are counted on the way**: how many begin in each token stands beside the ids (words.py).
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
from .words import WordCounter, WordCounts, pack

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_FORMAT = 2  # of the store's files; part of the name of the folder of them all


@dataclasses.dataclass(frozen=True)
class TokenStore:
    """A tokenised corpus. `tokens` is a read-only memory map of shape (num_tokens,), of the smallest type that fits.

    `words` are the counts of words that begin in each. `num_characters`, `num_bytes` (UTF-8) and `num_words` count the
    text without separators. `separator_id` is what stands between documents, `begin_id` what each begins with, None if
    nothing does. `origin` is that of the corpus.
    """

    name: str
    path: Path
    tokens: np.ndarray = dataclasses.field(repr=False, compare=False)
    separator_id: int | None
    num_characters: int
    num_bytes: int
    num_documents: int
    num_words: int
    words: WordCounts = dataclasses.field(repr=False, compare=False)
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
    folder = cache_folder() / f"tokens-{_FORMAT}" / key[:32]

    def make() -> None:
        _make(folder, key, corpus, encoder_of(tokenizer), WordCounter(tokenizer), separator, begin, progress)

    facts = kept(folder, key, make, fits=lambda facts: corpus.has_characters(facts["num_characters"]))
    tokens = np.memmap(folder / "tokens.bin", dtype=np.dtype(facts.pop("dtype")), mode="r")
    words = WordCounts(folder, len(tokens))
    return TokenStore(name=corpus.name, path=folder, tokens=tokens, words=words, origin=corpus.origin, **facts)


def store_name(corpus: Corpus, tokenizer: "PreTrainedTokenizerFast") -> str:
    """The name of the folder of a store: a hash of everything that decides its content. The text is not read."""
    return _key(corpus, tokenizer)[:32]


def _key(corpus: Corpus, tokenizer: "PreTrainedTokenizerFast") -> str:
    separator, begin = _marks(corpus, tokenizer)
    marks = str(separator) if begin is None else f"{separator} {begin}"
    # It says which ids these are, and runs write it down: it outlives a format.
    return hashlib.sha256(f"1 {corpus.identity} {fingerprint(tokenizer)} {marks}".encode()).hexdigest()


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
    counter: WordCounter,
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
            num_done = shards.counts["num_characters"]
            pieces, before = _skip(corpus.pieces(), num_done, progress)
            if begin is not None and not shards.counts["num_tokens"]:
                shards.append(np.array([begin], dtype).tobytes(), bytes(1), {"num_tokens": 1})
            marks = [separator] if begin in (None, separator) else [separator, begin]
            encode = partial(_encode, corpus.name, encoder, counter, marks if separator is not None else [], dtype)
            batches = _batches(_texts(pieces, encoder, num_done > 0), before)
            for ids, words, counts in _in_background(encode, batches, encoder.num_threads):
                shards.append(ids, words, counts)
                progress(counts["num_characters"])
            shards.finish()
        if not shards.counts["num_characters"]:
            raise UserError(f"{corpus.name}: there is no text in it")
        counts = {name: count for name, count in shards.counts.items() if name != "num_tokens"}
        counts |= {} if begin is None else {"begin_id": begin}
        pack(part)
        seal(part, key, dtype=dtype.str, separator_id=separator, **counts)
        flush_tree(part)
        part.rename(folder)
        flush_path(folder.parent)
    finally:
        lines = part / "shards.jsonl"
        if not (lines.is_file() and lines.stat().st_size):
            shutil.rmtree(part, ignore_errors=True)  # there is no shard to resume from


class _Shards:
    """A store in the making: ids are appended to `tokens.bin`, for each a byte to `words.bin`, the count of its words,
    and each finished shard has a line in `shards.jsonl`.

    A line holds the counts from the beginning of the store to the end of its shard, and a checksum of these, of the
    shard, and of the store's key. What an earlier attempt left behind the last shard with a correct checksum is cut
    off.
    """

    def __init__(self, folder: Path, key: str, dtype: np.dtype):
        self._key = key
        self.counts = {"num_tokens": 0, "num_characters": 0, "num_bytes": 0, "num_documents": 0, "num_words": 0}
        self._itemsize = dtype.itemsize
        self._ids = open(folder / "tokens.bin", "a+b")  # noqa: SIM115 - closed by `close`
        self._words = open(folder / "words.bin", "a+b")  # noqa: SIM115
        self._lines = open(folder / "shards.jsonl", "a+b")  # noqa: SIM115
        flush_path(folder)
        flush_path(folder.parent)
        self._keep_good_shards()
        self._begin_shard()

    def append(self, ids: bytes, words: bytes, counts: dict[str, int]) -> None:
        """Add ids, the counts of their words, and what they add to the counts of the store."""
        for file, hashed, content in ((self._ids, self._hashes[0], ids), (self._words, self._hashes[1], words)):
            file.write(content)
            hashed.update(content)
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
        flush_file(self._words)

    def close(self) -> None:
        for file in (self._ids, self._words, self._lines):
            file.close()

    def _begin_shard(self) -> None:
        self._num_finished = self.counts["num_characters"]
        self._hashes = [hashlib.blake2b(digest_size=16) for _ in range(2)]  # of its ids and its words

    def _keep_good_shards(self) -> None:
        for file in (self._ids, self._words, self._lines):
            file.seek(0)
        end_of_lines, most = 0, os.fstat(self._ids.fileno()).st_size
        for line in self._lines:
            try:
                shard = json.loads(line)
                counts = {name: int(shard[name]) for name in self.counts}
                size = counts["num_tokens"] - self.counts["num_tokens"]
                contents = self._ids.read(min(size * self._itemsize, most)), self._words.read(min(size, most))
                found = [hashlib.blake2b(content, digest_size=16).hexdigest() for content in contents]
                if not line.endswith(b"\n") or self._checksum(counts, found) != shard["checksum"]:
                    break
            except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
                break
            self.counts = counts
            end_of_lines += len(line)
        self._lines.truncate(end_of_lines)
        self._ids.truncate(self.counts["num_tokens"] * self._itemsize)
        self._words.truncate(self.counts["num_tokens"])

    def _finish_shard(self) -> None:
        flush_file(self._ids)  # before the line that says that they are there
        flush_file(self._words)
        checksum = self._checksum(self.counts, [hashed.hexdigest() for hashed in self._hashes])
        self._lines.write(json.dumps({**self.counts, "checksum": checksum}).encode() + b"\n")
        flush_file(self._lines)
        self._begin_shard()

    def _checksum(self, counts: dict[str, int], hashes: list[str]) -> str:
        return digest(self._key, json.dumps(counts), *hashes)[:32]


def _encode(
    name: str,
    encoder: Encoder,
    counter: WordCounter,
    between: list[int],
    dtype: np.dtype,
    batch_and_before: tuple[list[str | None], str],
) -> tuple[bytes, bytes, dict[str, int]]:
    """The ids of a batch as they stand in the file, the counts of their words, and what they add to those of a store.

    The batch comes with the character before it in its document, if there is one.
    """
    batch, before = batch_and_before
    texts = [text for text in batch if text is not None]
    if not between and len(texts) < len(batch):
        raise UserError(
            f"{name}: the tokenizer has no <|endoftext|> or EOS token to put between documents; "
            "set data.separator to false or choose another tokenizer"
        )
    encoded = iter(encoder.encode(texts))
    marks = np.array(between, dtype)
    parts = [marks if text is None else next(encoded) for text in batch]
    ids, words = np.concatenate(parts), counter.count(before, batch, parts)
    return (
        ids.astype(dtype, copy=False).tobytes(),
        words.tobytes(),
        {
            "num_tokens": len(ids),
            "num_words": int(words.sum()),
            "num_characters": sum(map(len, texts)),
            "num_bytes": sum(len(text) if text.isascii() else len(repair_surrogates(text).encode()) for text in texts),
            "num_documents": len(batch) - len(texts),
        },
    )


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


def _texts(pieces: Pieces, encoder: Encoder, begun: bool) -> Iterator[str | None]:
    """The documents in chunks, None between two of them. Documents without text are left out.

    If they have `begun`, the pieces continue inside a document, at the end of a chunk.
    """
    if begun:
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


def _skip(pieces: Pieces, num_characters: int, progress: Callable[[int], None]) -> tuple[Pieces, str]:
    """Read the first `num_characters`, and return what follows them, and the last of them."""
    if num_characters:
        for piece in pieces:
            size = min(len(piece or ""), num_characters)
            progress(size)
            num_characters -= size
            if not num_characters:
                return chain([piece[size:]], pieces), piece[size - 1]
    return pieces, ""


def _rest_of_document(pieces: Pieces) -> Iterator[str]:
    return iter(lambda: next(pieces, None), None)


def _batches(texts: Iterator[str | None], before: str) -> Iterator[tuple[list[str | None], str]]:
    """Texts to be encoded together, and the character before the first of them in its document."""
    batch, size = [], 0
    for text in texts:
        batch.append(text)
        size += len(text or "")
        if size >= _BATCH:
            yield batch, before
            batch, size, before = [], 0, text[-1] if text else ""
    if batch:
        yield batch, before
