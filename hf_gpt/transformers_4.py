"""What transformers 4 makes of a model that transformers 5 saved.

5 writes how positions rotate as `rope_parameters`. 4 does not read that: it takes a base of 10,000 without a word, and
the logits are others. Both read the older names, so a `config.json` gets them too. For some models 4 has no names.
"""

import copy
from collections.abc import Mapping
from typing import Any

VERSION = "4.51"

# Causal language models that both versions know, with equal logits in 4.51.3 and 5.23.
_TYPES = """
aria_text bamba biogpt bloom codegen cohere cohere2 ctrl deepseek_v3 diffllama falcon falcon_mamba gemma gemma2
gemma3_text glm glm4 gpt-sw3 gpt2 gpt_bigcode gpt_neo gpt_neox gpt_neox_japanese gptj granite granitemoe
granitemoeshared helium jamba jetmoe llama mamba mistral mixtral mpt nemotron olmo olmo2 olmoe openai-gpt opt persimmon
phi phi3 phimoe qwen2 qwen2_moe qwen3 qwen3_moe rwkv stablelm starcoder2 xglm
"""
_NEOX = {"rotary_emb_base": "rope_theta", "rotary_pct": "partial_rotary_factor"}
_OTHER_NAMES = {"gpt_neox": _NEOX, "gpt_neox_japanese": _NEOX, "qwen3_moe": {"num_experts": "num_local_experts"}}
_TRAINED_LENGTH = "original_max_position_embeddings"  # before the positions were stretched


def with_older_names(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a `config.json` holds, and what transformers 4 reads in its place; 5 reads the same of both."""
    rope, older = config.get("rope_parameters") or {}, {}
    if "rope_theta" in rope:
        older = {name: rope[name] for name in ("rope_theta", "partial_rotary_factor") if name in rope}
        if (rule := rope["rope_type"]) != "default":
            older["rope_scaling"] = {name: value for name, value in rope.items() if name not in older}
            if rule == "yarn" and rope[_TRAINED_LENGTH] == config["max_position_embeddings"]:
                del older["rope_scaling"][_TRAINED_LENGTH]  # 4 would take 1 for the factor; it is 5's default
    known = {**config, **older}
    names = _OTHER_NAMES.get(config.get("model_type"), {})
    return known | {name: known[newer] for name, newer in names.items() if newer in known}


def lost_in_transformers_4(config: Mapping[str, Any]) -> str | None:
    """What the model of a `config.json` has that transformers 4.51 has not, if that is needed for the same logits."""
    from transformers import AutoConfig

    kind, rope = config.get("model_type"), config.get("rope_parameters") or {}
    if kind not in _TYPES.split():
        return f"models of the type {kind}"
    if any(isinstance(value, Mapping) for value in rope.values()):
        return "positions that rotate in another way in some of the layers"
    rule = rope.get("rope_type", "default")
    if rule not in ("default", "linear", "dynamic", "llama3", "yarn"):
        return f"positions that rotate by the rule {rule}"
    if rule == "yarn":  # 4 calculates the factor
        length, trained = config["max_position_embeddings"], rope[_TRAINED_LENGTH]
        if trained not in (length, length / rope["factor"]) or not rope.get("truncate", True):
            return "this form of the rule yarn by which positions rotate"
    if "layer_types" in config:
        rest = {name: value for name, value in config.items() if name not in ("model_type", "layer_types")}
        by_default = AutoConfig.for_model(kind, **copy.deepcopy(rest)).layer_types
        differ = len({*by_default}) > 1 and kind not in ("cohere2", "gemma2")  # others have one mask for all layers
        if differ or config["layer_types"] != by_default:
            return "this order of layers with different attention"
    return None
