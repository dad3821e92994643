"""A page on this machine: a prompt, the decoding controls with the distribution that they make, and text as it is
written, by one model or by several checkpoints of a run side by side.

The one idea: the page computes nothing of its own. Text is `generation.stream_text`, bars are
`next_token.distribution` on the logits of one forward pass for each prompt, so what is shown is what `hf-gpt generate`
does with the same numbers. The page itself is Gradio's, served on loopback; fonts are the machine's, telemetry is
off, and a Content-Security-Policy keeps the browser from asking anybody else for anything.

Continuations are written one at a time, for all tabs: others wait in Gradio's queue, with cards that say so, and can
be stopped there. Bars do not wait. Here is how the page is laid out and served; what it answers is demo_answers.py's,
and space.py makes a Space of it.
"""

import contextlib
import html
import os
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from ..errors import UserError
from .answers import MOST_NEW_TOKENS, Answers
from .html import CSS, FONTS, MONO_FONTS, NOTHING_YET, facts_of, vocab_size

if TYPE_CHECKING:
    import gradio

_MOST_TOP_K = 200
_PROMPT = "Every effort moves you"
# Where text begins below the screen, as on a telephone, a click on Write would seem to do nothing.
_TO_THE_TEXT = '() => document.querySelector("#text").scrollIntoView({block: "nearest"})'


