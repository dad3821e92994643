"""What every conversion does with its result: write it whole or not at all, and compare its logits with the source's.

The source has computed its logits before, in a way of its own, and is gone from memory. Here the new model is made,
saved and dropped; then the saved one is loaded as anybody would load it, and asked for the same logits. Only if they
agree does the directory get its name.
"""

import contextlib
import copy
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from ..checkpoint import refuse_missing_weights
from ..configuration_gpt import GPTConfig
from ..data.tokenizer import load_tokenizer
from ..errors import UserError
from .destination import Destination
from .weights import WRAPPERS

_NUM_TOKENS = 64
# How far logits may be apart, as a part of the largest of them (or of 1, if that is larger): two ways to sum the same
# products. A wrong conversion is off by about the logits themselves.
_TOLERANCES = {torch.float64: 1e-5, torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 5e-2}

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "vocab.txt", "tokenizer.model")


@dataclass(frozen=True)
class Conversion:
    """What was converted into what, and how it was checked.

    `difference` is the largest distance of two logits over `num_tokens` tokens.
    """

    destination: str
    model_class: str
    num_parameters: int
    dtype: str
    tokenizer: str
    difference: float
    num_tokens: int
    notes: tuple[str, ...]

    def describe(self) -> list[str]:
        """The lines that a person reads."""
        return [
            f"model      {self.destination}: {self.model_class}, {self.num_parameters:,} parameters, {self.dtype}",
            f"tokenizer  {self.tokenizer}",
            *(f"note       {note}" for note in self.notes),
            f"checked    logits agree to {self.difference:.1e} on {self.num_tokens} tokens",
        ]


@dataclass(frozen=True)
class Logits:
    """`values` are a model's logits for the token ids `ids` (1, tokens), in any shape.

    Their dtype is the one that they were computed in, with the weights converted to it.
    """

    ids: torch.LongTensor
    values: torch.Tensor


def gpt_config(where: str, fields: dict[str, Any]) -> GPTConfig:
    """Our configuration of what was found in `where`.

    Raises:
        UserError: no model can have it.
    """
    try:
        return GPTConfig(**fields)
    except ValueError as error:
        raise UserError(f"{where}: {error}") from None


def shapes_of(
    where: str, model_class: type[PreTrainedModel], config: PreTrainedConfig, untied: bool = False
) -> dict[str, tuple[int, ...]]:
    """The shapes of a model's weights by name; a tied head is none of its own, unless it is asked for (`untied`).

    Raises:
        UserError: there is no such model as the configuration in `where` says.
    """
    config = copy.deepcopy(config)
    config.tie_word_embeddings = config.tie_word_embeddings and not untied
    try:
        model = _without_memory(model_class, config)
    except (ValueError, KeyError) as error:
        raise UserError(f"{where}: {error}") from None
    except (TypeError, RuntimeError) as error:  # of torch, with what it was called with
        raise UserError(f"{where}: no tensor can have such sizes: {str(error).partition('. ')[0]}") from None
    tied = model.all_tied_weights_keys
    return {name: tuple(weight.shape) for name, weight in model.state_dict().items() if name not in tied}


def made_of(
    model_class: type[PreTrainedModel], config: PreTrainedConfig, state: dict[str, torch.Tensor]
) -> PreTrainedModel:
    """A model whose weights are the tensors of `state` themselves."""
    given: set[int] = set()
    for name, weight in state.items():  # of a file that had one weight under two names
        state[name] = weight.clone() if weight.data_ptr() in given else weight
        given.add(weight.data_ptr())
    model = _without_memory(model_class, config)
    missing, unexpected = model.load_state_dict(state, strict=False, assign=True)
    model.tie_weights()
    lacking = set(missing) - set(model.all_tied_weights_keys)
    assert not lacking, lacking
    assert not unexpected, unexpected
    return model.eval()


def write(
    out: Destination,
    make_model: Callable[[], PreTrainedModel],
    *,
    source: str,
    source_logits: Logits,
    tokenizer: PreTrainedTokenizerBase | None,
    tokenizer_note: str,
    generation_config: GenerationConfig | Path | None = None,
    notes: Sequence[str] = (),
) -> Conversion:
    """Make the model, save it with its tokenizer and generation config, and compare its logits with the source's.

    Args:
        make_model: called once; nothing else may hold what it returns, so that it is gone before the comparison.
        generation_config: the source's, or its file, which is then copied as it is.

    Raises:
        UserError: the logits do not agree, or the weights cannot be written. Nothing is left behind.
    """
    dtype_compared = source_logits.values.dtype
    with out.writing() as directory:
        with _quiet():
            model = make_model()
            model_class, num_parameters = type(model), model.num_parameters()
            dtype = str(model.dtype).removeprefix("torch.")
            if isinstance(generation_config, GenerationConfig):
                model.generation_config = generation_config
            try:
                model.save_pretrained(directory)
            except SafetensorError as error:
                raise UserError(f"{out.name}: the weights cannot be written: {error}") from None
            del model
            if tokenizer is not None:
                tokenizer.save_pretrained(directory)
        if isinstance(generation_config, Path):
            shutil.copyfile(generation_config, directory / generation_config.name)
        result_logits = logits_of(model_class, directory, source_logits.ids, dtype_compared)[0]
        difference = (result_logits.values.float() - source_logits.values.float()).abs().max().item()
        largest = source_logits.values.float().abs().max().item()
        if not largest < float("inf"):
            raise UserError(f"{source}: its logits are not finite, so there is nothing to compare a result with")
        if not difference <= _TOLERANCES[dtype_compared] * max(1.0, largest):
            raise UserError(
                f"{source}: the result's logits differ from the source's by {difference:.1e} (the largest is "
                f"{largest:.1f}), so it is not the same model, and nothing was written"
            )
    return Conversion(
        destination=out.name,
        model_class=model_class.__name__,
        num_parameters=num_parameters,
        dtype=dtype,
        tokenizer=tokenizer_note,
        difference=difference,
        num_tokens=source_logits.ids.shape[1],
        notes=tuple(notes),
    )


