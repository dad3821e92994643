"""Exactness made useful: branches off a run, changes in place, and steps repeated to be audited."""

import copy
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_training import changed, timeless

import hf_gpt
from hf_gpt import checkpoint
from hf_gpt.errors import UserError
from hf_gpt.replay import replay
from hf_gpt.training.run_log import read_lines

STEPS = 12


@pytest.fixture
def run(tiny):
    return hf_gpt.train(tiny)


def weights(run_dir, step=STEPS) -> dict:
    return load_file(Path(run_dir) / "checkpoints" / checkpoint.name_of(step) / "model.safetensors")


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# Branches


def test_a_branch_under_the_same_recipe_repeats_its_parent(run, tiny, tmp_path):
    branch = hf_gpt.train(changed(tiny, output_dir=str(tmp_path / "branch")), parent=f"{run.output_dir}@8")
    assert same(weights(branch.output_dir), weights(run.output_dir))
    assert timeless(branch.metrics) == [line for line in timeless(run.metrics) if line["step"] > 8]


def test_a_branch_goes_its_own_way_and_says_where_it_comes_from(run, tiny, tmp_path):
    recipe = changed(tiny, output_dir=str(tmp_path / "branch"), optimizer__lr=1e-4, optimizer__weight_decay=0.5)
    recipe["train"]["max_steps"] = 16
    recipe["schedule"] = {"name": "constant"}
    branch = hf_gpt.train(recipe, parent=f"{run.output_dir}@8")
    train = [line for line in branch.metrics if "train_loss" in line]
    assert [line["step"] for line in train] == list(range(9, 17))
    assert {line["lr"] for line in train} == {1e-4}
    assert train[0]["tokens"] == 9 * 4 * 32
    assert train[0]["train_loss"] == next(x for x in run.metrics if x["step"] == 9 and "train_loss" in x)["train_loss"]
    assert not same(weights(branch.output_dir), weights(run.output_dir))
    parent = json.loads((branch.output_dir / "environment.json").read_text())["parent"]
    assert (parent["run"], parent["step"]) == (str(run.output_dir), 8)

    # The same command resumes the branch, and another parent is refused.
    longer = changed(recipe, train__max_steps=18)
    again = hf_gpt.train(longer, parent=f"{run.output_dir}@8")
    assert again.metrics[-1]["step"] == 18
    for path in (run.output_dir / "checkpoints").glob("step-*"):
        shutil.rmtree(path)  # the parent continues, and keeps other steps
    hf_gpt.train(longer, parent=f"{run.output_dir}@8")
    with pytest.raises(UserError, match=r"began from .*@8; give another output_dir"):
        hf_gpt.train(longer, parent=f"{run.output_dir}@12")


def test_a_branch_that_died_before_its_first_checkpoint_starts_from_its_parent_again(run, tiny, tmp_path):
    recipe = changed(tiny, output_dir=str(tmp_path / "branch"), checkpoint__every=None)
    hf_gpt.train(recipe, parent=f"{run.output_dir}@8")
    whole = weights(tmp_path / "branch")
    for path in checkpoint.checkpoints(tmp_path / "branch"):
        path.rename(path.with_name("lost"))
    hf_gpt.train(recipe)  # the parent is known from environment.json
    assert same(weights(tmp_path / "branch"), whole)


def test_a_branch_with_another_tokenizer_is_refused(run, tiny, tmp_path):
    recipe = changed(tiny, output_dir=str(tmp_path / "branch"), tokenizer={"train": {"vocab_size": 257}})
    with pytest.raises(UserError, match=r"^parent .*: its tokenizer is not the recipe's; use its own"):
        hf_gpt.train(recipe, parent=f"{run.output_dir}@8")


def test_what_cannot_be_branched_off_is_refused_in_one_line(run, tiny, tmp_path):
    recipe = changed(tiny, output_dir=str(tmp_path / "branch"))
    with pytest.raises(UserError, match=r"keeps no training state of step 3; it has that of: 8, 12"):
        hf_gpt.train(recipe, parent=f"{run.output_dir}@3")
    with pytest.raises(UserError, match="no run with a checkpoint there; name one as RUN@STEP"):
        hf_gpt.train(recipe, parent=str(tmp_path / "nowhere@3"))
    with pytest.raises(UserError, match=r"model.hidden_size is 32 there and 16 in the recipe"):
        hf_gpt.train(changed(recipe, model__emb_dim=16), parent=f"{run.output_dir}@8")
    with pytest.raises(UserError, match=r"train.max_steps: 8, but .* is at step 8"):
        hf_gpt.train(changed(recipe, train__max_steps=8), parent=f"{run.output_dir}@8")
    broken = checkpoint.checkpoints(run.output_dir)[0] / "model.safetensors"
    broken.write_bytes(broken.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"model.safetensors: truncated or altered"):
        hf_gpt.train(recipe, parent=f"{run.output_dir}@8")
    assert not (tmp_path / "branch" / "checkpoints").exists() or not checkpoint.checkpoints(tmp_path / "branch")


