"""Training: how long until a loss, how many steps a second, how large a step of a large model."""

import contextlib
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

from hf_gpt.precision import multiplies_bf16

from .timing import PEAK_OF_THIS_PROCESS, NotMeasured, Result, in_turn, process, say

ROOT = Path(__file__).parent.parent.parent
TARGET_LOSS = 1.8857  # what nanoGPT's recipe reaches after its 2000 steps


def real_text(name: str) -> Path:
    """A file or folder of real text; the benchmark is left out where there is none."""
    folder = os.environ.get("HF_GPT_TEST_DATA", "")
    path = Path(folder, name)
    if not folder or not path.exists():
        raise NotMeasured(f"needs {name} in the folder that HF_GPT_TEST_DATA names")
    return path


def time_to_loss(runs: int = 3) -> Result:
    """Whole processes, from nothing to a model whose loss on the whole validation text is at most the target."""
    text = real_text("tinyshakespeare.txt")
    losses: dict[str, list[float]] = {"ours": [], "peer": []}

    def ours() -> float:
        with tempfile.TemporaryDirectory() as folder:
            run = Path(folder, "run")
            command = [sys.executable, "-m", "hf_gpt.cli", "train", ROOT / "configs" / "shakespeare-char.yaml"]
            flags = ["--data.source", text, "--output_dir", run, "--evaluation.every", "250"]
            took = process(*command, *flags, env={"HF_GPT_CACHE": str(Path(folder, "cache"))}, quiet=True).seconds
            losses["ours"].append(whole_validation_loss(run, text))
        say(f"time-to-loss: ours {took:.1f} s, loss {losses['ours'][-1]:.4f}")
        return took

    def peer() -> float:
        done = process(sys.executable, Path(__file__).parent / "nanogpt.py", text)
        said = {line.split()[0]: float(line.split()[-1]) for line in done.printed}
        losses["peer"].append(said["validation"])
        took = said["trained"] - done.began
        say(f"time-to-loss: peer {took:.1f} s, loss {losses['peer'][-1]:.4f}")
        return took

    mine, theirs = in_turn(ours, peer, runs, warmup=False)
    if max(losses["ours"]) > TARGET_LOSS:
        raise SystemExit(f"time-to-loss: the target of {TARGET_LOSS} was not reached: {losses['ours']}")
    reached = {f"{side}_losses": [round(loss, 4) for loss in found] for side, found in losses.items()}
    return Result("time-to-loss", mine, theirs, "seconds", "at most 0.2", {"target_loss": TARGET_LOSS, **reached})


def whole_validation_loss(run: Path, text: Path) -> float:
    """The mean loss over the last tenth of the text, in windows that do not overlap: as the peer counts it."""
    import torch

    from hf_gpt import GPTForCausalLM

    (saved,) = (run / "checkpoints").glob("step-*")
    model = GPTForCausalLM.from_pretrained(saved).eval()
    ids = torch.tensor(list(text.read_bytes()))
    ids = ids[int(0.9 * len(ids)) :]
    windows = (len(ids) - 1) // 64
    inputs, targets = (ids[at : windows * 64 + at].view(windows, 64) for at in (0, 1))
    with torch.no_grad():
        losses = [
            model(input_ids=some, shift_labels=wanted).loss.item() * len(some)
            for some, wanted in zip(inputs.split(256), targets.split(256))
        ]
    return sum(losses) / windows


