"""Push checkpoints to the Hub during training. Training never waits for a push, and never ends because of one.

Each push is a process of its own, `hf-gpt push CHECKPOINT REPO_ID`. It can be killed if it hangs, and if it crashes
training continues. Two branches are kept up to date:

    hub.branch, with tags such as step-00000500     the newest checkpoint
    main                                            the best one, or without a validation text the newest

A branch remembers only the newest checkpoint that it should show; older ones that still wait are never sent. The
branches take turns. After a failure a branch waits before its next attempt, each time longer, or as long as the Hub
asked. A failure is reported when it is a new one, and so is the first success after it.

When the run has ended, what is left is sent; while the Hub stumbles, for some minutes again and again (`LAST_PAUSES`).
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
_FIRST_PAUSE, _LONGEST_PAUSE = 10.0, 600.0  # seconds, while the run trains
LAST_PAUSES = (5.0, 10.0, 20.0, 40.0, 80.0, 120.0)  # seconds between the attempts after it

# `hf-gpt` without the package's __init__.py, which imports torch: a push does not need it, and the import would take a
# core from training for some seconds. The child waits for the end of its standard input, which the training process
# holds: when that is killed, the child ends too, and cannot race with the push of the resumed run.
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
    """A branch on the Hub: the checkpoint that it should show, the one it shows, and its pushes."""

    name: str
    is_tagged: bool
    pause: float  # seconds, after the next failure
    wanted: Path | None = None
    pushed: Path | None = None
    sending: Path | None = None
    process: "subprocess.Popen[str] | None" = None  # which is sending
    last_attempt: float = 0.0
    next_attempt: float = 0.0
    error: str | None = None
    is_transient: bool = False  # the error
    retry_after: float = 0.0  # seconds that the Hub asked to wait, with the error

    @property
    def is_behind(self) -> bool:
        return self.wanted not in (None, self.pushed)


class BackgroundPush(Observer):
    """Observer that publishes a run as `recipe.hub` says, for the main process of a run with a `hub.repo_id`.

    `ended` waits until everything is sent and lets Ctrl-C end that, so it must be called when the run does not handle
    signals any more.
    """

    def __init__(self, hub: HubRecipe, *, first_pause: float = _FIRST_PAUSE):
        self._hub = hub
        self._first_pause = first_pause
        self._branches = [_Branch(hub.branch, True, first_pause), _Branch("main", False, first_pause)]

    def saved(self, training: "TrainingRun", checkpoint: Path) -> None:
        every, step, best_step = training.recipe.hub.push_every, training.progress.step, training.progress.best_step
        if every is None or step % every == 0 or step == training.max_steps:
            best = checkpoint if best_step is None else checkpoint.with_name(checkpoints.name_of(best_step))
            self.offer(checkpoint, best if best.is_dir() else None)

    def stepped(self, training: "TrainingRun", step: int, metrics: dict[str, Any] | None) -> None:
        for text in self.tick():
            training.event("publishing", text, what=text.removeprefix("hub: "))

    def ended(self, training: "TrainingRun", error: BaseException | None) -> None:
        for text in self.finish() if error is None else self.left():
            training.say(text)

    def needs(self, training: "TrainingRun") -> set[Path]:
        waiting = {branch.wanted for branch in self._branches if branch.is_behind}
        return waiting | {branch.sending for branch in self._branches if branch.process}

    def offer(self, newest: Path, best: Path | None) -> None:
        """Let the branches show these checkpoints (None: as before). Others that are still waiting are not sent."""
        for branch in self._branches:
            branch.wanted = (newest if branch.is_tagged else best) or branch.wanted

    def tick(self) -> list[str]:
        """Collect the push that has ended and start the next one, without waiting; returns messages for people."""
        messages, active = [], self._active
        if active and active.process.poll() is not None:
            messages, active = self._collect(active), None
        due = [branch for branch in self._branches if branch.is_behind and branch.next_attempt <= time.monotonic()]
        if due and not active:
            self._start(min(due, key=lambda branch: branch.last_attempt))
        return messages

    def finish(self) -> Iterator[str]:
        """After training: send what is left, and try again while the Hub stumbles. Ctrl-C and SIGTERM end this."""
        try:
            with exit_on_preemption():
                yield from self._finish_all()
        except (KeyboardInterrupt, RunPreempted):
            pass
        yield from self.left()

    def left(self) -> Iterator[str]:
        """End the push that is active, and name the commands that would send what is left."""
        if active := self._active:
            active.process.kill()
            active.process.communicate()
            active.process = None
        behind = [branch for branch in self._branches if branch.is_behind]
        if commands := [shlex.join(["hf-gpt", *self._arguments(branch)]) for branch in behind]:
            yield "hub: not everything was sent; this sends the rest: " + " && ".join(commands)

    @property
    def _active(self) -> _Branch | None:
        return next((branch for branch in self._branches if branch.process), None)

    def _finish_all(self) -> Iterator[str]:
        """Send what is left; after a failure that may pass, wait, and begin with another branch. One that cannot pass
        is met once."""
        left = self._branches
        for number, pause in enumerate((*LAST_PAUSES, None)):
            for branch in sorted(left, key=lambda one: (one.process is None, one.last_attempt)):
                yield from self._finish(branch, is_first=number == 0)
                if branch.is_behind and branch.is_transient:
                    break
            left = [branch for branch in left if branch.is_behind and (branch.is_transient or not branch.error)]
            wait = max([pause or 0.0, *(branch.retry_after for branch in left)])
            if not left or pause is None or wait > sum(LAST_PAUSES):
                return
            if number == 0:
                yield f"hub: trying again for some {sum(LAST_PAUSES) / 60:.0f} minutes; Ctrl-C leaves it for later"
            time.sleep(wait)

    def _finish(self, branch: _Branch, is_first: bool) -> Iterator[str]:
        while branch.process or branch.is_behind:
            if not branch.process:
                self._start(branch)
            where = f"{self._hub.repo_id} ({branch.name})"
            if is_first or branch.error is None:
                yield f"hub: sending {branch.sending.name} to {where}; Ctrl-C leaves it for later"
            branch.process.wait()
            yield from self._collect(branch, is_last=True)
            if branch.error:
                return

    def _start(self, branch: _Branch) -> None:
        branch.sending, branch.last_attempt = branch.wanted, time.monotonic()
        branch.process = subprocess.Popen(
            [sys.executable, "-c", _HF_GPT, str(_PACKAGE), *self._arguments(branch), "--json"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,  # a Ctrl-C in the terminal is for the training process, which then decides
        )

    def _arguments(self, branch: _Branch) -> list[str]:
        arguments = ["push", str(branch.wanted.absolute()), self._hub.repo_id]
        if branch.name != "main":
            arguments += ["--revision", branch.name]
        if branch.is_tagged:
            arguments += ["--tag", branch.wanted.name]
        if self._hub.private:
            arguments += ["--private"]
        if self._hub.with_training_state and branch.is_tagged:
            arguments += ["--with-training-state"]
        return arguments

    def _collect(self, branch: _Branch, is_last: bool = False) -> list[str]:
        """Record how a push ended. Returns the message, if it is news."""
        known, had_failed = {None, *(one.error for one in self._branches)}, branch.error is not None
        printed, _ = branch.process.communicate()
        try:
            answer: dict[str, Any] = json.loads(printed)
        except ValueError:
            code = branch.process.returncode  # below 0: it was killed
            answer = {"error": f"the process that pushes ended with {code}", "is_transient": code < 0}
        branch.process, branch.error = None, answer.get("error")
        branch.is_transient, branch.retry_after = bool(answer.get("is_transient")), answer.get("retry_after") or 0.0
        if branch.error is None:
            branch.pushed, branch.pause, branch.next_attempt = branch.sending, self._first_pause, 0.0
            text = f"{branch.sending.name} is at {answer['url']}"
            if is_last:
                return [f"hub: {text}"]
            return [f"hub: pushing works again; {text}"] if had_failed else []
        wait = max(branch.pause, branch.retry_after)
        branch.next_attempt = time.monotonic() + wait
        branch.pause = min(2 * branch.pause, _LONGEST_PAUSE)
        more = "" if is_last else f"; training continues, and the next attempt is in {wait:.0f} s"
        return [] if branch.error in known else [f"hub: {branch.error}{more}"]
