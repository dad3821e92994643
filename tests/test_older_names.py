"""What a `config.json` says twice, so that transformers 4 too reads it, and what it cannot say to it."""

import copy
import json
from pathlib import Path

import pytest
import torch
from any_model import LLAMA, TYPES
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from hf_gpt import checkpoint, transformers_4
from hf_gpt.transformers_4 import lost_in_transformers_4, with_older_names

SMALL = {"vocab_size": 64, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None}
STRETCHED = {"original_max_position_embeddings": 8}
LLAMA3 = STRETCHED | {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LONGROPE = STRETCHED | {"factor": 4.0, "short_factor": [1.0, 1.2, 1.4, 1.6], "long_factor": [2.0, 3.0, 4.0, 5.0]}


def config(kind: str, rope: dict | None = None, **fields) -> PreTrainedConfig:
    """A small configuration, with the base 1e6 where positions rotate."""
    found = AutoConfig.for_model(kind, **copy.deepcopy({**SMALL, **TYPES.get(kind, LLAMA), **fields}))
    if rope is not None:
        found.rope_parameters |= {"rope_theta": 1e6, **rope}
    return AutoConfig.for_model(**found.to_dict())


def model(config: PreTrainedConfig) -> torch.nn.Module:
    """A random model, whose logits differ much from one position to another."""
    torch.manual_seed(0)
    made = AutoModelForCausalLM.from_config(config)
    for parameter in made.parameters():
        if parameter.ndim > 1:
            parameter.data.normal_(std=0.3)
    return made.eval()


def written(config: PreTrainedConfig, folder: Path) -> dict:
    """What `config.json` holds where a model is saved."""
    checkpoint.save_model(AutoModelForCausalLM.from_config(config), folder)
    return json.loads((folder / "config.json").read_text())


# Configurations that transformers 4 reads right, and what they say to it.
KEPT = {
    "llama": (config("llama", {}), {"rope_theta": 1e6}),
    "linear": (
        config("llama", {"rope_type": "linear", "factor": 4.0}),
        {"rope_theta": 1e6, "rope_scaling": {"rope_type": "linear", "factor": 4.0}},
    ),
    "dynamic": (
        config("qwen3", {"rope_type": "dynamic", "factor": 4.0}),
        {"rope_theta": 1e6, "rope_scaling": {"rope_type": "dynamic", "factor": 4.0}},
    ),
    "llama3": (
        config("llama", {"rope_type": "llama3", **LLAMA3}),
        {"rope_theta": 1e6, "rope_scaling": {"rope_type": "llama3", **LLAMA3}},
    ),
    "qwen3 llama3": (
        config("qwen3", {"rope_type": "llama3", **LLAMA3}),
        {"rope_theta": 1e6, "rope_scaling": {"rope_type": "llama3", **LLAMA3}},
    ),
    "yarn": (
        config("qwen3", {"rope_type": "yarn", "factor": 4.0, **STRETCHED}),
        {"rope_theta": 1e6, "rope_scaling": {"rope_type": "yarn", "factor": 4.0, **STRETCHED}},
    ),
    "yarn within the positions": (
        config("llama", {"rope_type": "yarn", "factor": 4.0}, head_dim=32),
        {"rope_theta": 1e6, "rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
    ),
    "partial": (
        config("phi", {"partial_rotary_factor": 0.5}),
        {"rope_theta": 1e6, "partial_rotary_factor": 0.5},
    ),
    "gpt_neox": (
        config("gpt_neox", {"partial_rotary_factor": 0.5}, hidden_size=32),
        {"rotary_emb_base": 1e6, "rotary_pct": 0.5},
    ),
    "qwen3_moe": (
        config("qwen3_moe", {}, num_experts=2, num_experts_per_tok=1, moe_intermediate_size=8),
        {"rope_theta": 1e6, "num_experts": 2},
    ),
    "qwen3 sliding": (
        config("qwen3", {}, use_sliding_window=True, sliding_window=4, max_window_layers=0),
        {"rope_theta": 1e6, "sliding_window": 4},
    ),
    "gemma2": (config("gemma2", {}, sliding_window=4), {"rope_theta": 1e6}),
    "cohere2": (config("cohere2", {}, sliding_window=4, num_hidden_layers=4), {"rope_theta": 1e6}),
    "gpt2": (config("gpt2"), {}),
    "mamba": (config("mamba"), {}),
    "mixtral": (config("mixtral", {}), {"rope_theta": 1e6}),
    "granite": (config("granite", {}), {"rope_theta": 1e6}),
    "cohere": (config("cohere", {}), {"rope_theta": 1e6}),
}
# Configurations that it does not read right, and what is lost.
LOST = {
    "type": (config("smollm3", {}), "models of the type smollm3"),
    "longrope": (config("phi3", {"rope_type": "longrope", **LONGROPE}), "positions that rotate by the rule longrope"),
    "another factor": (
        config("llama", {"rope_type": "yarn", "factor": 8.0, **STRETCHED}, head_dim=32),
        "this form of the rule yarn by which positions rotate",
    ),
    "some layers": (
        config("qwen3", {}, use_sliding_window=True, sliding_window=4, max_window_layers=1),
        "this order of layers with different attention",
    ),
    "all layers": (
        config("gemma2", {}, layer_types=["full_attention", "full_attention"], sliding_window=4),
        "this order of layers with different attention",
    ),
    "rules by layer": (
        config("gemma3_text", layer_types=["sliding_attention", "full_attention"], head_dim=8),
        "positions that rotate in another way in some of the layers",
    ),
}


@pytest.mark.parametrize("name", KEPT)
def test_transformers_4_is_told_by_older_names(name, tmp_path):
    config, told = KEPT[name]
    there = written(config, tmp_path)
    assert there.items() >= told.items()
    assert lost_in_transformers_4(there) is None
    if "rope_scaling" not in told:
        assert "rope_scaling" not in there
    read = AutoConfig.from_pretrained(tmp_path)
    assert with_older_names(read.to_diff_dict()) == there
    assert getattr(read, "rope_parameters", None) == getattr(config, "rope_parameters", None)


@pytest.mark.parametrize("name", LOST)
def test_what_transformers_4_has_not_is_said(name, tmp_path):
    config, lost = LOST[name]
    there = written(config, tmp_path)
    assert lost_in_transformers_4(there) == lost
    assert getattr(AutoConfig.from_pretrained(tmp_path), "rope_parameters", None) == config.rope_parameters


def test_the_types_are_of_transformers():
    assert {*transformers_4._TYPES.split()} <= MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.keys()
