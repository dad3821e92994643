"""Push checkpoints to the Hub during training, which neither waits for a push nor ends because of one.

Each push is a process of its own, `hf-gpt push CHECKPOINT REPO_ID`: one that hangs can be killed, one that crashes
crashes alone, and what is left when training ends is that very command. Two branches are kept up to date:

    hub.branch, with tags such as step-00000500     the newest checkpoint
    main                                            the best one, or without a validation text the newest

A branch remembers only the checkpoint that it should show, so one that was overtaken before it was sent is not sent.
The branches take turns. After a failure the next attempt of a branch waits, each time longer, or as long as the Hub
asked. A failure is reported when it is a new one, and so is the first success after it.

`Publisher` is the whole of it; `BackgroundPush` is the observer that drives it from a training run.
"""

import json
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import checkpoint as checkpoints
from ..errors import RunPreempted
from ..recipe import HubRecipe
from ..training.observers import Observer
from ..training.signals import exit_on_preemption

if TYPE_CHECKING:
    from ..training.loop import TrainingRun

_PACKAGE = Path(__file__).parent.parent
_FIRST_PAUSE, _LONGEST_PAUSE = 10.0, 600.0  # seconds

# `hf-gpt`, without the package's __init__.py, which imports torch: a push does not need it, and importing it takes a
# core from training for some seconds. The child reads its standard input, whose other end the training process holds:
# when that is killed, the child ends too, and cannot race with the push of the resumed run.
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
class _Branch:
    """A branch on the Hub: the checkpoint that it should show, the one it shows, and how its last push went."""

    name: str
    is_tagged: bool
    pause: float  # seconds, after the next failure
    wanted: Path | None = None
    pushed: Path | None = None
    last_attempt: float = 0.0
    next_attempt: float = 0.0
    error: str | None = None

    @property
    def is_behind(self) -> bool:
        return self.wanted not in (None, self.pushed)


@dataclass
class _Push:
    """A push that is under way."""

    branch: _Branch
    checkpoint: Path
    process: "subprocess.Popen[str]"


