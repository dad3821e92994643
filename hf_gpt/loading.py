"""Models of strangers: their files may hold anything, and what cannot be used ends in one line.

`reading_model` surrounds every place where transformers reads a folder that may not be ours. `skeleton` builds a model
with shapes and no contents, so that what its class refuses, sizes that no tensor can have, and weights that do not fit
into memory are found in milliseconds, before any are read or made. What their configurations say is asked here too:
whether it is a causal language model, its positions, its window.
"""

import contextlib
import pickle
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

# Building a skeleton takes a millisecond a layer. No model that was published has more than a few hundred.
_MOST_LAYERS = 10_000
_SIZES = ("num_hidden_layers", "num_attention_heads", "hidden_size", "vocab_size", "max_position_embeddings")
_LONGEST_REASON = 300
POSITIONS = ("max_position_embeddings", "max_seq_len")  # MPT's, whose ALiBi is a table of so many
"""What configurations call the number of tokens that a model takes at once."""
_NO_LENGTH = 10**9  # where there is none, transformers says 10**30


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

    sizes = {field: getattr(config.get_text_config(), field, None) for field in _SIZES}
    for field, size in sizes.items():
        if isinstance(size, int) and size < 1:
            raise UserError(f"{name}: no model can have its configuration: {field} is {size}")
    if isinstance(layers := sizes["num_hidden_layers"], int) and layers > _MOST_LAYERS:
        raise UserError(f"{name}: no model can have its configuration: {layers:,} layers, of at most {_MOST_LAYERS:,}")
    problem = "no model can have its configuration"
    with reading_model(name, problem), torch.device("meta"), no_init_weights(), torch.random.fork_rng(devices=[]):
        model = build()
    if must_fit:
        _refuse_larger_than_memory(model, name)
    return model


def own_fields(kind: "type[PreTrainedConfig]") -> set[str]:
    """The fields of a type of model, without those that all configurations of transformers have."""
    from transformers import PreTrainedConfig

    return kind.__dataclass_fields__.keys() - PreTrainedConfig.__dataclass_fields__.keys()


def num_positions(config: "PreTrainedConfig") -> int | None:
    """How many tokens a model takes at once; None without a limit, such as that of a Mamba or a BLOOM."""
    text = config.get_text_config()
    return next((length for name in POSITIONS if (length := getattr(text, name, None))), None)


def context_length(config: "PreTrainedConfig", tokenizer: "PreTrainedTokenizerBase") -> int:
    """The window of a model in its own checkpoint: what its tokenizer was saved with, at most its positions.

    Raises:
        UserError: neither has a limit.
    """
    length = min(num_positions(config) or _NO_LENGTH, tokenizer.model_max_length)
    if length >= _NO_LENGTH:
        what = f"a {config.model_type} model takes texts of any length; say how long windows are to be"
        raise UserError(f"{what}, as model_max_length in its tokenizer_config.json")
    return length


def refuse_other_models(config: "PreTrainedConfig", name: str, text_alone: bool = True) -> None:
    """Refuse what is not a causal language model, and with `text_alone` one that takes images or sound too.

    Raises:
        UserError: it is not; it names the type.
    """
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    kind = config.model_type
    if config.is_encoder_decoder:
        raise UserError(f"{name}: a {kind} model is an encoder with a decoder, and no causal language model")
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise UserError(f"{name}: transformers has no causal language model of the type {kind}")
    if text_alone and (config.get_text_config(decoder=True) is not config or hasattr(config, "vision_config")):
        raise UserError(f"{name}: a {kind} model takes more than text; name a causal language model")


def with_weights(
    model_class: type, folder: Path | None, name: str, **options: Any
) -> tuple["PreTrainedModel", list[str]]:
    """`model_class.from_pretrained(folder, **options)`, and the names of weights that the model has no place for.

    The weights may have been saved out of a compiled or distributed model.

    Raises:
        UserError: a weight is missing or has another shape; transformers would draw it at random and only warn.
    """
    from .configuration_gpt import WRAPPERS, forget_wrappers

    options |= {"output_loading_info": True, "ignore_mismatched_sizes": True, "key_mapping": {WRAPPERS: ""}}
    model, report = model_class.from_pretrained(folder, **options)
    forget_wrappers(model)
    more = "and {} more of the model's weights"
    if missing := sorted(report["missing_keys"]):
        raise UserError(f"{name}: lacks {missing[0]} {more.format(len(missing) - 1)}")
    if others := sorted(map(tuple, report["mismatched_keys"])):
        weight, found, needed = others[0]
        what = f"has other shapes than its config.json for {weight} ({[*found]}, not {[*needed]})"
        raise UserError(f"{name}: {what} {more.format(len(others) - 1)}")
    return model, sorted(report["unexpected_keys"])


def say_unused(name: str, unused: list[str]) -> None:
    """Tell a person which weights of a model are not used: it may be another model than its config.json says."""
    if unused:
        more = f" and {len(unused) - 1} more" if len(unused) > 1 else ""
        text = f"{unused[0]}{more} of its weights have no place in the model of its config.json, and are left out"
        print(f"{name}: warning: {text}", file=sys.stderr)


def reason(error: Exception) -> str:
    """What an exception of a library says, for a message in one line."""
    from huggingface_hub.errors import StrictDataclassError

    if isinstance(error, StrictDataclassError) and error.__cause__ is not None:  # which names the field
        error = error.__cause__
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, KeyError):
        text = f"{text} is missing"
    return text if len(text) <= _LONGEST_REASON else text[:_LONGEST_REASON] + " ..."


@contextlib.contextmanager
def reading_model(name: str, problem: str = "cannot be loaded as a model") -> Iterator[None]:
    """Reads files quietly; whatever goes wrong is a `UserError` about `name`, which is what the user calls them."""
    try:
        with quiet():
            yield
    except (UserError, MemoryError):
        raise
    except pickle.UnpicklingError:
        raise UserError(f"{name}: its weights are a pickle that could run code, and were not read") from None
    except Exception as error:
        if type(error).__name__ == "OutOfMemoryError":  # torch's, which is not imported here
            raise
        # Dozens of classes, of transformers and of what it uses, each fail in their own way.
        raise UserError(f"{name}: {problem}: {reason(error)}") from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without transformers' progress bars and reports; whoever loads checks what is missing or unexpected."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars
    from transformers.utils import logging

    hub_has_none = are_progress_bars_disabled()
    verbosity, had_bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if had_bar:
            logging.enable_progress_bar()  # and those of huggingface_hub
        if hub_has_none:
            disable_progress_bars()


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
