"""The state dicts of Raschka's *Build a Large Language Model From Scratch* into our model.

A reader who trained the book's `GPTModel` has a file that `torch.save` wrote: weights by name, no configuration. The
sizes are read from the shapes. The number of heads and the dropout rate are not in the shapes: they are arguments, or
come from the book's `GPT_CONFIG` dictionary if the file holds it.

`_VARIANTS` translates the names of the companion code and of readers into the book's, which are in `table.TABLE`. No
stock model can compute the source's logits here, so this file has the book's forward pass, in the book's names.
"""

import functools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from ..configuration_gpt import WRAPPERS, GPTConfig
from ..errors import UserError
from ..modeling_gpt import GPTForCausalLM
from ..storage import local_path, new_directory
from .files import can_be_mapped, read_file
from .result import (
    Conversion,
    Source,
    choose_tokenizer,
    convert,
    name_special_tokens,
    our_config,
    shapes_of,
    token_ids,
)
from .table import Row, StateDict, free_memory, rows_between

_GPT2_VOCAB_SIZE = 50257
_EMBEDDING, _HEAD = "tok_emb.weight", "out_head.weight"

# Other names, and the book's.
_VARIANTS = (
    (re.compile(WRAPPERS), ""),
    (re.compile(r"^token_emb\."), "tok_emb."),
    (re.compile(r"^position_emb\."), "pos_emb."),
    (re.compile(r"^transformer_blocks\."), "trf_blocks."),
    (re.compile(r"\.att\.proj\."), ".att.out_proj."),
    (re.compile(r"\b(norm1|norm2|final_norm)\.weight$"), r"\1.scale"),  # nn.LayerNorm
    (re.compile(r"\b(norm1|norm2|final_norm)\.bias$"), r"\1.shift"),
)
# Keys under which training scripts save the state dict beside other things.
_SECTIONS = ("model_state_dict", "state_dict", "model")


def from_book(
    source: str, out: str, heads: int | None = None, tokenizer: str | None = None, drop_rate: float | None = None
) -> Conversion:
    """Convert the file `source` with a state dict of the book's GPT into our model in the new directory `out`.

    Args:
        heads: the book's `n_heads`; needed unless the file contains it.
        tokenizer: see `load_tokenizer`, or `"none"`. By default GPT-2's if the vocabulary has GPT-2's size.
        drop_rate: dropout when training continues; by default the file's, else the book's 0.1.

    Raises:
        UserError: it is not such a file, weights are missing or unknown, or `heads` is needed or does not fit.
    """
    with new_directory(out) as directory:
        path = local_path(source)
        weights, settings, left_out = _read(path)
        fields = _sizes(source, weights)
        fields["num_attention_heads"] = _heads(source, fields["hidden_size"], heads, settings)
        fields["dropout"] = settings.get("drop_rate", 0.1) if drop_rate is None else drop_rate
        config = our_config(source, fields)
        rows = _rows(source, weights, config)
        notes = [f"{name} is not taken over: training goes on with a new optimizer" for name in left_out]
        config.tie_word_embeddings = torch.equal(weights[_HEAD], weights[_EMBEDDING])
        if config.tie_word_embeddings:
            notes.append("out_head is tok_emb: saved once, as a tied head (tie_word_embeddings)")
            rows = [row for row in rows if row.sources != (_HEAD,)]
        if tokenizer is None and config.vocab_size == _GPT2_VOCAB_SIZE:
            tokenizer = "gpt2"
        chosen = choose_tokenizer(tokenizer, lambda: None, config.vocab_size)
        name_special_tokens(config, chosen[0])
        logits = _book_logits(weights, config.num_hidden_layers, config.num_attention_heads, token_ids(config))
        del weights
        free_memory()
        book = Source(source, lambda: _read(path)[0], can_be_mapped(path), chosen)
        return convert(book, rows, logits, GPTForCausalLM, config, directory, out, notes)


