"""What the demo's page answers to what is typed, moved and clicked: without Gradio, and so to be tested without it.

Continuations are written one at a time, for all tabs. What goes wrong is a line in the page: in the card of the
checkpoint that it happened to, or in place of the text where the request itself cannot work.
"""

import collections
import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..checkpoint import checkpoints, load_model, pointed, resolve_model, step_of
from ..errors import UserError
from ..explain.decoding import next_token_logits
from ..explain.token_text import show_token
from ..generation import Piece, check_request, stream_text
from .html import NOT_BEGUN, card_html, cards_html, counts_html, distribution_html, problem_html

MOST_NEW_TOKENS = 512


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


def _errors_as_lines(answer: Callable[..., Any]) -> Callable[..., Any]:
    """An answer that is a line about the error where it cannot be given."""

    @functools.wraps(answer)
    def answer_or_line(*arguments: Any) -> Any:
        try:
            return answer(*arguments)
        except Exception as error:
            return problem_html(error)

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
        return counts_html(*self._models[name], prompt)

    @_errors_as_lines
    def begin(self, session: str | None, prompt: str, chosen: Sequence[str], *settings: Any) -> str | None:
        """Cards that wait for their turn, in place of what the tab asked for before, if that waits too; nothing where
        the tab is being written to and was not told to stop."""
        before = self._tasks.get(session)
        if before is not None and before.begun and not before.stop.is_set():
            return None
        self._tasks.pop(session, None)
        task = self._tasks[session] = self._task(prompt, chosen, *settings)
        return cards_html(task.cards)

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
                    yield cards_html(task.cards)
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
        return cards_html({name: card_html(name, task.prompt, NOT_BEGUN) for name in task.cards})

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
        settings["max_new_tokens"] = _whole("New tokens", num_tokens, MOST_NEW_TOKENS)
        check_request(prompt, **settings)
        settings["seed"] = _whole("Seed", seed)
        cards = {name: card_html(name, prompt) for name in self.stages if name in chosen}
        if not cards:
            raise UserError("Checkpoints: none is chosen; tick at least one")
        return _Task(prompt, settings, cards)

    def _continuation(self, name: str, task: _Task) -> Iterator[str]:
        """The card of one checkpoint, again and again; whatever goes wrong is in it, and the next one's turn comes."""
        if task.stop.is_set():
            yield card_html(name, task.prompt, NOT_BEGUN)
            return
        piece = Piece("", 0)
        try:
            yield card_html(name, task.prompt, "loading")
            for piece in stream_text(*self._models[name], task.prompt, stop=task.stop, **task.settings):
                yield card_html(name, task.prompt, "writing", piece)
        except Exception as error:
            yield card_html(name, task.prompt, "failed", piece, problem_html(error))
            return
        whole = "end of the text" if piece.num_tokens < task.settings["max_new_tokens"] else "done"
        yield card_html(name, task.prompt, "stopped" if task.stop.is_set() else whole, piece)


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
