"""What only a GPU shows, step by step (`steps.py`). `scripts/gpu_check.sh` starts it, and says how."""

import argparse
import contextlib
import gc
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from .steps import Row, Step, keep, report
from .timing import in_turn, process, say, seconds

ROOT = Path(__file__).parent.parent.parent
MOST_SECONDS = 580  # of all steps together
_124M = {"vocab_size": 50257, "context_length": 1024, "emb_dim": 768, "n_layers": 12, "n_heads": 12, "qkv_bias": True}
_TINY = {"vocab_size": 257, "context_length": 32, "emb_dim": 32, "n_layers": 2, "n_heads": 2, "qkv_bias": True}


def measured_shape(given: argparse.Namespace) -> dict[str, Any]:
    return _TINY if given.tiny else _124M


def tried_shape(given: argparse.Namespace) -> dict[str, Any]:
    """Few parameters, but as many logits as the model that is measured."""
    return _TINY if given.tiny else {**_124M, "emb_dim": 128, "n_layers": 2, "n_heads": 4}


def recipe(given: argparse.Namespace, shape: dict[str, Any], **train: Any) -> dict[str, Any]:
    """A run without dropout on the documentation inside Python, in bytes."""
    return {
        "model": {**shape, "drop_rate": 0.0},
        "tokenizer": {"name": "bytes"},
        "data": {"source": "builtin:python-docs", "validation_fraction": 0.1},
        "schedule": {"name": "constant"},
        "train": {"batch_size": 8, "log_every": 1, "device": given.device, "compile": False, **train},
        "evaluation": {"first": 10**9, "tokens": 1024, "prompts": []},
        "checkpoint": {"every": None},
    }


def machine(given: argparse.Namespace) -> Iterator[Row]:
    import torch

    from hf_gpt.estimate.devices import DEVICES
    from hf_gpt.training.utilization import measured_peak

    facts: Row = {"card": card(given.device), "processor cores": os.cpu_count(), "Python": platform.python_version()}
    facts |= {name: importlib.metadata.version(name) for name in ("torch", "transformers", "accelerate")}
    if given.device == "cuda":
        facts |= {"cards": torch.cuda.device_count(), "torch is built for CUDA": torch.version.cuda}
        facts["memory, GB"] = torch.cuda.get_device_properties(0).total_memory / 1e9
        if shutil.which("nvidia-smi"):
            query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
            facts["driver"] = subprocess.run(query, capture_output=True, text=True).stdout.strip()
    for precision in ("bf16", "no"):
        peak = measured_peak(torch.device(given.device), precision, 0.2 if given.tiny else 1.0)
        facts[f"matrix products, mixed_precision {precision}, TFLOP/s"] = peak / 1e12
    if name := published(facts["card"]):
        facts[f"published for {name}, TFLOP/s in bf16"] = DEVICES[name].tflops
    yield from ({"": what, "found": found} for what, found in facts.items())


def tests(given: argparse.Namespace) -> Iterator[Row]:
    if given.device != "cuda":
        yield {"tests": "left out: they need a GPU"}
        return
    files = sorted(path for path in (ROOT / "tests").glob("test_*.py") if "mark.gpu" in path.read_text())
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", *map(str, files)]
    child = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    last = ""
    for line in child.stdout:
        print(line, end="", file=sys.stderr)
        last = line.strip() or last
    yield {"tests": last, "ok": child.wait() == 0}


