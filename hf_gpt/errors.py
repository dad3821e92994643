"""What a user did that cannot work, as one line.

Everything the package refuses because of its input (a file, a field, an argument) is raised as :class:`UserError`. Its
message is one line that names what was wrong, what was found and what would work; the command line prints that line
and exits with code 2, a notebook shows it as an ordinary ``ValueError``. Bugs stay assertions and tracebacks.

The library knows arguments and recipe fields, not flags and labels. It gives their names apart from the message
(`field=`), so that each front end can show its own: `error.renamed({"top_k": "--top-k"})`.
"""

import difflib
from collections.abc import Iterable, Mapping
from typing import Any


class UserError(ValueError):
    """Input that cannot work. Its text is one line: what was wrong, where, and what would work.

    Args:
        message: the line, or with `field` what follows it.
        field: the argument or recipe field that is wrong.
        value: what was found there; together `top_k 0: must be 1 or more`.
    """

    def __init__(self, message: str, *, field: str | None = None, value: Any = None):
        self.message, self.field, self.value = " ".join(str(message).split()), field, value
        shown = f"{value:g}" if isinstance(value, float) else value
        subject = f"{field}: " if value is None else f"{field} {shown}: "
        super().__init__(f"{subject}{self.message}" if field else self.message)

    def renamed(self, names: Mapping[str, str]) -> "UserError":
        """The same error, with the name that `names` has for its field."""
        return UserError(self.message, field=names.get(self.field, self.field), value=self.value)


class RunStopped(RuntimeError):
    """A run that could not continue, such as one whose loss is no longer finite. The message is one line."""


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
