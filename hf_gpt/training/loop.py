"""The training loop.

`run` and `train_step` are the book's eight steps: take a batch, reset the gradients, compute the loss, go backward,
update the weights, and now and then evaluate, show a sample, save. What the loop adds to the book:

- A step is a global batch: some micro-batches, accumulated, on each of the processes. Its loss is the mean over all
  its target tokens, however they are dealt out, so accumulation and processes change nothing but speed.
- What a step sees and its learning rate are functions of the step alone (`data/batches.py`, `optimizer.py`).
  Evaluating, sampling, logging and saving draw nothing from training's random streams, so they change no weight.
- A run whose folder holds checkpoints resumes from the newest, and repeats what an uninterrupted run would have done.
- A loss or gradient that is not finite ends the run before anything is saved (`nonfinite.py`).

Records, messages, trackers, reports and pushes are observers (`observers.py`): the loop notifies them and knows none.
Processes, precision and devices are accelerate's business.
"""

import contextlib
import functools
import math
import signal
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from .. import checkpoint
from ..data.tokenizer import save_tokenizer
from ..errors import RunPreempted
from ..evaluation import bits_per_byte, loss_on_windows, perplexity, targets_and_bytes
from ..generation import generate_text
from ..loss import CausalLMLoss
from ..storage import remove_leftovers, set_aside, write_json, write_text
from ..texts import TRAINING, bits_of, judging, loss_of
from . import milestones
from .best import judge_by, offer
from .distributed import has_weights, on_device, prepare, whole_model
from .hardware import deterministic
from .nonfinite import NonFiniteWatch, raise_if_nonfinite, run_stopped, skip_if_nonfinite
from .observers import Observer, Observers
from .optimizer import build_optimizer, learning_rate, set_learning_rate
from .provenance import with_further_texts
from .resume import history, look_for_checkpoint, read_environment
from .seen import count_until, words_of_step
from .setup import Job
from .signals import stop_on_signal
from .state import Progress, load_training_state, save_training_state, save_weights, whole_weights


def run(job: Job, observers: Iterable[Observer] = (), *, until: int | None = None) -> "TrainingRun":
    """Train a prepared job to its end, or to step `until`, from the newest checkpoint in its folder.

    Raises:
        UserError: the folder holds what this job cannot resume.
        RunStopped: a loss, a gradient or the weights are not finite.
        KeyboardInterrupt, RunPreempted: a signal; the run was saved first.
    """
    training = TrainingRun(job, observers)
    with training.run_lock(), training.observed(), deterministic(job.recipe.train), stop_on_signal() as stop:
        training.begin()
        for step in training.remaining_steps(until):
            metrics = train_step(training, step)
            training.observers.stepped(training, step, metrics)
            if training.evaluates_at(step):
                training.evaluate_and_sample(step)  # 6. evaluate, 7. sample
            stop_signal = stop.agreed(step, training.accelerator)
            can_resume = bool(stop_signal) or training.saves_at(step)
            if can_resume or step in job.milestones:
                training.save(step, with_state=can_resume)  # 8. save
            if stop_signal and step < job.max_steps:
                raise training.stopped_by(stop_signal)
    return training


def train_step(training: "TrainingRun", step: int) -> dict[str, Any] | None:
    """One global batch and one update of the weights. Returns the step's metrics where a train line is due."""
    accelerator, optimizer, plan = training.accelerator, training.optimizer, training.job.plan
    micro_batches = plan.micro_batches(step, accelerator.process_index)  # 1. batch
    num_targets = plan.num_targets(step)
    set_learning_rate(optimizer, training.learning_rate(step))
    optimizer.zero_grad()  # 2. zero gradients

    # Each loss is a sum, divided by the targets of the whole global batch; an auxiliary loss is a mean, divided by its
    # micro-batches. accelerate divides them by the number of accumulated micro-batches, and DDP by the number of
    # processes, so both are multiplied back in.
    num_micro_batches = math.ceil(num_targets / micro_batches[0]["shift_labels"].numel())
    scale = plan.accumulation * accelerator.num_processes
    losses = torch.zeros(2, device=accelerator.device)
    training.loss.train()
    for number, batch in enumerate(micro_batches, start=1):
        # accelerate's `accumulate` counts to a fixed number; an epoch's last global batch may have fewer.
        accelerator.sync_gradients = is_last = number == len(micro_batches)
        with contextlib.nullcontext() if is_last else accelerator.no_sync(training.loss):
            loss, aux = training.loss(**on_device(batch, accelerator.device), with_aux=True)  # 3. forward and loss
            shares = torch.stack((loss / num_targets, aux / num_micro_batches))
            accelerator.backward(shares.sum() * scale)  # 4. backward
            losses += shares.detach()

    max_grad_norm = training.recipe.train.max_grad_norm or math.inf
    training.nonfinite.set_grad_norm(accelerator.clip_grad_norm_(training.loss.parameters(), max_grad_norm))
    skipped = skip_if_nonfinite(training, step)
    if not skipped:
        optimizer.step()  # 5. update
        training.nonfinite.check(step, losses.sum())
    training.progress.step = step
    training.progress.tokens += num_targets
    training.progress.words += words_of_step(plan, step)
    return training.train_metrics(step, None if skipped else losses)


