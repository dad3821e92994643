"""Several processes, over gloo on the CPU, are one run: the same numbers, one voice, stopped and ended together."""

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from forking import Forked, ForkServer, recipe_file

from hf_gpt.training.run_log import read_lines

SCRIPT = Path(__file__).parent.parent / "scripts" / "train.py"
CLOCKS = ("seconds", "tokens_per_second", "mfu", "peak_memory_bytes")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Workers(list[Forked]):
    """The processes of one run, with the environment a launcher gives them; what only some get is in `own`."""

    def __init__(self, forks: ForkServer, count: int, *argv: str | Path, own: dict[int, dict[str, str]] | None = None):
        shared = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
        shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        for rank in range(count):
            env = {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank), **(own or {}).get(rank, {})}
            self.append(forks.start("train", *argv, env=env if count > 1 else {}))
        self.running = list(self)

    def wait(self) -> list[int]:
        return [self.running.pop(0).wait() for _ in self]

    def wait_for_lines(self, run_dir: str | Path, count: int) -> None:
        """Until the run has written so many lines of metrics."""
        metrics = Path(run_dir) / "metrics.jsonl"
        self[0].wait_until(lambda: metrics.exists() and metrics.read_bytes().count(b"\n") >= count)


@pytest.fixture
def start(forks):
    """Starts `Workers`; what a test that fails leaves running ends with it."""
    started: list[Workers] = []

    def start(count: int, *argv: str | Path, **options) -> Workers:
        started.append(Workers(forks, count, *argv, **options))
        return started[-1]

    yield start
    for worker in (worker for workers in started for worker in workers.running):
        worker.send(signal.SIGKILL)


def lines(run_dir: str | Path) -> list[dict]:
    return [
        {key: value for key, value in line.items() if key not in CLOCKS}
        for line in read_lines(Path(run_dir) / "metrics.jsonl")
    ]


def everything(run_dir: str | Path, step: int) -> tuple:
    """What two equal runs have in common, bit for bit."""
    run_dir = Path(run_dir)
    saved = run_dir / "checkpoints" / f"step-{step:08d}"
    names = ("model.safetensors", "training_state/optimizer.safetensors", "training_state/random.safetensors")
    return lines(run_dir), (run_dir / "samples.jsonl").read_bytes(), *((saved / name).read_bytes() for name in names)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_killed_run_of_two_processes_repeats_the_uninterrupted_one(optimizer, start, tiny, tmp_path):
    tiny["optimizer"]["name"] = optimizer
    tiny["train"]["max_steps"], tiny["checkpoint"]["every"] = 64, 8
    tiny["evaluation"]["every"] = 16
    recipe = recipe_file(tiny, tmp_path / "recipe.yaml")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    workers = start(2, recipe, "--output_dir", whole)
    assert workers.wait() == [0, 0], workers[0].printed
    assert "2 x cpu" in workers[0].printed
    assert workers[1].printed == ""  # only the main process speaks

    seed = random.randrange(1000)
    draw = random.Random(seed)
    for victims, line in (((0,), 8), ((1,), 24), ((0, 1), 40)):
        workers = start(2, recipe, "--output_dir", killed)
        workers.wait_for_lines(killed, line)
        time.sleep(draw.uniform(0, 0.03))
        for rank in victims:
            workers[rank].send(signal.SIGKILL)
        for rank, code in enumerate(workers.wait()):
            assert code == (-signal.SIGKILL if rank in victims else 1), (seed, workers[rank].printed)
            if rank not in victims:
                assert "another process of this run is gone" in workers[rank].printed.splitlines()[-1]
                assert "Traceback" not in workers[rank].printed
    workers = start(2, recipe, "--output_dir", killed)
    assert workers.wait() == [0, 0], workers[0].printed
    assert "resuming after step" in workers[0].printed
    assert everything(killed, 64) == everything(whole, 64), f"seed {seed}"


