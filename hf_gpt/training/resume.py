"""Whether a run can resume what its folder holds, or branch off from a checkpoint of another run.

A folder holds one run, and the same recipe resumes it. What may change on the way is listed here and each change is
recorded; any other makes it a different run, which is refused. A branch is a new run that begins with the weights, the
optimizer and the position of a step of another.
"""

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import AutoConfig, PreTrainedConfig, PreTrainedTokenizerFast

from .. import checkpoint
from ..data.tokenizer import fingerprint, load_tokenizer
from ..errors import UserError
from ..loading import num_positions, own_fields
from ..recipe import LENGTHS, Recipe, differences
from ..storage import local_path, read_file, read_json
from .model import canonical_field_names
from .state import Progress

if TYPE_CHECKING:
    from .setup import Job

# What may change when a run is resumed; anything else makes it a different run.
_CHANGEABLE = (
    "output_dir",
    "train.max_steps",
    "train.epochs",
    "train.max_tokens",
    "train.max_words",
    "train.log_every",
    "train.batch_size",  # how a global batch is cut up changes no more than the last digits;
    "train.gradient_accumulation_steps",  # its size is train.global_batch_size, which is always resolved
    "data.streaming",
    "evaluation.",
    "checkpoint.",
    "tracking.",
    "hub.",
)
# Where text is found may change as long as it is the same text, which its hash in environment.json says.
_OF_TEXT = (
    "data.source",
    "data.config",
    "data.revision",
    "data.text_column",
    "data.train_split",
    "data.validation_split",
    "data.validation_source",
)


@dataclass(frozen=True)
class Change:
    """A field of the recipe that is not what it was when the run began or was last resumed."""

    field: str
    old: Any
    new: Any

    def __str__(self) -> str:
        return f"{self.field} {self.old} -> {self.new}"


def earlier_recipe(run_dir: Path) -> Recipe | None:
    """The recipe of the run that `run_dir` holds."""
    path = run_dir / "recipe.yaml"
    if read_file(path) is None:
        return None
    try:
        return Recipe.from_yaml(path)
    except UserError as error:  # such as what an earlier version took
        raise UserError(f"{error}; change it there, and the run goes on") from None


def read_environment(path: Path) -> dict[str, Any]:
    """What an `environment.json` holds; `{}` if it is not there.

    Raises:
        UserError: it cannot be read, or is damaged: a value has another type than what is written here.
    """
    found = read_json(path)
    kinds = {"run_id": str, "versions": dict, "text": dict, "sources": dict, "processes": int, "parent": dict}
    kinds["head_makes_logits"] = bool
    expected = {"run_id", "versions", "text"} if found else set()
    odd = [key for key in kinds if key in expected | found.keys() and not isinstance(found.get(key), kinds[key])]
    if not odd:
        odd = [f"sources.{name}" for name, facts in found.get("sources", {}).items() if not isinstance(facts, dict)]
    if "parent" in found and not odd:
        parent = {"tokens": 0, "words": 0, **found["parent"]}  # which an earlier version did not write
        types = {"run": str, "step": int, "tokens": int, "words": int}
        odd = [key for key, kind in types.items() if not isinstance(parent.get(key), kind)]
    if odd:
        raise UserError(f"{path}: is damaged: {odd[0]} is not what was written there; put it back, or remove the file")
    return found


def changes_of_recipe(run_dir: Path, earlier: Recipe, recipe: Recipe, config: PreTrainedConfig) -> list[Change]:
    """What is different from the recipe of the run in `run_dir`; `config` is that of the recipe's model.

    Raises:
        UserError: what must not be different.
    """
    if recipe.checkpoint.resume == "never" and checkpoint.checkpoints(run_dir):
        raise UserError(f"checkpoint.resume: never, but {run_dir} holds checkpoints; give another output_dir")
    model = dataclasses.replace(earlier.model, config=canonical_field_names(earlier.model.config, type(config)))
    data = dataclasses.replace(earlier.data, context_length=earlier.data.context_length or num_positions(config))
    earlier = dataclasses.replace(earlier, model=model, data=data)
    found = differences(earlier, recipe)
    for section in ("model", "data"):  # a seed that is given and was left to `seed` may be the same
        if getattr(earlier, f"{section}_seed") == getattr(recipe, f"{section}_seed"):
            found.pop(f"{section}.seed", None)
    changes = [Change(field, old, new) for field, (old, new) in found.items()]
    changeable = _CHANGEABLE + _OF_TEXT if read_environment(run_dir / "environment.json").get("text") else _CHANGEABLE
    different = [str(change) for change in changes if not change.field.startswith(changeable)]
    if different:
        raise UserError(
            f"{run_dir}: holds a different run ({', '.join(different[:5])}); give another output_dir,"
            " or resume it with its own recipe.yaml"
        )
    return [change for change in changes if change.field != "output_dir"]


