"""How fast this package is beside what people use now: each function measures one thing and returns what it found.

A result is `{"name", "ours", "peer", "unit", "ratio"}` with `ratio = ours / peer`, and what else is known. The two
take turns in one process (`load`: each turn is a fresh process), and a figure is the median of its turns, so that
whatever else the machine does falls on both. Weights are random and seeded: nothing is downloaded.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import torch
from torch.ao.quantization import per_channel_dynamic_qconfig, quantize_dynamic
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel

from hf_gpt import GPTConfig, GPTForCausalLM

NUM_TURNS = 7
NUM_THREADS = 2


def generate_124m() -> dict:
    """Greedy tokens a second at GPT-2's smallest shape, batch 1, fp32."""
    models = {"ours": _gpt(), "peer": _gpt2(), "ours_one_kernel_gelu": _gpt(hidden_act="gelu_pytorch_tanh")}
    return _result("generate-124m", _tokens_per_second(models, num_tokens=32), "tokens/s", "GPT2LMHeadModel.generate")


def generate_int8() -> dict:
    """The same with int8 matrices on our side, the head's among them; the peer stays in fp32."""
    exact = _gpt()
    models = {"ours": in_int8(exact), "peer": _gpt2(), "ours_fp32": exact}
    medians = _tokens_per_second(models, num_tokens=32)
    ids = torch.randint(exact.config.vocab_size, (1, 64))
    with torch.no_grad():
        logits = exact(ids).logits
        error = (models["ours"](ids).logits - logits).std() / logits.std()
    result = _result("generate-int8", medians, "tokens/s", "GPT2LMHeadModel.generate, fp32")
    return {**result, "error_of_logits": round(float(error), 4)}


def generate_small() -> dict:
    """Greedy tokens a second at 4 layers x 128, within the context window, where calls take longer than arithmetic."""
    ours = {"vocab_size": 65, "hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4}
    peer = {"vocab_size": 65, "n_embd": 128, "n_layer": 4, "n_head": 4, "n_positions": 256}
    ours["max_position_embeddings"] = 256
    models = {
        "ours": _gpt(**ours),
        "peer": _gpt2(**peer, bos_token_id=None, eos_token_id=None),
        "ours_one_kernel_gelu": _gpt(**ours, hidden_act="gelu_pytorch_tanh"),
    }
    medians = _tokens_per_second(models, num_tokens=200)
    return _result("generate-small", medians, "tokens/s", "GPT2LMHeadModel.generate")


def load() -> dict:
    """Seconds of a `from_pretrained` at 124M that is not the process's first, and what the process needs at most.

    The first one in a process takes longer for both: transformers compiles its tables of names. It is given as well.
    The peak (of Linux) is taken when the first model's weights have all been read.
    """
    with tempfile.TemporaryDirectory() as folder:
        of = {"ours": ("hf_gpt", "GPTForCausalLM"), "peer": ("transformers", "GPT2LMHeadModel")}
        for name, model in (("ours", _gpt()), ("peer", _gpt2())):
            model.save_pretrained(Path(folder) / name)
            del model
        turns: dict[str, list[dict]] = {name: [] for name in of}
        for _ in range(NUM_TURNS):
            for name, (module, model_class) in of.items():
                command = [sys.executable, "-c", _LOAD, module, model_class, str(Path(folder) / name)]
                output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
                turns[name].append(json.loads(output.splitlines()[-1]))
    medians = {
        fact: {name: statistics.median(turn[fact] for turn in turns[name]) for name in of} for fact in turns["ours"][0]
    }
    return {
        **_result("load", medians["seconds"], "s", "GPT2LMHeadModel.from_pretrained"),
        **{f"{fact}_{name}": round(medians[fact][name], 4) for fact in ("first_seconds", "peak_gb") for name in of},
        "peak_ratio": round(medians["peak_gb"]["ours"] / medians["peak_gb"]["peer"], 4),
    }


def in_int8(model: PreTrainedModel) -> PreTrainedModel:
    """A copy whose linear layers hold int8 weights, a scale per row, and round their input to int8 at each call.

    These kernels (FBGEMM) are fast without AVX-512 too, where torchao's are slower than fp32. The tied head becomes a
    matrix of its own.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch deprecates them in favour of torchao
        return quantize_dynamic(model, {torch.nn.Linear: per_channel_dynamic_qconfig})


_LOAD = """
import importlib, json, sys, time

model_class = getattr(importlib.import_module(sys.argv[1]), sys.argv[2])


def seconds() -> float:
    start = time.perf_counter()
    model_class.from_pretrained(sys.argv[3])
    return time.perf_counter() - start


start = time.perf_counter()
model = model_class.from_pretrained(sys.argv[3])
first = time.perf_counter() - start
sum(float(parameter.detach().sum()) for parameter in model.parameters())  # weights are mapped, not read, until used
# not ru_maxrss: that of the process which started this one would count
[peak] = [line for line in open("/proc/self/status") if line.startswith("VmHWM")]
again = sorted(seconds() for _ in range(5))[2]
print(json.dumps({"seconds": again, "first_seconds": first, "peak_gb": int(peak.split()[1]) / 1e6}))
"""


def _gpt(**fields) -> GPTForCausalLM:
    torch.manual_seed(0)
    return GPTForCausalLM(GPTConfig(**fields)).eval()


def _gpt2(**fields) -> GPT2LMHeadModel:
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(**fields)).eval()


def _tokens_per_second(models: dict[str, PreTrainedModel], num_tokens: int) -> dict[str, float]:
    """The median of each model's turns, after one that does not count, on `NUM_THREADS` threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(NUM_THREADS)
    prompt = torch.arange(1, 17).unsqueeze(0)
    turns: dict[str, list[float]] = {name: [] for name in models}
    for turn in range(1 + NUM_TURNS):
        for name, model in models.items():
            start = time.perf_counter()
            written = model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                max_new_tokens=num_tokens,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
            )
            seconds = time.perf_counter() - start
            assert written.shape[1] == prompt.shape[1] + num_tokens
            if turn > 0:
                turns[name].append(num_tokens / seconds)
    torch.set_num_threads(threads)
    return {name: statistics.median(rates) for name, rates in turns.items()}


def _result(name: str, medians: dict[str, float], unit: str, peer: str) -> dict:
    ratio = medians["ours"] / medians["peer"]
    rounded = {key: float(f"{value:.4g}") for key, value in medians.items()}
    return {"name": name, **rounded, "unit": unit, "ratio": round(ratio, 3), "peer_is": peer, "turns": NUM_TURNS}
