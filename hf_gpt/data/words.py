"""Words of a text, and the tokens that they begin in.

A word is what `str.split()` finds: characters between white space. It belongs to the token that holds its first
character; so of any stretch of tokens it is known how many words begin there, and stretches add up. The counts are
made while a text is tokenised, and kept beside its ids.

The one idea: where the tokens of a vocabulary spell text, as those of GPT-2's and SentencePiece's kind do, it is known
of each whether it begins and ends with white space, and how many words begin inside; then it only matters what the
token before it ends with. Where white space of several bytes is divided among tokens, the bytes of the text and the
lengths of its tokens are compared instead. For every other tokenizer the backend says where each token stands in the
text, which takes as long as encoding it again.
"""

import functools
import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .cutting import repair_surrogates
from .tokenizer import byte_characters, content_of

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    from .batches import Windows

_WIDE = [character.encode() for character in map(chr, range(0x80, 0x3001)) if character.isspace()]  # 2 or 3 bytes each
_BLANK = "\u2581"  # SentencePiece's mark
# Normalizers under which tokens still spell the words of the text.
_HARMLESS = {"NFC", "Prepend", "Replace", "Sequence"}
_MOST = 1 << 26  # tokens looked at together

# What is known of a token, as bits of a number: its first character is visible, its last is white space, it may end
# inside white space, it stands for whatever has no token. Above these stands how many words begin after its first.
_BEGINS, _ENDS_BLANK, _IS_UNSURE, _IS_UNKNOWN, _INSIDE = 1, 2, 4, 8, 4


class WordCounter:
    """Counts for one tokenizer."""

    def __init__(self, tokenizer: "PreTrainedTokenizerFast"):
        self._backend, self._spelled = _backend_and_spelling(content_of(tokenizer))

    def count(self, before: str, texts: Sequence[str | None], ids: Sequence[np.ndarray]) -> np.ndarray:
        """The words that begin in each token: uint8 of the length of all `ids` together.

        Args:
            before: the character before the first text; empty where that begins a document.
            texts: documents or parts of them, None between two documents.
            ids: of each text, and the marks that stand for each None.
        """
        counts = self._count_by_spelling(before, texts, ids) if self._spelled is not None else None
        if counts is None:
            befores = [before, *(text[-1] if text else "" for text in texts)]
            counts = np.concatenate([self._count_by_offsets(*one) for one in zip(befores, texts, map(len, ids))])
        return counts.astype(np.uint8)

    def _count_by_spelling(
        self, before: str, texts: Sequence[str | None], ids: Sequence[np.ndarray]
    ) -> np.ndarray | None:
        """The counts, from what tokens spell. None if they do not spell the text."""
        known, lengths, is_marked = self._spelled
        if is_marked and any(_BLANK in (text or "") for text in texts):
            return None  # the mark itself, which is no blank
        everything, starts = np.concatenate(ids), np.cumsum([0, *map(len, ids)])
        blanks = [place for place, text in enumerate(texts) if text is None]
        marks = starts[blanks][:, None] + np.arange(len(ids[blanks[0]]) if blanks else 0)
        facts = known.take(everything, mode="clip")
        facts[marks] = _ENDS_BLANK
        if (facts & _IS_UNKNOWN).any():
            return None
        if not (facts & _IS_UNSURE).any() or not _has_wide_blanks(data := _bytes_of(texts)):
            after_blank = np.empty_like(facts)
            after_blank[:1] = not before or before.isspace()
            after_blank[1:] = (facts[:-1] & _ENDS_BLANK) > 0
            return (facts >> _INSIDE) + (facts & _BEGINS & after_blank)
        lengths = lengths.take(everything, mode="clip")
        lengths[marks], lengths[marks[:, :1]] = 0, 1  # the blank between two documents
        ends = lengths.cumsum()
        begun = np.concatenate([[0], _begins_word(data, before).cumsum()])
        return np.diff(begun[ends], prepend=0) if ends[-1] == len(data) else None

    def _count_by_offsets(self, before: str, text: str | None, num_tokens: int) -> np.ndarray:
        """The same for one text, from the place of each token in it."""
        counts = np.zeros(num_tokens, np.uint8)
        if text and num_tokens:
            text = repair_surrogates(text)
            starts = [found.start() for found in re.finditer(r"\S+", text)]
            if starts[:1] == [0] and before and not before.isspace():
                del starts[0]
            ends = np.array([end for _, end in self._backend.encode(text, add_special_tokens=False).offsets])
            owners = np.searchsorted(np.maximum.accumulate(ends), starts, side="right")
            np.add.at(counts, np.minimum(owners, num_tokens - 1), 1)  # what no token holds belongs to the next one
        return counts


def _bytes_of(texts: Sequence[str | None]) -> np.ndarray:
    """UTF-8 of some documents, with a blank between two of them."""
    text = "".join(" " if text is None else text for text in texts)
    return np.frombuffer(repair_surrogates(text).encode(), np.uint8)


def _begins_word(data: np.ndarray, before: str = "") -> np.ndarray:
    """Whether a word begins at each byte of UTF-8 text: bool of the same shape."""
    is_blank = (data - np.uint8(9) < 5) | (data - np.uint8(28) < 5)  # as `str.isspace`
    for width, places in _wide_blanks(data):
        for place in range(width):
            is_blank[places + place] = True
    begins = ~is_blank
    begins[1:] &= is_blank[:-1]
    if before and not before.isspace():
        begins[:1] = False
    return begins