def refuse_other_run(job: "Job", found: Path | None) -> None:
    """Refuse to begin where the folder holds what `job` cannot resume; asked under the run's lock.

    Args:
        found: the checkpoint in the folder that would be resumed from.

    Raises:
        UserError: another process began a run there, its recipe is gone, or it is past the last step.
    """
    if earlier_recipe(job.run_dir) != job.earlier:
        raise UserError(f"{job.run_dir}: another process began a run there meanwhile; give another output_dir")
    if found is not None and job.earlier is None:
        raise UserError(f"{found}: the run has no recipe.yaml; put it back, or give another output_dir")
    start = found or job.parent
    if start is not None and checkpoint.step_of(start) + (found is None) > job.max_steps:
        where = job.run_dir if found else job.parent
        length = next(name for name in LENGTHS if getattr(job.recipe.train, name) is not None)
        what = f"{job.max_steps}" if length == "max_steps" else f"the run would end at step {job.max_steps}"
        raise UserError(f"train.{length}: {what}, but {where} is at step {checkpoint.step_of(start)}")


def look_for_checkpoint(job: "Job", say: Callable[[str], None]) -> tuple[Path | None, dict[Path, str]]:
    """The checkpoint that `job` resumes from, if there is one, and each newer one that is damaged, with what is wrong.

    `say` is told what a person should know about them and about what has changed.

    Raises:
        UserError: something cannot be read, or cannot be resumed (`refuse_other_run`).
    """
    for pointer in ("latest", "best"):
        checkpoint.pointed(job.run_dir, pointer)  # refuses what could not be written again
    found, damaged = checkpoint.newest_whole(job.run_dir)
    refuse_other_run(job, found)
    for name, there, here in _other_fields(found, job.model.config) if found else ():
        what = f"the run's model has {name} {there!r}, and what the recipe names has {here!r} now"
        raise UserError(f"{job.run_dir}: {what}; put back the model or the version of transformers that it began with")
    for change in job.changes:
        say(f"changed: {change}")
    for warning in (*job.warnings, *damaged.values()):
        say(f"warning: {warning}")
    if damaged and found is None:
        say(f"warning: no checkpoint in {job.run_dir} is complete: starting from the beginning")
    if found is not None and (added := checkpoint.unlisted(found)):
        say(f"warning: {found}: {', '.join(added)}: not in its manifest, and left out")
    return found, damaged


