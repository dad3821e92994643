"""Conversion to and from stock GPT-2: the same bits, the same logits, or one line that says why not."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hostile import Trap
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2DoubleHeadsModel,
    GPT2ForQuestionAnswering,
    GPT2ForSequenceClassification,
    GPT2ForTokenClassification,
    GPT2LMHeadModel,
    GPT2Model,
)

import hf_gpt
from hf_gpt.checkpoint import point
from hf_gpt.cli import main
from hf_gpt.conversion import from_gpt2, gpt2, table, to_gpt2
from hf_gpt.errors import UserError

SIZES = {"vocab_size": 257, "n_positions": 48, "n_embd": 32, "n_layer": 2, "n_head": 4}
OUR_SIZES = {"vocab_size": 257, "context_length": 48, "emb_dim": 32, "n_layers": 2, "n_heads": 4}
IDS = torch.arange(40).unsqueeze(0) * 5


def scrambled(model, dtype=torch.float32):
    """Every weight and bias different from every other, so that no two can be mistaken for each other."""
    torch.manual_seed(7)
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(std=0.2)
    return model.to(dtype).eval()


def saved(model, folder) -> str:
    model.save_pretrained(folder)
    return str(folder)


@torch.no_grad()
def logits(model) -> torch.Tensor:
    outputs = model.eval()(IDS)
    return outputs.logits if "logits" in outputs else torch.stack([outputs.start_logits, outputs.end_logits])


def weights(folder) -> dict:
    return load_file(Path(folder) / "model.safetensors")


def same_bits(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(
        one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]) for name in one
    )


@pytest.fixture
def stock(tmp_path) -> str:
    return saved(
        scrambled(GPT2LMHeadModel(GPT2Config(**SIZES, bos_token_id=256, eos_token_id=256))), tmp_path / "stock"
    )


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"tie_word_embeddings": False},
        {"qkv_bias": False, "tie_word_embeddings": False, "initialization": "pytorch"},
        {"hidden_act": "gelu", "intermediate_size": 40, "layer_norm_eps": 1e-3},
    ],
)
def test_a_stock_gpt2_computes_our_logits(tmp_path, fields):
    ours = scrambled(hf_gpt.GPTForCausalLM(hf_gpt.GPTConfig(**OUR_SIZES, **fields)))
    done = to_gpt2(saved(ours, tmp_path / "ours"), str(tmp_path / "stock"))
    stock = AutoModelForCausalLM.from_pretrained(tmp_path / "stock")
    assert type(stock) is GPT2LMHeadModel
    assert (logits(stock) - logits(ours)).abs().max() < 1e-5
    assert done.difference < 1e-5
    assert ("lm_head.weight" in weights(tmp_path / "stock")) == (not ours.config.tie_word_embeddings)
    assert not list((tmp_path / "stock").glob("*.py"))
    assert "auto_map" not in json.loads((tmp_path / "stock" / "config.json").read_text())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("tied", [True, False])
def test_ours_to_gpt2_and_back_is_the_same_to_the_bit(tmp_path, tied, dtype):
    config = hf_gpt.GPTConfig(**OUR_SIZES, tie_word_embeddings=tied, dropout=0.25, embedding_dropout=0.05)
    source = saved(scrambled(hf_gpt.GPTForCausalLM(config), dtype), tmp_path / "ours")
    to_gpt2(source, str(tmp_path / "stock"))
    from_gpt2(str(tmp_path / "stock"), str(tmp_path / "back"))
    assert same_bits(weights(source), weights(tmp_path / "back"))
    back = hf_gpt.GPTConfig.from_pretrained(tmp_path / "back")
    assert (back.dropout, back.attention_dropout, back.embedding_dropout) == (0.25, 0.25, 0.05)
    assert back.tie_word_embeddings is tied
    assert back.dtype == dtype


def test_missing_biases_come_back_as_zeros(tmp_path):
    source = saved(scrambled(hf_gpt.GPTForCausalLM(hf_gpt.GPTConfig(**OUR_SIZES, qkv_bias=False))), tmp_path / "ours")
    to_gpt2(source, str(tmp_path / "stock"))
    from_gpt2(str(tmp_path / "stock"), str(tmp_path / "back"))
    before, after = weights(source), weights(tmp_path / "back")
    new = after.keys() - before.keys()
    assert {name.split(".", 3)[3] for name in new} == {f"self_attn.{p}_proj.bias" for p in "qkv"}
    assert all(not after[name].any() for name in new)
    assert same_bits(before, {name: after[name] for name in before})


def as_it_is(model, folder):
    model.save_pretrained(folder)


def without_prefix(model, folder):
    model.save_pretrained(folder)
    state = {name.removeprefix("transformer."): weight for name, weight in weights(folder).items()}
    save_file(state, folder / "model.safetensors", {"format": "pt"})


def base_model(model, folder):
    model.transformer.save_pretrained(folder)


def with_masks(model, folder):
    model.save_pretrained(folder)
    state = weights(folder)
    for layer in range(2):
        state[f"transformer.h.{layer}.attn.bias"] = torch.ones(1, 1, 48, 48, dtype=torch.uint8).tril()
        state[f"transformer.h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    save_file(state, folder / "model.safetensors", {"format": "pt"})


def from_within_compile_and_ddp(model, folder):
    model.save_pretrained(folder)
    state = {f"module._orig_mod.{name}": weight for name, weight in weights(folder).items()}
    save_file(state, folder / "model.safetensors", {"format": "pt"})


def in_shards(model, folder):
    model.save_pretrained(folder, max_shard_size="20KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 2


def as_bin(model, folder, prefix="transformer.", **how):
    model.config.architectures = ["GPT2LMHeadModel"]
    model.config.save_pretrained(folder)
    state = {prefix + name.removeprefix("transformer."): weight for name, weight in model.state_dict().items()}
    state["lm_head.weight"] = state.pop(prefix + "lm_head.weight")
    torch.save(state, folder / "pytorch_model.bin", **how)


def as_old_bin(model, folder):
    as_bin(model, folder, prefix="", _use_new_zipfile_serialization=False)


def as_bin_in_shards(model, folder):
    as_bin(model, folder)
    state = torch.load(folder / "pytorch_model.bin")
    (folder / "pytorch_model.bin").unlink()
    shard_of = {name: f"pytorch_model-0000{1 + i % 2}-of-00002.bin" for i, name in enumerate(state)}
    for shard in set(shard_of.values()):
        torch.save({name: state[name] for name in state if shard_of[name] == shard}, folder / shard)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": shard_of}))


@pytest.mark.parametrize(
    "layout",
    [
        as_it_is,
        without_prefix,
        base_model,
        with_masks,
        from_within_compile_and_ddp,
        in_shards,
        as_bin,
        as_old_bin,
        as_bin_in_shards,
    ],
)
def test_every_layout_on_the_hub_there_and_back_is_the_same_to_the_bit(tmp_path, layout):
    model = scrambled(GPT2LMHeadModel(GPT2Config(**SIZES)))
    (tmp_path / "stock").mkdir()
    layout(model, tmp_path / "stock")
    done = from_gpt2(str(tmp_path / "stock"), str(tmp_path / "ours"))
    assert done.num_tokens == 48
    ours = AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    assert type(ours) is hf_gpt.GPTForCausalLM
    assert (logits(ours) - logits(model)).abs().max() < 1e-5
    to_gpt2(str(tmp_path / "ours"), str(tmp_path / "back"))
    model.save_pretrained(tmp_path / "expected")
    assert same_bits(weights(tmp_path / "back"), weights(tmp_path / "expected"))
    written = json.loads((tmp_path / "back" / "config.json").read_text())
    expected = json.loads((tmp_path / "expected" / "config.json").read_text())
    assert written == {**expected, "n_ctx": 48}  # for llama.cpp's converter


def test_an_untied_head_stays_untied_even_if_it_is_equal(tmp_path):
    model = scrambled(GPT2LMHeadModel(GPT2Config(**SIZES, tie_word_embeddings=False)))
    model.lm_head.weight.data.copy_(model.transformer.wte.weight.data)
    from_gpt2(saved(model, tmp_path / "stock"), str(tmp_path / "ours"))
    assert "lm_head.weight" in weights(tmp_path / "ours")
    assert hf_gpt.GPTConfig.from_pretrained(tmp_path / "ours").tie_word_embeddings is False


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_the_dtype_that_config_json_says_does_not_matter(tmp_path, stock, dtype):
    """Checkpoints whose weights were kept in full are common; both sides are compared in the dtype of the weights."""
    config = Path(stock) / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"dtype": dtype}))
    assert from_gpt2(stock, str(tmp_path / "ours")).difference < 1e-5
    config = tmp_path / "ours" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"dtype": dtype}))
    assert to_gpt2(str(tmp_path / "ours"), str(tmp_path / "back")).dtype == "float32"
    assert same_bits(weights(stock), weights(tmp_path / "back"))


def test_weights_of_two_dtypes_become_the_wider_one(tmp_path, stock):
    state = {name: weight.bfloat16() if "mlp" in name else weight for name, weight in weights(stock).items()}
    save_file(state, Path(stock) / "model.safetensors", {"format": "pt"})
    assert from_gpt2(stock, str(tmp_path / "ours")).difference < 1e-5
    to_gpt2(str(tmp_path / "ours"), str(tmp_path / "back"))
    assert same_bits({name: weight.float() for name, weight in state.items()}, weights(tmp_path / "back"))


def test_a_head_that_only_config_json_ties_becomes_one_of_its_own(tmp_path, stock):
    state = weights(stock)
    state["lm_head.weight"] = torch.randn(257, 32)
    save_file(state, Path(stock) / "model.safetensors", {"format": "pt"})
    done = from_gpt2(stock, str(tmp_path / "ours"))
    assert torch.equal(weights(tmp_path / "ours")["lm_head.weight"], state["lm_head.weight"])
    assert any("stays separate" in note for note in done.notes)


HEADS = [
    (GPT2ForSequenceClassification, hf_gpt.GPTForSequenceClassification),
    (GPT2ForTokenClassification, hf_gpt.GPTForTokenClassification),
    (GPT2ForQuestionAnswering, hf_gpt.GPTForQuestionAnswering),
]


@pytest.mark.parametrize(("theirs", "ours"), HEADS)
def test_the_other_heads_go_there_and_back(tmp_path, theirs, ours):
    labels = {0: "no", 1: "yes"} if theirs is GPT2ForQuestionAnswering else {0: "no", 1: "yes", 2: "?"}
    model = scrambled(theirs(GPT2Config(**SIZES, id2label=labels)))
    source = saved(model, tmp_path / "stock")
    from_gpt2(source, str(tmp_path / "ours"))
    converted = ours.from_pretrained(tmp_path / "ours")
    assert (logits(converted) - logits(model)).abs().max() < 1e-5
    assert converted.config.id2label == labels
    to_gpt2(str(tmp_path / "ours"), str(tmp_path / "back"))
    assert same_bits(weights(source), weights(tmp_path / "back"))
    assert json.loads((tmp_path / "back/config.json").read_text())["architectures"] == [theirs.__name__]


def test_tokenizer_and_generation_config_come_along(tmp_path, stock):
    tokenizer = hf_gpt.load_tokenizer("bytes")
    tokenizer.save_pretrained(stock)
    written = {"max_new_tokens": 7, "do_sample": True, "top_k": 3, "eos_token_id": [256, 10], "made_by": "a test"}
    (Path(stock) / "generation_config.json").write_text(json.dumps(written))
    text = "Every effort moves you\n\u00e9"
    from_gpt2(stock, str(tmp_path / "ours"))
    to_gpt2(str(tmp_path / "ours"), str(tmp_path / "back"))
    for folder in (tmp_path / "ours", tmp_path / "back"):
        assert json.loads((folder / "generation_config.json").read_text()) == written
        assert AutoModelForCausalLM.from_pretrained(folder).generation_config.top_k == 3
        loaded = AutoTokenizer.from_pretrained(folder)
        assert loaded(text)["input_ids"] == tokenizer(text)["input_ids"]
        assert loaded.eos_token_id == 256


def test_a_tokenizer_of_two_old_files_is_found_by_the_bare_auto_tokenizer(tmp_path, stock):
    """As in OpenAI's repositories of 2019: no tokenizer.json, no class named, GPT-2 because config.json says so."""
    backend = hf_gpt.train_tokenizer(["the cat sat on the mat " * 20], 257)
    described = json.loads(backend.backend_tokenizer.to_str())
    vocab = {**described["model"]["vocab"], "<|endoftext|>": backend.eos_token_id}
    (Path(stock) / "vocab.json").write_text(json.dumps(vocab))
    merges = "".join(" ".join(merge) + "\n" for merge in described["model"]["merges"])
    (Path(stock) / "merges.txt").write_text("#version: 0.2\n" + merges)
    from_gpt2(stock, str(tmp_path / "ours"))
    loaded = AutoTokenizer.from_pretrained(tmp_path / "ours")
    assert loaded("the cat\u00e9")["input_ids"] == backend("the cat\u00e9")["input_ids"]
    assert loaded.eos_token_id == backend.eos_token_id


