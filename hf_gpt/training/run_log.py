"""The records of a run: `metrics.jsonl`, `samples.jsonl` and `events.jsonl`, one JSON object a line.

They are appended to. A process that dies may leave a torn last line, and a resumed run starts before the last lines
were written, so metrics and samples are first cut back to the step that it resumes from: each step stands in a file
once. `events.jsonl` is the run's history and is never cut back: where it resumed, what was changed, skipped, found
damaged, or not finite.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from ..errors import UserError, without_secrets
from ..storage import flush_file, write_text
from .observers import Observer

if TYPE_CHECKING:
    from .loop import TrainingRun


class RunLog(Observer):
    """Writes the records of one run. A run whose records cannot be written must end."""

    required = True

    def __init__(self, run_dir: Path):
        self._metrics, self._samples, self._events = (
            run_dir / name for name in ("metrics.jsonl", "samples.jsonl", "events.jsonl")
        )
        self._files: dict[Path, Any] = {}

    def began(self, training: "TrainingRun") -> None:
        step = training.progress.step if training.resumed_from else -1
        for path in (self._metrics, self._samples):
            _rewrite(path, [line for line in read_lines(path) if line["step"] <= step])
        if self._events.exists():  # without a torn last line
            _rewrite(self._events, read_lines(self._events))

    def stepped(self, training: "TrainingRun", step: int, metrics: dict[str, Any] | None) -> None:
        if metrics is not None:
            self._append(self._metrics, metrics)

    def evaluated(
        self, training: "TrainingRun", step: int, metrics: dict[str, Any], samples: Sequence[Mapping[str, Any]]
    ) -> None:
        self._append(self._metrics, metrics)
        for sample in samples:
            self._append(self._samples, dict(sample))

    def noted(self, training: "TrainingRun", kind: str | None, message: str | None, facts: Mapping[str, Any]) -> None:
        if kind is not None:
            self._append(self._events, {"event": kind, **facts})

    def saving(self, training: "TrainingRun", directory: Path) -> None:
        """What was recorded before a checkpoint is on disk before it."""
        for file in self._files.values():
            flush_file(file)

    def ended(self, training: "TrainingRun", error: BaseException | None) -> None:
        for file in self._files.values():
            file.close()
        self._files.clear()

    def _append(self, path: Path, line: Mapping[str, Any]) -> None:
        if path not in self._files:
            self._files[path] = open(path, "a", encoding="utf-8")  # noqa: SIM115 - open as long as the run lasts
        text = _json_line(line)
        self._files[path].write(without_secrets(text) if path == self._events else text)
        self._files[path].flush()


def read_metrics(run_dir: str | Path) -> list[dict[str, Any]]:
    """The lines of a run's `metrics.jsonl`, oldest first.

    Raises:
        UserError: the directory holds no run.
    """
    path = Path(run_dir) / "metrics.jsonl"
    if not path.is_file():
        raise UserError(f"{run_dir}: not a run: there is no metrics.jsonl in it")
    return read_lines(path)


def read_events(run_dir: str | Path) -> list[dict[str, Any]]:
    """The lines of a run's `events.jsonl`; a change is `{"event": "changed", "step", "field", "old", "new"}`.

    Version 0.1 wrote a change as `"what": "train.max_steps 6 -> 8"`.
    """
    events = read_lines(Path(run_dir) / "events.jsonl")
    for event in events:
        if event.get("event") == "changed" and "field" not in event:
            field, _, values = str(event.get("what")).partition(" ")
            old, _, new = values.partition(" -> ")
            event |= {"field": field, "old": _value(old), "new": _value(new)}
    return events


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a .jsonl file of a run; a torn last line is left out, a missing file has none.

    Raises:
        UserError: another line is damaged.
    """
    lines = path.read_bytes().split(b"\n")[:-1] if path.is_file() else []
    found = []
    for number, line in enumerate(lines, start=1):
        try:
            if line:
                found.append(json.loads(line))
        except ValueError:
            raise UserError(f"{path}: line {number} is damaged; remove it, or the file") from None
    return found


def _rewrite(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    write_text(path, "".join(map(_json_line, lines)))


def _json_line(line: Mapping[str, Any]) -> str:
    return json.dumps(line, ensure_ascii=False) + "\n"


def _value(text: str) -> Any:
    """A value as Python prints it, as far as YAML reads it."""
    try:
        return None if text == "None" else yaml.safe_load(text)
    except yaml.YAMLError:
        return text
