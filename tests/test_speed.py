"""What is measured while a run goes, and the line that tells it."""

import io
import json
import math
import os
import re
import select
import struct
import sys

import pytest
import torch
from test_training import changed

import hf_gpt
from hf_gpt.training.run_log import RunLog, sparkline
from hf_gpt.training.utilization import flops_per_token, measured_peak, peak_memory_bytes


def test_the_peak_is_that_of_real_matrix_products_and_draws_nothing_at_random():
    before = torch.get_rng_state()
    peak = measured_peak(torch.device("cpu"), "no", seconds=0.1)
    assert torch.equal(torch.get_rng_state(), before)
    assert 1e8 < peak < 1e14


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


def test_a_run_that_goes_on_is_measured_by_the_same_peak(tiny, monkeypatch):
    run = hf_gpt.train(tiny)
    before = (run.output_dir / "environment.json").read_bytes()
    monkeypatch.setattr("hf_gpt.training.loop.measured_peak", lambda *_: pytest.fail("measured again"))
    hf_gpt.train(changed(tiny, train__max_steps=14))
    assert (run.output_dir / "environment.json").read_bytes() == before


def test_a_sparkline_has_the_lowest_value_lowest():
    assert sparkline([3, 2, 1]) == "█▅▁"
    assert sparkline([1, math.nan, 2]) == "▁ █"
    assert sparkline([1, 1]) == "▁▁"
    assert sparkline([]) == ""


@pytest.mark.parametrize(
    ("encoding", "shown"), [("utf-8", "loss 1.000 █▅▁  5 tokens/s"), ("cp1252", "loss 1.000  5 t")]
)
def test_the_line_in_a_log_has_one_where_it_can_be_written(tmp_path, monkeypatch, encoding, shown):
    log = io.BytesIO()
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(log, encoding=encoding, write_through=True))
    with RunLog(tmp_path, max_steps=3) as journal:
        for step in (1, 2, 3):
            journal.progress(step, 4.0 - step, 5.0)
    text = log.getvalue().decode(encoding)
    assert shown in text
    assert "\x1b" not in text
    assert "\r" not in text


def test_a_sparkline_shows_all_of_a_run(tmp_path, capsys):
    with RunLog(tmp_path, max_steps=10_000) as journal:
        for step in range(1, 10_001):
            journal.progress(step, 10_000.0 - step, 5.0)
    (last,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("step 10000/")]
    sparks = re.search("[▁▂▃▄▅▆▇█]+", last)[0]
    assert 12 <= len(sparks) <= 24
    assert (sparks[0], sparks[-1]) == ("█", "▁")
    assert list(sparks) == sorted(sparks, reverse=True)


def test_a_run_that_goes_on_shows_the_losses_from_before(tmp_path, capsys):
    lines = [{"step": step, "train_loss": 4.0 - step} for step in (1, 2, 3)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with RunLog(tmp_path, max_steps=3) as journal:
        journal.rewind(2)
        journal.progress(3, 1.0, 5.0)
    assert "█▅▁" in capsys.readouterr().err


@pytest.mark.parametrize(("columns", "bar"), [(100, True), (0, False)])
def test_a_terminal_has_a_bar_if_it_has_room_for_one(tmp_path, monkeypatch, columns, bar):
    fcntl, termios = map(pytest.importorskip, ("fcntl", "termios"))
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    with open(theirs, "w", buffering=1) as screen:
        monkeypatch.setattr(sys, "stderr", screen)
        with RunLog(tmp_path, max_steps=3) as journal:
            for step in (1, 2, 3):
                journal.progress(step, 4.0 - step, 5.0)
        shown = b""
        while select.select([ours], [], [], 0.5)[0]:  # it comes in pieces
            shown += os.read(ours, 10_000)
    os.close(ours)
    shown = shown.decode()
    assert ("training: 100%" in shown) == bar
    assert ("step 3/3  loss 1.000 █▅▁" in shown) != bar
