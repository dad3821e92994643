"""Text -> the token store: tokenised once, in parallel, into a file that every later run maps into memory.

The one idea: the store's folder is named by a hash of all that decides its content (corpus, separators, cleaning,
tokenizer, format), so finding it *is* knowing that it is right, and no recipe can get another's. It appears whole or
not at all, and is checked before it is trusted.

Text passes through in blocks of a few megabytes, so memory stays flat however long the corpus; cuts are made where
it is proven that they change nothing, so the ids are those of each document encoded at once. Between documents goes
the separator's *id*: `<|endoftext|>` written in a text stays text. It goes between them only, so that one document is
exactly its text (the book's 5,145 tokens) and a store of n documents has n - 1 separators.

The trade: the whole corpus is tokenised before the first step. At tens of megabytes a second that is seconds for a
book, minutes for what one machine trains on; in return, training never waits for text and can start at any position.
Where text comes from is corpus.py's; windows and their order are batches.py's.
"""

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import UserError
from ..tokenization import cut_exactly, encode_ordinary, fingerprint, separator_id, token_dtype
from .corpus import Corpus
from .files import cache_folder

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

    `progress` is called with the number of characters done since its last call. Of several processes that want the
    same store at once, one makes it and the others wait.

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
    return store


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


def _write(
    folder: Path,
    corpus: Corpus,
    tokenizer: "PreTrainedTokenizerFast",
    separator: int | None,
    progress: Callable[[int], None],
) -> None:
    """Makes the store at `folder`, whole or not at all. Called with its lock held."""
    for stale in folder.parent.glob(f"{folder.name}.*part"):  # of a process that died: the lock is ours
        shutil.rmtree(stale, ignore_errors=True)
    part = folder.with_suffix(f".{os.getpid()}.part")
    part.mkdir()
    try:
        counts = {"num_tokens": 0, "num_characters": 0, "num_bytes": 0, "num_documents": 0}
        dtype = token_dtype(tokenizer).newbyteorder("<")
        with open(part / "tokens.bin", "wb") as file:
            for batch in _batches(_texts(corpus, tokenizer, counts)):
                texts = [text for text in batch if text is not None]
                encoded = iter(encode_ordinary(tokenizer, texts))
                if separator is None and len(texts) < len(batch):
                    raise UserError(
                        f"{corpus.name}: the tokenizer has no <|endoftext|> or EOS token to put between documents; "
                        "set data.separator to false or choose another tokenizer"
                    )
                ids = [np.array([separator]) if text is None else next(encoded) for text in batch]
                file.write(np.concatenate(ids).astype(dtype).tobytes())
                num_characters = sum(map(len, texts))
                counts["num_tokens"] += sum(map(len, ids))
                counts["num_characters"] += num_characters
                counts["num_bytes"] += sum(len(text.encode("utf-8", "replace")) for text in texts)
                progress(num_characters)
            _flush(file)
        if not counts["num_tokens"]:
            raise UserError(f"{corpus.name}: has no text; there is nothing to train on")
        meta = {"format": _FORMAT, "dtype": dtype.str, "separator_id": separator, **counts}
        with open(part / "store.json", "w") as file:
            json.dump({**meta, "checksum": _checksum(part / "tokens.bin")}, file)
            _flush(file)
        shutil.rmtree(folder, ignore_errors=True)  # a store that was not to be trusted
        part.rename(folder)
        _flush_folder(folder.parent)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _texts(corpus: Corpus, tokenizer: "PreTrainedTokenizerFast", counts: dict[str, int]) -> Iterator[str | None]:
    """The documents in chunks, None between two of them; documents without text are left out."""
    pieces = corpus.pieces()
    for first in pieces:
        if not first:
            continue
        if counts["num_documents"]:
            yield None
        counts["num_documents"] += 1
        yield from cut_exactly(tokenizer, chain([first], iter(lambda: next(pieces, None), None)), _CHUNK)


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


def _flush(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


def _flush_folder(folder: Path) -> None:
    """Makes a rename in `folder` last; there is no such call, and no need of it, on Windows."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
