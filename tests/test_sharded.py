"""FSDP2 over gloo on the CPU: any type of model in its own blocks, with whole weights on the first process alone."""

import re
import signal
from pathlib import Path

import pytest
import torch
from accelerate.utils.launch import prepare_multi_gpu_env
from any_model import TYPES, save
from any_model import tiny as small
from forking import ForkServer, recipe_file
from test_accelerate_configs import TAKEN_FOR_GPUS, parsed, without_launcher
from test_processes import Workers, free_port, lines
from transformers import AutoConfig, AutoModelForCausalLM

from hf_gpt.training.distributed import block_classes

# Each process says how much memory its model took at most until it was sharded, without its own shard, which on a GPU
# is not host memory: in units of the whole model.
_PEAKS = """
import torch.distributed.tensor, torch._dynamo
from hf_gpt.training import loop, setup

def peak():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))

def build(*args, **options):
    if os.path.exists("/proc/self/clear_refs"):
        with open("/proc/self/clear_refs", "w") as forget:
            forget.write("5")  # the peak so far
        before.append(peak())
    return build_model(*args, **options)

def initialize_training(self, *args, **options):
    initialize(self, *args, **options)
    if before and "ACCELERATE_USE_FSDP" in os.environ:
        weights = list(self.model.parameters())
        whole, shard = sum(weight.nbytes for weight in weights), sum(weight.to_local().nbytes for weight in weights)
        print("peak", (peak() - before[-1] - shard) / whole, flush=True)
        torch.distributed.barrier()
        if "ENDS_WHEN_SHARDED" in os.environ:
            os._exit(0)

before = []
build_model, setup.build_model = setup.build_model, build
initialize, loop.TrainingRun.__init__ = loop.TrainingRun.__init__, initialize_training
"""

_NO_DROPOUT = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
_DELTA = {f"linear_{what}": 2 if "num" in what else 8 for what in ("num_key_heads", "num_value_heads", "key_head_dim")}
_MODELS = {
    **{name: {**fields, **(_NO_DROPOUT if name == "gpt2" else {})} for name, fields in TYPES.items()},
    "minimax_m2": {**TYPES["mixtral"], "head_dim": 8},  # its routers have buffers that are saved
    "qwen3_5_text": {
        **TYPES["qwen3"],
        "layer_types": ["linear_attention", "full_attention"],
        **_DELTA,
        "linear_value_head_dim": 8,
    },  # names blocks that it has not
    "openai-gpt": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32, **_NO_DROPOUT},  # names none
}


@pytest.fixture(scope="module")
def server():
    # What is freed goes back to the system, so that a peak is what was in use.
    server = ForkServer({"MALLOC_MMAP_THRESHOLD_": "65536"}, TAKEN_FOR_GPUS + _PEAKS)
    yield server
    server.close()


@pytest.fixture
def train_sharded(server):
    """Runs `hf-gpt train` in two processes with what the launch file says; gives what each printed."""
    started: list[Workers] = []

    def train(*argv: str | Path, codes: tuple[int, int] = (0, 0), **environment: str) -> list[str]:
        launched = prepare_multi_gpu_env(parsed("fsdp2", "--main_process_port", str(free_port())))
        of_file = without_launcher(launched).items()
        environment |= {name: text for name, text in of_file if name.startswith(("ACCELERATE", "FSDP"))}
        started.append(Workers(server, 2, *argv, own={0: environment, 1: environment}))
        ended = started[-1].wait()
        printed = [worker.printed for worker in started[-1]]
        assert tuple(ended) == codes, "\n".join(printed)
        return printed

    yield train
    for worker in (worker for workers in started for worker in workers.running):
        worker.send(signal.SIGKILL)


@pytest.fixture
def short(tiny):
    """Two steps, the same on any number of processes."""
    tiny["train"] |= {"max_steps": 2, "global_batch_size": 8, "gradient_accumulation_steps": None}
    tiny["data"]["context_length"] = 32
    tiny["evaluation"]["every"], tiny["checkpoint"]["every"] = 2, 1
    return tiny


