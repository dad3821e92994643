"""Training: `train` and the run it returns. See `loop.py`."""

from .loop import Run, train

__all__ = ["Run", "train"]
