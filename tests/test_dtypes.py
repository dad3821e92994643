"""A checkpoint keeps the dtypes of what was continued; training has fp32, and goes on with exactly that."""

import json
import re
from pathlib import Path
from types import SimpleNamespace

import any_model
import pytest
import torch
from safetensors.torch import load_file, save_file
from test_training import changed, timeless
from transformers import AutoModelForCausalLM

import hf_gpt
from hf_gpt import checkpoint
from hf_gpt.errors import UserError
from hf_gpt.replay import replay
from hf_gpt.training.state import read_weights, save_weights, whole_weights

KEPT = re.compile(r"norm|ln_|A_log")  # what some models keep in fp32


def dtypes(checkpoint: Path) -> dict[str, torch.dtype]:
    return {name: tensor.dtype for name, tensor in load_file(checkpoint / "model.safetensors").items()}


def lower(folder: Path, dtype: torch.dtype) -> None:
    """Let a saved model have most of its weights in `dtype`, and say nothing of it in its config.json."""
    weights = load_file(folder / "model.safetensors")
    weights = {name: tensor if KEPT.search(name) else tensor.to(dtype) for name, tensor in weights.items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.fixture(params=any_model.TYPES)
def model(request):
    return any_model.tiny(request.param)


def saved_after_training(source: Path, run: Path) -> tuple[torch.nn.Module, dict[str, torch.Tensor], Path]:
    """A model continued from `source`, its weights a little later, and the checkpoint of them."""
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    for parameter in model.parameters():
        parameter.data += 1e-3 * torch.randn_like(parameter)
    weights = whole_weights(SimpleNamespace(model=model))
    with checkpoint.writing(run, 3) as directory:
        save_weights(directory, model, weights, checkpoint.dtypes_of(source))
    (saved,) = checkpoint.checkpoints(run)
    return model, weights, saved


def assert_same(one, other) -> None:
    assert one.keys() == other.keys()
    assert all(one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_each_weight_is_saved_in_the_dtype_of_the_source_and_trained_on_in_fp32(model, dtype, tmp_path):
    model.generation_config.update(do_sample=True, temperature=0.6, eos_token_id=[0, 5])
    model.save_pretrained(tmp_path / "source")
    lower(tmp_path / "source", dtype)
    model, weights, saved = saved_after_training(tmp_path / "source", tmp_path / "run")
    checkpoint.verify(saved)
    assert dtypes(saved) == dtypes(tmp_path / "source")
    assert json.loads((saved / "config.json").read_text())["dtype"] == str(dtype).removeprefix("torch.")
    assert (saved / "training_state" / "weights.safetensors").exists() == (dtype != torch.float32)
    generation = "generation_config.json"
    assert (saved / generation).read_bytes() == (tmp_path / "source" / generation).read_bytes()
    assert_same(read_weights(saved, model), weights)
    torch.manual_seed(5)
    read_weights(saved, model)
    assert torch.initial_seed() == 5
    assert torch.equal(torch.rand(3), torch.rand(3, generator=torch.Generator().manual_seed(5)))

    loaded = AutoModelForCausalLM.from_pretrained(saved).state_dict()  # by transformers' rules all in that dtype
    assert dtype in {weight.dtype for weight in loaded.values()}
    assert_same({name: loaded[name] for name in weights}, {k: w.to(loaded[k].dtype) for k, w in weights.items()})


@pytest.mark.parametrize("model", ["llama"], indirect=True)
def test_code_that_a_stock_type_came_with_is_not_named(model, tmp_path):
    model.config.auto_map = {"AutoModelForCausalLM": "modeling_llama.LlamaForCausalLM"}
    model.save_pretrained(tmp_path / "source")
    assert "auto_map" in json.loads((tmp_path / "source" / "config.json").read_text())
    _, _, saved = saved_after_training(tmp_path / "source", tmp_path / "run")
    assert "auto_map" not in json.loads((saved / "config.json").read_text())
    AutoModelForCausalLM.from_pretrained(saved, trust_remote_code=True)


@pytest.mark.parametrize("model", ["llama", "mixtral"], indirect=True)
def test_a_model_of_pickled_weights_has_their_dtype(model, tmp_path):
    model.to(torch.bfloat16).save_pretrained(tmp_path / "source")
    torch.save(load_file(tmp_path / "source" / "model.safetensors"), tmp_path / "source" / "pytorch_model.bin")
    (tmp_path / "source" / "model.safetensors").unlink()
    _, _, saved = saved_after_training(tmp_path / "source", tmp_path / "run")
    assert {*dtypes(saved).values()} == {torch.bfloat16}


def test_a_new_model_is_saved_as_transformers_does(model, tmp_path):
    model.save_pretrained(tmp_path / "source")
    with checkpoint.writing(tmp_path, 1) as directory:
        save_weights(directory, model, whole_weights(SimpleNamespace(model=model)), checkpoint.dtypes_of(None))
    (saved,) = checkpoint.checkpoints(tmp_path)
    for name in ("model.safetensors", "generation_config.json"):
        assert (saved / name).read_bytes() == (tmp_path / "source" / name).read_bytes()
    assert [path.name for path in (saved / "training_state").iterdir()] == ["manifest.json"]
    there = json.loads((tmp_path / "source" / "config.json").read_text())
    assert json.loads((saved / "config.json").read_text()).items() >= there.items()
    assert not [*saved.glob("*.py")]  # the code of a stock type is in transformers
    assert "auto_map" not in there


def test_weights_that_are_not_there_are_named(tmp_path):
    small, large = (any_model.tiny("llama", num_hidden_layers=number) for number in (2, 3))
    small.save_pretrained(tmp_path / "source")
    _, _, saved = saved_after_training(tmp_path / "source", tmp_path / "run")
    with pytest.raises(
        UserError, match=r"step-00000003: lacks model\.layers\.2\..* and 8 more of the model's weights"
    ):
        read_weights(saved, large)


# A whole run


def test_a_run_from_bf16_resumes_branches_and_replays_bit_for_bit(tiny, tmp_path, capsys):
    source = hf_gpt.train(changed(tiny, output_dir=str(tmp_path / "source"), train__max_steps=1)).checkpoints[-1]
    source = source.rename(tmp_path / "bf16")
    for path in (source / "training_state").iterdir():
        path.unlink()
    (source / "training_state").rmdir()
    lower(source, torch.bfloat16)
    recipe = changed(tiny, model={"from_pretrained": str(source)}, checkpoint__keep=None, train__max_steps=8)
    recipe["schedule"] = {"name": "constant"}

    run = hf_gpt.train(recipe)
    assert "weights    bfloat16 in checkpoints, as they came; float32 in training" in capsys.readouterr().err
    halfway, end = run.checkpoints
    for saved in run.checkpoints:
        assert dtypes(saved) == dtypes(source)
        assert json.loads((saved / "config.json").read_text())["dtype"] == "bfloat16"
    weights = load_file(end / "training_state" / "weights.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.float32}
    assert any(not torch.equal(weight, weight.bfloat16().float()) for weight in weights.values())

    def assert_the_end_is(other: Path) -> None:
        for name in (
            "model.safetensors",
            "training_state/weights.safetensors",
            "training_state/optimizer.safetensors",
        ):
            assert (other / name).read_bytes() == (end / name).read_bytes()

    resumed = changed(recipe, output_dir=str(tmp_path / "resumed"))
    hf_gpt.train(changed(resumed, train__max_steps=4))
    resumed = hf_gpt.train(resumed)
    assert_the_end_is(resumed.checkpoints[-1])
    assert timeless(resumed.metrics)[-1] == timeless(run.metrics)[-1]

    branch = changed(recipe, output_dir=str(tmp_path / "branch"))
    assert_the_end_is(hf_gpt.train(branch, parent=f"{run.output_dir}@4").checkpoints[-1])
    steps = replay(run.output_dir, 0, 8)
    assert {one.what for one in steps[8]} >= {"train_loss", "weights"}
    assert all(one.matches for compared in steps.values() for one in compared)

    # What was rounded is no weight that training had.
    (halfway / "training_state" / "weights.safetensors").unlink()
    with pytest.raises(UserError, match=r"weights\.safetensors: missing"):
        hf_gpt.train(changed(branch, output_dir=str(tmp_path / "other")), parent=f"{run.output_dir}@4")
