r"""Templates for Markdown, in which every text is escaped unless a filter says otherwise.

What a template prints comes from strangers: names of files and datasets, prompts, samples. Jinja2 escapes only for
HTML, and huggingface_hub's `ModelCard.from_template` does not escape, so this environment escapes for Markdown:

    {{ name }}               as plain text: no Markdown, no HTML, none of our marks
    {{ name | code }}        the same, as code in a line or in a table's cell
    {{ sample | block }}     as a block of code, which the text cannot end
    {{ text | python }}      as a Python string, within a block of code; {{ word | shell }} as a word of a command
    {{ number | count }}     1,234
"""

import functools
import re
import shlex
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from ..display import escape_unprintable

_LONGEST = 200  # characters of a text in a line
# Characters with a meaning in Markdown, HTML or the Hub's extensions; _ has none inside a word.
_SPECIAL = re.compile(r"[\\`*\[\]<>&~|#!$^@:{}=]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")


def escape(text: Any) -> Markup:
    """Text in a line, as plain text. `Markup`, which templates and filters make, is returned unchanged."""
    if isinstance(text, Markup):
        return text
    text = escape_unprintable(str(text), one_line=True, limit=_LONGEST)
    return Markup(_SPECIAL.sub(r"\\\g<0>", text))


def code(text: Any) -> Markup:
    """Text in a line, as code."""
    shown = escape_unprintable(str(text), one_line=True, limit=_LONGEST)
    if not shown or shown != shown.strip() or "`" in shown or "|" in shown:  # not possible as code in a table
        return escape(text)
    return Markup(f"`{shown}`")


def block(text: str, language: str = "text", limit: int | None = None) -> Markup:
    """A block of code, of the first `limit` characters."""
    text = escape_unprintable(text, limit=limit)
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    text = re.sub("^(?=<!-- hf_gpt:)", " ", text.rstrip("\n"), flags=re.M)
    return Markup(f"{fence}{language}\n{text}\n{fence}")


def python(text: str) -> Markup:
    """A Python string, in double quotes unless that needs more escapes."""
    found = repr(text)
    return Markup(found if '"' in found else f'"{found[1:-1]}"')


@functools.cache
def template(name: str) -> jinja2.Template:
    """A template of the folder `templates`."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).with_name("templates")),
        autoescape=True,
        finalize=escape,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "block": block,
        "code": code,
        "count": lambda number: Markup(f"{number:,}"),
        "python": python,
        "shell": lambda word: Markup(shlex.quote(word)),
    }
    return environment.get_template(name)
