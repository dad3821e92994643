"""What goes wrong around a run costs no more than the steps since its last checkpoint, and says so in one line."""

import contextlib
import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import torch
from forking import recipe_file
from hostile import Trap
from safetensors.torch import load_file, save_file
from test_training import changed, same_weights, timeless

import hf_gpt
from hf_gpt import checkpoint
from hf_gpt.conversion import to_gpt2
from hf_gpt.errors import RunStopped, UserError
from hf_gpt.storage import write_json
from hf_gpt.training.run_log import read_lines

# Signals


@pytest.fixture
def long_run(tiny, tmp_path) -> Path:
    """A recipe that trains until it is stopped, whose steps do not depend on how many there will be."""
    recipe = changed(tiny, train__max_steps=1_000_000, checkpoint__every=None, evaluation__every=1_000_000)
    return recipe_file({**recipe, "schedule": {"name": "constant"}}, tmp_path / "recipe.yaml")


def steps_logged(run_dir) -> list[int]:
    with contextlib.suppress(FileNotFoundError):
        return [line["step"] for line in read_lines(Path(run_dir) / "metrics.jsonl") if "train_loss" in line]
    return []


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 75), ("SIGUSR1", 75), ("SIGHUP", 75), ("SIGINT", 130)])
def test_a_run_that_is_asked_to_stop_saves_and_goes_on_later(name, code, tiny, long_run, forks, tmp_path):
    command = forks.start("train", long_run)
    command.wait_until(lambda: len(steps_logged(tiny["output_dir"])) > 3)
    seen = steps_logged(tiny["output_dir"])[-1]
    command.send(getattr(signal, name))
    assert command.wait() == code
    (saved,) = checkpoint.checkpoints(tiny["output_dir"])
    checkpoint.verify(saved)
    assert seen <= checkpoint.step_of(saved)
    last_line = command.printed.splitlines()[-1]
    assert f"stopped and saved after step {checkpoint.step_of(saved)}" in last_line
    assert (name in last_line) == (name != "SIGINT")  # who pressed Ctrl-C knows
    assert f"stopped by {name}, and saved" in (Path(tiny["output_dir"]) / "report.html").read_text()
    assert "; stopped, and can be resumed" in (Path(tiny["output_dir"]) / "report.html").read_text()

    # The same command resumes it, and ends where a run that was left alone ends.
    last = str(checkpoint.step_of(saved) + 4)
    assert forks.run("train", long_run, "--train.max_steps", last)[0] == 0
    assert forks.run("train", long_run, "--train.max_steps", last, "--output_dir", tmp_path / "whole")[0] == 0
    ours, whole = (
        checkpoint.checkpoints(run)[-1] / "model.safetensors" for run in (saved.parents[1], tmp_path / "whole")
    )
    assert ours.read_bytes() == whole.read_bytes()


def test_a_second_signal_ends_a_run_at_once(tiny, forks, tmp_path):
    """In an evaluation that takes long, after which the first signal would be seen."""
    text = tmp_path / "long.txt"
    text.write_text("The quick brown fox jumps over the lazy dog. " * 100_000)
    recipe = changed(tiny, data={"source": str(text)}, evaluation__tokens=None)
    command = forks.start("train", recipe_file(recipe, tmp_path / "recipe.yaml"))
    command.wait_until(lambda: (Path(tiny["output_dir"]) / "metrics.jsonl").exists())
    for _ in range(3):  # two that come within one instruction are one
        command.send(signal.SIGTERM)
        time.sleep(0.5)
    assert command.wait() == -signal.SIGTERM


def test_a_signal_before_the_first_step_ends_with_the_code_that_says_again(tiny, forks, tmp_path):
    text = tmp_path / "long.txt"
    text.write_text("".join(f"{i} quick brown foxes. " for i in range(150_000)))
    recipe = changed(tiny, data={"source": str(text)}, tokenizer={"train": {"vocab_size": 2000}})
    cache = tmp_path / "cache"
    command = forks.start("train", recipe_file(recipe, tmp_path / "recipe.yaml"), env={"HF_GPT_CACHE": str(cache)})
    command.wait_until(lambda: list(cache.rglob("*.lock")))  # it trains its tokenizer
    command.send(signal.SIGTERM)
    assert command.wait() == 75
    assert command.printed.splitlines()[-1] == (
        "hf-gpt: SIGTERM: stopped before the first step; the same command starts it again"
    )