def test_another_tokenizer_or_none_can_be_asked_for(tmp_path, stock):
    from_gpt2(stock, str(tmp_path / "one"), tokenizer="bytes")
    assert AutoTokenizer.from_pretrained(tmp_path / "one")("ab")["input_ids"] == [97, 98]
    from_gpt2(stock, str(tmp_path / "two"), tokenizer="none")
    assert not (tmp_path / "two" / "tokenizer.json").exists()
    hf_gpt.train_tokenizer(["a b c d"], 300).save_pretrained(tmp_path / "small")
    small = scrambled(GPT2LMHeadModel(GPT2Config(**{**SIZES, "vocab_size": 100})))
    with pytest.raises(UserError, match="bytes, 257 ids, more than the model's 100 embeddings"):
        from_gpt2(saved(small, tmp_path / "few"), str(tmp_path / "three"), tokenizer="bytes")
    hf_gpt.load_tokenizer("bytes").save_pretrained(tmp_path / "few")
    done = from_gpt2(str(tmp_path / "few"), str(tmp_path / "four"))
    assert done.tokenizer.startswith("the source's, 257 ids, more than the model's 100 embeddings")


def test_another_tokenizer_brings_the_ends_that_it_has(tmp_path):
    config = GPT2Config(**SIZES, bos_token_id=3, eos_token_id=3)
    stock = saved(scrambled(GPT2LMHeadModel(config)), tmp_path / "stock")
    (tmp_path / "stock" / "generation_config.json").write_text('{"eos_token_id": [3, 4], "pad_token_id": 5}')
    for tokenizer, ends, all_ends in (("bytes", 256, 256), ("none", 3, [3, 4]), (None, 3, [3, 4])):
        ours, again = (str(tmp_path / f"{way}-{tokenizer}") for way in ("ours", "stock"))
        from_gpt2(stock, ours, tokenizer=tokenizer)
        to_gpt2(ours, again, tokenizer=tokenizer)
        for folder in (ours, again):
            model = AutoModelForCausalLM.from_pretrained(folder)
            assert (model.config.eos_token_id, model.generation_config.eos_token_id) == (ends, all_ends)
            assert model.generation_config.pad_token_id == (None if tokenizer == "bytes" else 5)


