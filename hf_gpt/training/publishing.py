"""Checkpoints go to the Hub while a run goes on, which neither waits for it nor ends because of it.

A push is a process of its own, `hf-gpt push` with the checkpoint's name: what hangs can be killed, what crashes
crashes alone, and what is left to do at the end is that very command. The loop looks at it in passing, which takes
microseconds (`Publisher.tick`). Two places are kept up to date:

    hub.branch, with the tag step-00000500      the newest checkpoint
    main                                        the best one, or without a validation text the newest

Each remembers only what it should show; a checkpoint that was overtaken before it was sent is not sent. After a
failure the next attempt waits, each time longer, or as long as the Hub asked. A person is told when something goes
wrong and when it works again, not each time.
"""

import json
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..recipe import HubRecipe

_PACKAGE = Path(__file__).parent.parent
_FIRST_PAUSE, _LONGEST_PAUSE = 10.0, 600.0  # seconds

# `hf-gpt` without the package's __init__.py, which imports torch and takes a core from training for some seconds: a
# push needs none of that.
_HF_GPT = """
import sys, types
package = types.ModuleType("hf_gpt")
package.__path__, package.__version__ = [sys.argv[1]], ""
sys.modules["hf_gpt"] = package
from hf_gpt.cli import main
sys.exit(main(sys.argv[2:]))
"""


@dataclass
class _Place:
    """A branch, the checkpoint that it should show, and the one it shows."""

    branch: str
    tagged: bool
    wanted: Path | None = None
    shown: Path | None = None


class Publisher:
    """Pushes of one run. Without a `hub.repo_id`, or with `publishes=False`, it has nothing to do."""

    def __init__(self, hub: HubRecipe, *, publishes: bool = True, first_pause: float = _FIRST_PAUSE):
        self._hub = hub
        self._places = []
        if hub.repo_id is not None and publishes:
            self._places = [_Place(hub.branch, tagged=True), _Place("main", tagged=False)]
        self._process: subprocess.Popen[str] | None = None
        self._place: _Place | None = None  # that the process works on
        self._sending: Path | None = None
        self._first_pause = self._pause = first_pause
        self._not_before = 0.0
        self._trouble: str | None = None  # that a person was told of

    def offer(self, newest: Path, best: Path | None) -> None:
        """Let the branches show these (None: as it is); what was wanted before and not yet sent is forgotten."""
        for place in self._places:
            place.wanted = (newest if place.tagged else best) or place.wanted

    @property
    def needed(self) -> set[Path]:
        """Checkpoints that must stay on disk until they are sent."""
        waiting = {place.wanted for place in self._places if place.wanted not in (None, place.shown)}
        return waiting | ({self._sending} if self._sending else set())

    def tick(self) -> Iterator[str]:
        """See how the push under way is doing, and begin the next; yields what a person should know."""
        if self._process is not None and self._process.poll() is not None:
            before = self._trouble
            sent, answer = self._ended()
            if self._trouble is None and before is not None:
                yield f"hub: it works again; {sent.name} is at {answer['url']}"
            elif self._trouble != before:
                wait = self._not_before - time.monotonic()
                yield f"hub: {self._trouble}; training goes on, and the next attempt is in {wait:.0f} s"
        if self._process is None and self._unfinished() and time.monotonic() >= self._not_before:
            self._begin()

    def finish(self) -> Iterator[str]:
        """After training: what is left is sent now; an attempt that fails now is the last. Ctrl-C leaves it."""
        try:
            while self._unfinished():
                if self._process is None:
                    self._begin()
                where = f"{self._hub.repo_id} ({self._place.branch})"
                yield f"hub: sending {self._sending.name} to {where}; Ctrl-C leaves it for later"
                self._process.wait()
                sent, answer = self._ended()
                if self._trouble is not None:
                    yield f"hub: {self._trouble}"
                    break
                yield f"hub: {sent.name} is at {answer['url']}"
        except KeyboardInterrupt:
            pass
        yield from self.left()

    def left(self) -> Iterator[str]:
        """End what is under way; the commands that would finish the job."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = self._sending = None
        commands = [shlex.join(["hf-gpt", *self._arguments(place, place.wanted)]) for place in self._unfinished()]
        if commands:
            yield "hub: not everything was sent; this sends the rest: " + " && ".join(commands)

    def _unfinished(self) -> list[_Place]:
        return [place for place in self._places if place.wanted not in (None, place.shown)]

    def _begin(self) -> None:
        place = self._unfinished()[0]
        self._place, self._sending = place, place.wanted
        self._process = subprocess.Popen(
            [sys.executable, "-c", _HF_GPT, str(_PACKAGE), *self._arguments(place, place.wanted), "--json"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,  # a Ctrl-C in the terminal is for the run, which then decides
        )

    def _arguments(self, place: _Place, sent: Path) -> list[str]:
        arguments = ["push", str(sent), self._hub.repo_id]
        if place.branch != "main":
            arguments += ["--revision", place.branch]
        if place.tagged:
            arguments += ["--tag", sent.name]
        if self._hub.private:
            arguments += ["--private"]
        if self._hub.with_training_state:
            arguments += ["--with-training-state"]
        return arguments

    def _ended(self) -> tuple[Path, dict[str, Any]]:
        """What was sent, and what came back; the next attempt waits if it failed."""
        printed, _ = self._process.communicate()
        code, sent = self._process.returncode, self._sending
        self._process = self._sending = None
        try:
            answer = json.loads(printed)
        except ValueError:
            answer = {"error": f"the process that pushes ended with {code}"}
        self._trouble = answer.get("error")
        if self._trouble is None:
            self._place.shown = sent
            self._pause, self._not_before = self._first_pause, 0.0
        else:
            self._not_before = time.monotonic() + max(self._pause, answer.get("retry_after") or 0.0)
            self._pause = min(2 * self._pause, _LONGEST_PAUSE)
        return sent, answer