# One run, one process


def test_a_folder_that_a_run_is_in_refuses_another_while_it_lives(tiny, long_run, forks):
    first = forks.start("train", long_run)
    first.wait_until(lambda: len(steps_logged(tiny["output_dir"])) > 1)
    code, printed = forks.run("train", long_run)
    assert code == 2
    assert "another process is training there" in printed.splitlines()[-1]
    first.send(signal.SIGKILL)
    assert first.wait() == -9
    assert forks.run("train", long_run, "--train.max_steps", "20")[0] == 0  # the lock went with the process


# Losses that are not finite


@pytest.fixture
def explosive(tiny) -> dict:
    """Weights grow a thousandfold each step until there are no numbers for them."""
    return changed(tiny, optimizer__lr=1e4, schedule={"name": "constant"}, checkpoint__every=2)


def test_a_step_that_is_not_finite_is_written_down_with_its_windows(explosive):
    with pytest.raises(RunStopped, match=r"of step \d+ is not finite; its gradient norm is nan, its windows are \d"):
        hf_gpt.train(explosive)
    (event,) = read_lines(Path(explosive["output_dir"], "events.jsonl"))
    assert event["event"] == "not finite"
    assert len(event["windows"]) == 4
    assert event["grad_norm"] == "nan"
    good = checkpoint.pointed(explosive["output_dir"], "latest")
    assert checkpoint.step_of(good) < event["step"]
    assert checkpoint.checkpoints(explosive["output_dir"])[-1] == good
    checkpoint.verify(good)


def test_updates_that_are_not_finite_may_be_skipped_and_are_counted(tiny, tmp_path):
    """A window whose gradient overflows is met every epoch: weights so large that some logits are not numbers."""
    recipe = changed(tiny, train__skip_nonfinite=3, optimizer__lr=1e4, schedule={"name": "constant"})
    recipe |= {"checkpoint": {"every": 1, "keep": None}, "evaluation": {"every": 1000, "prompts": []}}
    with pytest.raises(RunStopped, match="is not finite"):
        hf_gpt.train(recipe)
    events = read_lines(Path(recipe["output_dir"], "events.jsonl"))
    skipped = [event for event in events if event["event"] == "skipped"]
    assert len(skipped) == 3
    assert [len(event["windows"]) for event in skipped] == [4, 4, 4]
    assert events[-1]["event"] == "not finite"
    # Their batches were consumed and their weights left alone: each skipped step has the weights of the one before.
    steps = [event["step"] for event in skipped]
    assert steps == list(range(steps[0], steps[0] + 3))
    weights = [
        (Path(recipe["output_dir"]) / "checkpoints" / checkpoint.name_of(step) / "model.safetensors").read_bytes()
        for step in (steps[0] - 1, *steps)
    ]
    assert len(set(weights)) == 1
    lines = read_lines(Path(recipe["output_dir"], "metrics.jsonl"))
    of_skipped = [line for line in lines if line["step"] in steps and "lr" in line]
    assert [line["skipped"] for line in of_skipped] == [1, 2, 3]
    assert all("train_loss" not in line for line in of_skipped)
    assert [line["tokens"] for line in of_skipped] == [step * 4 * 32 for step in steps]


def test_looking_for_bad_updates_changes_nothing_in_a_good_run(tiny, tmp_path):
    plain = hf_gpt.train(tiny)
    looking = hf_gpt.train(changed(tiny, output_dir=str(tmp_path / "looking"), train__skip_nonfinite=5))
    assert same_weights(plain.model, looking.model)
    assert timeless(plain.metrics) == timeless(looking.metrics)


