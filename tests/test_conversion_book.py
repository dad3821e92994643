"""Conversion of state dicts of the book's GPT: whoever wrote one publishes it with one command."""

import os
import sys
from types import SimpleNamespace

import pytest
import torch
from hostile import Trap
from safetensors.torch import load_file, save_file, save_model
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

import hf_gpt
from hf_gpt.cli import main
from hf_gpt.conversion import from_book, table
from hf_gpt.errors import UserError

CONFIG = {
    "vocab_size": 257,
    "context_length": 48,
    "emb_dim": 24,
    "n_heads": 3,
    "n_layers": 2,
    "drop_rate": 0.2,
    "qkv_bias": False,
}
IDS = torch.arange(40).unsqueeze(0) * 5


# A GPT as a reader writes it: only the names in its state dict are the book's, or those of the companion code.


class ScaleShift(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))
        self.shift = nn.Parameter(torch.zeros(width))

    def forward(self, x):
        centred = x - x.mean(-1, keepdim=True)
        return self.scale * centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() + self.shift


class Attention(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        width, bias = cfg["emb_dim"], cfg["qkv_bias"]
        self.n_heads = cfg["n_heads"]
        if cfg.get("fused"):
            self.qkv = nn.Linear(width, 3 * width, bias=bias)
        else:
            self.W_query, self.W_key, self.W_value = (nn.Linear(width, width, bias=bias) for _ in range(3))
        setattr(self, "proj" if cfg.get("fused") else "out_proj", nn.Linear(width, width))
        if cfg.get("mask", True):
            self.register_buffer("mask", torch.ones(cfg["context_length"], cfg["context_length"]).triu(1))

    def forward(self, x):
        batch, time, width = x.shape
        if hasattr(self, "qkv"):
            q, k, v = self.qkv(x).view(batch, time, 3, self.n_heads, -1).permute(2, 0, 3, 1, 4)
        else:
            q, k, v = (
                part(x).view(batch, time, self.n_heads, -1).transpose(1, 2)
                for part in (self.W_query, self.W_key, self.W_value)
            )
        scores = q @ k.transpose(2, 3) / (width // self.n_heads) ** 0.5
        scores = scores.masked_fill(torch.ones(time, time).triu(1).bool(), float("-inf"))
        context = (scores.softmax(-1) @ v).transpose(1, 2).reshape(batch, time, width)
        return (self.proj if hasattr(self, "proj") else self.out_proj)(context)


class Block(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        width = cfg["emb_dim"]
        norm = nn.LayerNorm if cfg.get("fused") else ScaleShift
        self.att, self.norm1, self.norm2 = Attention(cfg), norm(width), norm(width)
        self.ff = nn.Module()
        self.ff.layers = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU("tanh"), nn.Linear(4 * width, width))

    def forward(self, x):
        x = x + self.att(self.norm1(x))
        return x + self.ff.layers(self.norm2(x))


class ReadersGPT(nn.Module):
    def __init__(self, **changes):
        super().__init__()
        cfg = {**CONFIG, **changes}
        self.tok_emb = nn.Embedding(cfg["vocab_size"], cfg["emb_dim"])
        self.position_name = "position_emb" if cfg.get("fused") else "pos_emb"
        setattr(self, self.position_name, nn.Embedding(cfg["context_length"], cfg["emb_dim"]))
        self.trf_blocks = nn.Sequential(*[Block(cfg) for _ in range(cfg["n_layers"])])
        self.final_norm = (nn.LayerNorm if cfg.get("fused") else ScaleShift)(cfg["emb_dim"])
        self.out_head = nn.Linear(cfg["emb_dim"], cfg["vocab_size"], bias=False)
        torch.manual_seed(7)
        with torch.no_grad():
            for weight in self.parameters():
                weight.normal_(std=0.2)

    def forward(self, ids):
        x = self.tok_emb(ids) + getattr(self, self.position_name).weight[: ids.shape[1]]
        return self.out_head(self.final_norm(self.trf_blocks(x)))


def converts(tmp_path, model, path, **arguments) -> dict:
    """Convert `path`, compare with what `model` itself computes, and return the result's weights."""
    arguments = {"heads": 3, "tokenizer": "bytes", **arguments}
    from_book(str(path), str(tmp_path / "ours"), **arguments)
    ours = AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    assert type(ours) is hf_gpt.GPTForCausalLM
    with torch.no_grad():
        assert (ours.eval()(IDS).logits - model(IDS)).abs().max() < 1e-5
    return load_file(tmp_path / "ours" / "model.safetensors")


@pytest.mark.parametrize("qkv_bias", [False, True])
@pytest.mark.parametrize("fused", [False, True])
def test_the_books_models_and_the_companions_compute_the_same_logits(tmp_path, fused, qkv_bias):
    model = ReadersGPT(fused=fused, qkv_bias=qkv_bias)
    torch.save(model.state_dict(), tmp_path / "model.pth")
    weights = converts(tmp_path, model, tmp_path / "model.pth")
    assert torch.equal(weights["model.layers.1.mlp.up_proj.weight"], model.trf_blocks[1].ff.layers[0].weight)
    att = model.trf_blocks[1].att
    value = att.qkv.weight[48:] if fused else att.W_value.weight
    assert torch.equal(weights["model.layers.1.self_attn.v_proj.weight"], value)
    config = hf_gpt.GPTConfig.from_pretrained(tmp_path / "ours")
    assert (config.vocab_size, config.context_length, config.emb_dim, config.n_layers) == (257, 48, 24, 2)
    assert (config.n_heads, config.qkv_bias, config.initialization) == (3, qkv_bias, "pytorch")
    assert config.tie_word_embeddings is False
    assert (config.dropout, config.intermediate_size) == (0.1, 96)


def test_a_published_model_generates_with_its_tokenizer(tmp_path):
    torch.save(ReadersGPT().state_dict(), tmp_path / "model.pth")
    from_book(str(tmp_path / "model.pth"), str(tmp_path / "ours"), heads=3, tokenizer="bytes", drop_rate=0.3)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "ours")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    ids = model.generate(**tokenizer("Every effort", return_tensors="pt"), max_new_tokens=60, do_sample=False)
    assert ids.shape[1] <= 12 + 60
    assert (model.config.eos_token_id, model.config.dropout) == (256, 0.3)


def compiled_and_distributed(state):
    return {f"_orig_mod.module.{name}": weight for name, weight in state.items()}


def distributed_and_compiled(state):
    return {f"module._orig_mod.{name}": weight for name, weight in state.items()}


def beside_an_optimizer(state):
    optimizer = {"state": {0: {"exp_avg": torch.ones(5), "step": torch.tensor(3.0)}}, "param_groups": [{"lr": 1e-3}]}
    return {"model_state_dict": state, "optimizer_state_dict": optimizer, "epoch": 3}


def with_readers_own_names(state):
    return {
        name.replace("tok_emb", "token_emb").replace("trf_blocks", "transformer_blocks"): weight
        for name, weight in state.items()
    }


@pytest.mark.parametrize(
    "saved_as", [compiled_and_distributed, distributed_and_compiled, beside_an_optimizer, with_readers_own_names]
)
@pytest.mark.parametrize("zipped", [True, False])
def test_what_training_scripts_save_is_understood(tmp_path, saved_as, zipped):
    model = ReadersGPT()
    torch.save(saved_as(model.state_dict()), tmp_path / "model.pth", _use_new_zipfile_serialization=zipped)
    converts(tmp_path, model, tmp_path / "model.pth")


def test_an_optimizer_that_is_not_taken_over_is_said(tmp_path):
    model = ReadersGPT()
    for saved, notes in ((beside_an_optimizer(model.state_dict()), 1), (model.state_dict(), 0)):
        torch.save(saved, tmp_path / "model.pth")
        out = str(tmp_path / f"out-{notes}")
        found = hf_gpt.from_book(str(tmp_path / "model.pth"), out, heads=4, tokenizer="none")
        said = "optimizer_state_dict is not taken over: training goes on with a new optimizer"
        assert found.notes.count(said) == notes
        assert (f"note       {said}" in found.describe()) == bool(notes)


def test_heads_are_asked_for_unless_the_file_says_them(tmp_path, capsys):
    model = ReadersGPT(emb_dim=128, n_heads=4)
    torch.save(model.state_dict(), tmp_path / "model.pth")
    message = refused(capsys, str(tmp_path / "model.pth"), str(tmp_path / "out"))
    assert "--heads: " in message
    assert "give n_heads of your model, such as 2, as in GPT-2" in message
    assert "must divide" in refused(capsys, str(tmp_path / "model.pth"), str(tmp_path / "out"), "--heads", "5")
    torch.save({"model_state_dict": model.state_dict(), "config": {"n_heads": 4}}, tmp_path / "model.pth")
    message = refused(capsys, str(tmp_path / "model.pth"), str(tmp_path / "out"), "--heads", "2")
    assert "contains n_heads=4" in message
    converts(tmp_path, model, tmp_path / "model.pth", heads=None)
    torch.save({"model_state_dict": model.state_dict(), "config": {"n_heads": 5}}, tmp_path / "model.pth")
    message = refused(capsys, str(tmp_path / "model.pth"), str(tmp_path / "out"))
    assert "model.pth: num_attention_heads (5) must divide hidden_size (128)" in message


def test_dropout_is_the_files_unless_it_is_given(tmp_path, capsys):
    path, out = str(tmp_path / "model.pth"), str(tmp_path / "out")

    def dropout(name, said, given=None) -> float:
        torch.save({"model_state_dict": ReadersGPT().state_dict(), "config": {"n_heads": 3, **said}}, path)
        from_book(path, str(tmp_path / name), tokenizer="none", drop_rate=given)
        return hf_gpt.GPTConfig.from_pretrained(tmp_path / name).dropout

    assert dropout("one", {"drop_rate": 0.2}) == 0.2
    assert dropout("two", {"drop_rate": 0.2}, given=0.0) == 0.0
    assert dropout("three", {}) == 0.1
    with pytest.raises(UserError, match=r"model\.pth: dropout must be a number, got 'much'"):
        dropout("four", {"drop_rate": "much"})
    message = refused(capsys, path, out, "--heads", "3", "--drop-rate", "1.5")
    assert "dropout must be at least 0 and less than 1, got 1.5" in message


def test_another_number_of_heads_would_be_another_model(tmp_path):
    """Why they are asked for: with a wrong number the same weights compute something else."""
    model = ReadersGPT()
    torch.save(model.state_dict(), tmp_path / "model.pth")
    from_book(str(tmp_path / "model.pth"), str(tmp_path / "ours"), heads=4, tokenizer="bytes")
    ours = AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    with torch.no_grad():
        assert (ours.eval()(IDS).logits - model(IDS)).abs().max() > 1e-3


@pytest.mark.parametrize("how", ["shared", "equal", "safetensors"])
def test_a_head_that_is_the_embedding_is_saved_once_and_it_is_said(tmp_path, capsys, how):
    model = ReadersGPT()
    if how == "equal":
        model.out_head.weight.data.copy_(model.tok_emb.weight.data)
    else:
        model.out_head.weight = model.tok_emb.weight
    path = tmp_path / ("model.safetensors" if how == "safetensors" else "model.pth")
    if how == "safetensors":
        save_model(model, str(path))
    else:
        torch.save(model.state_dict(), path)
    weights = converts(tmp_path, model, path)
    assert "lm_head.weight" not in weights
    assert hf_gpt.GPTConfig.from_pretrained(tmp_path / "ours").tie_word_embeddings is True
    assert main(["convert", str(path), str(tmp_path / "o2"), "--from", "book", "--heads", "3"]) == 0
    assert "out_head is tok_emb" in capsys.readouterr().err


def test_a_bf16_model_stays_bf16(tmp_path):
    model = ReadersGPT(fused=True).to(torch.bfloat16)
    torch.save(model.state_dict(), tmp_path / "model.pth")
    done = from_book(str(tmp_path / "model.pth"), str(tmp_path / "ours"), heads=3, tokenizer="bytes")
    weights = load_file(tmp_path / "ours" / "model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.bfloat16}
    assert torch.equal(weights["lm_head.weight"], model.out_head.weight)
    assert done.dtype == "bfloat16"


def test_gpt2s_vocabulary_gets_gpt2s_tokenizer(tmp_path, data_dir):
    model = ReadersGPT(vocab_size=50257)
    torch.save(model.state_dict(), tmp_path / "model.pth")
    from_book(str(tmp_path / "model.pth"), str(tmp_path / "ours"), heads=3)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "ours")
    assert tokenizer("Every effort moves you")["input_ids"] == [6109, 3626, 6100, 345]
    assert hf_gpt.GPTConfig.from_pretrained(tmp_path / "ours").eos_token_id == 50256


def test_without_gpt2s_files_the_error_says_what_works(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "empty"))
    monkeypatch.setenv("HF_GPT_CACHE", str(tmp_path / "cache"))
    torch.save(ReadersGPT(vocab_size=50257).state_dict(), tmp_path / "model.pth")
    message = refused(capsys, str(tmp_path / "model.pth"), str(tmp_path / "out"), "--heads", "3")
    assert "tokenizer 'gpt2'" in message
    assert "tokenizer 'none' converts without one" in message


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("trf_blocks.1.norm2.shift"), "lacks trf_blocks.1.norm2.shift"),
        (lambda s: s.pop("out_head.weight"), "lacks out_head.weight"),
        (lambda s: s.pop("pos_emb.weight"), "no matrix pos_emb.weight"),
        (lambda s: s.update({"out_head.bias": torch.ones(257)}), "holds out_head.bias"),
        (lambda s: s.update({"out_head.weight": torch.ones(2, 24)}), "[2, 24], the model needs [257, 24]"),
        (lambda s: s.update({"trf_blocks.0.att.lora.A": torch.ones(2)}), "holds trf_blocks.0.att.lora.A"),
        (lambda s: s.update({"module.tok_emb.weight": torch.ones(257, 24)}), "two of its weights have the same name"),
        (lambda s: s.update({"trf_blocks.1.norm1.scale": torch.ones(24, dtype=torch.int8)}), "int8"),
        (lambda s: s.update({"trf_blocks.3.norm1.scale": torch.ones(24)}), "lacks trf_blocks.2."),
        (lambda s: s.clear(), "holds no weights"),
        (lambda s: s.update({"tok_emb.weight": torch.eye(257, 24).to_sparse()}), "kind (sparse_coo"),
        (lambda s: s.update({"out_head.weight": torch.ones(257, 24, device="meta")}), "kind (meta"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, capsys, change, message):
    state = ReadersGPT().state_dict()
    change(state)
    torch.save(state, tmp_path / "model.pth")
    assert message in refused(capsys, str(tmp_path / "model.pth"), str(tmp_path / "out"), "--heads", "3")
    assert os.listdir(tmp_path) == ["model.pth"]


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("where", ["inside", "beside"])
def test_a_hostile_pth_ends_in_one_line_and_runs_nothing(tmp_path, capsys, where, zipped):
    sprung, path = tmp_path / "sprung", tmp_path / "model.pth"
    state = ReadersGPT().state_dict()
    content = {**state, "extra": Trap(sprung)} if where == "inside" else {"model_state_dict": state, "x": Trap(sprung)}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    message = refused(capsys, str(path), str(tmp_path / "out"), "--heads", "3")
    assert "a pickle can run code" in message
    assert os.listdir(tmp_path) == ["model.pth"]
    torch.load(path, weights_only=False)
    assert sprung.exists()  # the trap was live


