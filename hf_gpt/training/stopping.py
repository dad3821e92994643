"""Stopping between two steps: Ctrl-C asks the run to save and end, a second one ends it at once."""

import contextlib
import signal
import threading
from collections.abc import Iterator

import torch
from accelerate import Accelerator

# Processes agree on stopping every so many steps: often enough to be prompt, rarely enough to cost nothing.
_AGREE_EVERY = 10


class Stop:
    """Whether somebody asked the run to stop."""

    def __init__(self) -> None:
        self.requested = False

    def agreed(self, step: int, accelerator: Accelerator) -> bool:
        """Whether the run ends after `step`: the same answer on every process, if any of them was asked."""
        if accelerator.num_processes == 1:
            return self.requested
        if step % _AGREE_EVERY:
            return False
        asked = torch.tensor(float(self.requested), device=accelerator.device)
        return bool(accelerator.reduce(asked, reduction="sum").item())


@contextlib.contextmanager
def stop_on_interrupt() -> Iterator[Stop]:
    """While the block runs, the first SIGINT only sets `requested`; the next is Python's own KeyboardInterrupt."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # Python delivers signals to the main thread alone
        return

    def on_interrupt(signum, frame) -> None:
        stop.requested = True
        signal.signal(signal.SIGINT, before)

    # A handler that was not installed from Python is None here and cannot be put back; Python's own takes its place.
    before = signal.getsignal(signal.SIGINT) or signal.default_int_handler
    signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)
