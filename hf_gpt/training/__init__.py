"""Training: `train` and the run it returns (`loop.py`), and `replay`, which repeats one to see (`replay.py`)."""

from .loop import Run, train
from .replay import replay

__all__ = ["Run", "replay", "train"]