def _read(path: Path) -> tuple[StateDict, Mapping[str, Any], list[str]]:
    """The weights under the book's names, a dictionary like its `GPT_CONFIG_124M` if the file holds one, and the names
    under which it holds an optimizer."""
    content, others = read_file(path, _SECTIONS)
    weights = {_book_name(name): weight for name, weight in content.items()}
    if len(weights) < len(content):
        raise UserError(f"{path}: two of its weights have the same name in the book, such as module.x and x")
    if path.suffix == ".safetensors":  # which holds tied weights once, under either name
        for one, other in ((_HEAD, _EMBEDDING), (_EMBEDDING, _HEAD)):
            if one not in weights and other in weights:
                weights[one] = weights[other]
    settings = (value for value in others.values() if isinstance(value, Mapping) and type(value.get("n_heads")) is int)
    return weights, next(settings, {}), [str(name) for name in others if "optim" in str(name).lower()]


def _book_name(name: str) -> str:
    for pattern, replacement in _VARIANTS:
        name = pattern.sub(replacement, name)
    return name


def _rows(source: str, weights: StateDict, config: GPTConfig) -> list[Row]:
    """The rows of the table for these weights, if they are exactly those of a model of this configuration."""
    layout = "book_fused" if "trf_blocks.0.att.qkv.weight" in weights else "book"
    shapes = shapes_of(source, GPTForCausalLM, config)
    rows = rows_between(layout, "ours", config.num_hidden_layers, shapes)
    needed = {}
    for row in rows:
        first, *rest = shapes[row.targets[0]]
        needed[row.sources[0]] = [len(row.targets) * first, *rest]
    if missing := [name for name in needed if name not in weights]:
        raise UserError(f"{source}: lacks {missing[0]}")
    for name, weight in weights.items():
        if name not in needed:
            raise UserError(f"{source}: holds {name}, which this model has no place for")
        if list(weight.shape) != needed[name]:
            raise UserError(f"{source}: {name} has the shape {list(weight.shape)}, the model needs {needed[name]}")
    return rows


def _sizes(source: str, weights: StateDict) -> dict[str, Any]:
    """The fields of our configuration that the shapes tell."""
    for name in (_EMBEDDING, "pos_emb.weight", "trf_blocks.0.ff.layers.0.weight"):
        if name not in weights or weights[name].dim() != 2:
            found = ", ".join(list(weights)[:2])
            raise UserError(f"{source}: not a state dict of the book's GPTModel: no matrix {name}; it has {found}")
    return {
        "vocab_size": weights[_EMBEDDING].shape[0],
        "hidden_size": weights[_EMBEDDING].shape[1],
        "max_position_embeddings": weights["pos_emb.weight"].shape[0],
        "num_hidden_layers": len({name.split(".")[1] for name in weights if name.startswith("trf_blocks.")}),
        "intermediate_size": weights["trf_blocks.0.ff.layers.0.weight"].shape[0],
        "qkv_bias": any(re.search(r"\.att\.(qkv|W_query|W_key|W_value)\.bias$", name) for name in weights),
        "initialization": "pytorch",
        "tie_word_embeddings": False,
    }


def _heads(source: str, width: int, heads: int | None, settings: Mapping[str, Any]) -> int:
    in_file = settings.get("n_heads")
    if heads is None and in_file is None:
        # All GPT-2 models have heads of width 64. Only a hint: another number of heads makes another function.
        hint = f", such as {width // 64}, as in GPT-2" if width % 64 == 0 else ""
        raise UserError(f"{source} does not contain their number; give n_heads of your model{hint}", field="heads")
    if heads is not None and in_file not in (None, heads):
        raise UserError(f"{source} contains n_heads={in_file}; give the same or nothing", field="heads", value=heads)
    return in_file if heads is None else heads


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
    return linear(norm(x, "final_norm"), "out_head").flatten()
