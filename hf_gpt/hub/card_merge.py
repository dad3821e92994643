"""Update a published model card without losing what people wrote into it.

The sections that this package writes are between marks, which the rendered page does not show:

    <!-- hf_gpt: begin results 1a2b3c4d -->
    ...
    <!-- hf_gpt: end results -->

The number is a hash of the text between the marks. If it does not match, a person has changed the section. A last
mark, `made`, holds the names of all sections and hashes of the metadata, so that what a person removed stays removed.

`merge` uses these when a model is pushed again. card.py writes what a card says; this file only changes whole cards,
and needs neither torch nor the run.
"""

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from huggingface_hub.repocard import REGEX_YAML_BLOCK
from huggingface_hub.utils import yaml_dump

from ..errors import UserError
from ..yaml_text import load_yaml
from .markdown import template

UNPUBLISHED = "path/to/this/model"
"""Stands for the model's name in the code of a card, until the model is pushed."""

_SECTION = re.compile(
    r"^<!-- hf_gpt: begin ([a-z]+) ([0-9a-f]{8}) -->[ \t]*\n(.*?)^<!-- hf_gpt: end \1 -->[ \t]*$", re.M | re.S
)
_MADE = re.compile(r"^<!-- hf_gpt: made (\{.*\}) -->[ \t]*$", re.M)


def compose(metadata: Mapping[str, Any], sections: Mapping[str, str]) -> str:
    """A card with this metadata and these sections, by name (letters a to z)."""
    made = {
        "metadata": {key: _hash_of(value) for key, value in metadata.items()},
        "results": [_hash_of(result) for entry in metadata.get("model-index", []) for result in entry["results"]],
        "sections": list(sections),
    }
    marked = [_marked(name, text) for name, text in sections.items()]
    return _card(metadata, "\n" + "\n\n".join([*marked, f"<!-- hf_gpt: made {json.dumps(made)} -->"]) + "\n")


def bare_card() -> str:
    """The card of a model about which nothing is known."""
    return compose({"library_name": "transformers", "pipeline_tag": "text-generation"}, {})


def with_repo_id(card: str, repo_id: str, revision: str | None = None) -> str:
    """The card with the model's name on the Hub in the code that loads it, and that of the revision if it has one."""
    in_python = f'"{repo_id}", revision="{revision}"' if revision else f'"{repo_id}"'
    in_shell = f"{repo_id}@{revision}" if revision else repo_id

    def with_names(name: str, text: str) -> str:
        return text.replace(f'"{UNPUBLISHED}"', in_python).replace(UNPUBLISHED, in_shell)

    return _with_sections(card, with_names)


def as_gpt2_card(card: str) -> str:
    """The card of the same model as a stock GPT-2, which is loaded with other code."""
    use = template("use_gpt2.md.jinja").render(address=UNPUBLISHED)
    return _with_sections(card, lambda name, text: use if name == "use" else text)


def with_results(card: str, index: list[dict[str, Any]]) -> str:
    """The card with the results of a `model-index`, in place of those of the same tasks and data.

    They count as made here, so the next push may replace them. A card whose metadata are not the Hub's stays as it is.
    """
    metadata, body = _split(card)
    try:
        first, *others = metadata.get("model-index") or [{**index[0], "results": []}]
        added = index[0]["results"]
        known = [(result["task"], result["dataset"]) for result in added]
        kept = [result for result in first["results"] if (result["task"], result["dataset"]) not in known]
        made = json.loads(mark[1]) if (mark := _MADE.search(body)) else None
        results = [{**first, "results": [*kept, *added]}, *others]
        if made:
            before = made["metadata"].get("model-index")
            if before in (None, _hash_of(metadata.get("model-index"))):
                made["metadata"]["model-index"] = _hash_of(results)
            made["results"] = [*dict.fromkeys([*made["results"], *map(_hash_of, added)])]
    except (TypeError, KeyError, IndexError, AttributeError, ValueError):
        return card
    body = body.replace(mark[0], f"<!-- hf_gpt: made {json.dumps(made)} -->") if made else body
    return _card({**metadata, "model-index": results}, body)


