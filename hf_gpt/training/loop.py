"""The training loop.

`train` reads as the book's eight steps: take a batch, reset the gradients, compute the loss, go backward, update the
weights, and now and then evaluate, show a sample, save. What the loop adds to the book:

- A step is a global batch: some batches, accumulated, on each of the processes. Its loss is the mean over all its
  target tokens, however they are dealt out, so accumulation and processes change nothing but speed.
- What a step sees and its learning rate are functions of the step alone (`data/batches.py`, `optim.py`). Evaluating,
  sampling, logging and saving draw nothing from training's random streams: a run that is watched more closely has the
  same weights, bit for bit.
- The same call goes on where the run in `output_dir` stopped, and repeats what an uninterrupted run would have done.
- An update whose loss or gradient is not finite ends the run before anything is saved. It is found without waiting for
  the device each step: the first such step is kept there, and read before logging, evaluating and saving.

Processes, precision and devices are accelerate's business.
"""

import contextlib
import dataclasses
import functools
import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from .. import checkpoint
from ..display import escape_unprintable
from ..errors import RunPreempted, RunStopped, UserError
from ..evaluation import bits_per_byte, loss_on_windows, perplexity, targets_and_bytes
from ..generation import generate_text
from ..hub.background import Publisher
from ..hub.card import write_card
from ..recipe import Recipe, flat
from ..report.page import write_report
from ..report.records import read_lines, read_metrics
from ..storage import copy_file, read_json, write_json, write_text
from .optimizer import build_optimizer, learning_rate, set_learning_rate
from .resume import earlier_recipe
from .run_log import RunLog, no_progress_bars
from .setup import Job, prepare
from .signals import exit_on_preemption, lost_process_ends_run, stop_on_signal
from .state import load_training_state, save_training_state, whole_weights
from .utilization import flops_per_token, measured_peak, peak_memory_bytes

# The report is drawn anew at a checkpoint if that takes less than this part of the time since it was last drawn.
_REPORT_SHARE = 0.01
# Characters of a sample that are shown while a run goes on; samples.jsonl has all of it.
_SAMPLE_SHOWN = 116


@dataclass
class Run:
    """A finished run: the model in memory, and what is on disk."""

    output_dir: Path
    recipe: Recipe
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    is_main_process: bool = True  # the one of several that writes and prints

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The lines of `metrics.jsonl`."""
        return read_metrics(self.output_dir)

    @property
    def samples(self) -> list[dict[str, Any]]:
        """The lines of `samples.jsonl`: `{"step", "prompt", "text"}`."""
        return read_lines(self.output_dir / "samples.jsonl")

    @property
    def checkpoints(self) -> list[Path]:
        """The checkpoints that were kept, oldest first; each loads with `from_pretrained`."""
        return checkpoint.checkpoints(self.output_dir)

    def summary(self) -> Iterator[str]:
        """The last sample and where things are, for people."""
        if self.samples:
            step, text = self.samples[-1]["step"], escape_unprintable(self.samples[-1]["text"])
            yield f"\nsample     after step {step}:\n\n{text}\n"
        best = checkpoint.pointed(self.output_dir, "best")
        yield f"model      {self.checkpoints[-1]}" + (f"   (best on validation text: {best.name})" if best else "")
        if (plot := self.output_dir / "loss.png").is_file():
            yield f"loss plot  {plot}"
        if (report := self.output_dir / "report.html").is_file():
            yield f"report     {report}"


@dataclass
class Progress:
    """How far a run is; saved with each checkpoint."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    best_validation_loss: float | None = None  # of a checkpoint
    best_step: int | None = None
    skipped: int = 0  # updates whose gradient was not finite


def train(recipe: Recipe | Mapping[str, Any] | str | Path, *, parent: str | None = None) -> Run:
    """Train as `recipe` says (a `Recipe`, a nested dictionary, or the path of a YAML file), or go on with such a run.

    Args:
        parent: `RUN@STEP`: begin with the weights, the optimizer and the position of that step of another run.

    Raises:
        UserError: something in the recipe cannot work here.
        RunStopped: the loss is no longer finite, or another process of the run is gone.
        KeyboardInterrupt: Ctrl-C; the run was saved first.
        RunPreempted: SIGTERM or SIGUSR1; the run was saved first.
    """
    if isinstance(recipe, (str, Path)):
        recipe = Recipe.from_yaml(recipe)
    elif isinstance(recipe, Mapping):
        recipe = Recipe.from_dict(recipe)
    with lost_process_ends_run():
        with exit_on_preemption():
            job = prepare(recipe, parent)
        return run(job)