def test_a_whole_model_is_refused_with_what_to_save_instead(tmp_path, capsys):
    torch.save(ReadersGPT(), tmp_path / "model.pth")
    message = refused(capsys, str(tmp_path / "model.pth"), str(tmp_path / "out"), "--heads", "3")
    assert "ReadersGPT" in message
    assert "torch.save(model.state_dict()" in message


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("model.pth", None, "cannot be read: No such file"),
        ("model.safetensors", None, "cannot be read: No such file"),
        ("model.pth", b"", "not a file of weights alone"),
        ("model.pth", b"It was the best of times", "not a file of weights alone"),
        ("model.safetensors", b"It was the best of times", "cannot be read"),
    ],
)
def test_a_file_that_is_none_ends_in_one_line(tmp_path, capsys, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    assert message in refused(capsys, str(tmp_path / name), str(tmp_path / "out"), "--heads", "3")


def test_tensors_that_are_no_state_dict_are_refused(tmp_path, capsys):
    for content, message in (
        ([torch.ones(2)], "holds a list"),
        ({"w": torch.ones(2)}, "not a state dict of the book"),
    ):
        torch.save(content, tmp_path / "model.pth")
        assert message in refused(capsys, str(tmp_path / "model.pth"), str(tmp_path / "out"), "--heads", "3")


def test_a_result_with_other_logits_is_not_kept(tmp_path, monkeypatch):
    torch.save(ReadersGPT().state_dict(), tmp_path / "model.pth")
    monkeypatch.setitem(table._QKV, "ours", ("k_proj", "q_proj", "v_proj"))
    with pytest.raises(UserError, match="logits differ"):
        from_book(str(tmp_path / "model.pth"), str(tmp_path / "out"), heads=3)
    assert os.listdir(tmp_path) == ["model.pth"]


def test_safetensors_of_the_books_weights_are_read_too(tmp_path):
    model = ReadersGPT(mask=False)
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    converts(tmp_path, model, tmp_path / "weights.safetensors")


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("zipped", [True, False])
def test_the_peak_of_memory_for_a_124m_model(tmp_path, zipped):
    import subprocess

    from test_conversion_gpt2 import PEAK

    size = SimpleNamespace(vocab_size=50257, context_length=1024, emb_dim=768, n_heads=12, n_layers=12)
    model = ReadersGPT(**vars(size))
    optimizer = {"state": {0: {"exp_avg": torch.zeros(50257, 768)}}}
    content = {"model_state_dict": model.state_dict(), "optimizer_state_dict": optimizer} if zipped else {}
    torch.save(content or model.state_dict(), tmp_path / "model.pth", _use_new_zipfile_serialization=zipped)
    command = [sys.executable, "-c", PEAK, "from_book", "model.pth", "ours", "12"]
    done = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True)
    print(f"from_book, {'zip' if zipped else 'legacy'}: {float(done.stdout.splitlines()[-1]):.2f}")
    assert float(done.stdout.splitlines()[-1]) < 1.5, done.stdout


def refused(capsys, *arguments: str) -> str:
    """The one line that `hf-gpt convert --from book` ends in, with exit code 2."""
    capsys.readouterr()
    assert main(["convert", *arguments, "--from", "book"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("hf-gpt: ")
    assert err.count("\n") == 1, err
    return err
