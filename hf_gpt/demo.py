"""A page on this machine: a prompt, the decoding controls with the distribution that they make, and text as it is
written, by one model or by several checkpoints of a run side by side.

The one idea: the page computes nothing of its own. Text is `generation.stream_text`, bars are
`next_token.distribution` on the logits of one forward pass for each prompt, so what is shown is what `hf-gpt generate`
does with the same numbers. The page itself is Gradio's, served on loopback; fonts are the machine's, telemetry is
off, and a Content-Security-Policy keeps the browser from asking anybody else for anything.

Continuations are written one at a time, for all tabs: others wait in Gradio's queue, with cards that say so, and can
be stopped there. Bars do not wait. What goes wrong is a line in the page: in the card of the checkpoint that it
happened to, or in place of the text where the request itself cannot work.
`write_space` writes the same page as a Space: with a copy of this package's source, so that it needs neither PyPI nor
`trust_remote_code`.
"""

import collections
import contextlib
import functools
import html
import os
import shutil
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import psutil
import torch
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from .checkpoint import checkpoints, load_model, model_folder, pointed, resolve_model, step_of
from .configuration_gpt import GPTConfig
from .errors import UserError
from .generation import Piece, check_request, encode_prompt, stream_text
from .look.next_token import NextToken, distribution, next_token_logits
from .look.token_text import show_token
from .storage import write_text

if TYPE_CHECKING:
    import gradio

