"""The records of a run: `metrics.jsonl`, `samples.jsonl` and `events.jsonl`, one JSON object a line.

They are appended to. A process that dies may leave a torn last line, and a resumed run starts before the last lines
were written, so metrics and samples are first cut back to the step that it resumes from: each step stands in a file
once. `events.jsonl` is the run's history and is never cut back: where it resumed, what was changed, skipped, found
damaged, or not finite.

Whoever reads them gets lines of the right shape, and is told which others were left out: a disk or another program
may have written there, also while the run trains. Records are not worth a checkpoint: lines that cannot be written
wait for the next one, and the run goes on.
"""

import contextlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checkpoint import TRAINING_STATE
from ..errors import UserError, without_secrets
from ..storage import (
    append,
    flush_path,
    is_there,
    name_aside,
    parse_json,
    read_file,
    read_json,
    refusing_unreadable,
    write_bytes,
    write_json,
)
from ..texts import is_further
from ..yaml_text import load_yaml
from .observers import Observer

if TYPE_CHECKING:
    from .loop import TrainingRun

_COUNTS = f"{TRAINING_STATE}/records.json"  # of a checkpoint: how many lines there were, by file
_NUMBERS = {
    *("step", "tokens", "words", "epoch", "seconds", "train_loss", "lr", "grad_norm", "tokens_per_second", "skipped"),
    *("mfu", "aux_loss", "peak_memory_bytes", "eval_train_loss", "validation_loss", "perplexity", "bits_per_byte"),
}
Say = Callable[[str], None]


class RunLog(Observer):
    """Writes the records of one run."""

    def __init__(self, run_dir: Path):
        self._metrics, self._samples, self._events = (
            run_dir / name for name in ("metrics.jsonl", "samples.jsonl", "events.jsonl")
        )
        self._counts: dict[str, int] = {}
        self._waiting: dict[Path, list[bytes]] = {}  # lines that could not be written yet

    def began(self, training: "TrainingRun") -> None:
        step = training.progress.step if training.resumed_from else -1
        found = {path: _read(path) for path in (self._metrics, self._samples, self._events)}
        for path, (lines, _) in found.items():
            if path != self._events:
                lines[:] = [(raw, line) for raw, line in lines if line["step"] <= step]
                self._counts[path.name] = len(lines)
            if is_there(path):
                with refusing_unreadable(path):
                    append(path, b"")  # now, not after the first step
        problems = []
        for path, (lines, problem) in found.items():
            content = b"".join(raw + b"\n" for raw, _ in lines)
            before = read_file(path)
            if before != content and (before is not None or path != self._events):
                if problem:
                    problems.append(f"{problem}; the file as it was is {name_aside(path).name}")
                    write_bytes(name_aside(path), before)
                write_bytes(path, content)
        for problem in problems:
            what = problem.replace(f"{training.run_dir}{os.sep}", "")  # events may be published
            training.event("damaged record", f"warning: {problem}", what=what)
        if training.resumed_from is not None and training.resumed_from.parents[1] == training.run_dir:
            self._note_missing(training, {path: [line for _, line in found[path][0]] for path in found})

    def _note_missing(self, training: "TrainingRun", kept: Mapping[Path, Sequence[Mapping[str, Any]]]) -> None:
        """Say which lines from before the checkpoint are gone: the run goes on, and cannot write them again."""
        written, end = read_json(training.resumed_from / _COUNTS), training.progress.step
        evaluated = {line["step"] for path in kept for line in kept[path] if {"eval_train_loss", "text"} & line.keys()}
        for path in (self._metrics, self._samples):
            count, steps = written.get(path.name), {line["step"] for line in kept[path]}
            if not isinstance(count, int) or len(kept[path]) >= count:
                continue
            every = training.recipe.train.log_every if path == self._metrics else end + 1
            due = [s for s in range(end + 1) if s in evaluated or training.evaluates_at(s) or (s and s % every == 0)]
            gone = [step for step in due if step not in steps] or [0, end]
            where = f"between steps {gone[0]} and {gone[-1]}" if len(gone) > 1 else f"of step {gone[0]}"
            what = f"{path.name}: {count - len(kept[path])} of the {count} lines up to step {end} are missing, {where}"
            message = f"warning: {path.with_name(what)}; training goes on without them"
            training.event("missing lines", message, what=what)

    def stepped(self, training: "TrainingRun", step: int, metrics: dict[str, Any] | None) -> None:
        if metrics is not None:
            self._append(training, self._metrics, metrics)

    def evaluated(
        self, training: "TrainingRun", step: int, metrics: dict[str, Any], samples: Sequence[Mapping[str, Any]]
    ) -> None:
        self._append(training, self._metrics, metrics)
        for sample in samples:
            self._append(training, self._samples, dict(sample))

    def noted(self, training: "TrainingRun", kind: str | None, message: str | None, facts: Mapping[str, Any]) -> None:
        if kind is not None:
            self._append(training, self._events, {"event": kind, **facts})

    def saving(self, training: "TrainingRun", directory: Path) -> None:
        """What was recorded before a checkpoint is on disk before it."""
        with contextlib.suppress(OSError):
            for path in (self._metrics, self._samples, self._events):
                if path.is_file():
                    flush_path(path)
            write_json(directory / _COUNTS, self._counts)

    def ended(self, training: "TrainingRun", error: BaseException | None) -> None:
        for path in [path for path, lines in self._waiting.items() if lines]:
            self._append(training, path)
            if lines := self._waiting[path]:
                training.say(f"warning: {path}: {len(lines)} lines could not be written")

    def _append(self, training: "TrainingRun", path: Path, line: Mapping[str, Any] | None = None) -> None:
        waiting = self._waiting.setdefault(path, [])
        if line is not None:
            text = json.dumps(line, ensure_ascii=False, default=str) + "\n"
            text = without_secrets(text) if path == self._events else text
            waiting.append(text.encode("utf-8", "backslashreplace"))  # half a character, as JSON writes it
            if path != self._events:
                self._counts[path.name] += 1
        try:
            append(path, b"".join(waiting))
            waiting.clear()
        except OSError as error:
            if len(waiting) == 1 and line is not None:
                why = f"cannot be written: {error.strerror or error}"
                training.say(f"warning: {path}: {why}; training goes on, and its lines wait until it can")


