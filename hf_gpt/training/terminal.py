"""What a person sees of a run while it trains, on stderr.

A progress bar in a terminal or notebook; where there is neither (a log file, a batch system) a plain line now and
then, without control characters. Both show the losses so far as a sparkline. Messages stand above the bar.
"""

import math
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm

from ..data.progress import shows_bar
from ..display import duration, escape_unprintable, short_number
from ..texts import is_further, label_of
from .observers import Observer
from .run_log import read_lines

if TYPE_CHECKING:
    from .loop import TrainingRun

_LINE_EVERY = 30.0  # seconds between two progress lines in a log file
_SAMPLE_SHOWN = 116  # characters of a sample; samples.jsonl has all of it
_LINE_LENGTH = 140  # of an evaluation's line, before texts are left out of it
_COLUMNS = "▁▂▃▄▅▆▇█"
_LARGEST = 1e30  # of a loss that is drawn
_SPARKLINE_LENGTH = 12  # columns at least, once a run is that long


class Terminal(Observer):
    """The progress bar or lines of one run, its evaluations, samples and messages."""

    def __init__(self) -> None:
        self._bar: tqdm | None = None
        self._losses = _RunningMeans()
        self._began = self._started = self._last_line = self._seconds_before = 0.0

    def began(self, training: "TrainingRun") -> None:
        self._began, self._first_step = time.monotonic(), training.progress.step
        if training.resumed_from is not None:
            for line in read_lines(training.run_dir / "metrics.jsonl"):
                if line["step"] <= self._first_step and "train_loss" in line:
                    self._losses.append(line["train_loss"])
                    self._seconds_before = line.get("seconds", 0.0)

    def stepped(self, training: "TrainingRun", step: int, metrics: dict[str, Any] | None) -> None:
        loss = (metrics or {}).get("train_loss")
        if loss is not None:
            self._losses.append(loss)
        if self._bar is None:
            self._started = time.monotonic()
            self._bar = tqdm(
                total=training.max_steps,
                initial=self._first_step,
                desc="training",
                unit="step",
                dynamic_ncols=True,
                file=sys.stderr,
                disable=not shows_bar(),
            )
        if self._bar.disable:
            if loss is not None:
                self._print_line(step, training.max_steps, metrics)
            return
        if loss is not None:
            shown = f"loss {loss:.3f}{self._sparkline()}, {metrics['tokens_per_second']:,.0f} tokens/s"
            self._bar.set_postfix_str(shown, refresh=False)
        self._bar.update(step - self._bar.n)

    def evaluated(
        self, training: "TrainingRun", step: int, metrics: dict[str, Any], samples: Sequence[Mapping[str, Any]]
    ) -> None:
        where = f"step {step}, epoch {metrics['epoch']:.2f}, {short_number(metrics['tokens'])} tokens"
        end = f"perplexity {metrics['perplexity']:,.1f}"
        losses = {name.removesuffix("_loss"): value for name, value in metrics.items() if name.endswith("_loss")}
        shown = {name: value for name, value in losses.items() if not is_further(name)}
        left = [name for name in losses if is_further(name)]
        while left and len(_losses(where, shown | {left[0]: losses[left[0]]}, end)) <= _LINE_LENGTH:
            text = left.pop(0)
            shown[text] = losses[text]
        _write(_losses(where, shown, f"{end}  (and {len(left)} more texts)" if left else end))
        for sample in samples:
            text = " ".join(sample["text"].split())
            _write(escape_unprintable(f"    {text}", limit=_SAMPLE_SHOWN + 4))

    def noted(self, training: "TrainingRun", kind: str | None, message: str | None, facts: Mapping[str, Any]) -> None:
        if message is not None:
            _write(message)

    def ended(self, training: "TrainingRun", error: BaseException | None) -> None:
        if self._bar is not None:
            self._bar.close()
            if error is None:
                seconds, before = time.monotonic() - self._began, self._seconds_before
                in_all = f"; {duration(before + seconds)} in all" if before else ""
                _write(f"done       in {duration(seconds)}{in_all}")

    def _print_line(self, step: int, max_steps: int, metrics: Mapping[str, Any]) -> None:
        now = time.monotonic()
        if now - self._last_line < _LINE_EVERY and step < max_steps:
            return
        self._last_line = now
        rate = (now - self._started) / max(step - self._first_step - 1, 1)  # the clock began after the first step
        left = tqdm.format_interval(rate * (max_steps - step))
        loss, speed = metrics["train_loss"], metrics["tokens_per_second"]
        _write(f"step {step}/{max_steps}  loss {loss:.3f}{self._sparkline()}  {speed:,.0f} tokens/s  {left} left")

    def _sparkline(self) -> str:
        """The losses so far, after a blank; nothing for a single one, or where stderr lacks the characters."""
        line = sparkline(self._losses.means) if len(self._losses.means) > 1 else ""
        try:
            line.encode(getattr(sys.stderr, "encoding", None) or "ascii")
        except (UnicodeEncodeError, LookupError):
            return ""
        return f" {line}" if line else ""


def _losses(where: str, losses: Mapping[str, float], end: str) -> str:
    """The line of an evaluation; texts that `evaluation.datasets` names are called by their names alone."""
    names = {text: label_of(text) if is_further(text) else text.replace("_", " ") for text in losses}
    return f"{where}: {'  '.join(f'{names[text]} {loss:.3f}' for text, loss in losses.items())}  {end}"


def sparkline(values: Sequence[float]) -> str:
    """A row of columns, the lowest value the lowest column: [3, 2, 1] is `█▅▁`. What is not finite is a blank."""
    finite = [value for value in values if math.isfinite(value)]
    low, high = min(finite, default=0.0), max(finite, default=0.0)
    scale = (len(_COLUMNS) - 1) / (high - low) if high > low else 0.0
    return "".join(_COLUMNS[round((v - low) * scale)] if math.isfinite(v) else " " for v in values)


class _RunningMeans:
    """A long row of values in few: the means of stretches, which get longer as the row does."""

    def __init__(self) -> None:
        self.means: list[float] = []
        self._stretch: list[float] = []  # the one that is not full yet
        self._length = 1

    def append(self, value: float) -> None:
        if not abs(value) < _LARGEST:
            return
        self._stretch.append(value)
        if len(self._stretch) < self._length:
            return
        self.means.append(statistics.fmean(self._stretch))
        self._stretch.clear()
        if len(self.means) == 2 * _SPARKLINE_LENGTH:
            self.means = [statistics.fmean(pair) for pair in zip(self.means[::2], self.means[1::2])]
            self._length *= 2


def _write(text: str) -> None:
    tqdm.write(escape_unprintable(text), file=sys.stderr)
