"""Traffic with the Hub: how long it may take, and its many exceptions as one line.

huggingface_hub sets no time limit to many requests, repeats others for minutes, and sleeps as long as a Hub asks.
All traffic of this package happens inside `limited_requests`: there a request fails that hears nothing for some
seconds, and after three failures in a row, or half a minute of them, no more are made. What is in the cache is used
then, as if the Hub were switched off. `hub_requests` also raises what went wrong as a :class:`HubError`.

The time limit is 10 s, of requests that change something 30 s. `HF_HUB_DOWNLOAD_TIMEOUT` and `HF_HUB_ETAG_TIMEOUT`, in
seconds, set another for all. Other traffic of the process stays as it is.
"""

import contextlib
import json
import logging
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

from huggingface_hub import constants, errors, get_token, set_client_factory
from huggingface_hub.utils import _http

from .errors import HubError, UserError, without_secrets

_LIMITS = {"GET": 10.0, "HEAD": 10.0}  # seconds until the first or next bytes
_LIMIT = 30.0  # of other methods: the Hub is at work
_PATIENCE = 25.0  # seconds in which one thread's requests may fail
_ATTEMPTS = 3
_LONGEST_PAUSE = 15.0  # seconds that huggingface_hub may sleep within a request when the Hub asks for it
_PROGRESS = 1 << 20  # bytes: a download that was cut after as many may go on

_STATUSES = {
    401: "no token, or it is not accepted (401); log in with: hf auth login",
    403: "the token may not do this (403); to publish, it needs the permission to write there",
    404: "it is not there, or not for this token (404)",
    408: "no answer in time (408)",
    409: "another process is writing to it (409)",
    412: "another process changed it meanwhile (412)",
    413: "a file is too large (413); the storage may be at its limit",
    429: "too many requests (429)",
}
_REASONS = {
    "RemoteProtocolError": "the connection was cut",
    "ReadError": "the connection was cut",
    "OfflineModeIsEnabled": "HF_HUB_OFFLINE is set",
    "TooManyRedirects": "it redirects without end",
    "UnsupportedProtocol": "HF_ENDPOINT is no address that begins with https://",
    "InvalidURL": "HF_ENDPOINT is no address that begins with https://",
}


_NOT_A_HUB = (errors.FileMetadataError, json.JSONDecodeError, KeyError, TypeError, AttributeError)


class _GaveUp(errors.OfflineModeIsEnabled):
    """No more requests are made. huggingface_hub and datasets take it for their offline mode: they do not try again,
    and look into their caches."""

    def __init__(self, reason: str, retry_after: float | None = None):
        super().__init__(reason)
        self.retry_after = retry_after


@contextlib.contextmanager
def limited_requests() -> Iterator["_Limited"]:
    """Limit the requests of huggingface_hub, and what is built on it, in the block; its warnings are not shown.

    The `trouble` of what it gives is what went wrong with the last request, as a line, if something did.
    """
    global _level
    _install()
    logger, requests = logging.getLogger("huggingface_hub"), _Limited()
    _level = _level if _active else logger.level
    _active.append(requests)
    logger.setLevel(logging.ERROR)  # its warnings tell of each attempt, with signed addresses
    try:
        yield requests
    finally:
        _active.remove(requests)
        if not _active:
            logger.setLevel(_level)


@contextlib.contextmanager
def hub_requests(subject: str) -> Iterator[None]:
    """`limited_requests`, and what it raises as ``HubError("<subject>: <what happened, what would help>")``.

    A name that cannot be a repository's is a :class:`UserError`; errors of a disk stay what they are. The message
    contains no token and no address: the Hub signs the addresses of uploads.
    """
    try:
        with limited_requests():
            yield
    except (UserError, HubError):
        raise
    except Exception as error:
        translated = _translated(error, subject)
        if translated is None:
            raise
        raise translated from (error if isinstance(error, _NOT_A_HUB) else None)  # of a bug, --debug shows where