@pytest.mark.parametrize("skip_nonfinite", [0, 5])
def test_a_step_that_is_not_logged_reads_nothing_back_from_the_device(tiny, monkeypatch, skip_nonfinite):
    """On a GPU each of these calls waits for it. With `skip_nonfinite` one is needed: is the gradient finite?"""
    reads = []
    for name in ("item", "tolist", "__bool__", "__int__", "__float__"):
        original = getattr(torch.Tensor, name)

        def counted(self, *args, original=original):
            reads.append(1)
            return original(self, *args)

        monkeypatch.setattr(torch.Tensor, name, counted)
    recipe = changed(tiny, train__skip_nonfinite=skip_nonfinite, train__log_every=1000, checkpoint__every=None)
    recipe["evaluation"]["every"] = 1000
    counts = {}
    for steps in (4, 12):
        reads.clear()
        hf_gpt.train(changed(recipe, train__max_steps=steps, output_dir=f"{tiny['output_dir']}-{steps}"))
        counts[steps] = len(reads)
    assert counts[12] - counts[4] == (8 if skip_nonfinite else 0)


# Disks


@contextlib.contextmanager
def mounted(folder: Path, options: str):
    """A small file system of its own, where this process may make one."""
    folder.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"a tmpfs cannot be mounted here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


def test_a_full_disk_costs_one_line_and_no_checkpoint(tiny, forks, tmp_path):
    with mounted(tmp_path / "disk", "size=3m"):
        recipe = changed(tiny, output_dir=str(tmp_path / "disk" / "run"), checkpoint={"every": 1, "keep": None})
        file = recipe_file(recipe, tmp_path / "recipe.yaml")
        code, printed = forks.run("train", file)
        assert code == 1, printed
        assert printed.splitlines()[-1].endswith("No space left on device"), printed
        assert "Traceback" not in printed
        kept = checkpoint.checkpoints(recipe["output_dir"])
        assert 1 < len(kept) < 12
        for path in kept:
            checkpoint.verify(path)
        assert not list(Path(recipe["output_dir"], "checkpoints").glob(".writing-*"))
        for path in kept[:-1]:
            shutil.rmtree(path)
        code, printed = forks.run("train", file, "--checkpoint.keep", "1")  # there is room again
        assert code == 0, printed
        ours = (Path(recipe["output_dir"]) / "checkpoints" / "step-00000012" / "model.safetensors").read_bytes()
    assert forks.run("train", file, "--output_dir", tmp_path / "whole", "--checkpoint.keep", "1")[0] == 0
    whole = tmp_path / "whole" / "checkpoints" / "step-00000012" / "model.safetensors"
    assert ours == whole.read_bytes()


def test_a_read_only_file_system_is_refused_in_one_line(tiny, forks, tmp_path):
    with mounted(tmp_path / "disk", "size=1m,ro"):
        file = recipe_file(changed(tiny, output_dir=str(tmp_path / "disk" / "run")), tmp_path / "recipe.yaml")
        code, printed = forks.run("train", file)
    assert code == 2
    assert printed.splitlines() == [
        f"hf-gpt: output_dir: {tmp_path / 'disk'} cannot be written to: Read-only file system"
    ]


