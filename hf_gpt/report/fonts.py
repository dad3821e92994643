"""Which fonts of this machine have the characters of a text, so that a picture shows no empty boxes.

matplotlib brings a font of its own, for Latin, Greek, Cyrillic and symbols. What it lacks (Chinese, for instance) is
looked for in the fonts of the machine. matplotlib remembers those that it once found; where none of them has a
character, those that came since are looked at too.
"""

import contextlib
from functools import cache

USUAL = "DejaVu Sans"  # which comes with matplotlib
# Where several fonts have a character: those made for reading Chinese, Japanese and Korean on a screen.
_PREFERRED = ("Noto Sans CJK SC", "Source Han Sans SC", "PingFang SC", "Hiragino Sans GB", "Microsoft YaHei")
_UNFIT = ("last resort", "emoji", "bitmap", "unifont")


def families_for(text: str) -> list[str]:
    """The usual family, and those that a text needs beside it."""
    return [USUAL, *sorted({font_of(char) for char in text} - {USUAL, ""})]


def missing_characters(text: str) -> str:
    """What no font of this machine can draw."""
    return "".join(sorted({char for char in text if char != "\n" and not font_of(char)}))


def drawable(text: str) -> str:
    """A text with `U+4E2D` in place of what cannot be drawn."""
    return "".join(char if char == "\n" or font_of(char) else f"U+{ord(char):04X}" for char in text)


@cache
def font_of(char: str) -> str:
    """A family that has a character; empty if there is none."""
    for fonts in (known_fonts, newer_fonts):
        for family, characters in fonts():
            if ord(char) in characters:
                return family
    return ""


@cache
def known_fonts() -> "list[tuple[str, _Characters]]":
    """All families that matplotlib knows and that could be drawn with, in the order of preference."""
    from matplotlib.font_manager import fontManager

    paths = {entry.name: entry.fname for entry in reversed(fontManager.ttflist) if entry.style == "normal"}
    order = {name: place for place, name in enumerate((USUAL, *_PREFERRED))}
    names = sorted(paths, key=lambda name: (order.get(name, len(order)), name))
    return [
        (name, _Characters(paths[name]))
        for name in names
        if not name.startswith(".") and not any(word in name.lower() for word in _UNFIT)
    ]


@cache
def newer_fonts() -> "list[tuple[str, _Characters]]":
    """The same with what was installed since matplotlib looked; nothing if nothing was."""
    from matplotlib.font_manager import findSystemFonts, fontManager

    newer = set(findSystemFonts()) - {entry.fname for entry in fontManager.ttflist}
    for path in sorted(newer):
        with contextlib.suppress(Exception):  # whatever is wrong with a file that nobody asked for
            fontManager.addfont(path)
    return known_fonts.__wrapped__() if newer else []


class _Characters:
    """The characters of a font file, which is not opened before it is asked."""

    def __init__(self, path: str):
        self._path = path
        self._found: frozenset[int] | None = None

    def __contains__(self, number: int) -> bool:
        if self._found is None:
            from matplotlib.font_manager import get_font

            try:
                self._found = frozenset(get_font(self._path).get_charmap())
            except (OSError, RuntimeError):  # a font that FreeType cannot read
                self._found = frozenset()
        return number in self._found
