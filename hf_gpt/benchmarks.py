"""Benchmarks, which are lm-eval's work: of one model, of the checkpoints of a run, or of revisions of a Hub id.

What a run's checkpoints reach goes to its `evaluations.jsonl`, a line for each checkpoint and set of tasks, with the
hash of the weights. A result is never computed twice: not for the same weights, task and number of documents, where a
task is its configuration (version and few-shot examples included) and its documents.

A task is a file that may come from anywhere, so it is data here: a folder of tasks that names Python code is refused,
templates run in Jinja's sandbox, and no metric is fetched as code. lm-eval's own tasks are as trusted as lm-eval is;
their texts are on the Hub.
"""

import contextlib
import difflib
import hashlib
import json
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import constants

from . import checkpoint
from .errors import HubError, UserError
from .hub.card import add_benchmarks
from .loading import quiet
from .network import hub_requests
from .report.page import write_report
from .storage import append, flush_path, is_there, local_path, read_file, read_json, refuse_unwritable
from .training.run_log import read_lines

EVALUATIONS = "evaluations.jsonl"
_FEWSHOT_SEED = 1234  # lm-eval's own
_BATCH_SIZE = 16
_STANDARD = "tag:yaml.org,2002:"


@dataclass(frozen=True)
class Measured:
    """A model that is measured; a checkpoint of a run knows its step."""

    name: str
    folder: Path
    weights: str
    run_dir: Path | None = None
    step: int | None = None
    tokens: int | None = None


@dataclass(frozen=True)
class Task:
    """A task or a group of tasks as lm-eval loads it, and a hash of all that its result depends on but the model."""

    name: str
    loaded: Any
    identity: str
    num_fewshot: int


def benchmark(
    model: str,
    tasks: Sequence[str],
    *,
    include_path: str | None = None,
    checkpoints: str | None = None,
    revisions: Sequence[str] = (),
    num_fewshot: int | None = None,
    limit: int | None = None,
    device: str = "auto",
    say: Callable[[str], None] = lambda line: None,
) -> list[dict[str, Any]]:
    """What a model reaches in lm-eval's tasks: for each model that was measured its name, weights and results.

    Args:
        model: a directory, a run (its best checkpoint), or a Hub id.
        tasks: names of tasks, groups or tags.
        include_path: a folder of further tasks, which come before lm-eval's own of the same name.
        checkpoints: `all` or `milestones` of the run.
        revisions: branches, tags or commits of the Hub id.
        num_fewshot: examples before each question, where a task does not fix their number.
        limit: the first documents of each task only.
        say: called with what is going on.

    Raises:
        UserError: lm-eval is missing; something named is not there; a task is code, or cannot be evaluated.
    """
    for field, value, least in (("num_fewshot", num_fewshot, 0), ("limit", limit, 1)):
        if value is not None and value < least:
            raise UserError(f"must be {least} or more", field=field, value=value)
    with _as_data():
        found = _load_tasks(tasks, include_path, num_fewshot)
        measured = _models(model, checkpoints, revisions)
        for run_dir in {one.run_dir for one in measured if one.run_dir}:
            refuse_unwritable(run_dir, "model")
        results = [_measure(one, found, limit, device, say) for one in measured]
    changed = [one for one, (_, is_new) in zip(measured, results) if is_new and one.run_dir]
    for one in changed:
        _try(lambda one=one: add_benchmarks(one.folder, one.run_dir), f"the card of {one.name}", say)
    for run_dir in {one.run_dir for one in changed if is_there(one.run_dir / "metrics.jsonl")}:
        _try(lambda run_dir=run_dir: write_report(run_dir), f"the report of {run_dir}", say)
    return [line for line, _ in results]


def _measure(
    one: Measured, tasks: Sequence[Task], limit: int | None, device: str, say: Callable[[str], None]
) -> tuple[dict[str, Any], bool]:
    """What was known and what is found now, and whether there is any of the latter, which is then on disk."""
    place = one.run_dir and one.run_dir / EVALUATIONS
    line: dict[str, Any] = {"step": one.step, "tokens": one.tokens} if one.run_dir else {}
    line |= {"model": one.name, "weights": one.weights, "limit": limit}
    known = {}
    for earlier in read_lines(place, say) if place else ():
        if (earlier.get("weights"), earlier.get("limit")) == (one.weights, limit):
            found = earlier.get("results")
            entries = found.items() if isinstance(found, dict) else ()
            whole = [(name, entry) for name, entry in entries if isinstance(entry, dict) and "metrics" in entry]
            known |= {(name, str(entry.get("task"))): entry for name, entry in whole}
    have = {task.name: known[key] for task in tasks if (key := (task.name, task.identity)) in known}
    missing = [task for task in tasks if task.name not in have]
    if have:
        say(f"{one.name}: {', '.join(have)}: known already")
    if missing:
        say(f"{one.name}: {', '.join(task.name for task in missing)} ...")
        new = _evaluate(one, missing, limit, device)
        if place:
            content = json.dumps({**line, "results": new}, ensure_ascii=False) + "\n"
            append(place, content.encode())
            flush_path(place)
        have |= new
    return {**line, "results": {task.name: have[task.name] for task in tasks}}, bool(missing)


