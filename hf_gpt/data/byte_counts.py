"""The UTF-8 bytes that tokens stand for: what bits per byte are divided by.

In a byte-level vocabulary a token's name has one character for each of its bytes. Whether a tokenizer is of this kind
is tried out: counted this way, the whole store must have the bytes of its text. Of other tokenizers only the bytes of
a whole text are known, and where its first token ends.
"""

import math
import re
from typing import TYPE_CHECKING

import numpy as np

from .corpus import Corpus
from .cutting import repair_surrogates
from .token_store import TokenStore
from .tokenizer import vocab_size

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def byte_sizes(store: TokenStore, tokenizer: "PreTrainedTokenizerFast") -> np.ndarray | None:
    """The bytes that each token of a byte-level vocabulary stands for, (vocabulary,); None for other vocabularies."""
    names = tokenizer.convert_ids_to_tokens(range(vocab_size(tokenizer)))
    sizes = np.array([len(name or "") for name in names], np.int64)
    sizes[[i for i in (store.separator_id, store.begin_id) if i is not None]] = 0  # no text of the corpus
    return sizes if num_bytes(store.tokens, sizes) == store.num_bytes else None


def num_bytes(ids: np.ndarray, sizes: np.ndarray, at_once: int = 1 << 20) -> int:
    """The bytes of some tokens, given those of each (`byte_sizes`)."""
    return sum(int(sizes[ids[start : start + at_once]].sum()) for start in range(0, len(ids), at_once))


def scored_bytes(store: TokenStore, corpus: Corpus, tokenizer: "PreTrainedTokenizerFast", stop: int) -> int:
    """The bytes of a text that its first `stop` tokens but the very first, which nothing predicts, stand for."""
    sizes = byte_sizes(store, tokenizer)
    if sizes is not None:
        return num_bytes(store.tokens[1:stop], sizes)
    first = _bytes_before_second_token(corpus, tokenizer) if store.begin_id is None else 0
    if stop == len(store.tokens):
        return store.num_bytes - first
    return len(tokenizer.decode(store.tokens[:stop].tolist(), skip_special_tokens=True).encode()) - first


def bits_per_byte(loss: float, num_targets: int, num_bytes: int) -> float:
    """`loss` (mean nats per target) in bits, over the bytes that the targets stand for."""
    return loss * num_targets / math.log(2) / max(num_bytes, 1)


def _bytes_before_second_token(corpus: Corpus, tokenizer: "PreTrainedTokenizerFast") -> int:
    """The bytes that the first token stands for, by the places that the tokenizer gives.

    White space between tokens counts for the later one. A character that several tokens share counts for the last of
    them, unless each token is one of its bytes.
    """
    beginning = repair_surrogates(next(piece for piece in corpus.pieces() if piece)[:10_000])
    encoding = tokenizer.backend_tokenizer.encode(beginning, add_special_tokens=False)
    places = [*encoding.offsets, (len(beginning), len(beginning))]
    is_one_byte = re.fullmatch("<0x[0-9A-F]{2}>", encoding.tokens[0]) and places[1][0] == places[0][0]
    return len(beginning[: min(places[0][1], places[1][0])].encode()) + bool(is_one_byte)
