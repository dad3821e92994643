"""A checkpoint carries the model's code: without this package installed, `trust_remote_code=True` loads it."""

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import hf_gpt
from hf_gpt.configuration_gpt import AUTO_MAP

CODE = ["configuration_gpt.py", "modeling_gpt.py"]
AUTO_CLASSES = {
    "AutoConfig",
    "AutoModel",
    "AutoModelForCausalLM",
    "AutoModelForSequenceClassification",
    "AutoModelForTokenClassification",
    "AutoModelForQuestionAnswering",
}

# Runs where hf_gpt cannot be imported. Loads what the parent saved and writes what it computes.
CHILD = """
import importlib.util, json, sys
sys.path.insert(0, sys.argv[1])
assert importlib.util.find_spec("hf_gpt") is None, "the package is still on the path"
import torch, transformers
from safetensors.torch import save_file

checkpoint, classifier, saved_again, out = sys.argv[2:]
input_ids = torch.arange(12).view(2, 6)
found = {}
with torch.no_grad():
    for name in json.loads(sys.stdin.read()):
        where = classifier if "Sequence" in name else checkpoint
        model = getattr(transformers, name).from_pretrained(where, trust_remote_code=True).eval()
        assert type(model).__module__.startswith("transformers_modules."), type(model)
        if name == "AutoModelForQuestionAnswering":  # a fresh head: its logits are its own
            assert model(input_ids).start_logits.shape == (2, 6)
        elif name == "AutoModelForTokenClassification":
            assert model(input_ids).logits.shape == (2, 6, 2)
        else:
            found[name] = model(input_ids)[0]
        if name == "AutoModelForCausalLM":
            model.save_pretrained(saved_again)
            found["generated"] = model.generate(input_ids, max_new_tokens=14, min_new_tokens=14, do_sample=False)
            model = transformers.AutoModelForCausalLM.from_pretrained(saved_again, trust_remote_code=True)
            found["saved again"] = model(input_ids).logits
    config = transformers.AutoConfig.from_pretrained(checkpoint, trust_remote_code=True)
    found["from_config"] = torch.tensor(
        transformers.AutoModelForCausalLM.from_config(config, trust_remote_code=True).num_parameters()
    )
    tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint, trust_remote_code=True)
    found["tokens"] = torch.tensor(tokenizer("Every effort").input_ids)
save_file({name: tensor.contiguous() for name, tensor in found.items()}, out)
"""


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    torch.manual_seed(0)
    config = hf_gpt.GPTConfig(vocab_size=257, context_length=16, emb_dim=32, n_layers=2, n_heads=4, qkv_bias=False)
    hf_gpt.GPTForCausalLM(config).save_pretrained(tmp_path / "model")
    hf_gpt.load_tokenizer("bytes").save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def packages_without_ours(folder: Path) -> Path:
    """The installed packages but this one, and without the `.pth` files by which an editable install is found."""
    folder.mkdir()
    for entry in Path(sysconfig.get_paths()["purelib"]).iterdir():
        if entry.suffix != ".pth" and "hf_gpt" not in entry.name:
            (folder / entry.name).symlink_to(entry)
    return folder


def test_every_auto_class_loads_a_checkpoint_where_the_package_is_not_installed(checkpoint, tmp_path):
    classifier = hf_gpt.GPTForSequenceClassification.from_pretrained(checkpoint, num_labels=3).eval()
    classifier.config.pad_token_id = 256
    classifier.save_pretrained(tmp_path / "classifier")

    child = subprocess.run(
        [
            *(sys.executable, "-S", "-E", "-c", CHILD, packages_without_ours(tmp_path / "packages")),
            *(checkpoint, tmp_path / "classifier", tmp_path / "again", tmp_path / "found.safetensors"),
        ],
        input=json.dumps(sorted(AUTO_CLASSES - {"AutoConfig"})),
        text=True,
        capture_output=True,
        cwd=tmp_path,
        env={**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"},
    )
    assert child.returncode == 0, child.stderr

    found = load_file(tmp_path / "found.safetensors")
    model = hf_gpt.GPTForCausalLM.from_pretrained(checkpoint).eval()
    input_ids = torch.arange(12).view(2, 6)
    with torch.no_grad():
        assert torch.equal(found["AutoModelForCausalLM"], model(input_ids).logits)
        assert torch.equal(found["saved again"], model(input_ids).logits)
        assert torch.equal(found["AutoModel"], model.model(input_ids).last_hidden_state)
        assert torch.equal(found["AutoModelForSequenceClassification"], classifier(input_ids).logits)
    # 6 + 14 tokens in a window of 16: the remote code slides it as the package does
    ours = model.generate(input_ids, max_new_tokens=14, min_new_tokens=14, do_sample=False)
    assert torch.equal(found["generated"], ours)
    assert found["from_config"] == model.num_parameters()
    assert found["tokens"].tolist() == list(b"Every effort")
    for file in CODE:
        assert (tmp_path / "again" / file).read_text() == (checkpoint / file).read_text()


def test_a_saved_model_names_every_class_and_carries_both_files(checkpoint):
    assert json.loads((checkpoint / "config.json").read_text())["auto_map"] == AUTO_MAP
    assert set(AUTO_MAP) == AUTO_CLASSES
    package = Path(hf_gpt.__file__).parent
    for file in CODE:
        assert (checkpoint / file).read_text() == (package / file).read_text()


def test_every_class_that_auto_map_names_is_there_and_is_the_one_registered():
    import transformers

    for auto_class, reference in AUTO_MAP.items():
        module, name = reference.split(".")
        ours = getattr(sys.modules[f"hf_gpt.{module}"], name)
        if auto_class == "AutoConfig":
            assert type(transformers.AutoConfig.for_model("hf_gpt")) is ours
        else:
            assert getattr(transformers, auto_class)._model_mapping[hf_gpt.GPTConfig] is ours


def test_with_the_package_installed_its_own_code_is_used_and_no_question_asked(checkpoint):
    from transformers import AutoModelForCausalLM

    (checkpoint / "modeling_gpt.py").write_text("raise SystemExit('the code in the checkpoint was run')")
    for trust_remote_code in (None, False, True):
        model = AutoModelForCausalLM.from_pretrained(checkpoint, trust_remote_code=trust_remote_code)
        assert type(model) is hf_gpt.GPTForCausalLM
