"""`hf-gpt estimate`: what it counts is what is there, and its forecast of memory is what training then takes."""

import json
import os
import subprocess
import sys

import any_model
import pytest
import torch
import yaml
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, MixtralConfig

from hf_gpt import GPTConfig, GPTForCausalLM, Recipe, UserError
from hf_gpt.cli import main
from hf_gpt.estimate.devices import DEVICES, find_device
from hf_gpt.estimate.forecast import estimate, parameters_by_part
from hf_gpt.estimate.memory import MemoryTracker
from hf_gpt.training.utilization import flops_per_token

# Trains in a process of its own and says how much memory it ever had, in bytes.
_TRAIN = """
import sys
from hf_gpt.cli import main
assert main(["train", sys.argv[1]]) == 0
# not ru_maxrss, in which the memory of the process that started this one may count
[peak] = [line for line in open("/proc/self/status") if line.startswith("VmHWM")]
print(int(peak.split()[1]) * 1024)
"""
# What is forecast for a recipe, in bytes.
_FORECAST = """
import sys
from hf_gpt.recipe import Recipe
from hf_gpt.estimate.forecast import estimate
print(estimate(Recipe.from_yaml(sys.argv[1]), measure=False).peak_memory)
"""


def small(**fields) -> GPTForCausalLM:
    sizes = {"vocab_size": 500, "context_length": 64, "emb_dim": 48, "n_layers": 3, "n_heads": 4}
    return GPTForCausalLM(GPTConfig(**{**sizes, **fields}))


@pytest.fixture
def recipe(tiny, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(tiny))
    return str(path)


@pytest.mark.parametrize("tied", [True, False])
def test_the_parts_are_all_parameters(tied):
    model = small(tie_word_embeddings=tied)
    parts = parameters_by_part(model)
    assert sum(parts.values()) == model.num_parameters()
    assert parts["output head"] == (0 if tied else 500 * 48)
    assert parts["embeddings"] == 500 * 48
    assert parts["positions"] == 64 * 48
    assert parts["norms"] == (2 * 3 + 1) * 2 * 48


@pytest.mark.parametrize("tied", [True, False])
def test_operations_are_those_that_torch_counts(tied):
    model = small(tie_word_embeddings=tied, dropout=0.0)
    model.set_attn_implementation("eager")
    ids = torch.randint(500, (2, 64))
    with FlopCounterMode(display=False) as counter:
        model(ids, shift_labels=ids).loss.backward()
    assert flops_per_token(model, 64) == pytest.approx(counter.get_total_flops() / ids.numel(), rel=1e-3)


_WIDE = {"vocab_size": 32000, "hidden_size": 384, "num_hidden_layers": 4, "intermediate_size": 1024}
_WIDE |= {"num_attention_heads": 6, "num_key_value_heads": 2, "max_position_embeddings": 256}
_SIZES = {
    "adamw": {"model": {"vocab_size": 50257, "emb_dim": 384, "n_layers": 4, "n_heads": 6}},
    "muon": {
        "model": {"context_length": 128, "vocab_size": 8192, "emb_dim": 768, "n_layers": 4, "n_heads": 12},
        "optimizer": {"name": "muon"},
    },
    "checkpointing": {
        "model": {"vocab_size": 32000, "emb_dim": 512, "n_layers": 6, "n_heads": 8, "tie_word_embeddings": False},
        "train": {"gradient_checkpointing": True},
    },
    "llama": {"model": {"model_type": "llama", **_WIDE}},
    "mixtral": {"model": {"model_type": "mixtral", **_WIDE, "num_local_experts": 4}},
}


@pytest.mark.skipif(sys.platform == "win32", reason="peak memory is asked of a Unix system")
@pytest.mark.parametrize("name", ["adamw", *(pytest.param(name, marks=pytest.mark.slow) for name in list(_SIZES)[1:])])
def test_memory_is_forecast_within_15_percent(tiny, tmp_path, name):
    """Of the whole of `hf-gpt train`: two steps, an evaluation, a sample and a checkpoint."""
    change = _SIZES[name]
    ours = {} if "model_type" in change["model"] else {"context_length": 256, "drop_rate": 0.0, "hidden_act": "gelu"}
    recipe = {
        **tiny,
        "model": {**ours, **change["model"]},
        "optimizer": change.get("optimizer", {}),
        "train": {"max_steps": 2, "batch_size": 4, "device": "cpu", **change.get("train", {})},
        "evaluation": {"first": 2, "tokens": 256, "prompts": ["Line"], "sample_tokens": 2},
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))

    def in_a_process(program: str) -> int:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", program, str(path)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment, check=True)
        return int(done.stdout.splitlines()[-1])

    assert in_a_process(_FORECAST) == pytest.approx(in_a_process(_TRAIN), rel=0.15)


