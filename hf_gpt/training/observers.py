"""What watches a run: records, the terminal, trackers, the report, pushes to the Hub, and a user's own.

The loop knows none of them. It notifies a list of observers, in the order of the list, at the end in reverse. Two
promises hold whatever an observer does. It cannot change a run's numbers: random streams are put back after each
notification. It cannot cost a run a checkpoint: once the run has begun, an observer that raises is named in a warning
and not notified again. (`required` observers are the exception, such as the one of a replay that compares.)

    class Alarm(hf_gpt.Observer):
        def evaluated(self, training, step, metrics, samples):
            if metrics["perplexity"] > 1000:
                training.say(f"step {step}: perplexity is high")

    hf_gpt.train(recipe, observers=[Alarm()])
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from .loop import TrainingRun


class Observer:
    """Override what you need. Every process of a run notifies its own observers; only the main one saves.

    `training` is the run at work: among others `recipe`, `run_dir`, `progress`, `max_steps`, `model`, `accelerator`,
    and `say(text)` for the person who watches.
    """

    required = False
    """Whether the run ends when this observer fails."""

    def began(self, training: "TrainingRun") -> None:
        """The weights are there, new or resumed; no step was made. An error here is raised: the run does not begin.

        `training.environment` may be added to; a new run writes it to `environment.json`.
        """

    def stepped(self, training: "TrainingRun", step: int, metrics: dict[str, Any] | None) -> None:
        """A step is done. `metrics` is its train line where one is due (`train.log_every`); values may be added."""

    def evaluated(
        self, training: "TrainingRun", step: int, metrics: dict[str, Any], samples: Sequence[Mapping[str, Any]]
    ) -> None:
        """`metrics` is the eval line, to which values may be added; `samples` are `{"step", "prompt", "text"}`."""

    def saving(self, training: "TrainingRun", directory: Path) -> None:
        """A checkpoint is being written into `directory`; files that are added become a part of it."""

    def saved(self, training: "TrainingRun", checkpoint: Path) -> None:
        """The checkpoint is complete and `latest` names it. Also for the one that a run resumes from."""

    def noted(self, training: "TrainingRun", kind: str | None, message: str | None, facts: Mapping[str, Any]) -> None:
        """Something happened: an event of some `kind` with its facts, a `message` for people, or both."""

    def needs(self, training: "TrainingRun") -> Collection[Path]:
        """Checkpoints that must not be removed yet."""
        return ()

    def ended(self, training: "TrainingRun", error: BaseException | None) -> None:
        """The run is over: finished, stopped by a signal (KeyboardInterrupt, RunPreempted), or by another error."""


class Observers:
    """A list of observers, notified with one call."""

    def __init__(self, observers: Iterable[Observer]):
        self._observers = list(observers)

    def began(self, training: "TrainingRun") -> None:
        begun: list[Observer] = []
        try:
            with _random_streams_kept(training):
                for observer in self._observers:
                    observer.began(training)
                    begun.append(observer)
        except BaseException as error:
            self._observers = begun
            self.ended(training, error)
            raise

    def stepped(self, training: "TrainingRun", step: int, metrics: dict[str, Any] | None) -> None:
        self._notify("stepped", training, step, metrics, line=metrics)

    def evaluated(
        self, training: "TrainingRun", step: int, metrics: dict[str, Any], samples: Sequence[Mapping[str, Any]]
    ) -> None:
        self._notify("evaluated", training, step, metrics, [*map(MappingProxyType, samples)], line=metrics)

    def saving(self, training: "TrainingRun", directory: Path) -> None:
        self._notify("saving", training, directory)

    def saved(self, training: "TrainingRun", checkpoint: Path) -> None:
        self._notify("saved", training, checkpoint)

    def noted(self, training: "TrainingRun", kind: str | None, message: str | None, facts: Mapping[str, Any]) -> None:
        self._notify("noted", training, kind, message, MappingProxyType(facts))

    def ended(self, training: "TrainingRun", error: BaseException | None) -> None:
        self._observers.reverse()
        self._notify("ended", training, error)

    def needs(self, training: "TrainingRun") -> set[Path]:
        return {path for paths in self._notify("needs", training) for path in paths}

    def _notify(
        self, event: str, training: "TrainingRun", *arguments: Any, line: dict[str, Any] | None = None
    ) -> list[Any]:
        """What each observer answers. `line`: the metrics among the arguments; observers may add values to them."""
        answers, measured = [], dict(line or {})
        with _random_streams_kept(training):
            for observer in list(self._observers):
                try:
                    answers.append(getattr(observer, event)(training, *arguments))
                    _refuse_odd_values(line, measured)
                except Exception as error:
                    if observer.required:
                        raise
                    self._observers.remove(observer)
                    name = type(observer).__name__
                    training.say(f"warning: {name}.{event}() failed and is not called again: {error!r}")
                if line is not None:
                    line.update(measured)
        return answers


def _refuse_odd_values(line: dict[str, Any] | None, measured: Mapping[str, Any]) -> None:
    """Raises :class:`TypeError` for an added value that a line of metrics cannot hold, after removing it."""
    odd = [name for name in line or () if name not in measured and not isinstance(line[name], (int, float, str))]
    for name in odd:
        del line[name]
    if odd:
        raise TypeError(f"metrics hold numbers and strings, {odd[0]} is neither")


def _random_streams_kept(training: "TrainingRun") -> AbstractContextManager[None]:
    """Afterwards, torch's random streams are where they were."""
    device = training.accelerator.device
    devices = [device] if device.type != "cpu" else []
    return torch.random.fork_rng(devices, device_type=device.type if devices else "cuda")