def ways(given: argparse.Namespace) -> Iterator[Row]:
    """The same steps in several ways, beside plain ones in fp32. There are more logits than are kept."""
    number, windows, on_cpu = given.processes, 2 if given.tiny else 8, given.device == "cpu"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", number]
    accelerate = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", number]
    accelerate += ["--main_process_port", 0, "--config_file"]
    ddp, fsdp2 = ([*accelerate, ROOT / "configs" / "accelerate" / f"{name}.yaml"] for name in ("ddp", "fsdp2"))
    ddp = torchrun if number == 1 or on_cpu else ddp  # the launch file is for two or more GPUs
    wrapped = "DistributedDataParallel" if number > 1 or on_cpu else "CausalLMLoss"  # accelerate has no DDP of one GPU
    launched = {  # how each is started, and what becomes of the loss
        "one process": ([sys.executable], "CausalLMLoss"),
        f"DDP on {number}": (ddp, wrapped),
        f"FSDP2 on {number}": (fsdp2, "FSDPCausalLMLoss"),
    }
    alone, replicated, sharded = launched
    tried = [(name, "fp32", False) for name in launched]
    tried += [(alone, "bf16", False), (alone, "bf16", True), (replicated, "bf16", True), (sharded, "bf16", False)]
    expected: list[float] = []
    for name, precision, compiled in tried:
        row: Row = {"way": f"{name}, {precision}{', compiled' if compiled else ''}"}
        if on_cpu and (name == sharded or compiled):
            yield {**row, "loss": "left out: it needs a GPU"}
            continue
        sizes = {"max_steps": 8, "batch_size": windows, "global_batch_size": windows * number, "compile": compiled}
        what = recipe(given, tried_shape(given), mixed_precision=precision.replace("fp32", "no"), **sizes)
        with tempfile.TemporaryDirectory() as folder:
            command = [*launched[name][0], "-m", "benchmarks.gpu", *flags(given), "--step", "one_way", "--recipe"]
            command.append(json.dumps({**what, "output_dir": folder}))
            try:
                printed = process(*map(str, command), env={"ACCELERATE_USE_CPU": str(on_cpu).lower()}).printed
            except SystemExit:  # whose message is the whole command
                yield {**row, "loss": "failed; the log says why", "ok": False}
                continue
        found = json.loads(printed[-1])
        losses = found.pop("losses")
        expected = expected or losses
        off = max(abs(one / other - 1) for one, other in zip(losses, expected, strict=True))
        same = off <= (1e-4 if precision == "fp32" else 1e-3)
        yield {
            **row,
            **found,
            "last loss": losses[-1],
            "off by": off,
            "ok": same and found["loss"] == launched[name][1],
        }


def one_way(given: argparse.Namespace) -> Iterator[Row]:
    """The run of `ways`, in each of its processes; the main one says what was made of the loss and the optimizer."""
    import torch

    import hf_gpt

    found: Row = {}

    class Look(hf_gpt.Observer):
        def began(self, training: Any) -> None:
            found["loss"] = type(training.loss).__name__
            found["weights"] = type(next(training.loss.parameters()).data).__name__
            found["over"] = torch.distributed.get_backend() if torch.distributed.is_initialized() else None
            found["AdamW is fused"] = all(group["fused"] for group in training.optimizer.param_groups)

    run = hf_gpt.train(json.loads(given.recipe), observers=[Look()])
    if run.is_main_process:
        yield {**found, "losses": [line["train_loss"] for line in run.metrics if "train_loss" in line]}


