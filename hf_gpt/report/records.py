"""All files of a run, read back: what its report is made from.

A run may be training still, have died, or come from another machine, so nothing but `metrics.jsonl` must be there.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from .. import checkpoint
from ..display import Shown
from ..errors import UserError
from ..storage import local_path, read_json
from ..training.run_log import read_lines, read_metrics

_LARGEST = 1e30  # a larger number cannot be drawn


@dataclass(frozen=True, repr=False)
class RunRecord(Shown):
    """What a run has left so far."""

    run_dir: Path
    metrics: list[dict[str, Any]]  # in the order they were written
    samples: list[dict[str, Any]] = field(default_factory=list)
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

    @property
    def last(self) -> dict[str, Any]:
        """The newest line of metrics, empty if there is none."""
        return max(self.metrics, key=lambda line: line["step"], default={})

    def points(self, x: str, y: str) -> tuple[Any, Any]:
        """Two columns of the metrics as arrays, in the order of the first; only lines that have both."""
        found = np.array(
            [(line[x], line[y]) for line in self.metrics if is_number(line.get(x)) and is_number(line.get(y))],
            dtype=float,
        ).reshape(-1, 2)
        return tuple(found[np.argsort(found[:, 0], kind="stable")].T)


def read_run(run_dir: str | Path) -> RunRecord:
    """All files of a run. One that cannot be read is named in `problems`.

    Raises:
        UserError: the directory holds no run, or its metrics.jsonl is damaged.
    """
    run_dir, problems = local_path(run_dir), []

    def attempt(read: Callable[[Path], Any], name: str, kind: type) -> Any:
        try:
            found = read(run_dir / name)
            if isinstance(found, kind):
                return found
            problems.append(f"{name}: holds a {type(found).__name__}")
        except (UserError, OSError, ValueError, yaml.YAMLError) as error:
            problems.append(f"{name}: {str(error).splitlines()[0] if str(error) else type(error).__name__}")
        return kind()

    def text(path: Path) -> str:
        return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""

    recipe_text = attempt(text, "recipe.yaml", str)
    best = checkpoint.pointed(run_dir, "best")
    return RunRecord(
        run_dir=run_dir,
        metrics=with_step(read_metrics(run_dir)),
        samples=[line for line in with_step(attempt(read_lines, "samples.jsonl", list)) if "text" in line],
        events=with_step(attempt(read_lines, "events.jsonl", list)),
        environment=attempt(read_json, "environment.json", dict),
        recipe=attempt(lambda _: yaml.safe_load(recipe_text) if recipe_text else {}, "recipe.yaml", dict),
        recipe_text=recipe_text,
        checkpoints=[checkpoint.step_of(path) for path in checkpoint.checkpoints(run_dir)],
        best=checkpoint.step_of(best) if best else None,
        problems=problems,
    )


def has_losses(metrics: list[dict[str, Any]]) -> bool:
    """Whether there is something to draw."""
    return any("train_loss" in line or "eval_train_loss" in line for line in metrics)


def is_number(value: Any) -> bool:
    """Whether a value of a metrics file can be drawn."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < _LARGEST


def with_step(lines: list[Any]) -> list[dict[str, Any]]:
    """The lines that are objects with a step: whatever else stands in a file is not the trainer's."""
    return [line for line in lines if isinstance(line, dict) and isinstance(line.get("step"), int)]
