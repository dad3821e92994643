"""How a page is made: a Jinja2 template beside the code that fills it, one stylesheet, one palette, one escape.

A page is one file: it runs no script and fetches nothing. Whatever a template prints is escaped as HTML, and
characters that do not show, or that reorder others, are spelled out: samples and names are strangers' text.
"""

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..display import escape_unprintable, perplexity

if TYPE_CHECKING:
    from jinja2 import Environment

# Okabe and Ito's colours, which colour-blind eyes tell apart; some darkened, to be seen on white.
PALETTE = {
    "blue": "#0072B2",
    "vermilion": "#D55E00",
    "green": "#009E73",
    "purple": "#B0558A",
    "gold": "#B57F00",
    "sky": "#3F9BCB",
    "gray": "#555B64",
}
# Colours that only pages have: blue on a dark page, and alarms.
_OF_PAGES = {"bright_blue": "#5AB4F0", "rust": "#9A3412"}
# The reader's own fonts; where several have a Chinese character, those with its Chinese shape.
SANS = ("system-ui", "Noto Sans", "PingFang SC", "Microsoft YaHei", "Noto Sans CJK SC", "sans-serif")
MONO = ("ui-monospace", "DejaVu Sans Mono", "PingFang SC", "Microsoft YaHei", "Noto Sans Mono CJK SC", "monospace")


def render(template: str, **values: Any) -> str:
    """A filled template, named by its path in this package: `report/templates/run.html`."""
    return _environment().get_template(template).render(values)


@cache
def _environment() -> "Environment":
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parents[1]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: value if isinstance(value, Markup) else escape_unprintable(str(value)),
    )
    for family, names in (("sans", SANS), ("mono", MONO)):
        environment.globals[family] = Markup(", ".join(f'"{name}"' if " " in name else name for name in names))
    environment.globals["palette"] = PALETTE | _OF_PAGES
    environment.filters["count"] = lambda number: f"{number:,}"
    environment.filters["cut"] = lambda text, limit: escape_unprintable(str(text), limit=limit)
    environment.filters["perplexity"] = perplexity
    return environment
