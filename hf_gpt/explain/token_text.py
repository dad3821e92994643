"""How a token is shown to a person.

A token is bytes: a word with the space before it, a line break, a control character, a third of a Chinese character.
Shown as it is, it vanishes, moves the cursor or turns into a question mark, and may take the terminal with it. So:

    ␣ ⏎ ⇥            space, line feed, tab
    \\x1b \\u202e      other control characters, and characters without a shape that change how others are shown
    ◌ and a mark     an accent without the letter that it goes on
    <E4 B8>          bytes that are a part of a character
    <id 50300>       an id that the tokenizer has no token for

Everything else stands for itself. What is shown is for eyes: two different tokens may look alike, their ids do not.
`aligned` pads cells to columns, in which Chinese characters are two wide.
"""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from functools import cache, lru_cache

from transformers import PreTrainedTokenizerBase

from ..data.tokenizer import byte_characters

_SHOWN = {" ": "␣", "\n": "⏎", "\t": "⇥"}
_ONE_BYTE = re.compile(r"<0x([0-9A-F]{2})>")  # how SentencePiece names the bytes that it falls back to


def token_bytes(tokenizer: PreTrainedTokenizerBase, token_id: int) -> bytes:
    """The UTF-8 bytes that a token stands for; none for an id without a token.

    A byte-level vocabulary (GPT-2's, ours) spells them out. Of others a token's name is taken as its text, with
    SentencePiece's ▁ as a space.
    """
    name = tokenizer.convert_ids_to_tokens(int(token_id))
    if not name or token_id in tokenizer.all_special_ids:
        return (name or "").encode()
    if _is_byte_level(tokenizer):
        values = _byte_values()
        return bytes(map(values.get, name)) if values.keys() >= set(name) else name.encode()
    if one := _ONE_BYTE.fullmatch(name):
        return bytes([int(one[1], 16)])
    return name.replace("▁", " ").encode()


def show_token(tokenizer: PreTrainedTokenizerBase, token_id: int) -> str:
    """One token, whatever it is, as printable characters without a space."""
    return show(token_bytes(tokenizer, token_id)) or f"<id {token_id}>"


def show(data: bytes) -> str:
    """Bytes as printable characters: see the top of this file."""
    shown, start = "", 0
    while start < len(data):
        try:
            return shown + _show_text(data[start:].decode())
        except UnicodeDecodeError as error:
            shown += _show_text(data[start : start + error.start].decode())
            broken = data[start + error.start : start + error.end]
            shown = (shown[:-1] + " " if shown.endswith(_END) else shown + _BEGIN) + broken.hex(" ").upper() + _END
            start += error.end
    return shown.replace(_BEGIN, "<").replace(_END, ">")


_BEGIN, _END = "\ue000", "\ue001"  # of private use: a text's own ones are shown by their numbers


def _show_text(text: str) -> str:
    shown = "".join(_SHOWN.get(char) or (char if char.isprintable() else _escaped(char)) for char in text)
    return "◌" + shown if shown and _is_mark(shown[0]) else shown


def _is_mark(char: str) -> bool:
    return unicodedata.category(char) in ("Mn", "Me")


def _escaped(char: str) -> str:
    number = ord(char)
    return f"\\x{number:02x}" if number < 256 else f"\\u{number:04x}" if number < 65536 else f"\\U{number:08x}"


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
            # The start of a character, which the next token may complete; anything else never will be whole.
            if error.reason == "unexpected end of data":
                continue
        runs.append(range(start, index + 1))
        start, waiting = index + 1, b""
    if start < len(parts):
        runs.append(range(start, len(parts)))
    return runs


def width(text: str) -> int:
    """Columns that a text takes in a terminal."""
    return sum(0 if _is_mark(char) else 2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text)


def aligned(rows: Sequence[Sequence[str]], columns: str) -> list[str]:
    """Rows of cells as lines, two spaces between columns; `columns` has `<` or `>` for each: which side is flush."""
    widths = [max(map(width, cells)) for cells in zip(*rows)]
    return ["  ".join(_padded(row, widths, columns)).rstrip() for row in rows]


def _padded(row: Sequence[str], widths: Sequence[int], columns: str) -> Iterable[str]:
    for cell, wanted, side in zip(row, widths, columns):
        space = " " * (wanted - width(cell))
        yield cell + space if side == "<" else space + cell


@cache
def _byte_values() -> dict[str, int]:
    return {char: byte for byte, char in enumerate(byte_characters())}


@lru_cache(maxsize=8)
def _is_byte_level(tokenizer: PreTrainedTokenizerBase) -> bool:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return backend is not None and "ByteLevel" in repr(backend.decoder)