def serve(model: str, ready: Callable[[str], None], *, port: int | None = None, open_browser: bool = False) -> None:
    """Show the page on 127.0.0.1 until Ctrl-C; `ready` is told its address when it answers.

    Raises:
        UserError: Gradio is not installed, the model cannot be loaded, or there is no port to be had.
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
                app_kwargs={"middleware": [_own_resources_only()]},
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


@contextlib.contextmanager
def _without_proxy(*hosts: str) -> Iterator[None]:
    """Inside, no proxy stands between this process and these hosts, besides those that need none anyway."""
    before = {name: os.environ.get(name) for name in ("no_proxy", "NO_PROXY")}
    exempt = before["no_proxy"] or before["NO_PROXY"]  # of the two, Python heeds the small one
    os.environ.update(dict.fromkeys(before, ",".join([exempt, *hosts] if exempt else hosts)))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)  # on Windows the two are one
            else:
                os.environ[name] = value


def look() -> dict[str, Any]:
    """What `launch()` is to be told about how the page looks: here and in a Space."""
    gradio = import_gradio()
    theme = gradio.themes.Default(font=FONTS, font_mono=MONO_FONTS, primary_hue="blue", text_size="lg")
    theme.set(layout_gap="*spacing_lg")
    return {
        "theme": theme,
        "css": CSS,
        "footer_links": [],
        "run_history": False,
        "ssr_mode": False,
        "mcp_server": False,
        "pwa": False,
        "enable_monitoring": False,
    }


def build(model: str) -> "gradio.Blocks":
    """The page of a MODEL, with its first model loaded.

    Raises:
        UserError: Gradio is not installed, or the model cannot be loaded.
    """
    gradio = import_gradio()
    answers = Answers(model)
    with gradio.Blocks(title=f"{model} · hf_gpt", analytics_enabled=False) as page:
        parts = _lay_out(gradio, model, answers)
        _connect(gradio, page, parts, answers)
    return page.queue()


def _lay_out(gradio: Any, model: str, answers: "Answers") -> SimpleNamespace:
    """The page from top to bottom; its parts by name.

    Text comes last, because it grows: controls, bars and buttons stay together, and where they are.
    """
    parts = SimpleNamespace()
    gradio.HTML(f'<h1 class="model">{html.escape(model)}</h1><p class="facts">{facts_of(answers.first_model)}</p>')
    parts.prompt = gradio.Textbox(_PROMPT, label="Prompt", lines=2, max_lines=12, elem_id="prompt")
    parts.counts = gradio.HTML(elem_id="counts")
    with gradio.Row(equal_height=False):
        with gradio.Column(scale=5, min_width=320):
            _lay_out_controls(gradio, parts, answers)
        with gradio.Column(scale=6, min_width=320):
            _lay_out_bars(gradio, parts, answers)
    parts.text = gradio.HTML(NOTHING_YET, elem_id="text")
    return parts


def _lay_out_controls(gradio: Any, parts: SimpleNamespace, answers: "Answers") -> None:
    names, most = list(answers.stages), min(_MOST_TOP_K, vocab_size(answers.first_model))
    with gradio.Group():
        parts.temperature = gradio.Slider(
            0, 2, 0.8, step=0.05, label="Temperature", info="0: greedy", elem_id="temperature"
        )
        with gradio.Row():
            parts.top_k = gradio.Slider(
                0, most, 0, step=1, label="Top-k", info="0: off", elem_id="top-k", min_width=150
            )
            parts.top_p = gradio.Slider(
                0, 1, 1, step=0.01, label="Top-p", info="1: off", elem_id="top-p", min_width=150
            )
        with gradio.Row():
            parts.num_tokens = gradio.Slider(
                1, MOST_NEW_TOKENS, 100, step=1, label="New tokens", elem_id="new-tokens", scale=3, min_width=150
            )
            parts.seed = gradio.Number(123, label="Seed", precision=0, elem_id="seed", scale=2, min_width=100)
        parts.chosen = gradio.CheckboxGroup(
            names, value=names, label="Checkpoints, side by side", visible=len(names) > 1, elem_id="checkpoints"
        )
    with gradio.Row():
        parts.write = gradio.Button("Write", variant="primary", elem_id="write", min_width=120)
        parts.stop = gradio.Button("Stop", elem_id="stop", min_width=120)


def _lay_out_bars(gradio: Any, parts: SimpleNamespace, answers: "Answers") -> None:
    names = list(answers.stages)
    with gradio.Row(equal_height=True, elem_id="of-what"):
        gradio.HTML('<h2 class="part">The next token</h2>')
        parts.of = gradio.Dropdown(
            names,
            value=answers.first,
            label="Checkpoint",
            container=False,
            visible=len(names) > 1,
            filterable=False,
            elem_id="of",
            min_width=220,
        )
    parts.bars = gradio.HTML(elem_id="bars")


def _connect(gradio: Any, page: Any, parts: SimpleNamespace, answers: "Answers") -> None:
    """What happens when something is typed, moved or clicked."""

    def begin(request: gradio.Request, *values: Any) -> Any:
        return answers.begin(request.session_hash, *values) or gradio.skip()

    def write(request: gradio.Request) -> Iterator[Any]:
        yield gradio.skip()  # where nothing comes after it, Gradio would empty the text
        yield from answers.write(request.session_hash)

    def stop(request: gradio.Request) -> Any:
        return answers.stop(request.session_hash) or gradio.skip()

    def leave(request: gradio.Request) -> None:
        answers.leave(request.session_hash)

    decoding = [parts.temperature, parts.top_k, parts.top_p]
    asked = [parts.prompt, parts.chosen, *decoding, parts.num_tokens, parts.seed]
    # Values come as they were typed (`preprocess=False`): Gradio's own checks would end in a stack.
    quiet = {"show_progress": "hidden", "api_visibility": "private", "preprocess": False}
    newest = {**quiet, "trigger_mode": "always_last"}
    moved = [part.change for part in (parts.prompt, parts.of, *decoding)]
    typed = [parts.prompt.change, parts.of.change]
    gradio.on(
        [page.load, *moved],
        answers.bars,
        [parts.prompt, parts.of, *decoding],
        parts.bars,
        concurrency_limit=4,
        **newest,
    )
    gradio.on([page.load, *typed], answers.count_tokens, [parts.prompt, parts.of], parts.counts, **newest)
    begun = parts.write.click(begin, asked, parts.text, queue=False, **quiet)
    # Multiple: none is dropped because the text before it is only just ending.
    begun.then(write, None, parts.text, concurrency_limit=1, trigger_mode="multiple", **quiet)
    begun.then(None, js=_TO_THE_TEXT)
    parts.stop.click(stop, None, parts.text, queue=False, **quiet)
    page.unload(leave)


def import_gradio() -> Any:
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    try:
        import gradio
    except ModuleNotFoundError:
        raise UserError("the demo needs Gradio; pip install 'hf_gpt[demo]'") from None
    except ImportError as error:  # such as a SOCKS proxy, which its client needs another package for
        raise UserError(f"Gradio cannot be imported: {error}") from None
    return gradio


def _own_resources_only() -> Any:
    """Tells the browser to ask nobody but this server for anything."""
    from starlette.middleware import Middleware

    policy = (
        "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; worker-src 'self' blob:;"
        " style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:"
    )

    class Policy:
        def __init__(self, app: Any):
            self.app = app

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            async def with_policy(message: Any) -> None:
                if message["type"] == "http.response.start":
                    message["headers"] = [*message["headers"], (b"content-security-policy", policy.encode())]
                await send(message)

            await self.app(scope, receive, with_policy)

    return Middleware(Policy)
