"""Training that can be audited: repeat some steps of a published run, and compare.

The steps from one checkpoint of a run to another are trained again, in a temporary folder, by the run's own recipe.
Every metric that both have must be the same, except for the clock, and so must the weights, bit for bit, where the run
kept a checkpoint. This holds on the same hardware, versions and number of processes.
"""

import dataclasses
import hashlib
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from . import checkpoint
from .display import Shown
from .errors import UserError
from .recipe import Recipe, TrainRecipe
from .run import prepare_run, scratch_recipe
from .storage import is_there, local_path
from .training.loop import TrainingRun, run
from .training.observers import Observer
from .training.provenance import changes_of_environment
from .training.resume import read_environment
from .training.run_log import read_events, read_metrics
from .training.seen import num_steps
from .training.signals import lost_process_ends_run
from .training.state import read_weights, whole_weights

_NOT_COMPARED = ("step", "seconds", "tokens_per_second", "mfu", "peak_memory_bytes")
# Fields that may change when a run is resumed, and that a step depends on.
_OF_A_STEP = ("train.max_steps", "train.epochs", "train.max_tokens", "train.max_words", "train.batch_size")


@dataclass(frozen=True)
class Compared:
    """One thing that the published run and the repeated one have at `step`, such as `train_loss` or `weights`."""

    step: int
    what: str
    published: str
    repeated: str

    @property
    def matches(self) -> bool:
        return self.published == self.repeated


class Replayed(Shown, dict[int, list[Compared]]):
    """What was compared, by step; nothing where the run has no record of a step."""

    @property
    def num_recorded(self) -> int:
        """Steps that there is a record of."""
        return sum(bool(compared) for compared in self.values())

    @property
    def num_exact(self) -> int:
        """Steps of which all that was compared is the same."""
        return sum(bool(compared) and all(one.matches for one in compared) for compared in self.values())

    def in_short(self) -> str:
        return f"{len(self)} steps repeated; {self.num_exact} of the {self.num_recorded} recorded ones match"


def replay(
    run_dir: str | Path,
    start: int | None = None,
    stop: int | None = None,
    watch: Callable[[int, list[Compared]], None] | None = None,
    warn: Callable[[str], None] | None = None,
) -> "Replayed":
    """Repeat the steps after `start` up to `stop` of a run, and compare: what was compared, by step.

    Args:
        start: a step with a checkpoint, or 0 for the beginning. By default the oldest checkpoint that is not the last.
        stop: by default the newest checkpoint.
        watch: called with each step and what was compared, as soon as it is.
        warn: called with what is different here from where the run was trained.

    Raises:
        UserError: there is no such run, or it keeps no checkpoint of `start`.
    """
    run_dir = local_path(run_dir)
    if not is_there(run_dir / "recipe.yaml"):
        raise UserError(f"{run_dir}: not a run: there is no recipe.yaml in it")
    recorded = read_environment(run_dir / "environment.json")
    parent = recorded.get("parent")
    beginning = parent["step"] if parent else 0
    kept = {checkpoint.step_of(path): path for path in checkpoint.checkpoints(run_dir)}
    if not kept:
        raise UserError(f"{run_dir}: a run without a checkpoint; there is nothing to compare with")
    start = (min(kept) if len(kept) > 1 else beginning) if start is None else start
    stop = max(kept) if stop is None else stop
    if not beginning <= start < stop <= max(kept):
        raise UserError(f"{run_dir}: steps {start} to {stop} are not within the run's {beginning} to {max(kept)}")
    origin = f"{parent['run']}@{start}" if parent and start == beginning else f"{run_dir}@{start}" if start else None
    recipe = Recipe.from_yaml(run_dir / "recipe.yaml")
    conditions = _conditions(run_dir, recipe.train)
    train, processes = conditions[max(step for step in conditions if step <= start)]
    for step in sorted(step for step in conditions if start < step < stop):
        then, then_processes = conditions[step]
        if (then.batch_size, then_processes) != (train.batch_size, processes):
            raise UserError(
                f"{run_dir}: continued from step {step} with another train.batch_size or number of processes, which"
                f" changes the last digits; repeat the steps up to {step}, or those from {step} on, by themselves"
            )
    comparison = _Comparison(run_dir, kept, conditions, watch)
    with tempfile.TemporaryDirectory(prefix="hf_gpt-replay-") as scratch:
        job = prepare_run(dataclasses.replace(scratch_recipe(recipe, scratch), train=train), origin)
        for warning in changes_of_environment(run_dir, job.environment):
            if job.accelerator.is_main_process and warn is not None:
                warn(warning)
        if processes != job.accelerator.num_processes:
            raise UserError(
                f"{run_dir}: these steps were trained on {processes} processes, and repeat exactly on as many;"
                f" this is {job.accelerator.num_processes}"
            )
        job.environment["head_makes_logits"] = recorded.get("head_makes_logits")
        with lost_process_ends_run():
            run(job, [comparison], until=stop)
    return comparison.results


