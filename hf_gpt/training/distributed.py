"""The processes of a run, through accelerate: how many there are, what each is on, and what they do together."""

import contextlib
import datetime
import os
from collections.abc import Iterator, Mapping

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import (
    FullyShardedDataParallelPlugin,
    broadcast_object_list,
    disable_fsdp_ram_efficient_loading,
    parse_flag_from_env,
)
from torch import nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy
from transformers import PreTrainedModel

from ..errors import UserError
from ..loss import CausalLMLoss
from ..recipe import Recipe
from ..storage import local_path
from . import deepspeed


def start_accelerator(recipe: Recipe) -> Accelerator:
    here = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if recipe.train.device == "cuda" and here > (gpus := torch.cuda.device_count()):
        raise UserError(
            f"train: {here} processes were started on this machine, and it has {gpus} GPUs; start one for each"
            " (num_processes counts those of all machines), or use train.device: cpu"
        )
    # accelerate keeps its state for the whole process; a notebook's second run may want another device or precision.
    if PartialState._shared_state and int(os.environ.get("WORLD_SIZE", 1)) == 1:
        AcceleratorState._reset_state(reset_partial_state=True)
    options = {"cpu": recipe.train.device == "cpu", "mixed_precision": recipe.train.mixed_precision}
    if deepspeed.asked_for():
        options = deepspeed.accelerator_options(recipe)
    elif parse_flag_from_env("ACCELERATE_USE_FSDP"):
        options |= _sharding(recipe.train.mixed_precision)
    try:
        accelerator = Accelerator(
            **options,
            log_with=recipe.tracking.to or None,
            project_dir=str(local_path(recipe.output_dir)),
        )
    except ValueError as error:
        raise UserError(f"train: {error}") from None
    _refuse_fewer_processes(accelerator.num_processes)
    return accelerator


def _sharding(mixed_precision: str) -> dict[str, FullyShardedDataParallelPlugin]:
    """For FSDP2: whole weights are on the main process alone, and the loss and sums of gradients are in fp32.

    By accelerate's own policy these sums are in the lower precision: a sum of losses has three digits, or overflows in
    fp16. Under DDP and autocast they are in fp32.
    """
    if os.environ.get("FSDP_VERSION") != "2":
        return {}
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(mixed_precision)
    policy = dtype and MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
    plugin = FullyShardedDataParallelPlugin(cpu_ram_efficient_loading=True, mixed_precision_policy=policy)
    disable_fsdp_ram_efficient_loading()  # in transformers, which would leave out weights wherever a model is read
    return {"fsdp_plugin": plugin}


def has_weights(accelerator: Accelerator) -> bool:
    """Whether this process has a model's weights before `prepare`. Under FSDP2 only the main one has."""
    return accelerator.is_main_process or not accelerator.is_fsdp2


def prepare(
    accelerator: Accelerator, loss: CausalLMLoss, optimizer: torch.optim.Optimizer
) -> tuple[nn.Module, torch.optim.Optimizer]:
    """`accelerator.prepare`. Under FSDP2 the main process sends the others what only it has."""
    if not accelerator.is_fsdp2:
        return accelerator.prepare(loss, optimizer)
    plugin = accelerator.state.fsdp_plugin
    plugin.transformer_cls_names_to_wrap = plugin.transformer_cls_names_to_wrap or block_classes(loss.model)
    (loss.head_makes_logits,) = broadcast_object_list([loss.head_makes_logits])
    # accelerate takes all that a state dict holds for sharded weights, also buffers, such as those of some routers.
    modules = [(module, module._non_persistent_buffers_set) for module in loss.modules()]
    for module, _ in modules:
        module._non_persistent_buffers_set = set(module._buffers)
    loss, optimizer = accelerator.prepare(loss, optimizer)
    for module, not_saved in modules:
        module._non_persistent_buffers_set = not_saved
    for buffer in loss.buffers():
        torch.distributed.broadcast(buffer, src=0)
    return loss, optimizer


def block_classes(model: PreTrainedModel) -> list[str]:
    """The names of the classes of a model's blocks, each of which FSDP2 gathers by itself.

    A class of models may name blocks of its relatives too, which accelerate would look for. Where it names none, they
    are what the model has lists of.
    """
    lists = (blocks for blocks in model.modules() if isinstance(blocks, nn.ModuleList))
    named = model._no_split_modules or {type(block).__name__ for blocks in lists for block in blocks}
    return sorted({type(module).__name__ for module in model.modules()} & set(named))


@contextlib.contextmanager
def together(accelerator: Accelerator) -> Iterator[None]:
    """All processes leave the block together, however much longer one of them takes: no time-out as in training.

    Of the processes of one machine one tokenises; of several machines without a common disk, one on each.
    """
    if accelerator.num_processes == 1:
        yield
        return
    group = torch.distributed.new_group(backend="gloo", timeout=datetime.timedelta(days=30))
    yield
    torch.distributed.barrier(group=group)
    torch.distributed.destroy_process_group(group)


@contextlib.contextmanager
def whole_model(module: nn.Module) -> Iterator[None]:
    """While the block runs, the model inside a prepared module can be called by itself, for `generate()`.

    Under FSDP2 the weights outside of the blocks belong to the root module, which gathers them for its own forward
    pass only. Every process enters the block.
    """
    if not isinstance(module, FSDPModule):
        yield
        return
    module.unshard()
    try:
        yield
    finally:
        module.reshard()


def on_device(batch: Mapping[str, torch.Tensor], device: torch.device) -> dict[str, torch.Tensor]:
    """The batch where the model is; from pinned memory, so that a GPU may still be at work on the step before."""
    if device.type != "cuda":
        return {name: tensor.to(device) for name, tensor in batch.items()}
    return {name: tensor.pin_memory().to(device, non_blocking=True) for name, tensor in batch.items()}


def _refuse_fewer_processes(num_processes: int) -> None:
    """Several processes that do not know of each other would each train alone, into the same folder."""
    launched = int(os.environ.get("WORLD_SIZE", 1))
    # `accelerate launch` names a meeting place when it was asked for several processes, and on a CPU starts one.
    asked_by_accelerate = "ACCELERATE_MIXED_PRECISION" in os.environ and "MASTER_ADDR" in os.environ
    if launched != num_processes:
        found = f"{launched} processes were started, and accelerate uses {num_processes}"
    elif num_processes == 1 and asked_by_accelerate and "WORLD_SIZE" not in os.environ:
        found = "accelerate launch was asked for several processes and started one, as it does without a GPU"
    else:
        return
    raise UserError(
        f"train: {found}; several processes on a CPU are started with ACCELERATE_USE_CPU=true torchrun"
        " --nproc_per_node 2 scripts/train.py RECIPE.yaml"
    )
