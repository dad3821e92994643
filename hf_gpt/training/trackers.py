"""Experiment trackers (tensorboard, wandb, trackio ...), through accelerate.

A tracker gets the recipe once, and the metrics of each train and eval line. A resumed run continues the tracker's
own run, which it finds by the id in `environment.json`.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

from ..errors import UserError
from ..recipe import Recipe, flat
from .observers import Observer

if TYPE_CHECKING:
    from .loop import TrainingRun


def refuse_missing_trackers(names: Sequence[str]) -> None:
    """Raises :class:`UserError` for a tracker that accelerate does not know, or that is not installed."""
    known, here = {str(name) for name in LOGGER_TYPE_TO_CLASS}, {str(name) for name in get_available_trackers()}
    for name in names:
        if name not in known:
            raise UserError(f"tracking.to: unknown tracker '{name}'; valid names: {', '.join(sorted(known))}")
        if name not in here:
            raise UserError(f"tracking.to: {name} is not installed; pip install {name}")


class Trackers(Observer):
    """Sends the metrics of a run to the trackers in `tracking.to`."""

    def began(self, training: "TrainingRun") -> None:
        job, run_id = training.job, training.environment["run_id"]
        known = job.earlier is not None and set(job.recipe.tracking.to) <= set(job.earlier.tracking.to)
        known = known and training.resumed_from is not None  # else the trackers' run begins too
        name = f"{training.run_dir.name}-{run_id}"
        training.accelerator.init_trackers(
            training.run_dir.name,
            config=None if known else tracker_config(job.recipe),
            init_kwargs={
                "tensorboard": {"purge_step": training.progress.step + 1},
                "wandb": {"id": run_id, "name": name, "resume": "allow"},
                "trackio": {"name": name, "resume": "allow"},
            },
        )

    def stepped(self, training: "TrainingRun", step: int, metrics: dict[str, Any] | None) -> None:
        if metrics is not None:
            _log(training, step, metrics)

    def evaluated(
        self, training: "TrainingRun", step: int, metrics: dict[str, Any], samples: Sequence[Mapping[str, Any]]
    ) -> None:
        _log(training, step, metrics)

    def ended(self, training: "TrainingRun", error: BaseException | None) -> None:
        for tracker in training.accelerator.trackers:
            tracker.finish()


def tracker_config(recipe: Recipe) -> dict[str, Any]:
    """The fields of a recipe by `section.key`; tensorboard takes no null and no list."""
    return {name: value if isinstance(value, (bool, int, float, str)) else str(value) for name, value in flat(recipe)}


def _log(training: "TrainingRun", step: int, metrics: Mapping[str, Any]) -> None:
    numbers = {name: value for name, value in metrics.items() if isinstance(value, (int, float)) and name != "step"}
    training.accelerator.log(numbers, step=step)