def test_a_run_means_its_best_checkpoint(tmp_path):
    run = tmp_path / "run"
    for step, seed in ((1, 0.1), (2, 0.2)):
        model = scrambled(hf_gpt.GPTForCausalLM(hf_gpt.GPTConfig(**OUR_SIZES)))
        model.model.norm.bias.data.fill_(seed)
        saved(model, run / "checkpoints" / f"step-0000000{step}")
    point(run, "best", run / "checkpoints" / "step-00000001")
    to_gpt2(str(run), str(tmp_path / "stock"))
    assert weights(tmp_path / "stock")["transformer.ln_f.bias"][0] == torch.tensor(0.1)


@pytest.mark.slow
def test_the_result_needs_no_package_of_ours(tmp_path):
    ours = scrambled(hf_gpt.GPTForCausalLM(hf_gpt.GPTConfig(**OUR_SIZES)))
    to_gpt2(saved(ours, tmp_path / "ours"), str(tmp_path / "stock"), tokenizer="bytes")
    torch.save(logits(ours), tmp_path / "logits.pt")
    code = """
import sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained("stock", trust_remote_code=False)
AutoTokenizer.from_pretrained("stock")
with torch.no_grad():
    logits = model(torch.arange(40).unsqueeze(0) * 5).logits
assert (logits - torch.load("logits.pt")).abs().max() < 1e-5
assert not [name for name in sys.modules if name.startswith("hf_gpt")]
"""
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scale_attn_weights": False}, "scale_attn_weights=False"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx=True"),
        ({"add_cross_attention": True}, "add_cross_attention=True"),
        ({"model_type": "llama"}, "model_type='llama'"),
        ({"architectures": ["GPT2DoubleHeadsModel"]}, "GPT2DoubleHeadsModel"),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "quantization_config"),
        ({"n_layer": 1}, "holds transformer.h.1.attn.c_attn.weight, which this model has no place for"),
        ({"n_layer": 3}, "lacks transformer.h.2.attn.c_attn.bias and 11 more"),
        ({"n_layer": "two"}, "'n_layer' expected int, got str"),
        ({"dtype": []}, "config.json cannot be used"),
        ({"architectures": 5}, "architectures=5, which cannot be converted"),
        ({"architectures": "GPT2LMHeadModel"}, "it must be a list of one of GPT2LMHeadModel"),
        ({"n_inner": 64}, "other shapes than its config.json for"),
        ({"tie_word_embeddings": False}, "lacks lm_head.weight"),
        ({"n_head": 5}, "num_attention_heads (5) must divide hidden_size (32)"),
        ({"activation_function": "magic"}, "hidden_act 'magic' is unknown"),
        ({"attn_pdrop": 1.0}, "attention_dropout"),
    ],
)
def test_what_our_model_cannot_express_is_refused_by_name(tmp_path, stock, capsys, changes, message):
    config = Path(stock) / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | changes))
    assert message in refused(capsys, stock, str(tmp_path / "out"), "--from", "gpt2")
    assert os.listdir(tmp_path) == ["stock"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gpt2"}, "model_type='gpt2'"),
        ({"architectures": ["GPTForPainting"]}, "GPTForPainting"),
        ({"per_layer_config": {"0": {"dropout": 0.3}}}, "per_layer_config"),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "quantization_config"),
        ({"n_layers": 3}, "two values for one field"),
        ({"architectures": 5}, "architectures=5, which cannot be converted"),
        ({"hidden_act": "magic"}, "hidden_act 'magic' is unknown"),
        ({"dropout": "much"}, "dropout must be a number"),
    ],
)
def test_what_gpt2_cannot_express_is_refused_by_name(tmp_path, capsys, changes, message):
    ours = saved(scrambled(hf_gpt.GPTForCausalLM(hf_gpt.GPTConfig(**OUR_SIZES))), tmp_path / "ours")
    config = Path(ours) / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | changes))
    assert message in refused(capsys, ours, str(tmp_path / "out"), "--to", "gpt2")
    assert os.listdir(tmp_path) == ["ours"]


