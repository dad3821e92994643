"""Read a file of weights: memory-mapped where it can be, and without running anything that is in it."""

import re
import warnings
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from ..errors import UserError
from .table import StateDict

# What torch.compile and DistributedDataParallel put before every name.
WRAPPERS = re.compile(r"^(?:(?:_orig_mod|module)\.)+")
# The causal masks that GPT-2 and the book kept among the weights.
MASK = re.compile(r"\.(attn\.(bias|masked_bias)|att\.mask)$")

_FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def read_file(path: Path, sections: Iterable[str] = ()) -> tuple[StateDict, dict[str, Any]]:
    """The weights in a file of safetensors or `torch.save`, but for masks, and what else the file holds.

    Args:
        sections: keys under which a training script may have put the weights beside other things.

    Raises:
        UserError: it is not such a file, is damaged, holds a pickle that asks for more than weights, or weights that
            are not floating-point numbers.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; give one that torch.save or safetensors wrote")
    content = _load(path)
    others = {}
    for section in sections:
        if isinstance(content, dict) and isinstance(content.get(section), dict):
            others, content = content, content[section]
            break
    if not isinstance(content, dict):
        raise UserError(
            f"{path}: holds a {type(content).__name__}, not a state dict; "
            "write one with torch.save(model.state_dict(), 'model.pth')"
        )
    weights = {}
    for name, value in content.items():
        if not isinstance(value, torch.Tensor):
            others = {**others, name: value}
        elif not MASK.search(str(name)):
            if value.layout is not torch.strided or value.is_meta or value.dtype not in _FLOATS:
                kind = "meta" if value.is_meta else f"{value.layout}, {value.dtype}".replace("torch.", "")
                raise UserError(
                    f"{path}: {name} is a tensor of another kind ({kind}); only dense weights in float32, bfloat16, "
                    "float16 or float64 can be converted"
                )
            weights[str(name)] = value
    if not weights:
        raise UserError(f"{path}: holds no weights")
    return weights, others


def can_be_mapped(path: Path) -> bool:
    """Whether a file is mapped into memory when it is read: all but those of `torch.save` before torch 1.6."""
    return path.suffix == ".safetensors" or zipfile.is_zipfile(path)


def _load(path: Path) -> Any:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with warnings.catch_warnings():  # about pickle protocols; an error follows that says more
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True, mmap=can_be_mapped(path))
    except SafetensorError as error:
        raise UserError(f"{path}: not a complete safetensors file ({error})") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None
    except Exception as error:  # damaged and hostile files raise anything in the unpickler
        raise UserError(_why_not_loaded(path, error)) from None


def _why_not_loaded(path: Path, error: Exception) -> str:
    text = " ".join(str(error).split())
    if "GLOBAL" in text or "TorchScript" in text or "Unsupported class" in text or "Trying to" in text:
        wanted = text.partition("Unsupported global: GLOBAL ")[2].split(" ")[0]
        return (
            f"{path}: holds more than weights{f' ({wanted})' if wanted else ''} and is not read, "
            "because a pickle can run code; save the weights alone: torch.save(model.state_dict(), 'model.pth')"
        )
    why = text.partition("WeightsUnpickler error: ")[2].split(" Please file")[0] or text or type(error).__name__
    return f"{path}: not a complete file of torch.save ({why[:150]})"