def read_metrics(run_dir: str | Path, say: Say | None = None) -> list[dict[str, Any]]:
    """The lines of a run's `metrics.jsonl`, oldest first; what else stands in the file is left out, and told to `say`.

    Raises:
        UserError: the directory holds no run, or the file cannot be read.
    """
    path = Path(run_dir) / "metrics.jsonl"
    if not is_there(path):
        raise UserError(f"{run_dir}: not a run: there is no metrics.jsonl in it")
    return read_lines(path, say)


def read_events(run_dir: str | Path, say: Say | None = None) -> list[dict[str, Any]]:
    """The lines of a run's `events.jsonl`; a change is `{"event": "changed", "step", "field", "old", "new"}`.

    Version 0.1 wrote a change as `"what": "train.max_steps 6 -> 8"`.
    """
    events = read_lines(Path(run_dir) / "events.jsonl", say)
    for event in events:
        if event["event"] == "changed" and "field" not in event:
            field, _, values = str(event.get("what")).partition(" ")
            old, _, new = values.partition(" -> ")
            event |= {"field": field, "old": _value(old), "new": _value(new)}
    return events


def read_lines(path: Path, say: Say | None = None) -> list[dict[str, Any]]:
    """The lines of a record of a run, oldest first; a missing file has none.

    A torn last line is left out, as of a run that is writing it. What else is no line of such a record is left out
    too, and told to `say`.

    Raises:
        UserError: the file cannot be read.
    """
    lines, problem = _read(path)
    if problem and say is not None:
        say(problem)
    return [line for _, line in lines]


def _read(path: Path) -> tuple[list[tuple[bytes, dict[str, Any]]], str | None]:
    """The lines of a record, raw and read, and what was left out."""
    *raw_lines, last = (read_file(path) or b"").split(b"\n")
    found, odd = [], []
    for number, raw in enumerate([*raw_lines, last], start=1):
        if not raw.strip():
            continue
        try:
            line = parse_json(raw)
        except ValueError:
            line = None
        if _is_line(path.name, line):
            found.append(
                (raw, {key: value for key, value in line.items() if value is not None or not _is_figure(key)})
            )
        elif number <= len(raw_lines) or not raw.startswith(b"{"):
            odd.append(number)
    if not odd:
        return found, None
    more = f" (and {len(odd) - 1} more)" if len(odd) > 1 else ""
    return found, f"{path}: line {odd[0]} is damaged{more} and left out"


def _is_line(record: str, line: Any) -> bool:
    """Whether a value is a line of the record of this name."""
    if not isinstance(line, dict) or not _is_number(line.get("step")) or not isinstance(line["step"], int):
        return False
    if line["step"] < 0:
        return False
    if record == "metrics.jsonl":
        return all(value is None or _is_number(value) for name, value in line.items() if _is_figure(name))
    if record == "samples.jsonl":
        return isinstance(line.get("prompt"), str) and isinstance(line.get("text"), str)
    return record != "events.jsonl" or isinstance(line.get("event"), str)


def _is_figure(name: str) -> bool:
    """Whether this is a number in every line of metrics that has it; observers may add others."""
    return name in _NUMBERS or is_further(name)


def _is_number(value: Any) -> bool:
    """Also one that is not finite: a norm of fp16 may be."""
    return isinstance(value, float) or (isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63)


def _value(text: str) -> Any:
    """A value as Python prints it, as far as YAML reads it."""
    try:
        return None if text == "None" else load_yaml(text, "a value")
    except UserError:
        return text
