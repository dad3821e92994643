"""What an observer is told, and what it cannot do to a run."""

import json

import pytest
import torch
from safetensors.torch import load_file
from test_training import timeless

import hf_gpt


class Recorder(hf_gpt.Observer):
    """Writes down what it is told."""

    def __init__(self):
        self.told = []

    def began(self, training):
        self.told.append(("began", training.progress.step))

    def stepped(self, training, step, metrics):
        self.told.append(("stepped", step))

    def evaluated(self, training, step, metrics, samples):
        self.told.append(("evaluated", step))

    def saving(self, training, directory):
        self.told.append(("saving", training.progress.step))

    def saved(self, training, checkpoint):
        self.told.append(("saved", checkpoint.name))

    def ended(self, training, error):
        self.told.append(("ended", error))


class Meddler(hf_gpt.Observer):
    """Draws from torch's random stream, changes metrics, and adds some."""

    def stepped(self, training, step, metrics):
        torch.rand(7)
        if metrics is not None:
            metrics["train_loss"] = 0.0
            metrics["of_its_own"] = step

    def evaluated(self, training, step, metrics, samples):
        torch.manual_seed(1)


class Failing(hf_gpt.Observer):
    def __init__(self, event):
        self.calls = 0
        setattr(self, event, self.fail)

    def fail(self, *_):
        self.calls += 1
        raise RuntimeError("a fault of its own")


def test_an_observer_is_told_what_a_run_does(tiny):
    recorder = Recorder()
    hf_gpt.train(tiny, observers=[recorder])
    told = [event for event, _ in recorder.told]
    assert told[0] == "began"
    assert told[-1] == "ended"
    assert [step for event, step in recorder.told if event == "stepped"] == list(range(1, 13))
    assert [step for event, step in recorder.told if event == "evaluated"] == [0, 4, 8, 12]
    assert [step for event, step in recorder.told if event == "saving"] == [4, 8, 12]
    assert [name for event, name in recorder.told if event == "saved"][-1] == "step-00000012"
    assert recorder.told[-1] == ("ended", None)


def test_an_observer_does_not_change_the_numbers(tiny):
    plain = hf_gpt.train(tiny)
    watched = hf_gpt.train({**tiny, "output_dir": tiny["output_dir"] + "-watched"}, observers=[Meddler()])
    weights, expected = (load_file(run.checkpoints[-1] / "model.safetensors") for run in (watched, plain))
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    lines = timeless(watched.metrics)
    assert [line.pop("of_its_own") for line in lines if "train_loss" in line] == list(range(1, 13))
    assert lines == timeless(plain.metrics)


@pytest.mark.parametrize("event", ["stepped", "evaluated", "saving", "saved", "noted", "needs", "ended"])
def test_an_observer_that_fails_costs_the_run_nothing(tiny, event, capsys):
    failing = Failing(event)
    run = hf_gpt.train(tiny, observers=[failing])
    assert [path.name for path in run.checkpoints][-1] == "step-00000012"
    assert failing.calls == 1
    assert f"warning: Failing.{event}() failed and is not called again: RuntimeError('a fault of its own')" in (
        capsys.readouterr().err
    )


def test_an_observer_that_cannot_begin_ends_the_run_before_its_first_step(tiny):
    with pytest.raises(RuntimeError, match="of its own"):
        hf_gpt.train(tiny, observers=[Failing("began")])


def test_a_change_is_recorded_by_field(tiny):
    hf_gpt.train(tiny)
    longer = {**tiny, "train": {**tiny["train"], "max_steps": 14}}
    run = hf_gpt.train(longer)
    events = [json.loads(line) for line in (run.output_dir / "events.jsonl").read_text().splitlines()]
    assert {"event": "changed", "step": 12, "field": "train.max_steps", "old": 12, "new": 14} in events


def test_a_metric_that_no_line_can_hold_is_left_out(tiny, capsys):
    class Careless(hf_gpt.Observer):
        def stepped(self, training, step, metrics):
            metrics["of_its_own"] = torch.ones(2)

    run = hf_gpt.train(tiny, observers=[Careless()])
    assert not any("of_its_own" in line for line in run.metrics)
    assert "of_its_own is neither" in capsys.readouterr().err


def test_observers_that_began_are_told_when_another_cannot(tiny):
    recorder = Recorder()
    with pytest.raises(RuntimeError, match="of its own"):
        hf_gpt.train(tiny, observers=[recorder, Failing("began")])
    assert [event for event, _ in recorder.told] == ["began", "ended"]