class Publisher:
    """The pushes of one run, to `hub.repo_id`."""

    def __init__(self, hub: HubRecipe, *, first_pause: float = _FIRST_PAUSE):
        self._hub = hub
        self._first_pause = first_pause
        self._branches = [_Branch(hub.branch, True, first_pause), _Branch("main", False, first_pause)]
        self._push: _Push | None = None

    def offer(self, newest: Path, best: Path | None) -> None:
        """Let the branches show these checkpoints (None: as before) instead of those that are not sent yet."""
        for branch in self._branches:
            branch.wanted = (newest if branch.is_tagged else best) or branch.wanted

    @property
    def needed(self) -> set[Path]:
        """Checkpoints that must stay on disk until they are sent."""
        waiting = {branch.wanted for branch in self._branches if branch.is_behind}
        return waiting | ({self._push.checkpoint} if self._push else set())

    def tick(self) -> Iterator[str]:
        """Collect the push that has ended and start the next one, without waiting; yields messages for people."""
        if self._push is not None and self._push.process.poll() is not None:
            branch, error_before = self._push.branch, self._push.branch.error
            pushed, url, is_new_error = self._collect()
            if is_new_error:
                wait = branch.next_attempt - time.monotonic()
                yield f"hub: {branch.error}; training continues, and the next attempt is in {wait:.0f} s"
            elif error_before and not branch.error:
                yield f"hub: pushing works again; {pushed.name} is at {url}"
        if self._push is None:
            due = [branch for branch in self._branches if branch.is_behind and branch.next_attempt <= time.monotonic()]
            if due:
                self._start(min(due, key=lambda branch: branch.last_attempt))

    def finish(self) -> Iterator[str]:
        """After training: send what is left, with one more attempt for each branch. Ctrl-C and SIGTERM end this."""
        active = self._push.branch if self._push else None
        try:
            with exit_on_preemption():
                for branch in sorted(self._branches, key=lambda one: (one is not active, one.last_attempt)):
                    yield from self._finish(branch)
        except (KeyboardInterrupt, RunPreempted):
            pass
        yield from self.left()

    def _finish(self, branch: _Branch) -> Iterator[str]:
        while self._push is not None or branch.is_behind:
            if self._push is None:
                self._start(branch)
            name, where = self._push.checkpoint.name, f"{self._hub.repo_id} ({branch.name})"
            yield f"hub: sending {name} to {where}; Ctrl-C leaves it for later"
            self._push.process.wait()
            _, url, is_new_error = self._collect()
            if not branch.error:
                yield f"hub: {name} is at {url}"
                continue
            if is_new_error:
                yield f"hub: {branch.error}"
            return

    def left(self) -> Iterator[str]:
        """End the push that is under way, and name the commands that would send what is left."""
        if self._push is not None:
            self._push.process.kill()
            self._push.process.communicate()
            self._push = None
        behind = [branch for branch in self._branches if branch.is_behind]
        if commands := [shlex.join(["hf-gpt", *self._arguments(branch, branch.wanted)]) for branch in behind]:
            yield "hub: not everything was sent; this sends the rest: " + " && ".join(commands)

    def _start(self, branch: _Branch) -> None:
        branch.last_attempt = time.monotonic()
        process = subprocess.Popen(
            [sys.executable, "-c", _HF_GPT, str(_PACKAGE), *self._arguments(branch, branch.wanted), "--json"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,  # a Ctrl-C in the terminal is for the training process, which then decides
        )
        self._push = _Push(branch, branch.wanted, process)

    def _arguments(self, branch: _Branch, checkpoint: Path) -> list[str]:
        arguments = ["push", str(checkpoint.absolute()), self._hub.repo_id]
        if branch.name != "main":
            arguments += ["--revision", branch.name]
        if branch.is_tagged:
            arguments += ["--tag", checkpoint.name]
        if self._hub.private:
            arguments += ["--private"]
        if self._hub.with_training_state and branch.is_tagged:
            arguments += ["--with-training-state"]
        return arguments

    def _collect(self) -> tuple[Path, str | None, bool]:
        """Take note of a push that has ended: its checkpoint, its address, and whether its error is a new one."""
        push, known_errors = self._push, {branch.error for branch in self._branches}
        branch, self._push = push.branch, None
        printed, _ = push.process.communicate()
        try:
            answer: dict[str, Any] = json.loads(printed)
        except ValueError:
            answer = {"error": f"the process that pushes ended with {push.process.returncode}"}
        branch.error = answer.get("error")
        if branch.error is None:
            branch.pushed, branch.pause, branch.next_attempt = push.checkpoint, self._first_pause, 0.0
        else:
            branch.next_attempt = time.monotonic() + max(branch.pause, answer.get("retry_after") or 0.0)
            branch.pause = min(2 * branch.pause, _LONGEST_PAUSE)
        return push.checkpoint, answer.get("url"), branch.error not in known_errors | {None}


class BackgroundPush(Observer):
    """Observer that publishes a run as `recipe.hub` says; for the main process of a run with a `hub.repo_id`.

    `ended` waits until all is sent and lets Ctrl-C end that, so it is called when the run handles signals no more.
    """

    def __init__(self, hub: HubRecipe):
        self._publisher = Publisher(hub)

    def saved(self, training: "TrainingRun", checkpoint: Path) -> None:
        every, step, best_step = training.recipe.hub.push_every, training.progress.step, training.progress.best_step
        if every is None or step % every == 0 or step == training.max_steps:
            best = checkpoint if best_step is None else checkpoint.with_name(checkpoints.name_of(best_step))
            self._publisher.offer(checkpoint, best if best.is_dir() else None)

    def stepped(self, training: "TrainingRun", step: int, metrics: dict[str, Any] | None) -> None:
        for text in self._publisher.tick():
            training.event("publishing", text, what=text.removeprefix("hub: "))

    def ended(self, training: "TrainingRun", error: BaseException | None) -> None:
        for text in self._publisher.finish() if error is None else self._publisher.left():
            training.say(text)

    def needs(self) -> set[Path]:
        return self._publisher.needed
