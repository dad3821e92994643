"""The state dicts of Raschka's *Build a Large Language Model From Scratch* into our model.

Whoever typed the book's `GPTModel` and trained it has a file that `torch.save` wrote: names and numbers, without a
configuration. All sizes are read from the shapes. What shapes cannot tell: the number of heads, which only divides the
width and has to be given, and the dropout rate, which matters for training further. Both are taken from the book's
`GPT_CONFIG` dictionary if the file holds it beside the weights.

`_VARIANTS` brings the names that the companion code and its readers use to the book's, which `table.TABLE` has. No
stock model computes the source's logits here: a forward pass in the book's names does.
"""

import functools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F
from transformers import PreTrainedTokenizerBase

from ..configuration_gpt import GPTConfig
from ..errors import UserError
from ..modeling_gpt import GPTForCausalLM
from ..storage import new_directory
from .files import WRAPPERS, can_be_mapped, read_file
from .result import Conversion, Source, choose_tokenizer, convert, our_config, shapes_of, token_ids
from .table import Row, StateDict, free_memory, rows_between

_GPT2_VOCAB_SIZE = 50257
_DROP_RATE = 0.1
_EMBEDDING, _HEAD = "tok_emb.weight", "out_head.weight"

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
# Where training scripts put the state dict when they save more than that.
_SECTIONS = ("model_state_dict", "state_dict", "model")


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
    with new_directory(out) as directory:
        path = Path(source)
        weights, said = _read(path)
        fields = _sizes(source, weights)
        fields["num_attention_heads"] = _heads(source, fields["hidden_size"], heads, said)
        fields["dropout"] = _drop_rate(source, drop_rate, said)
        config = our_config(source, fields)
        rows = _rows(source, weights, config)
        notes = []
        # Safetensors hold tied weights once.
        config.tie_word_embeddings = _HEAD not in weights or torch.equal(weights[_HEAD], weights[_EMBEDDING])
        if config.tie_word_embeddings:
            notes.append("out_head is tok_emb: saved once, as a tied head (tie_word_embeddings)")
            rows = [row for row in rows if row.sources != (_HEAD,)]
        chosen = _tokenizer(tokenizer, config.vocab_size)
        if chosen[0] is not None:
            for token in ("bos_token_id", "eos_token_id", "pad_token_id"):
                setattr(config, token, getattr(chosen[0], token))
        logits = _book_logits(weights, config.num_hidden_layers, config.num_attention_heads, token_ids(config))
        del weights
        free_memory()
        book = Source(source, lambda: _read(path)[0], can_be_mapped(path), chosen)
        return convert(book, rows, logits, GPTForCausalLM, config, directory, out, notes)


def _read(path: Path) -> tuple[StateDict, Mapping[str, Any]]:
    """The weights under the book's names, and a dictionary like its `GPT_CONFIG_124M` if the file holds one."""
    content, others = read_file(path, _SECTIONS)
    weights: StateDict = {}
    came_from: dict[str, str] = {}
    for name, weight in content.items():
        new = name
        for pattern, replacement in _VARIANTS:
            new = pattern.sub(replacement, new)
        if new in weights:
            raise UserError(f"{path}: {came_from[new]} and {name} are two weights for one place")
        weights[new], came_from[new] = weight, name
    if path.suffix == ".safetensors" and _EMBEDDING not in weights and _HEAD in weights:
        weights[_EMBEDDING] = weights.pop(_HEAD)  # tied weights are there once, under either name
    said = (value for value in others.values() if isinstance(value, Mapping) and type(value.get("n_heads")) is int)
    return weights, next(said, {})


def _rows(source: str, weights: StateDict, config: GPTConfig) -> list[Row]:
    """The rows of the table for these weights, once it is sure that they are those of a whole model.

    Raises:
        UserError: weights are missing, there are others, or one has another shape. It names the first.
    """
    layout = "book_fused" if "trf_blocks.0.att.qkv.weight" in weights else "book"
    shapes = shapes_of(source, GPTForCausalLM, config)
    rows = rows_between(layout, "ours", config.num_hidden_layers, shapes)
    needed = {}
    for row in rows:
        first, *rest = shapes[row.targets[0]]
        needed[row.sources[0]] = [len(row.targets) * first, *rest]
    missing = [name for name in needed if name not in weights]
    unexpected = [name for name in weights if name not in needed]
    if missing and not (missing == [_HEAD] and source.endswith(".safetensors")):
        also = f"; it has {unexpected[0]}, which is not known" if unexpected else ""
        raise UserError(f"{source}: lacks {missing[0]}{also}")
    if unexpected:
        raise UserError(f"{source}: holds {unexpected[0]}, which this model has no place for")
    for name, weight in weights.items():
        if list(weight.shape) != needed[name]:
            raise UserError(f"{source}: {name} has the shape {list(weight.shape)}, the model needs {needed[name]}")
    return rows


