"""Errors as one line.

Everything the package refuses because of its input (a file, a field, an argument) is raised as :class:`UserError`. Its
message is one line that names what was wrong, what was found and what would work; the command line prints that line
and exits with code 2, a notebook shows it as an ordinary ``ValueError``. Bugs stay assertions and tracebacks.

Names of files, columns and keys are strangers' text: whatever an error says goes through `one_line`, which spells out
characters that do not show or that reorder others (`escape_unprintable`).

The library knows arguments and recipe fields, not flags and labels. It gives their names apart from the message
(`field=`), so that each front end can show its own: `error.renamed({"top_k": "--top-k"})`.

The many exceptions of huggingface_hub become a :class:`HubError` in one place, `translate_hub_errors`.
"""

import contextlib
import difflib
import re
import sys
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit


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
    """A message as one line.

    Line breaks in what a library said, which is the error that is being handled, become blanks. Any other stands in a
    name, and is spelled out.
    """
    message, said = str(message), str(sys.exc_info()[1] or "").lstrip()
    start = message.find(said.partition("\n")[0] + "\n") if "\n" in said else -1
    if start >= 0:
        message = message[:start].rstrip("\n") + re.sub(r"\s*\n\s*", " ", message[start:].rstrip())
    return escape_unprintable(message, one_line=True)


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


class RunStopped(RuntimeError):
    """A run that could not continue, such as one whose loss is no longer finite. The message is one line."""

    def __init__(self, message: str):
        super().__init__(one_line(message))


class RunPreempted(RuntimeError):
    """A run that was asked by SIGTERM or SIGUSR1 to make room, and saved first. The message is one line."""

    def __init__(self, message: str):
        super().__init__(one_line(message))


class HubError(RuntimeError):
    """The Hub was not reached, or refused. The message is one line.

    `is_transient`: the same request may work later; `retry_after`: seconds that the Hub asked to wait.
    """

    def __init__(self, message: str, is_transient: bool = False, retry_after: float | None = None):
        super().__init__(one_line(message))
        self.is_transient = is_transient
        self.retry_after = retry_after


def did_you_mean(name: str, valid: Iterable[str]) -> str:
    """``"; did you mean 'hidden_size'?"`` for the valid name nearest to `name`, or all of them if none is near."""
    valid = sorted(valid)
    near = difflib.get_close_matches(str(name), valid, n=1, cutoff=0.6)
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; valid names: {', '.join(valid)}" if valid else ""


@contextlib.contextmanager
def translate_hub_errors(subject: str) -> Iterator[None]:
    """Raise what huggingface_hub raises in the block as ``HubError("<subject>: <what happened, what would help>")``.

    A name that cannot be a repository's is a :class:`UserError`; errors of a disk stay what they are. The message
    contains no token and no address: the Hub signs the addresses of uploads.
    """
    try:
        yield
    except (UserError, HubError):
        raise
    except Exception as error:
        translated = _translated(error, subject)
        if translated is None:
            raise
        raise translated from None


def _translated(error: BaseException, subject: str) -> Exception | None:
    from huggingface_hub import constants, errors

    host, cause = urlsplit(constants.ENDPOINT).hostname, error.__cause__
    if isinstance(cause, HubError):
        return cause
    if isinstance(error, errors.HFValidationError):
        return UserError(f"{subject}: it is no Hub id (OWNER/NAME)")
    if isinstance(error, (errors.LocalTokenNotFoundError, UnicodeEncodeError)):
        return HubError(f"{subject}: there is no token for the Hub, or it is damaged; log in with: hf auth login")
    if isinstance(error, errors.HfHubHTTPError):
        return _refusal(error, subject)
    if isinstance(cause, errors.HfHubHTTPError):  # of an upload, or of a download that looked into the cache
        return _refusal(cause, subject)
    if isinstance(error, errors.OfflineModeIsEnabled):
        return HubError(f"{subject}: HF_HUB_OFFLINE is set, so the Hub is not asked")
    if isinstance(error, errors.LocalEntryNotFoundError):
        text = f"the Hub cannot be reached ({_reason(error)}) and its cache has no such files; give a directory"
        return HubError(f"{subject}: {text}", is_transient=True)
    is_network = isinstance(error, (ConnectionError, TimeoutError)) or type(error).__module__.startswith("http")
    if is_network or (isinstance(error, OSError) and error.errno is None):
        return HubError(f"{subject}: {host} was not reached: {_reason(error)}", is_transient=True)
    if isinstance(error, ValueError):
        return HubError(f"{subject}: {host} does not take it: {_without_addresses(str(error))}")
    if isinstance(error, RuntimeError):
        return HubError(f"{subject}: a file did not arrive at {host}: {_reason(error)}", is_transient=True)
    return None


def _refusal(error, subject: str) -> HubError:
    from huggingface_hub import errors, get_token

    status = error.response.status_code
    texts = {
        401: "no token, or it is not accepted (401); log in with: hf auth login",
        403: "the token may not do this (403); to publish, it needs the permission to write there",
        404: "it is not there, or not for this token (404)",
        409: "another process is writing to it (409)",
        412: "another process changed it meanwhile (412)",
        413: "a file is too large (413); the storage may be at its limit",
        429: "too many requests (429)",
    }
    if isinstance(error, errors.GatedRepoError):
        text = "access is restricted: accept the conditions on its page and log in with: hf auth login"
    elif isinstance(error, errors.RevisionNotFoundError):
        text = "it has no such branch, tag or commit"
    elif isinstance(error, errors.RepositoryNotFoundError) and (status != 401 or get_token() is None):
        text = "no such repository; a private one needs a token that may read it: hf auth login"
    elif status in texts:
        text = texts[status]
    elif status >= 500:
        text = f"the Hub has a server error ({status})"
    else:
        reason = _without_addresses(error.server_message or "it gives no reason")
        text = f"the Hub does not take it ({status}): {reason}"
    wait = error.response.headers.get("Retry-After", "")
    is_transient = status >= 500 or status in (408, 409, 412, 429)
    return HubError(f"{subject}: {text}", is_transient, float(wait) if wait.isdigit() else None)


def _without_addresses(text: str) -> str:
    return re.sub(r"https?://\S+", "...", " ".join(text.split()))[:300]


def _reason(error: BaseException) -> str:
    """The innermost reason."""
    kind = type(error).__name__
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__
    if "Timeout" in kind or "Timeout" in type(error).__name__:
        return "no answer in time"
    names = {"RemoteProtocolError": "the connection was cut", "OfflineModeIsEnabled": "HF_HUB_OFFLINE is set"}
    return getattr(error, "strerror", None) or names.get(type(error).__name__, kind)