def run(job: Job, *, until: int | None = None, watch: Callable[[int, "_Training"], None] | None = None) -> Run:
    """Run a prepared job, to its end or to step `until`; `watch` is called after each step, with the run at work.

    Without a `watch` the run tells a person how it goes.
    """
    training = _Training(job, speaks=watch is None)
    with training.alone(), training.journal, training.publishing(), training.reporting(), stop_on_signal() as stop:
        training.begin()
        for step in range(training.progress.step + 1, (job.max_steps if until is None else until) + 1):
            loss = training.update(step)
            training.log(step, loss)
            if training.evaluates_at(step):
                training.evaluate(step)
            stopping = stop.agreed(step, training.accelerator)
            if stopping or training.saves_at(step):
                training.save(step)
            training.publish()
            if watch is not None:
                watch(step, training)
            if stopping and step < job.max_steps:
                raise training.interrupted(step, stopping)
    return training.end()


class _Training:
    """A run in this process: the prepared parts of its job, and what is done with them."""

    def __init__(self, job: Job, speaks: bool = True):
        self.job, self.recipe, self.accelerator = job, job.recipe, job.accelerator
        self.progress = Progress()
        self.journal = RunLog(
            job.run_dir,
            max_steps=job.max_steps,
            writes=self.accelerator.is_main_process,
            speaks=speaks,
            tracker=self.accelerator.log if self.recipe.tracking.to else None,
        )
        self.publisher = Publisher(self.recipe.hub, publishes=speaks and self.accelerator.is_main_process)
        self.watched = speaks
        self.flops_per_token = flops_per_token(job.model, job.data.windows.context_length)
        self.peak_flops: float | None = None  # of one device; a run that nobody watches does without
        self.report_cost, self.reported_at = 0.5, time.monotonic()  # seconds, about, until it is known
        if self.recipe.train.compile:
            job.model.compile()
        self.model, self.optimizer = self.accelerator.prepare(
            job.model, build_optimizer(job.model, self.recipe.optimizer)
        )
        # Kept on the device: reading them would make the step wait for it.
        self.grad_norm = torch.zeros((), device=self.accelerator.device)
        self.first_bad_step = torch.zeros((), device=self.accelerator.device, dtype=torch.int32)
        self.first_bad_norm = torch.zeros((), device=self.accelerator.device)
        self.validated: tuple[int, float] | None = None  # the last evaluation: step, validation loss
        self.just_skipped: int | None = None  # the last step whose update was skipped

    def alone(self) -> contextlib.AbstractContextManager[None]:
        """The lock of the run's folder, held by the main process."""
        main = self.accelerator.is_main_process
        return checkpoint.run_lock(self.job.run_dir) if main else contextlib.nullcontext()

    @contextlib.contextmanager
    def publishing(self) -> Iterator[None]:
        """What is still to be sent to the Hub when the run ends is sent; when it is stopped, a person is told how."""
        try:
            yield
        except BaseException:
            for text in self.publisher.left():
                self.journal.say(text)
            raise
        for text in self.publisher.finish():
            self.journal.say(text)
        if self.publisher.publishes:  # what was kept until it was sent
            checkpoint.prune(self.job.run_dir, self.recipe.checkpoint.keep, self.publisher.needed)

    @contextlib.contextmanager
    def reporting(self) -> Iterator[None]:
        """The report is drawn when the run ends, also where it cannot go on."""
        try:
            yield
        except RunStopped:
            self.report()
            raise
        self.report()

    def report(self) -> None:
        """Draw `report.html`. Whatever may be wrong with a file that it reads, the run is not the worse for it."""
        if not self.watched or not self.accelerator.is_main_process:
            return
        started = time.monotonic()
        try:
            self.journal.flush()
            write_report(self.job.run_dir)
        except Exception as error:
            self.journal.say(f"warning: {self.job.run_dir / 'report.html'} could not be written: {error}")
        self.reported_at = time.monotonic()
        self.report_cost = self.reported_at - started

    def report_if_cheap(self) -> None:
        """The same at a checkpoint, unless drawing is slow beside the training in between."""
        if self.report_cost <= _REPORT_SHARE * (time.monotonic() - self.reported_at):
            self.report()

    def publish(self) -> None:
        """Look at the push that is under way, and begin the next; never waits."""
        for text in self.publisher.tick():
            self.journal.say(text)
            self.journal.event("publishing", self.progress.step, what=text.removeprefix("hub: "))

    def begin(self) -> None:
        """Go on from the newest whole checkpoint or from a parent's, or start by evaluating the untrained model."""
        job = self.job
        self.accelerator.wait_for_everyone()  # the main process holds the lock
        found, problems = checkpoint.newest_whole(job.run_dir)
        self.refuse_what_cannot_go_on(found)
        for text in (*(f"changed: {change}" for change in job.changes), *(f"warning: {w}" for w in job.warnings)):
            self.journal.say(text)
        for problem in problems.values():
            self.journal.say(f"warning: {problem}")
        if problems and found is None:
            self.journal.say(f"warning: no checkpoint in {job.run_dir} is whole: starting from the beginning")
        if start := found or job.parent:
            self.load_checkpoint(start, as_branch=found is None)
        if found is None:
            for line in job.describe():
                self.journal.say(line)
        self.accelerator.wait_for_everyone()  # all have looked
        if self.accelerator.is_main_process:
            for damaged in problems:
                checkpoint.set_aside(damaged)
        self.journal.rewind(self.progress.step if start else -1)
        self.write_down_history(found, problems)
        if self.watched:
            self.find_peak(goes_on=found is not None)
        self.write_down_what_runs(goes_on=found is not None)
        if found is not None:
            self.tidy_what_was_left()
        self.started, self.seconds_before = time.monotonic(), self.progress.seconds
        self.start_clock()
        if not start:
            if self.evaluates_at(0):
                self.evaluate(0)
            if job.max_steps == 0:
                self.save(0)

    def find_peak(self, goes_on: bool) -> None:
        """What this device could reach: as it was when the run began, if that was here, else measured."""
        if goes_on and not self.job.warnings:
            self.peak_flops = read_json(self.job.run_dir / "environment.json").get("peak_flops")
        if not self.peak_flops:
            self.peak_flops = measured_peak(self.accelerator.device, self.recipe.train.mixed_precision)

    def refuse_what_cannot_go_on(self, found: Path | None) -> None:
        """Raises :class:`UserError` if the folder holds what this recipe cannot go on with; asked under its lock."""
        run_dir, max_steps = self.job.run_dir, self.job.max_steps
        if earlier_recipe(run_dir) != self.job.earlier:
            raise UserError(f"{run_dir}: another process began a run there meanwhile; give another --output_dir")
        if found is not None and self.job.earlier is None:
            raise UserError(
                f"{found}: the run has no recipe.yaml to go on by; put it back, or give another --output_dir"
            )
        for start, where in ((found, run_dir), (None if found else self.job.parent, self.job.parent)):
            if start is not None and (step := checkpoint.step_of(start)) + (start != found) > max_steps:
                raise UserError(f"train.max_steps: {max_steps}, but {where} is at step {step}")

    def load_checkpoint(self, start: Path, as_branch: bool) -> None:
        """The weights, the optimizer and the position of a checkpoint."""
        saved = load_training_state(start, self.accelerator, self.model, self.optimizer, self.recipe.seed)
        known = {field.name for field in dataclasses.fields(Progress)}
        if not set(saved) <= known or saved.get("step") != checkpoint.step_of(start):
            raise UserError(f"{start}: its training_state/state.json is of another step or another program")
        self.progress = Progress(**saved)
        if as_branch:
            self.progress = Progress(step=self.progress.step, tokens=self.progress.tokens)
            what = "branching off after"
        elif self.progress.step >= self.job.max_steps:
            what = "finished already (more train.max_steps or train.epochs go on):"
        else:
            what = "going on after"
        self.journal.say(f"{what} step {self.progress.step}, from {start}")

    def update(self, step: int) -> torch.Tensor:
        """One global batch and one update of the weights. Returns this process's share of the loss, on the device."""
        train, optimizer, schedule = self.recipe.train, self.recipe.optimizer, self.recipe.schedule
        batches = self.job.plan.micro_batches(step, self.accelerator.process_index)
        num_targets = self.job.plan.num_targets(step)
        set_learning_rate(self.optimizer, learning_rate(step, self.job.max_steps, optimizer.lr, schedule))
        # Each loss is a sum divided by the targets of the whole global batch. accelerate divides it by the number of
        # accumulated batches, and DDP by the number of processes, so both are multiplied back in.
        scale = self.job.plan.accumulation * self.accelerator.num_processes
        total = torch.zeros((), device=self.accelerator.device)
        self.model.train()
        for number, batch in enumerate(batches, start=1):
            # accelerate's `accumulate` counts to a fixed number; an epoch's last global batch may have fewer.
            self.accelerator.sync_gradients = last = number == len(batches)
            with contextlib.nullcontext() if last else self.accelerator.no_sync(self.model):
                # A sum, divided here: a compiled model would be compiled anew for another divisor.
                outputs = self.model(**self.on_device(batch), num_items_in_batch=1, use_cache=False, skip_logits=True)
                loss = outputs.loss / num_targets
                self.accelerator.backward(loss * scale)
                total += loss.detach()
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), train.max_grad_norm or math.inf)
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm  # FSDP2 gives each process a part of it,
        self.grad_norm = torch.as_tensor(norm, device=self.accelerator.device)  # and DeepSpeed a number
        if self.may_update(step):
            self.optimizer.step()
        self.optimizer.zero_grad()
        self.progress.step = step
        self.progress.tokens += num_targets
        self.note_if_not_finite(step, total)
        return total

    def on_device(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The batch where the model is; from pinned memory, so that a GPU may still be at work on the step before."""
        device = self.accelerator.device
        if device.type != "cuda":
            return {name: tensor.to(device) for name, tensor in batch.items()}
        return {name: tensor.pin_memory().to(device, non_blocking=True) for name, tensor in batch.items()}

    def may_update(self, step: int) -> bool:
        """Whether the gradient may be used: always, but under `train.skip_nonfinite` not if it is not finite.

        Every process sees the same norm, for it is that of the gradients' mean over all of them.
        """
        if self.progress.skipped >= self.recipe.train.skip_nonfinite or bool(torch.isfinite(self.grad_norm)):
            return True
        self.progress.skipped += 1
        left = self.recipe.train.skip_nonfinite - self.progress.skipped
        self.journal.event("skipped", step, **self.what_was_seen(step, self.grad_norm))
        self.journal.say(f"step {step}: the gradient is not finite; its update is skipped ({left} more may be)")
        self.grad_norm = torch.zeros_like(self.grad_norm)
        self.just_skipped = step
        return False

    def note_if_not_finite(self, step: int, loss: torch.Tensor) -> None:
        """Keep on the device the first step whose loss or gradient is not finite."""
        if self.just_skipped == step:
            return
        bad = ~torch.isfinite(loss)
        if self.accelerator.scaler is None:  # which skips updates whose gradients overflow
            bad |= ~torch.isfinite(torch.as_tensor(self.grad_norm, device=loss.device))
        bad &= self.first_bad_step == 0
        self.first_bad_step.masked_fill_(bad, step)
        self.first_bad_norm = torch.where(bad, torch.as_tensor(self.grad_norm), self.first_bad_norm)

    def what_was_seen(self, step: int, grad_norm: torch.Tensor) -> dict[str, Any]:
        """What a person needs to look into a bad step: the windows of its batch, and the norm of its gradient."""
        return {"grad_norm": str(float(grad_norm)), "windows": self.job.plan.indices(step).tolist()}

    def log(self, step: int, loss: torch.Tensor) -> None:
        """Show that a step is done; write a train line every `log_every` steps and at the last one."""
        if step % self.recipe.train.log_every and step != self.job.max_steps:
            self.journal.progress(step)
            return
        self.stop_if_not_finite()
        loss = self.accelerator.reduce(loss, reduction="sum").item()
        skipped = {"skipped": self.progress.skipped} if self.progress.skipped else {}
        if self.just_skipped == step:  # there is no loss of an update that was not made
            self.journal.metrics(**self.position(), lr=self.optimizer.param_groups[0]["lr"], **skipped)
            return
        seconds = time.monotonic() - self.clock
        tokens_per_second = (self.progress.tokens - self.clock_tokens) / max(seconds, 1e-9)
        self.journal.metrics(
            **self.position(),
            train_loss=loss,
            lr=self.optimizer.param_groups[0]["lr"],
            grad_norm=float(self.grad_norm),
            tokens_per_second=tokens_per_second,
            **self.use_of_hardware(tokens_per_second),
            **skipped,
        )
        self.journal.progress(step, loss, tokens_per_second)
        self.start_clock()

    def use_of_hardware(self, tokens_per_second: float) -> dict[str, float]:
        """Model FLOPs utilisation, of all devices together, and the most memory the main process has taken so far."""
        found: dict[str, float] = {}
        if self.peak_flops:
            peak = self.peak_flops * self.accelerator.num_processes
            found["mfu"] = self.flops_per_token * tokens_per_second / peak
        if memory := peak_memory_bytes(self.accelerator.device):
            found["peak_memory_bytes"] = memory
        return found

    def evaluates_at(self, step: int) -> bool:
        """At `evaluation.first`, every `evaluation.every` steps from there and, on request, at each epoch's end."""
        when = self.recipe.evaluation
        at_end_of_epoch = when.at_epoch_end and step > 0 and step % self.job.plan.steps_per_epoch == 0
        return at_end_of_epoch or (step >= when.first and (step - when.first) % when.every == 0)

    def evaluate(self, step: int) -> None:
        """Loss on the training and the validation text, and a look at what the model writes."""
        self.stop_if_not_finite()
        how, data = self.recipe.evaluation, self.job.data
        losses = {
            f"{name}_loss": loss_on_windows(self.model, windows, how.tokens, self.accelerator)
            for name, windows in data.evaluated.items()
        }
        if not all(math.isfinite(loss) for loss in losses.values()):
            raise self.stopped(f"a loss evaluated at step {step} is not finite")
        if "validation_loss" in losses:
            self.validated = (step, losses["validation_loss"])
        judged = losses.get("validation_loss", losses["eval_train_loss"])
        self.journal.metrics(**self.position(), **losses, perplexity=perplexity(judged), **self.in_bytes(losses))
        words = "  ".join(
            f"{name.removesuffix('_loss').replace('_', ' ')} {loss:.3f}" for name, loss in losses.items()
        )
        self.journal.say(f"step {step}: {words}  perplexity {perplexity(judged):,.1f}")
        for prompt in how.prompts:
            text = generate_text(
                self.accelerator.unwrap_model(self.model),
                data.tokenizer,
                prompt,
                max_new_tokens=how.sample_tokens,
                temperature=how.temperature,
                top_k=how.top_k,
                seed=self.recipe.seed,
            )
            self.journal.sample(step, prompt, text)
            self.journal.say("    " + escape_unprintable(" ".join(text.split()), one_line=True, limit=_SAMPLE_SHOWN))
        self.start_clock()

    def in_bytes(self, losses: Mapping[str, float]) -> dict[str, float]:
        """The validation loss as `bits_per_byte`; nothing where the bytes are not known."""
        if "validation_loss" not in losses or self.targets_and_bytes is None:
            return {}
        return {"bits_per_byte": bits_per_byte(losses["validation_loss"], *self.targets_and_bytes)}

    @functools.cached_property
    def targets_and_bytes(self) -> tuple[int, int] | None:
        """Of the validation text that is evaluated."""
        data = self.job.data
        return targets_and_bytes(data.evaluated["validation"], data.tokenizer, self.recipe.evaluation.tokens)

    def saves_at(self, step: int) -> bool:
        """Every `checkpoint.every` steps, and at the last one."""
        every = self.recipe.checkpoint.every
        return step == self.job.max_steps or (every is not None and step % every == 0)

    def save(self, step: int) -> None:
        """Write the checkpoint of `step`, let `latest` and perhaps `best` name it, and remove old ones."""
        self.stop_if_not_finite()
        accelerator, run_dir = self.accelerator, self.job.run_dir
        main = accelerator.is_main_process
        best = self.progress.best_validation_loss
        is_best = bool(self.validated and self.validated[0] == step and (best is None or self.validated[1] < best))
        if is_best:
            self.progress.best_validation_loss, self.progress.best_step = self.validated[1], step
        self.progress.seconds = self.seconds()
        self.journal.flush()
        weights = whole_weights(self.model)
        if main and not all(torch.isfinite(tensor).all() for tensor in weights.values()):
            raise self.stopped(f"the weights after step {step} are not finite")
        with checkpoint.writing(run_dir, step) if main else contextlib.nullcontext() as directory:
            progress = dataclasses.asdict(self.progress)
            save_training_state(directory, accelerator, self.model, self.optimizer, progress)
            if main:
                with no_progress_bars():
                    accelerator.unwrap_model(self.model).save_pretrained(directory, state_dict=weights)
                self.job.data.tokenizer.save_pretrained(directory)
                write_card(directory, run_dir)
        if main:
            every = self.recipe.hub.push_every
            if every is None or step % every == 0 or step == self.job.max_steps:
                self.offer_for_publishing()
            self.tidy_checkpoints()
            if step != self.job.max_steps:
                self.report_if_cheap()
        accelerator.wait_for_everyone()
        self.start_clock()

    def offer_for_publishing(self) -> None:
        """The newest checkpoint, and for `main` the best one; without a validation text that is the newest too."""
        folder, best = self.job.run_dir / "checkpoints", self.progress.best_step
        newest = folder / checkpoint.name_of(self.progress.step)
        shown = newest if best is None else folder / checkpoint.name_of(best)
        self.publisher.offer(newest, shown if shown.is_dir() else None)

    def tidy_checkpoints(self) -> None:
        """Let `latest` and `best` name what they should, show the newest plot, and remove what is not to be kept.

        After each checkpoint, and again when a run goes on: it may have died between writing one and this.
        """
        run_dir, step, best = self.job.run_dir, self.progress.step, self.progress.best_step
        newest = run_dir / "checkpoints" / checkpoint.name_of(step)
        checkpoint.point(run_dir, "latest", newest)
        if (newest / "loss.png").is_file():
            copy_file(newest / "loss.png", run_dir / "loss.png")
        if best is not None and (run_dir / "checkpoints" / checkpoint.name_of(best)).is_dir():
            checkpoint.point(run_dir, "best", run_dir / "checkpoints" / checkpoint.name_of(best))
        checkpoint.prune(run_dir, self.recipe.checkpoint.keep, self.publisher.needed)

    def end(self) -> Run:
        """Close what is open, say where things are, and hand over the run."""
        job, accelerator = self.job, self.accelerator
        if self.recipe.tracking.to:
            accelerator.end_training()
        model = accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)
        model.eval()
        return Run(job.run_dir, self.recipe, model, job.data.tokenizer, accelerator.is_main_process)

    def position(self) -> dict[str, float]:
        """What every line of metrics starts with."""
        step = self.progress.step
        return {
            "step": step,
            "tokens": self.progress.tokens,
            "epoch": round(step / self.job.plan.steps_per_epoch, 6),
            "seconds": round(self.seconds(), 3),
        }

    def seconds(self) -> float:
        """How long the run has taken, over all the times it was started."""
        return self.seconds_before + time.monotonic() - self.started

    def stop_if_not_finite(self) -> None:
        """Raises :class:`RunStopped` if a loss or gradient was not finite. Looking waits for the device."""
        if bad := int(self.first_bad_step):
            seen = self.what_was_seen(bad, self.first_bad_norm)
            self.journal.event("not finite", bad, **seen)
            windows = ", ".join(map(str, seen["windows"][:8])) + (", ..." if len(seen["windows"]) > 8 else "")
            raise self.stopped(
                f"the loss or the gradient of step {bad} is not finite; its gradient norm is {seen['grad_norm']},"
                f" its windows are {windows}"
            )

    def stopped(self, what: str) -> RunStopped:
        """The end of a run that cannot go on, with where to go back to."""
        good = checkpoint.pointed(self.job.run_dir, "latest")
        if good is None:
            return RunStopped(f"{what}; there is no checkpoint yet; a lower optimizer.lr may help")
        branch = (
            f"--from {self.job.run_dir}@{checkpoint.step_of(good)} with a lower optimizer.lr and another --output_dir"
        )
        return RunStopped(f"{what}; the last good checkpoint is {good}; try {branch}")

    def interrupted(self, step: int, number: int) -> BaseException:
        """The end of a run that was asked to stop, and has saved."""
        self.journal.event("stopped", step, signal=signal.Signals(number).name)
        self.report()
        what = f"stopped and saved after step {step}; the same command goes on from there"
        if number == signal.SIGINT:
            return KeyboardInterrupt(what)
        return RunPreempted(f"{signal.Signals(number).name}: {what}")

    def start_clock(self) -> None:
        """Tokens per second count from here, so that evaluating and saving do not."""
        self.clock, self.clock_tokens = time.monotonic(), self.progress.tokens

    def write_down_what_runs(self, goes_on: bool) -> None:
        """`recipe.yaml`, `environment.json`, and the recipe for the trackers."""
        if self.accelerator.is_main_process:
            write_text(self.job.run_dir / "recipe.yaml", self.recipe.to_yaml())
            if not goes_on:
                path = self.job.run_dir / "environment.json"
                same_id = {key: value for key, value in read_json(path).items() if key == "run_id"}
                write_json(path, self.job.environment | same_id | {"peak_flops": self.peak_flops})
        self.accelerator.wait_for_everyone()
        if self.recipe.tracking.to:
            self.accelerator.init_trackers(
                self.job.run_dir.name,
                config=None if self.trackers_know(goes_on) else dict(self.told_to_trackers()),
                init_kwargs=self.tracker_run(),
            )

    def trackers_know(self, goes_on: bool) -> bool:
        """Whether the trackers were told the recipe when the run began."""
        return goes_on and set(self.recipe.tracking.to) <= set(self.job.earlier.tracking.to)

    def told_to_trackers(self) -> Iterator[tuple[str, Any]]:
        """The recipe; tensorboard takes no null and no list."""
        for name, value in flat(self.recipe):
            yield name, value if isinstance(value, (bool, int, float, str)) else str(value)

    def tracker_run(self) -> dict[str, dict[str, Any]]:
        """What makes the trackers go on in the run they began, from where this one goes on."""
        run_id = read_json(self.job.run_dir / "environment.json").get("run_id")
        name = f"{self.job.run_dir.name}-{run_id}"
        return {
            "tensorboard": {"purge_step": self.progress.step + 1},
            "wandb": {"id": run_id, "name": name, "resume": "allow"},
            "trackio": {"name": name, "resume": "allow"},
        }

    def write_down_history(self, found: Path | None, problems: Mapping[Path, str]) -> None:
        """What a run that goes on, or starts over, adds to its events; before the recipe that it now has."""
        step, processes = self.progress.step, self.accelerator.num_processes
        for damaged, problem in problems.items():
            self.journal.event("damaged checkpoint", step, checkpoint=damaged.name, problem=problem)
        for change in self.job.changes:
            self.journal.event("changed", step, what=change)
        if found is None and self.job.earlier is not None:
            self.journal.event("restarted", step, processes=processes)
        elif found is not None and step < self.job.max_steps:
            self.journal.event("resumed", step, checkpoint=found.name, processes=processes)
        self.journal.flush()

    def tidy_what_was_left(self) -> None:
        """The checkpoints and the plot of a run that goes on, as they would be if it had not stopped."""
        if self.accelerator.is_main_process:
            self.offer_for_publishing()
            self.tidy_checkpoints()
        self.accelerator.wait_for_everyone()
