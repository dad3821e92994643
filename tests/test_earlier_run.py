"""A run that an earlier version began is resumed, repeated and drawn (`fixtures/earlier_run`)."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file

import hf_gpt
from hf_gpt.replay import replay
from hf_gpt.report.page import write_report
from hf_gpt.training.run_log import read_events, read_metrics

EARLIER = Path(__file__).parent / "fixtures" / "earlier_run"
CLOSE = 1e-4  # the processor at hand may round otherwise than the one that trained it


@pytest.fixture
def run_dir(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("HF_GPT_CACHE", str(tmp_path / "cache"))
    shutil.copytree(EARLIER, tmp_path / "earlier_run")
    monkeypatch.chdir(tmp_path / "earlier_run")
    return Path("run")


def test_it_resumes_to_the_same_weights(run_dir):
    expected = load_file(EARLIER / "run" / "checkpoints" / "step-00000008" / "model.safetensors")
    shutil.rmtree(run_dir / "checkpoints" / "step-00000008")
    run = hf_gpt.train("run/recipe.yaml")
    found = load_file(run.checkpoints[-1] / "model.safetensors")
    assert found.keys() == expected.keys()
    for name, weight in expected.items():
        assert (found[name] - weight).abs().max() < CLOSE, name
    earlier = {line["step"]: line for line in read_metrics(EARLIER / "run") if "train_loss" in line}
    for line in run.metrics:
        if "train_loss" in line:
            assert line["lr"] == earlier[line["step"]]["lr"]
            assert line["train_loss"] == pytest.approx(earlier[line["step"]]["train_loss"], abs=CLOSE)


def test_its_windows_stay_as_long_as_they_were(run_dir):
    """Its recipe does not say how long: they were as long as the model's positions."""
    shutil.rmtree(run_dir / "checkpoints" / "step-00000008")
    with pytest.raises(hf_gpt.UserError, match=r"holds a different run \(data.context_length 16 -> 8\)"):
        hf_gpt.train(hf_gpt.Recipe.from_yaml("run/recipe.yaml", ["--data.context_length", "8"]))


def test_its_steps_are_repeated_under_the_recipe_that_each_had(run_dir):
    steps = replay(run_dir, 4, 8)
    assert [*steps] == [5, 6, 7, 8]
    for compared in steps.values():
        values = {one.what: (one.published, one.repeated) for one in compared}
        assert values["lr"][0] == values["lr"][1]  # until step 6 the run was to have 6 steps
        published, repeated = map(float, values["train_loss"])
        assert repeated == pytest.approx(published, abs=CLOSE)


def test_its_changes_are_read_as_those_of_today(run_dir):
    changed = next(event for event in read_events(run_dir) if event["event"] == "changed")
    assert (changed["field"], changed["old"], changed["new"]) == ("train.max_steps", 6, 8)


def test_its_report_is_drawn(run_dir):
    page = write_report(run_dir).read_text()
    for line in read_metrics(run_dir):
        if "validation_loss" in line:
            assert f"{line['validation_loss']:.3f}"[:4] in page
    assert json.loads((run_dir / "environment.json").read_text())["versions"]["torch"] in page


def test_what_its_recipe_could_say_then_and_cannot_now_is_to_be_changed_there(run_dir):
    path = run_dir / "recipe.yaml"
    path.write_text(path.read_text().replace("temperature: null", "temperature: 1.0e-05"))
    mine = hf_gpt.Recipe.from_dict({"output_dir": "run", "data": {"source": "corpus.txt"}})
    with pytest.raises(hf_gpt.UserError, match=r"^run/recipe.yaml: evaluation.temperature: .*; change it there, and"):
        hf_gpt.train(mine)


def test_its_text_may_lie_elsewhere_but_be_no_other(run_dir):
    shutil.rmtree(run_dir / "checkpoints" / "step-00000008")
    moved = Path("books/moved.txt")
    moved.parent.mkdir()
    Path("corpus.txt").rename(moved)
    recipe = hf_gpt.Recipe.from_yaml("run/recipe.yaml", ["--data.source", str(moved)])
    moved.write_text(moved.read_text().replace("e", "a"))
    with pytest.raises(hf_gpt.UserError, match="began with another text"):
        hf_gpt.train(recipe)
    moved.write_text((EARLIER / "corpus.txt").read_text())
    hf_gpt.train(recipe)
    (event,) = (event for event in read_events(run_dir) if event.get("field") == "data.source")
    assert (event["event"], event["old"], event["new"]) == ("changed", "corpus.txt", "books/moved.txt")
    assert hf_gpt.Recipe.from_yaml("run/recipe.yaml").data.source == "books/moved.txt"
    environment = json.loads((run_dir / "environment.json").read_text())
    # An earlier version read the same file otherwise.
    environment["sources"]["training"]["characters"] += 9
    (run_dir / "environment.json").write_text(json.dumps(environment))
    with pytest.raises(hf_gpt.UserError, match="began with another text"):
        hf_gpt.train("run/recipe.yaml")
    shutil.copy(moved, "corpus.txt")
    (run_dir / "environment.json").unlink()  # so that nothing says which text it was
    with pytest.raises(hf_gpt.UserError, match=r"data\.source books/moved\.txt -> corpus\.txt"):
        hf_gpt.train(hf_gpt.Recipe.from_yaml("run/recipe.yaml", ["--data.source", "corpus.txt"]))
