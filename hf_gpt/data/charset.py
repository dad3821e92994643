"""What a file is that is not UTF-8, so that its error says how to convert it.

The package reads UTF-8 and nothing else: a guessed encoding would be wrong text in silence. A guess is good enough for
advice, which a person looks at before using it.
"""

import codecs
import re

_BOMS = (
    (codecs.BOM_UTF32_LE, "UTF-32LE"),  # begins as UTF-16LE does
    (codecs.BOM_UTF32_BE, "UTF-32BE"),
    (codecs.BOM_UTF16_LE, "UTF-16LE"),
    (codecs.BOM_UTF16_BE, "UTF-16BE"),
)
_OTHERS = (b"BZh", b"PK\3\4", b"\xfd7zXZ", b"7z\xbc", b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"Rar!", b"%PDF", b"\x89PNG")
_OTHERS += (b"GIF8", b"\xff\xd8\xff", b"\x7fELF", b"OggS", b"ID3", b"RIFF")
ALSO_CALLED = {"WINDOWS-1252": "Latin-1 (WINDOWS-1252)", "GB18030": "GB18030 (GBK)"}
"""Other names of what iconv calls so, by which people know it."""

_TWO_BYTES = re.compile(rb"[\xa1-\xfe][\xa1-\xfe]")
_COMMON = re.compile("[\u3001\u3002\uff0c\u3041-\u30ff的一是不了在人有我他这這中大来來上国國이다는을의가에]")
"""Of text in Chinese, Japanese or Korean, these are more than a twentieth."""


def wide_encoding(start: bytes) -> str | None:
    """UTF-16 or UTF-32, if a text that begins with `start` is in one of them, with a byte order mark or without.

    Without one, text in the Latin alphabet is also valid UTF-8, in which most characters are NUL.
    """
    for mark, name in _BOMS:
        if start.startswith(mark):
            return name.removesuffix("LE").removesuffix("BE")  # iconv reads the mark
    start = start[: len(start) // 4 * 4]
    if not start:
        return None
    zeros = [start[place::4].count(0) * 4 / len(start) for place in range(4)]
    for name, few, many in (("UTF-32LE", (0,), (2, 3)), ("UTF-32BE", (3,), (0, 1))):
        if all(zeros[p] < 0.1 for p in few) and all(zeros[p] > 0.9 for p in many):
            return name
    low, high = (zeros[0] + zeros[2]) / 2, (zeros[1] + zeros[3]) / 2
    if low + high > 0.4 and min(low, high) < 0.02:
        return "UTF-16LE" if high > low else "UTF-16BE"
    return None


def is_binary(start: bytes) -> bool:
    """Whether a file that begins with `start` holds no text: it has NUL bytes, and not as UTF-16 has them."""
    return start.startswith(_OTHERS) or (b"\0" in start and not (wide_encoding(start) or _utf16_of_east_asia(start)))


def likely_encoding(sample: bytes) -> str | None:
    """The encoding, as iconv names it, that bytes which are not UTF-8 are probably in; None: it shows no sign of any.

    Chinese, Japanese, Korean and Russian are recognised by where their commonest characters lie. What is left and
    printable is taken for a language of western Europe.
    """
    if wide := wide_encoding(sample):
        return wide
    if is_binary(sample):
        return None
    if utf16 := _utf16_of_east_asia(sample):
        return utf16
    num_high = sum(byte >= 0x80 for byte in sample) or 1
    pairs = [pair[0] for pair in _TWO_BYTES.findall(sample)]
    if 2 * len(pairs) > 0.95 * num_high:

        def share(first: int, last: int) -> float:
            return sum(first <= lead <= last for lead in pairs) / len(pairs)

        if share(0xA4, 0xA5) > 0.25:
            return "EUC-JP"
        if share(0xB0, 0xC8) + share(0xA1, 0xA3) > 0.98 and share(0xB0, 0xC8) > 0.5 and len(pairs) > 8:
            return "EUC-KR"
        if share(0xB0, 0xD7) + share(0xA1, 0xA3) > 0.7:
            return "GB18030"
    likely = max(("SHIFT_JIS", "GB18030", "BIG5"), key=lambda name: _commonness(sample, name))
    if _commonness(sample, likely) > 0.05:
        return likely
    in_words = re.findall(rb"[\xc0-\xff]{3,}", sample)
    if sum(map(len, in_words)) > 0.5 * num_high:  # an alphabet of its own
        lower = sum(byte >= 0xE0 for word in in_words for byte in word)
        return "WINDOWS-1251" if 2 * lower > sum(map(len, in_words)) else "KOI8-R"
    try:
        sample.decode("cp1252")
    except UnicodeDecodeError:
        return None
    return "WINDOWS-1252"


def is_damaged_utf8(sample: bytes) -> bool:
    """Whether most of the characters beyond ASCII are UTF-8: something else is wrong than the encoding."""
    text = sample.decode("utf-8", "replace")
    wrong = text.count("\ufffd")
    return len(text) - sum(map(str.isascii, text)) - wrong > 10 * wrong


def _utf16_of_east_asia(sample: bytes) -> str | None:
    """UTF-16 without a byte order mark and almost without Latin letters."""
    return next((name for name in ("UTF-16LE", "UTF-16BE") if _commonness(sample, name) > 0.05), None)


def _commonness(sample: bytes, codec: str) -> float:
    """The share of the frequent among the characters beyond ASCII that `codec` gives; 0 if it gives none."""
    text = re.sub(r"[\0-\x7f]", "", sample[: len(sample) // 2 * 2].decode(codec, "replace"))
    return len(_COMMON.findall(text)) / (len(text) or 1) if text.count("\ufffd") <= 0.02 * len(text) else 0.0
