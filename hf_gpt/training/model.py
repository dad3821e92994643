"""The model of a run: any causal language model of transformers, from its configuration or from trained weights.

Nothing here knows a type of model: a type's own configuration class says which fields a recipe may give and what a new
model is like, and `AutoModelForCausalLM` makes it. Our GPT is one of these types; only earlier versions made it of a
GPT-2 that was to be continued.
"""

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch._guards import detect_fake_mode
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.initialization import no_init_weights

from .. import checkpoint
from ..configuration_gpt import GPTConfig
from ..data.tokenizer import content_of, load_tokenizer, vocab_size
from ..errors import UserError, did_you_mean
from ..generation import try_out
from ..loading import POSITIONS, own_fields, reading_model, refuse_other_models, say_unused, skeleton, with_weights
from ..probing import changes_weights, isolates_documents, refuse_later_tokens
from ..recipe import EvaluationRecipe, ModelRecipe, Recipe, config_class


@dataclass(frozen=True)
class Pretrained:
    """What `model.from_pretrained` names: its folder, and for a Hub id the commit.

    It is looked up once for a run: the branch that it names may move in the meantime. What the run's tokenizer is, is
    known once that is loaded (`with_tokenizer`).
    """

    folder: Path
    config_class: type[PreTrainedConfig]
    commit: str | None
    special_ids: Mapping[str, int | None] = field(default_factory=dict)
    has_another_tokenizer: bool = False

    def describe(self) -> Iterator[str]:
        """A line for people, where checkpoints round what training computes."""
        dtype = str(checkpoint.dtypes_of(self.folder)[""]).removeprefix("torch.")
        if dtype != "float32":
            yield f"weights    {dtype} in checkpoints, as they came; float32 in training"

    def with_tokenizer(self, tokenizer: PreTrainedTokenizerFast) -> "Pretrained":
        """The same model, for a run with `tokenizer`."""
        try:
            another = content_of(load_tokenizer(str(self.folder))) != content_of(tokenizer)
        except UserError:  # the folder has none
            another = True
        return replace(self, special_ids=_special_ids(tokenizer), has_another_tokenizer=another)

    def follow_tokenizer(self, config: PreTrainedConfig | GenerationConfig, given: Mapping[str, Any]) -> None:
        """Name the special tokens of the run's tokenizer in a configuration, or those that the recipe has `given`.

        A model may know more than its own tokenizer does: several ends of a text, or a token for padding.
        """
        for name, new in self.special_ids.items():
            earlier = getattr(config, name, None)
            known = [None, *(earlier if isinstance(earlier, list) else [earlier])]
            if name in given:
                setattr(config, name, given[name])
            elif self.has_another_tokenizer or new not in known:
                setattr(config, name, new)
        if self.has_another_tokenizer and isinstance(config, GenerationConfig):
            for name in _IDS_OF_GENERATION:
                setattr(config, name, None)


def find_pretrained(recipe: ModelRecipe, run_dir: str | Path | None = None) -> Pretrained | None:
    """The model that `model.from_pretrained` names.

    Args:
        run_dir: of a resumed run. If an earlier version converted its GPT-2, the model is that of its checkpoint.

    Raises:
        UserError: it is not there, or is no causal language model of transformers.
    """
    if not recipe.from_pretrained:
        return None
    source = checkpoint.model_folder(recipe.from_pretrained, recipe.revision)
    folder = checkpoint.opened(source)
    with reading_model("model", f"{recipe.from_pretrained} cannot be continued"):
        found = PreTrainedConfig.get_config_dict(folder)[0]
        kind = found.get("model_type")
        if kind not in CONFIG_MAPPING and "auto_map" in found:
            raise UserError(
                f"model: {recipe.from_pretrained} is a {kind} model, which transformers does not have; the code that"
                " comes with it is never run"
            )
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        refuse_other_models(config, f"model: {recipe.from_pretrained}")
        if kind == "gpt2" and run_dir and (whole := checkpoint.newest_whole(run_dir)[0]):
            trained = AutoConfig.from_pretrained(whole)
            folder, config = (whole, trained) if isinstance(trained, GPTConfig) else (folder, config)
    commit = source.name if source.parent.name == "snapshots" else None  # of the Hub's cache
    return Pretrained(folder, type(config), commit)


