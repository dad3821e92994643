"""A trial of a run: the loop of `training/loop.py` itself, in a temporary folder.

For memory it runs with fake tensors: two updates and an evaluation take seconds and almost no memory, for any size of
model. For time it runs some real steps on this machine. The run's own folder is neither read nor written.

Fake tensors are always on the CPU, and stand in for those of another device. There attention differs, since GPUs have
kernels with dropout, and so does the number of logits from which the loss goes by chunks (`loss.tokens_per_chunk`).
"""

import copy
import dataclasses
import itertools
import tempfile
import time
from typing import Any

from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import PreTrainedModel

from ..data.batches import BatchPlan
from ..loading import reading_model
from ..recipe import EvaluationRecipe, ModelRecipe, Recipe
from ..run import prepare_run, scratch_recipe
from ..training.data import Data
from ..training.hardware import ATTENTION_DROPOUT
from ..training.loop import TrainingRun, run
from ..training.observers import Observer
from ..training.setup import prepare
from .memory import Memory, MemoryTracker

# Two updates, the second of which finds the optimizer's state; then an evaluation.
_UPDATES = 2
# Most steps and seconds to time. The first step, which is slower, counts only if it is the only one.
_TIMED_STEPS = 20
MOST_SECONDS = 30


def memory_of_run(recipe: Recipe, data: Data, plan: BatchPlan, on_gpu: bool) -> tuple[PreTrainedModel, Memory]:
    """The model and the memory of the run, from fake tensors on the CPU."""
    config = copy.deepcopy(data.config)
    train = dataclasses.replace(
        recipe.train,
        device="cpu",
        compile=False,
        global_batch_size=None,
        gradient_accumulation_steps=min(2, plan.accumulation),  # further micro-batches are like the second
    )
    if on_gpu:
        if train.mixed_precision == "fp16":  # of the same size
            train.mixed_precision = "bf16"
        if train.attn_implementation != "eager":  # a GPU's kernels do not keep the weights that dropout is drawn for
            train.attn_implementation = "auto"
            text_config = config.get_text_config()
            for name in ATTENTION_DROPOUT:
                if hasattr(text_config, name):
                    setattr(text_config, name, 0.0)
    with tempfile.TemporaryDirectory(prefix="hf_gpt-estimate-") as scratch:
        recipe = dataclasses.replace(
            scratch_recipe(data.recipe, scratch),
            model=ModelRecipe(),  # it is built from `config`, also where weights are there to continue
            train=train,
            evaluation=EvaluationRecipe(first=_UPDATES, tokens=1, prompts=[]),
        )
        data = dataclasses.replace(data, recipe=recipe, config=config, pretrained=None)
        trying = reading_model("model", "cannot be tried without contents")  # where shapes follow from the tokens
        with trying, FakeTensorMode(allow_non_fake_inputs=True), MemoryTracker() as tracker:
            job = prepare(recipe, data=data)
            job.max_steps = _UPDATES + 1
            job.accelerator.device_placement = False  # the model is there, and fake weights cannot be moved
            run(job, [_OnAGpu()] if on_gpu else [], until=_UPDATES)
    return job.model, tracker.memory()


def seconds_of_steps(recipe: Recipe) -> list[float]:
    """How long each of some real steps takes."""
    clock = _Clock()
    with tempfile.TemporaryDirectory(prefix="hf_gpt-estimate-") as scratch:
        recipe = dataclasses.replace(
            scratch_recipe(recipe, scratch),
            train=dataclasses.replace(recipe.train, log_every=1),  # which waits for the device in each step
            evaluation=EvaluationRecipe(first=10**9, prompts=[]),
        )
        job = prepare_run(recipe)
        job.max_steps = max(job.max_steps, _TIMED_STEPS + 2)  # the last step would be saved
        clock.times.append(time.monotonic())
        try:
            run(job, [clock], until=_TIMED_STEPS + 1)
        except _TimeIsUp:
            pass
        except KeyboardInterrupt:
            raise KeyboardInterrupt("interrupted; nothing was kept") from None
    seconds = [end - start for start, end in itertools.pairwise(clock.times)]
    return seconds[1:] or seconds


class _OnAGpu(Observer):
    """Lets the loss make as many logits at once as on a GPU."""

    required = True

    def began(self, training: TrainingRun) -> None:
        training.loss.stands_for = "cuda"


class _Clock(Observer):
    """Notes when each step is done, and ends the run when time is up."""

    required = True  # so that what it raises ends the run

    def __init__(self) -> None:
        self.times: list[float] = []

    def stepped(self, training: TrainingRun, step: int, metrics: dict[str, Any] | None) -> None:
        self.times.append(time.monotonic())
        if self.times[-1] - self.times[0] > MOST_SECONDS:
            raise _TimeIsUp


class _TimeIsUp(Exception):
    """Ends the run that is timed."""
