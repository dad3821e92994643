"""Steps of a check, each a process of its own with a time limit, and what they found as one report.

A step prints a row of its table, as a line of JSON, as soon as it has one: what it found before it failed, hung or ran
out of memory is in the report, and the other steps go on. A row with `ok: False` is a failure too.
"""

import contextlib
import json
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

Row = dict[str, Any]


@dataclass
class Step:
    """What a step does, within how many seconds, and what came out. One that measures has the machine `alone`."""

    title: str
    work: Callable[..., Iterator[Row]]
    limit: int
    alone: bool = False
    rows: list[Row] = field(default_factory=list)
    took: str = "not run"
    problem: str | None = None
    log: str = ""

    @property
    def failed(self) -> bool:
        return self.problem is not None or any(row.get("ok") is False for row in self.rows)

    def run(self, command: list[str], folder: Path, environment: dict[str, str], seconds: float) -> None:
        """Start `command`, whose output goes to files in `folder`; what it started ends with it."""
        began = time.monotonic()
        with (folder / "rows").open("w") as rows, (folder / "log").open("w") as log:
            child = subprocess.Popen(command, env=environment, stdout=rows, stderr=log)
            try:
                code = child.wait(seconds)
                self.problem = f"it ended with {code}" if code else None
            except subprocess.TimeoutExpired:
                self.problem = f"it was ended after {seconds:.0f} s"
                for process in [*psutil.Process(child.pid).children(recursive=True), child]:
                    with contextlib.suppress(psutil.NoSuchProcess):
                        process.kill()
                child.wait()
        self.took, self.log = f"{time.monotonic() - began:.0f} s", (folder / "log").read_text(errors="replace")
        for line in (folder / "rows").read_text(errors="replace").splitlines():
            with contextlib.suppress(ValueError):  # half a row, or what else was printed
                self.rows.append(dict(json.loads(line)))


def keep(steps: dict[str, Step], folder: Path) -> None:
    """The report, what it was made from, and what the steps said meanwhile."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.md").write_text(report(steps) + "\n")
    found = {name: {"failed": step.failed, "took": step.took, "rows": step.rows} for name, step in steps.items()}
    (folder / "report.json").write_text(json.dumps(found, indent=1) + "\n")
    (folder / "log.txt").write_text("".join(f"==== {name}\n{step.log}\n" for name, step in steps.items()))


def report(steps: dict[str, Step]) -> str:
    """All that was found, as Markdown."""
    failed = ", ".join(name for name, step in steps.items() if step.failed)
    lines = [f"Failed: {failed}." if failed else "No step failed."]
    for number, (name, step) in enumerate(steps.items(), start=1):
        lines += ["", f"## {number}. {name}: {step.title} ({step.took})", "", *table(step.rows)]
        if step.failed:
            end = step.log.strip().splitlines()[-12:]
            lines += ["", f"**Failed**: {step.problem or 'see the rows above'}.", "", "````", *end, "````"]
    return "\n".join(lines)


def table(rows: list[Row]) -> list[str]:
    """Rows as a Markdown table with the columns of all of them."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    cells = [columns, ["---"] * len(columns), *([_shown(row.get(column)) for column in columns] for row in rows)]
    return [f"| {' | '.join(line)} |" for line in cells] if rows else []


def _shown(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "", True: "yes", False: "**no**"}[value]
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return str(value).replace("|", "\\|").replace("\n", " ")
