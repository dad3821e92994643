"""A page on this machine: a prompt, the decoding controls with the distribution that they make, and text as it is
generated, by one model or by several checkpoints of a run side by side.

Gradio does what it has: controls, text boxes, a queue in which one text at a time is generated for all tabs, and
cancellation. What the page shows is answers.py's. It is served on loopback and answers no other page; fonts are the
machine's, telemetry is off, and a Content-Security-Policy keeps the browser from asking anybody else for anything.
"""

import contextlib
import html
import os
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from ..checkpoint import short_name
from ..display import escape_unprintable
from ..errors import UserError
from ..report.html import MONO, SANS, render
from .answers import LONGEST_PROMPT, MOST_NEW_TOKENS, Answers, problem

if TYPE_CHECKING:
    import gradio

_MOST_TOP_K = 200
_PROMPT = "Every effort moves you"
_WRITES = ("/queue/join", "/cancel", "/reset")  # what the page sends
_LONGEST_REQUEST = 1 << 20  # bytes
_OWN_RESOURCES_ONLY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; worker-src 'self' blob:;"
    " style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:"
)


def serve(model: str, ready: Callable[[str], None], *, port: int | None = None, open_browser: bool = False) -> None:
    """Show the page on 127.0.0.1 until Ctrl-C; `ready` is called with its address when it answers.

    Raises:
        UserError: Gradio is not installed, the model cannot be loaded, or the port or all ports are taken.
    """
    page = build(model)
    try:
        with _without_proxy("127.0.0.1", "localhost"):  # Gradio asks its own server whether it answers
            _, url, _ = page.launch(
                server_name="127.0.0.1",
                server_port=port,
                inbrowser=open_browser,
                share=False,
                quiet=True,
                prevent_thread_lock=True,
                app_kwargs={"middleware": [_guard()]},
                **look(),
            )
    except OSError as error:
        if "port" not in str(error):
            raise
        if port is None:
            raise UserError("no free one was found; name one", field="port") from None
        raise UserError(
            "is taken or not allowed; give another, or none to have one found", field="port", value=port
        ) from None
    ready(url)
    with contextlib.suppress(KeyboardInterrupt):
        while page.is_running:
            time.sleep(0.1)
    page.close(verbose=False)


def look() -> dict[str, Any]:
    """The arguments of `launch()` about how the page looks: here and in a Space."""
    gradio = import_gradio()
    theme = gradio.themes.Default(font=SANS, font_mono=MONO, primary_hue="blue", text_size="lg")
    return {
        "theme": theme.set(layout_gap="*spacing_lg"),
        "css": render("demo/templates/style.css"),
        "footer_links": [],
        "run_history": False,
        "ssr_mode": False,
        "mcp_server": False,
        "pwa": False,
        "enable_monitoring": False,
        "max_file_size": 1,  # byte: the page takes no files
    }


