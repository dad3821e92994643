"""`scripts/gpu_check.sh`: without a GPU it says so; a rehearsal on a CPU goes through all of it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPTS = Path(__file__).parent.parent / "scripts"


def gpu_check(*argv: str | Path) -> subprocess.CompletedProcess:
    command = ["bash", SCRIPTS / "gpu_check.sh", *argv]
    return subprocess.run(command, env={**os.environ, "PYTHON": sys.executable}, capture_output=True, text=True)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so_in_one_line():
    done = gpu_check()
    assert done.returncode == 2
    assert done.stdout == ""
    [line] = done.stderr.splitlines()
    assert "finds 0; to rehearse it: --device cpu" in line


def test_what_a_step_found_before_it_failed_is_in_the_report(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    from benchmarks.steps import Step, keep

    programs = {
        "whole": """print('{"what": "a|b", "found": 0.5, "ok": true}')""",
        "wrong": """print('{"found": 1, "ok": false}')""",
        "broken": """print('{"found": 2}', flush=True); raise SystemExit("it broke")""",
        "hanging": """import time; print('{"found": 3}', flush=True); print('{"fou', flush=True); time.sleep(600)""",
    }
    steps = {name: Step(name, iter, 9) for name in programs}
    for name, program in programs.items():
        (tmp_path / name).mkdir()
        seconds = 10 if name == "hanging" else 100
        steps[name].run([sys.executable, "-c", program], tmp_path / name, dict(os.environ), seconds)
    keep(steps, tmp_path / "out")
    found = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [name for name in found if found[name]["failed"]] == ["wrong", "broken", "hanging"]
    assert [row["found"] for name in found for row in found[name]["rows"]] == [0.5, 1, 2, 3]
    report = (tmp_path / "out" / "report.md").read_text()
    assert report.startswith("Failed: wrong, broken, hanging.")
    assert "| a\\|b | 0.5 | yes |" in report
    assert "it broke" in report
    assert "it was ended after 10 s" in report


@pytest.mark.slow
def test_a_rehearsal_on_a_cpu_goes_through_every_step(tmp_path):
    done = gpu_check("--device", "cpu", "--out", tmp_path)
    assert done.returncode == 0, done.stdout
    found = json.loads((tmp_path / "report.json").read_text())
    assert list(found) == ["machine", "tests", "ways", "parts", "speed", "forecasts", "resume"]
    assert all(step["rows"] for step in found.values())
    assert done.stdout == (tmp_path / "report.md").read_text()
