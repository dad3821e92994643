"""Stock GPT-2 into our model and back, bit for bit.

The two are the same function with other names, with one matrix for query, key and value instead of three, and with
matrices on their side: GPT-2's `Conv1D` has the shape (in, out). `_TABLE` is all there is to it. What one of the two
cannot say is refused by name; the language model and the three heads that both have are converted.

Checkpoints on the Hub differ: without the prefix `transformer.` (saved from `GPT2Model`, as OpenAI's own four are),
with the masks that old versions kept as `attn.bias` and `attn.masked_bias`, with the tied head written out, saved from
within `torch.compile` or DistributedDataParallel, in shards, in `.bin`. All of them are read.
"""

import json
import re
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import (
    GenerationConfig,
    GPT2Config,
    GPT2ForQuestionAnswering,
    GPT2ForSequenceClassification,
    GPT2ForTokenClassification,
    GPT2LMHeadModel,
    PreTrainedConfig,
    PreTrainedModel,
)

from ..checkpoint import model_folder
from ..configuration_gpt import GPTConfig
from ..errors import UserError
from ..modeling_gpt import (
    GPTForCausalLM,
    GPTForQuestionAnswering,
    GPTForSequenceClassification,
    GPTForTokenClassification,
)
from .destination import Destination
from .result import Conversion, gpt_config, logits_of, made_of, shapes_of, token_ids, tokenizer_for, write
from .weights import (
    WRAPPERS,
    Row,
    as_ours,
    as_theirs,
    check,
    check_num_layers,
    expanded,
    freeing_at_once,
    open_folder,
    their_shapes,
)

_QKV = ("q_proj", "k_proj", "v_proj")
_EMBEDDING = Row("transformer.wte.weight", ("model.embed_tokens.weight",))
_LM_HEAD = Row("lm_head.weight", ("lm_head.weight",))
_TABLE = (
    _EMBEDDING,
    Row("transformer.wpe.weight", ("model.embed_positions.weight",)),
    Row("transformer.h.{}.ln_1.weight", ("model.layers.{}.input_layernorm.weight",)),
    Row("transformer.h.{}.ln_1.bias", ("model.layers.{}.input_layernorm.bias",)),
    Row(
        "transformer.h.{}.attn.c_attn.weight",
        tuple(f"model.layers.{{}}.self_attn.{part}.weight" for part in _QKV),
        transposed=True,
    ),
    Row("transformer.h.{}.attn.c_attn.bias", tuple(f"model.layers.{{}}.self_attn.{part}.bias" for part in _QKV)),
    Row("transformer.h.{}.attn.c_proj.weight", ("model.layers.{}.self_attn.o_proj.weight",), transposed=True),
    Row("transformer.h.{}.attn.c_proj.bias", ("model.layers.{}.self_attn.o_proj.bias",)),
    Row("transformer.h.{}.ln_2.weight", ("model.layers.{}.post_attention_layernorm.weight",)),
    Row("transformer.h.{}.ln_2.bias", ("model.layers.{}.post_attention_layernorm.bias",)),
    Row("transformer.h.{}.mlp.c_fc.weight", ("model.layers.{}.mlp.up_proj.weight",), transposed=True),
    Row("transformer.h.{}.mlp.c_fc.bias", ("model.layers.{}.mlp.up_proj.bias",)),
    Row("transformer.h.{}.mlp.c_proj.weight", ("model.layers.{}.mlp.down_proj.weight",), transposed=True),
    Row("transformer.h.{}.mlp.c_proj.bias", ("model.layers.{}.mlp.down_proj.bias",)),
    Row("transformer.ln_f.weight", ("model.norm.weight",)),
    Row("transformer.ln_f.bias", ("model.norm.bias",)),
)
# Their class, ours, and the rows of the head.
_HEADS: tuple[tuple[type[PreTrainedModel], type[PreTrainedModel], tuple[Row, ...]], ...] = (
    (GPT2LMHeadModel, GPTForCausalLM, (_LM_HEAD,)),
    (GPT2ForSequenceClassification, GPTForSequenceClassification, (Row("score.weight", ("score.weight",)),)),
    (
        GPT2ForTokenClassification,
        GPTForTokenClassification,
        (Row("classifier.weight", ("score.weight",)), Row("classifier.bias", ("score.bias",))),
    ),
    (
        GPT2ForQuestionAnswering,
        GPTForQuestionAnswering,
        (Row("qa_outputs.weight", ("qa_outputs.weight",)), Row("qa_outputs.bias", ("qa_outputs.bias",))),
    ),
)
_HEAD_NAMES = ("lm_head.", "score.", "classifier.", "qa_outputs.")

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
# What GPT-2 always has, or what says how weights once started.
_FIELDS_WITHOUT_A_WORD = {"qkv_bias", "initialization"}
# What both take from all of transformers' configurations, and a classifier needs.
_COMMON_FIELDS = ("id2label", "label2id", "problem_type", "classifier_dropout")

_MASK = re.compile(r"h\.\d+\.attn\.(bias|masked_bias)$")