def merge(new: str, published: str) -> str:
    r"""The card `new`, with what people wrote into the `published` one.

    A section that nobody changed is replaced by the new one, or removed if `new` has none of that name. A section that
    a person changed is not updated any more, nor is one without one of its marks. A section that a person removed
    stays removed, unless the last mark (`made`) is removed too. All other text stays where it is. New sections are
    appended; to a card without marks, all of them.

    Metadata follows the same rules by field, and `model-index` by result. Comments in the metadata are lost.

    `merge(new, merge(new, published))` is `merge(new, published)`. Line ends become "\n".

    Raises:
        UserError: the published metadata is not YAML.
    """
    metadata, body = _split(published)
    new_metadata, new_body = _split(new)
    try:
        made = json.loads(_MADE.search(body)[1])
        made = {key: kind(made[key]) for key, kind in (("metadata", dict), ("results", list), ("sections", list))}
    except (TypeError, KeyError, ValueError):  # the mark is missing or damaged: all metadata is a person's
        made = {"metadata": {}, "results": [], "sections": []}
    merged = _merge_metadata(new_metadata, metadata, made)
    return _card(merged, _merge_bodies(new_body, body, made["sections"]))


def _merge_bodies(new: str, body: str, sections_made: list[str]) -> str:
    sections = {found[1]: found[0] for found in _SECTION.finditer(new)}
    known = {*sections_made, *(found[1] for found in _SECTION.finditer(body))}
    body = _SECTION.sub(lambda found: found[0] if _is_changed(found) else sections.get(found[1], ""), body)
    body = _MADE.sub("", body).strip("\n").rstrip()
    added = [text for name, text in sections.items() if name not in known]
    return "\n" + "\n\n".join([*([body] if body else []), *added, _MADE.search(new)[0]]) + "\n"


def _merge_metadata(new: Mapping[str, Any], published: Mapping[str, Any], made: Mapping[str, Any]) -> dict[str, Any]:
    merged = {}
    for key, value in published.items():
        if made["metadata"].get(key) == _hash_of(value):
            merged[key] = new.get(key)
        elif key == "model-index":
            merged[key] = _merge_results(new.get(key, []), value, made["results"])
        else:
            merged[key] = value
    merged |= {key: value for key, value in new.items() if key not in published and key not in made["metadata"]}
    return {key: value for key, value in merged.items() if value not in (None, []) or published.get(key) == value}


def _merge_results(new: list[Any], published: Any, results_made: list[str]) -> Any:
    """The new results, and the published ones that this package did not write."""
    try:
        kept = [
            {**entry, "results": [result for result in entry["results"] if _hash_of(result) not in results_made]}
            for entry in published
        ]
    except (TypeError, KeyError):  # not the Hub's format
        return published
    return [*new, *(entry for entry in kept if entry["results"])]


def _with_sections(card: str, change: Callable[[str, str], str]) -> str:
    """The card with the text `change(name, text)` in each section that no person has changed."""

    def changed(found: re.Match[str]) -> str:
        return found[0] if _is_changed(found) else _marked(found[1], change(found[1], found[3]))

    return _SECTION.sub(changed, card)


def _marked(name: str, text: str) -> str:
    text = text.strip()
    return f"<!-- hf_gpt: begin {name} {_hash(_plain(text))} -->\n\n{text}\n\n<!-- hf_gpt: end {name} -->"


def _is_changed(section: re.Match[str]) -> bool:
    return _hash(_plain(section[3])) != section[2]


def _plain(text: str) -> str:
    """The text without trailing white space, which editors remove."""
    return "\n".join(line.rstrip() for line in text.strip().split("\n"))


def _card(metadata: Mapping[str, Any], body: str) -> str:
    return f"---\n{yaml_dump(dict(metadata), sort_keys=False).strip()}\n---\n{body}"


def _split(card: str) -> tuple[dict[str, Any], str]:
    """The metadata and the text."""
    card = card.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    found = REGEX_YAML_BLOCK.search(card)
    if found is None:
        return {}, card
    try:
        metadata = load_yaml(found[2], "README.md", no_is_text=True) or {}
    except UserError:
        metadata = None
    if not isinstance(metadata, dict):
        raise UserError("README.md: its metadata on the Hub is not YAML; correct it there, then push again")
    return metadata, card[found.end() :]


def _hash_of(value: Any) -> str:
    try:
        return _hash(json.dumps(value, sort_keys=True, default=str))
    except TypeError:  # keys of several types, which this package never writes
        return _hash(repr(value))


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]
