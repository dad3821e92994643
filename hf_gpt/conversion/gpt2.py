"""Stock GPT-2 into our model and back, bit for bit.

transformers' own GPT-2 loads the source, so every layout that it knows can be read: with and without the prefix
`transformer.`, with old masks, with the tied head written out, in shards, in `.bin`. `table.TABLE` then has the names.
The language model and the three heads that both packages have are converted. What one of the two models cannot express
is refused by name.
"""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import (
    GPT2Config,
    GPT2ForQuestionAnswering,
    GPT2ForSequenceClassification,
    GPT2ForTokenClassification,
    GPT2LMHeadModel,
    PreTrainedConfig,
    PreTrainedModel,
)

from ..checkpoint import model_folder, opened, weight_files
from ..configuration_gpt import GPTConfig
from ..errors import UserError
from ..loading import reading_model, with_weights
from ..modeling_gpt import (
    GPTForCausalLM,
    GPTForQuestionAnswering,
    GPTForSequenceClassification,
    GPTForTokenClassification,
)
from ..storage import new_directory
from .files import MASK, can_be_mapped, read_file
from .result import (
    Conversion,
    Source,
    choose_tokenizer,
    convert,
    logits_of,
    name_special_tokens,
    our_config,
    shapes_of,
    token_ids,
    tokenizer_in,
)
from .table import Layout, free_memory, rows_between