def _sizes(source: str, weights: StateDict) -> dict[str, Any]:
    """The fields of our configuration that the shapes tell."""
    for name in (_EMBEDDING, "pos_emb.weight", "trf_blocks.0.ff.layers.0.weight"):
        if name not in weights or weights[name].dim() != 2:
            raise UserError(
                f"{source}: not a state dict of the book's GPTModel: {name} is missing or no matrix; "
                f"it has {', '.join(list(weights)[:2])}"
            )
    layers = {int(found[1]) for name in weights if (found := re.match(r"trf_blocks\.(\d+)\.", name))}
    if layers != set(range(len(layers))):
        raise UserError(f"{source}: lacks blocks between trf_blocks.0 and trf_blocks.{max(layers)}")
    return {
        "vocab_size": weights[_EMBEDDING].shape[0],
        "hidden_size": weights[_EMBEDDING].shape[1],
        "max_position_embeddings": weights["pos_emb.weight"].shape[0],
        "num_hidden_layers": len(layers),
        "intermediate_size": weights["trf_blocks.0.ff.layers.0.weight"].shape[0],
        "qkv_bias": any(re.search(r"\.att\.(qkv|W_query|W_key|W_value)\.bias$", name) for name in weights),
        "initialization": "pytorch",
        "tie_word_embeddings": False,
    }


def _heads(source: str, width: int, heads: int | None, said: Mapping[str, Any]) -> int:
    in_file = said.get("n_heads")
    if heads is None and in_file is None:
        # Every GPT-2 has heads of 64; a hint, no more: with another number the model would be another function.
        hint = f", such as heads={width // 64}, GPT-2's for this width" if width >= 64 and width % 64 == 0 else ""
        raise UserError(
            f"{source}: weights do not tell the number of attention heads: give n_heads of your model as heads{hint}"
        )
    if heads is not None and in_file not in (None, heads):
        raise UserError(f"heads={heads}: {source} itself says n_heads={in_file}; leave heads out")
    number = in_file if heads is None else heads
    if number < 1 or width % number:
        what = f"{source}: it says n_heads={number}, which" if heads is None else f"heads={number}: it"
        raise UserError(f"{what} must divide the width of the model, emb_dim {width}")
    return number


def _drop_rate(source: str, drop_rate: float | None, said: Mapping[str, Any]) -> float:
    rate = said.get("drop_rate", _DROP_RATE) if drop_rate is None else drop_rate
    if not isinstance(rate, int | float) or not 0 <= rate < 1:
        whose = f"{source}: its " if drop_rate is None else ""
        raise UserError(f"{whose}drop_rate={rate!r} must be at least 0 and less than 1; give another as drop_rate")
    return rate


def _tokenizer(asked_for: str | None, num_embeddings: int) -> tuple[PreTrainedTokenizerBase | None, str]:
    if asked_for is None and num_embeddings != _GPT2_VOCAB_SIZE:
        return None, f"none: {num_embeddings:,} ids are not GPT-2's; name the tokenizer that it was trained with"
    try:
        return choose_tokenizer(asked_for or "gpt2", lambda: None, num_embeddings)
    except UserError:
        if asked_for is not None:
            raise
        return None, "none: gpt2 cannot be had here; convert again with a network or another tokenizer to have one"


@torch.inference_mode()
def _book_logits(weights: StateDict, num_layers: int, num_heads: int, ids: torch.LongTensor) -> torch.Tensor:
    """The book's forward pass, chapter 4: (1, time) -> (time * vocab), in the widest dtype of the weights."""
    time = ids.shape[1]
    dtype = functools.reduce(torch.promote_types, {weight.dtype for weight in weights.values()})

    def read(name: str) -> torch.Tensor | None:
        return weights[name].to(dtype) if name in weights else None

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
            qkv = [linear(y, f"{block}.att.{part}") for part in ("W_query", "W_key", "W_value")]
        query, key, value = (part.view(1, time, num_heads, -1).transpose(1, 2) for part in qkv)
        context = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + linear(context.transpose(1, 2).reshape(time, -1), f"{block}.att.out_proj")
        y = F.gelu(linear(norm(x, f"{block}.norm2"), f"{block}.ff.layers.0"), approximate="tanh")
        x = x + linear(y, f"{block}.ff.layers.2")
    return linear(norm(x, "final_norm"), "out_head" if _HEAD in weights else "tok_emb").flatten()