def train_throughput(runs: int = 5) -> Result:
    """Steps a second of the loop, between its 50th and its 150th step, beside transformers' Trainer on GPT-2.

    Each is a process of its own: ours is `hf-gpt train`, which also tells malloc to keep what a step has freed.
    """
    text, sizes = real_text("tinyshakespeare.txt"), set()

    def ours() -> float:
        with tempfile.TemporaryDirectory() as folder:
            flags = f"--output_dir {folder}/run --data.source {text} --train.device cpu --optimizer.name adamw"
            flags += " --optimizer.lr 1e-3 --model.n_layers 4 --model.qkv_bias true"
            flags += f" --train.max_steps {_TO} --train.log_every {_FROM} --evaluation.first {_TO + 1}"
            recipe = ROOT / "configs" / "shakespeare-char.yaml"
            environment = {"HF_GPT_CACHE": f"{folder}/cache"}
            process(sys.executable, "-m", "hf_gpt.cli", "train", recipe, *flags.split(), env=environment, quiet=True)
            lines = map(json.loads, Path(folder, "run", "metrics.jsonl").read_text().splitlines())
            at = {line["step"]: line["seconds"] for line in lines if "train_loss" in line}  # not with the evaluation
            (saved,) = Path(folder, "run", "checkpoints").glob("step-*")
            sizes.add(_numbers_in(saved / "model.safetensors"))
        return (_TO - _FROM) / (at[_TO] - at[_FROM])

    def peer() -> float:
        program = "from benchmarks.training import trainers_rate; print(*trainers_rate())"
        done = process(sys.executable, "-c", program, env={"PYTHONPATH": str(ROOT / "scripts")}, quiet=True)
        rate, size = done.printed[-1].split()
        sizes.add(int(size))
        return float(rate)

    mine, theirs = in_turn(ours, peer, runs)
    (parameters,) = sizes
    return Result("train-throughput", mine, theirs, "steps/s", "at least 1.3", {"parameters": parameters})


_FROM, _TO = 50, 150


def _numbers_in(weights: Path) -> int:
    from safetensors import safe_open

    with safe_open(weights, "pt") as file:
        return sum(file.get_tensor(name).numel() for name in file.keys())  # noqa: SIM118 - it is no dictionary


