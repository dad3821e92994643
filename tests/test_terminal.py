"""What a person sees of a run while it trains."""

import io
import itertools
import json
import math
import os
import re
import select
import struct
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from hf_gpt.training.terminal import Terminal, sparkline


def show(run_dir: Path, max_steps: int, resumed_at: int = 0) -> None:
    """The steps of a run whose loss falls by 1 a step, to a terminal that knows of nothing else."""
    resumed_from = run_dir if resumed_at else None
    training = SimpleNamespace(
        run_dir=run_dir, max_steps=max_steps, resumed_from=resumed_from, progress=SimpleNamespace(step=resumed_at)
    )
    terminal = Terminal()
    terminal.began(training)
    for step in range(resumed_at + 1, max_steps + 1):
        terminal.stepped(training, step, {"train_loss": 1.0 + max_steps - step, "tokens_per_second": 5.0})
    terminal.ended(training, None)


def test_an_evaluation_says_where_it_is(capsys):
    line = {"step": 480, "tokens": 983_040, "epoch": 1.706485, "seconds": 95.0}
    losses = {"eval_train_loss": 1.717, "validation_loss": 3.707, "perplexity": 40.73}
    Terminal().evaluated(None, 480, {**line, **losses}, [])
    shown = "step 480, epoch 1.71, 983k tokens: eval train 1.717  validation 3.707  perplexity 40.7\n"
    assert capsys.readouterr().err == shown


def test_texts_with_a_name_stand_in_its_line_as_far_as_they_fit(capsys):
    line = {"step": 480, "tokens": 983_040, "epoch": 1.706485, "seconds": 95.0, "perplexity": 40.73}
    losses = {"eval_train_loss": 1.717, "validation/my_code_loss": 3.5, "validation/b_loss": 2.25}
    Terminal().evaluated(None, 480, {**line, **losses, "validation/b_bits_per_byte": 1.0}, [])
    shown = "step 480, epoch 1.71, 983k tokens: eval train 1.717  my_code 3.500  b 2.250  perplexity 40.7\n"
    assert capsys.readouterr().err == shown
    Terminal().evaluated(None, 480, {**line, **losses, **{f"validation/text-{i}_loss": 1 + i for i in range(20)}}, [])
    shown = capsys.readouterr().err
    assert len(shown) < 170
    assert "b 2.250  text-0 1.000  text-1 2.000  text-2 3.000  perplexity 40.7  (and 17 more texts)\n" in shown


def test_the_end_says_how_long_it_took(tmp_path, capsys, monkeypatch):
    def show_in_200_seconds(*steps):
        clock = itertools.chain([0], itertools.repeat(200))
        monkeypatch.setattr("time.monotonic", lambda: next(clock))
        show(tmp_path, *steps)

    show_in_200_seconds(1)
    assert capsys.readouterr().err.splitlines()[-1] == "done       in 3 min 20 s"
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "train_loss": 2.0, "seconds": 3600.0}\n')
    show_in_200_seconds(2, 1)
    assert capsys.readouterr().err.splitlines()[-1] == "done       in 3 min 20 s; 1 h 3 min in all"
    show_in_200_seconds(2, 2)
    assert capsys.readouterr().err == ""  # nothing was trained


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
    show(tmp_path, 3)
    text = log.getvalue().decode(encoding)
    assert shown in text
    assert "\x1b" not in text
    assert "\r" not in text


def test_a_sparkline_shows_all_of_a_run(tmp_path, capsys):
    show(tmp_path, 10_000)
    (last,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("step 10000/")]
    sparks = re.search("[▁▂▃▄▅▆▇█]+", last)[0]
    assert 12 <= len(sparks) <= 24
    assert (sparks[0], sparks[-1]) == ("█", "▁")
    assert list(sparks) == sorted(sparks, reverse=True)


def test_a_resumed_run_shows_the_losses_from_before(tmp_path, capsys):
    lines = [{"step": step, "train_loss": 4.0 - step} for step in (1, 2, 3)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    show(tmp_path, 3, resumed_at=2)
    assert "█▅▁" in capsys.readouterr().err


@pytest.mark.parametrize(("columns", "bar"), [(100, True), (0, False)])
def test_a_terminal_has_a_bar_if_it_has_room_for_one(tmp_path, monkeypatch, columns, bar):
    fcntl, termios = map(pytest.importorskip, ("fcntl", "termios"))
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    with open(theirs, "w", buffering=1) as screen:
        monkeypatch.setattr(sys, "stderr", screen)
        show(tmp_path, 3)
        shown = b""
        while select.select([ours], [], [], 0.5)[0]:  # it comes in pieces
            shown += os.read(ours, 10_000)
    os.close(ours)
    shown = shown.decode()
    assert "Warning" not in shown
    assert shown.strip().startswith("training:   0%" if bar else "step 1/3")
    assert ("training: 100%" in shown) == bar
    assert ("step 3/3  loss 1.000 █▅▁" in shown) != bar