def test_one_two_and_four_processes_learn_the_same_at_one_global_batch_size(start, tiny, tmp_path):
    tiny["model"]["drop_rate"] = 0.0  # each process draws its own dropout
    tiny["schedule"] = {"name": "constant"}
    tiny["train"] |= {"max_steps": 50, "global_batch_size": 8, "gradient_accumulation_steps": None}
    tiny["evaluation"]["every"] = tiny["checkpoint"]["every"] = 25
    recipe = recipe_file(tiny, tmp_path / "recipe.yaml")
    seen = {}
    for count in (1, 2, 4):
        workers = start(count, recipe, "--output_dir", tmp_path / f"run-{count}")
        assert workers.wait() == [0] * count, workers[0].printed
        assert "steps of 8 windows" in workers[0].printed
        seen[count] = lines(tmp_path / f"run-{count}")
    assert len([line for line in seen[1] if "train_loss" in line]) == 50
    for count in (2, 4):
        assert len(seen[count]) == len(seen[1])
        for ours, theirs in zip(seen[count], seen[1]):
            assert ours == pytest.approx(theirs, rel=1e-4)

    # Begun on one process, gone on with on two.
    moved = tmp_path / "moved"
    assert start(1, recipe, "--output_dir", moved, "--train.max_steps", "25").wait() == [0]
    workers = start(2, recipe, "--output_dir", moved)
    assert workers.wait() == [0, 0], workers[0].printed
    assert "warning: " in workers[0].printed
    assert "processes was 1, is 2" in workers[0].printed
    assert len(lines(moved)) == len(seen[1])
    for ours, theirs in zip(lines(moved), seen[1]):
        assert ours == pytest.approx(theirs, rel=1e-4)


@pytest.mark.parametrize(("rank", "number"), [(0, signal.SIGTERM), (1, signal.SIGUSR1)])
def test_a_signal_to_any_process_saves_all_of_them_at_one_step(start, tiny, tmp_path, rank, number):
    tiny["train"]["max_steps"], tiny["checkpoint"]["every"], tiny["evaluation"]["every"] = 100000, None, 100000
    workers = start(2, recipe_file(tiny, tmp_path / "recipe.yaml"))
    workers.wait_for_lines(tiny["output_dir"], 12)
    for worker in workers:
        worker.send(signal.SIGSTOP)  # so that no step is made between the look and the signal
    before = lines(tiny["output_dir"])[-1]["step"]
    workers[rank].send(number)
    for worker in workers:
        worker.send(signal.SIGCONT)
    assert workers.wait() == [75, 75], workers[0].printed
    saved = int((Path(tiny["output_dir"]) / "checkpoints" / "latest").read_text().removeprefix("step-"))
    assert before <= saved <= before + 12  # within ten; the other process may be a step or two further
    last = workers[0].printed.splitlines()[-1]
    assert last.endswith(f"{number.name}: stopped and saved after step {saved}; the same command resumes it")
    assert workers[1].printed == ""


def test_an_error_of_one_process_is_shown_with_its_number_and_ends_the_others(start, tiny, tmp_path):
    not_a_folder = {"HF_GPT_CACHE": str(Path(tiny["data"]["source"]) / "cache")}
    workers = start(2, recipe_file(tiny, tmp_path / "recipe.yaml"), own={1: not_a_folder})
    assert 0 not in workers.wait()
    assert workers[1].printed.startswith("hf-gpt: process 1: ")
    assert "Not a directory" in workers[1].printed
    assert len(workers[1].printed.splitlines()) == 1
    assert "another process of this run is gone" in workers[0].printed
    assert "Traceback" not in workers[0].printed


