"""Checkpoints go to the Hub while a run goes on, which neither waits for it nor ends because of it.

A push is a process of its own, `hf-gpt push` with the checkpoint's name: what hangs can be killed, what crashes
crashes alone, and what is left to do at the end is that very command. The loop looks at it in passing, which takes
microseconds (`Publisher.tick`). Two places are kept up to date:

    hub.branch, with the tag step-00000500      the newest checkpoint
    main                                        the best one, or without a validation text the newest

Each remembers only what it should show; a checkpoint that was overtaken before it was sent is not sent. They take
turns. After a failure a place's next attempt waits, each time longer, or as long as the Hub asked. A person is told
when something goes wrong and when it works again, not each time.
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

from ..checkpoint import name_of
from ..errors import RunPreempted
from ..recipe import HubRecipe
from ..training.observers import Observer
from ..training.signals import exit_on_preemption

_PACKAGE = Path(__file__).parent.parent
_FIRST_PAUSE, _LONGEST_PAUSE = 10.0, 600.0  # seconds

# `hf-gpt` without the package's __init__.py, which imports torch and takes a core from training for some seconds: a
# push needs none of that.
#
# Its parent holds the other end of its standard input: when a run is killed, its push ends too, and cannot meet that
# of the run that goes on.
_HF_GPT = """
import os, sys, threading, types
threading.Thread(target=lambda: (sys.stdin.read(), os._exit(1)), daemon=True).start()
package = types.ModuleType("hf_gpt")
package.__path__, package.__version__ = [sys.argv[1]], ""
sys.modules["hf_gpt"] = package
from hf_gpt.cli import main
sys.exit(main(sys.argv[2:]))
"""


@dataclass
class _Place:
    """A branch, the checkpoint that it should show, and the one it shows; and how the last attempt went."""

    branch: str
    tagged: bool
    pause: float  # after the next failure
    wanted: Path | None = None
    shown: Path | None = None
    tried: float = 0.0  # when
    not_before: float = 0.0
    trouble: str | None = None  # that a person was told of

    @property
    def is_unfinished(self) -> bool:
        return self.wanted not in (None, self.shown)


class Publisher:
    """Pushes of one run. Without a `hub.repo_id`, or with `publishes=False`, it has nothing to do."""

    def __init__(self, hub: HubRecipe, *, publishes: bool = True, first_pause: float = _FIRST_PAUSE):
        self._hub = hub
        self._first_pause = first_pause
        self.publishes = hub.repo_id is not None and publishes
        self._places: list[_Place] = []
        if self.publishes:
            self._places = [_Place(hub.branch, True, first_pause), _Place("main", False, first_pause)]
        self._process: subprocess.Popen[str] | None = None
        self._place: _Place | None = None  # that the process works on
        self._sending: Path | None = None

    def offer(self, newest: Path, best: Path | None) -> None:
        """Let the branches show these (None: as it is); what was wanted before and not yet sent is forgotten."""
        for place in self._places:
            place.wanted = (newest if place.tagged else best) or place.wanted

    @property
    def needed(self) -> set[Path]:
        """Checkpoints that must stay on disk until they are sent."""
        waiting = {place.wanted for place in self._places if place.is_unfinished}
        return waiting | ({self._sending} if self._sending else set())

    def tick(self) -> Iterator[str]:
        """See how the push under way is doing, and begin the next; yields what a person should know."""
        if self._process is not None and self._process.poll() is not None:
            place, before = self._place, self._place.trouble
            sent, answer = self._ended()
            if place.trouble is None and before is not None:
                yield f"hub: it works again; {sent.name} is at {answer['url']}"
            elif place.trouble not in (before, *(other.trouble for other in self._places if other is not place)):
                wait = place.not_before - time.monotonic()
                yield f"hub: {place.trouble}; training goes on, and the next attempt is in {wait:.0f} s"
        if self._process is None:
            now = time.monotonic()
            due = [place for place in self._places if place.is_unfinished and place.not_before <= now]
            if due:
                self._begin(min(due, key=lambda place: place.tried))

    def finish(self) -> Iterator[str]:
        """After training: what is left is sent now, each place tried once more. Ctrl-C and SIGTERM leave it."""
        told = next((place.trouble for place in self._places if place.trouble), None)
        try:
            with exit_on_preemption():
                left = [place for place in self._places if place.is_unfinished or place is self._place]
                for place in sorted(left, key=lambda place: (place is not self._place, place.tried)):
                    yield from self._finish(place, told)
                    told = place.trouble or told
        except (KeyboardInterrupt, RunPreempted):
            pass
        yield from self.left()

    def _finish(self, place: _Place, told: str | None) -> Iterator[str]:
        while (self._process is not None and self._place is place) or place.is_unfinished:
            if self._process is None:
                self._begin(place)
            where = f"{self._hub.repo_id} ({place.branch})"
            yield f"hub: sending {self._sending.name} to {where}; Ctrl-C leaves it for later"
            self._process.wait()
            sent, answer = self._ended()
            if place.trouble is None:
                yield f"hub: {sent.name} is at {answer['url']}"
            elif place.trouble != told:
                yield f"hub: {place.trouble}"
            if place.trouble is not None:
                return

    def left(self) -> Iterator[str]:
        """End what is under way; the commands that would finish the job."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = self._place = self._sending = None
        left = [place for place in self._places if place.is_unfinished]
        if left:
            commands = (shlex.join(["hf-gpt", *self._arguments(place, place.wanted)]) for place in left)
            yield "hub: not everything was sent; this sends the rest: " + " && ".join(commands)

    def _begin(self, place: _Place) -> None:
        self._place, self._sending, place.tried = place, place.wanted, time.monotonic()
        self._process = subprocess.Popen(
            [sys.executable, "-c", _HF_GPT, str(_PACKAGE), *self._arguments(place, place.wanted), "--json"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,  # a Ctrl-C in the terminal is for the run, which then decides
        )

    def _arguments(self, place: _Place, sent: Path) -> list[str]:
        arguments = ["push", str(sent.absolute()), self._hub.repo_id]
        if place.branch != "main":
            arguments += ["--revision", place.branch]
        if place.tagged:
            arguments += ["--tag", sent.name]
        if self._hub.private:
            arguments += ["--private"]
        if self._hub.with_training_state and place.tagged:
            arguments += ["--with-training-state"]
        return arguments

    def _ended(self) -> tuple[Path, dict[str, Any]]:
        """What was sent, and what came back; the place's next attempt waits if it failed."""
        printed, _ = self._process.communicate()
        code, sent, place = self._process.returncode, self._sending, self._place
        self._process = self._place = self._sending = None
        try:
            answer = json.loads(printed)
        except ValueError:
            answer = {"error": f"the process that pushes ended with {code}"}
        place.trouble = answer.get("error")
        if place.trouble is None:
            place.shown = sent
            place.pause, place.not_before = self._first_pause, 0.0
        else:
            place.not_before = time.monotonic() + max(place.pause, answer.get("retry_after") or 0.0)
            place.pause = min(2 * place.pause, _LONGEST_PAUSE)
        return sent, answer


class BackgroundPush(Observer):
    def __init__(self, hub):
        self._publisher = Publisher(hub)

    def saved(self, training, checkpoint):
        every, step = training.recipe.hub.push_every, training.progress.step
        if every is None or step % every == 0 or step == training.max_steps:
            best = training.progress.best_step
            shown = checkpoint if best is None else checkpoint.with_name(name_of(best))
            self._publisher.offer(checkpoint, shown if shown.is_dir() else None)

    def stepped(self, training, step, metrics):
        for text in self._publisher.tick():
            training.event("publishing", text, what=text.removeprefix("hub: "))

    def ended(self, training, error):
        for text in self._publisher.finish() if error is None else self._publisher.left():
            training.say(text)

    def needs(self):
        return self._publisher.needed
