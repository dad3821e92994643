"""How a token is shown to a person.

A token is bytes: a word with the space before it, a line break, a control character, a third of a Chinese character.
Printed raw, it vanishes, moves the cursor or turns into a question mark. So these are written instead:

    ␣ ⏎ ⇥            space, line feed, tab
    \\x1b \\u202e      other control characters, and invisible ones that change how others are shown
    ◌ and a mark     an accent without its letter
    <E4 B8>          bytes that are a part of a character
    <id 50300>       an id that the tokenizer has no token for

Everything else stands for itself. Two different tokens may look alike; their ids do not.
"""

import re
import unicodedata
from collections.abc import Sequence
from functools import cache, lru_cache

from transformers import PreTrainedTokenizerBase

from ..data.tokenizer import byte_characters

_SHOWN = {" ": "␣", "\n": "⏎", "\t": "⇥"}
_BROKEN = re.compile("[\udc80-\udcff]+")  # bytes that are no whole character, as "surrogateescape" decodes them


def token_bytes(tokenizer: PreTrainedTokenizerBase, token_id: int) -> bytes:
    """The UTF-8 bytes that a token stands for; none for an id without a token.

    A byte-level vocabulary (GPT-2's, ours) spells them out. Of others a token's name is taken as its text, with
    SentencePiece's ▁ as a space and its `<0xE4>` as a byte.
    """
    name = tokenizer.convert_ids_to_tokens(int(token_id))
    if not name or token_id in tokenizer.all_special_ids:
        return (name or "").encode()
    if _is_byte_level(tokenizer):
        values = _byte_values()
        return bytes(map(values.get, name)) if values.keys() >= set(name) else name.encode()
    if name.startswith("<0x") and name.endswith(">") and len(name) == 6:
        return bytes.fromhex(name[3:5])
    return name.replace("▁", " ").encode()


def show_token(tokenizer: PreTrainedTokenizerBase, token_id: int) -> str:
    """One token as printable characters without a space."""
    return show(token_bytes(tokenizer, token_id)) or f"<id {token_id}>"


def show(data: bytes) -> str:
    """Bytes as printable characters: see the top of this file."""
    text = data.decode("utf-8", errors="surrogateescape")
    shown = "".join(map(_shown, text, "\n" + text))
    return _BROKEN.sub(lambda found: f"<{found[0].encode(errors='surrogateescape').hex(' ').upper()}>", shown)


def _shown(char: str, before: str) -> str:
    if _BROKEN.match(char):
        return char
    if _is_mark(char) and not before.isprintable():
        return "◌" + char
    return _SHOWN.get(char) or (char if char.isprintable() else repr(char)[1:-1])


def spelled_together(parts: Sequence[bytes]) -> list[range]:
    """Runs of tokens that together spell whole characters; each but a few is one token long.

    `parts` are the bytes of a text's tokens, in order.
    """
    runs, start, waiting = [], 0, b""
    for index, part in enumerate(parts):
        waiting += part
        try:
            waiting.decode()
        except UnicodeDecodeError as error:
            if error.reason == "unexpected end of data":  # the next token may complete the character
                continue
        runs.append(range(start, index + 1))
        start, waiting = index + 1, b""
    if start < len(parts):
        runs.append(range(start, len(parts)))
    return runs


def width(text: str) -> int:
    """Columns that a text takes in a terminal, in which Chinese characters are two wide."""
    return sum(0 if _is_mark(char) else 2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text)


def aligned(rows: Sequence[Sequence[str]], columns: str) -> list[str]:
    """Rows of cells as lines, two spaces between columns; `columns` has `<` or `>` for each: which side is flush."""
    widths = [max(map(width, cells)) for cells in zip(*rows)]
    lines = []
    for row in rows:
        spaces = (" " * (wanted - width(cell)) for cell, wanted in zip(row, widths))
        cells = (cell + space if side == "<" else space + cell for cell, space, side in zip(row, spaces, columns))
        lines.append("  ".join(cells).rstrip())
    return lines


def _is_mark(char: str) -> bool:
    return unicodedata.category(char) in ("Mn", "Me")


@cache
def _byte_values() -> dict[str, int]:
    return {char: byte for byte, char in enumerate(byte_characters())}


@lru_cache(maxsize=8)
def _is_byte_level(tokenizer: PreTrainedTokenizerBase) -> bool:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return backend is not None and "ByteLevel" in repr(backend.decoder)