def trainers_rate() -> tuple[float, int]:
    """Steps a second of transformers' Trainer, and the parameters of its model."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments

    class Clock(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs) -> None:
            at[state.global_step] = time.monotonic()

    at: dict[int, float] = {}
    torch.manual_seed(0)
    ids = torch.tensor(list(real_text("tinyshakespeare.txt").read_bytes()))
    rows = [{"input_ids": row, "labels": row} for row in ids[: len(ids) // 64 * 64].view(-1, 64)]
    shape = {"vocab_size": 257, "n_positions": 64, "n_embd": 128, "n_layer": 4, "n_head": 4}
    model = GPT2LMHeadModel(GPT2Config(**shape, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0))
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=_TO,
            per_device_train_batch_size=12,
            learning_rate=1e-3,
            use_cpu=True,
            report_to=[],
            save_strategy="no",
            logging_steps=_FROM,
            disable_tqdm=True,
        )
        with contextlib.redirect_stdout(sys.stderr):  # where the losses go
            Trainer(model, arguments, train_dataset=rows, callbacks=[Clock()]).train()
    return (_TO - _FROM) / (at[_TO] - at[_FROM]), model.num_parameters()


def muon(seconds: float = 90) -> Result:
    """The validation loss after equal times on WikiText: Muon, and the best of three learning rates of AdamW.

    5 M parameters, a vocabulary of 4096 trained on the text; its `test` part is trained on. How many steps fit into
    the time is measured first, without the evaluation; `seconds_taken` is what their steps then took.
    """
    corpus = real_text("wikitext")
    optimizers = {  # in turn
        "muon 0.005": {"name": "muon", "lr": 2e-3, "muon_lr": 5e-3},
        "adamw 0.001": {"name": "adamw", "lr": 1e-3},
        "muon 0.01": {"name": "muon", "lr": 2e-3, "muon_lr": 1e-2},
        "adamw 0.002": {"name": "adamw", "lr": 2e-3},
        "adamw 0.004": {"name": "adamw", "lr": 4e-3},
    }
    rates = in_turn(
        lambda: _on_wikitext(corpus, optimizers["muon 0.005"], 12)[0],
        lambda: _on_wikitext(corpus, optimizers["adamw 0.001"], 12)[0],
        runs=2,
        warmup=False,
    )
    steps = dict(zip(("muon", "adamw"), (round(seconds * rate) for rate in rates)))
    found, taken = {}, {}
    for name, optimizer in optimizers.items():
        number = steps[optimizer["name"]]
        rate, found[name] = _on_wikitext(corpus, optimizer, number)
        taken[name] = round(number / rate)
        say(f"muon: {name}, {number} steps, {taken[name]} s: {found[name]:.4f}")
    ours, peer = (min(loss for name, loss in found.items() if name.startswith(kind)) for kind in steps)
    losses = {name: round(loss, 4) for name, loss in found.items()}
    return Result("muon", ours, peer, "loss", "below 1", {"losses": losses, "seconds_taken": taken})


def _on_wikitext(corpus: Path, optimizer: dict, steps: int) -> tuple[float, float]:
    """Steps a second, from the third on, and the last validation loss."""
    from hf_gpt import train

    shape = {"context_length": 128, "emb_dim": 288, "n_layers": 4, "n_heads": 6, "drop_rate": 0.0}
    with tempfile.TemporaryDirectory() as folder:
        run = train(
            {
                "output_dir": folder,
                "model": {**shape, "qkv_bias": False, "hidden_act": "gelu"},
                "tokenizer": {"train": {"vocab_size": 4096}},
                "data": {
                    "source": str(corpus),
                    "config": "wikitext-2-v1",
                    "train_split": "test",
                    "validation_split": "validation",
                },
                "optimizer": optimizer,
                "schedule": {"name": "linear", "warmup_steps": max(1, steps // 20), "min_lr_ratio": 0.0},
                "train": {
                    "max_steps": steps,
                    "batch_size": 16,
                    "log_every": 1,
                    "device": "cpu",
                    "mixed_precision": "no",
                },
                "evaluation": {"first": steps, "tokens": 100_000, "prompts": []},
                "checkpoint": {"every": None},
            }
        )
        at = {line["step"]: line["seconds"] for line in run.metrics if "train_loss" in line}
        return (steps - 2) / (at[steps] - at[2]), run.metrics[-1]["validation_loss"]


SEEDS = range(5)


def same_loss() -> Result:
    """The last validation loss of five seeds: with the optimizations of the training step, and plainly.

    The loss without the logits, which so small a model would not use by itself, and compilation, each on its own;
    `plain` has neither. A mean farther away than one standard deviation of the plain seeds ends the benchmark.
    """
    from unittest import mock

    from hf_gpt import loss, train
    from hf_gpt.recipe import Recipe

    text = real_text("tinyshakespeare.txt")

    def losses(kind: str) -> list[float]:
        found = []
        for seed in SEEDS:
            with tempfile.TemporaryDirectory() as folder:
                words = f"--seed {seed} --output_dir {folder} --data.source {text} --train.device cpu".split()
                words += f"--train.compile {'true' if kind == 'compiled' else 'false'} --evaluation.first 450".split()
                recipe = Recipe.from_yaml(ROOT / "configs" / "shakespeare-char.yaml", words)
                chunk = 256 if kind == "chunked" else None
                with mock.patch.object(loss, "tokens_per_chunk", lambda *_, chunk=chunk: chunk):
                    found.append(train(recipe).metrics[-1]["validation_loss"])
            say(f"same-loss: {kind}, seed {seed}: {found[-1]:.4f}")
        return found

    found = {kind: losses(kind) for kind in ("plain", "chunked", "compiled")}
    means = {kind: statistics.mean(values) for kind, values in found.items()}
    spread = statistics.stdev(found["plain"])
    farthest = max(("chunked", "compiled"), key=lambda kind: abs(means[kind] - means["plain"]))
    if abs(means[farthest] - means["plain"]) > spread:
        raise SystemExit(f"same-loss: {farthest} ends elsewhere: {found}")
    more = {f"mean_{kind}": round(mean, 4) for kind, mean in means.items()}
    more |= {"standard_deviation_of_plain": round(spread, 4)}
    return Result("same-loss", means[farthest], means["plain"], "loss", "within a standard deviation", more)


def train_step_124m(runs: int = 3) -> Result:
    """Seconds of a step at GPT-2's smallest shape, 4 x 1024 tokens, no dropout: forward, backward and AdamW.

    Each turn is a fresh process, whose peak memory counts, and takes two steps: the first makes the optimizer's
    moments, the second is timed. Ours is what `hf-gpt train` does with `hidden_act: gelu`: under bf16 autocast where
    the CPU has units for it, else in fp32. The peer is `GPT2LMHeadModel` and `torch.optim.AdamW` as they come, in
    fp32; where ours is in bf16, there is another under autocast.
    """
    in_bf16 = multiplies_bf16("cpu")
    found: dict[str, list[dict[str, float]]] = {"ours": [], "peer": [], "peer in bf16": []}

    def step(side: str) -> float:
        program = _STEP.format(
            build=_OURS if side == "ours" else _PEER,
            in_bf16=in_bf16 if side == "ours" else side == "peer in bf16",
            peak=PEAK_OF_THIS_PROCESS,
        )
        found[side].append(json.loads(process(sys.executable, "-c", program).printed[-1]))
        say(f"train-step-124m: {side} {found[side][-1]['seconds']:.1f} s, {found[side][-1]['peak_gb']:.2f} GB")
        return found[side][-1]["seconds"]

    def ours() -> float:
        if in_bf16:
            step("peer in bf16")
        return step("ours")

    mine, theirs = in_turn(ours, lambda: step("peer"), runs, warmup=False)

    def median(side: str, name: str) -> float:
        return statistics.median(one[name] for one in found[side])

    memory = median("ours", "peak_gb")
    more = {"memory_ratio": round(memory / median("peer", "peak_gb"), 3), "peak_gb": round(memory, 2)}
    target = "at most 0.6; memory 0.5"
    if in_bf16:
        target = "at most 0.35, of the peer in bf16 0.85; memory 0.5"
        more["ratio_to_peer_in_bf16"] = round(mine / median("peer in bf16", "seconds"), 3)
    return Result(
        "train-step-124m", mine, theirs, "seconds", target, {"precision": "bf16" if in_bf16 else "fp32", **more}
    )


_OURS = """
from hf_gpt import GPTConfig, GPTForCausalLM
from hf_gpt.recipe import OptimizerRecipe
from hf_gpt.training.optimizer import build_optimizer
from hf_gpt.loss import CausalLMLoss
model = GPTForCausalLM(GPTConfig.from_preset("gpt2-124m", drop_rate=0.0, hidden_act="gelu"))
summed_loss = CausalLMLoss(model)
optimizer = build_optimizer(model, OptimizerRecipe())
def loss():
    return summed_loss(inputs, targets) / 4096