# Changes in place


def test_what_changes_in_place_is_written_into_the_runs_history(run, tiny):
    longer = changed(tiny, train__max_steps=14, evaluation__every=2, checkpoint__keep=1)
    hf_gpt.train(longer)
    events = read_lines(run.output_dir / "events.jsonl")
    assert {(e["field"], e["old"], e["new"]) for e in events if e["event"] == "changed"} == {
        ("train.max_steps", 12, 14),
        ("evaluation.every", 4, 2),
        ("checkpoint.keep", 2, 1),
    }
    assert [e["step"] for e in events if e["event"] == "resumed"] == [12]


# The global batch


def test_the_global_batch_may_be_given_and_cut_up_anew(tiny, tmp_path):
    recipe = changed(tiny, train__gradient_accumulation_steps=None, train__global_batch_size=4, model__drop_rate=0.0)
    whole = hf_gpt.train(recipe)
    assert whole.metrics[-1]["tokens"] == STEPS * 4 * 32
    cut_up = changed(recipe, train__batch_size=1)
    shutil.rmtree(whole.checkpoints[-1])
    theirs = [line["train_loss"] for line in whole.metrics if "train_loss" in line]
    resumed = hf_gpt.train(cut_up)  # resumes after step 8, for the windows of a step are the same
    assert resumed.metrics[-1]["step"] == STEPS
    ours = [line["train_loss"] for line in resumed.metrics if "train_loss" in line]
    assert ours[:8] == theirs[:8]
    assert ours[8:] == pytest.approx(theirs[8:], rel=1e-4)
    with pytest.raises(UserError, match=r"train.global_batch_size 4 -> 8"):
        hf_gpt.train(changed(cut_up, train__global_batch_size=8))


@pytest.mark.parametrize(
    ("batch_size", "message"),
    [
        (3, r"4 windows are not 3 at once \(train.batch_size\) x 1 processes, any number of times"),
        (8, r"4 windows are not 8 at once"),
    ],
)
def test_a_global_batch_that_does_not_divide_is_refused_with_the_numbers(tiny, batch_size, message):
    tiny["train"] |= {"global_batch_size": 4, "batch_size": batch_size, "gradient_accumulation_steps": None}
    with pytest.raises(UserError, match=f"train.global_batch_size: {message}"):
        hf_gpt.train(tiny)


# Replay


def test_replaying_a_run_says_that_losses_and_weights_match(run):
    files = {path: path.stat().st_mtime_ns for path in run.output_dir.rglob("*") if path.is_file()}
    steps = replay(run.output_dir)
    assert sorted(steps) == [9, 10, 11, 12]
    assert {one.what for one in steps[12]} >= {"train_loss", "grad_norm", "lr", "validation_loss", "weights"}
    assert all(one.matches for compared in steps.values() for one in compared)
    from_the_beginning = replay(run.output_dir, 0, 9)
    assert sorted(from_the_beginning) == list(range(1, 10))
    assert "weights" in {one.what for one in from_the_beginning[8]}
    assert all(one.matches for compared in from_the_beginning.values() for one in compared)
    assert {path: path.stat().st_mtime_ns for path in run.output_dir.rglob("*") if path.is_file()} == files


def test_a_branch_is_replayed_from_where_it_began(run, tiny, tmp_path):
    recipe = changed(tiny, output_dir=str(tmp_path / "branch"), optimizer__lr=1e-4, checkpoint__every=None)
    branch = hf_gpt.train(recipe, parent=f"{run.output_dir}@8")
    steps = replay(branch.output_dir)
    assert sorted(steps) == [9, 10, 11, 12]
    assert all(one.matches for compared in steps.values() for one in compared)


def lose_checkpoints(run, *steps: int) -> None:
    for step in steps:
        (run.output_dir / "checkpoints" / f"step-{step:08d}" / "model.safetensors").write_bytes(b"damaged")


