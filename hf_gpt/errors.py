"""Errors as one line.

Everything the package refuses because of its input (a file, a field, an argument) is raised as :class:`UserError`. Its
message is one line that names what was wrong, what was found and what would work; the command line prints that line
and exits with code 2, a notebook shows it as an ordinary ``ValueError``. Bugs stay assertions and tracebacks.

Names of files, columns and keys are strangers' text: whatever an error says goes through `one_line`, which spells out
characters that do not show or that reorder others (`escape_unprintable`). They stand in quotes as they are: `repr`
would spell out an ideographic space too.

The library knows arguments and recipe fields, not flags and labels. It gives their names apart from the message
(`field=`), so that each front end can show its own: `error.renamed({"top_k": "--top-k"})`.

No message contains a password or a token: `without_secrets` takes them out of every text that leaves the package.
"""

import difflib
import os
import re
import sys
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import unquote

_SECRETS = (
    (re.compile(r"(://)[^\s/?#'\"<>]*@"), r"\1"),  # USER:PASSWORD@ of an address
    (re.compile(r"\b(hf|api_org)_(?:[a-z]+_)?[A-Za-z0-9]{20,}"), r"\1_..."),  # the Hub's tokens
    (re.compile(r"([?&][\w-]*(?:token|key|secret|signature|credential|password)=)[^&\s'\"<>]+", re.I), r"\1..."),
    (re.compile(r"\b(Bearer|Basic) [\w+/=.~-]{16,}"), r"\1 ..."),
)
_SECRET_VARIABLES = re.compile(r"HF_ENDPOINT|\w+_PROXY|HF_TOKEN|HUGGING_FACE_HUB_TOKEN", re.I)


def without_secrets(text: str) -> str:
    """Text without passwords and tokens: those of addresses and headers, and those that environment variables hold."""
    for value in (value for name, value in os.environ.items() if _SECRET_VARIABLES.fullmatch(name)):
        address = re.match(r"\w+://(.*)@", value)
        password = address[1].partition(":")[2] if address else "" if ":" in value else value
        text = text.replace(f"{address[1]}@", "") if address else text
        for secret in {password, unquote(password)}:
            text = text.replace(secret, "...") if len(secret) > 5 else text  # a shorter one may be in any word
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    return text


def escape_unprintable(text: str, *, one_line: bool = False, limit: int | None = None) -> str:
    """Text in which every character that does not show, or that reorders others, is spelled out."""

    def shown(character: str) -> str:
        if (character in "\n\t" and not one_line) or character in "\u200c\u200d":  # joiners are spelling
            return character
        if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp"):
            return repr(character)[1:-1]
        return character

    cut = limit is not None and len(text) > limit
    return "".join(map(shown, text[:limit] if cut else text)) + (" …" if cut else "")


def one_line(message: Any) -> str:
    """A message as one line, without secrets.

    Line breaks in what a library said, which is the error that is being handled, become blanks. Any other stands in a
    name, and is spelled out.
    """
    message, said = str(message), str(sys.exc_info()[1] or "").lstrip()
    start = message.find(said.partition("\n")[0] + "\n") if "\n" in said else -1
    if start >= 0:
        message = message[:start].rstrip("\n") + re.sub(r"\s*\n\s*", " ", message[start:].rstrip())
    return escape_unprintable(without_secrets(message), one_line=True)


class UserError(ValueError):
    """Input that cannot work. Its text is one line: what was wrong, where, and what would work.

    Args:
        message: the line, or with `field` what follows it.
        field: the argument or recipe field that is wrong.
        value: what was found there; together `top_k 0: must be 1 or more`.
    """

    def __init__(self, message: str, *, field: str | None = None, value: Any = None):
        self.message, self.field, self.value = one_line(message), field, value
        shown = f"{value:g}" if isinstance(value, float) else value
        subject = f"{field}: " if value is None else f"{field} {shown}: "
        super().__init__(one_line(subject) + self.message if field else self.message)

    def renamed(self, names: Mapping[str, str]) -> "UserError":
        """The same error, with the name that `names` has for its field."""
        return UserError(self.message, field=names.get(self.field, self.field), value=self.value)


class _OneLineError(RuntimeError):
    def __init__(self, message: str):
        super().__init__(one_line(message))


class RunStopped(_OneLineError):
    """A run that could not continue, such as one whose loss is no longer finite. The message is one line."""


class RunPreempted(_OneLineError):
    """A run that was asked by SIGTERM, SIGUSR1 or SIGHUP to make room, and saved first. The message is one line."""


class HubError(_OneLineError):
    """The Hub was not reached, or refused. The message is one line.

    `is_transient`: the same request may work later; `retry_after`: seconds that the Hub asked to wait.
    """

    def __init__(self, message: str, is_transient: bool = False, retry_after: float | None = None):
        super().__init__(message)
        self.is_transient = is_transient
        self.retry_after = retry_after


def did_you_mean(name: str, valid: Iterable[str]) -> str:
    """``"; did you mean 'hidden_size'?"`` for the valid name nearest to `name`; if none is, all, up to 50."""
    valid = sorted(valid)
    near = difflib.get_close_matches(str(name), valid, n=1, cutoff=0.6)
    if near:
        return f"; did you mean '{near[0]}'?"
    return f"; valid names: {', '.join(valid)}" if 0 < len(valid) < 50 else ""
