"""What the pages of reports are made of: one file with style and pictures inside it, light, dark or printed.

Nothing is fetched and nothing runs: which axis the losses are drawn over is chosen by radio buttons, that is by CSS.
Samples, prompts, names and recipes are nobody's word: all of it goes through `escaped`.
"""

import dataclasses
import html
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from ..display import escape_unprintable
from .figures import COLOURS, Picture, svg
from .pictures import LOSSES, colour_of, dash_of, run_labels
from .records import RunRecord, is_number


def page(title: str, subtitle: str, sections: Iterable[str]) -> str:
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="generator" content="hf_gpt">\n<meta name="color-scheme" content="light dark">\n'
        f"<title>{escaped(title, 100)}</title>\n<style>{_style()}</style>\n</head>\n<body>\n"
        f"<header><h1>{escaped(title, 100)}</h1><p>{escaped(subtitle, 600)}</p></header>\n<main>\n"
        + "\n".join(sections)
        + "\n</main>\n</body>\n</html>\n"
    )


def section(title: str, parts: Iterable[str]) -> str:
    return f"<section><h2>{title}</h2>\n{''.join(parts)}\n</section>"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of cells that are HTML already."""
    top = "".join(f"<th>{cell}</th>" for cell in head)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="wide"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def escaped(text: Any, limit: int | None = None) -> str:
    """Text that nobody vouches for, as HTML."""
    return html.escape(escape_unprintable(str(text), limit=limit))


def view_chooser(views: Sequence[Sequence[Picture]], key: str) -> Iterator[str]:
    """The six views, one of which is shown: which one, two rows of radio buttons say; `key` is the legend of all."""
    if not any(picture.curves for view in views for picture in view):
        yield "<p>No loss was written down yet.</p>"
        return
    names = [(axis, scale) for axis in ("steps", "tokens", "time") for scale in ("linear", "log")]
    buttons = ""
    for group, choices in (("axis", ("steps", "tokens", "time")), ("scale", ("linear", "log"))):
        for choice in choices:
            checked = " checked" if choice in ("steps", "linear") else ""
            words = {"log": "logarithmic", "linear": "linear"}.get(choice, f"over {choice}")
            buttons += f'<input type="radio" name="{group}" id="{group}-{choice}"{checked}>'
            buttons += f'<label for="{group}-{choice}">{words}</label>'
        buttons += '<span class="gap"></span>'
    shown = ""
    for (axis, scale), pictures in zip(names, views):
        pair = " pair" * (len(pictures) == 2)
        drawn = "".join(grid(pictures, prefix=f"{axis}-{scale}-"))
        shown += f'<div class="view {axis}-{scale}{pair}">{drawn}</div>'
    yield f'<div class="views">{buttons}{key}{shown}</div>'


def grid(pictures: Sequence[Picture], prefix: str = "t") -> Iterator[str]:
    figures = []
    for number, picture in enumerate(pictures):
        drawn = svg(dataclasses.replace(picture, ids=f"{prefix}{number}"))
        figures.append(f"<figure><figcaption>{html.escape(picture.title)}</figcaption>{drawn}</figure>")
    yield f'<div class="grid">{"".join(figures)}</div>' if figures else "<p>Nothing was written down yet.</p>"


def legend(runs: Sequence[RunRecord]) -> str:
    if len(runs) > 1:
        entries = [f"{swatch(n)} {escaped(label, 100)}" for n, label in enumerate(run_labels(runs))]
    else:
        (run,) = runs
        entries = [
            f"{_line(loss.colour, 'solid', loss.faint)} {loss.name}"
            for loss in LOSSES
            if any(is_number(line.get(loss.key)) for line in run.metrics)
        ]
    return f'<ul class="legend">{"".join(f"<li>{entry}</li>" for entry in entries)}</ul>'


def swatch(number: int) -> str:
    return _line(colour_of(number), dash_of(number), False)


def _line(colour: str, dash: Any, faint: bool) -> str:
    dashes = "" if dash == "solid" else f' stroke-dasharray="{" ".join(f"{2 * part:g}" for part in dash[1])}"'
    opacity = ' stroke-opacity="0.45"' if faint else ""
    return (
        '<svg class="swatch" viewBox="0 0 34 10" aria-hidden="true">'
        f'<line x1="0" y1="5" x2="34" y2="5" style="stroke: var(--{colour})" stroke-width="3"{dashes}{opacity}/></svg>'
    )


def _style() -> str:
    light = "".join(f"--{name}:{light};" for name, (light, _) in COLOURS.items())
    dark = "".join(f"--{name}:{dark};" for name, (_, dark) in COLOURS.items())
    views = ",".join(
        f"#axis-{axis}:checked~#scale-{scale}:checked~.{axis}-{scale}"
        for axis in ("steps", "tokens", "time")
        for scale in ("linear", "log")
    )
    return _CSS.replace("@LIGHT", light).replace("@DARK", dark).replace("@VIEWS", views)


_CSS = """
:root{@LIGHT--page:#fff;--panel:#f5f6f8;--edge:#dadde2;
--sans:system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,"Noto Sans","PingFang SC","Hiragino Sans GB",
"Microsoft YaHei","Noto Sans CJK SC","Noto Sans SC","Source Han Sans SC","WenQuanYi Zen Hei","WenQuanYi Micro Hei",
sans-serif;
--mono:ui-monospace,"SF Mono",Menlo,Consolas,"DejaVu Sans Mono","Liberation Mono","PingFang SC","Microsoft YaHei",
"Noto Sans Mono CJK SC","Noto Sans CJK SC","WenQuanYi Zen Hei",monospace}
@media screen and (prefers-color-scheme:dark){:root{@DARK--page:#15181c;--panel:#1e2329;--edge:#3a4049}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--text);font:16px/1.5 var(--sans)}
header,main{max-width:1240px;margin:0 auto;padding:0 24px}
h1{margin:28px 0 2px;font-size:28px;line-height:1.2;overflow-wrap:anywhere}
header p{margin:0;color:var(--faint)}
section{margin:28px 0 0}
h2{margin:0 0 10px;font-size:20px;border-bottom:1px solid var(--edge);padding-bottom:4px}
h3{margin:16px 0 8px;font-size:16px;font-weight:600;overflow-wrap:anywhere}
code,pre{font-family:var(--mono);font-size:14px}
.verdict{padding:12px 16px;background:var(--panel);border-left:4px solid var(--training)}
.verdict.turned{border-left-color:var(--mark)}
.problem{color:var(--validation)}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:12px;margin:0}
.tiles>div{background:var(--panel);padding:10px 12px;border-radius:6px}
.tiles dt{font-size:13.5px;color:var(--faint)}
.tiles dd{margin:0;font-size:22px;font-variant-numeric:tabular-nums}
.tiles dd.note{font-size:13px;color:var(--faint)}
.grid{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(330px,100%),1fr));gap:16px 24px}
.pair .grid{grid-template-columns:repeat(auto-fit,minmax(min(440px,100%),1fr))}
.grid figure{margin:0;min-width:0}
figcaption{font-size:15px;font-weight:600}
.grid svg{display:block;width:100%;max-width:620px;height:auto}
.grid svg text{font-family:var(--sans)!important;font-size:11.5px;fill:var(--text)}
.grid svg text.label{font-size:12px}
.gridlines,.frame{fill:none;stroke:var(--grid);stroke-width:.7}
.frame{stroke:var(--faint)}
.told rect{fill:transparent;pointer-events:all}
.told rect:hover{fill:var(--faint);fill-opacity:.16}
.views>input{position:absolute;opacity:0}
.views>label{display:inline-block;padding:4px 12px;margin:0 6px 10px 0;border:1px solid var(--edge);border-radius:16px;
cursor:pointer;font-size:15px}
.views>input:checked+label{background:var(--training);border-color:var(--training);color:var(--page)}
.views>input:focus-visible+label{outline:2px solid var(--mark);outline-offset:2px}
.gap{display:inline-block;width:18px}
.view{display:none}
@VIEWS{display:block}
.legend{list-style:none;display:flex;flex-wrap:wrap;gap:4px 22px;margin:0 0 10px;padding:0;font-size:15px}
.legend li{overflow-wrap:anywhere}
.swatch{width:34px;height:10px;vertical-align:middle}
.samples{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(210px,100%),1fr));gap:12px}
.samples figure{margin:0;background:var(--panel);border-radius:6px;padding:10px 12px;min-width:0}
.samples figcaption{color:var(--faint);font-weight:400;font-size:14px}
.samples em{color:var(--mark);font-style:normal;font-weight:600}
pre{white-space:pre-wrap;overflow-wrap:anywhere;margin:6px 0 0;unicode-bidi:isolate;line-height:1.45}
pre.recipe{background:var(--panel);padding:12px 16px;border-radius:6px;columns:3 300px;column-gap:32px}
.wide{overflow-x:auto;margin:0 0 14px}
table{border-collapse:collapse;font-size:15px;font-variant-numeric:tabular-nums}
th,td{text-align:left;padding:5px 18px 5px 0;border-bottom:1px solid var(--edge);vertical-align:top;
overflow-wrap:anywhere;min-width:6em}
h1,q,td,.legend li{unicode-bidi:isolate}
th{color:var(--faint);font-weight:600;white-space:nowrap}
main{padding-bottom:48px}
@media(max-width:520px){.grid svg text,.grid svg text.label{font-size:13.5px!important}
.pair .grid svg text,.pair .grid svg text.label{font-size:16px!important}.gap{display:block;height:0}}
@media print{@page{margin:14mm}body{font-size:11pt}header,main{max-width:none;padding:0}.views>label,.gap{display:none}
.grid,.pair .grid{grid-template-columns:1fr 1fr}
.pair .grid svg text{font-size:15px!important}h2,h3,.legend{break-after:avoid}
figure,table,.verdict,.tiles>div{break-inside:avoid}
.verdict,.tiles>div,.samples figure,pre.recipe{border:1px solid var(--edge)}code,pre{font-size:9pt}
.samples{grid-template-columns:repeat(3,1fr)}pre.recipe{columns:2}}
"""