def _wide_blanks(data: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Where white space of two and of three bytes stands."""
    for width in (2, 3):
        wide = np.array([[*blank] for blank in _WIDE if len(blank) == width])
        leads = wide[:, 0].min()
        places = np.flatnonzero(data - np.uint8(leads) <= wide[:, 0].max() - leads)
        places = places[places <= len(data) - width]
        found = sum(data[places + place].astype(np.int64) << 8 * place for place in range(width))
        yield width, places[np.isin(found, sum(wide[:, place] << 8 * place for place in range(width)))]


def _has_wide_blanks(data: np.ndarray) -> bool:
    return any(len(places) for _, places in _wide_blanks(data))


@functools.lru_cache(maxsize=4)
def _backend_and_spelling(content: str) -> tuple["Tokenizer", tuple[np.ndarray, np.ndarray, bool] | None]:
    """The backend of a tokenizer and, where tokens spell text, what is known of each id, its length in bytes, and
    whether blanks are SentencePiece's marks."""
    from tokenizers import Tokenizer

    backend, described = Tokenizer.from_str(content), json.loads(content)
    backend.encode_special_tokens = True
    splits, changes = ({*_kinds(described[name])} for name in ("pre_tokenizer", "normalizer"))
    is_marked = "Metaspace" in splits or {"type": "Replace", "pattern": {"String": " "}, "content": _BLANK} in [
        described["normalizer"],
        *(described["normalizer"] or {}).get("normalizers", ()),
    ]
    if not changes <= _HARMLESS or not (is_marked or "ByteLevel" in splits):
        return backend, None
    added, model = {token["id"] for token in described["added_tokens"]}, described["model"]
    byte_of = {character: byte for byte, character in enumerate(byte_characters())}
    known = np.zeros(max(backend.get_vocab(with_added_tokens=True).values(), default=-1) + 1, np.uint16)
    lengths = np.zeros(len(known), np.int64)
    for token, i in backend.get_vocab(with_added_tokens=True).items():
        if i in added:
            spelled = token.encode()
        elif not is_marked:
            spelled = bytes(byte_of.get(character, 0) for character in token)
        elif model.get("byte_fallback") and re.fullmatch("<0x[0-9A-F]{2}>", token):
            spelled = bytes.fromhex(token[3:5])
        else:
            spelled = token.replace(_BLANK, " ").encode()
        is_unknown = token == model.get("unk_token") or (model["type"] == "Unigram" and i == model["unk_id"])
        known[i], lengths[i] = _IS_UNKNOWN if is_unknown else _facts(spelled), len(spelled)
    return backend, (known, lengths, is_marked)


def _facts(spelled: bytes) -> int:
    """What is known of a token that spells these bytes, of which the first and last may be parts of a character."""
    text = spelled.decode("utf-8", "replace")
    if not text:
        return 0
    begins, ends_blank = not text[0].isspace(), text[-1].isspace()
    is_unsure = any(blank.startswith(spelled[-size:]) for blank in _WIDE for size in range(1, len(blank)))
    bits = begins * _BEGINS | ends_blank * _ENDS_BLANK | is_unsure * _IS_UNSURE
    return len(text.split()) - begins << _INSIDE | bits


def _kinds(part: dict[str, Any] | None) -> Iterator[str]:
    """The types of a part of a backend's JSON, and of those inside it."""
    if part is not None:
        yield part["type"]
        for inside in ("pretokenizers", "normalizers"):
            for one in part.get(inside, ()):
                yield from _kinds(one)


# Kept counts --------------------------------------------------------------------------------------------------------


class WordCounts:
    """How many words begin in each token of a store: a slice of it is a uint8 array.

    In its file a token has one bit, or a byte where two words begin in any.
    """

    def __init__(self, folder: Path, num_tokens: int):
        path = next(path for path in (folder / "word_bits.bin", folder / "words.bin") if path.is_file())
        self._num_tokens, self._is_packed = num_tokens, path.name == "word_bits.bin"
        self._kept = np.memmap(path, np.uint8, mode="r")

    def __getitem__(self, places: slice) -> np.ndarray:
        start, stop, _ = places.indices(self._num_tokens)
        if not self._is_packed:
            return self._kept[start:stop]
        first = start // 8
        return np.unpackbits(self._kept[first : -(-stop // 8)], count=stop - 8 * first)[start - 8 * first :]


def pack(folder: Path) -> None:
    """Let the counts of a store that is made take a bit for each token, if none is above 1."""
    kept = np.memmap(folder / "words.bin", np.uint8, mode="r")
    parts = range(0, len(kept), _MOST)
    if all(kept[start : start + _MOST].max() <= 1 for start in parts):
        with open(folder / "word_bits.bin", "wb") as file:
            for start in parts:
                file.write(np.packbits(kept[start : start + _MOST]).tobytes())
        del kept
        os.unlink(folder / "words.bin")


def words_in(windows: "Windows", indices: np.ndarray) -> int:
    """The words that begin in the targets of some windows."""
    stride, length = windows.stride or windows.context_length, windows.context_length
    starts = (int(index) * stride + 1 for index in indices)
    return sum(int(windows.store.words[start : start + length].sum()) for start in starts)


def words_of_windows(windows: "Windows") -> np.ndarray:
    """The words that begin in the targets of each window: int64 of shape (number of windows,)."""
    stride, length = windows.stride or windows.context_length, windows.context_length
    at_once, counts = max(1, _MOST // stride), []
    for first in range(0, len(windows), at_once):
        starts = np.arange(first, min(first + at_once, len(windows))) * stride + 1
        words = windows.store.words[int(starts[0]) : int(starts[-1]) + length]
        before = np.concatenate([[0], words.cumsum(dtype=np.int64)])
        starts -= starts[0]
        counts.append(before[starts + length] - before[starts])
    return np.concatenate(counts)
