"""The state dicts of Raschka's *Build a Large Language Model From Scratch* into our model.

Whoever typed the book's `GPTModel` and trained it has a file that `torch.save` wrote: names and numbers, without a
configuration. All sizes are read from the shapes. What shapes cannot tell: the number of heads, which only divides the
width and has to be given, and the dropout rate, which matters for training further. Both are taken from the book's
`GPT_CONFIG` dictionary if the file holds it beside the weights.

`_VARIANTS` brings the names that the companion code and its readers use to the book's; `_TABLE` has the book's names
and ours.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F
from transformers import PreTrainedModel

from ..errors import UserError
from ..modeling_gpt import GPTForCausalLM
from .destination import Destination
from .result import Conversion, Logits, gpt_config, made_of, shapes_of, token_ids, tokenizer_for, write
from .weights import WRAPPERS, Row, Weights, as_ours, check, expanded, freeing_at_once, open_file, their_shapes

_GPT2_VOCAB_SIZE = 50257
_DROP_RATE = 0.1

_EMBEDDING = Row("tok_emb.weight", ("model.embed_tokens.weight",))
_HEAD = Row("out_head.weight", ("lm_head.weight",))
_TABLE = (
    Row("pos_emb.weight", ("model.embed_positions.weight",)),
    Row("trf_blocks.{}.norm1.scale", ("model.layers.{}.input_layernorm.weight",)),
    Row("trf_blocks.{}.norm1.shift", ("model.layers.{}.input_layernorm.bias",)),
    Row("trf_blocks.{}.att.out_proj.weight", ("model.layers.{}.self_attn.o_proj.weight",)),
    Row("trf_blocks.{}.att.out_proj.bias", ("model.layers.{}.self_attn.o_proj.bias",)),
    Row("trf_blocks.{}.norm2.scale", ("model.layers.{}.post_attention_layernorm.weight",)),
    Row("trf_blocks.{}.norm2.shift", ("model.layers.{}.post_attention_layernorm.bias",)),
    Row("trf_blocks.{}.ff.layers.0.weight", ("model.layers.{}.mlp.up_proj.weight",)),
    Row("trf_blocks.{}.ff.layers.0.bias", ("model.layers.{}.mlp.up_proj.bias",)),
    Row("trf_blocks.{}.ff.layers.2.weight", ("model.layers.{}.mlp.down_proj.weight",)),
    Row("trf_blocks.{}.ff.layers.2.bias", ("model.layers.{}.mlp.down_proj.bias",)),
    Row("final_norm.scale", ("model.norm.weight",)),
    Row("final_norm.shift", ("model.norm.bias",)),
)
_QKV = ("q_proj", "k_proj", "v_proj")
_SEPARATE = tuple(zip(("W_query", "W_key", "W_value"), _QKV))

# What others call it, and the book's name.
_VARIANTS = (
    (WRAPPERS, ""),
    (re.compile(r"^token_emb\."), "tok_emb."),
    (re.compile(r"^position_emb\."), "pos_emb."),
    (re.compile(r"^transformer_blocks\."), "trf_blocks."),
    (re.compile(r"\.att\.proj\."), ".att.out_proj."),
    (re.compile(r"\b(norm1|norm2|final_norm)\.weight$"), r"\1.scale"),  # nn.LayerNorm
    (re.compile(r"\b(norm1|norm2|final_norm)\.bias$"), r"\1.shift"),
)
_MASK = re.compile(r"\.att\.mask$")
# Where training scripts put the state dict when they save more than that.
_SECTIONS = ("model_state_dict", "state_dict", "model")


@freeing_at_once()
def from_book(
    source: str, out: str, heads: int | None = None, tokenizer: str | None = None, drop_rate: float | None = None
) -> Conversion:
    """Convert the file `source` with a state dict of the book's GPT into our model in the new directory `out`.

    Args:
        heads: attention heads (the book's `n_heads`); needed unless the file says it.
        tokenizer: see `load_tokenizer`, or `"none"`. By default GPT-2's if the vocabulary is GPT-2's.
        drop_rate: for training it further; by default the file's, or 0.1 if it does not say.

    Raises:
        UserError: it is not such a file, weights are missing or unknown, or the number of heads is.
    """
    if drop_rate is not None and not 0 <= drop_rate < 1:
        raise UserError(f"--drop-rate {drop_rate}: it must be at least 0 and less than 1")
    destination = Destination.of(out)
    weights = open_file(Path(source), _SECTIONS)
    said = _said_beside(weights)
    weights = weights.renamed(_book_name)
    is_safetensors = source.endswith(".safetensors")  # which holds tied weights once, under either name
    if is_safetensors and _EMBEDDING.theirs not in weights:
        weights = weights.renamed(lambda name: _EMBEDDING.theirs if name == _HEAD.theirs else name)
    fields = _sizes(weights) | {"num_attention_heads": _heads(weights, heads, said)}
    fields["dropout"] = _drop_rate(weights, drop_rate, said)

    rows = [_EMBEDDING, _HEAD, *expanded(_table(weights), fields["num_hidden_layers"])]
    shapes = shapes_of(source, GPTForCausalLM, gpt_config(source, fields), untied=True)
    check(weights, their_shapes(rows, shapes), optional=[_HEAD.theirs] if is_safetensors else [])

    chosen, tokenizer_note = _tokenizer(tokenizer, fields["vocab_size"])
    if chosen is not None:
        fields |= {"bos_token_id": chosen.bos_token_id, "eos_token_id": chosen.eos_token_id}
        fields |= {"pad_token_id": chosen.pad_token_id}
    ids = token_ids(fields["vocab_size"], fields["max_position_embeddings"])
    source_logits = Logits(ids, _book_logits(weights, fields["num_hidden_layers"], fields["num_attention_heads"], ids))
    notes: list[str] = []

    def make_model() -> PreTrainedModel:
        state = as_ours(weights, [row for row in rows[:2] if row.theirs in weights])
        head, embedding = state.get(_HEAD.ours[0]), state[_EMBEDDING.ours[0]]
        tied = head is None or torch.equal(head, embedding)
        if tied:
            state.pop(_HEAD.ours[0], None)
            notes.append("out_head is tok_emb: saved once, as a tied head (tie_word_embeddings)")
        del head
        state |= as_ours(weights, rows[2:])
        return made_of(GPTForCausalLM, gpt_config(source, {**fields, "tie_word_embeddings": tied}), state)

    return write(
        destination,
        make_model,
        source=source,
        source_logits=source_logits,
        tokenizer=chosen,
        tokenizer_note=tokenizer_note,
        notes=notes,
    )


def _book_name(name: str) -> str | None:
    """The book's name of a weight; None for a mask, which says nothing that the sizes do not."""
    for pattern, replacement in _VARIANTS:
        name = pattern.sub(replacement, name)
    return None if _MASK.search(name) else name


def _table(weights: Weights) -> list[Row]:
    """`_TABLE` and the rows of query, key and value as the first block has them: apart or fused, biased or not."""
    rows = list(_TABLE)
    for kind in ("weight", "bias"):
        ours = tuple(f"model.layers.{{}}.self_attn.{part}.{kind}" for part in _QKV)
        if "trf_blocks.0.att.qkv.weight" in weights:
            apart = [Row(f"trf_blocks.{{}}.att.qkv.{kind}", ours)]
        else:
            apart = [Row(f"trf_blocks.{{}}.att.{book}.{kind}", (our,)) for (book, _), our in zip(_SEPARATE, ours)]
        if kind == "weight" or _has_qkv_bias(weights):
            rows += apart
    return rows


def _has_qkv_bias(weights: Weights) -> bool:
    return any(re.search(r"\.att\.(qkv|W_query|W_key|W_value)\.bias$", name) for name in weights)


def _sizes(weights: Weights) -> dict[str, Any]:
    """The fields of our configuration that the shapes tell."""
    layers = {int(found[1]) for name in weights if (found := re.match(r"trf_blocks\.(\d+)\.", name))}
    for name in ("tok_emb.weight", "pos_emb.weight", "trf_blocks.0.ff.layers.0.weight"):
        if name not in weights or len(weights.shape(name)) != 2:
            has = ", ".join(list(weights)[:2])
            raise UserError(
                f"{weights.where}: not a state dict of the book's GPTModel: {name} is missing or no matrix; "
                f"it has {has}"
            )
    if layers != set(range(len(layers))):
        raise UserError(f"{weights.where}: lacks blocks between trf_blocks.0 and trf_blocks.{max(layers)}")
    return {
        "vocab_size": weights.shape("tok_emb.weight")[0],
        "hidden_size": weights.shape("tok_emb.weight")[1],
        "max_position_embeddings": weights.shape("pos_emb.weight")[0],
        "num_hidden_layers": len(layers),
        "intermediate_size": weights.shape("trf_blocks.0.ff.layers.0.weight")[0],
        "qkv_bias": _has_qkv_bias(weights),
        "initialization": "pytorch",
        "tie_word_embeddings": False,
    }


def _said_beside(weights: Weights) -> Mapping[str, Any]:
    """A dictionary like the book's `GPT_CONFIG_124M`, if the file holds one beside the weights."""
    for value in weights.others():
        if isinstance(value, Mapping) and type(value.get("n_heads")) is int:
            return value
    return {}


def _heads(weights: Weights, heads: int | None, said: Mapping[str, Any]) -> int:
    width = weights.shape("tok_emb.weight")[1]
    if heads is not None and said.get("n_heads", heads) != heads:
        raise UserError(f"--heads {heads}: {weights.where} itself says n_heads={said['n_heads']}; leave --heads out")
    given = heads is not None
    heads = heads if given else said.get("n_heads")
    if heads is None:
        # Every GPT-2 has heads of 64; a hint, no more: with another number the model would be another function.
        hint = f", such as --heads {width // 64}, GPT-2's for this width" if width >= 64 and width % 64 == 0 else ""
        raise UserError(
            f"{weights.where}: weights do not tell the number of attention heads: give n_heads of your model "
            f"with --heads{hint}"
        )
    if heads < 1 or width % heads:
        flag = f"--heads {heads}: it" if given else f"{weights.where}: it says n_heads={heads}, which"
        raise UserError(f"{flag} must divide the width of {weights.where if given else 'the model'}, emb_dim {width}")
    return heads


def _drop_rate(weights: Weights, drop_rate: float | None, said: Mapping[str, Any]) -> float:
    if drop_rate is not None:
        return drop_rate
    rate = said.get("drop_rate", _DROP_RATE)
    if not isinstance(rate, int | float) or not 0 <= rate < 1:
        raise UserError(
            f"{weights.where}: it says drop_rate={rate!r}, which must be at least 0 and less than 1; "
            "--drop-rate gives another"
        )
    return rate


def _tokenizer(asked_for: str | None, num_embeddings: int):
    if asked_for is not None:
        return tokenizer_for(asked_for, None, num_embeddings)
    if num_embeddings != _GPT2_VOCAB_SIZE:
        return None, f"none: {num_embeddings:,} ids are not GPT-2's; --tokenizer names the one it was trained with"
    try:
        return tokenizer_for("gpt2", None, num_embeddings)
    except UserError:
        return None, "none: gpt2 cannot be had here; convert again with a network or --tokenizer PATH to have one"


@torch.inference_mode()
def _book_logits(weights: Weights, num_layers: int, num_heads: int, ids: torch.LongTensor) -> torch.Tensor:
    """The book's forward pass, chapter 4, on the file's own weights, each read when it is needed.

    (1, time) -> (time * vocab), in the widest dtype of the weights.
    """
    time, dtype = ids.shape[1], weights.widest_dtype

    def read(name: str) -> torch.Tensor | None:
        return weights.read(name).to(dtype) if name in weights else None

    def linear(x: torch.Tensor, name: str) -> torch.Tensor:
        return F.linear(x, read(f"{name}.weight"), read(f"{name}.bias"))

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        return F.layer_norm(x, x.shape[-1:], read(f"{name}.scale"), read(f"{name}.shift"), eps=1e-5)

    x = read("tok_emb.weight")[ids[0]] + read("pos_emb.weight")[:time]  # (time, emb_dim)
    for block in (f"trf_blocks.{layer}" for layer in range(num_layers)):
        y = norm(x, f"{block}.norm1")
        if f"{block}.att.qkv.weight" in weights:
            qkv = linear(y, f"{block}.att.qkv").chunk(3, dim=-1)
        else:
            qkv = [linear(y, f"{block}.att.{part}") for part, _ in _SEPARATE]
        query, key, value = (part.view(1, time, num_heads, -1).transpose(1, 2) for part in qkv)
        context = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + linear(context.transpose(1, 2).reshape(time, -1), f"{block}.att.out_proj")
        y = F.gelu(linear(norm(x, f"{block}.norm2"), f"{block}.ff.layers.0"), approximate="tanh")
        x = x + linear(y, f"{block}.ff.layers.2")
    x = norm(x, "final_norm")
    head = "out_head" if _HEAD.theirs in weights else "tok_emb"
    return linear(x, head).flatten()
