"""Milestones: checkpoints that stay for ever, at steps, tokens or words, and are really of the step they name."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import hf_gpt
from hf_gpt import checkpoint
from hf_gpt.errors import UserError
from hf_gpt.recipe import MilestonesRecipe, Recipe
from hf_gpt.training.loop import run as run_loop
from hf_gpt.training.milestones import schedule
from hf_gpt.training.observers import Observer
from hf_gpt.training.seen import Begun
from hf_gpt.training.setup import prepare


def with_milestones(tiny: dict, *, keep: int = 2, every: int = 4, **milestones) -> dict:
    return {**tiny, "checkpoint": {"every": every, "keep": keep, "milestones": milestones}}


def steps(paths) -> list[int]:
    return [checkpoint.step_of(path) for path in paths]


def events(run_dir, kind: str) -> list[dict]:
    lines = map(json.loads, (run_dir / "events.jsonl").read_text().splitlines())
    return [line for line in lines if line["event"] == kind]


class WeightsOf(Observer):
    """Keeps the weights after each step."""

    def __init__(self):
        self.after = {}

    def began(self, training):
        self.after[training.progress.step] = self.weights(training)

    def stepped(self, training, step, metrics):
        self.after[step] = self.weights(training)

    @staticmethod
    def weights(training):
        return {name: weight.clone() for name, weight in training.model.state_dict().items()}


def test_a_ladder_holds_the_weights_of_its_steps_and_nothing_that_only_training_needs(tiny, capsys):
    watch = WeightsOf()
    recipe = with_milestones(tiny, steps=[7], powers_of_two_until=8, every_steps=6, tokens=[1000], words="120")
    run = hf_gpt.train(recipe, observers=[watch])
    words = {line["step"]: line["words"] for line in run.metrics}
    assert words[0] == 0
    of_words = min(step for step in words if words[step] >= 120)
    expected = {7, 0, 1, 2, 4, 8, 6, 12, -(-1000 // 128), of_words}  # 4 windows of 32 tokens each step
    assert set(steps(run.milestones)) == expected
    for path in run.milestones:
        step = checkpoint.step_of(path)
        model = AutoModelForCausalLM.from_pretrained(path)
        assert all(torch.equal(weight, watch.after[step][name]) for name, weight in model.state_dict().items())
        AutoTokenizer.from_pretrained(path)
        checkpoint.verify(path)
        reached = {"step": step, "tokens": 128 * step, "words": words[step]}
        asked = {"tokens": [1000] if step == 8 else [], "words": [120] if step == of_words else []}
        assert json.loads((path / "milestone.json").read_text()) == {**reached, "asked": asked}
        has_state = {file.name for file in (path / "training_state").iterdir()} > {"manifest.json"}
        best = checkpoint.pointed(run.output_dir, "best")
        assert has_state == (step in (8, 12) or path == best)
    assert steps(run.checkpoints)[-2:] == [8, 12]
    assert checkpoint.pointed(run.output_dir, "latest").name == "step-00000012"
    printed = capsys.readouterr().err
    assert f"milestones {len(expected)} checkpoints that stay, at steps 0 to 12: about" in printed
    assert "could not be made" not in printed


def test_a_run_with_milestones_has_the_numbers_of_one_without(tiny, tmp_path):
    runs = [tiny, with_milestones({**tiny, "output_dir": str(tmp_path / "other")}, every_steps=1)]
    plain, ladder = (hf_gpt.train(recipe) for recipe in runs)
    clock = ("seconds", "tokens_per_second", "mfu", "peak_memory_bytes")
    lines = [[{k: v for k, v in line.items() if k not in clock} for line in run.metrics] for run in (plain, ladder)]
    assert lines[0] == lines[1]
    weights = [load_file(run.checkpoints[-1] / "model.safetensors") for run in (plain, ladder)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.parametrize("seen", ["tokens", "words"])
def test_a_run_ends_at_the_first_step_past_so_many(tiny, seen):
    train = {key: value for key, value in tiny["train"].items() if key != "max_steps"}
    run = hf_gpt.train({**tiny, "train": {**train, f"max_{seen}": 200}})
    *_, before, last = [line for line in run.metrics if "train_loss" in line]
    assert before[seen] < 200 <= last[seen]
    assert "steps (" not in (run.checkpoints[-1] / "README.md").read_text()  # it is finished


def test_of_the_lengths_of_a_run_one_may_be_given(tiny):
    with pytest.raises(UserError, match=r"train: give 'epochs' or 'max_words', not both"):
        Recipe.from_dict({"train": {"epochs": 1, "max_words": "1k"}})


@pytest.mark.parametrize(
    ("milestones", "message"),
    [
        ({"steps": [3, 13]}, r"checkpoint\.milestones\.steps: step 13, and the run ends at step 12"),
        ({"every_steps": 20}, r"checkpoint\.milestones\.every_steps: step 20, and the run ends at step 12"),
        ({"powers_of_two_until": 40}, r"powers_of_two_until: step 16, and the run ends at step 12"),
        ({"tokens": [100, 1537]}, r"milestones\.tokens: 1,537 is not reached: the run ends at 1,536 tokens, step 12"),
        ({"words": ["1M"]}, r"milestones\.words: 1,000,000 is not reached: the run ends at \d+ words, step 12"),
    ],
)
def test_what_is_not_reached_is_refused_before_the_first_step(tiny, milestones, message, tmp_path):
    with pytest.raises(UserError, match=message):
        hf_gpt.train(with_milestones(tiny, **milestones))
    assert not list((tmp_path / "run").rglob("step-*"))


def test_more_checkpoints_than_anyone_can_want_are_refused():
    with pytest.raises(UserError, match=r"every_steps: 1, and 1,000,000 steps would leave 1,000,000 checkpoints"):
        schedule(MilestonesRecipe(every_steps=1), None, 1_000_000, Begun())


def test_training_state_stays_if_asked_for(tiny):
    run = hf_gpt.train(with_milestones(tiny, every=12, steps=[0, 3, 5], training_state=True))
    assert steps(run.checkpoints) == [0, 3, 5, 12]
    branch = hf_gpt.train({**tiny, "output_dir": tiny["output_dir"] + "-branch"}, parent=f"{run.output_dir}@3")
    assert branch.metrics[-1]["validation_loss"] == run.metrics[-1]["validation_loss"]


def test_only_what_has_a_state_is_resumed_or_branched_from(tiny):
    recipe = with_milestones(tiny, every=4, steps=[6])
    run_loop(prepare(Recipe.from_dict(recipe)), until=6)
    run_dir = prepare(Recipe.from_dict(recipe)).run_dir
    assert checkpoint.pointed(run_dir, "latest").name == "step-00000004"
    with pytest.raises(UserError, match=r"keeps no training state of step 6; it has that of: 4"):
        hf_gpt.train({**tiny, "output_dir": tiny["output_dir"] + "-branch"}, parent=f"{run_dir}@6")
    before = (run_dir / "checkpoints/step-00000006/milestone.json").stat()
    run = hf_gpt.train(recipe)  # from step 4
    assert [event["checkpoint"] for event in events(run_dir, "resumed")] == ["step-00000004"]
    after = (run_dir / "checkpoints/step-00000006/milestone.json").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)  # equal weights: left alone
    assert not events(run_dir, "replaced")
    assert steps(run.milestones) == [6]


def test_a_milestone_of_a_dropped_trajectory_is_replaced_with_a_line(tiny, capsys):
    recipe = with_milestones(tiny, steps=[6])
    job = prepare(Recipe.from_dict(recipe))
    run_loop(job, until=7)
    dropped = checkpoint.hashes_of_weights(job.run_dir / "checkpoints/step-00000006")
    watch = WeightsOf()
    longer = {**recipe, "train": {**tiny["train"], "max_steps": 20}}  # with other learning rates from step 5 on
    run = hf_gpt.train(longer, observers=[watch])
    assert steps(run.milestones) == [6]
    assert checkpoint.hashes_of_weights(run.milestones[0]) != dropped
    kept = load_file(run.milestones[0] / "model.safetensors")
    assert all(torch.equal(weight, watch.after[6][name]) for name, weight in kept.items())
    assert [event["milestone"] for event in events(run.output_dir, "replaced")] == ["step-00000006"]
    assert "step-00000006: replaced: its weights were those of" in capsys.readouterr().err
    assert not list(run.output_dir.rglob("damaged-*"))


def test_a_milestone_that_the_resumed_run_will_not_save_is_removed(tiny, capsys):
    job = prepare(Recipe.from_dict(with_milestones(tiny, steps=[3, 6])))
    run_loop(job, until=7)
    run = hf_gpt.train(with_milestones(tiny, steps=[3, 9]))
    assert steps(run.milestones) == [3, 9]
    assert "step-00000006: removed: the run went back to step 4" in capsys.readouterr().err


def test_a_milestone_is_added_ahead_of_the_run_only(tiny):
    run_loop(prepare(Recipe.from_dict(with_milestones(tiny, steps=[2]))), until=5)
    with pytest.raises(UserError, match=r"milestones: step 3 is a new one, and the run in .* is at step 4"):
        hf_gpt.train(with_milestones(tiny, steps=[2, 3]))
    with pytest.raises(UserError, match=r"milestones: step 2 for 250 is a new one, and the run in .* is at step 4"):
        hf_gpt.train(with_milestones(tiny, steps=[2], tokens=[250]))
    assert steps(hf_gpt.train(with_milestones(tiny, steps=[2, 6])).milestones) == [2, 6]


def test_a_milestone_ahead_learns_what_else_it_is_asked_for(tiny):
    job = prepare(Recipe.from_dict(with_milestones(tiny, steps=[7])))
    run_loop(job, until=7)
    hashes = checkpoint.hashes_of_weights(job.run_dir / "checkpoints/step-00000007")
    run = hf_gpt.train(with_milestones(tiny, steps=[7], tokens=[800]))  # from step 4, to the same weights
    assert [checkpoint.milestone(path)["asked"]["tokens"] for path in run.milestones] == [[800]]
    assert checkpoint.hashes_of_weights(run.milestones[0]) == hashes
    assert not events(run.output_dir, "replaced")


def test_a_branch_has_the_milestones_behind_the_step_that_it_begins_with(tiny):
    parent = hf_gpt.train(with_milestones(tiny, steps=[2, 6, 10]))
    recipe = {**with_milestones(tiny, steps=[2, 6, 10]), "output_dir": tiny["output_dir"] + "-branch"}
    job = prepare(Recipe.from_dict(recipe), f"{parent.output_dir}@8")
    run_loop(job, until=11)
    branch = hf_gpt.train(recipe)
    assert steps(branch.milestones) == [10]
    assert checkpoint.hashes_of_weights(branch.milestones[0]) == checkpoint.hashes_of_weights(parent.milestones[2])


def test_a_branch_goes_on_with_the_counts_of_its_parent(tiny, tmp_path):
    """Its own text has far more words in a step, and its steps have twice as many tokens."""
    (tmp_path / "other.txt").write_text("".join(f"a b c d {i} e f g\n" for i in range(600)))
    parent = hf_gpt.train(tiny)
    recipe = {
        **with_milestones(tiny, every=2, tokens=["1k", 1200, 1500], words=[100, 300, 400]),
        "output_dir": tiny["output_dir"] + "-branch",
        "data": {"source": str(tmp_path / "other.txt")},
        "train": {"max_tokens": 1500, "global_batch_size": 8, "batch_size": 2, "log_every": 1, "device": "cpu"},
    }
    hf_gpt.train(recipe, parent=f"{parent.output_dir}@8")
    shutil.rmtree(parent.output_dir)
    recipe["train"]["max_tokens"] = 1900
    branch = hf_gpt.train(recipe)
    lines = [line for line in branch.metrics if "train_loss" in line]
    asked = {"tokens": [1200, 1500, 1900], "words": [300, 400]}
    first = {seen: {n: min(at["step"] for at in lines if at[seen] >= n) for n in asked[seen]} for seen in asked}
    assert lines[-1]["step"] == first["tokens"].pop(1900)
    reached = [checkpoint.milestone(path) for path in branch.milestones]
    assert {seen: {n: one["step"] for one in reached for n in one["asked"][seen]} for seen in asked} == first
    counted = {line["step"]: (line["tokens"], line["words"]) for line in lines}
    assert [(one["tokens"], one["words"]) for one in reached] == [counted[one["step"]] for one in reached]


def test_losing_its_state_is_one_atomic_step(tiny, monkeypatch):
    """What a crash leaves between the new manifest and the removal is no part of the checkpoint, and goes later."""
    monkeypatch.setattr(checkpoint, "_remove_state", lambda path: None)
    run = hf_gpt.train(with_milestones(tiny, keep=1, steps=[4, 8]))
    monkeypatch.undo()
    (left,) = [path for path in run.milestones if path != checkpoint.pointed(run.output_dir, "best")][-1:]
    assert (left / "training_state/optimizer.safetensors").is_file()
    checkpoint.verify(left)
    assert left not in run.checkpoints
    checkpoint.prune(run.output_dir, 1)
    assert [path.name for path in (left / "training_state").iterdir()] == ["manifest.json"]


def test_a_run_of_before_words_were_counted_goes_on_with_the_right_number(tiny):
    recipe = Recipe.from_dict(tiny)
    job = prepare(recipe)
    run_loop(job, until=5)
    (state,) = job.run_dir.glob("checkpoints/*4/training_state/state.json")
    content = json.loads(state.read_text())
    words = content["progress"].pop("words")
    state.write_text(json.dumps(content))
    manifest = state.parent / "manifest.json"
    files = json.loads(manifest.read_text())
    described = checkpoint._describe(state.parents[1])["files"]["training_state/state.json"]
    manifest.write_text(json.dumps({"files": {**files["files"], "training_state/state.json": described}}))
    run = hf_gpt.train(tiny)
    assert words > 0
    whole = hf_gpt.train({**tiny, "output_dir": tiny["output_dir"] + "-2"})
    assert run.metrics[-1]["words"] == whole.metrics[-1]["words"]
