"""Generation: greedy tokens a second, batch 1; and how fast and in how much memory a model is loaded."""

import functools
import json
import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path

import torch
from torch.ao.quantization import per_channel_dynamic_qconfig, quantize_dynamic
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel

from hf_gpt import GPTConfig, GPTForCausalLM
from hf_gpt.precision import multiplies_bf16

from .timing import PEAK_OF_THIS_PROCESS, NotMeasured, Result, in_turn, process

# GPT-2's activation, an approximation of GELU, costs eight kernels; GELU itself, which the small recipes use, one.
ONE_KERNEL = {"hidden_act": "gelu"}


def generate_124m(runs: int = 7) -> Result:
    """At GPT-2's smallest shape, in fp32."""
    ours, peer = _gpt(**ONE_KERNEL), _gpt2()
    assert ours.num_parameters() == peer.num_parameters()
    return Result("generate-124m", *_rates(ours, peer, 32, runs), "tokens/s", "at least 1")


def generate_int8(runs: int = 7) -> Result:
    """The same with int8 matrices on our side, the head's among them; the peer stays in fp32."""
    exact, peer = _gpt(**ONE_KERNEL), _gpt2()
    ours = in_int8(exact)
    rates = _rates(ours, peer, 32, runs)
    ids = torch.randint(exact.config.vocab_size, (1, 64))
    with torch.no_grad():
        logits = exact(ids).logits
        error = float((ours(ids).logits - logits).std() / logits.std())
    return Result("generate-int8", *rates, "tokens/s", "at least 2", {"relative_error_of_logits": round(error, 4)})


def generate_bf16(runs: int = 7) -> Result:
    """The same with weights in bf16 on our side."""
    if not multiplies_bf16("cpu"):
        raise NotMeasured("this CPU has no units for bf16")
    ours, peer = _gpt(**ONE_KERNEL).bfloat16(), _gpt2()
    return Result("generate-bf16", *_rates(ours, peer, 32, runs), "tokens/s", "at least 1.5")


def generate_small(runs: int = 7) -> Result:
    """At 4 layers x 128, within the context window, where calls take longer than arithmetic."""
    ours = _gpt(vocab_size=65, emb_dim=128, qkv_bias=True, n_layers=4, n_heads=4, context_length=256, **ONE_KERNEL)
    peer = _gpt2(vocab_size=65, n_embd=128, n_layer=4, n_head=4, n_positions=256, bos_token_id=None, eos_token_id=None)
    assert ours.num_parameters() == peer.num_parameters()
    return Result("generate-small", *_rates(ours, peer, 200, runs), "tokens/s", "")


def load(runs: int = 7) -> Result:
    """`from_pretrained` at 124M, not the process's first, and the most memory that the process needs."""
    with tempfile.TemporaryDirectory() as folder:
        _gpt().save_pretrained(Path(folder, "ours"))
        _gpt2().save_pretrained(Path(folder, "peer"))
        found: dict[str, list[dict[str, float]]] = {"ours": [], "peer": []}

        def loaded(side: str, module: str, model_class: str) -> float:
            done = process(sys.executable, "-c", _LOAD, module, model_class, str(Path(folder, side)))
            found[side].append(json.loads(done.printed[-1]))
            return found[side][-1]["seconds"]

        mine, theirs = in_turn(
            lambda: loaded("ours", "hf_gpt", "GPTForCausalLM"),
            lambda: loaded("peer", "transformers", "GPT2LMHeadModel"),
            runs,
            warmup=False,
        )
    peaks = {side: statistics.median(one["peak_gb"] for one in ones) for side, ones in found.items()}
    more = {"memory_ratio": round(peaks["ours"] / peaks["peer"], 4), "peak_gb": round(peaks["ours"], 3)}
    return Result("load", mine, theirs, "seconds", "at most 1", more)


def in_int8(model: PreTrainedModel) -> PreTrainedModel:
    """A copy whose linear layers hold int8 weights, a scale per row, and round their input to int8 at each call.

    These kernels (FBGEMM) are fast without AVX-512 too, where torchao's are slower than fp32. The tied head becomes a
    matrix of its own.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch deprecates them in favour of torchao
        return quantize_dynamic(model, {torch.nn.Linear: per_channel_dynamic_qconfig})


_LOAD = (
    """
import importlib, json, sys, time

model_class = getattr(importlib.import_module(sys.argv[1]), sys.argv[2])

def seconds():
    start = time.perf_counter()
    model_class.from_pretrained(sys.argv[3])
    return time.perf_counter() - start

model = model_class.from_pretrained(sys.argv[3])
sum(float(parameter.detach().sum()) for parameter in model.parameters())  # weights are mapped, not read, until used
"""
    + PEAK_OF_THIS_PROCESS
    + """
print(json.dumps({"seconds": sorted(seconds() for _ in range(5))[2], "peak_gb": peak_bytes / 1e9}))
"""
)


def _gpt(**fields) -> GPTForCausalLM:
    torch.manual_seed(0)
    return GPTForCausalLM(GPTConfig(**fields)).eval()


def _gpt2(**fields) -> GPT2LMHeadModel:
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(**fields)).eval()


def _rates(ours: PreTrainedModel, peer: PreTrainedModel, num_tokens: int, runs: int) -> tuple[float, float]:
    return in_turn(functools.partial(_rate, ours, num_tokens), functools.partial(_rate, peer, num_tokens), runs)


def _rate(model: PreTrainedModel, num_tokens: int) -> float:
    prompt = torch.arange(1, 17).unsqueeze(0)
    start = time.perf_counter()
    written = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=num_tokens,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    assert written.shape[1] == prompt.shape[1] + num_tokens
    return num_tokens / (time.perf_counter() - start)