def test_every_field_of_our_configuration_has_a_place_in_gpt2_or_is_refused():
    """A field that is added to GPTConfig must get a line in the conversion, else models that use it are refused."""
    own = hf_gpt.GPTConfig._own_names() - set(hf_gpt.GPTConfig.attribute_map)
    always = {"qkv_bias", "initialization"}  # what GPT-2 always has, and how the weights once started
    assert own - set(gpt2._FIELDS.values()) - always == set()
    assert set(gpt2._FIELDS) <= set(GPT2Config.__dataclass_fields__)


def test_weights_that_are_not_numbers_or_not_floats_are_refused(tmp_path, stock, capsys):
    state = weights(stock)
    for name, wrong, message in (
        ("transformer.wpe.weight", torch.full((48, 32), torch.nan), "not finite"),
        ("transformer.h.1.mlp.c_fc.weight", torch.ones(32, 128, dtype=torch.int8), "kind (strided, int8)"),
        ("transformer.h.1.crossattention.c_attn.weight", torch.ones(32, 64), "crossattention.c_attn.weight"),
    ):
        save_file(state | {name: wrong}, Path(stock) / "model.safetensors", {"format": "pt"})
        assert message in refused(capsys, stock, str(tmp_path / "out"), "--from", "gpt2")
    assert os.listdir(tmp_path) == ["stock"]


