"""What all benchmarks share: taking turns, whole processes, and a result."""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass
class Result:
    """What a benchmark found. `ratio` is ours / peer: whether more or less of it is better, `target` says."""

    name: str
    ours: float
    peer: float
    unit: str
    target: str
    more: dict[str, Any] = field(default_factory=dict)

    @property
    def ratio(self) -> float:
        return self.ours / self.peer

    def as_json(self) -> str:
        fields = {"name": self.name, "ours": self.ours, "peer": self.peer, "unit": self.unit, "ratio": self.ratio}
        return json.dumps({**fields, "target": self.target, **self.more})


class NotMeasured(Exception):
    """What a benchmark needs is not here."""


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def in_turn(
    ours: Callable[[], float], peer: Callable[[], float], runs: int = 5, warmup: bool = True
) -> tuple[float, float]:
    """The median figure of each, run in turn, after one run of each that does not count."""
    if warmup:
        ours(), peer()
    figures = [(ours(), peer()) for _ in range(runs)]
    return statistics.median(a for a, _ in figures), statistics.median(b for _, b in figures)


# For a process to say how much memory it ever had. Not `ru_maxrss`, in which the memory of whoever started it counts.
PEAK_OF_THIS_PROCESS = """
[peak] = [line for line in open("/proc/self/status") if line.startswith("VmHWM")]
peak_bytes = int(peak.split()[1]) * 1024
"""


def seconds(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


@dataclass
class Process:
    """A command that has ended: how long it took from its start, when that was, and the lines it printed."""

    seconds: float
    printed: list[str]
    began: float


def process(*command: str | Path, env: dict[str, str] | None = None, quiet: bool = False) -> Process:
    """Run a command to its end, without its standard error if `quiet`; one that fails ends the benchmark."""
    began, clock = time.time(), time.perf_counter()
    child = subprocess.Popen(
        [str(part) for part in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL if quiet else None,
        text=True,
        env={**os.environ, **(env or {})},
    )
    printed = child.stdout.read().splitlines()
    if code := child.wait():
        raise SystemExit(f"{' '.join(map(str, command))}: ended with {code}")
    return Process(time.perf_counter() - clock, printed, began)
