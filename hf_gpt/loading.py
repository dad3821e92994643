"""What can be known of a model before its weights are read or made; and transformers kept silent meanwhile.

A configuration comes from a recipe or from a stranger's folder, and may ask for anything. `skeleton` builds the model
with shapes and no contents: whatever its class refuses, and sizes that no tensor can have, are found in milliseconds.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from .errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

# Building a skeleton takes a millisecond a layer. No model that was published has more than a few hundred.
_MOST_LAYERS = 10_000
_LONGEST_REASON = 300


def skeleton(
    build: Callable[[], "PreTrainedModel"], config: "PreTrainedConfig", name: str, must_fit: bool = True
) -> "PreTrainedModel":
    """The model that `build` makes of `config`, without memory for its weights.

    Args:
        name: what the user calls it.
        must_fit: whether the memory of this machine must hold its weights.

    Raises:
        UserError: no model can have this configuration, or its weights do not fit.
    """
    import torch
    from transformers.initialization import no_init_weights

    for field in ("num_hidden_layers", "num_layers"):
        number = getattr(config.get_text_config(), field, 0)
        if isinstance(number, int) and number > _MOST_LAYERS:
            raise UserError(f"{name}: {number:,} layers ({field}): at most {_MOST_LAYERS:,} can be built")
    try:
        with quiet(), torch.device("meta"), no_init_weights(), torch.random.fork_rng(devices=[]):
            model = build()
    except UserError:
        raise
    except Exception as error:  # the classes of transformers and torch's allocation each raise their own
        raise UserError(f"{name}: no model can have its configuration: {reason(error)}") from None
    if must_fit:
        _refuse_larger_than_memory(model, name)
    return model


def reason(error: Exception) -> str:
    """What an exception of a library says, for a message in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = " ".join(lines) or type(error).__name__
    if isinstance(error, KeyError):
        text = f"{text} is missing"
    return text if len(text) <= _LONGEST_REASON else text[:_LONGEST_REASON] + " ..."


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' progress bars and loading reports; whoever loads checks what is missing or unexpected."""
    from transformers.utils import logging

    verbosity, had_bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if had_bar:
            logging.enable_progress_bar()


def memory_of_machine() -> int:
    """Bytes, swap included."""
    import psutil

    return psutil.virtual_memory().total + psutil.swap_memory().total


def _refuse_larger_than_memory(model: "PreTrainedModel", name: str) -> None:
    count = sum(weight.numel() for weight in model.parameters())
    needed = sum(weight.nbytes for weight in model.parameters())
    memory = memory_of_machine()
    if needed > memory:
        sizes = f"take {needed / 2**30:,.0f} GiB, and this machine has {memory / 2**30:,.0f} GiB"
        raise UserError(f"{name}: {count:,} parameters {sizes}")