class _Limited:
    """The requests of a block. Each thread counts its own failures: those since its last good answer."""

    def __init__(self) -> None:
        self.trouble: str | None = None
        self._thread = threading.local()
        given = [os.environ.get(name, "") for name in ("HF_HUB_DOWNLOAD_TIMEOUT", "HF_HUB_ETAG_TIMEOUT")]
        self._limit = max((float(text) for text in given if text.isdigit()), default=None)
        self._patience = max(_PATIENCE, self._limit or 0.0)

    def send(self, send: Callable[..., Any], request: Any, **options: Any) -> Any:
        """`send` a request, unless too many failed before it."""
        mine, now = self._thread.__dict__, time.monotonic()
        self._look_at_last_body(mine, str(request.url))
        if not mine.get("failures"):
            mine.update(failures=0, since=now, why="")
        waited = now - mine["since"]
        if mine["failures"] >= _ATTEMPTS or (mine["failures"] and waited > self._patience):
            raise _GaveUp(mine["why"], mine.get("pause"))
        limit = self._limit or _LIMITS.get(request.method, _LIMIT)
        limit = max(1.0, min(limit, self._patience - waited)) if mine["failures"] else limit
        given = request.extensions.get("timeout") or {}
        times = {name: min(limit, given.get(name) or limit) for name in ("connect", "read", "write")}
        request.extensions["timeout"] = {"pool": None, **given, **times}
        try:
            response = send(request, **options)
        except Exception as error:
            self._count_failure(mine, f"{_host()} was not reached: {_reason(error)}")
            if type(error).__name__ in ("RemoteProtocolError", "ReadError", "WriteError"):
                # It was cut. Only for connections that are not made does huggingface_hub look into its cache.
                made = vars(sys.modules[type(error).__module__.partition(".")[0]])["ConnectError"]
                raise made(str(error), request=request) from error
            raise
        self._look_at_status(mine, str(request.url), response)
        return response

    def _look_at_last_body(self, mine: dict[str, Any], address: str) -> None:
        """Count a body that came in pieces, if it ended early and is asked for again."""
        asked, response = mine.pop("streaming", (None, None))
        if response is None or not response.is_closed:
            return
        length = response.headers.get("Content-Length", "")
        if length.isdigit() and response.num_bytes_downloaded < min(int(length), _PROGRESS) and asked == address:
            self._count_failure(mine, f"{_host()} was not reached: the connection was cut")
        else:
            mine["failures"] = 0

    def _look_at_status(self, mine: dict[str, Any], address: str, response: Any) -> None:
        status, pause = response.status_code, _pause_of(response)
        if status >= 400 and pause is not None and pause > _LONGEST_PAUSE:
            self._count_failure(mine, _text_of(status) if status == 429 else f"the Hub is not ready ({status})")
            mine.update(failures=_ATTEMPTS, pause=pause)
            response.close()
            raise _GaveUp(mine["why"], pause)
        if status in (408, 429) or status >= 500:
            self._count_failure(mine, _text_of(status))
            mine["pause"] = pause
        elif response.is_closed or response.request.method == "HEAD":
            mine["failures"], self.trouble = 0, None
        else:
            mine["streaming"] = (address, response)

    def _count_failure(self, mine: dict[str, Any], why: str) -> None:
        mine.update(failures=mine["failures"] + 1, why=why)
        self.trouble = why


_active: list[_Limited] = []  # also those of other threads
_level = logging.NOTSET  # of huggingface_hub's logger outside


def _install() -> None:
    """Let each client that huggingface_hub makes send its requests through the block that is active."""
    factory = _http._GLOBAL_CLIENT_FACTORY
    if hasattr(factory, "of_hf_gpt"):
        return

    def client_with_limits() -> Any:
        client = factory()
        send = client.send
        client.send = lambda request, **options: (
            _active[-1].send(send, request, **options) if _active else send(request, **options)
        )
        return client

    client_with_limits.of_hf_gpt = True
    set_client_factory(client_with_limits)


def _pause_of(response: Any) -> float | None:
    """Seconds that the Hub asks to wait, at most an hour."""
    limit = re.search(r"r\s*=\s*0\s*;\s*t\s*=\s*(\d+)", response.headers.get("RateLimit", ""))
    text = limit[1] if limit and response.status_code == 429 else response.headers.get("Retry-After", "").strip()
    return min(float(text), 3600.0) if text.isdigit() else None