def losses(run_dir: str | Path) -> list[float]:
    return [line[name] for line in lines(run_dir) for name in sorted(line) if name.endswith("_loss")]


@pytest.mark.parametrize("name", _MODELS)
def test_the_blocks_of_a_type_are_its_units(name):
    fields = {"vocab_size": 32, "pad_token_id": None, **_MODELS[name]}
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **fields))
    found = [path for path, module in model.named_modules() if type(module).__name__ in block_classes(model)]
    outer = [path for path in found if path.rpartition(".")[0] not in found]  # Mamba's have one inside
    assert len(outer) == 2
    assert all(re.fullmatch(rf"(model|transformer|backbone)\.(layers|h)\.{i}", outer[i]) for i in (0, 1)), outer


_CASES = [(name, tied) for name in _MODELS for tied in (False, True)]


@pytest.mark.parametrize(
    ("name", "tied"),
    [case if case == ("minimax_m2", False) else pytest.param(*case, marks=pytest.mark.slow) for case in _CASES],
)
def test_two_processes_that_share_a_model_learn_what_one_learns(name, tied, train_sharded, server, short, tmp_path):
    short["model"] = {"model_type": name, **_MODELS[name], "tie_word_embeddings": tied}
    short["train"]["gradient_checkpointing"] = tied and name == "llama"
    recipe = recipe_file(short, tmp_path / "recipe.yaml")
    train_sharded(recipe)
    code, printed = server.run("train", recipe, "--output_dir", tmp_path / "alone")
    assert code == 0, printed
    assert losses(short["output_dir"]) == pytest.approx(losses(tmp_path / "alone"), rel=1e-4)


def test_only_the_first_process_has_whole_weights(train_sharded, short, tmp_path):
    short["model"] = {"hidden_size": 768, "num_hidden_layers": 6, "num_attention_heads": 4}  # 43 million parameters
    printed = train_sharded(recipe_file(short, tmp_path / "recipe.yaml"), ENDS_WHEN_SHARDED="1")
    first, other = (float(re.search("^peak (.*)", text, re.M)[1]) for text in printed)
    assert first + other < 1.5
    assert other < 0.4


def test_a_model_that_is_continued_in_shards_and_bf16_resumes_bit_for_bit(train_sharded, server, short, tmp_path):
    source = save(small("qwen3", tie_word_embeddings=True, initializer_range=0.02), tmp_path / "source")
    short["model"] = {"from_pretrained": str(source)}
    short["train"]["mixed_precision"] = "bf16"
    del short["tokenizer"]
    recipe = recipe_file(short, tmp_path / "recipe.yaml")
    train_sharded(recipe)
    code, printed = server.run("train", recipe, "--output_dir", tmp_path / "alone")
    assert code == 0, printed
    assert losses(short["output_dir"]) == pytest.approx(losses(tmp_path / "alone"), rel=5e-4)

    weights = Path(short["output_dir"], "checkpoints", "step-00000002", "model.safetensors")
    whole, recorded = weights.read_bytes(), lines(short["output_dir"])
    weights.write_bytes(whole[:-1])  # damaged, so that step 1 is gone on from
    printed = train_sharded(recipe)
    assert "resuming after step 1" in printed[0]
    assert weights.read_bytes() == whole
    assert lines(short["output_dir"]) == recorded


@pytest.mark.slow  # the other process waits for its launcher, which is not there
def test_what_the_first_process_refuses_ends_the_other(train_sharded, short, tmp_path):
    short["evaluation"]["sample_tokens"] = 10**6  # and a table of 32 positions
    short["model"] = {"model_type": "gpt2", **TYPES["gpt2"]}
    printed = train_sharded(recipe_file(short, tmp_path / "recipe.yaml"), codes=(2, 1))
    assert printed[0].startswith("hf-gpt: evaluation.")
    assert len(printed[0].splitlines()) == 1
    assert "another process of this run is gone" in printed[1]
