"""Evaluation: what it costs to score a text where the vocabulary, not the model, is large."""

import json
import sys
import tempfile
from pathlib import Path

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from hf_gpt import GPTConfig, GPTForCausalLM, load_tokenizer

from .timing import Result, in_turn, process
from .training import real_text

CONTEXT = 128
_SHAPE = {"vocab_size": 50257, "n_layer": 2, "n_head": 2, "n_embd": 32, "n_positions": CONTEXT}


def evaluate(runs: int = 3) -> Result:
    """CPU seconds to score WikiText's `validation` under GPT-2's vocabulary: 2 layers x 32, windows of 128.

    Ours is `hf-gpt evaluate`, for which the text was tokenised before; the peer gives `GPT2LMHeadModel` such windows,
    eight at a time, and takes the loss that it returns.
    """
    corpus = real_text("wikitext")
    names = {"n_layer": "n_layers", "n_head": "n_heads", "n_embd": "emb_dim", "n_positions": "context_length"}
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        ours = GPTForCausalLM(GPTConfig(**{names.get(name, name): value for name, value in _SHAPE.items()}))
        for path, model in (("ours", ours), ("peer", GPT2LMHeadModel(GPT2Config(**_SHAPE)))):
            model.save_pretrained(Path(folder, path))
            load_tokenizer("gpt2").save_pretrained(Path(folder, path))
        where = ["--dataset", str(corpus), "--dataset-config", "wikitext-2-v1", "--split", "validation", "--json"]
        found: list[dict] = []

        def cpu_seconds(program: str, *arguments: str) -> float:
            printed = process(
                sys.executable, "-c", program, *arguments, env={"HF_GPT_CACHE": f"{folder}/cache"}, quiet=True
            ).printed
            found.append(json.loads(printed[0]))
            return float(printed[-1])

        mine, theirs = in_turn(
            lambda: cpu_seconds(_OURS, "evaluate", f"{folder}/ours", *where),
            lambda: cpu_seconds(_PEER, f"{folder}/peer", str(corpus)),
            runs,
        )
    return Result("evaluate", mine, theirs, "CPU seconds", "below 1", {"tokens": found[0]["scored_tokens"]})


_OURS = """
import sys, time
from hf_gpt.cli import main
import hf_gpt.text_evaluation
began = time.process_time()
main(sys.argv[1:])
print(time.process_time() - began)
"""

_PEER = """
import json, sys, time
import datasets, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained(sys.argv[1]).eval()
rows = datasets.load_dataset(sys.argv[2], "wikitext-2-v1", split="validation", cache_dir=sys.argv[1])
ids = torch.tensor(AutoTokenizer.from_pretrained(sys.argv[1])("".join(rows["text"]))["input_ids"])
began = time.process_time()
windows, total = ids[: len(ids) // 128 * 128].view(-1, 128), 0.0
with torch.no_grad():
    for some in windows.split(8):
        total += model(some, labels=some).loss.item() * len(some)
print(json.dumps({"loss": total / len(windows)}))
print(time.process_time() - began)
"""
