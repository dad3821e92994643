r"""Long text in pieces, cut only where a cut changes no token.

Both training a tokenizer and encoding a corpus work on pieces of bounded size. :data:`SafeCuts` names the places where
the ids of the pieces, one after the other, are the ids of the whole text; which of them holds for a tokenizer is for
encoding.py to say. The proofs are about ids of *ordinary* text, in which `<|endoftext|>` is twelve characters.

`"anywhere"`: every byte is a token. `"never"`: no place is known. `"before_whitespace"`: GPT-2's split pattern,
`'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`, may be cut between a character that is not
whitespace and one that is. Proof, for a text AB that is cut so between A and B:

- A match is either all whitespace, or has no whitespace after at most one leading space. So no match contains the end
  of A followed by the start of B. Matches cover the text; therefore one of them ends where A ends.
- Matches in A stay the same without B. To their right they only see where a run stops. The first character of B stops
  every run of non-whitespace, as the end of a text does. Runs of whitespace in A end before A's last character.
- Matches in B stay the same without A: nothing in the pattern looks to the left.
- BPE merges happen inside a match.
"""

import re
from collections.abc import Iterable, Iterator
from typing import Literal

SafeCuts = Literal["anywhere", "before_whitespace", "never"]

_LAST_BEFORE_CUT = {
    # Not between the two halves of a surrogate pair.
    "anywhere": re.compile(r"(?s:.)(?=[^\udc00-\udfff])"),
    # Python counts U+001C to U+001F as whitespace and the split pattern does not. A character that Python calls
    # whitespace never stands before a cut, and none of these four stands after it, so both agree on every cut.
    "before_whitespace": re.compile(r"\S(?=[^\S\x1c-\x1f])"),
    "never": re.compile(r"(?!)"),
}


def cut(texts: Iterable[str], size: int, safe_cuts: SafeCuts) -> Iterator[str]:
    """Divide the text that `texts` make when joined into pieces of about `size` characters.

    A piece ends at the first safe cut at or after `size` characters; the last piece may be shorter, none is empty.
    Memory holds one piece and one of `texts`, or the whole text if no cut is safe.
    """
    last_before_cut = _LAST_BEFORE_CUT[safe_cuts]
    waiting: list[str] = []  # the beginning of the next piece, with no safe cut at or after `size`
    length = 0
    for text in texts:
        if not text:
            continue
        if waiting and length >= size and last_before_cut.match(waiting[-1][-1] + text[0]):
            yield "".join(waiting)
            waiting, length = [], 0
        start = 0  # of the part of `text` that is in no piece yet
        while found := last_before_cut.search(text, start + max(size - length - 1, 0)):
            yield "".join(waiting) + text[start : found.end()]
            waiting, length, start = [], 0, found.end()
        if start < len(text):
            waiting.append(text[start:])
            length += len(text) - start
    if waiting:
        yield "".join(waiting)


def repair_surrogates(text: str) -> str:
    """`text` with surrogates, which UTF-8 cannot hold, joined to the character they mean or replaced by U+FFFD."""
    try:
        text.encode()
        return text
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
