"""A page on this machine: a prompt, the decoding controls with the distribution that they make, and text as it is
written, by one model or by several checkpoints of a run side by side.

The one idea: the page computes nothing of its own. Text is `generation.stream_text`, bars are
`next_token.distribution` on the logits of one forward pass for each prompt, so what is shown is what `hf-gpt generate`
does with the same numbers. The page itself is Gradio's, served on loopback; fonts are the machine's, telemetry is
off, and a Content-Security-Policy keeps the browser from asking anybody else for anything.

Continuations are written one at a time, for all tabs: others wait in Gradio's queue. Bars do not wait.
`write_space` writes the same page as a Space: with a copy of this package's source, so that it needs neither PyPI nor
`trust_remote_code`.
"""

import collections
import functools
import html
import os
import shutil
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from .checkpoint import checkpoints, load_model, pointed, resolve_model, step_of
from .errors import UserError
from .generation import Piece, check_request, encode_prompt, stream_text
from .look.next_token import distribution, next_token_logits
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
        UserError: Gradio is not installed, the model cannot be loaded, or the port is taken.
    """
    page = build(model)
    try:
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
        raise UserError(f"--port {port}: is taken; give another, or none to have one found") from None
    ready(url)
    page.block_thread()


def look() -> dict[str, Any]:
    """What `launch()` is to be told about how the page looks: here and in a Space."""
    gradio = _gradio()
    theme = gradio.themes.Default(font=_FONTS, font_mono=_MONO, primary_hue="blue", text_size="lg")
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
    stages = stages_of(model)
    names, several = list(stages), len(stages) > 1
    models = _Models(stages)
    first = next((name for name in names if "best" in name), names[-1])
    loaded, _ = models[first]
    stops: dict[str | None, threading.Event] = {}

    # Events bring values as they were typed (`preprocess=False`): Gradio's own checks would end in a stack.
    def bars(prompt: str, name: str, *settings: float | None) -> str:
        def make() -> str:
            temperature, top_k, top_p = _decoding(*settings)
            return distribution_html(*models.logits(name, prompt), temperature, top_k, top_p)

        return _shown(make)

    def count_tokens(prompt: str, name: str) -> str:
        return _shown(lambda: _counts_html(*models[name], prompt))

    def write(
        prompt: str,
        chosen: Sequence[str],
        temperature: float | None,
        top_k: float | None,
        top_p: float | None,
        num_tokens: float | None,
        seed: float | None,
        request: gradio.Request,
    ) -> Iterator[str]:
        stop = stops[request.session_hash] = threading.Event()
        try:
            settings = dict(zip(("temperature", "top_k", "top_p"), _decoding(temperature, top_k, top_p)))
            settings["max_new_tokens"] = _whole("New tokens", num_tokens, _MOST_NEW_TOKENS)
            settings["seed"] = _whole("Seed", seed)
            chosen = [name for name in names if name in chosen]
            if not chosen:
                raise UserError("Checkpoints: none is chosen; tick at least one")
            check_request(prompt, **{key: value for key, value in settings.items() if key != "seed"})
            cards = {name: _card(name, prompt, None) for name in chosen}
            for name in chosen:
                if stop.is_set():
                    cards[name] = _card(name, prompt, None, "stopped before it began")
                    continue
                cards[name] = _card(name, prompt, None, "loading")
                yield _cards_html(cards)
                piece = Piece("", 0)
                for piece in stream_text(*models[name], prompt, stop=stop, **settings):
                    cards[name] = _card(name, prompt, piece, "writing")
                    yield _cards_html(cards)
                ended = "end of the text" if piece.num_tokens < settings["max_new_tokens"] else "done"
                cards[name] = _card(name, prompt, piece, "stopped" if stop.is_set() else ended)
            yield _cards_html(cards)
        except Exception as error:
            yield _problem(error)
        finally:
            if stops.get(request.session_hash) is stop:
                del stops[request.session_hash]

    def stop(request: gradio.Request) -> None:
        if event := stops.get(request.session_hash):
            event.set()

    with gradio.Blocks(title=f"{model} · hf_gpt", analytics_enabled=False) as page:
        gradio.HTML(f'<h1 class="model">{html.escape(model)}</h1><p class="facts">{_facts(loaded)}</p>')
        prompt = gradio.Textbox(_PROMPT, label="Prompt", lines=3, max_lines=12, elem_id="prompt")
        counts = gradio.HTML(elem_id="counts")
        chosen = gradio.CheckboxGroup(
            names, value=names, label="Checkpoints, side by side", visible=several, elem_id="checkpoints"
        )
        with gradio.Row():
            write_button = gradio.Button("Write", variant="primary", elem_id="write", min_width=120)
            stop_button = gradio.Button("Stop", elem_id="stop", min_width=120)
        text = gradio.HTML(_NOTHING_YET, elem_id="text")
        with gradio.Row(equal_height=False):
            with gradio.Column(scale=5, min_width=320):
                gradio.HTML('<h2 class="part">Decoding</h2>')
                temperature = gradio.Slider(
                    0, 2, 0.8, step=0.05, label="Temperature", info="0: greedy", elem_id="temperature"
                )
                most = min(_MOST_TOP_K, loaded.config.vocab_size)
                top_k = gradio.Slider(0, most, 0, step=1, label="Top-k", info="0: off", elem_id="top-k")
                top_p = gradio.Slider(0, 1, 1, step=0.01, label="Top-p", info="1: off", elem_id="top-p")
                num_tokens = gradio.Slider(1, _MOST_NEW_TOKENS, 100, step=1, label="New tokens", elem_id="new-tokens")
                seed = gradio.Number(123, label="Seed", precision=0, elem_id="seed")
            with gradio.Column(scale=6, min_width=320):
                gradio.HTML('<h2 class="part">The next token</h2>')
                of = gradio.Dropdown(
                    names, value=first, label="Checkpoint", visible=several, filterable=False, elem_id="of"
                )
                chart = gradio.HTML(elem_id="bars")

        quiet = {"show_progress": "hidden", "api_visibility": "private", "preprocess": False}
        gradio.on(
            [page.load, *(part.change for part in (prompt, of, temperature, top_k, top_p))],
            bars,
            [prompt, of, temperature, top_k, top_p],
            chart,
            trigger_mode="always_last",
            concurrency_limit=4,
            **quiet,
        )
        gradio.on(
            [page.load, prompt.change, of.change],
            count_tokens,
            [prompt, of],
            counts,
            trigger_mode="always_last",
            **quiet,
        )
        write_button.click(
            write,
            [prompt, chosen, temperature, top_k, top_p, num_tokens, seed],
            text,
            show_progress="minimal",
            api_visibility="private",
            preprocess=False,
            concurrency_limit=1,
        )
        stop_button.click(stop, queue=False, **quiet)
        page.unload(stop)
    return page.queue()


def stages_of(model: str) -> dict[str, str]:
    """What of a MODEL is shown side by side, by name, oldest first: a run's oldest, middle, newest and best
    checkpoint, or the one model.

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


