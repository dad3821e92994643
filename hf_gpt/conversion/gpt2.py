"""Stock GPT-2 into our model and back, bit for bit.

The two are the same function with other names, with one matrix for query, key and value instead of three, and with
matrices on their side: GPT-2's `Conv1D` has the shape (in, out). `_TABLE` is all there is to it. What one of the two
cannot say is refused by name; the language model and the three heads that both have are converted.

Checkpoints on the Hub differ: without the prefix `transformer.` (saved from `GPT2Model`, as OpenAI's own four are),
with the masks that old versions kept as `attn.bias` and `attn.masked_bias`, with the tied head written out, in shards,
in `.bin`. All of them are read.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
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

from ..checkpoint import resolve_model
from ..configuration_gpt import GPTConfig
from ..errors import UserError
from ..modeling_gpt import (
    GPTForCausalLM,
    GPTForQuestionAnswering,
    GPTForSequenceClassification,
    GPTForTokenClassification,
)
from .result import (
    Conversion,
    gpt_config,
    logits_of,
    made_of,
    refuse_destination,
    shapes_of,
    token_ids,
    tokenizer_for,
    write,
)
from .weights import Row, as_ours, as_theirs, check, expanded, freeing_at_once, open_folder, their_shapes

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
_SMALL_FILES = ["*.json", "*.txt", "*.model", "*.jinja"]


@freeing_at_once()
def from_gpt2(source: str, out: str, tokenizer: str | None = None) -> Conversion:
    """Convert a GPT-2 checkpoint, a directory or a Hub id, into our model in the new directory `out`.

    `tokenizer`: instead of the source's (see `load_tokenizer`), or `"none"`.

    A head that is tied in config.json but written out with other values becomes a head of its own, as stock
    transformers loads it.

    Raises:
        UserError: it is not GPT-2, or a GPT-2 that our model cannot express, or not whole.
    """
    destination = refuse_destination(out)
    folder = _local_folder(source)
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

    rows = expanded(_TABLE, config.n_layer)
    weights = open_folder(folder).renamed(_their_name)
    shapes = shapes_of(our_class, gpt_config(source, fields), untied=True)
    check(weights, their_shapes([*rows, *head], shapes), optional=_optional(config))

    ids = token_ids(config.vocab_size, config.n_positions)
    source_logits, generation_config = logits_of(their_class, folder, ids)
    chosen, tokenizer_note = tokenizer_for(tokenizer, folder, config.vocab_size)
    notes: list[str] = []

    def make_model() -> PreTrainedModel:
        state = as_ours(weights, [rows[0], *(row for row in head if row.theirs in weights)])
        fields["tie_word_embeddings"] = _is_tied(config, state, _EMBEDDING.ours[0], notes)
        state |= as_ours(weights, rows[1:])
        return made_of(our_class, gpt_config(source, fields), state)

    return write(
        destination,
        make_model,
        source=source,
        source_logits=source_logits,
        tokenizer=chosen,
        tokenizer_note=tokenizer_note,
        generation_config=_generation_config(folder, generation_config),
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
    destination = refuse_destination(out)
    folder = _local_folder(model)
    config = _config(folder, model, GPTConfig, "a model of this package")
    _refuse_what_gpt2_cannot_say(config, model)
    their_class, our_class, head = _head(config, model, ours=True)
    fields = {theirs: getattr(config, ours) for theirs, ours in _FIELDS.items()}
    for rate in ("attn_pdrop", "embd_pdrop"):
        fields[rate] = config.dropout if fields[rate] is None else fields[rate]
    if fields["n_inner"] == 4 * config.hidden_size:
        fields["n_inner"] = None
    their_config = GPT2Config(**fields, **_labels(config, our_class))

    rows = expanded(_TABLE, config.num_hidden_layers)
    weights = open_folder(folder).renamed(_our_name)
    check(weights, shapes_of(our_class, config, untied=True), optional=_optional(config))

    ids = token_ids(config.vocab_size, config.max_position_embeddings)
    source_logits, generation_config = logits_of(our_class, folder, ids)
    chosen, tokenizer_note = tokenizer_for(tokenizer, folder, config.vocab_size)
    notes = [] if config.qkv_bias else ["query, key and value biases, which GPT-2 has and the model lacks, are zeros"]

    def make_model() -> PreTrainedModel:
        state = as_theirs(weights, [rows[0], *head])
        their_config.tie_word_embeddings = _is_tied(config, state, _EMBEDDING.theirs, notes)
        state |= as_theirs(weights, rows[1:])
        for name, shape in shapes_of(their_class, their_config).items():
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
        generation_config=_generation_config(folder, generation_config),
        notes=notes,
    )


def _their_name(name: str) -> str | None:
    """A weight's name in `_TABLE`, whether it was saved with the prefix or without; None for a mask."""
    if _MASK.search(name):
        return None
    return name if name.startswith(("transformer.", *_HEAD_NAMES)) else f"transformer.{name}"


def _our_name(name: str) -> str:
    return name if name.startswith(("model.", *_HEAD_NAMES)) else f"model.{name}"


def _head(
    config: PreTrainedConfig, source: str, ours: bool
) -> tuple[type[PreTrainedModel], type[PreTrainedModel], tuple[Row, ...]]:
    """The line of `_HEADS` that `architectures` of config.json means; a bare model gets its tied head."""
    architecture = (config.architectures or [None])[0]
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


def _is_tied(config: PreTrainedConfig, state: dict[str, torch.Tensor], embedding: str, notes: list[str]) -> bool:
    """Whether the head is the embedding; one that was written out although it is the same is dropped from `state`."""
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
    except (OSError, ValueError, TypeError, AttributeError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{source}: config.json cannot be used: {error}") from None


def _generation_config(folder: Path, loaded: GenerationConfig | None) -> GenerationConfig | Path | None:
    """The file where there is one, for it may say more than the class that read it; else what was loaded."""
    file = folder / "generation_config.json"
    return file if file.is_file() else loaded


def _local_folder(source: str) -> Path:
    """The directory of what a person named: itself, a run's best checkpoint, or a Hub id's files in the cache."""
    place = resolve_model(source)
    if Path(place).is_dir():
        return Path(place)
    from huggingface_hub import snapshot_download

    def download(patterns: Iterable[str]) -> Path:
        return Path(snapshot_download(place, allow_patterns=list(patterns), ignore_patterns=["*/*"]))

    try:
        folder = download([*_SMALL_FILES, "model.safetensors", "model-*.safetensors"])
        if not any(folder.glob("model*.safetensors")):
            folder = download([*_SMALL_FILES, "pytorch_model*.bin"])
    except (OSError, ValueError) as error:
        said = " ".join(str(error).split())
        said = said if len(said) <= 200 else f"{said[:197]}..."
        raise UserError(f"{source}: neither a directory here nor to be had from the Hub ({said})") from None
    if not (folder / "config.json").is_file():
        raise UserError(f"{source}: not a model: there is no config.json in it")
    return folder