def test_memory_follows_the_recipe(tiny):
    def peak(**fields) -> int:
        model = {**tiny["model"], "emb_dim": 64, "n_layers": 6, "drop_rate": 0.0}
        train = {**tiny["train"], "batch_size": 16, **fields}
        memory = estimate(Recipe.from_dict({**tiny, "model": model, "train": train}), measure=False).memory
        state = (memory.largest["weights"], memory.largest["gradients"], memory.largest["optimizer"])
        assert state == pytest.approx([4 * 320_000, 4 * 320_000, 8 * 320_000], rel=0.1)
        return memory.peak

    plain = peak()
    assert peak(gradient_checkpointing=True) < 0.8 * plain
    assert peak(batch_size=32) > 1.4 * plain


def test_a_gpu_makes_more_logits_at_once(tiny):
    """2,048 tokens over 70,000 entries: on a CPU the loss goes by chunks, on a GPU their logits are there at once."""
    tiny["model"] = {"context_length": 64, "vocab_size": 70_000, "emb_dim": 16, "n_layers": 1, "n_heads": 1}
    tiny["train"] |= {"batch_size": 32, "mixed_precision": "bf16"}
    recipe = Recipe.from_dict(tiny)
    here, there = (estimate(recipe, device, measure=False).memory.largest["activations"] for device in (None, "H100"))
    assert there > 4 * 2048 * 70_000
    assert there > 1.5 * here


@pytest.mark.parametrize("name", any_model.TYPES)
def test_any_type_is_forecast_from_scratch_and_to_go_on_from(name, tiny, tmp_path):
    model = any_model.tiny(name)
    any_model.save(model, tmp_path / "model")
    scratch = {"model_type": name, **any_model.TYPES[name]}
    for section, device in ((scratch, "H100"), ({"from_pretrained": str(tmp_path / "model")}, None)):
        data = {**tiny["data"], "context_length": any_model.WINDOW}
        found = estimate(Recipe.from_dict({**tiny, "model": section, "data": data}), device, measure=False)
        assert found.num_parameters == model.num_parameters()
        assert found.flops_per_token == flops_per_token(model, any_model.WINDOW)
        largest = found.memory.largest
        assert largest["weights"] == largest["gradients"] == 4 * found.num_parameters
        assert largest["optimizer"] == pytest.approx(8 * found.num_parameters, rel=0.01)


def test_what_cannot_be_tried_without_contents_is_refused_in_one_line(tiny):
    """JetMoE cuts a batch by how many tokens chose each expert."""
    tiny["model"] = {"model_type": "jetmoe", "hidden_size": 16, "num_hidden_layers": 1, "kv_channels": 8}
    tiny["model"] |= {"intermediate_size": 32, "num_local_experts": 4, "max_position_embeddings": 32}
    with pytest.raises(UserError, match=r"^model: cannot be tried without contents: split") as refused:
        estimate(Recipe.from_dict(tiny), measure=False)
    assert "\n" not in str(refused.value)


