"""Saving and loading, whole, in shards, over devices, in other dtypes; and vocabularies that grow and shrink."""

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from hf_gpt import GPTConfig, GPTForCausalLM, load_tokenizer
from hf_gpt.checkpoint import load_model

IDS = torch.arange(24).view(2, 12)


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def model(request) -> GPTForCausalLM:
    torch.manual_seed(0)
    sizes = {"vocab_size": 61, "hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 3}
    return GPTForCausalLM(GPTConfig(**sizes, context_length=16, tie_word_embeddings=request.param)).eval()


@torch.no_grad()
def logits(model, ids=IDS) -> torch.Tensor:
    return model(ids).logits


def test_tying_survives_saving_and_loading(model, tmp_path):
    tied = model.config.tie_word_embeddings
    model.save_pretrained(tmp_path)
    assert ("lm_head.weight" in load_file(tmp_path / "model.safetensors")) == (not tied)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert (loaded.lm_head.weight is loaded.model.embed_tokens.weight) == tied
    assert torch.equal(logits(loaded), logits(model))


def test_shards_hold_every_weight_once(model, tmp_path):
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())["weight_map"]
    assert len(set(index.values())) > 3
    saved = [name for shard in set(index.values()) for name in load_file(tmp_path / shard)]
    assert sorted(saved) == sorted(index)
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path)), logits(model))


def test_what_does_not_fit_in_memory_is_offloaded_to_disk(model, tmp_path):
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    fits = {"cpu": 60_000}
    loaded = AutoModelForCausalLM.from_pretrained(
        tmp_path, device_map="auto", max_memory=fits, offload_folder=tmp_path / "offloaded"
    )
    assert "disk" in loaded.hf_device_map.values()
    torch.testing.assert_close(logits(loaded), logits(model))
    tokens = loaded.generate(IDS, max_new_tokens=3, do_sample=False)
    assert torch.equal(tokens, model.generate(IDS, max_new_tokens=3, do_sample=False))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, "auto"])
def test_loading_in_another_dtype(model, dtype, tmp_path):
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=dtype)
    wanted = torch.float32 if dtype == "auto" else dtype
    assert {parameter.dtype for parameter in loaded.parameters()} == {wanted}
    assert torch.equal(logits(loaded), logits(model.to(wanted)))
    loaded.save_pretrained(tmp_path / "again")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "again")  # as it was saved
    assert again.dtype == wanted
    assert torch.equal(logits(again), logits(loaded))


@pytest.mark.parametrize("vocab_size", [80, 40])
def test_the_vocabulary_is_resized_with_its_head(model, vocab_size, tmp_path):
    ids = IDS % 40
    before = logits(model, ids)
    model.resize_token_embeddings(vocab_size)
    kept = min(61, vocab_size)
    assert model.config.vocab_size == model.lm_head.out_features == vocab_size
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == model.config.tie_word_embeddings
    torch.testing.assert_close(logits(model, ids)[..., :kept], before[..., :kept])
    loss = model(ids, labels=ids).loss
    loss.backward()
    assert torch.isfinite(loss)
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path), ids), logits(model, ids))


def test_weights_that_do_not_match_are_reported_by_name(model, tmp_path):
    state = model.state_dict()
    state["not.ours"] = torch.zeros(2)
    state["model.norm.weight"] = torch.ones(7)
    del state["model.layers.1.mlp.up_proj.bias"]
    model.save_pretrained(tmp_path, state_dict=state)
    _, report = AutoModelForCausalLM.from_pretrained(tmp_path, ignore_mismatched_sizes=True, output_loading_info=True)
    assert set(report["missing_keys"]) == {"model.layers.1.mlp.up_proj.bias"}
    assert set(report["unexpected_keys"]) == {"not.ours"}
    assert [str(key[0]) for key in report["mismatched_keys"]] == ["model.norm.weight"]


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "module._orig_mod.", "_orig_mod.module."])
@pytest.mark.parametrize("shards", [{}, {"max_shard_size": "20KB"}])
def test_weights_of_a_compiled_or_distributed_model_are_loaded_and_saved_under_their_own_names(
    model, prefix, shards, tmp_path, caplog, capsys
):
    wrapped = {prefix + name: weight for name, weight in model.state_dict().items()}
    model.save_pretrained(tmp_path / "ours")
    model.save_pretrained(tmp_path / "wrapped", state_dict=wrapped, **shards)
    stock = GPT2LMHeadModel(GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=257, n_positions=8, eos_token_id=1))
    stock.save_pretrained(tmp_path / "stock", state_dict={prefix + k: v for k, v in stock.state_dict().items()})
    for folder in ("wrapped", "stock"):
        load_tokenizer("bytes").save_pretrained(tmp_path / folder)
    named = load_file(tmp_path / "ours" / "model.safetensors").keys()
    for load in (AutoModelForCausalLM.from_pretrained, lambda folder: load_model(str(folder))[0]):
        caplog.clear()
        loaded = load(tmp_path / "wrapped").cpu()
        assert torch.equal(logits(loaded), logits(model))
        assert [record.getMessage() for record in caplog.records if "compiled" in record.getMessage()] == [
            f"the weights of {tmp_path / 'wrapped'} are from a compiled or distributed model: "
            "the prefix of their names is left out"
        ]
        loaded.save_pretrained(tmp_path / "again")
        assert load_file(tmp_path / "again" / "model.safetensors").keys() == named
    caplog.clear()
    AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    assert "compiled" not in caplog.text
    ids = IDS[:, :8]
    assert torch.equal(logits(load_model(str(tmp_path / "stock"))[0].cpu(), ids), logits(stock.eval(), ids))