def _evaluate(one: Measured, tasks: Sequence[Task], limit: int | None, device: str) -> dict[str, dict[str, Any]]:
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM

    model, tokenizer = checkpoint.load_model(str(one.folder), device)
    with _task_errors(tasks[0].name):
        evaluated = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=_BATCH_SIZE)
    found = {}
    for task in tasks:
        for part in task.loaded["tasks"].values():
            part.set_fewshot_seed(seed=_FEWSHOT_SEED)  # the same examples for each model
        with _task_errors(task.name), quiet():
            try:
                answers = evaluate(evaluated, task.loaded, limit=limit, bootstrap_iters=0, log_samples=False)
            except AssertionError as error:
                if str(error):
                    raise
                what = (
                    f"an answer in it is empty, or longer than the {evaluated.max_length} tokens that the model takes"
                )
                raise UserError(what, field="tasks", value=task.name) from error
        of_all = {**answers["results"], **answers.get("groups", {})}
        counted = answers["n-samples"]
        entry = {
            "task": task.identity,
            "version": answers["versions"].get(task.name),
            "num_fewshot": task.num_fewshot,
            "documents": sum(counted[part]["effective"] for part in task.loaded["tasks"]),
            "metrics": _metrics(of_all.get(task.name, {})),
        }
        parts = {name: _metrics(values) for name, values in of_all.items() if name != task.name}
        found[task.name] = {**entry, "parts": parts} if parts else entry
    return found


def _metrics(values: dict[str, Any]) -> dict[str, float]:
    """lm-eval's `acc,none` as `acc`; what is no number is left out."""
    numbers = {name: value for name, value in values.items() if isinstance(value, (int, float)) and "," in name}
    return {name.removesuffix(",none"): float(value) for name, value in numbers.items() if "_stderr," not in name}


# What is measured ----------------------------------------------------------------------------------------------------


def _models(model: str, checkpoints: str | None, revisions: Sequence[str]) -> list[Measured]:
    if revisions:
        if checkpoints or local_path(model).exists():
            raise UserError("are of a Hub id; of a run, name its checkpoints: all or milestones", field="revisions")
        return [_model(f"{model.partition('@')[0]}@{revision}") for revision in revisions]
    if checkpoints is None:
        return [_model(model)]
    run_dir = local_path(model)
    if not (run_dir / "checkpoints").is_dir():
        raise UserError(f"{model} is not the folder of a run", field="checkpoints", value=checkpoints)
    kept = (checkpoint.saved if checkpoints == "all" else checkpoint.milestones)(run_dir)
    if not kept:
        raise UserError(f"{model} has none", field="checkpoints", value=checkpoints)
    return [_of_run(folder) for folder in kept]


def _model(model: str) -> Measured:
    folder = checkpoint.model_folder(model)
    absolute = folder.absolute()
    if absolute.parent.name == "checkpoints" and absolute in checkpoint.saved(absolute.parents[1]):
        return _of_run(absolute)
    return Measured(model, folder, checkpoint.weights_hash(folder))


def _of_run(folder: Path) -> Measured:
    milestone = checkpoint.milestone(folder)
    progress = milestone or read_json(folder / checkpoint.TRAINING_STATE / "state.json").get("progress", {})
    weights, run_dir = checkpoint.weights_hash(folder), folder.absolute().parents[1]
    return Measured(folder.name, folder, weights, run_dir, checkpoint.step_of(folder), progress.get("tokens"))


# Tasks ---------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _as_data() -> Iterator[None]:
    """While the block runs, lm-eval's templates are in a sandbox, it fetches no metric, and it warns of nothing."""
    import datasets

    try:
        from lm_eval import utils
        from lm_eval.api import metrics  # noqa: F401 (its own metrics, before `evaluate` is out of reach)
    except ImportError:
        raise UserError("needs lm-eval; pip install 'hf_gpt[eval]'", field="tasks") from None
    from jinja2.sandbox import SandboxedEnvironment

    templates, logger, fetched = utils.env, logging.getLogger("lm_eval"), sys.modules.get("evaluate")
    level, had_bars = logger.level, datasets.is_progress_bar_enabled()
    utils.env = SandboxedEnvironment(undefined=templates.undefined, keep_trailing_newline=True)
    utils.env.filters |= templates.filters
    sys.modules["evaluate"] = None  # its `load` runs code from the Hub
    logger.setLevel(logging.CRITICAL)
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        utils.env = templates
        logger.setLevel(level)
        if had_bars:
            datasets.enable_progress_bars()
        sys.modules.pop("evaluate")
        if fetched is not None:
            sys.modules["evaluate"] = fetched


