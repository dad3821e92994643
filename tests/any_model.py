"""Small models of transformers' own types. Adding a type to the tests that use this is a line in `TYPES`."""

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from hf_gpt import load_tokenizer
from hf_gpt.data.tokenizer import save_tokenizer, vocab_size

WINDOW = 32
_SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
LLAMA = {**_SIZES, "num_key_value_heads": 1, "max_position_embeddings": WINDOW}

# What a recipe's `model` section says beside `model_type`: the fields of the type's own config class.
TYPES: dict[str, dict[str, Any]] = {
    "llama": LLAMA,
    "qwen3": {**LLAMA, "head_dim": 8},
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": WINDOW},  # transformers' own, with dropout
    "gemma2": {**LLAMA, "head_dim": 8, "sliding_window": 16},  # caps its logits
    "granite": {**LLAMA, "logits_scaling": 4.0, "embedding_multiplier": 2.0},
    "mixtral": {**LLAMA, "num_local_experts": 4, "num_experts_per_tok": 2},
    "mamba": {"hidden_size": 16, "num_hidden_layers": 2, "state_size": 4},  # no attention, no limit of positions
}


def tiny(name: str, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A model of some thousand parameters for the `bytes` tokenizer, with its own initialisation but wider."""
    tokenizer = load_tokenizer("bytes")
    ids = {field: getattr(tokenizer, field) for field in ("bos_token_id", "eos_token_id", "pad_token_id")}
    fields = {"vocab_size": vocab_size(tokenizer), "initializer_range": 0.2, **ids, **TYPES[name], **changes}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **fields)).eval()


def save(model: PreTrainedModel, folder: Path) -> Path:
    """The model with the `bytes` tokenizer, as a folder."""
    model.save_pretrained(folder)
    save_tokenizer(load_tokenizer("bytes"), folder)
    return folder
