"""Read a file of weights: memory-mapped where possible, and without running any code that is in it."""

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

# The causal masks that GPT-2 and the book kept among the weights.
MASK = re.compile(r"\.(attn\.(bias|masked_bias)|att\.mask)$")

_FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def read_file(path: Path, sections: Iterable[str] = ()) -> tuple[StateDict, dict[str, Any]]:
    """The weights in a file of safetensors or `torch.save`, without masks, and what else the file holds.

    Args:
        sections: keys under which a training script may have put the weights beside other things.

    Raises:
        UserError: it is not such a file, is damaged, holds objects that are not data, or weights that are not
            floating-point numbers.
    """
    content = _load(path)
    others = {}
    for section in sections:
        if isinstance(content, dict) and isinstance(content.get(section), dict):
            others, content = content, content[section]
            break
    if not isinstance(content, dict):
        raise UserError(
            f"{path}: holds a {type(content).__name__}, not a state dict; "
            "save one with torch.save(model.state_dict(), 'model.pth')"
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
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    except Exception as error:  # damaged and hostile files raise anything in the unpickler
        text = " ".join(str(error).split()) or type(error).__name__
        why = text.partition("WeightsUnpickler error: ")[2] or text[:150]
        why = re.split(r"\. Please | Check the documentation ", why)[0]
        raise UserError(
            f"{path}: not a file of weights alone ({why}); anything else is not read, because a pickle can run code; "
            "save them with torch.save(model.state_dict(), 'model.pth')"
        ) from None
