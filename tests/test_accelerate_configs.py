"""`configs/accelerate/*.yaml`: what accelerate's launcher makes of each, and as much of it as runs without GPUs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DeepSpeedPlugin, FullyShardedDataParallelPlugin
from accelerate.utils.fsdp_utils import fsdp2_prepare_auto_wrap_policy
from accelerate.utils.launch import (
    prepare_deepspeed_cmd_env,
    prepare_multi_gpu_env,
    prepare_simple_launcher_cmd_env,
)
from forking import recipe_file
from test_processes import SCRIPT, free_port, lines
from torch.distributed.fsdp import CPUOffloadPolicy

from hf_gpt import GPTConfig, GPTForCausalLM
from hf_gpt.loss import CausalLMLoss
from hf_gpt.training.distributed import block_classes

CONFIGS = SCRIPT.parent.parent / "configs" / "accelerate"
NAMES = ["cpu", "gpu", "ddp", "fsdp2", "deepspeed-zero2", "machines"]


def parsed(name: str, *flags: str):
    """The launcher's arguments after it has read `name`.yaml."""
    argv = ["--config_file", str(CONFIGS / f"{name}.yaml"), *flags, str(SCRIPT), "recipe.yaml"]
    return _validate_launch_command(launch_command_parser().parse_args(argv))[0]


def without_launcher(environment: dict[str, str]) -> dict[str, str]:
    """What the launcher adds to the environment of the script."""
    return {name: value for name, value in environment.items() if os.environ.get(name) != value}


def test_the_files_are_these_and_each_says_in_its_first_lines_what_it_is():
    assert sorted(path.stem for path in CONFIGS.iterdir()) == sorted(NAMES)
    for name in NAMES:
        text = (CONFIGS / f"{name}.yaml").read_text()
        assert text.startswith("# ")
        assert f"--config_file configs/accelerate/{name}.yaml" in text


@pytest.mark.parametrize("name", ["cpu", "gpu"])
def test_one_process_is_started_on_the_device_the_file_names_and_trains(forks, tiny, tmp_path, name):
    command, environment = prepare_simple_launcher_cmd_env(parsed(name))
    assert command[1:] == [str(SCRIPT), "recipe.yaml"]
    assert environment["ACCELERATE_USE_CPU"] == str(name == "cpu")
    if name == "gpu":
        assert environment["CUDA_VISIBLE_DEVICES"] == "0"
    tiny["train"]["max_steps"] = 2
    recipe = recipe_file(tiny, tmp_path / "recipe.yaml")
    code, printed = forks.run("train", recipe, env=without_launcher(environment))
    assert code == 0, printed
    assert "on 1 x cpu" in printed


def test_several_processes_asked_for_and_one_started_is_refused(forks, tiny, tmp_path):
    recipe = recipe_file(tiny, tmp_path / "recipe.yaml")
    for flags in (("--num_processes", "2"), ("--cpu", "--num_processes", "2")):
        _, environment = prepare_simple_launcher_cmd_env(parsed("cpu", *flags))
        code, printed = forks.run("train", recipe, env=without_launcher(environment))
        assert code == 2, printed
        assert "accelerate launch was asked for several processes and started one" in printed
    assert not Path(tiny["output_dir"]).exists()


@pytest.mark.parametrize(("name", "machines", "each"), [("ddp", 1, 8), ("fsdp2", 1, 8), ("machines", 2, 8)])
def test_eight_processes_are_started_on_each_machine(name, machines, each):
    arguments = parsed(name, "--main_process_port", str(free_port()))
    prepare_multi_gpu_env(arguments)
    assert arguments.nproc_per_node == str(each)
    assert arguments.num_processes == machines * each
    assert arguments.num_machines == machines
    assert arguments.multi_gpu == (name != "fsdp2")


def test_fsdp2_shards_each_decoder_layer_and_saves_whole_weights(monkeypatch):
    environment = prepare_multi_gpu_env(parsed("fsdp2", "--main_process_port", str(free_port())))
    assert environment["ACCELERATE_USE_FSDP"] == "true"
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    plugin = FullyShardedDataParallelPlugin()  # as Accelerator builds it in each process
    assert plugin.fsdp_version == 2
    assert plugin.reshard_after_forward
    loss = CausalLMLoss(GPTForCausalLM(GPTConfig(emb_dim=16, n_layers=2, n_heads=2, vocab_size=32)))
    plugin.transformer_cls_names_to_wrap = block_classes(loss.model)
    is_unit = fsdp2_prepare_auto_wrap_policy(plugin, loss)
    units = [name for name, module in loss.named_modules() if is_unit(module)]
    assert units == ["model.model.layers.0", "model.model.layers.1"]
    assert not isinstance(plugin.cpu_offload, CPUOffloadPolicy)