NUM_BARS = 15
_MOST_TOP_K = 200
_MOST_NEW_TOKENS = 512
_LARGE = 1 << 30  # bytes of checkpoints: beyond it a Space gets only the best one
_PROMPT = "Every effort moves you"


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
            raise UserError("no free port was found; name one with --port") from None
        raise UserError(f"--port {port}: is taken or not allowed; give another, or none to have one found") from None
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
    gradio = _gradio()
    theme = gradio.themes.Default(font=_FONTS, font_mono=_MONO, primary_hue="blue", text_size="lg")
    theme.set(layout_gap="*spacing_lg")
    return {
        "theme": theme,
        "css": _CSS,
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
    gradio = _gradio()
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
    gradio.HTML(f'<h1 class="model">{html.escape(model)}</h1><p class="facts">{_facts(answers.first_model)}</p>')
    parts.prompt = gradio.Textbox(_PROMPT, label="Prompt", lines=2, max_lines=12, elem_id="prompt")
    parts.counts = gradio.HTML(elem_id="counts")
    with gradio.Row(equal_height=False):
        with gradio.Column(scale=5, min_width=320):
            _lay_out_controls(gradio, parts, answers)
        with gradio.Column(scale=6, min_width=320):
            _lay_out_bars(gradio, parts, answers)
    parts.text = gradio.HTML(_NOTHING_YET, elem_id="text")
    return parts


def _lay_out_controls(gradio: Any, parts: SimpleNamespace, answers: "Answers") -> None:
    names, most = list(answers.stages), min(_MOST_TOP_K, _text_config(answers.first_model).vocab_size)
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
                1, _MOST_NEW_TOKENS, 100, step=1, label="New tokens", elem_id="new-tokens", scale=3, min_width=150
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


def _errors_as_lines(answer: Callable[..., Any]) -> Callable[..., Any]:
    """An answer that is a line about the error where it cannot be given."""

    @functools.wraps(answer)
    def answer_or_line(*arguments: Any) -> Any:
        try:
            return answer(*arguments)
        except Exception as error:
            return _problem(error)

    return answer_or_line


@dataclass
class _Task:
    """A click on Write: what is to be written, the cards that stand for it in the page, and what ends it."""

    prompt: str
    settings: dict[str, Any]  # of `stream_text`
    cards: dict[str, str]  # by checkpoint, in the order in which they are written
    stop: threading.Event = field(default_factory=threading.Event)
    begun: bool = False


class Answers:
    """What the page shows in answer to what is typed, moved and clicked, as HTML.

    Text takes two steps. `begin` takes what a tab (its `session`) asks for, at once; `write` writes it when the tab's
    turn has come. So a tab that waits shows that it does, and `stop` reaches it.

    Raises:
        UserError: the model cannot be loaded.
    """

    def __init__(self, model: str):
        self.stages = stages_of(model)
        self.first = next((name for name in self.stages if "best" in name), list(self.stages)[-1])
        self._models = _Models(self.stages)
        self.first_model, _ = self._models[self.first]
        self._tasks: dict[str | None, _Task] = {}

    @_errors_as_lines
    def bars(self, prompt: str, name: str, temperature: Any, top_k: Any, top_p: Any) -> str:
        settings = _decoding(temperature, top_k, top_p)
        return distribution_html(*self._models.logits(name, prompt), **settings)

    @_errors_as_lines
    def count_tokens(self, prompt: str, name: str) -> str:
        return _counts_html(*self._models[name], prompt)

    @_errors_as_lines
    def begin(self, session: str | None, prompt: str, chosen: Sequence[str], *settings: Any) -> str | None:
        """Cards that wait for their turn, in place of what the tab asked for before, if that waits too; nothing where
        the tab is being written to and was not told to stop."""
        before = self._tasks.get(session)
        if before is not None and before.begun and not before.stop.is_set():
            return None
        self._tasks.pop(session, None)
        task = self._tasks[session] = self._task(prompt, chosen, *settings)
        return _cards_html(task.cards)

    def write(self, session: str | None) -> Iterator[str]:
        """The cards of a tab while they are being written; nothing where it waits for none any more."""
        task = self._tasks.get(session)
        if task is None or task.begun:
            return
        task.begun = True
        try:
            for name in task.cards:
                for card in self._continuation(name, task):
                    task.cards[name] = card
                    yield _cards_html(task.cards)
        finally:
            if self._tasks.get(session) is task:
                del self._tasks[session]

    def stop(self, session: str | None) -> str | None:
        """End what a tab asked for; if its turn has not come, the cards that say so."""
        task = self._tasks.get(session)
        if task is None:
            return None
        task.stop.set()
        if task.begun:
            return None
        self._tasks.pop(session, None)
        return _cards_html({name: _card(name, task.prompt, _NOT_BEGUN) for name in task.cards})

    def leave(self, session: str | None) -> None:
        """A tab was closed or loaded anew: nothing is written for it any more."""
        if task := self._tasks.pop(session, None):
            task.stop.set()

    def _task(
        self,
        prompt: str,
        chosen: Sequence[str],
        temperature: Any,
        top_k: Any,
        top_p: Any,
        num_tokens: Any,
        seed: Any,
    ) -> _Task:
        settings = _decoding(temperature, top_k, top_p)
        settings["max_new_tokens"] = _whole("New tokens", num_tokens, _MOST_NEW_TOKENS)
        check_request(prompt, **settings)
        settings["seed"] = _whole("Seed", seed)
        cards = {name: _card(name, prompt) for name in self.stages if name in chosen}
        if not cards:
            raise UserError("Checkpoints: none is chosen; tick at least one")
        return _Task(prompt, settings, cards)

    def _continuation(self, name: str, task: _Task) -> Iterator[str]:
        """The card of one checkpoint, again and again; whatever goes wrong is in it, and the next one's turn comes."""
        if task.stop.is_set():
            yield _card(name, task.prompt, _NOT_BEGUN)
            return
        piece = Piece("", 0)
        try:
            yield _card(name, task.prompt, "loading")
            for piece in stream_text(*self._models[name], task.prompt, stop=task.stop, **task.settings):
                yield _card(name, task.prompt, "writing", piece)
        except Exception as error:
            yield _card(name, task.prompt, "failed", piece, _problem(error))
            return
        whole = "end of the text" if piece.num_tokens < task.settings["max_new_tokens"] else "done"
        yield _card(name, task.prompt, "stopped" if task.stop.is_set() else whole, piece)


def stages_of(model: str) -> dict[str, str]:
    """What of a MODEL is shown side by side, by name, oldest first: the one model, or of a run up to five checkpoints.

    Of more than five they are the oldest, the newest and those at the quarters between; the best one takes the place
    of the one between that it is nearest to.

    Raises:
        UserError: as `resolve_model`.
    """
    best = resolve_model(model)
    found = checkpoints(model) if (Path(model) / "checkpoints").is_dir() else []
    if len(found) < 2:
        return {Path(best).resolve().name if Path(best).is_dir() else best: best}
    quarters = {found[round(part * (len(found) - 1) / 4)] for part in range(5)} if len(found) > 4 else set(found)
    named = pointed(model, "best")
    if named is not None and named not in quarters:  # in the place of the one nearest to it, but not of the ends
        inner = sorted(quarters - {found[0], found[-1]}, key=lambda one: abs(step_of(one) - step_of(named)))
        quarters -= set(inner[:1])
        quarters.add(named)
    return {
        f"step {step_of(path):,}" + (" (best)" if path == named else ""): str(path)
        for path in sorted(quarters, key=step_of)
    }


class _Models:
    """Models by name, loaded when first asked for, the last used ones kept while they fit into half of the memory
    that was free at the start; and the logits after the last prompts."""

    def __init__(self, stages: dict[str, str]):
        self._stages = stages
        self._loaded: collections.OrderedDict[str, tuple[PreTrainedModel, PreTrainedTokenizerBase]]
        self._loaded = collections.OrderedDict()
        self._lock = threading.Lock()
        self._budget = psutil.virtual_memory().available // 2
        self._logits = functools.lru_cache(maxsize=32)(self._compute_logits)

    def __getitem__(self, name: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        with self._lock:
            if name not in self._loaded:
                self._loaded[name] = load_model(self._stages[name])
                while len(self._loaded) > 1 and self._num_bytes() > self._budget:
                    self._loaded.popitem(last=False)
            self._loaded.move_to_end(name)
            return self._loaded[name]

    def logits(self, name: str, prompt: str) -> tuple[torch.Tensor, Callable[[int], str]]:
        """The logits (vocab_size,) after a prompt, and how a token is shown."""
        return self._logits(name, prompt), functools.partial(show_token, self[name][1])

    def _compute_logits(self, name: str, prompt: str) -> torch.Tensor:
        return next_token_logits(*self[name], prompt)

    def _num_bytes(self) -> int:
        return sum(model.get_memory_footprint() for model, _ in self._loaded.values())


def _decoding(temperature: Any, top_k: Any, top_p: Any) -> dict[str, Any]:
    """What the sliders say: top-k at 0 and top-p at 1 are off."""
    kept = _number("Top-p", top_p)
    return {
        "temperature": _number("Temperature", temperature),
        "top_k": _whole("Top-k", top_k) or None,
        "top_p": None if kept == 1 else kept,
    }


def _number(label: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        raise UserError(f"{label}: it is empty; give a number") from None


def _whole(label: str, value: Any, most: int = 2**63 - 1) -> int:
    number = _number(label, value)
    if not 0 <= number <= most or number != int(number):
        raise UserError(f"{label} {number:g}: must be a whole number from 0 to {most:,}")
    return int(number)


def distribution_html(
    logits: torch.Tensor,
    show: Callable[[int], str],
    temperature: float,
    top_k: int | None = None,
    top_p: float | None = None,
) -> str:
    """The likeliest tokens as bars: filled where they may be drawn, hatched and named where they were left out.

    A kept token's bar is the probability that it is drawn with; another's what it was before it was left out.
    """
    after, before = distribution(logits, temperature, top_k, top_p), distribution(logits, temperature or 1.0)
    ids = logits.topk(min(NUM_BARS, len(logits))).indices.tolist()
    values = [(after if after.kept[token] else before).probabilities[token].item() for token in ids]
    scale = next((mark for mark in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5) if mark >= max(values) - 1e-6), 1.0)
    reasons = _why_left_out(logits, after, ids)
    rows = [_bar_html(token, show(token), value, why, scale) for token, value, why in zip(ids, values, reasons)]
    return (
        f'<div class="legend"><span class="kept"><i class="bar"></i> can be drawn</span>'
        f'<span class="cut"><i class="bar"></i> {"cut by top-k or top-p" if temperature else "not taken: greedy"}'
        f"</span><span>a full bar is {scale:.0%}</span></div>"
        f'<ol class="bars">{"".join(rows)}</ol><p class="facts">{_kept_in_words(after, ids, reasons)}.</p>'
    )


def _why_left_out(logits: torch.Tensor, after: NextToken, ids: list[int]) -> list[str]:
    """For each token why it cannot be drawn; nothing where it can be."""
    by_top_k = distribution(logits, after.temperature, after.top_k).kept

    def why(token: int) -> str:
        if after.kept[token]:
            return ""
        if logits[token] == -torch.inf:
            return "forbidden"
        if after.temperature == 0:
            return "not likeliest"
        return "cut: top-p" if by_top_k[token] else "cut: top-k"

    return [why(token) for token in ids]


def _bar_html(token: int, shown: str, value: float, why: str, scale: float) -> str:
    return (
        f'<li class="{"cut" if why else "kept"}" data-id="{token}">'
        f'<span class="token" title="id {token}">{html.escape(shown)}</span>'
        f'<span class="track"><span class="bar" style="width:{100 * value / scale:.2f}%"></span></span>'
        f'<span class="value">{_percent(value)}</span><span class="why">{why}</span></li>'
    )


def _kept_in_words(after: NextToken, ids: list[int], reasons: list[str]) -> str:
    """How many tokens can be drawn, what those not among `ids` have together, and why some are left out."""
    num_tokens, num_kept = len(after.kept), int(after.kept.sum())
    words = [f"{num_kept:,} of {num_tokens:,} tokens can be drawn"]
    if num_kept > int(after.kept[ids].sum()):
        others = 1 - after.probabilities[ids].sum().item()
        words.append(f"those not shown: {_percent(max(0.0, others))} together")
    if num_kept < num_tokens:
        words.append("a hatched bar is how likely a token was before it was left out")
    if "forbidden" in reasons:
        words.append("forbidden is what the model's generation config rules out")
    return "; ".join(words)


def _percent(value: float) -> str:
    return f"{value:.1%}" if value >= 0.001 or value == 0 else "<0.1%"


def _text_config(model: PreTrainedModel) -> PreTrainedConfig:
    return model.config.get_text_config()


def _context_length(model: PreTrainedModel) -> int | None:
    """In tokens; nothing for a model that has no limit, such as a Mamba or a BLOOM."""
    return getattr(_text_config(model), "max_position_embeddings", None)


def _facts(model: PreTrainedModel) -> str:
    context = _context_length(model)
    facts = [f"{model.num_parameters():,} parameters", f"vocabulary {_text_config(model).vocab_size:,}"]
    facts += [f"context length {context:,}"] if context is not None else []
    return " · ".join([*facts, model.device.type])


def _counts_html(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str) -> str:
    num_tokens, context = encode_prompt(model, tokenizer, prompt).shape[1] if prompt else 0, _context_length(model)
    words = [_tokens(num_tokens)]
    if context is not None:
        words.append(f"context length {context:,}")
        if num_tokens > context:
            slides = isinstance(model.config, GPTConfig)
            words.append(
                f"the model sees the last {context:,} of them" if slides else "longer than the model's context"
            )
    return f'<p class="facts">{"; ".join(words)}</p>'


_NOTHING_YET = '<p class="facts">Write lets the model go on from the prompt.</p>'
# Where text begins below the screen, as on a telephone, a click on Write would seem to do nothing.
_TO_THE_TEXT = '() => document.querySelector("#text").scrollIntoView({block: "nearest"})'
_NOT_BEGUN = "stopped before it began"


def _card(name: str, prompt: str, state: str = "waiting", piece: Piece | None = None, problem: str = "") -> str:
    """A checkpoint's text as far as it is written, `state` in words, and HTML about what went wrong."""
    num_tokens = f"{_tokens(piece.num_tokens)} · " if piece else ""
    cursor = '<span class="cursor">▍</span>' if state == "writing" else ""
    return (
        f'<article class="written" data-state="{state}"><header><b>{html.escape(name)}</b>'
        f'<span class="facts">{num_tokens}{state}</span></header>'
        f'<div class="paper"><p><span class="given">{html.escape(prompt)}</span>'
        f'<span class="new">{html.escape(piece.text if piece else "")}</span>{cursor}</p></div>{problem}</article>'
    )


def _tokens(count: int) -> str:
    return f"{count:,} token{'' if count == 1 else 's'}"


def _cards_html(cards: dict[str, str]) -> str:
    return f'<div class="side-by-side">{"".join(cards.values())}</div>'


def _problem(error: Exception) -> str:
    """An error as a line in the page; what is no fault of the person before it goes to the terminal whole, too."""
    if isinstance(error, UserError):
        line = str(error)
        for flag, label in _LABELS.items():
            line = line.replace(flag, label)
    else:
        traceback.print_exception(error)
        line = f"Something went wrong: {type(error).__name__}: {error}; the terminal says more"
    return f'<p class="problem" role="alert"><b aria-hidden="true">!</b> {html.escape(line)}</p>'


_LABELS = {
    "--prompt": "Prompt",
    "--max-new-tokens": "New tokens",
    "--temperature": "Temperature",
    "--top-k": "Top-k",
    "--top-p": "Top-p",
    "--seed": "Seed",
}


def _gradio() -> Any:
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


def write_space(model: str, dest: str) -> list[str]:
    """Write the page of a MODEL as a Space into a directory that is not there yet or is empty; says what is in it.

    The package's source goes along: the Space needs neither this package on PyPI nor `trust_remote_code`. A model on
    disk is copied without its training state; of a run the checkpoints that the page shows, or the best one alone
    where they are larger than 1 GiB together. A Hub id stays an id, once its files are in the cache as `serve` would
    have them.

    Raises:
        UserError: Gradio is not installed, there is something in the directory, or the model is not there; nothing was
            written then.
    """
    from .conversion.destination import Destination

    gradio_version = _gradio().__version__
    destination = Destination.of(dest)
    stages = stages_of(model)
    local = {name: Path(source) for name, source in stages.items() if Path(source).is_dir()}
    if not local:
        model_folder(model)
    if len(local) > 1 and sum(map(_size, local.values())) > _LARGE:
        local = {Path(resolve_model(model)).name: Path(resolve_model(model))}
    with destination.writing() as folder:
        if len(local) > 1:
            for source in local.values():
                _copy_model(source, folder / "model" / "checkpoints" / source.name)
            for pointer in ("best", "latest"):
                if (named := pointed(model, pointer)) is not None and named in local.values():
                    write_text(folder / "model" / "checkpoints" / pointer, named.name + "\n")
        elif local:
            _copy_model(*local.values(), folder / "model")
        shutil.copytree(
            Path(__file__).parent, folder / "hf_gpt", ignore=shutil.ignore_patterns("__pycache__", "*.pyc")
        )
        write_text(folder / "app.py", _APP.format(model="model" if local else model))
        write_text(folder / "requirements.txt", _requirements(gradio_version))
        title = (Path(model).resolve() if local else Path(model.partition("@")[0])).name
        write_text(folder / "README.md", _space_card(title, gradio_version, None if local else model))
    what = f"{len(local)} checkpoint{'s' if len(local) > 1 else ''} in model/" if local else f"{model} from the Hub"
    return [
        f"space      {dest}: app.py, requirements.txt, README.md, hf_gpt/, {what}",
        f"try        cd {dest} && python app.py",
        f"publish    hf repos create OWNER/NAME --type space --sdk gradio && hf upload OWNER/NAME {dest} --type space",
    ]


def _copy_model(source: Path, folder: Path) -> None:
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("training_state", ".*"))


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir() if path.is_file())