# Settings of `generate()` that hold ids of one tokenizer.
_IDS_OF_GENERATION = (
    "bad_words_ids",
    "begin_suppress_tokens",
    "decoder_start_token_id",
    "force_words_ids",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "sequence_bias",
    "suppress_tokens",
)


def _special_ids(tokenizer: PreTrainedTokenizerFast) -> dict[str, int | None]:
    return {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}


def canonical_field_names(fields: Mapping[str, Any], kind: type[PreTrainedConfig]) -> dict[str, Any]:
    """One name for each field, so that a recipe with the book's names is the same run as one with the Hub's.

    It is one that a recipe may give: some types map a field to a name that is none of their fields.

    Raises:
        UserError: two names of a field have two values.
    """
    known, named = own_fields(kind), {}
    for name, value in fields.items():
        newer = kind.attribute_map.get(name)
        field = newer if newer in known else name
        if named.setdefault(field, value) != value:
            raise UserError(f"model.{field}: {named[field]} and, by another name, {value}; give it once")
    return named


def named_config(recipe: ModelRecipe, pretrained: Pretrained | None, **of_run: Any) -> PreTrainedConfig:
    """The configuration that a recipe names; a new model has what the recipe leaves open from `of_run`.

    Raises:
        UserError: an impossible shape, an unknown field, type or preset.
    """
    kind = pretrained.config_class if pretrained else config_class(recipe.model_type)
    known = own_fields(kind) | set(kind.attribute_map)
    if "rope_parameters" in known and not pretrained:
        known |= {"rope_theta", "rope_scaling"}  # its names before transformers 5
    for name in recipe.config:
        if name not in known:
            others = {"preset", "model_type", "from_pretrained"}
            raise UserError(f"model.{name}: unknown key{did_you_mean(name, known | others)}")
    with reading_model("model", "no model can have its configuration"):
        if pretrained:
            return AutoConfig.from_pretrained(pretrained.folder, trust_remote_code=False, **recipe.config)
        left_open = {name: value for name, value in of_run.items() if name.endswith("_id") or name in known}
        fields = canonical_field_names(left_open, kind) | canonical_field_names(recipe.config, kind)
        config = kind.from_preset(recipe.preset, **fields) if recipe.preset else kind(**fields)
    refuse_other_models(config, "model")
    return config


def model_config(
    recipe: ModelRecipe, tokenizer: PreTrainedTokenizerFast, pretrained: Pretrained | None, positions: int | None
) -> PreTrainedConfig:
    """The configuration a recipe names, with the tokenizer's vocabulary and `positions` unless it gives others.

    Raises:
        UserError: an impossible shape, an unknown field, type or preset, or a vocabulary smaller than the tokenizer's.
    """
    size = vocab_size(tokenizer)
    of_run = {"vocab_size": size, **_special_ids(tokenizer)}
    if positions and not recipe.preset:
        of_run |= dict.fromkeys(POSITIONS, positions)
    config = named_config(recipe, pretrained, **of_run)
    if config.vocab_size < size:
        raise _too_small(config.vocab_size, size, pretrained is not None)
    if pretrained:
        pretrained.follow_tokenizer(config, recipe.config)
    skeleton(lambda: _untrained(copy.deepcopy(config)), config, "model", must_fit=False)
    for name in _special_ids(tokenizer):
        ids = getattr(config, name) if name in recipe.config else None
        for given in ids if isinstance(ids, list) else [] if ids is None else [ids]:
            if not 0 <= given < config.vocab_size:
                raise UserError(f"model.{name}: there is no token {given}; ids are 0 to {config.vocab_size - 1}")
    return config


