"""Finds the first step whose loss or gradient is not finite, without waiting for the device in each step.

An update with such a gradient ruins the weights, so the run must end before anything is saved. Reading a number from a
GPU in every step would make each step wait for it. So what was seen is kept on the device, and read before logging,
evaluating and saving. With `train.skip_nonfinite` such updates are left out instead, up to so many; that does look at
each step's gradient.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.distributed.tensor import DTensor

from .. import checkpoint
from ..errors import RunStopped

if TYPE_CHECKING:
    from .loop import TrainingRun


@dataclass(frozen=True)
class NonFiniteStep:
    """The first step that went wrong."""

    step: int
    grad_norm: float


class NonFiniteWatch:
    """`uses_scaler`: fp16's gradient scaler leaves out updates whose gradients overflow, so those are no failure."""

    def __init__(self, device: torch.device, uses_scaler: bool):
        self.grad_norm = torch.zeros((), device=device)
        """Of the last update, on the device."""
        self._uses_scaler = uses_scaler
        self._first_step = torch.zeros((), device=device, dtype=torch.int32)
        self._first_norm = torch.zeros((), device=device)

    def set_grad_norm(self, norm: torch.Tensor | float) -> None:
        """FSDP2 gives each process a part of the norm, and DeepSpeed a number."""
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        self.grad_norm = torch.as_tensor(norm, device=self.grad_norm.device)

    def gradient_is_finite(self) -> bool:
        """Waits for the device. Every process gets the same answer: the norm is that of all processes' gradients."""
        return bool(torch.isfinite(self.grad_norm))

    def check(self, step: int, loss: torch.Tensor) -> None:
        """Remember `step` if its loss or gradient is the first that is not finite; does not wait."""
        bad = ~torch.isfinite(loss)
        if not self._uses_scaler:
            bad |= ~torch.isfinite(self.grad_norm)
        bad &= self._first_step == 0
        self._first_step.masked_fill_(bad, step)
        self._first_norm = torch.where(bad, self.grad_norm, self._first_norm)

    def found(self) -> NonFiniteStep | None:
        """The first bad step so far. Waits for the device."""
        step = int(self._first_step)
        return NonFiniteStep(step, float(self._first_norm)) if step else None

    @staticmethod
    def describe(grad_norm: float, windows: Any) -> dict[str, Any]:
        """What a person needs to look into a bad step: its gradient's norm and the windows of its batch."""
        return {"grad_norm": str(grad_norm), "windows": windows.tolist()}


def skip_if_nonfinite(training: "TrainingRun", step: int) -> bool:
    """Whether the update of `step` is left out: where `train.skip_nonfinite` allows it and the gradient is bad."""
    allowed = training.recipe.train.skip_nonfinite
    if training.progress.skipped >= allowed or training.nonfinite.gradient_is_finite():
        return False
    training.progress.skipped += 1
    left = allowed - training.progress.skipped
    training.event(
        "skipped",
        f"step {step}: the gradient is not finite; its update is skipped ({left} more may be)",
        step=step,
        **training.nonfinite.describe(float(training.nonfinite.grad_norm), training.job.plan.indices(step)),
    )
    return True


def raise_if_nonfinite(training: "TrainingRun") -> None:
    """Raises :class:`RunStopped` if a loss or gradient was not finite. Looking waits for the device."""
    bad = training.nonfinite.found()
    if bad is None:
        return
    facts = training.nonfinite.describe(bad.grad_norm, training.job.plan.indices(bad.step))
    training.event("not finite", step=bad.step, **facts)
    windows = ", ".join(map(str, facts["windows"][:8])) + (", ..." if len(facts["windows"]) > 8 else "")
    raise run_stopped(
        training,
        f"the loss or the gradient of step {bad.step} is not finite; its gradient norm is {facts['grad_norm']},"
        f" its windows are {windows}",
    )


def run_stopped(training: "TrainingRun", what: str) -> RunStopped:
    """The end of a run that cannot continue, with where to branch off."""
    good = next(reversed(checkpoint.checkpoints(training.run_dir)), None)
    if good is None:
        return RunStopped(f"{what}; there is no checkpoint yet; a lower optimizer.lr may help")
    where = f"the last good checkpoint is {good}; branch off from {training.run_dir}@{checkpoint.step_of(good)}"
    return RunStopped(f"{what}; {where} with a lower optimizer.lr")
