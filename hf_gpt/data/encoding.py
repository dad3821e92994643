"""Text to token ids, several times faster than a call of the tokenizer, and with the same ids.

The one idea: how to encode is read from the tokenizer's *content* (the JSON of its `tokenizers` backend), never from
its name or from a marker in a file. The content says where a text may be cut, and whether tiktoken computes the same
ids (`_as_tiktoken` holds the proof). So a tokenizer that was saved, published and downloaded again is as fast as a new
one, and an edited one is never mistaken for the original.

Loading and training tokenizers belong to tokenizer.py, the store of ids to token_store.py.
"""

import functools
import json
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate, chain, groupby
from typing import TYPE_CHECKING, Any

import numpy as np

from .cutting import SafeCuts, cut, repair_surrogates
from .tokenizer import byte_characters, content_of, last_merges

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

_PIECE = 2**17  # characters encoded in one call: 10 ms


@dataclass(frozen=True)
class Encoder:
    """Encodes ordinary text: special tokens are plain text, and nothing is added before, between or after.

    The ids are those of `tokenizer(text, add_special_tokens=False, split_special_tokens=True)`. Surrogates, which no
    UTF-8 text can hold, are repaired as tiktoken does it. `safe_cuts` says where a text may be cut without changing
    its ids. `dtype` is the smallest type that holds every id: uint16 up to 65,536 ids (`gpt2`, `bytes`), else uint32.
    `num_threads` is how many threads are to call `encode` at once: one for each CPU that this process may use, or two
    for a tokenizer that tiktoken cannot repeat, since it has threads of its own (`RAYON_NUM_THREADS`).
    """

    safe_cuts: SafeCuts
    dtype: np.dtype
    _encode: Callable[[list[str]], list[np.ndarray]]  # one new array for each text
    num_threads: int

    def encode(self, texts: list[str]) -> list[np.ndarray]:
        """The ids of each text, computed in the calling thread; long texts are divided."""
        pieces_of_texts = [[text] if len(text) <= _PIECE else list(self.cut([text], _PIECE)) for text in texts]
        pieces = [*chain(*pieces_of_texts)]
        # Few at a time, since the backend's own encodings are large.
        some = groupby(zip(accumulate(map(len, pieces), initial=0), pieces), lambda pair: pair[0] // (8 * _PIECE))
        encoded = chain.from_iterable(self._encode([piece for _, piece in group]) for _, group in some)
        return [np.concatenate([next(encoded) for _ in pieces]) for pieces in pieces_of_texts]

    def cut(self, texts: Iterable[str], size: int) -> Iterator[str]:
        """`texts`, joined, in pieces of about `size` characters with the same ids (see :func:`cutting.cut`)."""
        return cut(texts, size, self.safe_cuts)


def encoder_of(tokenizer: "PreTrainedTokenizerFast") -> Encoder:
    """The encoder for what `tokenizer` is now: after a change to the tokenizer, ask again."""
    return _encoder_of_content(content_of(tokenizer))


@functools.lru_cache(maxsize=4)
def _encoder_of_content(content: str) -> Encoder:
    from tokenizers import Tokenizer

    described = json.loads(content)
    backend = Tokenizer.from_str(content)
    backend.encode_special_tokens = True
    num_ids = max(backend.get_vocab(with_added_tokens=True).values(), default=-1) + 1
    dtype = np.dtype(np.uint16 if num_ids <= 2**16 else np.uint32)
    cuts = _safe_cuts(described)
    if cuts == "anywhere":
        id_of_byte = np.array([described["model"]["vocab"][char] for char in byte_characters()], dtype)
        return Encoder(cuts, dtype, functools.partial(_encode_bytes, id_of_byte), _num_threads())
    tiktoken = _as_tiktoken(described) if cuts == "before_whitespace" else None
    if tiktoken is not None:
        return Encoder(cuts, dtype, functools.partial(_encode_with_tiktoken, tiktoken, backend, dtype), _num_threads())
    return Encoder(cuts, dtype, functools.partial(_encode_with_backend, backend, dtype), 2)


def _safe_cuts(described: dict[str, Any]) -> SafeCuts:
    """Where the tokenizer with this backend JSON allows cuts."""
    pre_tokenizer, model = described["pre_tokenizer"] or {}, described["model"]
    is_plain_byte_level_bpe = (
        described["normalizer"] is None
        and pre_tokenizer.get("type") == "ByteLevel"
        and not pre_tokenizer["add_prefix_space"]
        and model.get("type") == "BPE"
        and not any(model.get(k) for k in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"))
        and not model.get("ignore_merges")
        and all(char in model["vocab"] for char in byte_characters())
        and all(token["special"] for token in described["added_tokens"])  # others are found in ordinary text too
    )
    if not is_plain_byte_level_bpe:
        return "never"
    if not model["merges"]:
        return "anywhere"
    return "before_whitespace" if pre_tokenizer["use_regex"] else "never"


class _Tiktoken(threading.local):
    """A tiktoken encoding for each thread, made in 20 ms.

    Only the first thread that uses one has its regular expressions' memory at hand; any other takes a third longer.
    """

    def __init__(self, **described: Any):
        import tiktoken

        self.encoding = tiktoken.Encoding("byte-level BPE", **described)


def _as_tiktoken(described: dict[str, Any]) -> _Tiktoken | None:
    """The tiktoken encoding with the ids of this byte-level BPE (JSON of the backend), or None if there is no proof.

    Both start from bytes. The backend joins the pair that comes first in its list of merges. tiktoken joins the pair
    whose token has the lowest id, whatever pair makes it. Both take the leftmost of equals. They do the same if every
    token, in the order of the ids, has exactly the merge that :func:`last_merges` derives. Proof by induction: suppose
    that they did the same so far, and that tiktoken now joins x and y to the token t.

    - All earlier joins inside the bytes of t were chosen as they would be for t alone: what is best in the whole text
      is best in any part that contains it, and no join crossed the ends of t.
    - So x and y are the last two parts of t tokenised alone: the one merge of t, and it is in the backend's list.
    - That list has the order of the ids, and each pair in it is open to tiktoken too: the backend also joins x and y.

    tiktoken looks up whole words first, with the same result, since each token tokenised alone is itself.
    """
    model = described["model"]
    special = {token["content"]: token["id"] for token in described["added_tokens"]}
    byte_of = {char: byte for byte, char in enumerate(byte_characters())}
    try:
        ranks = {
            bytes(byte_of[char] for char in token): rank
            for token, rank in model["vocab"].items()
            if token not in special
        }
        merges = [tuple(bytes(byte_of[char] for char in half) for half in merge) for merge in model["merges"]]
    except KeyError:  # a token that no bytes spell
        return None
    if len(set(ranks.values())) < len(ranks) or last_merges(tuple(sorted(ranks, key=ranks.get))) != merges:
        return None

    from tiktoken_ext.openai_public import r50k_pat_str  # GPT-2's pattern, written so that it runs faster

    return _Tiktoken(pat_str=r50k_pat_str, mergeable_ranks=ranks, special_tokens=special)


def _encode_bytes(id_of_byte: np.ndarray, texts: list[str]) -> list[np.ndarray]:
    return [id_of_byte[np.frombuffer(repair_surrogates(text).encode(), np.uint8)] for text in texts]


def _encode_with_tiktoken(
    tiktoken: _Tiktoken, backend: "Tokenizer", dtype: np.dtype, texts: list[str]
) -> list[np.ndarray]:
    encoding, encoded = tiktoken.encoding, []
    for text in texts:
        try:
            encoded.append(encoding.encode_to_numpy(text, disallowed_special=()).astype(dtype))
        except ValueError:  # surrogates, or a million line breaks in a row: more than its regular expressions take
            encoded += _encode_with_backend(backend, dtype, [text])
    return encoded


def _encode_with_backend(backend: "Tokenizer", dtype: np.dtype, texts: list[str]) -> list[np.ndarray]:
    encodings = backend.encode_batch_fast([repair_surrogates(text) for text in texts], add_special_tokens=False)
    return [np.array(encoding.ids, dtype) for encoding in encodings]


def _num_threads() -> int:
    num_cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(num_cpus, 16)  # one thread reads rows for so many
