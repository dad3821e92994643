"""What train lines say of the hardware: model FLOPs utilisation and peak memory."""

import json

import pytest
import torch
from test_training import changed

import hf_gpt
from hf_gpt.training.utilization import flops_per_token, measured_peak, peak_memory_bytes


def test_the_peak_is_that_of_real_matrix_products_and_draws_nothing_at_random():
    before = torch.get_rng_state()
    assert measured_peak(torch.device("cpu"), "no", seconds=0.1) > 0
    assert torch.equal(torch.get_rng_state(), before)


def test_train_lines_tell_utilisation_and_memory(tiny):
    run = hf_gpt.train(tiny)
    environment = json.loads((run.output_dir / "environment.json").read_text())
    work = flops_per_token(run.model, 32)
    trained = [line for line in run.metrics if "train_loss" in line]
    for line in trained:
        assert line["mfu"] == pytest.approx(work * line["tokens_per_second"] / environment["peak_flops"])
    if peak_memory_bytes(torch.device("cpu")) is not None:
        memory = [line["peak_memory_bytes"] for line in trained]
        assert memory == sorted(memory)
        assert 50 * 2**20 < memory[-1] < 50 * 2**30


def test_a_resumed_run_is_measured_by_the_same_peak(tiny, monkeypatch):
    run = hf_gpt.train(tiny)
    before = (run.output_dir / "environment.json").read_bytes()
    monkeypatch.setattr("hf_gpt.training.utilization.measured_peak", lambda *_: pytest.fail("measured again"))
    hf_gpt.train(changed(tiny, train__max_steps=14))
    assert (run.output_dir / "environment.json").read_bytes() == before
