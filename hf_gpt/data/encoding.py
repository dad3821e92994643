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
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from .cutting import SafeCuts, cut, repair_surrogates
from .tokenizer import byte_characters, content_of, last_merges

if TYPE_CHECKING:
    import tiktoken
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

_PIECE = 2**17  # characters of one job: 10 ms of work for a thread


@dataclass(frozen=True)
class Encoder:
    """Encodes ordinary text: special tokens are plain text, and nothing is added before, between or after.

    The ids are those of `tokenizer(text, add_special_tokens=False, split_special_tokens=True)`. Surrogates, which no
    UTF-8 text can hold, are repaired as tiktoken does it. `safe_cuts` says where a text may be cut without changing
    its ids. `dtype` is the smallest type that holds every id: uint16 up to 65,536 ids (`gpt2`, `bytes`), else uint32.
    """

    safe_cuts: SafeCuts
    dtype: np.dtype
    _encode: Callable[[list[str]], list[np.ndarray]]  # one new array for each text
    _has_own_threads: bool

    def encode(self, texts: list[str]) -> list[np.ndarray]:
        """The ids of each text, computed on all CPUs that this process may use; long texts are divided.

        A tokenizer that tiktoken cannot repeat runs in the backend's own threads (`RAYON_NUM_THREADS`).
        """
        pieces_of_texts = [[text] if len(text) <= _PIECE else list(self.cut([text], _PIECE)) for text in texts]
        jobs = _grouped(chain(*pieces_of_texts), 8 * _PIECE if self._has_own_threads else _PIECE)
        with ThreadPoolExecutor(1 if self._has_own_threads else _num_cpus()) as pool:
            encoded = chain.from_iterable(pool.map(self._encode, jobs))
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
        return Encoder(cuts, dtype, functools.partial(_encode_bytes, id_of_byte), False)
    encoding = _as_tiktoken(described) if cuts == "before_whitespace" else None
    if encoding is not None:
        return Encoder(cuts, dtype, functools.partial(_encode_with_tiktoken, encoding, backend, dtype), False)
    return Encoder(cuts, dtype, functools.partial(_encode_with_backend, backend, dtype), True)


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


def _as_tiktoken(described: dict[str, Any]) -> "tiktoken.Encoding | None":
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

    import tiktoken
    from tiktoken_ext.openai_public import r50k_pat_str  # GPT-2's pattern, written so that it runs faster

    return tiktoken.Encoding("byte-level BPE", pat_str=r50k_pat_str, mergeable_ranks=ranks, special_tokens=special)


def _encode_bytes(id_of_byte: np.ndarray, texts: list[str]) -> list[np.ndarray]:
    return [id_of_byte[np.frombuffer(repair_surrogates(text).encode(), np.uint8)] for text in texts]


def _encode_with_tiktoken(
    encoding: "tiktoken.Encoding", backend: "Tokenizer", dtype: np.dtype, texts: list[str]
) -> list[np.ndarray]:
    encoded = []
    for text in map(repair_surrogates, texts):
        try:
            encoded.append(encoding.encode_to_numpy(text, disallowed_special=()).astype(dtype))
        except ValueError:  # a million line breaks in a row: more than its regular expressions can take
            encoded += _encode_with_backend(backend, dtype, [text])
    return encoded


def _encode_with_backend(backend: "Tokenizer", dtype: np.dtype, texts: list[str]) -> list[np.ndarray]:
    encodings = backend.encode_batch_fast([repair_surrogates(text) for text in texts], add_special_tokens=False)
    return [np.array(encoding.ids, dtype) for encoding in encodings]


def _grouped(pieces: Iterable[str], size: int) -> list[list[str]]:
    """Consecutive pieces in lists of at least `size` characters, so that many short texts make one job."""
    groups: list[list[str]] = []
    room = 0
    for piece in pieces:
        if room <= 0:
            groups.append([])
            room = size
        groups[-1].append(piece)
        room -= len(piece)
    return groups


def _num_cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