def test_experts_are_tried_out_without_contents():
    """In fp32, in which torch does not know the shapes of their product."""
    sizes = {"vocab_size": 128, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = MixtralConfig(**sizes, num_key_value_heads=2, intermediate_size=48, num_local_experts=4)
    with FakeTensorMode() as fake, MemoryTracker():
        model = AutoModelForCausalLM.from_config(config)
        ids = torch.zeros(2, 16, dtype=torch.long)
        model(ids, labels=ids).loss.backward()
    assert model.config._experts_implementation == "grouped_mm"
    for parameter in model.parameters():
        assert parameter.grad.fake_mode is fake
        assert parameter.grad.shape == parameter.shape


def test_documents_apart_and_models_to_go_on_from_are_forecast(tiny, tmp_path):
    small(vocab_size=257).save_pretrained(tmp_path / "model")
    tiny["model"] = {"from_pretrained": str(tmp_path / "model")}
    tiny["data"]["isolate_documents"] = True
    found = estimate(Recipe.from_dict(tiny), measure=False)
    assert found.num_parameters == small(vocab_size=257).num_parameters()
    assert found.memory.peak > 16 * found.num_parameters


def test_tokens_and_epochs_are_those_of_the_run(tiny):
    tiny["train"] |= {"max_steps": 200}
    found = estimate(Recipe.from_dict(tiny), measure=False)
    epochs, rest = divmod(200, found.steps_per_epoch)
    assert (epochs, rest) > (0, 0)
    assert found.windows_per_step == 4
    assert found.tokens == 32 * (epochs * found.windows + 4 * rest)


def test_it_prints_one_json_object_and_leaves_nothing(recipe, tiny, tmp_path, capsys):
    before = sorted(tmp_path.iterdir())
    assert main(["estimate", recipe, "--json"]) == 0
    out, _ = capsys.readouterr()
    values = json.loads(out)
    assert values["num_parameters"] == sum(values["parameters"].values())
    assert values["measured_steps"] > 0
    assert values["seconds"] == pytest.approx(12 * values["step_seconds"])
    assert values["plan"] is None
    assert sorted(tmp_path.iterdir()) == before


def test_a_run_that_is_there_is_left_alone(recipe, tiny, tmp_path, capsys):
    assert main(["train", recipe]) == 0
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    capsys.readouterr()
    assert main(["estimate", recipe, "--optimizer.lr", "1e-4"]) == 0
    out, err = capsys.readouterr()
    assert out == ""
    for word in ("parameters", "operations", "memory", "optimizer", "text", "training", "time"):
        assert any(line.split()[0] == word for line in err.splitlines())
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")} == files


def test_a_plan_for_other_devices(recipe, capsys):
    def plan(*arguments: str) -> dict:
        assert main(["estimate", recipe, "--json", "--device", "h100", *arguments]) == 0
        return json.loads(capsys.readouterr().out)

    one, eight = plan(), plan("--devices", "8")
    assert eight["windows_per_step"] == 8 * one["windows_per_step"]
    work = one["tokens"] * one["flops_per_token"]
    assert one["plan"]["seconds"] == pytest.approx(work / (989e12 * 0.4))
    assert plan("--utilization", "0.2")["plan"]["seconds"] == pytest.approx(2 * one["plan"]["seconds"])
    assert one["plan"]["memory_ddp"] == one["plan"]["memory_fsdp2"] == one["peak_memory"]
    assert eight["plan"]["memory_fsdp2"] < one["peak_memory"] < eight["plan"]["memory_ddp"]
    assert one["plan"]["capacity"] == 80 * 10**9


def test_a_model_larger_than_this_machine_is_planned(tiny):
    """1.6 billion parameters: 26 GB of state, none of which is made here."""
    tiny["model"] = {"context_length": 32, "emb_dim": 8192, "n_layers": 2, "n_heads": 64}
    found = estimate(Recipe.from_dict(tiny), "H200", 8)
    assert found.num_parameters > 1.6e9
    assert found.memory.largest["optimizer"] == pytest.approx(8 * found.num_parameters, rel=1e-3)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--device", "H1000"], ["--device H1000", *DEVICES]),
        (["--devices", "4"], ["--devices 4", "--device"]),
        (["--device", "H100", "--devices", "0"], ["--devices 0", "1 or more"]),
        (["--device", "H100", "--utilization", "40"], ["--utilization 40", "0.4"]),
        (["--device", "H100", "--train.mixed_precision", "no"], ["train.mixed_precision", "bf16"]),
    ],
)
def test_what_cannot_be_planned_is_refused_in_one_line(recipe, capsys, arguments, words):
    assert main(["estimate", recipe, *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert all(word in err for word in words)


def test_the_known_devices_are_listed_without_a_recipe(capsys):
    assert main(["estimate", "--device", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    assert [line.split()[0] for line in lines] == list(DEVICES)
    assert main(["estimate", "--json", "--device", "list"]) == 0
    assert json.loads(capsys.readouterr().out)["H100"] == {"tflops": 989, "gigabytes": 80}
    assert main(["estimate", "--device", "H100"]) == 2
    assert "RECIPE.yaml" in capsys.readouterr().err


def test_memory_on_several_devices_is_marked_as_unchecked(recipe, capsys):
    assert main(["estimate", recipe, "--device", "H100", "--devices", "2"]) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if "per device, " in line]
    assert len(lines) == 2
    assert all("not checked" in line for line in lines)


def test_devices_are_found_however_they_are_written():
    assert find_device("rtx 4090") == "RTX-4090"
    with pytest.raises(UserError, match="valid names: A10, "):
        find_device("TPU")