@pytest.mark.parametrize("zipped", [True, False])
def test_a_hostile_bin_ends_in_one_line_and_runs_nothing(tmp_path, capsys, zipped):
    folder = tmp_path / "stock"
    folder.mkdir()
    as_bin(scrambled(GPT2LMHeadModel(GPT2Config(**SIZES))), folder)
    sprung = tmp_path / "sprung"
    state = torch.load(folder / "pytorch_model.bin") | {"extra": Trap(sprung)}
    torch.save(state, folder / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    message = refused(capsys, str(folder), str(tmp_path / "out"), "--from", "gpt2")
    assert "pytorch_model.bin" in message
    assert "a pickle can run code" in message
    assert os.listdir(tmp_path) == ["stock"]
    torch.load(folder / "pytorch_model.bin", weights_only=False)
    assert sprung.exists()  # the trap was live


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 not a zip", pickle.dumps({"a": 1}), b"\x10\0\0\0\0\0\0\0{"])
def test_a_damaged_file_ends_in_one_line(tmp_path, stock, capsys, content):
    (Path(stock) / "model.safetensors").unlink()
    for name in ("pytorch_model.bin", "model.safetensors"):
        (Path(stock) / name).write_bytes(content)
        assert name in refused(capsys, stock, str(tmp_path / "out"), "--from", "gpt2")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", "[]", "config.json cannot be used"),
        ("config.json", "{", "config.json' is not a valid JSON file"),
    ],
)
def test_a_json_file_that_is_none_is_named(tmp_path, stock, capsys, name, content, message):
    (Path(stock) / name).write_text(content)
    assert message in refused(capsys, stock, str(tmp_path / "out"), "--from", "gpt2")
    assert os.listdir(tmp_path) == ["stock"]