def torchrun(*argv: str | Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", SCRIPT, *argv]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [str(part) for part in command], env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    )


def test_an_error_of_all_processes_is_shown_once(tiny, tmp_path):
    launcher = torchrun(recipe_file(tiny, tmp_path / "recipe.yaml"), "--train.batch_sizes", "3")
    printed = launcher.communicate(timeout=500)[1]
    assert launcher.returncode != 0
    assert printed.count("hf-gpt: ") == 1
    assert "train.batch_sizes: unknown key; did you mean 'batch_size'?" in printed


@pytest.fixture
def launched(tiny, tmp_path):
    """A run without end under `torchrun`, in the middle of its steps: the launcher, and its two workers by rank."""
    tiny["train"]["max_steps"] = 100000
    launcher = torchrun(recipe_file(tiny, tmp_path / "recipe.yaml"))
    metrics = Path(tiny["output_dir"]) / "metrics.jsonl"
    workers = []
    try:
        deadline = time.monotonic() + 500
        while not metrics.exists() or metrics.read_bytes().count(b"\n") < 5:
            assert launcher.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        workers = [child for child in psutil.Process(launcher.pid).children() if str(SCRIPT) in child.cmdline()]
        workers.sort(key=lambda worker: worker.environ()["RANK"])
        yield launcher, workers
    finally:
        launcher.kill()
        for worker in workers:
            with contextlib.suppress(psutil.NoSuchProcess):
                worker.kill()


def test_a_worker_that_is_killed_ends_the_launch_within_a_minute_and_says_so(launched):
    launcher, workers = launched
    workers[1].kill()
    printed = launcher.communicate(timeout=60)[1]
    assert launcher.returncode != 0
    assert "hf-gpt: another process of this run is gone; its output or its launcher's says why" in printed
    assert "Signal 9 (SIGKILL)" in printed
    assert "[rank0]: Traceback" not in printed
    assert not any(worker.is_running() for worker in workers)


def test_workers_whose_launcher_is_killed_save_and_end_within_a_minute(launched, tiny):
    launcher, workers = launched
    launcher.kill()
    assert psutil.wait_procs(workers, timeout=60)[1] == []
    printed = launcher.communicate()[1].splitlines()[-1]
    saved = (Path(tiny["output_dir"]) / "checkpoints" / "latest").read_text()
    assert f"SIGTERM: stopped and saved after step {int(saved.removeprefix('step-'))}" in printed


# What each process of the sharded run does, and, alone, the one that resumes from its checkpoint.
_SHARDED = """
import json, os, sys
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
import torch
from accelerate import Accelerator
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, MixtralConfig
from hf_gpt import GPTConfig, checkpoint
from hf_gpt.recipe import OptimizerRecipe
from hf_gpt.training.optimizer import build_optimizer
from hf_gpt.training.state import Progress, load_training_state, save_training_state, save_weights, whole_weights

run_dir, port, name, kind, dtype = Path(sys.argv[1]), *sys.argv[2:5], getattr(torch, sys.argv[5])
torch.set_num_threads(1)
sizes = {"vocab_size": 65, "max_position_embeddings": 16, "hidden_size": 32, "num_hidden_layers": 2}
config = {
    "GPTForCausalLM": GPTConfig(**sizes, num_attention_heads=2),
    # three experts, which two processes share unevenly
    "MixtralForCausalLM": MixtralConfig(**sizes, num_attention_heads=2, num_key_value_heads=1, intermediate_size=48,
        num_local_experts=3, attention_dropout=0.1, tie_word_embeddings=True, bos_token_id=None, eos_token_id=None),
}[kind]

def build(accelerator, seed):
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config)
    if accelerator.num_processes > 1:
        mesh = torch.distributed.init_device_mesh("cpu", (2,))
        for layer in model.model.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
        assert all(isinstance(parameter, DTensor) for parameter in model.parameters())
    optimizer = accelerator.prepare_optimizer(build_optimizer(model, OptimizerRecipe(name=name, lr=1e-2)))
    torch.manual_seed(seed + accelerator.process_index)
    return model, optimizer

def steps(accelerator, model, optimizer, first, last, dropout):
    model.train(dropout)
    losses = []
    for step in range(first, last):
        batch = torch.randint(65, (4, 17), generator=torch.Generator().manual_seed(step))
        batch = batch.chunk(accelerator.num_processes)[accelerator.process_index]
        loss = cross_entropy(model(input_ids=batch[:, :-1]).logits.flatten(0, 1), batch[:, 1:].flatten())
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(accelerator.reduce(loss.detach(), reduction="mean").item())
    return losses

def save(accelerator, model, optimizer, step):
    weights = whole_weights(SimpleNamespace(model=model))
    if not accelerator.is_main_process:
        save_training_state(None, accelerator, SimpleNamespace(model=model), optimizer, Progress(step=step))
        return
    with checkpoint.writing(run_dir, step) as directory:
        save_training_state(directory, accelerator, SimpleNamespace(model=model), optimizer, Progress(step=step))
        save_weights(directory, model, weights, defaultdict(lambda: dtype))

def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)

def work(rank):
    if rank is not None:
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", LOCAL_WORLD_SIZE="2",
                          MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    accelerator = Accelerator(cpu=True)
    saved = run_dir / "checkpoints" / "step-00000004"
    if rank is None:
        model, optimizer = build(accelerator, seed=2)
        load_training_state(saved, accelerator, SimpleNamespace(model=model), optimizer, seed=0)
        loaded = AutoModelForCausalLM.from_pretrained(saved)
        return {
            "architecture": type(loaded).__name__,
            "loads": same(loaded.state_dict(), {k: v.to(dtype) for k, v in model.state_dict().items()}),
            "alone": steps(accelerator, model, optimizer, 4, 8, dropout=False),
        }
    model, optimizer = build(accelerator, seed=0)
    first = steps(accelerator, model, optimizer, 0, 4, dropout=True)
    save(accelerator, model, optimizer, 4)
    accelerator.wait_for_everyone()
    a = steps(accelerator, model, optimizer, 4, 8, dropout=True), whole_weights(SimpleNamespace(model=model))
    model, optimizer = build(accelerator, seed=1)
    progress = load_training_state(saved, accelerator, SimpleNamespace(model=model), optimizer, seed=0)
    b = steps(accelerator, model, optimizer, 4, 8, dropout=True), whole_weights(SimpleNamespace(model=model))
    model, optimizer = build(accelerator, seed=1)
    load_training_state(saved, accelerator, SimpleNamespace(model=model), optimizer, seed=0)
    return {"progress": progress.step, "a": a[0], "b": b[0], "weights": same(a[1], b[1]), "first": first,
            "together": steps(accelerator, model, optimizer, 4, 8, dropout=False)}

def child(rank):
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            (run_dir / f"{rank}.json").write_text(json.dumps(work(rank)))
            code = 0
        finally:
            if code:
                import traceback; traceback.print_exc()
            sys.stdout.flush(); sys.stderr.flush()
            os._exit(code)
    return pid

for ranks in ((0, 1), (None,)):
    for pid in [child(rank) for rank in ranks]:
        if os.waitpid(pid, 0)[1]:
            sys.exit("a process failed")
"""


@pytest.mark.parametrize(
    ("optimizer", "model", "dtype"),
    [
        ("adamw", "GPTForCausalLM", "float32"),
        ("muon", "GPTForCausalLM", "bfloat16"),
        ("muon", "MixtralForCausalLM", "float32"),
        ("adamw", "MixtralForCausalLM", "bfloat16"),
    ],
)
def test_a_sharded_run_is_saved_whole_and_goes_on_exactly_sharded_or_alone(optimizer, model, dtype, tmp_path):
    command = [sys.executable, "-c", _SHARDED, str(tmp_path), str(free_port()), optimizer, model, dtype]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    sharded, other, alone = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1, None))
    assert sharded["progress"] == 4
    assert sharded["a"] == sharded["b"] == other["a"] == other["b"]
    assert sharded["weights"]
    assert sharded["a"] != sharded["together"]  # dropout was on
    assert alone["architecture"] == model
    assert alone["loads"]
    assert alone["alone"] == pytest.approx(sharded["together"], rel=1e-5)
