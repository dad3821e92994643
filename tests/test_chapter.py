"""The walk through the book's chapter runs, and shows what it says."""

import os
import re
import subprocess
import sys
from pathlib import Path

from figures import published

SCRIPT = Path(__file__).parent.parent / "scripts" / "chapter5.py"


def test_the_chapter_runs_from_text_to_gpt2(tmp_path):
    environment = {**os.environ, "TMPDIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, str(SCRIPT)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    printed = done.stdout
    assert "text again  Every effort moves you" in printed
    figures = dict(re.findall(r"^(loss|cross_entropy|perplexity) +([\d.,]+)", printed, re.M))
    assert float(figures["loss"]) == published(figures["cross_entropy"])
    losses = [float(loss) for loss in re.findall(r"^step +\d+ +training [\d.]+ +validation ([\d.]+)", printed, re.M)]
    assert losses[0] > 6 > losses[-1]
    differences = re.findall(r"largest difference of a logit:? ([^\s,]+)", printed)
    assert len(differences) == 2  # loaded again, and as GPT-2
    assert max(map(float, differences)) < 1e-4