def _decoding(temperature: Any, top_k: Any, top_p: Any) -> tuple[float, int | None, float | None]:
    """What the sliders say: top-k at 0 and top-p at 1 are off."""
    top_p = _number("Top-p", top_p)
    return _number("Temperature", temperature), _whole("Top-k", top_k) or None, None if top_p == 1 else top_p


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
    """The likeliest tokens as bars: filled where they may be drawn, hatched and named where they were cut.

    A kept token's bar is the probability that it is drawn with; a cut one's what it was before the cut.
    """
    after = distribution(logits, temperature, top_k, top_p)
    before = distribution(logits, temperature or 1.0)
    by_top_k = distribution(logits, temperature, top_k).kept if temperature else after.kept
    ids = logits.topk(min(NUM_BARS, len(logits))).indices.tolist()
    values = [(after if after.kept[token] else before).probabilities[token].item() for token in ids]
    scale = next(mark for mark in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0) if mark >= max(values) - 1e-6)
    rows = []
    for token, value in zip(ids, values):
        kept = bool(after.kept[token])
        why = "" if kept else "not likeliest" if not temperature else "cut: top-p" if by_top_k[token] else "cut: top-k"
        rows.append(
            f'<li class="{"kept" if kept else "cut"}" data-id="{token}">'
            f'<span class="token" title="id {token}">{html.escape(show(token))}</span>'
            f'<span class="track"><span class="bar" style="width:{100 * value / scale:.2f}%"></span></span>'
            f'<span class="value">{_percent(value)}</span><span class="why">{why}</span></li>'
        )
    num_kept, others = int(after.kept.sum()), len(logits) - len(ids)
    rest = max(0.0, 1 - sum(value for token, value in zip(ids, values) if after.kept[token]))
    words = [f"{num_kept:,} of {len(logits):,} tokens can be drawn"]
    if others and num_kept > sum(bool(after.kept[token]) for token in ids):
        words.append(f"those not shown: {_percent(rest)} together")
    if num_kept < len(logits):
        words.append("a hatched bar is how likely a token was before it was left out")
    return (
        f'<div class="legend"><span class="kept"><i class="bar"></i> can be drawn</span>'
        f'<span class="cut"><i class="bar"></i> {"not taken: greedy" if not temperature else "cut by top-k or top-p"}'
        f"</span><span>a full bar is {scale:.0%}</span></div>"
        f'<ol class="bars">{"".join(rows)}</ol><p class="facts">{"; ".join(words)}.</p>'
    )