@freeing_at_once()
def from_gpt2(source: str, out: str, tokenizer: str | None = None) -> Conversion:
    """Convert a GPT-2 checkpoint, a directory or a Hub id, into our model in the new directory `out`.

    `tokenizer`: instead of the source's (see `load_tokenizer`), or `"none"`.

    A head that is tied in config.json but written out with other values becomes a head of its own, as stock
    transformers loads it.

    Raises:
        UserError: it is not GPT-2, or a GPT-2 that our model cannot express, or not whole.
    """
    destination = Destination.of(out)
    folder = model_folder(source)
    generation_file = _generation_file(folder, source)
    config = _config(folder, source, GPT2Config, "GPT-2")
    for field, usual in (
        ("add_cross_attention", False),
        ("scale_attn_weights", True),
        ("scale_attn_by_inverse_layer_idx", False),
    ):
        if getattr(config, field) is not usual:
            raise UserError(
                f"{source}: config.json has {field}={getattr(config, field)}, which our model cannot express; "
                f"only {usual} can be converted"
            )
    their_class, our_class, head = _head(config, source, ours=False)
    fields = {ours: getattr(config, theirs) for theirs, ours in _FIELDS.items()}
    fields |= {"qkv_bias": True, "initialization": "gpt2"}
    fields |= _labels(config, our_class)

    saved = open_folder(folder)
    weights = saved.renamed(lambda name: None if _MASK.search(name) else _whole_name(name, "transformer."))
    check_num_layers(weights, "transformer.h.{}.", config.n_layer, "config.json has n_layer=")
    rows = expanded(_TABLE, config.n_layer)
    where = f"{source}: config.json"
    shapes = shapes_of(where, our_class, gpt_config(where, fields), untied=True)
    check(weights, their_shapes([*rows, *head], shapes), optional=_optional(config))

    ids = token_ids(config.vocab_size, config.n_positions)
    is_wrapped = any(map(WRAPPERS.match, saved))
    source_logits, generation_config = logits_of(their_class, folder, ids, weights.widest_dtype, is_wrapped)
    chosen, tokenizer_note = tokenizer_for(tokenizer, folder, config.vocab_size)
    notes: list[str] = []

    def make_model() -> PreTrainedModel:
        state = as_ours(weights, [rows[0], *(row for row in head if row.theirs in weights)])
        fields["tie_word_embeddings"] = _settle_head(config, state, _EMBEDDING.ours[0], notes)
        state |= as_ours(weights, rows[1:])
        return made_of(our_class, gpt_config(where, fields), state)

    return write(
        destination,
        make_model,
        source=source,
        source_logits=source_logits,
        tokenizer=chosen,
        tokenizer_note=tokenizer_note,
        generation_config=generation_file or generation_config,
        notes=notes,
    )


@freeing_at_once()
def to_gpt2(model: str, out: str, tokenizer: str | None = None) -> Conversion:
    """Convert our model, a directory, a run or a Hub id, into a stock GPT-2 checkpoint in the new directory `out`.

    The result needs neither this package nor remote code. Query, key and value biases that our model lacks are zeros.
    `tokenizer`: instead of the source's (see `load_tokenizer`), or `"none"`.

    Raises:
        UserError: it is not our model, or one that GPT-2 cannot express, or not whole.
    """
    destination = Destination.of(out)
    folder = model_folder(model)
    generation_file = _generation_file(folder, model)
    config = _config(folder, model, GPTConfig, "a model of this package")
    _refuse_what_gpt2_cannot_say(config, model)
    their_class, our_class, head = _head(config, model, ours=True)
    fields = {theirs: getattr(config, ours) for theirs, ours in _FIELDS.items()}
    for rate in ("attn_pdrop", "embd_pdrop"):
        fields[rate] = config.dropout if fields[rate] is None else fields[rate]
    if fields["n_inner"] == 4 * config.hidden_size:
        fields["n_inner"] = None
    fields["n_ctx"] = fields["n_positions"]  # which older configurations had, and llama.cpp's converter reads
    their_config = GPT2Config(**fields, **_labels(config, our_class))

    saved = open_folder(folder)
    weights = saved.renamed(lambda name: _whole_name(name, "model."))
    check_num_layers(weights, "model.layers.{}.", config.num_hidden_layers, "config.json has num_hidden_layers=")
    rows = expanded(_TABLE, config.num_hidden_layers)
    where = f"{model}: config.json"
    check(weights, shapes_of(where, our_class, config, untied=True), optional=_optional(config))

    ids = token_ids(config.vocab_size, config.max_position_embeddings)
    is_wrapped = any(map(WRAPPERS.match, saved))
    source_logits, generation_config = logits_of(our_class, folder, ids, weights.widest_dtype, is_wrapped)
    chosen, tokenizer_note = tokenizer_for(tokenizer, folder, config.vocab_size)
    notes = [] if config.qkv_bias else ["query, key and value biases, which GPT-2 has and the model lacks, are zeros"]

    def make_model() -> PreTrainedModel:
        state = as_theirs(weights, [rows[0], *head])
        their_config.tie_word_embeddings = _settle_head(config, state, _EMBEDDING.theirs, notes)
        state |= as_theirs(weights, rows[1:])
        for name, shape in shapes_of(where, their_class, their_config).items():
            if name not in state:  # a bias that ours lacks: check() has found everything else
                state[name] = torch.zeros(shape, dtype=state[_EMBEDDING.theirs].dtype)
        return made_of(their_class, their_config, state)

    return write(
        destination,
        make_model,
        source=model,
        source_logits=source_logits,
        tokenizer=chosen,
        tokenizer_note=tokenizer_note,
        generation_config=generation_file or generation_config,
        notes=notes,
    )


