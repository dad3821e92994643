"""Write the result of a conversion, load it again as a user would, and compare its logits with the source's.

Every conversion ends in `convert`. Reading the source and computing its logits is left to `gpt2.py`, `openai.py` and
`book.py`.
"""

import copy
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from ..checkpoint import save_model
from ..configuration_gpt import GPTConfig
from ..data.tokenizer import TOKENIZER_FILES, load_tokenizer, save_tokenizer
from ..display import Shown
from ..errors import UserError
from ..loading import quiet, skeleton
from .table import Row, StateDict, free_memory, renamed

_NUM_TOKENS = 64
# How far logits may differ, relative to the largest of them (or to 1, if that is larger): the same products are summed
# in another order. After a wrong conversion logits differ by about their own size.
_TOLERANCES = {torch.float64: 1e-5, torch.float32: 1e-5, torch.float16: 1e-2, torch.bfloat16: 5e-2}


@dataclass(frozen=True, repr=False)
class Conversion(Shown):
    """What was made, and the largest difference between two logits over `num_tokens` tokens."""

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

    def in_short(self) -> str:
        return f"{self.destination}: {self.model_class}, {self.num_parameters:,} parameters, {self.dtype}"


@dataclass(frozen=True)
class Source:
    """A model to convert.

    Args:
        name: what the user calls it.
        load: loads it, or its state dict, anew at each call.
        is_mapped: whether the loaded weights are in memory-mapped files.
        tokenizer: the result's, and a text about it (see `choose_tokenizer`).
        generation_config: a file to copy.
    """

    name: str
    load: Callable[[], PreTrainedModel | StateDict]
    is_mapped: bool
    tokenizer: tuple[PreTrainedTokenizerBase | None, str]
    generation_config: Path | None = None

    def state_dict(self) -> StateDict:
        loaded = self.load()
        return loaded.state_dict() if isinstance(loaded, PreTrainedModel) else loaded


def convert(
    source: Source,
    rows: list[Row],
    logits: torch.Tensor,
    model_class: type[PreTrainedModel],
    config: PreTrainedConfig,
    directory: Path,
    out: str,
    notes: Sequence[str] = (),
) -> Conversion:
    """Write the model that `rows` make of `source` into `directory`, which will become `out`, and compare logits.

    Weights that no row makes are zeros.

    Args:
        logits: the source's for `token_ids`, in the dtype to compute in.

    Raises:
        UserError: the logits do not agree, or the weights cannot be written.
    """
    state = renamed(source.state_dict, rows, source.is_mapped)
    dtype = next(iter(state.values())).dtype
    for name, shape in shapes_of(out, model_class, config).items():
        if name not in state:
            state[name] = torch.zeros(shape, dtype=dtype)
    with quiet():
        num_parameters = _save(model_class, config, state, directory, out)
        free_memory()
        tokenizer, about_tokenizer = source.tokenizer
        if tokenizer is not None:
            save_tokenizer(tokenizer, directory)
        if source.generation_config is not None:
            shutil.copyfile(source.generation_config, directory / "generation_config.json")
        converted = model_class.from_pretrained(directory, dtype=logits.dtype, local_files_only=True)
    ids = token_ids(config)
    difference = (logits_of(converted, ids).float() - logits.float()).abs().max().item()
    largest = logits.float().abs().max().item()
    if not largest < float("inf"):
        raise UserError(f"{source.name}: its logits are not finite, so they cannot be compared")
    if not difference <= _TOLERANCES[logits.dtype] * max(1.0, largest):
        raise UserError(
            f"{source.name}: after the conversion the logits differ by {difference:.1e} (the largest is "
            f"{largest:.1f}), so it is not the same model, and nothing was written"
        )
    return Conversion(
        destination=out,
        model_class=model_class.__name__,
        num_parameters=num_parameters,
        dtype=str(dtype).removeprefix("torch."),
        tokenizer=about_tokenizer,
        difference=difference,
        num_tokens=ids.shape[1],
        notes=tuple(notes),
    )