class _Comparison(Observer):
    """Compares each step of the repeated run with the published one."""

    required = True

    def __init__(
        self,
        run_dir: Path,
        kept: Mapping[int, Path],
        conditions: Mapping[int, tuple[TrainRecipe, int]],
        watch: Callable[[int, list[Compared]], None] | None,
    ):
        self.results = Replayed()
        self._kept, self._conditions, self._watch = kept, conditions, watch
        self._repeated: dict[str, Any] = {}  # of the current step
        # Losses on other texts than those of the last recipe are not compared.
        of_texts = ("evaluation.tokens", "evaluation.datasets.")
        changes = [e["step"] for e in read_events(run_dir) if str(e.get("field")).startswith(of_texts)]
        self._evaluated_since = max(changes, default=-1)
        self._published: dict[int, dict[str, Any]] = {}  # a step's metrics of training and evaluation together
        for line in read_metrics(run_dir):
            if line["step"] > self._evaluated_since or "train_loss" in line:
                self._published.setdefault(line["step"], {}).update(line)

    def stepped(self, training: TrainingRun, step: int, metrics: dict[str, Any] | None) -> None:
        self._repeated = dict(metrics or {})
        if not training.evaluates_at(step):
            self._compare(training, step)

    def evaluated(
        self, training: TrainingRun, step: int, metrics: dict[str, Any], samples: Sequence[Mapping[str, Any]]
    ) -> None:
        self._repeated |= metrics
        if step > 0:
            self._compare(training, step)

    def _compare(self, training: TrainingRun, step: int) -> None:
        if step in self._conditions:
            training.job.max_steps = num_steps(self._conditions[step][0], training.job.plan, training.job.begun)
        kept = self._kept.get(step)
        weights = whole_weights(training.loss) if kept else {}  # gathered from all processes
        if not training.accelerator.is_main_process:
            return
        published = self._published.get(step, {})
        found = [
            Compared(step, name, repr(published[name]), repr(value))
            for name, value in self._repeated.items()
            if name in published and name not in _NOT_COMPARED
        ]
        if kept:
            theirs = read_weights(kept, training.model)
            found.append(Compared(step, "weights", weights_checksum(theirs), weights_checksum(weights)))
        self.results[step] = found
        if self._watch is not None:
            self._watch(step, found)


def _conditions(run_dir: Path, train: TrainRecipe) -> dict[int, tuple[TrainRecipe, int]]:
    """`{step: (recipe, number of processes)}`: under what a run was trained after a step, until the next such step.

    The learning rate depends on a run's length, and the last digits on how a global batch is divided; both may change
    when a run is resumed, and `events.jsonl` says when. `train` is the recipe after the last change. A run that
    resumes from a step trains all later steps again, so earlier entries for later steps no longer count.
    """
    events = read_events(run_dir)
    changed = [e for e in events if e["event"] == "changed" and e.get("field") in _OF_A_STEP]
    now = {field: getattr(train, field.removeprefix("train.")) for field in _OF_A_STEP}
    for event in reversed(changed):
        now[event["field"]] = event.get("old")
    processes = read_environment(run_dir / "environment.json").get("processes", 1)
    found = {0: (dict(now), processes)}
    for event in events:
        if event in changed:
            now[event["field"]] = event.get("new")
        elif event["event"] in ("resumed", "restarted"):
            processes = event.get("processes", processes)
        else:
            continue
        found = {step: then for step, then in found.items() if step < event["step"]}
        found[event["step"]] = (dict(now), processes)
    try:
        return {
            step: (dataclasses.replace(train, **{k.removeprefix("train."): v for k, v in then.items()}), processes)
            for step, (then, processes) in found.items()
        }
    except (ValueError, TypeError) as error:
        raise UserError(f"{run_dir / 'events.jsonl'}: holds a change that no recipe can have: {error}") from None


def weights_checksum(weights: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 over the names, types, shapes and bytes of weights, whatever file they were in."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