def build(model: str, title: str | None = None) -> "gradio.Blocks":
    """The page of a MODEL, with its first model loaded. `title` is what it is called, by default its short name.

    Raises:
        UserError: Gradio is not installed, or the model cannot be loaded.
    """
    gradio = import_gradio()
    answers, title = Answers(model), title or short_name(model)
    names = list(answers.stages)
    several = len(names) > 1
    # Values come as they were typed (`preprocess=False`): an empty number is a line in the page, not a stack.
    quiet = {"api_visibility": "private", "preprocess": False}

    def texts(prompt: str, chosen: list[str], *settings: Any) -> Iterator[list[Any]]:
        try:
            for found in answers.texts(prompt, chosen, *settings):
                yield [
                    gradio.Textbox(found[name][0], label=f"{name} · {found[name][1]}", visible=True)
                    if name in found
                    else gradio.Textbox(visible=False)
                    for name in names
                ]
        except UserError as error:
            gradio.Warning(html.escape(problem(error)))
            yield [gradio.skip() for _ in names]  # else Gradio would empty the boxes

    with gradio.Blocks(title=f"{title} · hf_gpt", analytics_enabled=False) as page:
        heading = html.escape(escape_unprintable(title, one_line=True))
        gradio.HTML(f'<h1 class="model">{heading}</h1><p class="facts">{answers.facts()}</p>')
        prompt = gradio.Textbox(
            _PROMPT, label="Prompt", lines=2, max_lines=12, max_length=LONGEST_PROMPT, elem_id="prompt"
        )
        with gradio.Row(equal_height=False):
            with gradio.Column(scale=5, min_width=320):
                with gradio.Group():
                    slider = gradio.Slider
                    temperature = slider(
                        0, 2, 0.8, step=0.05, label="Temperature", info="0: greedy", elem_id="temperature"
                    )
                    with gradio.Row():
                        most = min(_MOST_TOP_K, answers.vocab_size)
                        top_k = slider(
                            0, most, 0, step=1, label="Top-k", info="0: off", elem_id="top-k", min_width=150
                        )
                        top_p = slider(
                            0, 1, 1, step=0.01, label="Top-p", info="1: off", elem_id="top-p", min_width=150
                        )
                    with gradio.Row():
                        max_new_tokens = slider(
                            1,
                            MOST_NEW_TOKENS,
                            100,
                            step=1,
                            label="New tokens",
                            elem_id="new-tokens",
                            scale=3,
                            min_width=150,
                        )
                        seed = gradio.Number(123, label="Seed", precision=0, elem_id="seed", scale=2, min_width=100)
                    chosen = gradio.CheckboxGroup(
                        names, value=names, label="Checkpoints", visible=several, elem_id="checkpoints"
                    )
                with gradio.Row():
                    write = gradio.Button("Write", variant="primary", elem_id="write", min_width=120)
                    stop = gradio.Button("Stop", elem_id="stop", min_width=120)
            with gradio.Column(scale=6, min_width=320):
                with gradio.Row(equal_height=True, elem_id="of-what"):
                    gradio.HTML('<h2 class="part">The next token</h2>')
                    shown = gradio.Dropdown(
                        names, value=answers.first, label="Checkpoint", container=False, visible=several,
                        filterable=False, elem_id="of", min_width=220,
                    )  # fmt: skip
                bars = gradio.HTML(elem_id="bars")
        # Text comes last, because it grows: controls, bars and buttons stay where they are.
        with gradio.Row(elem_id="text"):
            boxes = [
                gradio.Textbox(label=name, lines=6, max_lines=24, interactive=False, min_width=270) for name in names
            ]

        decoding = [temperature, top_k, top_p]
        gradio.on(
            [page.load, *(part.change for part in (prompt, shown, *decoding))],
            answers.bars,
            [prompt, shown, *decoding],
            bars,
            concurrency_limit=4,
            trigger_mode="always_last",
            show_progress="hidden",
            **quiet,
        )
        writing = write.click(
            texts,
            [prompt, chosen, *decoding, max_new_tokens, seed],
            boxes,
            concurrency_limit=1,
            trigger_mode="once",
            show_progress="minimal",
            **quiet,
        )
        # Where text begins below the screen, as on a telephone, a click on Write would seem to do nothing.
        write.click(None, js='() => document.querySelector("#text").scrollIntoView({block: "nearest"})')
        stop.click(None, cancels=[writing])
    return page.queue()


def import_gradio() -> Any:
    """The module, without its telemetry.

    Raises:
        UserError: it is not installed, or cannot be imported.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        import gradio
    except ModuleNotFoundError:
        raise UserError("the demo needs Gradio; pip install 'hf_gpt[demo]'") from None
    except ImportError as error:  # such as a SOCKS proxy, which its client needs another package for
        raise UserError(f"Gradio cannot be imported: {error}") from None
    return gradio


@contextlib.contextmanager
def _without_proxy(*hosts: str) -> Iterator[None]:
    """Inside, these hosts are reached without a proxy, as are those that were exempt before."""
    before = {name: os.environ.get(name) for name in ("no_proxy", "NO_PROXY")}
    exempt = before["no_proxy"] or before["NO_PROXY"]  # Python reads the small one first
    os.environ.update(dict.fromkeys(before, ",".join([exempt, *hosts] if exempt else hosts)))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)  # on Windows the two are one
            else:
                os.environ[name] = value


def _guard() -> Any:
    """Answers only the page's own requests, and tells the browser to fetch from this server only.

    Any page that a browser has open can send requests to this machine. One that does so in its own name has another
    `Origin`; one that pretends to be this server, by letting its name mean 127.0.0.1, has another `Host`.
    """
    from starlette.middleware import Middleware
    from starlette.middleware.base import BaseHTTPMiddleware
    from starlette.responses import PlainTextResponse

    async def guarded(request: Any, answer: Callable[[Any], Any]) -> Any:
        refused = _refusal(request.method, request.url.path, request.headers)
        response = PlainTextResponse(refused[1], refused[0]) if refused else await answer(request)
        response.headers["Content-Security-Policy"] = _OWN_RESOURCES_ONLY
        return response

    return Middleware(BaseHTTPMiddleware, dispatch=guarded)


def _refusal(method: str, path: str, headers: Mapping[str, str]) -> tuple[int, str] | None:
    """The status and the reason for which a request is not answered."""
    host, origin = headers.get("host", ""), headers.get("origin")
    if urlsplit(f"//{host}").hostname not in ("127.0.0.1", "localhost"):
        return 421, "this page is at 127.0.0.1 and localhost only"
    if origin is not None and urlsplit(origin).netloc != host:
        return 403, "this page answers no other page"
    if method in ("GET", "HEAD"):
        return None
    if not path.endswith(_WRITES):
        return 403, "this page takes prompts and no files"
    length = headers.get("content-length", "")
    if not length.isdecimal() or int(length) > _LONGEST_REQUEST:
        return 413, f"this page takes requests of at most {_LONGEST_REQUEST:,} bytes"
    return None
