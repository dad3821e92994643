"""The names of the weights: ours, GPT-2's and the book's, side by side.

`TABLE` is the conversion. `rows_between` picks two of its columns, and `renamed` converts a state dict from one to the
other, one weight after another: it renames, transposes, splits and joins them.
"""

import contextlib
import ctypes
from collections.abc import Callable, Collection
from typing import Literal, NamedTuple

import torch
from tqdm.auto import tqdm

StateDict = dict[str, torch.Tensor]
Layout = Literal["ours", "gpt2", "book", "book_fused"]


class Entry(NamedTuple):
    """One weight in the three layouts.

    `{i}` stands for the layer, `{qkv}` for query, key and value, which are three weights of ours and one of GPT-2's.
    `is_conv1d`: GPT-2 has it as a `Conv1D` of shape (in, out), where an `nn.Linear` has (out, in).
    """

    ours: str
    gpt2: str
    book: str | None = None
    is_conv1d: bool = False


TABLE = (
    # ours, GPT-2's, the book's
    Entry("model.embed_tokens.weight", "transformer.wte.weight", "tok_emb.weight"),
    Entry("model.embed_positions.weight", "transformer.wpe.weight", "pos_emb.weight"),
    *(
        Entry(f"model.layers.{{i}}.{ours}", f"transformer.h.{{i}}.{gpt2}", f"trf_blocks.{{i}}.{book}", *is_conv1d)
        for ours, gpt2, book, *is_conv1d in (
            ("input_layernorm.weight", "ln_1.weight", "norm1.scale"),
            ("input_layernorm.bias", "ln_1.bias", "norm1.shift"),
            ("self_attn.{qkv}.weight", "attn.c_attn.weight", "att.{qkv}.weight", True),
            ("self_attn.{qkv}.bias", "attn.c_attn.bias", "att.{qkv}.bias"),
            ("self_attn.o_proj.weight", "attn.c_proj.weight", "att.out_proj.weight", True),
            ("self_attn.o_proj.bias", "attn.c_proj.bias", "att.out_proj.bias"),
            ("post_attention_layernorm.weight", "ln_2.weight", "norm2.scale"),
            ("post_attention_layernorm.bias", "ln_2.bias", "norm2.shift"),
            ("mlp.up_proj.weight", "mlp.c_fc.weight", "ff.layers.0.weight", True),
            ("mlp.up_proj.bias", "mlp.c_fc.bias", "ff.layers.0.bias"),
            ("mlp.down_proj.weight", "mlp.c_proj.weight", "ff.layers.2.weight", True),
            ("mlp.down_proj.bias", "mlp.c_proj.bias", "ff.layers.2.bias"),
        )
    ),
    Entry("model.norm.weight", "transformer.ln_f.weight", "final_norm.scale"),
    Entry("model.norm.bias", "transformer.ln_f.bias", "final_norm.shift"),
    # the heads: language model, classification of a text, of its tokens, question answering
    Entry("lm_head.weight", "lm_head.weight", "out_head.weight"),
    Entry("score.weight", "score.weight"),
    Entry("score.weight", "classifier.weight"),
    Entry("score.bias", "classifier.bias"),
    Entry("qa_outputs.weight", "qa_outputs.weight"),
    Entry("qa_outputs.bias", "qa_outputs.bias"),
)
_QKV = {
    "ours": ("q_proj", "k_proj", "v_proj"),
    "book": ("W_query", "W_key", "W_value"),
    "book_fused": ("qkv",),  # the companion code's
}

_SMALL = 16 * 2**20  # bytes: fewer weights are not worth loading the file again


class Row(NamedTuple):
    """The weights `sources`, each transposed if need be and joined along `dim`, are the weights `targets`."""

    sources: tuple[str, ...]
    targets: tuple[str, ...]
    is_transposed: bool
    dim: int


def rows_between(
    source: Layout, target: Layout, num_layers: int, targets: Collection[str], sources: Collection[str] | None = None
) -> list[Row]:
    """The rows of `TABLE` for a model of so many layers, from one layout to the other, of which one is ours.

    Args:
        targets: the weights of the target; rows of others are left out.
        sources: the weights of the source; likewise, if given.
    """
    rows = []
    for entry in TABLE:
        is_transposed = entry.is_conv1d and "gpt2" in (source, target)
        for layer in range(num_layers if "{i}" in entry.ours else 1):
            old, new = _names(entry, source, layer), _names(entry, target, layer)
            one_by_one = zip(zip(old), zip(new))
            for names, new_names in one_by_one if len(old) == len(new) else [(old, new)]:
                if names and set(new_names) <= set(targets) and (sources is None or set(names) <= set(sources)):
                    rows.append(Row(names, new_names, is_transposed, dim=-1 if target == "gpt2" else 0))
    return rows


def _names(entry: Entry, layout: Layout, layer: int) -> tuple[str, ...]:
    name = getattr(entry, layout.removesuffix("_fused")) or ""
    parts = _QKV[layout] if "{qkv}" in name else ("",)
    return tuple(name.format(i=layer, qkv=part) for part in parts if name)


def renamed(load: Callable[[], StateDict], rows: list[Row], is_mapped: bool) -> StateDict:
    """The weights of `load()` under their new names, copied.

    Each weight is freed once it is converted. Pages of a memory-mapped file (`is_mapped`) count as memory of this
    process while the file is in use, so it is loaded anew after each eighth of the model.
    """
    needed = {name for row in rows for name in row.sources}  # not the second name of a tied head
    state, results, num_read = load(), {}, 0
    eighth = max(_SMALL, sum(weight.nbytes for weight in state.values()) / 8)
    state = {name: weight for name, weight in state.items() if name in needed}
    by_size = sorted(rows, key=lambda row: -sum(state[name].nbytes for name in row.sources))
    for row in tqdm(by_size, desc="converting", unit=" weights", delay=2, disable=None, leave=False):
        if num_read > eighth:
            num_read = 0
            if is_mapped:
                state.clear()
                state = load()
            free_memory()
        parts = [state.pop(name) for name in row.sources]
        num_read += sum(part.nbytes for part in parts)
        whole = torch.cat([part.T if row.is_transposed else part for part in parts], row.dim)
        del parts
        if len(row.targets) == 1:
            results[row.targets[0]] = whole
        else:
            results |= {name: part.clone() for name, part in zip(row.targets, whole.chunk(len(row.targets), row.dim))}
    return results


def free_memory() -> None:
    """Give freed memory back to the system: glibc keeps much of it, two thirds of GPT-2's size."""
    with contextlib.suppress(AttributeError, OSError, TypeError):  # other C libraries have no such call
        ctypes.CDLL(None).malloc_trim(0)
