"""What resuming needs beyond the weights: the optimizer, the gradient scaler, the random states, and how far we are.

    training_state/optimizer.safetensors      the optimizer's tensors, as <parameter>/exp_avg and so on
    training_state/state.json                 its parameter groups, the gradient scaler, and the progress of the run
    training_state/random.safetensors         the random state of each process, for the CPU and its device
    training_state/weights.safetensors        the weights in fp32, where the model's own file has them in another dtype

Nothing here is pickled, so nothing can be executed when it is read. The order of the data and the learning rate are
pure functions of the step and need no state. torch.distributed.checkpoint gathers weights and the optimizer's state by
parameter name, whatever wraps the model (DDP, FSDP2, torch.compile), and spreads them again over as many processes as
there are then. Another number of them sees the same windows in the same steps, but draws other dropout.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from transformers import AutoModelForCausalLM, PreTrainedModel

from ..checkpoint import TRAINING_STATE, listed, opened, save_model, step_of, weight_files
from ..errors import UserError
from ..loading import quiet, with_weights
from ..storage import read_json, write_json
from ..texts import VALIDATION
from . import deepspeed
from .distributed import has_weights

_MASTER_WEIGHTS = f"{TRAINING_STATE}/weights.safetensors"
_Count = Annotated[int, Field(ge=0, lt=10**18)]  # what the name of a checkpoint has room for
_Real = Annotated[float, Field(ge=0, allow_inf_nan=False)]


@dataclass
class Progress:
    """How far a run is; saved with each checkpoint."""

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)  # what reading checks

    step: _Count = 0
    tokens: _Count = 0
    words: _Count | None = 0  # None: it was saved before they were counted
    seconds: _Real = 0.0
    best_validation_loss: _Real | None = None  # of a checkpoint
    best_step: _Count | None = None
    best_on: str = VALIDATION  # the text that this loss is on
    skipped: _Count = 0  # updates whose gradient was not finite

    @classmethod
    def read(cls, path: Path) -> "Progress":
        """What a `state.json` says. Raises :class:`UserError` if it is damaged or cannot be read."""
        try:
            return TypeAdapter(cls).validate_json(json.dumps({"words": None, **read_json(path).get("progress", {})}))
        except (ValidationError, TypeError):
            raise UserError(f"{path}: is damaged, or of another program") from None


_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)
_WEIGHTS = StateDictOptions(full_state_dict=True, strict=False)  # a tied head is not in the file


def whole_weights(loss: nn.Module) -> dict[str, torch.Tensor]:
    """The weights of the model in a prepared `CausalLMLoss`, under that model's names.

    Gathered on the main process's CPU; empty on the others where they are sharded.
    """
    model = _model_inside(loss)
    weights = get_model_state_dict(model, options=_WHOLE)
    return {name: weight for name, weight in weights.items() if name not in model.all_tied_weights_keys}


def save_weights(
    checkpoint: Path, model: PreTrainedModel, weights: dict[str, torch.Tensor], dtypes: Mapping[str, torch.dtype]
) -> None:
    """Write the model into `checkpoint`, each weight in its dtype. If that rounds any, write training's own too."""
    kept = {name: one.to(dtypes[name]) if one.is_floating_point() else one for name, one in weights.items()}
    if any(kept[name].dtype != weight.dtype for name, weight in weights.items()):
        save_file({name: weight.contiguous() for name, weight in weights.items()}, checkpoint / _MASTER_WEIGHTS)
    save_model(model, checkpoint, kept, dtypes[""])