# GPT-2's class, ours.
_CLASSES: tuple[tuple[type[PreTrainedModel], type[PreTrainedModel]], ...] = (
    (GPT2LMHeadModel, GPTForCausalLM),
    (GPT2ForSequenceClassification, GPTForSequenceClassification),
    (GPT2ForTokenClassification, GPTForTokenClassification),
    (GPT2ForQuestionAnswering, GPTForQuestionAnswering),
)
# GPT-2's field, ours.
_FIELDS = {
    "vocab_size": "vocab_size",
    "n_positions": "max_position_embeddings",
    "n_embd": "hidden_size",
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_inner": "intermediate_size",
    "activation_function": "hidden_act",
    "resid_pdrop": "dropout",
    "attn_pdrop": "attention_dropout",
    "embd_pdrop": "embedding_dropout",
    "layer_norm_epsilon": "layer_norm_eps",
    "initializer_range": "initializer_range",
    "tie_word_embeddings": "tie_word_embeddings",
    "use_cache": "use_cache",
    "bos_token_id": "bos_token_id",
    "eos_token_id": "eos_token_id",
    "pad_token_id": "pad_token_id",
}
# GPT-2's that our model has no field for, and the value that it always has.
_FIELDS_FIXED = {"add_cross_attention": False, "scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False}
# Fields of all of transformers' configurations that a classifier needs.
_LABEL_FIELDS = ("id2label", "label2id", "problem_type", "classifier_dropout")


def from_gpt2(source: str, out: str, tokenizer: str | None = None) -> Conversion:
    """Convert a GPT-2 checkpoint, a directory or a Hub id, into our model in the new directory `out`.

    `tokenizer`: instead of the source's (see `load_tokenizer`), or `"none"`.

    A head that is tied in config.json but written out with other values becomes a head of its own, as transformers
    loads it.

    Raises:
        UserError: it is not GPT-2, or a GPT-2 that our model cannot express, or damaged.
    """
    with new_directory(out) as directory:
        folder = opened(model_folder(source))
        config = _config(folder, source, GPT2Config, "GPT-2")
        for field, fixed in _FIELDS_FIXED.items():
            if (value := getattr(config, field)) is not fixed:
                raise UserError(f"{source}: config.json has {field}={value}; only {fixed} can be converted")
        their_class, our_class = _classes(config, source)
        ours = our_config(source, fields_from_gpt2(config) | _labels(config, our_class))
        stock = _source(folder, source, their_class, config, tokenizer)
        name_special_tokens(ours, stock.tokenizer[0] if tokenizer else None)
        return convert_model(stock, ("gpt2", "ours"), our_class, ours, directory, out)


def to_gpt2(model: str, out: str, tokenizer: str | None = None) -> Conversion:
    """Convert our model, a directory, a run or a Hub id, into a stock GPT-2 checkpoint in the new directory `out`.

    The result needs neither this package nor remote code. Query, key and value biases that our model lacks are zeros.
    `tokenizer`: instead of the source's (see `load_tokenizer`), or `"none"`.

    Raises:
        UserError: it is not our model, or one that GPT-2 cannot express, or damaged.
    """
    with new_directory(out) as directory:
        folder = opened(model_folder(model))
        config = _config(folder, model, GPTConfig, "a model of this package")
        theirs = stock_config(config, model)
        our_class, their_class = _classes(config, model)
        shapes_of(model, our_class, config)  # refuses what no model can have
        ours = _source(folder, model, our_class, config, tokenizer)
        name_special_tokens(theirs, ours.tokenizer[0] if tokenizer else None)
        zeros = "query, key and value biases, which GPT-2 has and the model lacks, are zeros"
        notes = [] if config.qkv_bias else [zeros]
        return convert_model(ours, ("ours", "gpt2"), their_class, theirs, directory, out, notes)


def stock_config(config: PreTrainedConfig, source: str) -> GPT2Config:
    """The configuration of the stock GPT-2 that is our model `source`.

    Raises:
        UserError: it is not our model, or one that GPT-2 cannot express.
    """
    if not isinstance(config, GPTConfig):
        raise UserError(f"{source}: its type is {config.model_type}, and only this package's GPT becomes a GPT-2")
    if config.is_heterogeneous:
        raise UserError(f"{source}: its layers have different configurations (per_layer_config); GPT-2's have one")
    fields = {theirs: getattr(config, ours) for theirs, ours in _FIELDS.items()}
    for rate in ("attn_pdrop", "embd_pdrop"):
        fields[rate] = config.dropout if fields[rate] is None else fields[rate]
    if fields["n_inner"] == 4 * config.hidden_size:
        fields["n_inner"] = None
    fields["n_ctx"] = fields["n_positions"]  # the old name, which llama.cpp's converter reads
    return GPT2Config(**fields, **_labels(config, _classes(config, source)[0]))


def fields_from_gpt2(config: GPT2Config) -> dict[str, Any]:
    """The fields of our configuration that say what GPT-2's says."""
    fields = {ours: getattr(config, theirs) for theirs, ours in _FIELDS.items()}
    return fields | {"qkv_bias": True, "initialization": "gpt2"}


def convert_model(
    source: Source,
    layouts: tuple[Layout, Layout],
    target_class: type[PreTrainedModel],
    config: PreTrainedConfig,
    directory: Path,
    out: str,
    notes: Sequence[str] = (),
) -> Conversion:
    """Convert the model that `source` loads from one layout into the other (see `convert`)."""
    shapes_of(source.name, target_class, config)  # refuses what no model can have, before weights are read
    model = source.load()
    if config.tie_word_embeddings and isinstance(model, GPT2LMHeadModel | GPTForCausalLM):
        config.tie_word_embeddings = model.lm_head.weight is model.get_input_embeddings().weight
        if not config.tie_word_embeddings:
            notes = [*notes, "lm_head differs from the embedding, although config.json ties them: it stays separate"]
    targets = shapes_of(source.name, target_class, config)
    rows = rows_between(*layouts, config.num_hidden_layers, targets, model.state_dict())
    logits = logits_of(model, token_ids(config))
    del model
    free_memory()
    return convert(source, rows, logits, target_class, config, directory, out, notes)


def _source(
    folder: Path, name: str, model_class: type[PreTrainedModel], config: PreTrainedConfig, tokenizer: str | None
) -> Source:
    """The model in `folder`, loaded in the widest dtype of its weights; config.json may name another."""
    files = weight_files(folder)
    dtypes = {weight.dtype for file in files for weight in read_file(file)[0].values()}
    dtype = functools.reduce(torch.promote_types, dtypes)
    generation_config = folder / "generation_config.json"
    return Source(
        name,
        load=lambda: load(model_class, folder, name, dtype=dtype),
        is_mapped=all(map(can_be_mapped, files)),
        tokenizer=choose_tokenizer(tokenizer, lambda: tokenizer_in(folder), config.vocab_size),
        # which names the ends that the source's own tokenizer has
        generation_config=generation_config if generation_config.is_file() and tokenizer in (None, "none") else None,
    )


def load(model_class: type[PreTrainedModel], folder: Path | None, name: str, **how: Any) -> PreTrainedModel:
    """`from_pretrained`, which must fill the model and use every weight. `name`: what the user calls it."""
    with reading_model(name, f"{model_class.__name__} cannot load it"):
        model, unused = with_weights(model_class, folder, name, local_files_only=True, **how)
    for weight in unused:
        if not MASK.search(weight):
            raise UserError(f"{name}: holds {weight}, which this model has no place for")
    return model


def _classes(config: PreTrainedConfig, source: str) -> tuple[type[PreTrainedModel], type[PreTrainedModel]]:
    """The class that `architectures` names and its counterpart; a model without a head gets its tied head."""
    pairs = _CLASSES if isinstance(config, GPT2Config) else [pair[::-1] for pair in _CLASSES]
    for pair in pairs:
        if config.architectures == [pair[0].__name__]:
            return pair
    if config.architectures in (None, [], ["GPT2Model"], ["GPTModel"]):
        return pairs[0]
    raise UserError(
        f"{source}: config.json has architectures={config.architectures!r}, which cannot be converted; "
        f"it must be a list of one of {', '.join(pair[0].__name__ for pair in pairs)}"
    )


def _labels(config: PreTrainedConfig, our_class: type[PreTrainedModel]) -> dict[str, Any]:
    if our_class is GPTForCausalLM:
        return {}
    return {name: getattr(config, name) for name in _LABEL_FIELDS if getattr(config, name, None) is not None}


def _config(folder: Path, source: str, config_class: type[PreTrainedConfig], what: str) -> PreTrainedConfig:
    """The configuration in `folder`, which must be a `config_class`."""
    with reading_model(source, "config.json cannot be used"):
        content, _ = config_class.get_config_dict(folder)
        if content.get("model_type", config_class.model_type) != config_class.model_type:
            found = f"config.json has model_type={content['model_type']!r}, which is not {what}"
            raise UserError(f"{source}: {found}; every command takes transformers' types as they are, unconverted")
        if content.get("quantization_config"):
            raise UserError(f"{source}: config.json has a quantization_config; convert the model it was made from")
        return config_class.from_dict(content)
