"""Stopping between two steps: a signal asks the run to save and end, a second one ends it at once.

SIGINT is Ctrl-C. SIGTERM and SIGUSR1 are what schedulers send some time before they take the machine away; SIGHUP is
for a terminal that was closed. Any one process may get it; all of them save at the same step. A process that dies
without a word takes the others with it.
"""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from accelerate import Accelerator

from ..errors import RunPreempted, RunStopped

# Processes agree on stopping every so many steps: often enough to be prompt, rarely enough to cost nothing.
_AGREE_EVERY = 10
# A scheduler may signal every process, and `torchrun` hands on to its own what it gets: within so many seconds that is
# one request, not two.
_HANDED_ON_WITHIN = 2.0
# The kernel and the shell each send it.
_TERMINAL_CLOSED = getattr(signal, "SIGHUP", None)
# The launcher's process, noted when this one begins: it may be gone before the first step.
_PARENT = os.getppid()
_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP") if hasattr(signal, name)]


class Stop:
    """The signal that asked the run to stop, 0 as long as none did."""

    def __init__(self) -> None:
        self.requested = 0
        self.requested_at = 0.0
        self._launcher = _PARENT if "TORCHELASTIC_RUN_ID" in os.environ else None

    def agreed(self, step: int, accelerator: Accelerator) -> int:
        """The signal for which the run ends after `step`, or 0: the same answer on every process."""
        if self._launcher not in (None, os.getppid()):  # killed, and these processes are nobody's
            self.requested = self.requested or signal.SIGTERM  # which it would have sent
        if accelerator.num_processes == 1:
            return self.requested
        if step % _AGREE_EVERY:
            return 0
        asked = torch.tensor([self.requested], device=accelerator.device)
        return int(accelerator.gather(asked).max())


@contextlib.contextmanager
def stop_on_signal() -> Iterator[Stop]:
    """While the block runs, the first signal is only noted in `requested`; the next does what it did before."""
    stop = Stop()
    handed_on = _HANDED_ON_WITHIN if "TORCHELASTIC_RUN_ID" in os.environ else 0.0

    def on_signal(number: int, frame) -> None:
        if not stop.requested:
            stop.requested, stop.requested_at = number, time.monotonic()
        elif number != _TERMINAL_CLOSED and time.monotonic() - stop.requested_at > handed_on:
            restore()
            signal.raise_signal(number)

    with _handling(_SIGNALS, on_signal) as restore:
        yield stop


@contextlib.contextmanager
def exit_on_preemption() -> Iterator[None]:
    """While the block runs, before there is anything to save, all of these but SIGINT end it with a word."""

    def on_signal(number: int, frame) -> None:
        name = signal.Signals(number).name
        raise RunPreempted(f"{name}: stopped before the first step; the same command starts it again")

    with _handling([number for number in _SIGNALS if number != signal.SIGINT], on_signal):
        yield


@contextlib.contextmanager
def _handling(numbers: Sequence[int], handler: Callable[[int, Any], None]) -> Iterator[Callable[[], None]]:
    """`handler` for some signals while the block runs; gives the function that puts back what handled them before."""
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None  # Python delivers signals to the main thread alone
        return
    # Under nohup the run outlives its terminal. (A script ignores SIGINT for what it starts with `&`.)
    numbers = [
        number for number in numbers if number != _TERMINAL_CLOSED or signal.getsignal(number) != signal.SIG_IGN
    ]
    # A handler that was not installed from Python is None here and cannot be put back.
    before = {number: signal.getsignal(number) or signal.SIG_DFL for number in numbers}

    def restore() -> None:
        for number, earlier in before.items():
            signal.signal(number, earlier)

    for number in numbers:
        signal.signal(number, handler)
    try:
        yield restore
    finally:
        restore()


@contextlib.contextmanager
def lost_process_ends_run() -> Iterator[None]:
    """Raise :class:`RunStopped` where another process of the run has died, which shows as a closed connection."""
    try:
        yield
    except RuntimeError as error:
        # NCCL and the rendezvous store raise DistError; gloo raises a RuntimeError that names its source file.
        if not isinstance(error, torch.distributed.DistError) and "gloo" not in str(error).lower():
            raise
        raise RunStopped("another process of this run is gone; its output or its launcher's says why") from error
