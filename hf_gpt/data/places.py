"""Where the tokens of a store come from: their documents, each as a file, a row, and the place of a token in it.

The one idea: a store says where its documents begin (a separator is an id), and in a byte-level vocabulary how many
bytes come before a token. Reading the corpus once more says which file and row each document is. What both found is
kept in the cache under the store's name, so that only the first answer takes as long as reading the text.

Rows are counted from 0, as `datasets` counts them. Where documents are joined to one text, its rows are told apart by
their bytes; if that is not possible, only the place in the whole text is known.
"""

from array import array
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from ..storage import replacing_directory
from .byte_counts import byte_sizes, num_bytes
from .cache import cache_folder, kept, seal
from .corpus import Corpus
from .cutting import repair_surrogates
from .token_store import TokenStore

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_FORMAT = 1
_BLOCK = 1 << 16  # tokens, before each of which the bytes are counted


class Part(NamedTuple):
    """Some tokens in a row of one document.

    `first` and `num_tokens` say which, of the tokens that were asked for. `row` is None where a file is a document.
    `offset` is where the first of them begins: UTF-8 bytes into the document, or into the whole text without a `file`;
    None in a vocabulary that is not byte-level.
    """

    first: int
    num_tokens: int
    file: str | None
    row: int | None
    offset: int | None


class Places:
    """The documents of a token store. Finding them the first time reads the corpus once.

    `progress` is called with the number of characters that were read since its last call.
    """

    def __init__(
        self,
        store: TokenStore,
        corpus: Corpus,
        tokenizer: "PreTrainedTokenizerFast",
        progress: Callable[[int], None] = lambda num_characters: None,
    ):
        self._store, self._files = store, corpus.file_names
        key = f"places-{_FORMAT}-{store.path.name}"
        folder = cache_folder() / "places" / key

        def make() -> None:
            found = {"documents": _documents(corpus, progress), "starts": _starts(store)}
            sizes = byte_sizes(store, tokenizer)
            if sizes is not None:
                blocks = range(0, store.num_tokens, _BLOCK)
                in_blocks = [num_bytes(store.tokens[start : start + _BLOCK], sizes) for start in blocks]
                found |= {"sizes": sizes, "before": np.cumsum([0, *in_blocks])}
            with replacing_directory(folder) as directory:
                for name, values in found.items():
                    np.save(directory / f"{name}.npy", values, allow_pickle=False)
                seal(directory, key)

        kept(folder, key, make)

        def load(name: str) -> np.ndarray | None:
            path = folder / f"{name}.npy"
            return np.load(path, mmap_mode="r", allow_pickle=False) if path.exists() else None

        documents, self._starts, self._sizes, self._before = map(load, ("documents", "starts", "sizes", "before"))
        # The text of an odd tokenizer may hold the separator. Of a text that is cut, the last documents do not train.
        is_known = len(documents) >= len(self._starts) if corpus.separated else self._sizes is not None
        self._documents = documents if is_known and len(documents) else None
        self._separated = corpus.separated

    def parts(self, start: int, stop: int) -> Iterator[Part]:
        """The tokens from `start` to `stop` of the store, document by document."""
        at = self._bytes_before(start)
        if at is not None:
            at = at + np.cumsum([0, *self._sizes[self._store.tokens[start : stop - 1]]])
        if self._documents is None:
            yield Part(0, stop - start, None, None, None if at is None else int(at[0]))
            return
        positions, starts = (np.arange(start, stop), self._starts) if self._separated else (at, self._documents[:, 2])
        numbers = np.searchsorted(starts, positions, side="right") - 1
        edges = [0, *(np.flatnonzero(np.diff(numbers)) + 1), stop - start]
        for first, end in pairwise(edges):
            document = int(numbers[first])
            file, row, begin = map(int, self._documents[document])
            if self._separated and at is not None:
                begin = self._bytes_before(int(self._starts[document]))
            offset = None if at is None else int(at[first]) - begin
            yield Part(int(first), int(end - first), self._files[file], None if row < 0 else row, offset)

    def _bytes_before(self, token: int) -> int | None:
        if self._sizes is None:
            return None
        block = token // _BLOCK
        return int(self._before[block]) + num_bytes(self._store.tokens[block * _BLOCK : token], self._sizes)


def _documents(corpus: Corpus, progress: Callable[[int], None]) -> np.ndarray:
    """File, row and first byte of each document with text, (documents, 3); none if the corpus does not know them."""
    if corpus.documents is None:
        return np.zeros((0, 3), np.int64)
    found, total, size = array("q"), 0, 0
    for piece in corpus.documents():
        if isinstance(piece, str):
            size += len(piece) if piece.isascii() else len(repair_surrogates(piece).encode())
            progress(len(piece))
            continue
        if size:
            found.extend((*piece, total))
        total, size = total + size, 0
    return np.frombuffer(found, np.int64).reshape(-1, 3)


def _starts(store: TokenStore) -> np.ndarray:
    """The first token of each document: its BOS, or what follows the separator before it."""
    if store.separator_id is None:
        return np.zeros(1, np.int64)
    marks = [
        start + np.flatnonzero(store.tokens[start : start + (1 << 24)] == store.separator_id)
        for start in range(0, store.num_tokens, 1 << 24)
    ]
    ends = np.concatenate(marks)
    return ends if store.begin_id == store.separator_id else np.concatenate([[0], ends + 1])