def build_model(
    recipe: Recipe, config: PreTrainedConfig, pretrained: Pretrained | None, has_weights: bool = True
) -> PreTrainedModel:
    """The model of a recipe, in fp32, with new weights or those of `pretrained`.

    Without weights, which another process sends, its parameters are memory that nothing is written to.

    Raises:
        UserError: it cannot be built, its weights cannot be read, or a token's logits depend on later tokens.
    """
    attention = recipe.train.attn_implementation
    if detect_fake_mode() is None:  # an estimate tries out models that other machines are to train
        skeleton(lambda: _untrained(copy.deepcopy(config)), config, "model")
    with reading_model("model" if pretrained is None else f"model: {recipe.model.from_pretrained}"):
        if not has_weights:
            with no_init_weights():
                model = _untrained(config, attn_implementation=attention, dtype=torch.float32)
            model.tie_weights()
        elif pretrained:
            name, options = recipe.model.from_pretrained, {"attn_implementation": attention, "dtype": torch.float32}
            model, unused = with_weights(AutoModelForCausalLM, pretrained.folder, name, config=config, **options)
            say_unused(name, unused)
            if model.config.tie_word_embeddings and model.get_output_embeddings() is not None:
                # transformers 5 leaves two matrices that differ apart, and 4 would make one of them
                head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
                model.config.tie_word_embeddings = head.weight is embeddings.weight
            try:
                model.generation_config.validate(strict=True)
            except ValueError:  # transformers reads such settings, to no effect, and refuses to save them
                model.generation_config = GenerationConfig.from_model_config(config)
            pretrained.follow_tokenizer(model.generation_config, recipe.model.config)
        else:
            model = _untrained(config, attn_implementation=attention)
    if isinstance(embeddings := model.get_input_embeddings(), nn.Embedding):
        embeddings.padding_idx = None  # nothing is padded here, and that token's row would never learn
    if has_weights and detect_fake_mode() is None:
        _refuse_unfit(model, recipe.data.isolate_documents)
    if recipe.train.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    return model


def _refuse_unfit(model: PreTrainedModel, isolate_documents: bool) -> None:
    kind = model.config.model_type
    with reading_model("model", f"a {kind} model fails with this configuration"):
        if changes_weights(model):
            remedy = "; set model.rescale_every to 0" if hasattr(model.config, "rescale_every") else ""
            raise UserError(f"model: evaluating a {kind} model changes its weights, which would then be saved{remedy}")
        refuse_later_tokens(model, "model")
        if isolate_documents and not isolates_documents(model):
            what = f"the positions of a {kind} model do not keep documents apart; set it to false"
            raise UserError(what, field="data.isolate_documents", value=True)


def _untrained(config: PreTrainedConfig, **options: Any) -> PreTrainedModel:
    return AutoModelForCausalLM.from_config(config, trust_remote_code=False, **options)


def refuse_prompts(
    evaluation: EvaluationRecipe, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, seed: int
) -> None:
    """Refuse now what the first evaluation would refuse after hours.

    Raises:
        UserError: of a prompt, or of a setting of sampling.
    """
    settings = {name: getattr(evaluation, name) for name in ("temperature", "top_k")}
    try:
        try_out(model, tokenizer, evaluation.prompts, seed, max_new_tokens=evaluation.sample_tokens, **settings)
    except UserError as error:
        names = {"prompt": "evaluation.prompts", "max_new_tokens": "evaluation.sample_tokens"}
        raise error.renamed(names | {name: f"evaluation.{name}" for name in settings}) from None


def _too_small(vocabulary: int, size: int, is_pretrained: bool) -> UserError:
    if is_pretrained:
        return UserError(
            f"tokenizer: has {size:,} entries, and the model to continue knows {vocabulary:,}; leave tokenizer out"
            f" (null) to use the one it was trained with, or name one with at most {vocabulary:,}"
        )
    return UserError(
        f"model.vocab_size: {vocabulary} is smaller than the tokenizer's {size} entries; raise it to {size} or leave"
        " it out"
    )
