"""Text that nobody vouches for, made fit to be looked at."""

import unicodedata


def escape_unprintable(text: str, *, one_line: bool = False, limit: int | None = None) -> str:
    """Text in which every character that does not show, or that reorders others, is spelled out."""

    def shown(character: str) -> str:
        if (character in "\n\t" and not one_line) or character in "\u200c\u200d":  # joiners are spelling
            return character
        if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp"):
            return repr(character)[1:-1]
        return character

    cut = limit is not None and len(text) > limit
    return "".join(map(shown, text[:limit] if cut else text)) + (" …" if cut else "")