def test_a_missing_shard_is_named(tmp_path, capsys):
    (tmp_path / "stock").mkdir()
    in_shards(scrambled(GPT2LMHeadModel(GPT2Config(**SIZES))), tmp_path / "stock")
    shard = sorted((tmp_path / "stock").glob("model-*"))[1]
    shard.unlink()
    assert shard.name in refused(capsys, str(tmp_path / "stock"), str(tmp_path / "out"), "--from", "gpt2")


def test_a_result_with_other_logits_is_not_kept(tmp_path, stock, monkeypatch, capsys):
    monkeypatch.setitem(table._QKV, "ours", ("v_proj", "k_proj", "q_proj"))
    message = refused(capsys, stock, str(tmp_path / "out"), "--from", "gpt2")
    assert "logits differ" in message
    assert os.listdir(tmp_path) == ["stock"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["nobody/nothing", "OUT", "--from", "gpt2"],
            "neither a directory here nor found on the Hub: the Hub cannot be",
        ),
        (["nobody/nothing", "OUT", "--to", "gpt2"], "its cache has no such files; give a directory"),
        (["no body", "OUT", "--from", "gpt2"], "it is no Hub id (OWNER/NAME)"),
        (["./nowhere", "OUT", "--to", "gpt2"], "no such directory"),
        (["STOCK", "OUT"], "one of the arguments --from --to is required"),
        (["STOCK", "OUT", "--from", "gpt3"], "invalid choice: 'gpt3'"),
        (["STOCK", "OUT", "--from", "gpt2", "--heads", "4"], "go with --from book"),
        (["STOCK", "OUT", "--from", "gpt2", "--tokenizer", "./nowhere"], "no such file"),
    ],
)
def test_bad_arguments_are_refused(tmp_path, stock, capsys, arguments, message):
    names = {"STOCK": stock, "OUT": str(tmp_path / "out")}
    assert message in refused(capsys, *(names.get(a, a) for a in arguments))