def history(
    job: "Job", found: Path | None, damaged: Mapping[Path, str], step: int
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The events of a run that is resumed from `found` at `step`, or started over: their kinds and facts."""
    for path, problem in damaged.items():
        yield "damaged checkpoint", {"checkpoint": path.name, "problem": problem}
    for change in job.changes:
        yield "changed", {"field": change.field, "old": change.old, "new": change.new}
    processes = job.accelerator.num_processes
    if found is None and job.earlier is not None:
        yield "restarted", {"processes": processes}
    elif found is not None and step < job.max_steps:
        yield "resumed", {"checkpoint": found.name, "processes": processes}


def find_checkpoint(name: str) -> Path:
    """The training checkpoint that `RUN@STEP` or `RUN` (its latest) names; it verifies.

    Raises:
        UserError: there is none, or it is damaged.
    """
    run, step = run_and_step(name)
    found = checkpoint.checkpoints(run)
    if not found:
        raise UserError(f"{run}: no run with a checkpoint there; name one as RUN@STEP")
    chosen = found[-1] if step == "latest" else checkpoint.pointed(run, "best") if step == "best" else None
    if step.isdigit():
        chosen = next((path for path in found if checkpoint.step_of(path) == int(step)), None)
    if chosen is None:
        steps = ", ".join(str(checkpoint.step_of(path)) for path in found)
        raise UserError(f"{name}: {run} keeps no training state of step {step}; it has that of: {steps}")
    checkpoint.verify(chosen)
    return chosen


def run_and_step(name: str) -> tuple[str, str]:
    """`RUN@STEP` in its parts; STEP is a number, `best` or `latest`, which is also what RUN alone means."""
    found = re.fullmatch(r"(.+)@(\d+|latest|best)", name)
    run, step = (found[1], found[2]) if found else (name, "latest")
    return str(local_path(run)), step


def _other_fields(checkpoint: Path, config: PreTrainedConfig) -> Iterator[tuple[str, Any, Any]]:
    """The fields of a checkpoint's configuration that are not what `config` has: name, there, and here."""
    theirs = AutoConfig.from_pretrained(checkpoint, trust_remote_code=False)
    for name in ("model_type", *sorted(own_fields(type(config)))):
        there, here = getattr(theirs, name), getattr(config, name)
        here = [*here] if isinstance(here, tuple) else here  # as a file has it
        if there != here:
            yield name, there, here


def _is_the_same(asked: str, recorded: Mapping[str, Any]) -> bool:
    """Whether `asked` means the parent that a branch wrote down; `best` and `latest` may have moved since."""
    run, step = run_and_step(asked)
    return Path(run).absolute() == Path(recorded["run"]) and (not step.isdigit() or int(step) == recorded["step"])


def describe_parent(parent: Path) -> dict[str, Any]:
    """What a branch writes down of the checkpoint it starts from."""
    progress = Progress.read(parent / checkpoint.TRAINING_STATE / "state.json")
    return {
        "run": str(parent.parent.parent.absolute()),
        "step": checkpoint.step_of(parent),
        "tokens": progress.tokens,
        **({} if progress.words is None else {"words": progress.words}),
        "weights": checkpoint.hashes_of_weights(parent),
    }


def find_parent(
    run_dir: Path, asked: str | None, config: PreTrainedConfig, tokenizer: PreTrainedTokenizerFast, optimizer: str
) -> Path | None:
    """The checkpoint to branch off from: as asked for, else as the run in `run_dir` once was.

    None for a branch that has checkpoints of its own: it no longer needs its parent, which may have pruned that step.

    Raises:
        UserError: there is no such checkpoint, it is of another model, tokenizer or optimizer, or the run began
            elsewhere.
    """
    recorded = read_environment(run_dir / "environment.json").get("parent")
    if checkpoint.checkpoints(run_dir):
        if asked is not None and not (recorded and _is_the_same(asked, recorded)):
            began = f"{recorded['run']}@{recorded['step']}" if recorded else "nothing"
            raise UserError(
                f"the run in {run_dir} began from {began}; give another output_dir", field="parent", value=asked
            )
        return None
    if asked is None:
        if recorded is None:
            return None
        asked = f"{recorded['run']}@{recorded['step']}"
    parent = find_checkpoint(asked)
    if fingerprint(load_tokenizer(str(checkpoint.tokenizer_folder(parent)))) != fingerprint(tokenizer):
        raise UserError(
            f"its tokenizer is not the recipe's; use its own: tokenizer.train null, tokenizer.name {parent}",
            field="parent",
            value=asked,
        )
    its_recipe = earlier_recipe(parent.parent.parent)
    kept = its_recipe.optimizer.name if its_recipe is not None else optimizer
    if kept != optimizer:
        raise UserError(
            f"it holds the state of {kept} and the recipe's optimizer is {optimizer}; to start from its weights alone,"
            f" set model.from_pretrained to {parent}",
            field="parent",
            value=asked,
        )
    for name, there, here in _other_fields(parent, config):
        if not name.endswith(("dropout", "_pdrop", "_id")):
            raise UserError(
                f"model.{name} is {there!r} there and {here!r} in the recipe; a branch continues with the same model",
                field="parent",
                value=asked,
            )
    return parent