def _whole_name(name: str, prefix: str) -> str:
    """A weight's name in `_TABLE`, whether it was saved with the `prefix` of the model below the head or without."""
    name = WRAPPERS.sub("", name)
    return name if name.startswith((prefix, *_HEAD_NAMES)) else prefix + name


def _head(
    config: PreTrainedConfig, source: str, ours: bool
) -> tuple[type[PreTrainedModel], type[PreTrainedModel], tuple[Row, ...]]:
    """The line of `_HEADS` that `architectures` of config.json means; a bare model gets its tied head."""
    named = config.architectures
    if named is not None and not (isinstance(named, list) and all(isinstance(name, str) for name in named)):
        example = _HEADS[0][int(ours)].__name__
        raise UserError(f'{source}: config.json has architectures={named!r}; a list is needed, such as ["{example}"]')
    architecture = named[0] if named else None
    if architecture in (None, "GPT2Model", "GPTModel"):
        return _HEADS[0]
    known = {classes[int(ours)].__name__: (*classes, rows) for *classes, rows in _HEADS}
    if architecture not in known:
        raise UserError(
            f"{source}: config.json has architectures={config.architectures}, which cannot be converted; "
            f"what can: {', '.join(known)}"
        )
    return known[architecture]


def _optional(config: PreTrainedConfig) -> list[str]:
    """A tied head may be written out, as `.bin` files have it, or not."""
    return [_LM_HEAD.theirs] if config.tie_word_embeddings else []


def _settle_head(config: PreTrainedConfig, state: dict[str, torch.Tensor], embedding: str, notes: list[str]) -> bool:
    """Drop a tied head that was written out from `state`, or note that it is none, and return whether it is tied."""
    name = _LM_HEAD.theirs
    if not config.tie_word_embeddings or name not in state:
        return config.tie_word_embeddings
    if torch.equal(state[name], state[embedding]):
        del state[name]
        return True
    notes.append("lm_head.weight is not the embedding, although config.json ties them: it stays a head of its own")
    return False


def _refuse_what_gpt2_cannot_say(config: GPTConfig, source: str) -> None:
    if config.is_heterogeneous:
        raise UserError(f"{source}: its layers have configurations of their own (per_layer_config), GPT-2's have one")
    own = set(GPTConfig.__dataclass_fields__) - set(PreTrainedConfig.__dataclass_fields__)
    without_word = own - set(_FIELDS.values()) - _FIELDS_WITHOUT_A_WORD
    for field in sorted(without_word):
        if getattr(config, field) != getattr(GPTConfig(), field):
            raise UserError(f"{source}: config.json has {field}={getattr(config, field)!r}, GPT-2 has no such field")


def _labels(config: PreTrainedConfig, our_class: type[PreTrainedModel]) -> dict[str, Any]:
    if our_class is GPTForCausalLM:
        return {}
    return {name: getattr(config, name) for name in _COMMON_FIELDS if getattr(config, name, None) is not None}


def _config(folder: Path, source: str, config_class: type[PreTrainedConfig], what: str) -> PreTrainedConfig:
    """The configuration in `folder`, which must be of the class that is to be converted."""
    _refuse_other_json(folder / "config.json", source)
    try:
        content, _ = config_class.get_config_dict(folder, local_files_only=True)
        if content.get("model_type", config_class.model_type) != config_class.model_type:
            raise UserError(
                f"{source}: config.json has model_type={content.get('model_type')!r}, which is not {what} "
                f"({config_class.model_type!r})"
            )
        if content.get("quantization_config"):
            raise UserError(f"{source}: config.json has a quantization_config; convert the model it was made from")
        return config_class.from_dict(content)
    except UserError:
        raise
    except StrictDataclassError as error:  # two lines that name the validator; its cause names the field
        raise UserError(f"{source}: config.json cannot be used: {error.__cause__ or error}") from None
    except (OSError, ValueError, TypeError, AttributeError, LookupError) as error:
        raise UserError(f"{source}: config.json cannot be used: {error}") from None


def _generation_file(folder: Path, source: str) -> Path | None:
    """The file where there is one, which then comes along as it is: it may say more than the class that reads it.

    transformers passes over one that it cannot read.
    """
    file = folder / "generation_config.json"
    if not file.is_file():
        return None
    _refuse_other_json(file, source)
    try:
        GenerationConfig.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{source}: {file.name} cannot be used: {error}; remove or mend it") from None
    return file


def _refuse_other_json(file: Path, source: str) -> None:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{source}: {file.name} is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{source}: {file.name} holds a {type(content).__name__}; a JSON object is needed: {{...}}")