def read_weights(checkpoint: Path, model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """The weights that training had at a checkpoint, under the names that `model` has for them.

    Raises:
        UserError: one is missing, or has another shape.
    """
    rounded = _MASTER_WEIGHTS in listed(checkpoint)
    weights: dict[str, torch.Tensor] = {}
    for file in [checkpoint / _MASTER_WEIGHTS] if rounded else weight_files(checkpoint):
        weights |= load_file(file)
    names = model.state_dict().keys() - model.all_tied_weights_keys.keys()
    if not rounded and weights.keys() != names:  # as of experts, which files hold one by one, and a model stacks
        options = {"config": model.config, "dtype": torch.float32}
        with quiet(), torch.random.fork_rng(devices=[]):
            stacked, _ = with_weights(AutoModelForCausalLM, opened(checkpoint), str(checkpoint), **options)
        weights = stacked.state_dict()
    return {name: weights[name] for name in names}


def save_training_state(
    checkpoint: Path | None,
    accelerator: Accelerator,
    loss: nn.Module,
    optimizer: torch.optim.Optimizer | None,
    progress: Progress,
) -> None:
    """Write every process's training state into `checkpoint`. All call it; the main one has the path and writes.

    Without an optimizer it is the progress alone, which a card is written from.
    """
    about = {"processes": accelerator.num_processes, "progress": asdict(progress)}
    if optimizer is None:
        if checkpoint is not None:
            write_json(checkpoint / TRAINING_STATE / "state.json", about)
        return
    if deepspeed.is_engine(loss):
        optimizer_state = deepspeed.optimizer_state(loss)
    else:
        optimizer_state = get_optimizer_state_dict(_model_inside(loss), optimizer.optimizer, options=_WHOLE)
    random = gather_object([_random_state(accelerator.device)])
    if checkpoint is None:
        return
    tensors = {
        f"{parameter}/{name}": torch.as_tensor(value).contiguous()
        for parameter, values in optimizer_state["state"].items()
        for name, value in values.items()
    }
    directory = checkpoint / TRAINING_STATE
    save_file(tensors, directory / "optimizer.safetensors")
    save_file(
        {f"{rank}.{name}": state for rank, states in enumerate(random) for name, state in states.items()},
        directory / "random.safetensors",
    )
    scaler = accelerator.scaler.state_dict() if accelerator.scaler is not None else None
    write_json(
        directory / "state.json",
        {
            **about,
            "param_groups": optimizer_state["param_groups"],
            "scaler": scaler,
        },
    )


def load_training_state(
    checkpoint: Path, accelerator: Accelerator, loss: nn.Module, optimizer: torch.optim.Optimizer, seed: int
) -> Progress:
    """Restore the weights and what `save_training_state` wrote, on every process, and return its `progress`.

    Learning rate, betas and weight decay stay those that `optimizer` has. Where the number of processes is another
    one than the checkpoint's, each starts its dropout's random stream from `seed`.

    Raises:
        UserError: something in the checkpoint is not what was written there.
    """
    try:
        return _load(checkpoint, accelerator, loss, optimizer, seed)
    except (UserError, torch.distributed.DistError):
        raise
    except Exception as error:  # torch and safetensors have many for what is not as they wrote it
        raise UserError(f"{checkpoint}: its weights or training state cannot be read: {error!r}") from error


def _load(
    checkpoint: Path, accelerator: Accelerator, loss: nn.Module, optimizer: torch.optim.Optimizer, seed: int
) -> Progress:
    directory = checkpoint / TRAINING_STATE
    state = read_json(directory / "state.json")
    progress = Progress.read(directory / "state.json")
    if progress.step != step_of(checkpoint):
        raise UserError(f"{checkpoint}: its training_state/state.json is of another step")
    model, reads, sent = _model_inside(loss), has_weights(accelerator), accelerator.is_fsdp2  # by the main process
    weights = read_weights(checkpoint, model) if reads else {}
    set_model_state_dict(model, weights, options=replace(_WEIGHTS, broadcast_from_rank0=sent))
    del weights

    hyperparameters = [{k: v for k, v in g.items() if k != "params"} for g in optimizer.optimizer.param_groups]
    optimizer_state = {"state": {}, "param_groups": state["param_groups"]}
    shapes = {name: parameter.shape for name, parameter in model.named_parameters(remove_duplicate=False)}
    for name, tensor in load_file(directory / "optimizer.safetensors").items() if reads else ():
        parameter, _, kind = name.rpartition("/")
        if tensor.ndim and tensor.shape != shapes.get(parameter, tensor.shape):  # which torch would not look at
            raise UserError(f"{checkpoint}: its optimizer's {name} has another shape than the parameter")
        optimizer_state["state"].setdefault(parameter, {})[kind] = tensor
    if deepspeed.is_engine(loss):
        deepspeed.set_optimizer_state(loss, optimizer_state["state"])
    else:
        options = replace(_WHOLE, broadcast_from_rank0=sent)
        set_optimizer_state_dict(model, optimizer.optimizer, optimizer_state if reads else {}, options=options)
    for group, values in zip(optimizer.optimizer.param_groups, hyperparameters):
        parameters = group["params"]
        group.clear()
        group.update(values, params=parameters)

    if accelerator.scaler is not None and state["scaler"] is not None:
        accelerator.scaler.load_state_dict(state["scaler"])
    rank = accelerator.process_index
    if state["processes"] == accelerator.num_processes:
        random = load_file(directory / "random.safetensors")
        _set_random_state(accelerator.device, {kind: random[f"{rank}.{kind}"] for kind in ("cpu", "device")})
    else:
        torch.manual_seed(hash((seed, rank, progress.step)) % 2**63)  # of integers: always the same
    return progress


def _model_inside(loss: nn.Module) -> nn.Module:
    """The transformers model; DDP and DeepSpeed wrap the loss once more, FSDP2 wraps nothing."""
    return getattr(loss, "module", loss).model


def _random_state(device: torch.device) -> dict[str, torch.Tensor]:
    cpu = torch.get_rng_state()
    return {"cpu": cpu, "device": cpu.clone() if device.type == "cpu" else _of(device).get_rng_state()}


def _set_random_state(device: torch.device, state: dict[str, torch.Tensor]) -> None:
    torch.set_rng_state(state["cpu"])
    if device.type != "cpu":
        _of(device).set_rng_state(state["device"])


def _of(device: torch.device) -> Any:
    """`torch.cuda`, `torch.mps` ..., which keep the random state of such devices."""
    return getattr(torch, device.type)