def parts(given: argparse.Namespace) -> Iterator[Row]:
    """The loss without its logits by the size of its chunks, forward and backward; and caches of `generate()`."""
    import torch

    from hf_gpt import GPTConfig, GPTForCausalLM
    from hf_gpt.loss import chunked_cross_entropy

    device, tokens, shape = torch.device(given.device), 64 if given.tiny else 2**14, measured_shape(given)
    how = {"device": device, "dtype": torch.bfloat16, "requires_grad": True}
    hidden, weight = (torch.randn(rows, shape["emb_dim"], **how) for rows in (tokens, shape["vocab_size"]))
    ids = torch.randint(shape["vocab_size"], (tokens,), device=device)

    def loss(chunk: int | None) -> Row:
        def work() -> None:
            if chunk:
                chunked_cross_entropy(hidden, weight, ids, chunk).backward()
            else:
                torch.nn.functional.cross_entropy((hidden @ weight.T).float(), ids, reduction="sum").backward()
            most_memory(device)  # waits

        work()
        before = most_memory(device, restart=True)
        took = statistics.median(seconds(work) for _ in range(3))
        return {"came out": f"{1000 * took:.1f} ms, {(most_memory(device) - before) / 1e9:.2f} GB"}

    def cache(name: str) -> Row:
        torch.manual_seed(0)
        model, prompt = GPTForCausalLM(GPTConfig(**tried_shape(given))).to(device).eval(), ids[:16].view(2, 8)
        how = {"max_new_tokens": 16, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
        own = {"cache_implementation": name, "disable_compile": name == "offloaded_static"}  # torch 2.11 crashes
        same = torch.equal(model.generate(prompt, **how, **own), model.generate(prompt, **how))
        return {"came out": "the same tokens" if same else "other tokens", "ok": same}

    caches = ("dynamic",) if given.device == "cpu" else ("offloaded", "offloaded_static", "static")
    for attempt, values in ((loss, (None, 512, 2048, 8192)), (cache, caches)):
        for value in values:
            row = {
                "part": f"loss of {tokens:,} tokens, {value or 'all'} at once" if attempt is loss else f"{value} cache"
            }
            try:
                yield {**row, **attempt(value)}
            except Exception as error:
                traceback.print_exc()
                yield {**row, "came out": f"{type(error).__name__}: {error}"[:200], "ok": False}


def speed(given: argparse.Namespace) -> Iterator[Row]:
    """Ours and `GPT2LMHeadModel` in one loop, in turn: bf16 autocast, compiled, clipped, fused AdamW, no dropout."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    from hf_gpt import GPTConfig, GPTForCausalLM
    from hf_gpt.loss import CausalLMLoss
    from hf_gpt.recipe import OptimizerRecipe
    from hf_gpt.training.distributed import on_device
    from hf_gpt.training.optimizer import build_optimizer
    from hf_gpt.training.utilization import flops_per_token, measured_peak

    began, device, shape = time.monotonic(), torch.device(given.device), measured_shape(given)
    context = shape["context_length"]
    peak_flops = measured_peak(device, "bf16", 0.2 if given.tiny else 1.0)
    torch.manual_seed(0)
    sizes = {"n_embd": shape["emb_dim"], "n_layer": shape["n_layers"], "n_head": shape["n_heads"]}
    rest = {"n_positions": context, **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)}
    peer_config = GPT2Config(vocab_size=shape["vocab_size"], bos_token_id=0, eos_token_id=0, **sizes, **rest)
    ours = GPTForCausalLM(GPTConfig(**shape, drop_rate=0.0)).to(device)
    peer = GPT2LMHeadModel(peer_config).to(device)
    assert ours.num_parameters() == peer.num_parameters()
    loss = CausalLMLoss(ours)
    if not given.tiny:
        loss.compile()
        peer.compile()
    losses = {
        ours: lambda batch: loss(**batch) / batch["input_ids"].numel(),
        peer: lambda batch: peer(batch["input_ids"], labels=batch["input_ids"]).loss,
    }
    optimizers = {
        ours: build_optimizer(ours, OptimizerRecipe()),
        peer: torch.optim.AdamW(peer.parameters(), fused=True),
    }
    most: dict[Any, float] = {}

    def rate(model: Any, batch_size: int) -> float:
        """Tokens a second; 0 where memory is not enough."""
        optimizer, steps = optimizers[model], 2 if given.tiny else max(4, 2**18 // (batch_size * context))
        ids = torch.randint(shape["vocab_size"], (batch_size, context + 1))
        batch = {"input_ids": ids[:, :-1].contiguous(), "shift_labels": ids[:, 1:].contiguous()}
        idle, start = most_memory(device, restart=True), time.perf_counter()
        try:
            for _ in range(steps):
                here = on_device(batch, device)
                with torch.autocast(device.type, torch.bfloat16):
                    value = losses[model](here)
                value.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
            peak = most_memory(device)
        except torch.OutOfMemoryError:
            optimizer.zero_grad()
            return 0.0
        took = time.perf_counter() - start
        if device.type == "cuda":  # the other model lies there too, and does not count
            own = [*model.parameters(), *(kept for state in optimizer.state.values() for kept in state.values())]
            most[model] = (sum(tensor.nbytes for tensor in own) + peak - idle) / 1e9
        return steps * batch_size * context / took

    took, too_large = 0.0, 10**9
    for batch_size in (2, 4) if given.tiny else (16, 32, 8, 64, 4):  # the last ones only where there is time
        if batch_size >= too_large or time.monotonic() - began + 1.3 * took > STEPS["speed"].limit:
            continue
        started = time.monotonic()
        sides = partial(rate, ours, batch_size), partial(rate, peer, batch_size)
        mine, theirs = in_turn(*sides, runs=1 if given.tiny else 3)
        took = time.monotonic() - started
        row: Row = {"batch": batch_size, "ours / GPT-2": mine / theirs if theirs else None}
        for side, model, found in (("ours", ours, mine), ("GPT-2", peer, theirs)):
            row[f"{side}: tokens/s"] = found or "out of memory"
            row[f"{side}: utilisation"] = f"{flops_per_token(ours, context) * found / peak_flops:.1%}"
            row[f"{side}: peak, GB"] = most.pop(model, None)
        yield row
        too_large = too_large if mine or theirs else batch_size
        torch.compiler.reset()  # a size is compiled for itself
        gc.collect()
        torch.cuda.empty_cache()


def forecasts(given: argparse.Namespace) -> Iterator[Row]:
    """What `hf-gpt estimate` says of a run, beside the run: with few logits, which are kept, and with many."""
    from hf_gpt.estimate.forecast import estimate
    from hf_gpt.recipe import Recipe

    steps, name = 6 if given.tiny else 60, published(card(given.device))
    for windows, compiled in ((2, False),) if given.tiny else ((4, False), (16, True)):
        sizes = {"batch_size": windows, "max_steps": steps, "log_every": steps // 6, "compile": compiled}
        what = recipe(given, measured_shape(given), mixed_precision="bf16", **sizes)
        how = f"batch {windows}, {'compiled' if compiled else 'not compiled'}"
        with tempfile.TemporaryDirectory() as folder:
            forecast = Recipe.from_dict({**what, "output_dir": f"{folder}/forecast"})
            here, there = estimate(forecast, measure=not compiled), estimate(forecast, name) if name else None
            lines = train(hf_gpt(), write(what, folder), Path(folder, "run"))[2:]
        rate = statistics.median(line["tokens_per_second"] for line in lines)
        compared = [(f"peak memory, GB: {how}", here.peak_memory / 1e9, lines[-1]["peak_memory_bytes"] / 1e9)]
        if here.step_seconds:
            compared.append((f"tokens/s: {how}, some steps timed", here.tokens / steps / here.step_seconds, rate))
        if there:
            part = f"{name} at {there.plan.utilization:.0%} of what is published"
            compared.append((f"tokens/s: {how}, {part}", there.tokens / there.plan.seconds, rate))
        for label, expected, measured in compared:
            off = "**off by over 15%**" if abs(expected / measured - 1) > 0.15 else ""
            yield {"": label, "forecast": expected, "measured": measured, "ratio": expected / measured, "off": off}
        yield {"": f"`mfu` of the run: {how}", "measured": f"{lines[-1]['mfu']:.1%}"}
    if not name:
        yield {"": "`--device`: no figures of this device are published"}


def resume(given: argparse.Namespace) -> Iterator[Row]:
    with ThreadPoolExecutor(max_workers=2) as pool:
        yield from pool.map(partial(killed_and_resumed, given), [False] if given.tiny else [False, True])


def killed_and_resumed(given: argparse.Namespace, compiled: bool) -> Row:
    """A run twice, and one that is killed and resumed: the same weights in the end? Then it writes."""
    row: Row = {"run": "compiled" if compiled else "not compiled"}
    what = recipe(given, {**tried_shape(given), "vocab_size": 257}, max_steps=40, mixed_precision="bf16")
    what["model"]["drop_rate"], what["train"]["compile"] = 0.1, compiled
    what["checkpoint"] = {"every": 10, "keep": 2}
    program = hf_gpt()
    with tempfile.TemporaryDirectory() as folder:
        file, (once, again, killed) = write(what, folder), (Path(folder, name) for name in ("once", "again", "killed"))
        try:
            for run in (once, again):
                train(program, file, run)
            command = [*program, "train", str(file), "--output_dir", str(killed)]
            child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
            while child.poll() is None and not (killed / "checkpoints" / "step-00000010").exists():
                time.sleep(0.005)
            child.kill()
            child.wait()
            # Without the kernels that were compiled before: others may be chosen now.
            process(*command, env={"TORCHINDUCTOR_CACHE_DIR": f"{folder}/kernels"})
            prompt = ("--prompt", "The", "--max-new-tokens", "24", "--device", given.device)
            text = "\n".join(process(*hf_gpt(), "generate", killed, *prompt).printed)
        except SystemExit as failed:
            return {**row, "it writes": str(failed)[-200:], "ok": False}
        resumed = '"resumed"' in (killed / "events.jsonl").read_text()
        ends = {run.name: digest(run / "checkpoints" / "step-00000040") for run in (once, again, killed)}
    same = len(set(ends.values())) == 1
    return {**row, **ends, "resumed": resumed, "it writes": json.dumps(text), "ok": same and resumed}


def write(what: dict[str, Any], folder: str) -> Path:
    """A recipe as a file; JSON is YAML."""
    Path(folder, "recipe.yaml").write_text(json.dumps(what))
    return Path(folder, "recipe.yaml")


def train(program: list[str], file: Path, run: Path) -> list[dict[str, Any]]:
    """`hf-gpt train` in a process of its own: its train lines."""
    process(*program, "train", file, "--output_dir", run)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "train_loss" in line]


def digest(checkpoint: Path) -> str:
    """Of the weights and the optimizer."""
    files = ("model.safetensors", "training_state/optimizer.safetensors")
    return hashlib.sha256(b"".join((checkpoint / file).read_bytes() for file in files)).hexdigest()[:12]


def hf_gpt() -> list[str]:
    return [sys.executable, "-m", "hf_gpt.cli"]


def card(device: str) -> str:
    import torch

    return torch.cuda.get_device_name() if device == "cuda" else f"{platform.machine()}, no GPU"


def published(card: str) -> str | None:
    """The name in `DEVICES` for a card: the longest whose words are all in the card's name."""
    from hf_gpt.estimate.devices import DEVICES

    words = set(re.split("[ -]", card.upper()))
    return max((name for name in DEVICES if words.issuperset(name.split("-"))), key=len, default=None)


def most_memory(device: Any, restart: bool = False) -> int:
    """The most bytes of tensors since the last restart, once the device has done its work; 0 on a CPU."""
    import torch

    if device.type != "cuda":
        return 0
    torch.cuda.synchronize()
    if restart:
        torch.cuda.reset_peak_memory_stats()
    return torch.cuda.max_memory_allocated()


STEPS = {
    "machine": Step("The machine", machine, 60, alone=True),
    "tests": Step("`pytest -m gpu`", tests, 200),
    "ways": Step("Eight steps of a small model, in several ways", ways, 220),
    "parts": Step("The loss without its logits, and caches", parts, 120),
    "speed": Step("gpt2-124m beside GPT2LMHeadModel (to reach: utilisation 50%, ratio 1.3)", speed, 190, alone=True),
    "forecasts": Step("`hf-gpt estimate` beside a run", forecasts, 150, alone=True),
    "resume": Step("Killed and resumed; `hf-gpt generate`", resume, 200),
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="gpu_check.sh", description="What only a GPU shows, as one report.")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="cpu: a rehearsal, tiny")
    parser.add_argument("--tiny", action="store_true", help="small models and few steps, to try the check itself")
    parser.add_argument("--processes", type=int, default=1, metavar="N", help="of DDP and FSDP2, one on each GPU")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="for report.md, report.json and log.txt")
    parser.add_argument("--only", nargs="+", choices=list(STEPS), default=list(STEPS), metavar="STEP")
    parser.add_argument("--step", help=argparse.SUPPRESS)  # in the process of a step
    parser.add_argument("--recipe", help=argparse.SUPPRESS)  # of `one_way`
    given = parser.parse_args()
    given.tiny |= given.device == "cpu"
    if given.step:
        for row in one_way(given) if given.step == "one_way" else STEPS[given.step].work(given):
            print(json.dumps(row), flush=True)
        return 0
    if missing := what_is_missing(given):
        say(f"gpu_check.sh: {missing}")
        return 2
    steps = check(given)
    print(report(steps))
    return int(any(step.failed for step in steps.values()))


