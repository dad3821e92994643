"""Training that can be audited: repeat some steps of a published run, and compare.

The steps from one checkpoint of a run to another are trained again, in a scratch directory, by the run's own recipe.
Every line of metrics that both have must be the same but for the clock, and so must the weights, bit for bit, where
the run kept a checkpoint. That is what the promise to repeat a run comes to, checked on the run itself; it holds on
the same hardware, versions and number of processes.
"""

import dataclasses
import hashlib
import re
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from .. import checkpoint
from ..errors import UserError
from ..recipe import CheckpointRecipe, Recipe, TrackingRecipe, TrainRecipe
from ..report import read_lines, read_metrics
from ..storage import read_json
from .lineage import changes_of_environment
from .loop import run
from .setup import num_steps, prepare
from .state import whole_weights
from .stopping import lost_process_as_such

# What two runs may differ in and be the same.
_CLOCK = ("seconds", "tokens_per_second", "mfu", "peak_memory")


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


def replay(
    run_dir: str | Path,
    start: int | None = None,
    stop: int | None = None,
    watch: Callable[[int, list[Compared]], None] | None = None,
) -> dict[int, list[Compared]]:
    """Repeat the steps after `start` up to `stop` of a run, and compare: what was compared, by step.

    Args:
        start: a step with a checkpoint, or 0 for the beginning. By default the oldest checkpoint that is not the last.
        stop: by default the newest checkpoint.
        watch: called with each step and what was compared, as soon as it is.

    Raises:
        UserError: there is no such run, or it keeps no checkpoint of `start`.
    """
    run_dir = Path(run_dir)
    if not (run_dir / "recipe.yaml").is_file():
        raise UserError(f"{run_dir}: not a run: there is no recipe.yaml in it")
    parent = read_json(run_dir / "environment.json").get("parent")
    beginning = parent["step"] if parent else 0
    kept = {checkpoint.step_of(path): path for path in checkpoint.checkpoints(run_dir)}
    if not kept:
        raise UserError(f"{run_dir}: a run without a checkpoint; there is nothing to compare with")
    start = (sorted(kept)[0] if len(kept) > 1 else beginning) if start is None else start
    stop = max(kept) if stop is None else stop
    if not beginning <= start < stop <= max(kept):
        raise UserError(f"{run_dir}: steps {start} to {stop} are not within the run's {beginning} to {max(kept)}")
    origin = f"{parent['run']}@{start}" if parent and start == beginning else f"{run_dir}@{start}" if start else None
    published = _by_step(read_metrics(run_dir))
    recipe = Recipe.from_yaml(run_dir / "recipe.yaml")
    lengths = _lengths(run_dir, recipe.train)
    results: dict[int, list[Compared]] = {}

    with tempfile.TemporaryDirectory(prefix="hf_gpt-replay-") as scratch:
        recipe = dataclasses.replace(
            recipe,
            output_dir=scratch,
            train=lengths[max(step for step in lengths if step <= start)],
            checkpoint=CheckpointRecipe(every=None),
            tracking=TrackingRecipe(),
        )
        job = prepare(recipe, origin)
        changes_of_environment(run_dir, job.environment)  # refuses another text
        began_with = read_json(run_dir / "environment.json").get("processes", 1)
        if began_with != job.accelerator.num_processes:
            raise UserError(
                f"{run_dir}: began on {began_with} processes, and repeats exactly on as many;"
                f" this is {job.accelerator.num_processes}"
            )

        def compare(step: int, training: Any) -> None:
            if step in lengths:
                job.max_steps = num_steps(lengths[step], job.plan)
            ours = whole_weights(training.model) if step in kept else {}  # gathered from all processes
            if not job.accelerator.is_main_process:
                return
            repeated = _by_step(read_metrics(scratch)).get(step, {})
            found = [
                Compared(step, name, repr(published[step][name]), repr(value))
                for name, value in repeated.items()
                if name in published.get(step, {})
            ]
            if step in kept:
                theirs = {}
                for shard in kept[step].glob("model*.safetensors"):
                    theirs |= load_file(shard)
                found.append(Compared(step, "weights", weights_checksum(theirs), weights_checksum(ours)))
            results[step] = found
            if watch is not None:
                watch(step, found)

        with lost_process_as_such():
            run(job, until=stop, watch=compare)
    return results


def _lengths(run_dir: Path, train: TrainRecipe) -> dict[int, TrainRecipe]:
    """`{step: the recipe of what came after it}`: the learning rate depends on a run's length, which may have changed.

    `train` is the recipe as the last change left it; `events.jsonl` holds the changes in the order they were made. A
    run that fell back to an earlier checkpoint before a change has trained everything after that checkpoint by it.
    """
    changes = []
    for event in read_lines(run_dir / "events.jsonl"):
        found = re.fullmatch(r"train\.(max_steps|epochs) (\S+) -> (\S+)", str(event.get("what")))
        if event["event"] == "changed" and found:
            old, new = (None if text == "None" else float(text) for text in found.group(2, 3))
            changes.append((event["step"], found[1], old, new))
    length = {"max_steps": train.max_steps, "epochs": train.epochs}
    for _, field, old, _ in reversed(changes):
        length[field] = old
    lengths = {0: dict(length)}
    for step, field, _, new in changes:
        length[field] = new
        lengths = {earlier: it for earlier, it in lengths.items() if earlier < step} | {step: dict(length)}
    return {step: dataclasses.replace(train, **length) for step, length in lengths.items()}


def weights_checksum(weights: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 over the names, types, shapes and bytes of weights, whatever file they were in."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _by_step(lines: list[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """The values of each step, of training and evaluation together, without the clock."""
    values: dict[int, dict[str, Any]] = {}
    for line in lines:
        of_step = values.setdefault(line["step"], {})
        of_step |= {name: value for name, value in line.items() if name not in _CLOCK and name != "step"}
    return values
