"""Conversion of OpenAI's TensorFlow release, from a small checkpoint of that layout that TensorFlow itself wrote."""

import builtins
import json
import os

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

import hf_gpt
from hf_gpt.cli import main
from hf_gpt.conversion import openai

HPARAMS = {"n_vocab": 300, "n_ctx": 48, "n_embd": 32, "n_head": 4, "n_layer": 2}
IDS = torch.arange(40).unsqueeze(0) * 7
TEXT = "the cat sat on the mat, don't it? caf\u00e9\n"


def variables() -> dict[str, np.ndarray]:
    """Names and shapes as `src/model.py` of https://github.com/openai/gpt-2 makes them."""
    draw = np.random.default_rng(7)
    width = HPARAMS["n_embd"]

    def normal(*shape):
        return draw.normal(scale=0.2, size=shape).astype(np.float32)

    made = {
        "model/wte": normal(HPARAMS["n_vocab"], width),
        "model/wpe": normal(HPARAMS["n_ctx"], width),
        "model/ln_f/g": normal(width),
        "model/ln_f/b": normal(width),
    }
    for layer in range(HPARAMS["n_layer"]):
        for name in ("ln_1", "ln_2"):
            made[f"model/h{layer}/{name}/g"], made[f"model/h{layer}/{name}/b"] = normal(width), normal(width)
        for name, inner, outer in (
            ("attn/c_attn", width, 3 * width),
            ("attn/c_proj", width, width),
            ("mlp/c_fc", width, 4 * width),
            ("mlp/c_proj", 4 * width, width),
        ):
            made[f"model/h{layer}/{name}/w"] = normal(1, inner, outer)
            made[f"model/h{layer}/{name}/b"] = normal(outer)
    return made


@pytest.fixture(scope="module")
def backend():
    return hf_gpt.train_tokenizer(["the cat sat on the mat, the cat ate the rat " * 20], 300)


@pytest.fixture
def without_checkpoint(tmp_path, backend):
    """The folder but for what TensorFlow writes."""
    folder = tmp_path / "117M"
    folder.mkdir()
    described = json.loads(backend.backend_tokenizer.to_str())
    size = backend.eos_token_id + 1
    (folder / "hparams.json").write_text(json.dumps({**HPARAMS, "n_vocab": size}))
    vocab = {**described["model"]["vocab"], "<|endoftext|>": backend.eos_token_id}
    (folder / "encoder.json").write_text(json.dumps(vocab))
    lines = "".join(" ".join(merge) + "\n" for merge in described["model"]["merges"])
    (folder / "vocab.bpe").write_text("#version: 0.2\n" + lines, encoding="utf-8")
    return folder


@pytest.fixture
def release(without_checkpoint, backend):
    tensorflow = pytest.importorskip("tensorflow", reason="needs tensorflow: pip install tensorflow-cpu")
    v1 = tensorflow.compat.v1
    size = backend.eos_token_id + 1
    made = variables()
    made["model/wte"] = made["model/wte"][:size]
    with tensorflow.Graph().as_default(), v1.Session() as session:
        placed = {
            name: v1.get_variable(name, initializer=tensorflow.constant(value), use_resource=False)
            for name, value in made.items()
        }
        counter = v1.get_variable("counter", initializer=tensorflow.constant(5), use_resource=False)
        session.run(v1.global_variables_initializer())
        v1.train.Saver([*placed.values(), counter]).save(session, str(without_checkpoint / "model.ckpt"))
    return without_checkpoint, made


