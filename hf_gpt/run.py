"""Train a recipe: the loop, with the satellites that a run has by default attached to it.

The core ends here. What a run does beside training is a list of observers; `default_observers` puts it together, and
`train(recipe, observers=[...])` adds a user's own.
"""

import contextlib
import dataclasses
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerFast

from . import checkpoint
from .display import Shown, escape_unprintable, unfailing_stderr
from .errors import UserError
from .hub.background import BackgroundPush, refuse_unpublishable
from .hub.card import CardWriter
from .hub.fetch import fetch_run
from .recipe import CheckpointRecipe, HubRecipe, Recipe, TrackingRecipe
from .report.notebook import Picture
from .report.page import ReportWriter
from .storage import local_path, refuse_unwritable
from .texts import VALIDATION, judging, label_of
from .training.loop import run
from .training.observers import Observer
from .training.run_log import RunLog, read_lines
from .training.setup import Job, prepare
from .training.signals import exit_on_preemption, lost_process_ends_run
from .training.terminal import Terminal
from .training.trackers import Trackers, refuse_missing_trackers
from .training.utilization import Utilization


def train(
    recipe: Recipe | Mapping[str, Any] | str | Path, *, parent: str | None = None, observers: Iterable[Observer] = ()
) -> "TrainingResult":
    """Train as `recipe` says, or resume such a run: the same call continues what its `output_dir` holds.

    Args:
        recipe: a `Recipe`, a nested dictionary, or the path of a YAML file.
        parent: `RUN@STEP`: begin with the weights, the optimizer and the position of that step of another run.
        observers: your own (`hf_gpt.Observer`), notified on every process, before the records are written.

    Raises:
        UserError: something in the recipe cannot work here.
        RunStopped: the loss is no longer finite, or another process of the run is gone.
        KeyboardInterrupt: Ctrl-C; the run was saved first.
        RunPreempted: SIGTERM, SIGUSR1 or SIGHUP; the run was saved first.
    """
    if isinstance(recipe, (str, Path)):
        recipe = Recipe.from_yaml(recipe)
    elif isinstance(recipe, Mapping):
        recipe = Recipe.from_dict(recipe)
    with unfailing_stderr(), lost_process_ends_run():
        with exit_on_preemption():
            job = prepare_run(recipe, parent)
        run(job, [*observers, *default_observers(job)])
    return TrainingResult(
        output_dir=job.run_dir,
        recipe=job.recipe,
        model=job.model.eval(),
        tokenizer=job.data.tokenizer,
        is_main_process=job.accelerator.is_main_process,
        judged_on=judging(job.data.evaluated, job.recipe.evaluation.best_on) or VALIDATION,
    )


def prepare_run(recipe: Recipe, parent: str | None = None) -> Job:
    """`training.setup.prepare`, after fetching a run from the Hub, before refusing what cannot be published there."""
    run_dir = local_path(recipe.output_dir, "output_dir")
    refuse_unwritable(run_dir, "output_dir")
    if recipe.checkpoint.resume == "hub":
        fetch_run(recipe.hub.repo_id, recipe.hub.branch, run_dir)
    refuse_missing_trackers(recipe.tracking.to)
    job = prepare(recipe, parent)
    if recipe.hub.repo_id is not None:
        refuse_unpublishable(job)
    return job


def scratch_recipe(recipe: Recipe, folder: str) -> Recipe:
    """`recipe` for a trial in a temporary folder: no checkpoint before the last step, no trackers, no Hub."""
    return dataclasses.replace(
        recipe,
        output_dir=folder,
        checkpoint=CheckpointRecipe(every=None),
        tracking=TrackingRecipe(),
        hub=HubRecipe(),
    )


def default_observers(job: Job) -> list[Observer]:
    """What a run has unless something else is asked for: on the main process, and nothing on the others.

    The first adds to a line of metrics, the log writes it, and those after it read what was written.
    """
    if not job.accelerator.is_main_process:
        return []
    observers: list[Observer] = [Utilization(), RunLog(job.run_dir), Terminal()]
    if job.recipe.tracking.to:
        observers.append(Trackers())
    if job.recipe.hub.repo_id is not None:
        observers.append(BackgroundPush(job.recipe.hub))
    return [*observers, CardWriter(), ReportWriter()]


@dataclass(repr=False)
class TrainingResult(Shown):
    """A finished run: the model in memory, and what is on disk. A notebook shows its last sample and its losses."""

    output_dir: Path
    recipe: Recipe
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    is_main_process: bool = True  # the one of several that writes and prints
    judged_on: str = VALIDATION  # the text that the best checkpoint follows (texts.py)

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The lines of `metrics.jsonl`."""
        return read_lines(self.output_dir / "metrics.jsonl")

    @property
    def samples(self) -> list[dict[str, Any]]:
        """The lines of `samples.jsonl`: `{"step", "prompt", "text"}`."""
        return read_lines(self.output_dir / "samples.jsonl")

    @property
    def checkpoints(self) -> list[Path]:
        """The newest checkpoints, oldest first, which can be resumed; each loads with `from_pretrained`."""
        return checkpoint.checkpoints(self.output_dir)

    @property
    def milestones(self) -> list[Path]:
        """The checkpoints that stay for ever, oldest first; most have no training state."""
        return checkpoint.milestones(self.output_dir)

    def in_short(self) -> str:
        found = [str(self.output_dir), *(f"step {checkpoint.step_of(path)}" for path in self.checkpoints[-1:])]
        best = checkpoint.pointed(self.output_dir, "best")
        return ", ".join([*found, f"best on {label_of(self.judged_on)}: {best.name}"] if best else found)

    def _repr_html_(self) -> str:
        return super()._repr_html_() + Picture(self.output_dir / "loss.png").as_html()

    def summary(self) -> Iterator[str]:
        """The last sample and where things are, for people."""
        best, samples = None, []
        with contextlib.suppress(UserError):  # what another program left there costs no summary
            samples = self.samples
            best = checkpoint.pointed(self.output_dir, "best")
        if samples:
            step, text = samples[-1]["step"], escape_unprintable(samples[-1]["text"].expandtabs(4))
            text = re.sub(r"\n\s*\n", "\n\n", text).rstrip()  # many blank lines are one: where things are follows
            yield from ("", f"sample     after step {step}:", "", *text.split("\n"), "")
        yield f"model      {self.checkpoints[-1]}" + (
            f"   (best on {label_of(self.judged_on)}: {best.name})" if best else ""
        )
        if (plot := self.output_dir / "loss.png").is_file():
            yield f"loss plot  {plot}"
        if (report := self.output_dir / "report.html").is_file():
            yield f"report     {report}"

    describe = summary


Run = TrainingResult
"""The name of this class before version 0.2."""