def _load_tasks(names: Sequence[str], include_path: str | None, num_fewshot: int | None) -> list[Task]:
    from lm_eval.tasks import TaskManager

    names = list(dict.fromkeys(name for name in names if name))
    if not names:
        raise UserError("names no task", field="tasks")
    manager, local = None, set()
    if include_path is not None:
        folder = local_path(include_path, "include_path")
        if not folder.is_dir():
            raise UserError("no such folder", field="include_path", value=include_path)
        for file in sorted(folder.rglob("*.yaml")):
            _refuse_code(file)
        manager = TaskManager(include_path=str(folder), include_defaults=False)
        local = {*manager.all_tasks}
    if missing := [name for name in names if name not in local]:
        manager = TaskManager(include_path=include_path and str(local_path(include_path)))
        for name in missing:
            if name not in manager.all_tasks:
                near = difflib.get_close_matches(name, manager.all_tasks, 1)
                what = f"did you mean {near[0]}?" if near else "`lm_eval ls tasks` lists its own"
                where = f" and {include_path}" if include_path else ""
                raise UserError(f"no such task in lm-eval{where}; {what}", field="tasks", value=name)
    loaded: list[Task] = []
    for name in names:
        with _task_errors(name), contextlib.nullcontext() if name in local else _from_the_hub(name):
            found = manager.load([name])
            tops = [name] if name in {**found["tasks"], **found["groups"]} else [*found["tasks"]]  # a tag is its tasks
            parts = [(top, found if top == name else manager.load([top])) for top in tops]
        loaded += [_task(top, part, num_fewshot) for top, part in parts]
    return loaded


def _task(name: str, loaded: Any, num_fewshot: int | None) -> Task:
    """A task with its number of examples set, as `lm_eval` sets it."""
    identity = hashlib.sha256()
    for part, task in sorted(loaded["tasks"].items()):
        unknown = [metric for metric, function in getattr(task, "_metric_fn_list", {}).items() if function is None]
        if unknown and task.config.process_results is None:
            raise UserError(f"lm-eval has no metric {unknown[0]}; others would be code", field="tasks", value=part)
        if getattr(task, "UNSAFE_CODE", False):
            raise UserError("it runs what a model writes, which is never done here", field="tasks", value=part)
        if task.config.num_fewshot is None or (num_fewshot is not None and task.config.num_fewshot != 0):
            task.set_config(key="num_fewshot", value=num_fewshot or 0)
        config = task.config.to_dict()
        for place in ("dataset_kwargs", "metadata"):  # whose version stands beside
            config.pop(place, None)
        documents = [*task.eval_docs, *(task.fewshot_docs() if task.config.num_fewshot else ())]
        identity.update(json.dumps([part, task.VERSION, config, documents], sort_keys=True, default=str).encode())
    shots = max((task.config.num_fewshot for task in loaded["tasks"].values()), default=0)
    return Task(name, loaded, identity.hexdigest(), shots)


def _refuse_code(file: Path) -> None:
    """Refuse a file of tasks that names Python code, in it or in a file that it includes."""
    problem = None
    try:
        text = (read_file(file) or b"").decode()
        tags = {getattr(event, "tag", None) for event in yaml.parse(text, yaml.SafeLoader)}
        if any(tag and not (tag.startswith(_STANDARD) and "python" not in tag) for tag in tags):
            problem = "names Python code, such as !function, which is not run here"
        else:
            for key, value in _pairs(yaml.safe_load(text)):
                if key == "class":
                    problem = "is a task in Python, which is not run here"
                elif key == "include" and isinstance(value, str):
                    included = (file.parent / value).resolve()
                    if is_there(included) and included != file:
                        _refuse_code(included)
    except (yaml.YAMLError, UnicodeError, RecursionError) as error:
        problem = f"cannot be read as YAML: {error}"
    if problem:
        raise UserError(f"{file}: {problem}", field="include_path")


def _pairs(value: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(value, dict):
        yield from value.items()
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _pairs(item)


@contextlib.contextmanager
def _task_errors(name: str) -> Iterator[None]:
    """What lm-eval raises about a task as one line: a missing field, a template that fails, a text that is gone."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and not isinstance(error, FileNotFoundError):
            raise
        raise UserError(f"{type(error).__name__}: {error}", field="tasks", value=name) from error


@contextlib.contextmanager
def _from_the_hub(name: str) -> Iterator[None]:
    """Of one of lm-eval's own tasks, what `datasets` does and what may go wrong there."""
    subject = "it is lm-eval's own, and its text is on the Hub"
    try:
        with hub_requests(subject):
            try:
                yield
            except OSError as error:  # FileNotFoundError is what datasets calls much that it did not get
                if constants.HF_HUB_OFFLINE and error.errno is None:
                    raise HubError(f"{subject}: HF_HUB_OFFLINE is set, and it is not in the cache") from None
                if isinstance(error, FileNotFoundError):
                    raise HubError(f"{subject}: {error}") from None
                raise
    except (HubError, UserError) as error:
        raise UserError(str(error), field="tasks", value=name) from None


def _try(work: Callable[[], Any], what: str, say: Callable[[str], None]) -> None:
    try:
        work()
    except (UserError, OSError) as error:
        say(f"warning: {what} could not be made again: {error}")