def _save(
    model_class: type[PreTrainedModel], config: PreTrainedConfig, state: StateDict, directory: Path, out: str
) -> int:
    """Save the model with these weights, empty `state`, and return the number of parameters."""
    model = _without_memory(out, model_class, config)
    model.load_state_dict(state, strict=False, assign=True)
    state.clear()
    model.tie_weights()
    try:
        save_model(model, directory)
    except SafetensorError as error:
        raise UserError(f"{out}: the weights cannot be written: {error}") from None
    return model.num_parameters()


def token_ids(config: PreTrainedConfig) -> torch.LongTensor:
    """Random tokens to compare logits on, (1, up to 64)."""
    num_tokens = min(_NUM_TOKENS, config.max_position_embeddings)
    return torch.randint(config.vocab_size, (1, num_tokens), generator=torch.Generator().manual_seed(0))


@torch.inference_mode()
def logits_of(model: PreTrainedModel, ids: torch.LongTensor) -> torch.Tensor:
    """The outputs of a model's head, whichever it is, as one vector."""
    outputs = model.eval()(input_ids=ids, use_cache=False)
    return torch.cat([outputs[name].flatten() for name in ("logits", "start_logits", "end_logits") if name in outputs])


def our_config(source: str, fields: dict[str, Any]) -> GPTConfig:
    """Our configuration with these `fields`, which were found in `source`."""
    try:
        return GPTConfig(**fields)
    except ValueError as error:
        raise UserError(f"{source}: {error}") from None


def shapes_of(source: str, model_class: type[PreTrainedModel], config: PreTrainedConfig) -> dict[str, tuple[int, ...]]:
    """The shapes of a model's weights by name, without those of a tied head.

    Raises:
        UserError: no model can have the configuration that was found in `source`.
    """
    model = _without_memory(source, model_class, config)
    tied = model.all_tied_weights_keys
    return {name: tuple(weight.shape) for name, weight in model.state_dict().items() if name not in tied}


def choose_tokenizer(
    asked_for: str | None, own: Callable[[], PreTrainedTokenizerBase | None], num_embeddings: int
) -> tuple[PreTrainedTokenizerBase | None, str]:
    """The tokenizer of the result, and a text about it.

    Args:
        asked_for: see `load_tokenizer`, or `"none"`; None for the source's, which `own` loads.

    Raises:
        UserError: there is no such tokenizer, or the one that was asked for has more ids than the model has
            embeddings. If the source's own has, the text says so.
    """
    if asked_for == "none":
        return None, "none, as asked for"
    try:
        tokenizer = own() if asked_for is None else load_tokenizer(asked_for)
    except UserError as error:
        raise UserError(f"{error}; tokenizer 'none' converts without one") from None
    if tokenizer is None:
        return None, "none: the source has none; give one as tokenizer"
    # As `data.tokenizer.vocab_size`, without the encoder that it would make, which is larger than the tokenizer.
    num_ids = max(tokenizer.get_vocab().values()) + 1
    name = "the source's" if asked_for is None else asked_for
    about = f"{name}, {num_ids:,} ids"
    if num_ids <= num_embeddings:
        return tokenizer, about
    about += f", more than the model's {num_embeddings:,} embeddings"
    if asked_for is None:
        return tokenizer, f"{about}: text with the last ones will fail"
    raise UserError(f"{about}; give the tokenizer that the model was trained with, or none", field="tokenizer")


def name_special_tokens(config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase | None) -> None:
    """Let a configuration name the special tokens of the tokenizer that it gets, if it gets another one."""
    if tokenizer is not None:
        for token in ("bos_token_id", "eos_token_id", "pad_token_id"):
            setattr(config, token, getattr(tokenizer, token))


def tokenizer_in(folder: Path) -> PreTrainedTokenizerBase | None:
    """The tokenizer beside a model, if there is one."""
    if not any(any(folder.glob(pattern)) for pattern in TOKENIZER_FILES):
        return None
    return load_tokenizer(str(folder.resolve()))


def _without_memory(name: str, model_class: type[PreTrainedModel], config: PreTrainedConfig) -> PreTrainedModel:
    return skeleton(lambda: model_class(copy.deepcopy(config)), config, name)
