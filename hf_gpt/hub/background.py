"""Push checkpoints to the Hub during training. Training never waits for a push, and never ends because of one.

Each push is a process of its own, `hf-gpt push`. It can be killed if it hangs, and if it crashes training continues.
What is kept up to date:

    hub.branch, with tags such as step-00000500     the newest checkpoint
    main                                            the best one; without a validation text, or with hub.main: last,
                                                    the newest
    a tag or a branch for each milestone            all of them, in order (milestones.py)

A branch remembers only the newest checkpoint that it should show; older ones that still wait are never sent. The three
take turns. After a failure one waits before its next attempt, each time longer, or as long as the Hub asked. A failure
is reported when it is a new one, and so is the first success after it.

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
from ..errors import RunPreempted, UserError
from ..recipe import HubRecipe
from ..training.observers import Observer
from ..training.signals import exit_on_preemption
from .milestones import Ladder

if TYPE_CHECKING:
    from ..training.loop import TrainingRun
    from ..training.setup import Job

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
class _Target:
    """A branch on the Hub: the checkpoint that it should show, the one it shows, and its pushes.

    Or the milestones: then `wanted` are the names of those that are missing there.
    """

    name: str
    pause: float  # seconds, after the next failure
    wanted: "Path | tuple[str, ...] | None" = None
    pushed: Path | None = None
    sending: "Path | tuple[str, ...] | None" = None
    process: "subprocess.Popen[str] | None" = None  # which is sending
    last_attempt: float = 0.0
    next_attempt: float = 0.0
    error: str | None = None
    is_transient: bool = False  # the error
    retry_after: float = 0.0  # seconds that the Hub asked to wait, with the error
    has_moved: bool = False  # of the milestones: some were sent before the error

    @property
    def is_behind(self) -> bool:
        return self.wanted not in (None, (), self.pushed)

    @property
    def subject(self) -> str:
        """What is sent, for people."""
        if isinstance(self.sending, Path):
            return self.sending.name
        first, *more = self.sending
        return f"{first} and {len(more)} more" if more else first


def refuse_unpublishable(job: "Job") -> None:
    """Refuse, before anything is written, a run that could not be published as `recipe.hub` says.

    Raises:
        UserError: a milestone cannot have its name, or GPT-2 cannot express the model.
    """
    hub = job.recipe.hub
    if hub.format == "gpt2":
        from ..conversion.gpt2 import stock_config

        try:
            stock_config(job.model.config, "the model")
        except UserError as error:
            raise UserError(str(error), field="hub.format", value="gpt2") from None
    if hub.milestones != "none":
        Ladder(job.run_dir, hub.repo_id, hub).refuse_names(job.milestones)


class BackgroundPush(Observer):
    """Observer that publishes a run as `recipe.hub` says, for the main process of a run with a `hub.repo_id`.

    `ended` waits until everything is sent and lets Ctrl-C end that, so it must be called when the run does not handle
    signals any more.
    """

    def __init__(self, hub: HubRecipe, *, first_pause: float = _FIRST_PAUSE):
        self._hub = hub
        self._first_pause = first_pause
        self._newest, self._main, self._milestones = self._targets = [
            _Target(name, first_pause) for name in (hub.branch, "main", "milestones")
        ]
        self._ladder: Ladder | None = None

    def began(self, training: "TrainingRun") -> None:
        if self._hub.milestones != "none":
            self._ladder = Ladder(training.run_dir, self._hub.repo_id, self._hub)

    def saved(self, training: "TrainingRun", checkpoint: Path) -> None:
        self._look_at_milestones()
        if not (checkpoint / checkpoints.TRAINING_STATE / "state.json").is_file():
            return  # it is a milestone, and nothing else
        every, step, best_step = self._hub.push_every, training.progress.step, training.progress.best_step
        if every is None or step % every == 0 or step == training.max_steps:
            is_best = best_step is None or self._hub.main == "last"
            best = checkpoint if is_best else checkpoint.with_name(checkpoints.name_of(best_step))
            self.offer(checkpoint, best if best.is_dir() else None)

    def _look_at_milestones(self) -> None:
        if self._ladder:
            self._milestones.wanted = tuple(self._ladder.unsent())

    def stepped(self, training: "TrainingRun", step: int, metrics: dict[str, Any] | None) -> None:
        for text in self.tick():
            training.event("publishing", text, what=text.removeprefix("hub: "))

    def ended(self, training: "TrainingRun", error: BaseException | None) -> None:
        for text in self.finish() if error is None else self.left():
            training.say(text)

    def needs(self, training: "TrainingRun") -> set[Path]:
        branches = (self._newest, self._main)
        waiting = {branch.wanted for branch in branches if branch.is_behind}
        return waiting | {branch.sending for branch in branches if branch.process}

    def offer(self, newest: Path, best: Path | None) -> None:
        """Let the branches show these checkpoints (None: as before). Others that are still waiting are not sent."""
        self._newest.wanted, self._main.wanted = newest, best or self._main.wanted

    def tick(self) -> list[str]:
        """Collect the push that has ended and start the next one, without waiting; returns messages for people."""
        messages, active = [], self._active
        if active and active.process.poll() is not None:
            messages, active = self._collect(active), None
        due = [target for target in self._targets if target.is_behind and target.next_attempt <= time.monotonic()]
        if due and not active:
            self._start(min(due, key=lambda target: target.last_attempt))
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
        behind = [target for target in self._targets if target.is_behind]
        if commands := [shlex.join(["hf-gpt", *self._arguments(target)]) for target in behind]:
            yield "hub: not everything was sent; this sends the rest: " + " && ".join(commands)

    @property
    def _active(self) -> _Target | None:
        return next((target for target in self._targets if target.process), None)

    def _finish_all(self) -> Iterator[str]:
        """Send what is left; after a failure that may pass, wait, and begin with another target. One that cannot pass
        is met once."""
        left = self._targets
        for number, pause in enumerate((*LAST_PAUSES, None)):
            for target in sorted(left, key=lambda one: (one.process is None, one.last_attempt)):
                yield from self._finish(target, is_first=number == 0)
                if target.is_behind and target.is_transient:
                    break
            left = [target for target in left if target.is_behind and (target.is_transient or not target.error)]
            wait = max([pause or 0.0, *(target.retry_after for target in left)])
            if not left or pause is None or wait > sum(LAST_PAUSES):
                return
            if number == 0:
                yield f"hub: trying again for some {sum(LAST_PAUSES) / 60:.0f} minutes; Ctrl-C leaves it for later"
            time.sleep(wait)

    def _finish(self, target: _Target, is_first: bool) -> Iterator[str]:
        while target.process or target.is_behind:
            if not target.process:
                self._start(target)
            where = f"{self._hub.repo_id} ({target.name})"
            if is_first or target.error is None:
                yield f"hub: sending {target.subject} to {where}; Ctrl-C leaves it for later"
            target.process.wait()
            yield from self._collect(target, is_last=True)
            if target.error and not (target.has_moved and target.is_transient):
                return

    def _start(self, target: _Target) -> None:
        target.sending, target.last_attempt = target.wanted, time.monotonic()
        target.process = subprocess.Popen(
            [sys.executable, "-c", _HF_GPT, str(_PACKAGE), *self._arguments(target), "--json"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,  # a Ctrl-C in the terminal is for the training process, which then decides
        )

    def _arguments(self, target: _Target) -> list[str]:
        hub = self._hub
        if target is self._milestones:
            arguments = ["push", str(self._ladder.run_dir.absolute()), hub.repo_id, "--milestones"]
        else:
            arguments = ["push", str(target.wanted.absolute()), hub.repo_id]
            arguments += ["--format", "gpt2"] if hub.format == "gpt2" else []
        if target is self._newest:
            arguments += ["--revision", target.name, "--tag", target.wanted.name]
            arguments += ["--with-training-state"] if hub.with_training_state else []
        return arguments + (["--private"] if hub.private else [])

    def _collect(self, target: _Target, is_last: bool = False) -> list[str]:
        """Record how a push ended. Returns the message, if it is news."""
        known, had_failed = {None, *(one.error for one in self._targets)}, target.error is not None
        printed, _ = target.process.communicate()
        try:
            answer: dict[str, Any] = json.loads(printed)
        except ValueError:
            code = target.process.returncode  # below 0: it was killed
            answer = {"error": f"the process that pushes ended with {code}", "is_transient": code < 0}
        target.process, target.error = None, answer.get("error")
        target.is_transient, target.retry_after = bool(answer.get("is_transient")), answer.get("retry_after") or 0.0
        sent = answer.get("sent", [])
        news = [f"hub: {one['name']} held other weights, and was replaced" for one in sent if one["is_replaced"]]
        target.has_moved = bool(sent)
        if target is self._milestones:
            self._look_at_milestones()
        if target.error is None or sent:
            target.pause = self._first_pause
        if target.error is None:
            target.next_attempt = 0.0
            if target is not self._milestones:
                target.pushed = target.sending
            text = f"{target.subject} is at {answer['url']}" if "url" in answer else f"{target.subject} was sent"
            if is_last:
                return [*news, f"hub: {text}"]
            return [*news, *([f"hub: pushing works again; {text}"] if had_failed else [])]
        wait = max(target.pause, target.retry_after)
        target.next_attempt = time.monotonic() + wait
        target.pause = min(2 * target.pause, _LONGEST_PAUSE)
        more = "" if is_last else f"; training continues, and the next attempt is in {wait:.0f} s"
        return [*news, *([] if target.error in known else [f"hub: {target.error}{more}"])]
