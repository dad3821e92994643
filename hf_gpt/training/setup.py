"""From a recipe to everything the training loop needs, with every `auto` resolved.

The parts are prepared elsewhere: the text in `data.py`, the model in `model.py`, device and precision in
`hardware.py`, the processes in `distributed.py`. Whether the run in a folder can be resumed is for `resume.py` to say.
"""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, broadcast_object_list
from transformers import PreTrainedModel

from ..data.batches import BatchPlan
from ..recipe import Recipe
from ..storage import local_path, refuse_unwritable
from . import deepspeed
from .data import Data, batch_plan, prepare_data
from .distributed import has_weights, start_accelerator, together
from .hardware import pays_to_compile, resolve_attention, resolve_hardware
from .milestones import Milestone, schedule
from .model import build_model, find_pretrained, refuse_prompts
from .provenance import changes_of_environment, describe_environment
from .resume import (
    Change,
    changes_of_recipe,
    describe_parent,
    earlier_recipe,
    find_parent,
    read_environment,
    run_and_step,
)
from .seen import Begun, begun, num_steps


@dataclass
class Job:
    """Everything a training loop needs."""

    recipe: Recipe  # every `auto` resolved
    run_dir: Path
    accelerator: Accelerator
    data: Data
    plan: BatchPlan
    model: PreTrainedModel
    max_steps: int
    begun: Begun
    milestones: dict[int, Milestone]  # by step
    environment: dict[str, Any]
    changes: list[Change]  # of the recipe of the run in `run_dir`
    warnings: list[str]  # what else a person who resumes a run should know
    earlier: Recipe | None  # of the run that `run_dir` holds
    parent: Path | None  # the checkpoint of another run that this one starts from

    def describe(self) -> Iterator[str]:
        """What is about to happen, line by line."""
        yield from self.data.describe()
        train, processes = self.recipe.train, self.accelerator.num_processes
        precision = {"no": "fp32"}.get(train.mixed_precision, train.mixed_precision)
        yield (
            f"model      {type(self.model).__name__}, {self.model.num_parameters():,} parameters, {precision} on"
            f" {processes} x {train.device}, {'compiled' if train.compile else 'not compiled'}"
        )
        windows, epochs = self.plan.global_batch_size, self.max_steps / self.plan.steps_per_epoch
        each = f" ({windows // processes} on each of {processes} devices)" if processes > 1 else ""
        steps = f"{self.max_steps:,} steps of {windows} windows{each}"
        yield f"training   {steps}, {epochs:.2f} epochs, into {self.run_dir}"


def prepare(recipe: Recipe, parent: str | None = None, data: Data | None = None) -> Job:
    """Resolve `recipe` and build what it names. Nothing is written but the caches.

    Args:
        parent: `RUN@STEP` (or `RUN`, for its latest checkpoint): the run to branch off from.
        data: what `prepare_data` found for `recipe`, if it was asked already.

    Raises:
        UserError: anything in the recipe that cannot work here, including an output folder that holds another run.
    """
    run_dir = local_path(recipe.output_dir, "output_dir")
    refuse_unwritable(run_dir, "output_dir")
    earlier = earlier_recipe(run_dir)
    pretrained = find_pretrained(recipe.model, run_and_step(parent)[0] if parent else run_dir)
    recipe = resolve_hardware(recipe, earlier, pretrained)
    accelerator = start_accelerator(recipe)
    with together(accelerator):
        data = data or prepare_data(recipe, pretrained)
    recipe = dataclasses.replace(recipe, train=resolve_attention(recipe.train, data.config))
    plan = batch_plan(data.recipe, data.windows, accelerator.num_processes)
    accelerator.gradient_accumulation_steps = plan.accumulation
    if deepspeed.asked_for():
        deepspeed.configure(accelerator, recipe, plan)
    train = dataclasses.replace(
        recipe.train, global_batch_size=plan.global_batch_size, gradient_accumulation_steps=None
    )
    branched_from = find_parent(run_dir, parent, data.config, data.tokenizer, recipe.optimizer.name)
    its_parent = read_environment(run_dir / "environment.json").get("parent")
    its_parent = its_parent if branched_from is None else describe_parent(branched_from)
    begins = begun(its_parent, plan)
    max_steps = num_steps(train, plan, begins)
    if train.compile == "auto":
        tokens_per_step = plan.global_batch_size * data.windows.context_length
        pays = pays_to_compile(train.device, data.config, max_steps, tokens_per_step)
        sharded = accelerator.distributed_type == DistributedType.FSDP  # where it was not tried
        train = dataclasses.replace(train, compile=pays and not sharded)
    recipe = dataclasses.replace(data.recipe, train=train)
    changes = changes_of_recipe(run_dir, earlier, recipe, data.config) if earlier is not None else []
    environment = describe_environment(run_dir, accelerator, data)
    if branched_from is not None:
        environment["parent"] = its_parent

    torch.manual_seed(recipe.model_seed)
    with together(accelerator):
        model = build_model(recipe, data.config, data.pretrained, has_weights(accelerator))
        if has_weights(accelerator):
            refuse_prompts(recipe.evaluation, model, data.tokenizer, recipe.seed)
    (model.generation_config,) = broadcast_object_list([model.generation_config])
    if accelerator.process_index > 0:  # the same weights everywhere, but dropout of one's own
        torch.manual_seed(recipe.model_seed + 7919 * accelerator.process_index)

    return Job(
        recipe=recipe,
        run_dir=run_dir,
        accelerator=accelerator,
        data=data,
        plan=plan,
        model=model,
        max_steps=max_steps,
        begun=begins,
        milestones=schedule(recipe.checkpoint.milestones, plan, max_steps, begins),
        environment=environment,
        changes=changes,
        earlier=earlier,
        warnings=changes_of_environment(run_dir, environment),
        parent=branched_from,
    )
