"""How fast this package is beside what people use now: each function measures one thing and returns what it found.

A result is `{"name", "ours", "peer", "unit", "ratio"}` with `ratio = ours / peer`, and what else is known. Weights are
random and seeded: nothing is downloaded.
"""

import json
import statistics
import subprocess
import sys

NUM_TURNS = 3
NUM_THREADS = 2


def train_step_124m() -> dict:
    """Seconds of a training step at GPT-2's smallest shape, 4 x 1024 tokens, fp32, without dropout.

    A step is forward, backward and AdamW. Each turn is a fresh process, whose peak memory counts, and takes two steps:
    the first makes the optimizer's moments, the second is timed. Ours is what `hf-gpt train` does with `hidden_act:
    gelu_pytorch_tanh`; the peer is `GPT2LMHeadModel` and `torch.optim.AdamW` as they come. CPU seconds, of all
    threads, depend less on what else the machine does.
    """
    turns: dict[str, list[dict]] = {"ours": [], "peer": []}
    for _ in range(NUM_TURNS):
        for side, build in (("ours", _OURS), ("peer", _PEER)):
            command = [sys.executable, "-c", _TRAIN_STEP.format(threads=NUM_THREADS, build=build)]
            output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            turns[side].append(json.loads(output.splitlines()[-1]))
    medians = {
        fact: {side: statistics.median(turn[fact] for turn in turns[side]) for side in turns}
        for fact in ("seconds", "cpu_seconds", "peak_gb")
    }
    ratios = {fact: round(of["ours"] / of["peer"], 3) for fact, of in medians.items()}
    return {
        "name": "train-step-124m",
        **{side: round(medians["seconds"][side], 2) for side in turns},
        "unit": "seconds",
        "ratio": ratios["seconds"],
        "cpu_ratio": ratios["cpu_seconds"],
        "memory_ratio": ratios["peak_gb"],
        "peak_gb": {side: round(value, 2) for side, value in medians["peak_gb"].items()},
        "peer_is": "GPT2LMHeadModel, torch.optim.AdamW",
        "turns": turns,
    }


_OURS = """
from hf_gpt import GPTConfig, GPTForCausalLM
from hf_gpt.recipe import OptimizerRecipe
from hf_gpt.training.optim import build_optimizer
model = GPTForCausalLM(GPTConfig.from_preset("gpt2-124m", drop_rate=0.0, hidden_act="gelu_pytorch_tanh"))
optimizer = build_optimizer(model, OptimizerRecipe())
def loss():
    return model(inputs, shift_labels=targets, num_items_in_batch=4096, use_cache=False, skip_logits=True).loss
"""

_PEER = """
from transformers import GPT2Config, GPT2LMHeadModel
model = GPT2LMHeadModel(GPT2Config(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0))
optimizer = torch.optim.AdamW(model.parameters())
def loss():
    return model(inputs, labels=inputs).loss
"""

_TRAIN_STEP = """
import json, resource, sys, time
import torch
torch.set_num_threads({threads})
torch.manual_seed(0)
text = torch.randint(50257, (4, 1025))
inputs, targets = text[:, :-1].contiguous(), text[:, 1:].contiguous()
{build}
model.train()
for _ in range(2):
    started = time.perf_counter(), time.process_time()
    loss().backward()
    optimizer.step()
    optimizer.zero_grad()
    seconds, cpu_seconds = time.perf_counter() - started[0], time.process_time() - started[1]
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
print(json.dumps({{"seconds": seconds, "cpu_seconds": cpu_seconds, "peak_gb": peak / 1e9}}))
"""


_BENCHMARKS = {"train-step-124m": train_step_124m}


def main(arguments: list[str]) -> None:
    """`python scripts/benchmark.py [NAME ...] [--json]`: the named benchmarks, or all."""
    names = [name for name in arguments if name != "--json"] or list(_BENCHMARKS)
    if unknown := [name for name in names if name not in _BENCHMARKS]:
        sys.exit(f"{unknown[0]}: no such benchmark; there are {', '.join(_BENCHMARKS)}")
    for name in names:
        result = _BENCHMARKS[name]()
        if "--json" in arguments:
            print(json.dumps(result), flush=True)
        else:
            print(f"{name}: {result['ours']} against {result['peer']} {result['unit']}, {result['ratio']} of it")


if __name__ == "__main__":
    main(sys.argv[1:])
