"""What a step saw: the windows of a run's steps, worked out from its recipe, with the documents they come from.

What a step sees is a pure function of the recipe, so nothing of it was recorded and nothing is lost. The text and the
tokenizer give the token store, the recipe gives the order, and `data/places.py` finds the documents. No model is
built. The global batch is the same on any number of processes.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import AutoConfig

from . import checkpoint
from .data.batches import Windows
from .data.places import Part, Places
from .data.progress import WorkProgress
from .display import Shown, escape_unprintable
from .errors import UserError
from .loading import num_positions
from .recipe import Recipe
from .storage import is_there, local_path
from .training.data import batch_plan, text_of_run
from .training.resume import read_environment
from .training.seen import begun, num_steps

_SHOWN = 300  # characters of a window's text that people are shown


@dataclass(frozen=True, repr=False)
class SeenWindow(Shown):
    """A window of a step. `token_ids` are its inputs and one more: all but the first are the targets.

    `index` is its number in the text, `start` that of its first token; `documents` are those that its tokens are of.
    """

    index: int
    start: int
    token_ids: list[int]
    text: str
    documents: list[Part]

    def in_short(self) -> str:
        return f"window {self.index:,} (tokens {self.start:,} to {self.start + len(self.token_ids) - 1:,})"

    def describe(self) -> Iterator[str]:
        """The window for people: its documents, and how its text begins."""
        yield self.in_short()
        for part in self.documents:
            where = escape_unprintable(part.file or "the whole text", one_line=True)
            row = "" if part.row is None else f" row {part.row:,}"
            offset = "" if not part.offset else f" from byte {part.offset:,}"
            yield f"  {where}{row}{offset}: {part.num_tokens:,} token{'s' * (part.num_tokens != 1)}"
        yield f"  '{escape_unprintable(self.text, one_line=True, limit=_SHOWN)}'"

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "documents": [part._asdict() for part in self.documents]}


class Batches:
    """The steps of a run and what each of them trained on: `Batches(run)[7]` are the windows of step 7, in order.

    Raises:
        UserError: there is no such run, or its text is no longer the one that it was trained on.
    """

    def __init__(self, run_dir: str | Path):
        self.run_dir = run_dir = local_path(run_dir)
        if not is_there(run_dir / "recipe.yaml"):
            raise UserError(f"{run_dir}: not a run: there is no recipe.yaml in it")
        recorded = read_environment(run_dir / "environment.json")
        if not recorded:
            raise UserError(f"{run_dir}: has no environment.json, which says what text it was trained on")
        recipe, self._parent = Recipe.from_yaml(run_dir / "recipe.yaml"), recorded.get("parent", {})
        self.first_step = self._parent.get("step", 0) + 1
        corpus, self._tokenizer, store = text_of_run(recipe, recorded["text"].get("eval_train"))
        windows = Windows(store, recipe.data.context_length or _positions(run_dir), recipe.data.stride)
        self.plan = batch_plan(recipe, windows)
        self.num_steps = num_steps(recipe.train, self.plan, begun(recorded.get("parent"), self.plan))
        with WorkProgress(f"looking for the documents of {corpus.name}") as progress:
            self._places = Places(store, corpus, self._tokenizer, progress)

    def __getitem__(self, step: int) -> list[SeenWindow]:
        if not self.first_step <= step <= self.num_steps:
            before = f"; those before are of {self._parent['run']}" if 1 <= step < self.first_step else ""
            what = f"the run has steps {self.first_step:,} to {self.num_steps:,}{before}"
            raise UserError(what, field="step", value=step)
        return [self._window(int(index)) for index in self.plan.indices(step)]

    def __iter__(self) -> Iterator[list[SeenWindow]]:
        return (self[step] for step in range(self.first_step, self.num_steps + 1))

    def _window(self, index: int) -> SeenWindow:
        windows = self.plan.windows
        start = index * (windows.stride or windows.context_length)
        inputs, targets = windows.window(index)
        token_ids = [*inputs.tolist(), int(targets[-1])]
        text = self._tokenizer.decode(token_ids, clean_up_tokenization_spaces=False)
        return SeenWindow(index, start, token_ids, text, [*self._places.parts(start, start + len(token_ids))])


def _positions(run_dir: Path) -> int:
    """How long the windows of a run of an earlier version are, whose recipe does not say: the model's positions."""
    found = checkpoint.checkpoints(run_dir)
    positions = num_positions(AutoConfig.from_pretrained(found[-1], trust_remote_code=False)) if found else None
    if positions is None:
        raise UserError(f"{run_dir / 'recipe.yaml'}: data.context_length is missing, and no checkpoint says it")
    return positions
