"""The model of a run: from its configuration, or from weights that were trained already."""

import copy
from dataclasses import dataclass
from pathlib import Path

import torch
from torch._guards import detect_fake_mode
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from .. import checkpoint
from ..configuration_gpt import GPTConfig
from ..data.tokenizer import vocab_size
from ..errors import UserError, did_you_mean
from ..loading import reading, skeleton
from ..modeling_gpt import GPTForCausalLM
from ..recipe import ModelRecipe, Recipe


@dataclass(frozen=True)
class Pretrained:
    """What `model.from_pretrained` names: a folder in our layout, and for a Hub id the commit.

    It is looked up once for a run: the branch that it names may move in the meantime.
    """

    folder: Path
    commit: str | None


def model_config(recipe: ModelRecipe, tokenizer: PreTrainedTokenizerFast, pretrained: Pretrained | None) -> GPTConfig:
    """The configuration a recipe names, with the tokenizer's vocabulary unless a size is given.

    Raises:
        UserError: an impossible shape, an unknown field or preset, or a vocabulary smaller than the tokenizer's.
    """
    known = GPTConfig._own_names()
    for name in recipe.config:
        if name not in known:
            raise UserError(f"model.{name}: unknown key{did_you_mean(name, known | {'preset', 'from_pretrained'})}")
    special = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    size = vocab_size(tokenizer)
    fields = {"vocab_size": size, **special, **recipe.config}
    given = recipe.config.get("vocab_size")
    if isinstance(given, int) and given < size:
        raise UserError(_too_small(given, size))
    with reading("model", "no model can have its configuration"):
        if pretrained:
            config = GPTConfig.from_pretrained(pretrained.folder, **recipe.config)
        elif recipe.preset:
            config = GPTConfig.from_preset(recipe.preset, **fields)
        else:
            config = GPTConfig(**fields)
    skeleton(lambda: GPTForCausalLM(copy.deepcopy(config)), config, "model", must_fit=False)
    for name in special:
        ids = getattr(config, name) if name in recipe.config else None
        for given in ids if isinstance(ids, list) else [] if ids is None else [ids]:
            if not 0 <= given < config.vocab_size:
                raise UserError(f"model.{name}: there is no token {given}; ids are 0 to {config.vocab_size - 1}")
    if config.vocab_size < size:
        raise UserError(_too_small(config.vocab_size, size))
    return config


def build_model(recipe: Recipe, config: GPTConfig, pretrained: Pretrained | None) -> GPTForCausalLM:
    """The model of a recipe, in fp32, with new weights or those of `pretrained`.

    Raises:
        UserError: it cannot be built or its weights cannot be read.
    """
    attention = recipe.train.attn_implementation
    if detect_fake_mode() is None:  # an estimate tries out models that other machines are to train
        skeleton(lambda: GPTForCausalLM(copy.deepcopy(config)), config, "model")
    with reading("model" if pretrained is None else f"model: {recipe.model.from_pretrained}"):
        if pretrained:
            model, report = AutoModelForCausalLM.from_pretrained(
                pretrained.folder,
                config=config,
                attn_implementation=attention,
                dtype=torch.float32,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
            )
            checkpoint.refuse_missing_weights(recipe.model.from_pretrained, report)
        else:
            model = GPTForCausalLM._from_config(config, attn_implementation=attention)
    if recipe.train.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    return model


def _too_small(vocabulary: int, size: int) -> str:
    return (
        f"model.vocab_size: {vocabulary} is smaller than the tokenizer's {size} entries; raise it to {size} or leave"
        " it out (a model that was trained already wants the tokenizer it was trained with)"
    )