def token_ids(vocab_size: int, max_positions: int) -> torch.LongTensor:
    """The tokens that logits are compared on, (1, up to 64): any will do that differ."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(vocab_size, (1, min(_NUM_TOKENS, max_positions)), generator=generator)


@torch.inference_mode()
def logits_of(
    model_class: type[PreTrainedModel], folder: Path, ids: torch.LongTensor, dtype: torch.dtype, wrapped: bool = False
) -> tuple[Logits, GenerationConfig | None]:
    """The logits of the model in `folder`, loaded for this alone, and the generation config that it was loaded with.

    `from_pretrained` maps the file, so that a model takes the memory of its weights once, and none when it is gone.

    Args:
        dtype: to compute in: that of the weights (the widest of them, for which the others are converted). The one in
            config.json may be another, and to compare in less than the weights have would tell less.
        wrapped: the names of the weights begin as `weights.WRAPPERS` says.

    Raises:
        UserError: it cannot be loaded, or what is there does not fill the model.
    """
    with _quiet():
        try:
            model, report = model_class.from_pretrained(
                folder,
                dtype=dtype,
                key_mapping={WRAPPERS.pattern: ""} if wrapped else None,
                local_files_only=True,
                output_loading_info=True,
            )
        except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            raise UserError(f"{folder}: {model_class.__name__} cannot load it: {error}") from None
    refuse_missing_weights(str(folder), report)
    outputs = model.eval()(input_ids=ids, use_cache=False)
    values = [outputs[name].flatten() for name in ("logits", "start_logits", "end_logits") if name in outputs]
    return Logits(ids, torch.cat(values)), getattr(model, "generation_config", None)


def tokenizer_for(
    asked_for: str | None, folder: Path | None, num_embeddings: int
) -> tuple[PreTrainedTokenizerBase | None, str]:
    """The tokenizer that goes with the result, and what to say about it.

    Args:
        asked_for: what `--tokenizer` names (see `load_tokenizer`), `"none"`, or None for the one in `folder`.

    Raises:
        UserError: there is no such tokenizer, or the one that was asked for has more ids than the model has
            embeddings. Of the source's own that is said, no more: the source is like that.
    """
    if asked_for == "none":
        return None, "none, as asked for"
    if asked_for is None:
        if folder is None or not any((folder / name).is_file() for name in _TOKENIZER_FILES):
            return None, "none: the source has none; --tokenizer names one to put with the model"
        try:
            tokenizer = load_tokenizer(str(folder.resolve()))
        except UserError as error:
            raise UserError(f"{error}; --tokenizer none leaves it out") from None
        return tokenizer, f"the source's, {ids_of(tokenizer, num_embeddings)}"
    tokenizer = load_tokenizer(asked_for)
    if _num_ids(tokenizer) > num_embeddings:
        raise UserError(
            f"--tokenizer {asked_for}: it has {_num_ids(tokenizer):,} ids, the model embeddings for "
            f"{num_embeddings:,}; name the tokenizer that the model was trained with, or none"
        )
    return tokenizer, f"{asked_for}, {ids_of(tokenizer, num_embeddings)}"


def ids_of(tokenizer: PreTrainedTokenizerBase, num_embeddings: int) -> str:
    """How many ids a tokenizer has, for a person, with a warning if the model does not know all of them."""
    ids = f"{_num_ids(tokenizer):,} ids"
    if _num_ids(tokenizer) <= num_embeddings:
        return ids
    return f"{ids}, but the model has embeddings for {num_embeddings:,}: text with the others will fail"


def _num_ids(tokenizer: PreTrainedTokenizerBase) -> int:
    """As `tokenization.vocab_size`, without the encoder that it would make, which is larger than the tokenizer."""
    return max(tokenizer.get_vocab().values()) + 1


def _without_memory(model_class: type[PreTrainedModel], config: PreTrainedConfig) -> PreTrainedModel:
    with torch.device("meta"):
        return model_class(config)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the libraries' progress bars and loading reports: what is missing or too much is looked at here."""
    verbosity, had_bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if had_bar:
            logging.enable_progress_bar()