def test_the_release_becomes_our_model_with_its_tokenizer(tmp_path, release, backend, capsys):
    folder, made = release
    assert {"checkpoint", "model.ckpt.index", "model.ckpt.meta"} < set(os.listdir(folder))
    assert main(["convert", str(folder), str(tmp_path / "ours"), "--from", "openai"]) == 0
    assert "logits agree to" in capsys.readouterr().err

    # Stock GPT-2 with the same numbers, put there by hand.
    sizes = {"n_positions": 48, "n_embd": 32, "n_head": 4, "n_layer": 2}
    stock = GPT2LMHeadModel(GPT2Config(vocab_size=len(made["model/wte"]), **sizes))
    ending = {"g": "weight", "w": "weight", "b": "bias", "wte": "wte.weight", "wpe": "wpe.weight"}
    for name, value in made.items():
        *path, last = name.removeprefix("model/").replace("h0/", "h/0/").replace("h1/", "h/1/").split("/")
        weight = stock.transformer.get_parameter(".".join([*path, ending[last]]))
        weight.data.copy_(torch.from_numpy(value).reshape(weight.shape))
    ours = AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    with torch.no_grad():
        ids = IDS % len(made["model/wte"])
        assert (ours.eval()(ids).logits - stock.eval()(ids).logits).abs().max() < 1e-5
    assert type(ours) is hf_gpt.GPTForCausalLM
    assert ours.config.tie_word_embeddings is True

    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "ours")
    assert tokenizer(TEXT)["input_ids"] == backend(TEXT)["input_ids"]
    assert tokenizer.decode(tokenizer(TEXT)["input_ids"]) == TEXT
    assert tokenizer.eos_token_id == ours.config.eos_token_id == backend.eos_token_id


def test_what_is_missing_or_damaged_is_named(tmp_path, release, capsys):
    folder, _ = release

    def refused() -> str:
        capsys.readouterr()
        assert main(["convert", str(folder), str(tmp_path / "out"), "--from", "openai"]) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1, err
        assert not (tmp_path / "out").exists()
        return err

    hparams = (folder / "hparams.json").read_text()
    (folder / "hparams.json").write_text(hparams.replace('"n_layer": 2', '"n_layer": 3'))
    assert "lacks transformer.h.2.attn.c_attn.bias and 11 more" in refused()
    (folder / "hparams.json").write_text(hparams.replace('"n_layer"', '"layers"'))
    assert "cannot be used (KeyError('n_layer')); it must hold the sizes" in refused()
    (folder / "hparams.json").write_text(hparams)
    encoder = (folder / "encoder.json").read_text()
    (folder / "encoder.json").write_text("{")
    assert "encoder.json" in refused()
    (folder / "encoder.json").write_text(encoder)
    data = next(folder.glob("model.ckpt.data*"))
    data.write_bytes(data.read_bytes()[:1000])
    assert "model.ckpt" in refused()
    (folder / "model.ckpt.index").unlink()
    assert "model.ckpt: not a complete TensorFlow checkpoint" in (line := refused())
    assert "https://openaipublic.blob.core.windows.net/gpt-2/models/124M/" in line


@pytest.mark.parametrize("name", ["", "hparams.json", "encoder.json", "vocab.bpe"])
def test_where_missing_files_are_found_is_said(tmp_path, without_checkpoint, capsys, name):
    missing = without_checkpoint / name if name else tmp_path / "nowhere"
    missing.unlink(missing_ok=True)
    assert main(["convert", str(missing.parent if name else missing), str(tmp_path / "out"), "--from", "openai"]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"hf-gpt: {missing}: no such {'file' if name else 'directory'}; OpenAI's files")
    assert "https://openaipublic.blob.core.windows.net/gpt-2/models/124M/" in err


def test_without_tensorflow_one_line_says_how_to_get_it(tmp_path, without_checkpoint, monkeypatch, capsys):
    found = builtins.__import__

    def import_(name, *rest):
        if name == "tensorflow":
            raise ImportError("No module named 'tensorflow'")
        return found(name, *rest)

    monkeypatch.setattr(builtins, "__import__", import_)
    assert main(["convert", str(without_checkpoint), str(tmp_path / "out"), "--from", "openai"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "pip install tensorflow-cpu" in err
    assert not (tmp_path / "out").exists()


def test_the_tokenizer_of_the_release_is_that_of_its_two_files(without_checkpoint, backend):
    tokenizer = openai._tokenizer(without_checkpoint)
    assert tokenizer(TEXT)["input_ids"] == backend(TEXT)["input_ids"]
    assert tokenizer("a<|endoftext|>")["input_ids"][-1] == backend.eos_token_id