"""

_PEER = """
from transformers import GPT2Config, GPT2LMHeadModel
model = GPT2LMHeadModel(GPT2Config(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0))
optimizer = torch.optim.AdamW(model.parameters())
def loss():
    return model(inputs, labels=inputs).loss
"""

_STEP = """
import json, time
import torch
torch.manual_seed(0)
text = torch.randint(50257, (4, 1025))
inputs, targets = text[:, :-1].contiguous(), text[:, 1:].contiguous()
{build}
model.train()
for _ in range(2):
    began = time.perf_counter()
    with torch.autocast("cpu", torch.bfloat16, enabled={in_bf16}):
        mean = loss()
    mean.backward()
    optimizer.step()
    optimizer.zero_grad()
    seconds = time.perf_counter() - began
{peak}
print(json.dumps({{"seconds": seconds, "peak_gb": peak_bytes / 1e9}}))
"""


def estimate() -> Result:
    """The memory that `hf-gpt estimate` forecasts, beside the peak of the run itself."""
    flags = ["--train.max_steps", "3", "--train.batch_size", "64"]
    with tempfile.TemporaryDirectory() as folder:
        environment = {"HF_GPT_CACHE": str(Path(folder, "cache"))}
        flags += ["--output_dir", str(Path(folder, "run"))]
        recipe = ROOT / "configs" / "quickstart.yaml"
        command = [sys.executable, "-m", "hf_gpt.cli", "estimate", recipe, *flags, "--json"]
        forecast = json.loads(process(*command, env=environment, quiet=True).printed[-1])
        run = process(sys.executable, "-c", _TRAIN, recipe, *flags, env=environment, quiet=True)
    return Result("estimate", forecast["peak_memory"] / 1e9, int(run.printed[-1]) / 1e9, "GB", "within 0.15 of 1")


_TRAIN = f"""
import sys
from hf_gpt.cli import main
main(["train", *sys.argv[1:]])
{PEAK_OF_THIS_PROCESS}
print(peak_bytes)
"""
