"""Which fonts of this machine have the characters of a text, so that a picture shows no empty boxes.

matplotlib brings a font of its own, for Latin, Greek, Cyrillic and symbols. What it lacks (Chinese, for instance) is
looked for in the fonts of the machine, those too that were installed after matplotlib listed them.
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
    if ord(char) in _characters_of(USUAL):
        return USUAL
    return next((family for family in other_families() if ord(char) in _characters_of(family)), "")


@cache
def other_families() -> list[str]:
    """All other families that could be drawn with, in the order of preference."""
    from matplotlib.font_manager import findSystemFonts, fontManager

    for path in sorted(set(findSystemFonts()) - {entry.fname for entry in fontManager.ttflist}):
        with contextlib.suppress(Exception):  # whatever is wrong with a file that nobody asked for
            fontManager.addfont(path)
    names = {entry.name for entry in fontManager.ttflist if entry.style == "normal"} - {USUAL}
    fit = [n for n in names if not n.startswith(".") and not any(word in n.lower() for word in _UNFIT)]
    return sorted(fit, key=lambda name: (_PREFERRED.index(name) if name in _PREFERRED else len(_PREFERRED), name))


@cache
def _characters_of(family: str) -> frozenset[int]:
    from matplotlib.font_manager import FontProperties, findfont, get_font

    try:
        return frozenset(get_font(findfont(FontProperties(family), fallback_to_default=False)).get_charmap())
    except (OSError, RuntimeError, ValueError):  # a font that FreeType cannot read
        return frozenset()