_APP = '''\
"""The page of `hf-gpt demo`, as a Space. MODEL is a folder beside this file or a Hub id."""

import os
from pathlib import Path

os.chdir(Path(__file__).parent)

from hf_gpt.demo import build, look

MODEL = {model!r}

build(MODEL).launch(**look())
'''

# What the page imports, at the versions that it was tried with here. Spaces install Gradio, at sdk_version, by
# themselves, with an extra that holds pydantic back: so that has a bound only.
_PINNED = ("torch", "transformers", "huggingface_hub", "safetensors", "tokenizers", "numpy", "psutil", "filelock")


def _requirements(gradio_version: str) -> str:
    pins = [f"{name}=={version(name).partition('+')[0]}" for name in _PINNED]
    return "\n".join([f"gradio=={gradio_version}", *pins, "pydantic>=2.11", "pyyaml>=6.0"]) + "\n"


def _space_card(title: str, gradio_version: str, hub_id: str | None) -> str:
    import yaml

    metadata = {
        "title": title,
        "emoji": "✍️",
        "colorFrom": "blue",
        "colorTo": "yellow",
        "sdk": "gradio",
        "sdk_version": gradio_version,
        "python_version": f"{sys.version_info.major}.{sys.version_info.minor}",  # which the pinned versions are for
        "app_file": "app.py",
        "pinned": False,
    }
    if hub_id:
        metadata["models"] = [hub_id.partition("@")[0]]
    return (
        f"---\n{yaml.safe_dump(metadata, allow_unicode=True, sort_keys=False)}---\n\n# {title}\n\n"
        "A GPT trained with hf_gpt: type a prompt, move the decoding controls, see what they do to the distribution of"
        " the next token, and let it write.\n\n"
        "`app.py` is the page, `hf_gpt/` the source of the package that makes it"
        f"{'' if hub_id else ', `model/` the model'}. Elsewhere: `pip install -r requirements.txt && python app.py`.\n"
    )