# Errors -------------------------------------------------------------------------------------------------------------


def _translated(error: BaseException, subject: str) -> Exception | None:
    chain = [error]
    while len(chain) < 10 and (below := chain[-1].__cause__ or chain[-1].__context__):
        chain.append(below)
    gave_up = next((one for one in chain if isinstance(one, _GaveUp)), None)
    refused = next((one for one in chain[:2] if isinstance(one, errors.HfHubHTTPError)), None)
    if isinstance(error, errors.HFValidationError):
        return UserError(f"{subject}: it is no Hub id (OWNER/NAME)")
    if isinstance(error, (errors.LocalTokenNotFoundError, UnicodeEncodeError)):
        return HubError(f"{subject}: there is no token for the Hub, or it is damaged; log in with: hf auth login")
    if gave_up:
        return HubError(f"{subject}: {gave_up}", is_transient=True, retry_after=gave_up.retry_after)
    if refused:  # of an upload, or of a download that looked into the cache
        return _refusal(refused, subject)
    if isinstance(error, _NOT_A_HUB) or isinstance(error.__cause__, errors.FileMetadataError):
        text = "answers with something else than a Hub does; is there a proxy or a login page in between?"
        return HubError(f"{subject}: {_host()} {text}", is_transient=True)
    if isinstance(error, errors.OfflineModeIsEnabled):
        return HubError(f"{subject}: HF_HUB_OFFLINE is set, so the Hub is not asked")
    if isinstance(error, errors.LocalEntryNotFoundError):
        text = f"the Hub cannot be reached ({_reason(error)}) and its cache has no such files; give a directory"
        return HubError(f"{subject}: {text}", is_transient=True)
    is_network = isinstance(error, (ConnectionError, TimeoutError)) or type(error).__module__.startswith("http")
    if is_network or (isinstance(error, OSError) and error.errno is None):
        return HubError(f"{subject}: {_host()} was not reached: {_reason(error)}", is_transient=True)
    if isinstance(error, ValueError):
        return HubError(f"{subject}: {_host()} does not take it: {_without_addresses(str(error))}")
    if isinstance(error, RuntimeError):
        return HubError(f"{subject}: a file did not arrive at {_host()}: {_reason(error)}", is_transient=True)
    return None


def _refusal(error: Any, subject: str) -> HubError:
    status = error.response.status_code
    if isinstance(error, errors.GatedRepoError):
        text = "access is restricted: accept the conditions on its page and log in with: hf auth login"
    elif isinstance(error, errors.RevisionNotFoundError):
        text = "it has no such branch, tag or commit"
    elif isinstance(error, errors.RepositoryNotFoundError) and (status != 401 or get_token() is None):
        text = "no such repository; a private one needs a token that may read it: hf auth login"
    else:
        text = _text_of(status, error.server_message)
    is_transient = status >= 500 or status in (408, 409, 412, 429)
    return HubError(f"{subject}: {text}", is_transient, _pause_of(error.response))


def _text_of(status: int, reason: str | None = None) -> str:
    if status >= 500:
        return f"the Hub has a server error ({status})"
    reason = _without_addresses(reason or "it gives no reason")
    return _STATUSES.get(status, f"the Hub does not take it ({status}): {reason}")


def _host() -> str:
    return urlsplit(constants.ENDPOINT).hostname or "the Hub"


def _without_addresses(text: str) -> str:
    return without_secrets(re.sub(r"https?://\S+", "...", " ".join(text.split()))[:300])


def _reason(error: BaseException) -> str:
    """The innermost reason."""
    kind = type(error).__name__
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__
    if "Timeout" in kind or "Timeout" in type(error).__name__:
        return "no answer in time"
    if "Consistency check failed" in str(error):
        return "a file did not arrive whole"
    innermost = type(error).__name__
    return getattr(error, "strerror", None) or _REASONS.get(innermost) or _REASONS.get(kind) or innermost