def test_deepspeed_is_asked_for_on_eight_gpus_and_leaves_the_rest_to_the_recipe(monkeypatch):
    arguments = parsed("deepspeed-zero2", "--main_process_port", str(free_port()))
    arguments.deepspeed_fields_from_accelerate_config = ""
    _, environment = prepare_deepspeed_cmd_env(arguments)
    assert arguments.nproc_per_node == "8"
    assert environment["ACCELERATE_USE_DEEPSPEED"] == "true"
    assert environment["ACCELERATE_MIXED_PRECISION"] == "no"
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    plugin = DeepSpeedPlugin()  # as Accelerator builds it in each process
    assert plugin.zero_stage == 2
    assert plugin.offload_optimizer_device == plugin.offload_param_device == "none"


def launch(name: str, *argv: str) -> subprocess.Popen:
    command = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--config_file",
        str(CONFIGS / f"{name}.yaml"),
        *argv,
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def train_on_two(name: str, recipe: Path) -> str:
    """What a run of two processes printed that a launch file started, and that came to its end."""
    launched = launch(name, "--num_processes", "2", "--main_process_port", "0", str(SCRIPT), str(recipe))
    printed = launched.communicate(timeout=300)[1]
    assert launched.returncode == 0, printed
    return printed


def test_two_machines_meet_and_train_as_one(forks, tiny, tmp_path):
    tiny["model"]["drop_rate"] = 0.0
    tiny["train"] |= {"max_steps": 4, "global_batch_size": 8, "gradient_accumulation_steps": None}
    recipe = recipe_file(tiny, tmp_path / "recipe.yaml")
    port = str(free_port())
    both = [
        launch("machines", "--num_processes", "2", "--machine_rank", str(rank), "--main_process_ip", "127.0.0.1",
               "--main_process_port", port, str(SCRIPT), str(recipe))
        for rank in (0, 1)
    ]  # fmt: skip
    printed = [machine.communicate(timeout=240)[1] for machine in both]
    assert [machine.returncode for machine in both] == [0, 0], printed
    assert "on 2 x cpu" in printed[0]
    assert "step 4/4" in printed[0]
    assert "step" not in printed[1]  # only the main process of the first machine speaks
    code, _ = forks.run("train", recipe, "--output_dir", tmp_path / "alone")
    assert code == 0
    for ours, theirs in zip(lines(tiny["output_dir"]), lines(tmp_path / "alone"), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)


# Processes of a launcher on a CPU that accelerate takes for ones on GPUs, since on a CPU it does not shard.
TAKEN_FOR_GPUS = """
import os
from accelerate.state import AcceleratorState, DistributedType, PartialState

def taken_for_gpus(self, *args, **options):
    if "ACCELERATE_USE_FSDP" in os.environ:
        PartialState(cpu=True)
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    initialize_state(self, *args, **options)

initialize_state, AcceleratorState.__init__ = AcceleratorState.__init__, taken_for_gpus
"""

_TRAIN = """
import sys
from hf_gpt.cli import main
sys.exit(main(["train", *sys.argv[1:]]))
"""


def test_fsdp2_learns_what_one_process_learns(forks, tiny, tmp_path):
    tiny["model"]["drop_rate"] = 0.0
    tiny["train"] |= {"global_batch_size": 8, "gradient_accumulation_steps": None, "mixed_precision": "no"}
    recipe = recipe_file(tiny, tmp_path / "recipe.yaml")
    script = tmp_path / "train.py"
    script.write_text(TAKEN_FOR_GPUS + _TRAIN)
    launched = launch("fsdp2", "--num_processes", "2", "--main_process_port", "0", str(script), str(recipe))
    printed = launched.communicate(timeout=300)[1]
    assert launched.returncode == 0, printed
    code, printed = forks.run("train", recipe, "--output_dir", tmp_path / "alone")
    assert code == 0, printed
    for ours, theirs in zip(lines(tiny["output_dir"]), lines(tmp_path / "alone"), strict=True):
        for name in (name for name in theirs if name.endswith("_loss")):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-4)


@pytest.mark.slow
def test_ddp_launched_by_its_file_trains_on_as_many_processes_as_it_is_asked_for(tiny, tmp_path):
    assert "on 2 x cpu" in train_on_two("ddp", recipe_file(tiny, tmp_path / "recipe.yaml"))


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("name", ["ddp", "fsdp2"])
def test_two_gpus_learn_what_one_process_learns_and_resume(forks, tiny, tmp_path, name):
    tiny["model"]["drop_rate"] = 0.0
    tiny["train"] |= {"global_batch_size": 8, "gradient_accumulation_steps": None, "mixed_precision": "no"}
    tiny["train"] |= {"device": "cuda", "compile": False}
    recipe = recipe_file(tiny, tmp_path / "recipe.yaml")
    assert "on 2 x cuda" in train_on_two(name, recipe)
    whole = lines(tiny["output_dir"])
    weights = Path(tiny["output_dir"], "checkpoints", "step-00000012", "model.safetensors")
    before = weights.read_bytes()
    weights.write_bytes(before[:-1])  # damaged, so that step 8 is gone on from
    assert "resuming after step 8" in train_on_two(name, recipe)
    assert lines(tiny["output_dir"]) == whole
    assert weights.read_bytes() == before
    code, printed = forks.run("train", recipe, "--output_dir", tmp_path / "alone", "--train.device", "cpu")
    assert code == 0, printed
    for ours, theirs in zip(whole, lines(tmp_path / "alone"), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3)