def test_a_folder_without_permission_is_refused_in_one_line(tiny, request):
    """As an ordinary user, since the superuser may write anywhere."""
    open_to_all = Path(tempfile.mkdtemp())
    request.addfinalizer(lambda: shutil.rmtree(open_to_all))
    open_to_all.chmod(0o755)
    folder = open_to_all / "closed"
    folder.mkdir(mode=0o555)
    tiny["output_dir"] = str(folder / "run")
    file = recipe_file(tiny, open_to_all / "recipe.yaml")
    code = (
        "import os, sys, hf_gpt.cli, hf_gpt.run, zoneinfo\n"
        "if os.geteuid() == 0: os.setuid(65534)\n"
        f"sys.exit(hf_gpt.cli.main(['train', {str(file)!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert done.stderr.splitlines() == [f"hf-gpt: output_dir: {folder} cannot be written to: Permission denied"]


# Checkpoints that are damaged, or hostile


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> dict:
    """A run with checkpoints at 4, 8 and 12, not to be written to."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "text.txt").write_text("".join(f"Line {i}: the quick brown fox.\n" for i in range(200)))
    recipe = {
        "output_dir": str(folder / "run"),
        "model": {"context_length": 32, "emb_dim": 16, "n_layers": 1, "n_heads": 2},
        "tokenizer": {"name": "bytes"},
        "data": {"source": str(folder / "text.txt")},
        "train": {"max_steps": 12, "batch_size": 2, "device": "cpu"},
        "evaluation": {"every": 100, "tokens": 64, "prompts": []},
        "checkpoint": {"every": 4, "keep": None},
    }
    hf_gpt.train(recipe)
    return recipe


@pytest.fixture
def copied(finished, tmp_path) -> dict:
    shutil.copytree(finished["output_dir"], tmp_path / "run")
    return {**finished, "output_dir": str(tmp_path / "run")}


@pytest.mark.parametrize("harm", ["truncated", "altered", "missing"])
@pytest.mark.parametrize("name", ["model.safetensors", "training_state/optimizer.safetensors", "tokenizer.json"])
def test_a_damaged_file_is_named_and_the_newest_whole_checkpoint_gone_on_from(copied, capsys, harm, name):
    newest = checkpoint.checkpoints(copied["output_dir"])[-1]
    whole = (newest / "model.safetensors").read_bytes()
    path = newest / name
    content = bytearray(path.read_bytes())
    if harm == "truncated":
        path.write_bytes(content[:-1])
    elif harm == "altered":
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    else:
        path.unlink()
    with pytest.raises(UserError, match=rf"{name}: .*({harm}|altered)"):
        checkpoint.verify(newest)
    hf_gpt.train(copied)
    printed = capsys.readouterr().err
    assert f"{name}: " in printed
    assert "resuming after step 8" in printed
    assert (newest / "model.safetensors").read_bytes() == whole
    events = [e["event"] for e in read_lines(Path(copied["output_dir"], "events.jsonl"))]
    assert events == ["damaged checkpoint", "resumed"]


@pytest.mark.parametrize("kind", ["pickled state", "pickled weights", "code in the checkpoint"])
def test_a_hostile_checkpoint_runs_nothing(copied, tmp_path, kind, capsys):
    """Somebody who can write a manifest can write anything that it covers; none of it is executed."""
    mark = tmp_path / "executed"
    newest = checkpoint.checkpoints(copied["output_dir"])[-1]
    if kind == "pickled state":
        for name in ("optimizer.safetensors", "random.safetensors", "state.json"):
            (newest / "training_state" / name).write_bytes(pickle.dumps(Trap(mark)))
        torch.save(Trap(mark), newest / "training_state" / "optimizer.bin")
    elif kind == "pickled weights":
        (newest / "model.safetensors").unlink()
        torch.save({"weights": Trap(mark)}, newest / "pytorch_model.bin")
    else:
        for name in ("modeling_gpt.py", "configuration_gpt.py"):
            (newest / name).write_text(f"open({str(mark)!r}, 'w')\n")
    (newest / "training_state" / "manifest.json").unlink()
    write_json(newest / "training_state" / "manifest.json", checkpoint._describe(newest))
    checkpoint.verify(newest)

    with contextlib.suppress(UserError, RunStopped, OSError, ValueError, RuntimeError):
        hf_gpt.train({**copied, "train": {**copied["train"], "max_steps": 13}})
    with contextlib.suppress(UserError):
        checkpoint.load_model(copied["output_dir"])
    assert not mark.exists()
    if kind != "code in the checkpoint":
        from hf_gpt.cli import main

        recipe = recipe_file({**copied, "train": {**copied["train"], "max_steps": 13}}, tmp_path / "recipe.yaml")
        capsys.readouterr()
        assert main(["train", str(recipe)]) in (1, 2)
        assert len(capsys.readouterr().err.splitlines()[-1]) < 500
        assert not mark.exists()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("environment.json", '{"vers', "environment.json: is damaged"),
        (
            "environment.json",
            '{"run_id": "a", "versions": {}, "text": {}, "sources": {"training": 3}}',
            "sources.training is not what was written there",
        ),
        ("recipe.yaml", None, "the run has no recipe.yaml; put it back"),
        ("checkpoints/step-00000012/training_state/state.json", '{"progress": null}', "state.json: is damaged"),
    ],
)
def test_a_run_whose_files_were_damaged_says_so_in_one_line(copied, name, content, message):
    path = Path(copied["output_dir"]) / name
    path.unlink()
    if content is not None:
        path.write_text(content)
    newest = checkpoint.checkpoints(copied["output_dir"])[-1]
    (newest / checkpoint.MANIFEST).unlink()
    write_json(newest / checkpoint.MANIFEST, checkpoint._describe(newest))
    with pytest.raises(UserError, match=message):
        hf_gpt.train({**copied, "train": {**copied["train"], "max_steps": 13}})


def test_lines_cut_short_inside_a_character_are_left_out(copied):
    """A full disk or a power cut stops a write at any byte."""
    samples = Path(copied["output_dir"], "samples.jsonl")
    samples.write_bytes(samples.read_bytes() + '{"step": 12, "text": "é'.encode()[:-1])
    assert hf_gpt.train({**copied, "train": {**copied["train"], "max_steps": 13}}).metrics[-1]["step"] == 13


ADDED = {
    "model-old.safetensors": b"weights",
    "model.safetensors.index.json": b'{"weight_map": {"model.norm.weight": "model-old.safetensors"}}',
    "pytorch_model.bin": b"pickled",
    "adapter_config.json": b'{"peft_type": "LORA", "base_model_name_or_path": "gpt2", "r": 1}',
    "adapter_model.safetensors": b"weights",
    "added_tokens.json": b'{"fox": 300}',
    "chat_template.jinja": b"{{ 1 / 0 }}",
    "custom_generate/generate.py": b"raise SystemExit(9)",
}


@pytest.fixture
def added(copied) -> dict:
    """A run to whose newest checkpoint somebody has added other weights, an adapter, tokens and code."""
    newest = checkpoint.checkpoints(copied["output_dir"])[-1]
    other = {name: torch.randn_like(weight) for name, weight in load_file(newest / "model.safetensors").items()}
    for name, content in ADDED.items():
        (newest / name).parent.mkdir(exist_ok=True)
        (newest / name).write_bytes(content)
        if content == b"weights":
            save_file(other, newest / name, {"format": "pt"})
    return copied


def test_what_was_added_to_a_checkpoint_is_no_part_of_the_model(added, finished, tmp_path, capsys):
    """For evaluating and generating, a branch, a model to continue from, and a stock GPT-2."""
    newest = checkpoint.checkpoints(added["output_dir"])[-1]
    plain = checkpoint.checkpoints(finished["output_dir"])[-1]
    (ours, tokenizer), (theirs, their_tokenizer) = (checkpoint.load_model(str(path)) for path in (newest, plain))
    assert "model-old.safetensors, " in capsys.readouterr().err
    assert same_weights(ours, theirs)
    assert tokenizer.get_vocab() == their_tokenizer.get_vocab()
    assert tokenizer.chat_template is None
    continued = []
    for number, source in enumerate((newest, plain)):
        recipe = changed(finished, output_dir=str(tmp_path / f"from {number}"), train__max_steps=13)
        continued.append(hf_gpt.train(recipe, parent=f"{source.parents[1]}@12"))
        model = changed(recipe, output_dir=str(tmp_path / f"model {number}"), train__max_steps=1)
        continued.append(hf_gpt.train({**model, "model": {"from_pretrained": str(source)}, "tokenizer": {}}))
        to_gpt2(str(source), str(tmp_path / f"gpt2 {number}"))
    assert same_weights(continued[0].model, continued[2].model)
    assert same_weights(continued[1].model, continued[3].model)
    for name in ("model.safetensors", "tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "gpt2 0" / name).read_bytes() == (tmp_path / "gpt2 1" / name).read_bytes()


def test_what_was_added_to_a_checkpoint_is_not_resumed_from(added, finished, tmp_path, capsys):
    resumed = hf_gpt.train(changed(added, train__max_steps=14))
    assert "pytorch_model.bin: not in its manifest, and left out" in capsys.readouterr().err
    shutil.copytree(finished["output_dir"], tmp_path / "plain")
    plain = hf_gpt.train(changed(finished, output_dir=str(tmp_path / "plain"), train__max_steps=14))
    assert same_weights(resumed.model, plain.model)


def test_an_adapter_beside_another_model_is_not_applied_in_silence(added):
    newest = checkpoint.checkpoints(added["output_dir"])[-1]
    shutil.rmtree(newest / "training_state")  # and with it the manifest
    for name in ("model.safetensors.index.json", "added_tokens.json"):
        (newest / name).unlink()
    with pytest.raises(
        UserError, match=r"holds an adapter, adapter_config\.json, beside a model; move that elsewhere"
    ):
        checkpoint.load_model(str(newest))


# Records


@pytest.mark.parametrize(
    ("name", "kept", "says"),
    [
        ("metrics.jsonl", 5, r"9 of the 14 lines up to step 12 are missing, between steps 5 and 12;"),
        ("metrics.jsonl", 0, r"14 of the 14 lines up to step 12 are missing, between steps 0 and 12;"),
        ("samples.jsonl", 1, r"1 of the 2 lines up to step 12 are missing, of step 12;"),
    ],
)
def test_lines_from_before_a_checkpoint_that_are_gone_are_named(tiny, tmp_path, capsys, name, kept, says):
    recipe = changed(tiny, evaluation__every=100)
    hf_gpt.train(recipe)
    path = Path(tiny["output_dir"], name)
    path.write_bytes(b"".join(line + b"\n" for line in path.read_bytes().split(b"\n")[:kept]))
    capsys.readouterr()
    hf_gpt.train(changed(recipe, train__max_steps=13))
    assert len(re.findall(rf"warning: .*{name}: {says} training goes on", capsys.readouterr().err)) == 1
    events = read_lines(Path(tiny["output_dir"], "events.jsonl"))
    assert [event["event"] for event in events] == ["missing lines", "changed", "resumed"]
    assert events[0]["what"] == f"{name}: {says.rstrip(';')}"
    hf_gpt.train(changed(recipe, train__max_steps=14))  # it was said
    assert "are missing" not in capsys.readouterr().err


class Vandal(hf_gpt.Observer):
    """Another program that writes into the run's folder, and puts odd things into a checkpoint."""

    def stepped(self, training, step, metrics):
        if step == 5:
            run_dir = training.run_dir
            for name in ("metrics.jsonl", "loss.png", "checkpoints/latest"):
                (run_dir / name).unlink()
                (run_dir / name).mkdir()
            (run_dir / "recipe.yaml").write_text("[" * 10_000)
            (run_dir / "environment.json").write_text("null")
            (run_dir / "samples.jsonl").write_text('{"step": 1}\n[]\nnull')
            (run_dir / "events.jsonl").symlink_to("events.jsonl")
            (run_dir / "report.html").mkdir()
        if step == 10:
            (training.run_dir / "metrics.jsonl").rmdir()

    def saving(self, training, directory):
        os.mkfifo(directory / "pipe")
        (directory / "link").symlink_to("/etc/hostname")
        (directory / "nowhere").symlink_to("/not/there")


def test_what_happens_to_the_records_meanwhile_costs_no_checkpoint(finished, tmp_path, capsys):
    recipe = changed(finished, output_dir=str(tmp_path / "run"), train__log_every=1)
    run = hf_gpt.train(recipe, observers=[Vandal()])
    assert [checkpoint.step_of(path) for path in run.checkpoints] == [4, 8, 12]
    for saved in run.checkpoints:
        checkpoint.verify(saved)
        theirs = Path(finished["output_dir"], "checkpoints", saved.name)
        assert (saved / "model.safetensors").read_bytes() == (theirs / "model.safetensors").read_bytes()
        assert {path.name for path in saved.iterdir()} <= {path.name for path in theirs.iterdir()}
    assert "hf_gpt: begin" in (run.checkpoints[0] / "README.md").read_text()
    assert "library_name: transformers" in (run.checkpoints[1] / "README.md").read_text()  # and next to nothing else
    printed = capsys.readouterr().err
    assert "metrics.jsonl: cannot be written: Is a directory; training goes on, and its lines wait" in printed
    assert "the card of step 8 could not be made, and says next to nothing: " in printed
    assert "link, nowhere, pipe: no file, and left out of the checkpoint of step 8" in " ".join(printed.split())
    # The lines that waited are there, once the file could be written.
    assert [line["step"] for line in run.metrics if "train_loss" in line] == list(range(5, 13))
    assert list(run.summary())


def test_a_line_of_another_shape_is_left_out_and_kept_beside(copied, capsys):
    path = Path(copied["output_dir"], "metrics.jsonl")
    before = path.read_bytes()
    odd = b'[1]\nnull\nnot json\n{"step": 8, "train_loss": "low"}\n{"step": -1}\n{"no": "step"}\n\xff\n'
    path.write_bytes(odd + before)
    run = hf_gpt.train(changed(copied, train__max_steps=13))
    assert "metrics.jsonl: line 1 is damaged (and 6 more) and left out" in capsys.readouterr().err
    assert path.read_bytes().startswith(before)
    assert path.with_name("damaged-metrics.jsonl").read_bytes() == odd + before
    assert [line["step"] for line in run.metrics] == [0, 10, 12, 12, 13, 13]
    plain = read_lines(path)
    path.write_bytes(path.read_bytes()[:-1])  # a last line without its end is whole
    assert read_lines(path) == plain


@pytest.mark.parametrize("content", ["null", "[1]", "[" * 10_000, '{"versions": 1}', '{"step": NaN}', "\x00"])
def test_a_report_is_drawn_whatever_the_other_records_hold(copied, content, capsys):
    from hf_gpt.cli import main

    for name in ("samples.jsonl", "events.jsonl", "environment.json", "recipe.yaml", "checkpoints/best"):
        Path(copied["output_dir"], name).write_text(content + "\n")
    assert main(["plot", copied["output_dir"], "--output", copied["output_dir"] + "-plots"]) == 0
    printed = capsys.readouterr().err.splitlines()
    assert all(line.startswith("warning: ") for line in printed)
    assert any("checkpoints/best: names" in line for line in printed)


def test_when_no_checkpoint_is_whole_the_run_starts_over_and_its_history_says_so(copied, capsys):
    for path in checkpoint.checkpoints(copied["output_dir"]):
        (path / "config.json").unlink()
    hf_gpt.train(copied)
    assert "starting from the beginning" in capsys.readouterr().err
    events = [e["event"] for e in read_lines(Path(copied["output_dir"], "events.jsonl"))]
    assert events == ["damaged checkpoint"] * 3 + ["restarted"]


def test_pruning_keeps_the_newest_the_best_and_the_only_one(tiny, tmp_path):
    recipe = changed(tiny, checkpoint={"every": 1, "keep": 1}, evaluation__every=1)
    run = hf_gpt.train(recipe)
    validation = {line["step"]: line["validation_loss"] for line in run.metrics if line.get("validation_loss")}
    best = min((step for step in validation if step > 0), key=validation.get)
    assert {checkpoint.step_of(path) for path in run.checkpoints} == {best, 12}
    assert checkpoint.step_of(checkpoint.pointed(run.output_dir, "best")) == best
    state = json.loads((run.checkpoints[-1] / "training_state" / "state.json").read_text())
    assert state["progress"]["best_step"] == best
