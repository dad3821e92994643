"""What is saved here opens in transformers 4: a stock GPT-2 with equal ids and logits; our form says what it needs.

4.51.3 is installed beside what is here, without torch, which both versions share (three wheels, 15 MB).
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import stock_tokenizers
import torch
from test_older_names import KEPT, LOST, model
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_gpt import GPTConfig, GPTForCausalLM, checkpoint
from hf_gpt.configuration_gpt import TRANSFORMERS
from hf_gpt.conversion import to_gpt2
from hf_gpt.data.tokenizer import load_tokenizer, save_tokenizer, train_tokenizer, vocab_size

pytestmark = [pytest.mark.slow]

TEXTS = [
    "Hello  world 1 2 3, don't\n é",
    "a\n\n\n b\t12345 日本語 🙂<|endoftext|> x",
    " it's 99 bottles, 'tis <|user|>",
]
LOGITS = """
import json, sys, torch, transformers
from transformers import AutoModelForCausalLM
assert transformers.__version__ == "4.51.3", transformers.__version__
torch.set_num_threads(1)
for folder in sys.argv[1:]:
    try:
        model = AutoModelForCausalLM.from_pretrained(folder).eval()
        found = model(torch.arange(24)[None] * 7 % 64).logits.tolist()
    except Exception as error:
        found = f"{type(error).__name__}: {error}"
    print(json.dumps(found))
"""
READ = """
import json, sys, torch, transformers
from transformers import AutoModelForCausalLM, AutoTokenizer
assert transformers.__version__ == "4.51.3", transformers.__version__
folder, texts = sys.argv[1], json.load(sys.stdin)
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder).eval()
ids = torch.arange(24)[None] * 7 % model.config.vocab_size
print(json.dumps({
    "ids": [tokenizer(text).input_ids for text in texts],
    "texts": [tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True) for text in texts],
    "logits": model(ids).logits.tolist(),
    "padding": [tokenizer.pad_token_id, model.config.pad_token_id, model.generation_config.pad_token_id],
    "written": model.generate(ids[:, :5], attention_mask=torch.ones(1, 5), max_new_tokens=8, do_sample=False).tolist(),
}))
"""


@pytest.fixture(scope="module")
def old(transformers_4, tmp_path_factory):
    """Runs Python code under transformers 4.51.3."""
    folder = tmp_path_factory.mktemp("transformers-4")
    environment = {**os.environ, "PYTHONPATH": transformers_4, "HF_HOME": str(folder / "home")}

    def run(code: str, *arguments: object, texts: list[str] = TEXTS) -> subprocess.CompletedProcess:
        command, given = [sys.executable, "-c", code, *map(str, arguments)], json.dumps(texts)
        return subprocess.run(command, env=environment, cwd=folder, input=given, capture_output=True, text=True)

    return run


@pytest.fixture(scope="module", params=["bytes", "gpt2", "trained"])
def ours(request, tmp_path_factory) -> Path:
    if request.param == "trained":
        tokenizer = train_tokenizer(["the cat sat on the mat, it's 1 2 3 " * 50, "日本語 é " * 20], 400, "<pad>")
        tokenizer.add_special_tokens({"additional_special_tokens": ["<|user|>", "<|model|>"]})
    else:
        tokenizer = load_tokenizer(request.param)
    size, end = vocab_size(tokenizer), tokenizer.eos_token_id
    config = GPTConfig(
        vocab_size=size, context_length=32, emb_dim=16, n_layers=2, n_heads=2, bos_token_id=end, eos_token_id=end
    )
    config.pad_token_id = tokenizer.pad_token_id
    torch.manual_seed(1)
    model = GPTForCausalLM(config)
    for weight in model.parameters():
        weight.data.normal_(std=0.3)
    folder = tmp_path_factory.mktemp("ours") / "model"
    model.save_pretrained(folder)
    save_tokenizer(tokenizer, folder)
    return folder


@torch.inference_mode()
def test_a_stock_gpt2_is_the_same_model_there(old, ours, tmp_path):
    to_gpt2(str(ours), str(tmp_path / "stock"))
    done = old(READ, tmp_path / "stock")
    assert done.returncode == 0, done.stderr
    there = json.loads(done.stdout.splitlines()[-1])
    tokenizer = AutoTokenizer.from_pretrained(ours)
    model = AutoModelForCausalLM.from_pretrained(ours).eval()
    ids = torch.arange(24)[None] * 7 % model.config.vocab_size
    assert there["ids"] == [tokenizer(text).input_ids for text in TEXTS]
    assert there["padding"] == [tokenizer.pad_token_id] * 3
    assert there["texts"] == [tokenizer.decode(i, skip_special_tokens=True) for i in there["ids"]]
    torch.testing.assert_close(torch.tensor(there["logits"]), model(ids).logits, rtol=1e-4, atol=1e-4)
    assert there["written"] == model.generate(ids[:, :5], max_new_tokens=8, do_sample=False).tolist()


def test_our_own_form_says_which_version_it_needs(old, ours):
    code = "import sys, transformers as t; t.AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True)"
    done = old(code, ours)
    needs = f"ImportError: this model's code needs transformers {TRANSFORMERS} or later, and this is 4.51.3: "
    assert done.stderr.splitlines()[-1].startswith(needs), done.stderr


@torch.inference_mode()
def test_stock_types_have_the_same_logits_there_or_it_is_known_what_is_lost(old, tmp_path):
    logits = {}
    for name, (config, _) in {**KEPT, **LOST}.items():
        made = model(config)
        checkpoint.save_model(made, tmp_path / name)
        logits[name] = made(torch.arange(24)[None] * 7 % 64).logits
    done = old(LOGITS, *(tmp_path / name for name in logits))
    assert done.returncode == 0, done.stderr
    differences = {}
    for (name, here), line in zip(logits.items(), done.stdout.splitlines(), strict=True):
        there = json.loads(line)
        differences[name] = there if isinstance(there, str) else (torch.tensor(there) - here).abs().max().item()
    assert {name: one for name, one in differences.items() if name in KEPT} == pytest.approx(
        dict.fromkeys(KEPT, 0), abs=1e-3
    )
    assert all(isinstance(differences[name], str) or differences[name] > 0.01 for name in LOST), differences


def test_tokenizers_of_the_hub_do_the_same_there(old, tmp_path):
    folders = []
    for kind in stock_tokenizers.KINDS:
        tokenizer = load_tokenizer(str(stock_tokenizers.write(kind, tmp_path / kind)))
        save_tokenizer(tokenizer, tmp_path / "saved" / kind)
        folders.append(tmp_path / "saved" / kind)
    here = subprocess.run(
        [sys.executable, "-c", stock_tokenizers.READ, *folders],
        input=json.dumps(stock_tokenizers.TEXTS),
        capture_output=True,
        text=True,
    )
    there = old(stock_tokenizers.READ, *folders, texts=stock_tokenizers.TEXTS)
    assert there.returncode == here.returncode == 0, there.stderr
    for kind, one, other in zip(
        stock_tokenizers.KINDS, here.stdout.splitlines(), there.stdout.splitlines(), strict=True
    ):
        assert json.loads(one) == json.loads(other), kind
