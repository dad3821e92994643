"""What a run writes down while it goes: metrics, samples, and a line for whoever is watching.

`metrics.jsonl` and `samples.jsonl` hold one JSON object a line. They are appended to, so a process that dies may leave
a torn last line, and a resumed run starts before the last lines were written: `RunLog.rewind` drops both, and each
step stands in the file once. `events.jsonl` is the run's history and is never rewound: from where it went on, what was
changed, skipped, found damaged, or not finite. Only the main process has a journal that writes.

For people, on stderr: a progress bar in a terminal or notebook, and where there is neither (a log file, a batch
system) a plain line now and then, without control characters. Both show the losses so far as a row of little columns.
"""

import contextlib
import json
import math
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm
from transformers.utils import logging

from ..data.progress import shows_bar
from ..report.records import read_lines
from ..storage import flush_file, write_text

# Seconds between two progress lines in a log file.
_LINE_EVERY = 30.0
# What a sparkline is made of, and how long it is at the least once a run is so long.
_COLUMNS = "▁▂▃▄▅▆▇█"
_SPARKS = 12


class RunLog:
    """The records of one run. With `writes=False` (every process but the main one) it does nothing."""

    def __init__(
        self, run_dir: str | Path, *, max_steps: int, writes: bool = True, speaks: bool = True, tracker: Any = None
    ):
        self.metrics_path = Path(run_dir) / "metrics.jsonl"
        self.samples_path = Path(run_dir) / "samples.jsonl"
        self.events_path = Path(run_dir) / "events.jsonl"
        self.writes = writes
        self.speaks = writes and speaks
        self._tracker = tracker
        self._files: dict[Path, Any] = {}
        self._max_steps = max_steps
        self._bar: tqdm | None = None
        self._losses = _Means()
        self._start = 0
        self._started = self._last_line = 0.0

    def rewind(self, step: int) -> None:
        """Keep what was written up to `step` and drop the rest; call before the first new line."""
        if not self.writes:
            return
        for path in (self.metrics_path, self.samples_path):
            lines = [line for line in read_lines(path) if line["step"] <= step]
            write_text(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
            for line in lines:
                if "train_loss" in line:
                    self._losses.append(line["train_loss"])
        if self.events_path.exists():  # to be rid of a torn last line
            events = [json.dumps(line, ensure_ascii=False) + "\n" for line in read_lines(self.events_path)]
            write_text(self.events_path, "".join(events))
        self._start = step

    def metrics(self, step: int, **values: float) -> None:
        """One line of `metrics.jsonl`, also sent to the trackers."""
        if self.writes:
            self._append(self.metrics_path, {"step": step, **values})
            if self._tracker is not None:
                self._tracker({k: v for k, v in values.items() if isinstance(v, (int, float))}, step=step)

    def sample(self, step: int, prompt: str, text: str) -> None:
        """One line of `samples.jsonl`."""
        if self.writes:
            self._append(self.samples_path, {"step": step, "prompt": prompt, "text": text})

    def event(self, kind: str, step: int, **facts: Any) -> None:
        """One line of `events.jsonl`."""
        if self.writes:
            self._append(self.events_path, {"event": kind, "step": step, **facts})

    def progress(self, step: int, loss: float | None = None, tokens_per_second: float | None = None) -> None:
        """Move the bar to `step`; loss and speed are shown until newer ones come."""
        if not self.speaks:
            return
        if loss is not None:
            self._losses.append(loss)
        if self._bar is None:
            self._started = time.monotonic()
            self._bar = tqdm(
                total=self._max_steps,
                initial=self._start,
                desc="training",
                unit="step",
                dynamic_ncols=True,
                file=sys.stderr,
                disable=not shows_bar(),
            )
        if self._bar.disable:
            self._line(step, loss, tokens_per_second)
            return
        if loss is not None:
            words = f"loss {loss:.3f}{self._sparks()}, {tokens_per_second:,.0f} tokens/s"
            self._bar.set_postfix_str(words, refresh=False)
        self._bar.update(step - self._bar.n)

    def say(self, text: str) -> None:
        """A message for the person watching, above the bar."""
        if self.speaks:
            tqdm.write(text, file=sys.stderr)

    def flush(self) -> None:
        """Force what was written to disk, before a checkpoint relies on it."""
        for file in self._files.values():
            flush_file(file)

    def __enter__(self) -> "RunLog":
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()
        for file in self._files.values():
            file.close()
        self._files.clear()

    def _append(self, path: Path, line: dict[str, Any]) -> None:
        if path not in self._files:
            self._files[path] = open(path, "a", encoding="utf-8")  # noqa: SIM115 - open as long as the run goes
        self._files[path].write(json.dumps(line, ensure_ascii=False) + "\n")
        self._files[path].flush()

    def _line(self, step: int, loss: float | None, tokens_per_second: float | None) -> None:
        now = time.monotonic()
        if loss is None or (now - self._last_line < _LINE_EVERY and step < self._max_steps):
            return
        self._last_line = now
        rate = (now - self._started) / max(step - self._start - 1, 1)  # the clock began after the first step
        left = tqdm.format_interval(rate * (self._max_steps - step))
        speed = f"{tokens_per_second:,.0f} tokens/s"
        self.say(f"step {step}/{self._max_steps}  loss {loss:.3f}{self._sparks()}  {speed}  {left} left")

    def _sparks(self) -> str:
        """The losses so far, after a blank; nothing for a single one, or where the characters cannot be shown."""
        sparks = sparkline(self._losses.means) if len(self._losses.means) > 1 else ""
        try:
            sparks.encode(getattr(sys.stderr, "encoding", None) or "ascii")
        except (UnicodeEncodeError, LookupError):
            return ""
        return f" {sparks}" if sparks else ""


class _Means:
    """A long row of figures in few: the means of stretches, which get longer as the row does."""

    def __init__(self) -> None:
        self.means: list[float] = []
        self._stretch: list[float] = []  # the one that is not full yet
        self._length = 1

    def append(self, value: float) -> None:
        self._stretch.append(value)
        if len(self._stretch) < self._length:
            return
        self.means.append(statistics.fmean(self._stretch))
        self._stretch.clear()
        if len(self.means) == 2 * _SPARKS:
            self.means = [statistics.fmean(pair) for pair in zip(self.means[::2], self.means[1::2])]
            self._length *= 2


def sparkline(values: Sequence[float]) -> str:
    """A row of columns, the lowest value the lowest column: [3, 2, 1] is `█▅▁`. What is not finite is a blank."""
    finite = [value for value in values if math.isfinite(value)]
    low, high = min(finite, default=0.0), max(finite, default=0.0)
    scale = (len(_COLUMNS) - 1) / (high - low) if high > low else 0.0
    return "".join(_COLUMNS[round((v - low) * scale)] if math.isfinite(v) else " " for v in values)


@contextlib.contextmanager
def no_progress_bars() -> Iterator[None]:
    """Without transformers' own bars, which would cross ours."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
