"""Whose words are whose in a model card, so that a new one can be written and a person's words stay.

A card that this package writes is made of sections between marks, which no reader of the rendered page sees:

    <!-- hf_gpt: begin results 1a2b3c4d -->
    ...
    <!-- hf_gpt: end results -->

The number is a hash of what stands between them, so it shows whether a person has changed it. There is a pair for each
section and not one for all: a person can write between two sections, and take one over while the others go on being
kept up to date. A last mark, `made`, tells which sections and which metadata the card was written with, by hashes, so
that what a person took out is not put back.

`merge` is the whole use of that. What a card says is card.py's.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any

import yaml
from huggingface_hub.repocard import REGEX_YAML_BLOCK
from huggingface_hub.utils import yaml_dump

_SECTION = re.compile(
    r"^<!-- hf_gpt: begin ([a-z]+) ([0-9a-f]{8}) -->[ \t]*\n(.*?)^<!-- hf_gpt: end \1 -->[ \t]*$", re.M | re.S
)
_MADE = re.compile(r"^<!-- hf_gpt: made (\{.*\}) -->[ \t]*$", re.M)
_COMMENT = re.compile(r"(?:^|(?<=\s))#.*$", re.M)


def compose(metadata: str, sections: Mapping[str, str]) -> str:
    """A card of YAML metadata and sections by name (letters a to z), with their marks."""
    values = yaml.safe_load(metadata) or {}
    made = {
        "metadata": {key: _hash_of(value) for key, value in values.items() if key != "model-index"},
        "results": [_hash_of(result) for entry in _entries(values) for result in _results(entry)],
        "sections": list(sections),
    }
    marked = [_marked(name, text) for name, text in sections.items()]
    body = "\n\n".join([*marked, f"<!-- hf_gpt: made {json.dumps(made)} -->"])
    return f"---\n{metadata.strip()}\n---\n\n{body}\n"


def replace_in_sections(card: str, old: str, new: str) -> str:
    """The card with `old` replaced in the sections that nobody has changed."""

    def replaced(found: re.Match[str]) -> str:
        return found[0] if _is_changed(found) else _marked(found[1], found[3].replace(old, new))

    return _SECTION.sub(replaced, card)


def with_section(card: str, name: str, text: str) -> str:
    """The card with another text in the section `name`, unless a person has changed it."""

    def replaced(found: re.Match[str]) -> str:
        return _marked(name, text) if found[1] == name and not _is_changed(found) else found[0]

    return _SECTION.sub(replaced, card)


def merge(new: str, published: str) -> str:
    r"""The card `new`, with what a person wrote into the `published` one.

    Sections (what stands between a pair of marks):

    - unchanged by a person: is replaced by that of `new`, in its place, or taken out if `new` has none of the name.
    - changed: is the person's. It stays as it is and is no longer brought up to date; `new`'s is left out.
    - taken out, or without one of its marks: stays out, and what is left of it is the person's. So to take a section
      over it is enough to delete a mark; to have it brought up to date again, delete it and the last mark (`made`).
    - new since the published card was written: is put behind the section that it follows in `new`.

    All other text is the person's and stays where it is. A card without any marks is all the person's; the sections
    come behind it.

    Metadata, by field: one that a person added or changed stays as it is, one that a person took out stays out, and
    the rest is `new`'s. The same holds for each result in `model-index`, where other entries stay too. Comments stay.
    Metadata that is not YAML is kept in the text, in a block of code.

    `merge(new, merge(new, published))` is `merge(new, published)`. Line ends become "\n".
    """
    new_metadata, new_body = _parts(new)
    metadata, body = _parts(published)
    made = _made(published)
    merged, not_yaml = _merge_metadata(new_metadata, metadata, made)
    if not_yaml:
        body = f"\nThis card's metadata, which was not YAML:\n\n{code_block(metadata)}\n\n{body.lstrip()}"
    return f"---\n{merged.strip()}\n---\n{_merge_bodies(new_body, body, made)}"


def code_block(text: str, language: str = "text") -> str:
    """Text that nobody vouches for as a block of code: it can end neither the block nor a section."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{re.sub('^(?=<!-- hf_gpt:)', ' ', text, flags=re.M)}\n{fence}"


# The text -----------------------------------------------------------------------------------------------------------


def _marked(name: str, text: str) -> str:
    text = text.strip()
    return f"<!-- hf_gpt: begin {name} {_hash(_plain(text))} -->\n\n{text}\n\n<!-- hf_gpt: end {name} -->"


def _is_changed(section: re.Match[str]) -> bool:
    return _hash(_plain(section[3])) != section[2]


def _plain(text: str) -> str:
    """Without white space at the ends of lines and of the text, which editors change on their own."""
    return "\n".join(line.rstrip() for line in text.strip().split("\n"))


def _merge_bodies(new: str, body: str, made: Mapping[str, Any]) -> str:
    sections = {found[1]: found[0] for found in _SECTION.finditer(new)}
    there: list[str] = []

    def merged(found: re.Match[str]) -> str:
        if found[1] in there or _is_changed(found):  # a second one of the name is a person's copy
            there.append(found[1])
            return found[0]
        there.append(found[1])
        return sections.get(found[1], "")

    record = _MADE.search(new)[0]
    had_marks = bool(_SECTION.search(body) or _MADE.search(body))
    if not had_marks:
        return f"\n{body.strip()}\n{new}" if body.strip() else new
    body = _SECTION.sub(merged, body)
    known = {*there, *made.get("sections", ())}
    for before, name in zip([None, *sections], sections):
        if name not in known:
            body = _put_in(body, sections[name], behind=before)
    body, count = _MADE.subn(lambda _: record, body, count=1)
    return body if count else f"{body.rstrip()}\n\n{record}\n"


