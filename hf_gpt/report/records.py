"""All files of a run, read back: what its report is made from.

A run may be training still, have died, or come from another machine, so nothing but `metrics.jsonl` must be there.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from .. import checkpoint
from ..display import Shown
from ..errors import UserError
from ..storage import is_there, local_path, read_file, read_json
from ..texts import VALIDATION, evaluated_in, judging, text_of
from ..training.run_log import read_events, read_lines, read_metrics
from ..yaml_text import load_yaml

_LARGEST = 1e30  # a larger number cannot be drawn


@dataclass(frozen=True, repr=False)
class RunRecord(Shown):
    """What a run has left so far."""

    run_dir: Path
    metrics: list[dict[str, Any]]  # in the order they were written
    samples: list[dict[str, Any]] = field(default_factory=list)
    benchmarks: list["BenchmarkResult"] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    environment: dict[str, Any] = field(default_factory=dict)
    recipe: dict[str, Any] = field(default_factory=dict)
    recipe_text: str = ""
    checkpoints: list[int] = field(default_factory=list)  # the steps whose checkpoints are kept
    best: int | None = None  # the step that checkpoints/best names
    problems: list[str] = field(default_factory=list)  # files that could not be read

    @property
    def name(self) -> str:
        return self.run_dir.absolute().name

    def in_short(self) -> str:
        return f"{self.run_dir}, step {self.last.get('step', 0)}, {len(self.checkpoints)} checkpoints kept"

    @cached_property
    def trained(self) -> list[dict[str, Any]]:
        """The lines about training."""
        return [line for line in self.metrics if is_number(line.get("train_loss"))]

    @cached_property
    def evaluated(self) -> list[dict[str, Any]]:
        """The lines about evaluations."""
        return [line for line in self.metrics if is_number(line.get("eval_train_loss"))]

    @cached_property
    def texts(self) -> list[str]:
        """The texts that it was validated on (texts.py), in order."""
        return evaluated_in(self.evaluated)

    @property
    def judge(self) -> str | None:
        """The text that its best checkpoint follows."""
        evaluation = self.recipe.get("evaluation")
        evaluation = evaluation if isinstance(evaluation, dict) else {}
        named, best_on = evaluation.get("datasets"), evaluation.get("best_on")
        now = [VALIDATION, *map(text_of, named if isinstance(named, dict) else ())]
        texts = [text for text in now if text in self.texts] or self.texts
        return judging(texts, best_on if text_of(best_on) in texts else None)

    @property
    def last(self) -> dict[str, Any]:
        """The newest line of metrics, empty if there is none."""
        return max(self.metrics, key=lambda line: line["step"], default={})

    def points(self, *columns: str) -> tuple[Any, ...]:
        """Columns of the metrics as arrays, in the order of the first; only lines that have them all."""
        found = [[line.get(column) for column in columns] for line in self.metrics]
        found = np.array([values for values in found if all(map(is_number, values))], float).reshape(-1, len(columns))
        return tuple(found[np.argsort(found[:, 0], kind="stable")].T)


@dataclass(frozen=True)
class BenchmarkResult:
    """What a checkpoint reached in a benchmark; `label` is the task and how it was put."""

    step: int
    tokens: float | None
    weights: str
    task: str
    num_fewshot: int
    limit: int | None
    metric: str
    value: float

    @property
    def label(self) -> str:
        shots = f", {self.num_fewshot} example{'s' * (self.num_fewshot != 1)}" if self.num_fewshot else ""
        return f"{self.task}{shots}{f', first {self.limit}' if self.limit else ''}"


def read_benchmarks(run_dir: Path, say: Callable[[str], None] | None = None) -> list[BenchmarkResult]:
    """The results in a run's `evaluations.jsonl`; of those of one step, task and metric the newest.

    A step that was trained again, after resuming from before it, has other weights: results of those that it had are
    left out.
    """
    found, weights = {}, {}
    for line in read_lines(run_dir / "evaluations.jsonl", say):
        folder = run_dir / "checkpoints" / checkpoint.name_of(line["step"])
        if folder not in weights:
            weights[folder] = checkpoint.weights_hash(folder) if is_there(folder / checkpoint.MANIFEST) else None
        is_of_now = weights[folder] in (None, line.get("weights"))
        results = line.get("results") if is_of_now else None
        for task, entry in results.items() if isinstance(results, dict) else ():
            metrics = entry.get("metrics") if isinstance(entry, dict) else None
            for metric, value in metrics.items() if isinstance(metrics, dict) else ():
                if is_number(value):
                    tokens = line["tokens"] if is_number(line.get("tokens")) else None
                    how = (entry.get("num_fewshot") or 0, line.get("limit"))
                    one = BenchmarkResult(line["step"], tokens, str(line.get("weights")), task, *how, metric, value)
                    found[one.step, one.label, metric] = one
    return [*found.values()]


def read_run(run_dir: str | Path) -> RunRecord:
    """All files of a run. One that cannot be read, or lines that are none of a record, are named in `problems`.

    Raises:
        UserError: the directory holds no run, or its metrics.jsonl cannot be read.
    """
    run_dir, problems = local_path(run_dir), []

    def note(problem: str) -> None:
        problems.append(problem.replace(f"{run_dir}{os.sep}", ""))  # a report may be published

    def attempt(read: Callable[[Path], Any], name: str, kind: type) -> Any:
        try:
            found = read(run_dir / name)
            if isinstance(found, kind):
                return found
            problems.append(f"{name}: holds a {type(found).__name__}")
        except UserError as error:
            note(str(error))
        return kind()

    def text(path: Path) -> str:
        return (read_file(path) or b"").decode("utf-8", "replace")

    recipe_text = attempt(text, "recipe.yaml", str)
    best = attempt(lambda _: [checkpoint.pointed(run_dir, "best")], "checkpoints/best", list)
    best = best[0] if best else None
    return RunRecord(
        run_dir=run_dir,
        metrics=read_metrics(run_dir, note),
        samples=attempt(lambda path: read_lines(path, note), "samples.jsonl", list),
        benchmarks=attempt(lambda _: read_benchmarks(run_dir, note), "evaluations.jsonl", list),
        events=attempt(lambda _: read_events(run_dir, note), "events.jsonl", list),
        environment=attempt(read_json, "environment.json", dict),
        recipe=attempt(lambda path: load_yaml(recipe_text, str(path)) or {}, "recipe.yaml", dict),
        recipe_text=recipe_text,
        checkpoints=attempt(
            lambda _: [*map(checkpoint.step_of, checkpoint.checkpoints(run_dir))], "checkpoints", list
        ),
        best=checkpoint.step_of(best) if best else None,
        problems=problems,
    )


def common_texts(runs: Sequence[RunRecord]) -> list[str]:
    """The texts that all of these runs were validated on; by the first of them they are compared."""
    return [text for text in runs[0].texts if all(text in run.texts for run in runs)]


def has_losses(metrics: list[dict[str, Any]]) -> bool:
    """Whether there is something to draw."""
    return any("train_loss" in line or "eval_train_loss" in line for line in metrics)


def is_number(value: Any) -> bool:
    """Whether a value of a metrics file can be drawn."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < _LARGEST