class TrainingRun:
    """A run in this process: the prepared parts of its job, and what is done with them.

    `model` is the transformers model; `loss` is the `CausalLMLoss` around it as accelerate prepared it, which is what
    training and evaluation call.
    """

    def __init__(self, job: Job, observers: Iterable[Observer]):
        self.job, self.recipe, self.accelerator = job, job.recipe, job.accelerator
        self.run_dir, self.model = job.run_dir, job.model
        self.observers = Observers(observers)
        self.progress = Progress()
        self.resumed_from: Path | None = None  # the checkpoint, of this run or its parent, that it began with
        self.environment = dict(job.environment)
        known = job.environment.get("head_makes_logits") if has_weights(self.accelerator) else False
        loss = CausalLMLoss(job.model, known)
        self.environment["head_makes_logits"] = loss.head_makes_logits
        num_tokens = job.plan.batch_size * job.data.windows.context_length
        self._about_loss = list(loss.describe(num_tokens, self.accelerator.device.type))
        if self.recipe.train.compile:
            loss.compile()
        optimizer = build_optimizer(job.model, self.recipe.optimizer, self.recipe.train.mixed_precision)
        self.loss, self.optimizer = prepare(self.accelerator, loss, optimizer)
        self.nonfinite = NonFiniteWatch(self.accelerator.device, self.accelerator.scaler is not None)
        self._judge = judging(job.data.evaluated, self.recipe.evaluation.best_on)  # the text that `best` follows
        self._last_judged: tuple[int, float] | None = None  # step, loss on that text
        self._has_begun = False

    @property
    def max_steps(self) -> int:
        return self.job.max_steps

    # Beginning and ending

    def run_lock(self) -> contextlib.AbstractContextManager[None]:
        """The lock of the run's folder, held by the main process."""
        return checkpoint.run_lock(self.run_dir) if self.accelerator.is_main_process else contextlib.nullcontext()

    @contextlib.contextmanager
    def observed(self) -> Iterator[None]:
        """Tells the observers how a run that began has ended."""
        try:
            yield
        except BaseException as error:
            if self._has_begun:
                self.observers.ended(self, error)
            raise
        self.observers.ended(self, None)
        self._prune()  # an observer may have needed a checkpoint until now

    def remaining_steps(self, until: int | None) -> range:
        """The steps after the last one that was made."""
        return range(self.progress.step + 1, (self.max_steps if until is None else until) + 1)

    def begin(self) -> None:
        """Resume from the newest complete checkpoint, start from a parent's, or evaluate the untrained model."""
        job, main = self.job, self.accelerator.is_main_process
        self.accelerator.wait_for_everyone()  # until the main process holds the lock
        found, damaged = look_for_checkpoint(job, self.say)
        if found is not None:
            milestones.refuse_added(job, checkpoint.step_of(found))
        if start := found or job.parent:
            self._load_checkpoint(start, as_branch=found is None)
        if changed := judge_by(self._judge, self.progress, self.run_dir):
            self.say(changed)
        self.dtypes = checkpoint.dtypes_of(start or (job.data.pretrained and job.data.pretrained.folder))
        if found is None:
            for line in (*job.describe(), *milestones.describe(self), *self._about_loss):
                self.say(line)
        self.accelerator.wait_for_everyone()  # until every process has read the folder
        recorded = with_further_texts(read_environment(self.run_dir / "environment.json"), job.environment)
        if found is not None and recorded and not job.warnings:
            self.environment = recorded
        self.observers.began(self)
        self._has_begun = True
        if main:
            remove_leftovers(self.run_dir)
            for path in damaged:
                set_aside(path)
            milestones.drop_abandoned(self)
        for kind, facts in history(job, found, damaged, self.progress.step):
            self.event(kind, **facts)
        if main:
            write_text(self.run_dir / "recipe.yaml", self.recipe.to_yaml())
            write_json(self.run_dir / "environment.json", (found and recorded) or self.environment)
        if found is not None:
            self._settle(found)
        self.accelerator.wait_for_everyone()
        self._started, self._seconds_before = time.monotonic(), self.progress.seconds
        self._restart_clock()
        if not start:
            if self.evaluates_at(0):
                self.evaluate_and_sample(0)
            if self.max_steps == 0 or 0 in job.milestones:
                self.save(0, with_state=self.max_steps == 0 or self.recipe.checkpoint.milestones.training_state)

    def _load_checkpoint(self, start: Path, as_branch: bool) -> None:
        """The weights, the optimizer and the position of a checkpoint."""
        self.progress = load_training_state(start, self.accelerator, self.loss, self.optimizer, self.recipe.model_seed)
        self.resumed_from = start
        if self.progress.words is None:
            self.progress.words = count_until(self.job.plan, "words", self.progress.step, self.job.begun)
        if as_branch:
            self.progress = Progress(self.progress.step, self.progress.tokens, self.progress.words)
            what = f"branching off after step {self.progress.step}, from {start}"
        elif self.progress.step >= self.max_steps:
            what = f"already finished: {start} is its last step; give it a larger train.max_steps to continue"
        else:
            what = f"resuming after step {self.progress.step}, from {start}"
        self.say(what)

    def stopped_by(self, number: int) -> BaseException:
        """What ends a run that was asked to stop, and has saved."""
        name = signal.Signals(number).name
        self.event("stopped", signal=name)
        what = f"stopped and saved after step {self.progress.step}; the same command resumes it"
        return KeyboardInterrupt(what) if number == signal.SIGINT else RunPreempted(f"{name}: {what}")

    # Messages and events

    def say(self, message: str) -> None:
        """A message for the person who watches."""
        self.observers.noted(self, None, message, {})

    def event(self, kind: str, message: str | None = None, *, step: int | None = None, **facts: Any) -> None:
        """Something for `events.jsonl`, and perhaps for the person who watches."""
        facts = {"step": self.progress.step if step is None else step, **facts}
        self.observers.noted(self, kind, message, facts)

    # What a step needs

    def learning_rate(self, step: int) -> float:
        return learning_rate(step, self.max_steps, self.recipe.optimizer.lr, self.recipe.schedule)

    def train_metrics(self, step: int, losses: torch.Tensor | None) -> dict[str, Any] | None:
        """The train line of `step`, every `log_every` steps and at the last one; without a loss if it was skipped.

        `losses` are this process's shares of the loss and of the auxiliary loss, on the device.
        """
        if step % self.recipe.train.log_every and step != self.max_steps:
            return None
        raise_if_nonfinite(self)
        lr = self.optimizer.param_groups[0]["lr"]
        skipped = {"skipped": self.progress.skipped} if self.progress.skipped else {}
        if losses is None:
            return {**self._position(), "lr": lr, **skipped}
        loss, aux_loss = self.accelerator.reduce(losses, reduction="sum").tolist()
        tokens_per_second = (self.progress.tokens - self._clock_tokens) / max(time.monotonic() - self._clock, 1e-9)
        metrics = {
            **self._position(),
            "train_loss": loss,
            **({"aux_loss": aux_loss} if aux_loss else {}),
            "lr": lr,
            "grad_norm": float(self.nonfinite.grad_norm),
            "tokens_per_second": tokens_per_second,
            **skipped,
        }
        self._restart_clock()
        return metrics

    # Evaluating

    def evaluates_at(self, step: int) -> bool:
        """At `evaluation.first`, every `evaluation.every` steps from there, and at the last step.

        With `evaluation.at_epoch_end` at the end of each epoch too.
        """
        when = self.recipe.evaluation
        on_grid = step >= when.first and (step - when.first) % when.every == 0
        return on_grid or step == self.max_steps or self._ends_epoch(step, when.at_epoch_end)

    def evaluate_and_sample(self, step: int) -> None:
        """The losses on the training text and the validation texts, and a look at what the model writes."""
        raise_if_nonfinite(self)
        how, data = self.recipe.evaluation, self.job.data
        losses = {
            text: loss_on_windows(self.loss, windows, how.tokens, self.accelerator)
            for text, windows in data.evaluated.items()
        }
        if not all(math.isfinite(loss) for loss in losses.values()):
            raise run_stopped(self, f"a loss evaluated at step {step} is not finite")
        metrics = {**self._position(), **{loss_of(text): loss for text, loss in losses.items()}}
        metrics["perplexity"] = perplexity(losses[judging(losses) or TRAINING])
        for text, counted in self._targets_and_bytes.items():
            metrics[bits_of(text)] = bits_per_byte(losses[text], *counted)
        if self._judge is not None:
            self._last_judged = (step, losses[self._judge])
        samples = [{"step": step, "prompt": prompt, "text": self._sample(prompt)} for prompt in how.prompts]
        self.observers.evaluated(self, step, metrics, samples)
        self._restart_clock()

    def _sample(self, prompt: str) -> str:
        """The prompt and what the model writes after it."""
        how = self.recipe.evaluation
        with whole_model(self.loss), self.accelerator.autocast():
            return generate_text(
                self.model,
                self.job.data.tokenizer,
                prompt,
                max_new_tokens=how.sample_tokens,
                temperature=how.temperature,
                top_k=how.top_k,
                seed=self.recipe.seed,
            )

    @functools.cached_property
    def _targets_and_bytes(self) -> dict[str, tuple[int, int]]:
        """Of what is evaluated of the validation texts, where bytes can be counted."""
        data, tokens = self.job.data, self.recipe.evaluation.tokens
        texts = {text: windows for text, windows in data.evaluated.items() if text != TRAINING}
        counted = {text: targets_and_bytes(windows, data.tokenizer, tokens) for text, windows in texts.items()}
        return {text: found for text, found in counted.items() if found is not None}

    # Saving

    def saves_at(self, step: int) -> bool:
        """Every `checkpoint.every` steps, at the last one, and with `checkpoint.at_epoch_end` at each epoch's end.

        These are the checkpoints that can be resumed; milestones have more steps, unless they keep their state too.
        """
        when = self.recipe.checkpoint
        on_grid = when.every is not None and step % when.every == 0
        on_grid |= when.milestones.training_state and step in self.job.milestones
        return on_grid or step == self.max_steps or self._ends_epoch(step, when.at_epoch_end)

    def save(self, step: int, *, with_state: bool = True) -> None:
        """Write the checkpoint of `step`, let `latest` and perhaps `best` name it, and remove old ones."""
        raise_if_nonfinite(self)
        accelerator, main, progress = self.accelerator, self.accelerator.is_main_process, self.progress
        self.optimizer.zero_grad()  # which makes room
        if self._last_judged is not None and self._last_judged[0] == step:
            offer(progress, *self._last_judged)
        progress.seconds = self._seconds()
        weights = whole_weights(self.loss)
        if main and not all(torch.isfinite(tensor).all() for tensor in weights.values()):
            raise run_stopped(self, f"the weights after step {step} are not finite")
        with milestones.writing(self, step, with_state) if main else contextlib.nullcontext() as directory:
            optimizer = self.optimizer if with_state else None
            save_training_state(directory, accelerator, self.loss, optimizer, progress)
            if main:
                save_weights(directory, self.model, weights, self.dtypes)
                save_tokenizer(self.job.data.tokenizer, directory)
                self.observers.saving(self, directory)
                if odd := checkpoint.leave_out_odd(directory):
                    self.say(f"warning: {', '.join(odd)}: no file, and left out of the checkpoint of step {step}")
        self._settle(self.run_dir / "checkpoints" / checkpoint.name_of(step), with_state)
        accelerator.wait_for_everyone()
        self._restart_clock()

    def _settle(self, newest: Path, with_state: bool = True) -> None:
        """Let `latest` and `best` name what they should, tell the observers, and remove what is not to be kept.

        After each checkpoint, and again when a run is resumed: it may have died between writing one and this.
        """
        if not self.accelerator.is_main_process:
            return
        try:
            if with_state:
                checkpoint.point(self.run_dir, "latest", newest)
            step = self.progress.best_step
            best = None if step is None else newest.with_name(checkpoint.name_of(step))
            if best is None or best.is_dir():
                checkpoint.point(self.run_dir, "best", best)
        except OSError as error:  # the checkpoint is there
            self.say(f"warning: {error.filename}: cannot be written: {error.strerror}")
        self.observers.saved(self, newest)
        self._prune()

    def _prune(self) -> None:
        if self.accelerator.is_main_process:
            how, needed = self.recipe.checkpoint, self.observers.needs(self)
            checkpoint.prune(self.run_dir, how.keep, needed, strips_milestones=not how.milestones.training_state)

    def _ends_epoch(self, step: int, matters: bool) -> bool:
        return matters and step > 0 and step % self.job.plan.steps_per_epoch == 0

    # Position, time, and what ends a run

    def _position(self) -> dict[str, float]:
        """What every line of metrics starts with."""
        step = self.progress.step
        return {
            "step": step,
            "tokens": self.progress.tokens,
            "words": self.progress.words,
            "epoch": round(step / self.job.plan.steps_per_epoch, 6),
            "seconds": round(self._seconds(), 3),
        }

    def _seconds(self) -> float:
        """How long the run has taken, over all the times it was started."""
        return self._seconds_before + time.monotonic() - self._started

    def _restart_clock(self) -> None:
        """Tokens per second count from here, so that evaluating and saving do not."""
        self._clock, self._clock_tokens = time.monotonic(), self.progress.tokens
