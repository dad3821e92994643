"""Training: `train` and the run it returns (`loop.py`), and `replay`, which repeats one to see (`replay.py`)."""

from ..replay import replay
from .loop import Run, train

__all__ = ["Run", "replay", "train"]
