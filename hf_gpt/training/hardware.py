"""Decides device, precision, attention and compilation where a recipe says `auto`.

Each is decided once, by a rule on the hardware and the size of the run, never by a clock. The decision is written to
`recipe.yaml`, and a resumed run takes it from there. `deterministic` is what makes a run repeat itself on a GPU.
"""

import contextlib
import dataclasses
import os
import shutil
from collections.abc import Iterator

import torch
from accelerate.utils import parse_flag_from_env
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PreTrainedConfig
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .. import checkpoint
from ..errors import UserError
from ..precision import multiplies_bf16
from ..recipe import Recipe, TrainRecipe
from .model import Pretrained, named_config

# What configurations call the rate of dropout on attention weights.
ATTENTION_DROPOUT = ("attention_dropout", "attn_pdrop")


def resolve_hardware(recipe: Recipe, earlier: Recipe | None, pretrained: Pretrained | None) -> Recipe:
    """Decide device, precision and compilation: as the earlier run in this folder did, else by what is here."""
    train = recipe.train
    before = earlier.train if earlier is not None else train
    device = train.device if train.device != "auto" else before.device
    if device == "auto":
        device = "cpu" if parse_flag_from_env("ACCELERATE_USE_CPU") else device
    device = checkpoint.find_device(device, "train.device")
    precision = train.mixed_precision if train.mixed_precision != "auto" else before.mixed_precision
    if precision == "auto":
        pays = device != "cpu" or pays_in_bf16(named_config(recipe.model, pretrained))
        precision = "bf16" if pays and multiplies_bf16(device) else "no"
    if precision == "fp16" and device == "cpu":
        raise UserError("train.mixed_precision: fp16 needs a GPU; use bf16 or no on a cpu")
    compiled = train.compile if train.compile != "auto" else before.compile  # perhaps still auto: see pays_to_compile
    resolved = dataclasses.replace(train, device=device, mixed_precision=precision, compile=compiled)
    if device == "cuda" and train.deterministic:
        # As transformers' `enable_full_determinism`: for cuBLAS, before its first product, and for flash attention.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        os.environ.setdefault("FLASH_ATTENTION_DETERMINISTIC", "1")
    return dataclasses.replace(recipe, train=resolved)


@contextlib.contextmanager
def deterministic(train: TrainRecipe) -> Iterator[None]:
    """On a GPU, torch's deterministic algorithms while the block runs; on a CPU a run repeats itself as it is.

    Without them the backward pass of attention adds up its blocks in the order in which they end. On an H200 they took
    2% of the speed of a 124M model. A compiled step was exact only while the kernels that it began with were there:
    others are chosen by a clock, which `config.deterministic` is to stop, and it was not tried on a GPU.

    Raises:
        UserError: the model has an operation of which torch has no such algorithm.
    """
    if train.device != "cuda" or not train.deterministic:
        yield
        return
    mode, fills = torch.get_deterministic_debug_mode(), torch.utils.deterministic.fill_uninitialized_memory
    torch.set_deterministic_debug_mode("error")
    torch.utils.deterministic.fill_uninitialized_memory = False  # nothing reads it, and filling takes time
    compiled = contextlib.nullcontext()
    if train.compile:
        from torch._inductor import config  # takes a second

        compiled = config.patch(deterministic=True)
    try:
        with compiled:
            yield
    except RuntimeError as error:
        if "does not have a deterministic implementation" not in str(error):
            raise
        what = str(error).split(",")[0]
        raise UserError(f"train.deterministic: {what}; false trains it, and the run cannot be repeated") from error
    finally:
        torch.set_deterministic_debug_mode(mode)
        torch.utils.deterministic.fill_uninitialized_memory = fills


def pays_in_bf16(config: PreTrainedConfig) -> bool:
    """Whether a step on a CPU with units for bf16 is shorter in it.

    Products shrink, to between a half and a fifth; casting makes everything else take two to three times as long. The
    share of the products grows with the width alone. Profiled on a CPU without such units, with the time of the
    products taken from fp32 and divided by 4.6 (by 2), a step in bf16 takes of one in fp32:

        layers x width    4 x 128        4 x 192        4 x 288        6 x 384        8 x 512
                          1.32 (1.49)    1.10 (1.29)    0.76 (0.96)    0.69 (0.91)    0.59 (0.82)
    """
    return config.get_text_config().hidden_size >= 256


def resolve_attention(train: TrainRecipe, config: PreTrainedConfig) -> TrainRecipe:
    """`train`, otherwise resolved, with an attention that can train this model on this device.

    `auto` is sdpa, or eager attention in a type that has no other, such as Gemma 2, which caps its scores.

    Raises:
        UserError: it has no backward pass here, no dropout, or no such precision, the type has it not, or it is code
            from the Hub.
    """
    model_class = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    has = {"sdpa": model_class._supports_sdpa, "flex_attention": model_class._supports_flex_attn}
    other = "sdpa" if has["sdpa"] else "eager"
    name = other if train.attn_implementation == "auto" else train.attn_implementation
    rates = (getattr(config.get_text_config(), field, None) for field in (*ATTENTION_DROPOUT, "dropout"))
    dropout = next((rate for rate in rates if rate is not None), 0)  # in our GPT, the first may stand for the last
    problem = None
    if name not in {"eager", *ALL_ATTENTION_FUNCTIONS.valid_keys()}:  # such as a kernel on the Hub, which is code
        problem = "there is no such attention; use eager, sdpa, flash_attention_2 or flex_attention"
    elif not has.get(name, model_class._supports_flash_attn or not name.startswith("flash_attention")):
        problem = f"transformers' {model_class.__name__} has no such attention; use {other}"
    elif name == "flex_attention" and train.device != "cuda":
        problem = f"it cannot be trained on {train.device}; use {other}"
    elif name == "flex_attention" and dropout:
        problem = f"it has no dropout, and the model has {dropout:g}; use {other}, or set model.attention_dropout to 0"
    elif name.startswith("flash_attention") and train.device != "cuda":
        problem = f"it needs a GPU, and train.device is {train.device}; use {other}"
    elif name.startswith("flash_attention") and train.mixed_precision == "no":
        problem = f"it computes in bf16 or fp16, and train.mixed_precision is no; use {other}"
    if problem is not None:
        raise UserError(problem, field="train.attn_implementation", value=name)
    return dataclasses.replace(train, attn_implementation=name)


def pays_to_compile(device: str, config: PreTrainedConfig, steps: int, tokens_per_step: int) -> bool:
    """`train.compile: auto`, by a rule on device, size of the model and length of the run; never by a clock.

    On two cores compiling took half a minute, and then saved 4% of the step of a model of 2 layers x 128, 14% at 4 x
    192 and 9% at 6 x 384: it pays for itself within 10^14 operations, and larger models were not measured. It needs a
    C++ compiler. On an H200 it took half a minute for a 124M model. Types of which transformers does not
    say that they compile as a whole, such as Mamba with its loop over tokens, are not compiled.
    """
    if not MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]._can_compile_fullgraph:
        return False
    if device == "cuda":
        return steps >= 500
    config = config.get_text_config()
    block_parameters = 12 * config.num_hidden_layers * config.hidden_size**2
    operations = 6 * block_parameters * tokens_per_step * steps
    has_compiler = shutil.which(os.environ.get("CXX", "g++")) is not None
    return device == "cpu" and block_parameters < 11e6 and operations > 1e14 and has_compiler