def _put_in(body: str, section: str, behind: str | None) -> str:
    """The section behind the one of a name, or, without that, behind the last that is there."""
    found = list(_SECTION.finditer(body))
    place = next((one for one in found if one[1] == behind), found[-1] if found else None)
    if place is None:
        return f"{body.rstrip()}\n\n{section}\n"
    return f"{body[: place.end()]}\n\n{section}{body[place.end() :]}"


# The metadata -------------------------------------------------------------------------------------------------------


def _parts(card: str) -> tuple[str, str]:
    """The YAML and the text."""
    card = card.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    found = REGEX_YAML_BLOCK.search(card)
    return (found[2], card[found.end() :]) if found else ("", card)


def _made(card: str) -> dict[str, Any]:
    """What the last mark of a card tells; nothing if it is gone or spoiled."""
    found = _MADE.search(_parts(card)[1])
    try:
        made = json.loads(found[1]) if found else {}
    except ValueError:
        return {}
    kinds = {"metadata": dict, "results": list, "sections": list}
    return {key: made[key] for key, kind in kinds.items() if isinstance(made.get(key), kind)}


def _merge_metadata(new: str, published: str, made: Mapping[str, Any]) -> tuple[str, bool]:
    """The metadata of the merged card, and whether what was published is no YAML."""
    ours = yaml.safe_load(new) or {}
    try:
        theirs = yaml.safe_load(published) or {}
    except yaml.YAMLError:
        theirs = None
    if not isinstance(theirs, dict):
        return new, True
    base = made.get("metadata", {})
    merged: dict[str, Any] = {}
    for key, value in theirs.items():
        if key == "model-index":
            merged[key] = _merge_results(ours, value, made.get("results", []))
        elif base.get(key) != _hash_of(value):
            merged[key] = value
        else:
            merged[key] = ours.get(key)
    for key, value in ours.items():
        taken_out = made.get("results") if key == "model-index" else key in base
        if key not in theirs and not taken_out:
            merged[key] = value
    merged = {key: value for key, value in merged.items() if value not in (None, []) or theirs.get(key) == value}
    return _as_text(merged, theirs, published), False


def _merge_results(ours: Mapping[str, Any], index: Any, made: list[str]) -> Any:
    """The `model-index` that was published, with our results in the place of those that we made before."""
    new_entries = _entries(ours)
    if not isinstance(index, list):
        return index
    merged, placed = [], False
    for entry in index:
        kept = [result for result in _results(entry) if _hash_of(result) not in made]
        if len(kept) == len(_results(entry)):
            merged.append(entry)
            continue
        news = [] if placed else [result for one in new_entries for result in _results(one)]
        placed = True
        if news or kept:
            merged.append({**entry, "results": [*news, *kept]})
    return merged if placed or made else [*merged, *new_entries]


def _entries(metadata: Mapping[str, Any]) -> list[Any]:
    return metadata.get("model-index") or []


def _results(entry: Any) -> list[Any]:
    results = entry.get("results") if isinstance(entry, dict) else None
    return results if isinstance(results, list) else []


def _as_text(merged: dict[Any, Any], theirs: dict[Any, Any], published: str) -> str:
    """YAML of `merged`, in which every field that has not changed, and every comment, stands as it was published."""
    blocks = _blocks(published)
    lines = [comment for _, comment in _COMMENT_ONLY.findall(blocks.pop(None, ""))]
    for key in [*theirs, *(key for key in merged if key not in theirs)]:
        block = blocks.get(str(key), "")
        if key in theirs and key in merged and theirs[key] == merged[key] and block:
            lines.append(block.rstrip("\n"))
            continue
        if block.strip() and block.strip() != _dump({key: theirs.get(key)}):
            lines += _COMMENT.findall(block)
        if key in merged:
            lines.append(_dump({key: merged[key]}))
    text = "\n".join(lines)
    try:
        if (yaml.safe_load(text) or {}) == merged:
            return text
    except yaml.YAMLError:
        pass
    return "\n".join([*_COMMENT_ONLY_LINES.findall(published), _dump(merged)])


_COMMENT_ONLY = re.compile(r"^([ \t]*)(#.*)$", re.M)
_COMMENT_ONLY_LINES = re.compile(r"^[ \t]*#.*$", re.M)


def _blocks(text: str) -> dict[str | None, str]:
    """The lines of each field, with the comments above it; those before the first field under None."""
    blocks: dict[str | None, str] = {None: ""}
    key, waiting = None, ""
    for line in text.splitlines(keepends=True):
        found = re.match(r"(['\"]?)([^\s#'\"-][^:'\"]*)\1\s*:(?:\s|$)", line)
        if found:
            key, line, waiting = found[2], waiting + line, ""
            blocks[key] = ""
        elif key is not None and (line.startswith("#") or not line.strip()):
            waiting += line
            continue
        blocks[key] += ("" if found else waiting) + line
        waiting = ""
    blocks[key] += waiting
    return blocks


def _dump(values: Mapping[Any, Any]) -> str:
    return yaml_dump(dict(values), sort_keys=False).strip() if values else ""


def _hash_of(value: Any) -> str:
    try:
        return _hash(json.dumps(value, sort_keys=True, default=str))
    except TypeError:  # keys of several types, which are none of ours
        return _hash(repr(value))


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]
