"""What a user did that cannot work, as one line.

Everything the package refuses because of its input (a file, a field, a flag) is raised as :class:`UserError`. Its
message is one line that names what was wrong, what was found and what would work; the command line prints that line
and exits with code 2, a notebook shows it as an ordinary ``ValueError``. Bugs stay assertions and tracebacks.
"""

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Input that cannot work. The message is one line: what was wrong, where, and what would work."""

    def __init__(self, message: str):
        super().__init__(" ".join(str(message).split()))


class RunStopped(RuntimeError):
    """A run that could not go on, such as one whose loss is no longer finite. The message is one line."""


class RunPreempted(RuntimeError):
    """A run that was asked by SIGTERM or SIGUSR1 to make room, and saved first. The message is one line."""


class HubError(RuntimeError):
    """The Hub was not reached, or refused. The message is one line.

    `passes`: another attempt may work without anybody doing anything; `retry_after`: seconds that the Hub asked for.
    """

    def __init__(self, message: str, passes: bool = False, retry_after: float | None = None):
        super().__init__(message)
        self.passes = passes
        self.retry_after = retry_after


def did_you_mean(name: str, valid: Iterable[str]) -> str:
    """``"; did you mean 'hidden_size'?"`` for the valid name nearest to `name`, or all of them if none is near."""
    valid = sorted(valid)
    near = difflib.get_close_matches(str(name), valid, n=1, cutoff=0.6)
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; valid names: {', '.join(valid)}" if valid else ""