# Fonts of the machine; for Chinese, where several have a character, those with its shapes. Blue and grey are told
# apart by lightness, and a cut token by hatching and words besides.
_FONTS = ("system-ui", "-apple-system", "Segoe UI", "Noto Sans", "Noto Sans CJK SC", "PingFang SC", "sans-serif")
_MONO = (
    "ui-monospace",
    "Menlo",
    "Consolas",
    "DejaVu Sans Mono",
    "Noto Sans Mono CJK SC",
    "Noto Sans CJK SC",
    "monospace",
)
_CSS = """
.gradio-container { --bar: #0072B2; --gone: #5b6472; --faint: #586170; --track: #eef1f5;
  --alarm: #9a3412; --alarm-fill: #fff4e5; }
.dark, .dark .gradio-container { --bar: #56B4E9; --gone: #a9b2bf; --faint: #b4bcc8; --track: #2b3340;
  --alarm: #ffd7a8; --alarm-fill: #43290c; }
.gradio-container { --body-text-color-subdued: var(--faint); --block-info-text-color: var(--faint); }
h1.model { font-size: 1.5rem; font-weight: 600; margin: 0; overflow-wrap: anywhere; }
h2.part { font-size: 1.15rem; font-weight: 600; margin: 0; }
#of-what { align-items: center; flex-wrap: wrap; }
#of-what > * { min-width: min(100%, 11rem) !important; }
.facts { color: var(--faint); font-size: .95rem; margin: .2rem 0; }
ol.bars { list-style: none; margin: .4rem 0; padding: 0; display: grid; column-gap: .6rem;
  grid-template-columns: fit-content(9rem) 1fr 3.6rem auto; }
ol.bars li { display: grid; grid-column: 1 / -1; grid-template-columns: subgrid; align-items: center; margin: 0;
  padding: .12rem 0; font-size: 1rem; line-height: 1.4; }
.token { font-family: var(--font-mono); text-align: right; overflow: hidden; text-overflow: ellipsis;
  white-space: nowrap; }
.track { background: var(--track); height: 1.05rem; border-radius: 2px; }
input[type=range]::-webkit-slider-thumb { border: 2px solid var(--bar) !important; }
.bar { display: block; height: 100%; min-width: 1px; border-radius: 2px; box-sizing: border-box; }
.kept .bar { background: var(--bar); }
.cut .bar { border: 1.5px dashed var(--gone);
  background: repeating-linear-gradient(135deg, transparent 0 4px, var(--gone) 4px 5px); }
.cut .token, .cut .value, .cut .why { color: var(--faint); }
.value { text-align: right; font-variant-numeric: tabular-nums; }
.why { font-size: .875rem; white-space: nowrap; }
.legend { display: flex; flex-wrap: wrap; gap: .3rem 1.4rem; font-size: .95rem; }
.legend .bar { display: inline-block; width: 1.8rem; height: .8rem; }
.side-by-side { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 17rem), 1fr)); gap: 1rem; }
.written { border: 1px solid var(--border-color-primary); border-radius: 6px; padding: .8rem 1rem;
  background: var(--background-fill-primary); }
.written header { display: flex; flex-wrap: wrap; justify-content: space-between; gap: 0 1rem; }
.paper p { white-space: pre-wrap; overflow-wrap: anywhere; font-size: 1.05rem; line-height: 1.6; margin: .4rem 0 0; }
.paper { max-height: 26rem; overflow-y: auto; margin-top: .4rem; }
[data-state=writing] .paper { display: flex; flex-direction: column-reverse; } /* stays at what is being written */
.given { color: var(--faint); }
.cursor { color: var(--bar); }
.problem { border-left: 4px solid var(--alarm); background: var(--alarm-fill); color: var(--alarm);
  padding: .6rem .9rem; margin: 0; font-size: 1rem; }
.written .problem { margin-top: .6rem; overflow-wrap: anywhere; }
@media (max-width: 640px) {
  ol.bars { grid-template-columns: fit-content(5.5rem) 1fr 3.4rem; }
  .why { grid-column: 2 / 4; margin-top: -.3rem; }
  .why:empty { display: none; }
}
"""