def check(given: argparse.Namespace) -> dict[str, Step]:
    """Run the steps: those that measure alone, then the others side by side."""
    began, steps = time.monotonic(), {name: step for name, step in STEPS.items() if name in given.only}
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_GPT_CACHE": f"{folder}/cache"}

        def run(name: str) -> None:
            step, own = steps[name], Path(folder, name)
            own.mkdir()
            command = [sys.executable, "-m", "benchmarks.gpu", *flags(given), "--step", name]
            step.run(command, own, environment, max(1, min(step.limit, began + MOST_SECONDS - time.monotonic())))
            say(f"{name}: {'failed after ' if step.failed else ''}{step.took}")
            if given.out is not None:
                keep(steps, given.out)

        for name in (name for name, step in steps.items() if step.alone):
            run(name)
        with ThreadPoolExecutor(max_workers=1 if given.device == "cpu" else 4) as pool:
            list(pool.map(run, (name for name, step in steps.items() if not step.alone)))
    return steps


def flags(given: argparse.Namespace) -> list[str]:
    return ["--device", given.device, "--processes", str(given.processes), *(["--tiny"] if given.tiny else [])]


def what_is_missing(given: argparse.Namespace) -> str | None:
    """The packages that are not there or too old, or the GPU."""
    missing = []
    try:
        from packaging.requirements import Requirement

        for need in map(Requirement, importlib.metadata.requires("hf_gpt")):
            if need.marker is None or need.marker.evaluate({"extra": ""}):
                with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                    if need.specifier.contains(importlib.metadata.version(need.name), prereleases=True):
                        continue
                missing.append(str(need))
    except ImportError as error:
        missing.append(error.name)
    if missing:
        return f"{sys.executable} needs {', '.join(missing)}; install them, or bring them with --wheels FOLDER"
    import torch

    if given.device == "cuda" and (gpus := torch.cuda.device_count()) < given.processes:
        return (
            f"needs a GPU for each process, and torch {torch.__version__} finds {gpus}; to rehearse it: --device cpu"
        )
    return None


if __name__ == "__main__":
    sys.exit(main())