def _percent(value: float) -> str:
    return f"{value:.1%}" if value >= 0.001 or value == 0 else "<0.1%"


def _context_length(model: PreTrainedModel) -> int:
    return model.config.max_position_embeddings


def _facts(model: PreTrainedModel) -> str:
    return (
        f"{model.num_parameters():,} parameters · vocabulary {model.config.vocab_size:,} · context length"
        f" {_context_length(model):,} · {model.device.type}"
    )


def _counts_html(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str) -> str:
    num_tokens, context = encode_prompt(model, tokenizer, prompt).shape[1] if prompt else 0, _context_length(model)
    past = f"; the model sees the last {context:,} of them" if num_tokens > context else ""
    return f'<p class="facts">{_tokens(num_tokens)}; context length {context:,}{past}</p>'


_NOTHING_YET = '<p class="facts">Write lets the model go on from the prompt.</p>'


def _card(name: str, prompt: str, piece: Piece | None, state: str = "waiting") -> str:
    num_tokens = f"{_tokens(piece.num_tokens)} · " if piece else ""
    cursor = '<span class="cursor">▍</span>' if state == "writing" else ""
    return (
        f'<article class="written" data-state="{state}"><header><b>{html.escape(name)}</b>'
        f'<span class="facts">{num_tokens}{state}</span></header>'
        f'<div class="paper"><p><span class="given">{html.escape(prompt)}</span>'
        f'<span class="new">{html.escape(piece.text if piece else "")}</span>{cursor}</p></div></article>'
    )


def _tokens(count: int) -> str:
    return f"{count:,} token{'' if count == 1 else 's'}"


def _cards_html(cards: dict[str, str]) -> str:
    return f'<div class="side-by-side">{"".join(cards.values())}</div>'


def _shown(make: Callable[[], str]) -> str:
    try:
        return make()
    except Exception as error:
        return _problem(error)


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
    except ImportError:
        raise UserError("the demo needs Gradio; pip install 'hf_gpt[demo]'") from None
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
    where they are larger than 1 GiB together. A Hub id stays an id.

    Raises:
        UserError: Gradio is not installed, there is something in the directory, or the model is not there.
    """
    from .conversion.destination import Destination

    gradio_version = _gradio().__version__
    destination = Destination.of(dest)
    stages = stages_of(model)
    local = {name: Path(source) for name, source in stages.items() if Path(source).is_dir()}
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
.facts { color: var(--faint); font-size: .95rem; margin: .2rem 0; }
ol.bars { list-style: none; margin: .4rem 0; padding: 0; }
ol.bars li { display: grid; grid-template-columns: minmax(5.5rem, 9rem) 1fr 3.6rem 5.6rem; gap: .6rem;
  align-items: center; margin: 0; padding: .12rem 0; font-size: 1rem; line-height: 1.4; }
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
@media (max-width: 640px) {
  ol.bars li { grid-template-columns: 5.5rem 1fr 3.4rem; }
  .why { grid-column: 2 / 4; margin-top: -.3rem; }
  .why:empty { display: none; }
}
"""