def test_steps_are_replayed_at_the_length_that_the_run_had_then(run, tiny):
    """The learning rate of each step depends on it: after a change, and after a fall back to before that change."""
    longer = changed(tiny, train__max_steps=14, checkpoint__keep=3)
    hf_gpt.train(longer)
    steps = replay(run.output_dir, 8)
    assert sorted(steps) == list(range(9, 15))
    assert all(one.matches for compared in steps.values() for one in compared)
    lose_checkpoints(run, 12, 14)
    hf_gpt.train(longer)  # from step 8, which it once reached as a run of 12
    lose_checkpoints(run, 14)
    again = hf_gpt.train(changed(tiny, train__max_steps=None, train__epochs=0.2, checkpoint__keep=3))
    steps = replay(run.output_dir, 0)
    assert sorted(steps) == list(range(1, again.metrics[-1]["step"] + 1))
    assert all(one.matches for compared in steps.values() for one in compared)


def test_a_replay_does_not_mix_ways_of_cutting_up_a_global_batch(run, tiny):
    hf_gpt.train(changed(tiny, train__max_steps=14, train__batch_size=4, train__gradient_accumulation_steps=1))
    with pytest.raises(UserError, match=r"from step 12 with another train.batch_size .*up to 12.* from 12"):
        replay(run.output_dir, 0)
    assert all(one.matches for compared in replay(run.output_dir, 12).values() for one in compared)


def test_a_branch_goes_on_with_the_same_optimizer(run, tiny, tmp_path):
    with pytest.raises(UserError, match=r"holds the state of adamw and the recipe's optimizer is muon; to start from"):
        hf_gpt.train(
            changed(tiny, output_dir=str(tmp_path / "branch"), optimizer__name="muon"), parent=f"{run.output_dir}@8"
        )


def test_a_replay_on_another_number_of_processes_is_refused_and_not_called_different(run):
    environment = json.loads((run.output_dir / "environment.json").read_text())
    (run.output_dir / "environment.json").write_text(json.dumps({**environment, "processes": 2}))
    with pytest.raises(UserError, match=r"were trained on 2 processes, and repeat exactly on as many; this is 1"):
        replay(run.output_dir, 8)


def test_replaying_a_run_that_was_tampered_with_names_what_differs(run):
    lines = read_lines(run.output_dir / "metrics.jsonl")
    next(x for x in lines if x["step"] == 10)["train_loss"] += 1e-9
    (run.output_dir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    last = run.checkpoints[-1]
    changed_weights = copy.deepcopy(load_file(last / "model.safetensors"))
    changed_weights["model.norm.bias"][0] += 1e-7
    save_file(changed_weights, last / "model.safetensors", metadata={"format": "pt"})
    different = {(one.step, one.what) for found in replay(run.output_dir).values() for one in found if not one.matches}
    assert different == {(10, "train_loss"), (12, "weights")}


def test_the_command_line_branches_and_replays(run, tiny, tmp_path, capsys):
    from forking import recipe_file

    from hf_gpt.cli import main

    file = recipe_file(changed(tiny, output_dir=str(tmp_path / "branch")), tmp_path / "recipe.yaml")
    assert main(["train", str(file), "--from", f"{run.output_dir}@8"]) == 0
    assert "branching off after step 8" in capsys.readouterr().err
    assert main(["replay", str(run.output_dir), "--from", "8", "--to", "10"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "2 steps repeated; 2 of the 2 recorded ones match"
    assert main(["replay", str(run.output_dir), "--from", "3"]) == 2
    assert "keeps no training state of step 3" in capsys.readouterr().err


def test_a_replay_compares_no_losses_on_another_text(run, tiny):
    hf_gpt.train(changed(tiny, train__max_steps=14, evaluation__tokens=64, checkpoint__keep=None))
    steps = replay(run.output_dir, 8, 14)
    assert all(one.matches for compared in steps.values() for one in compared)
    assert "validation_loss" not in {one.what for one in steps[12]}
    assert "validation_loss" in {one.what for one in steps[14]}


def test_a_replay_says_what_is_different_here(run):
    path = run.output_dir / "environment.json"
    environment = json.loads(path.read_text())
    environment["versions"]["torch"] = "2.0"
    path.write_text(json.dumps(environment))
    warnings: list[str] = []
    replay(run.output_dir, 8, warn=warnings.append)
    assert "torch was 2.0" in warnings[0]