def test_the_command_says_what_it_made_and_how_close_it_is(tmp_path, stock, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["convert", stock, "./new/ours", "--from", "gpt2"]) == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert "model      ./new/ours: GPTForCausalLM, 35,232 parameters, float32" in err
    assert "logits agree to " in err
    assert err.endswith("on 48 tokens\n")
    with pytest.raises(SystemExit):
        main(["convert", "--help"])
    out = capsys.readouterr().out
    for example in ("--from gpt2\n", "--from book --heads 12\n", "--from openai\n", "--to gpt2\n"):
        assert example in out


def test_double_heads_and_bare_models_are_told_apart(tmp_path):
    double = saved(scrambled(GPT2DoubleHeadsModel(GPT2Config(**SIZES, num_labels=1))), tmp_path / "double")
    with pytest.raises(UserError, match="GPT2DoubleHeadsModel"):
        from_gpt2(double, str(tmp_path / "out"))
    bare = saved(scrambled(GPT2Model(GPT2Config(**SIZES))), tmp_path / "bare")
    from_gpt2(bare, str(tmp_path / "ours"))
    assert type(AutoModelForCausalLM.from_pretrained(tmp_path / "ours")) is hf_gpt.GPTForCausalLM


# Peak memory of a conversion, beyond what the process had after its imports, in sizes of the model.
PEAK = """
import sys
from hf_gpt import conversion
def status(field):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(field))
before = status("VmRSS")
function, source, out, *heads = sys.argv[1:]
getattr(conversion, function)(source, out, tokenizer="none", **({"heads": int(heads[0])} if heads else {}))
import os
print((status("VmHWM") - before) / os.path.getsize(out + "/model.safetensors"))
"""


# The same of a small model. A smaller one comes first, so that the libraries have what they keep. 5 resets VmHWM.
SMALL_PEAK = """
import os
from hf_gpt.conversion import from_gpt2, to_gpt2
def status(field):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(field))
for size in ("tiny", "small"):
    for convert, source, out in ((from_gpt2, size, size + "-ours"), (to_gpt2, size + "-ours", size + "-back")):
        open("/proc/self/clear_refs", "w").write("5")
        before = status("VmRSS")
        convert(source, out, tokenizer="none")
        print((status("VmHWM") - before) / os.path.getsize(out + "/model.safetensors"))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_the_peak_of_memory_is_at_most_one_and_a_half_times_the_model(tmp_path):
    for name, width, layers in (("tiny", 32, 1), ("small", 512, 8)):
        sizes = {"vocab_size": 300, "n_positions": 64, "n_embd": width, "n_layer": layers, "n_head": 4}
        saved(GPT2LMHeadModel(GPT2Config(**sizes)), tmp_path / name)
    command = [sys.executable, "-c", SMALL_PEAK]
    done = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True)
    peaks = [float(line) for line in done.stdout.split()[2:]]
    assert max(peaks) < 1.5, peaks


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_the_peak_of_memory_for_gpt2(tmp_path):
    stock = GPT2LMHeadModel(GPT2Config())
    saved(stock, tmp_path / "stock")
    (tmp_path / "old").mkdir()
    as_old_bin(stock, tmp_path / "old")
    for function, source, out in (
        ("from_gpt2", "stock", "ours"),
        ("to_gpt2", "ours", "back"),
        ("from_gpt2", "old", "ours2"),
    ):
        done = subprocess.run(
            [sys.executable, "-c", PEAK, function, source, out],
            cwd=tmp_path,
            check=True,
            capture_output=True,
            text=True,
        )
        print(f"{function} {source}: {float(done.stdout.splitlines()[-1]):.2f}")
        assert float(done.stdout.splitlines()[-1]) < 1.5, (function, source, done.stdout)


def refused(capsys, *arguments: str) -> str:
    """The one line that `hf-gpt convert` ends in, with exit code 2."""
    capsys.readouterr()
    assert main(["convert", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("hf-gpt: ")
    assert err.count("\n") == 1, err
    return err
