"""Checkpoints to the Hub and back.

The one idea: a push is one commit. A reader of the repository sees the model as it was or as it is, never half of
either: files that belong to the model and are not in it any more go in the same commit, and a tag is set when the
commit is there. What is already on the Hub is not sent again, so pushing a second time costs a few questions.

    push         a model, checkpoint or run, as it stands or in stock GPT-2's form
    fetch_run    the newest checkpoint of a run that was pushed with its training state, and the run's records

`training_state/` stays here unless it is asked for; with it go the run's records, in `training_state/run/`, so that
another machine can go on (`checkpoint.resume: hub`). The model card keeps what people wrote into it (`card.merge`).

The traffic is huggingface_hub's, and so are the token, the address (`HF_ENDPOINT`), the cache and offline mode. The
token is in no message of ours. When a training run pushes is hub/background.py's business.
"""

import contextlib
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from urllib.parse import urlsplit

from .. import checkpoint
from ..errors import HubError, UserError
from ..storage import read_json, replacing_directory, write_text
from .card import addressed, as_stock, bare_card, merge

RECORDS = ("recipe.yaml", "environment.json", "metrics.jsonl", "samples.jsonl", "events.jsonl")
_RECORDS_FOLDER = f"{checkpoint.TRAINING_STATE}/run"
_RUN_ID = f"{_RECORDS_FOLDER}/environment.json"

# What belongs to a model: on the Hub and not in what is pushed, it is of another one, and is removed. In other folders
# than `training_state/`, and under other names, is what other people put there.
_OF_A_MODEL = (
    "config.json",
    "generation_config.json",
    "model*.safetensors",
    "model.safetensors.index.json",
    "pytorch_model*.bin",
    "pytorch_model.bin.index.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.bpe",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "configuration_gpt.py",
    "modeling_gpt.py",
    "loss.png",
)
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")  # which can run code when they are read

_SECONDS_WITHOUT_AN_ANSWER = 60.0  # or HF_HUB_DOWNLOAD_TIMEOUT
_LONGEST_SLEEP = 15.0  # seconds that the client may wait in the middle of something because the Hub asked it to
_FETCH_PAUSES = (5.0, 15.0, 45.0, 120.0)


@dataclass(frozen=True)
class Pushed:
    """Where a model went."""

    repo_id: str
    revision: str
    commit: str
    tag: str | None
    url: str


def push(
    model: str | Path,
    repo_id: str,
    *,
    private: bool = False,
    revision: str = "main",
    tag: str | None = None,
    message: str | None = None,
    with_training_state: bool = False,
    as_gpt2: bool = False,
) -> Pushed:
    """Publish a model in one commit; the repository and the branch are made if they are not there.

    Args:
        model: a model's directory, or a run's, which means its best checkpoint.
        repo_id: `OWNER/NAME`, or `NAME` for one's own.
        private: a repository that is made now is private. One that is there and public is refused.
        revision: the branch to commit to.
        tag: set to the commit; a tag of that name is moved.
        message: of the commit; by default it names the step.
        with_training_state: send what only training needs too, with the run's recipe and records.
        as_gpt2: send a stock `GPT2LMHeadModel`, which needs neither this package nor remote code.

    Raises:
        UserError: there is no such model here, or one of the names cannot be one.
        HubError: the Hub was not reached, or refused.
    """
    source = Path(checkpoint.resolve_model(str(model)))
    if not source.is_dir():
        raise UserError(f"{model}: no such directory; what is pushed is here")
    source = source.resolve()  # whose parents are a run's
    if tag == "" or not revision:
        raise UserError(f"{'--tag' if revision else '--revision'}: it is empty; give a name, or leave it out")
    if (source / checkpoint.MANIFEST).is_file():
        checkpoint.verify(source)
    if with_training_state and not (source / checkpoint.MANIFEST).is_file():
        raise UserError(f"{model}: has no training state; only checkpoints of a run have")
    if as_gpt2 and with_training_state:
        raise UserError("--as gpt2 goes without --with-training-state: training goes on from our own form")
    message = message or _message(source)
    with tempfile.TemporaryDirectory() as folder:
        files = _stock_files(source, Path(folder, "gpt2")) if as_gpt2 else _files(source, with_training_state)
        with _translate_hub_errors(repo_id):
            return _commit(files, repo_id, private, revision, tag, message, is_stock=as_gpt2)


def fetch_run(repo_id: str, branch: str, run_dir: Path) -> Path | None:
    """Bring a run here from the Hub, unless it is here already: its newest checkpoint, the best one, and its records.

    Returns:
        The checkpoint that came, None if there is nothing newer than what is here, or nothing at all.

    A Hub that does not answer is asked again for some minutes.

    Raises:
        UserError: what is there is no training state, or that of another run than the one in `run_dir`.
        HubError: the Hub was not reached, or refused.
    """
    from filelock import FileLock

    folder = run_dir / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    for pause in (*_FETCH_PAUSES, None):
        try:
            # Of several processes one fetches, and none while another trains there.
            with FileLock(folder / ".hub.lock"), checkpoint.run_lock(run_dir), _translate_hub_errors(repo_id):
                return _fetch(repo_id, branch, run_dir)
        except HubError as error:
            if not error.passes or pause is None:
                raise
            print(f"hub: {error}; asking again in {pause:.0f} s", file=sys.stderr)
            time.sleep(pause)


def give_up_silent_connections() -> None:
    """Let this process's requests to the Hub fail when nothing moves for a minute; by default many wait for ever.

    `HF_HUB_DOWNLOAD_TIMEOUT`, in seconds, says otherwise. And where the Hub asks for a long pause, fail at once: the
    client would sleep through it without a word.
    """
    from huggingface_hub import get_session, set_client_factory

    usual, given = get_session(), os.environ.get("HF_HUB_DOWNLOAD_TIMEOUT", "")
    hooks = {**usual.event_hooks, "response": [*usual.event_hooks.get("response", []), _refuse_long_pause]}
    options = {
        "event_hooks": hooks,
        "follow_redirects": usual.follow_redirects,
        "timeout": float(given) if given.isdigit() else _SECONDS_WITHOUT_AN_ANSWER,
    }
    set_client_factory(lambda: type(usual)(**options))


def _refuse_long_pause(response) -> None:
    asked = response.headers.get("Retry-After", "")
    if response.status_code >= 400 and asked.isdigit() and float(asked) > _LONGEST_SLEEP:
        what = "too many requests" if response.status_code == 429 else "the Hub is not ready"
        raise HubError(f"{what} ({response.status_code})", passes=True, retry_after=float(asked))


# Pushing ------------------------------------------------------------------------------------------------------------


def _message(folder: Path) -> str:
    with contextlib.suppress(AttributeError):
        return f"Step {checkpoint.step_of(folder)}"
    return "Upload model"


def _files(folder: Path, with_training_state: bool) -> dict[str, Path]:
    """What is sent, by its place in the repository."""
    found = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    found = {
        name: path
        for name, path in found.items()
        if not re.search(r"(^|/)(\.|__pycache__/)", name) and not any(fnmatch(name, kind) for kind in _PICKLES)
    }
    if not any(fnmatch(name, "*.safetensors") for name in found):
        raise UserError(f"{folder}: has no safetensors weights; a .bin is a pickle, and can run code")
    if not with_training_state:
        return {name: path for name, path in found.items() if not name.startswith(f"{checkpoint.TRAINING_STATE}/")}
    run_dir = folder.parent.parent
    records = {f"{_RECORDS_FOLDER}/{name}": run_dir / name for name in RECORDS if (run_dir / name).is_file()}
    if not {f"{_RECORDS_FOLDER}/{name}" for name in ("recipe.yaml", "environment.json")} <= set(records):
        raise UserError(f"{folder}: lies in no run's folder, whose recipe another machine would need to go on")
    return found | records


def _stock_files(source: Path, folder: Path) -> dict[str, Path]:
    """The model in stock GPT-2's form, made in `folder`, with what a reader of its page sees."""
    from ..conversion import to_gpt2

    to_gpt2(str(source), str(folder))
    return _files(folder, False) | {
        name: source / name for name in ("README.md", "loss.png") if (source / name).is_file()
    }


def _commit(
    files: dict[str, Path],
    repo_id: str,
    private: bool,
    revision: str,
    tag: str | None,
    message: str,
    is_stock: bool,
) -> Pushed:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    api = HfApi(library_name="hf_gpt")
    repo_id = api.create_repo(repo_id, private=private or None, exist_ok=True).repo_id
    if private and not api.repo_info(repo_id).private:
        raise UserError(f"{repo_id}: is public already, and --private only makes new ones private")
    refs = api.list_repo_refs(repo_id)
    if revision in {ref.name for ref in refs.tags}:
        raise UserError(f"--revision {revision}: is a tag of {repo_id}; a commit goes to a branch")
    if revision not in {"main", *(ref.name for ref in refs.branches)}:
        api.create_branch(repo_id, branch=revision)
    parent = api.repo_info(repo_id, revision=revision).sha
    there = api.list_repo_files(repo_id, revision=parent)

    def published(name: str) -> Path:
        return Path(api.hf_hub_download(repo_id, name, revision=parent))

    if _RUN_ID in files and _RUN_ID in there:
        ours, theirs = (read_json(path).get("run_id") for path in (files[_RUN_ID], published(_RUN_ID)))
        if ours != theirs:
            raise UserError(f"{repo_id}: its branch {revision!r} holds another run; give another branch or repository")
    contents: dict[str, Path | bytes] = dict(files)
    if "README.md" in files or "README.md" in there:
        # Without a card of its own a model leaves of the published one what people wrote: the rest was of another.
        card = files["README.md"].read_text(encoding="utf-8") if "README.md" in files else bare_card()
        card = addressed(card, repo_id)
        card = as_stock(card, repo_id) if is_stock else card
        if "README.md" in there:
            card = merge(card, published("README.md").read_text(encoding="utf-8"))
        contents["README.md"] = card.encode()
    gone = [
        name
        for name in there
        if name not in files
        and (name.startswith(f"{checkpoint.TRAINING_STATE}/") or ("/" not in name and _is_of_a_model(name)))
    ]
    done = api.create_commit(
        repo_id,
        [
            *(CommitOperationAdd(name, content) for name, content in contents.items()),
            *(CommitOperationDelete(name) for name in gone),
        ],
        commit_message=message,
        revision=revision,
        parent_commit=parent,
    )
    if tag is not None:
        before = {ref.name: ref.target_commit for ref in refs.tags}
        if before.get(tag, done.oid) != done.oid:
            api.delete_tag(repo_id, tag=tag)
        if before.get(tag) != done.oid:
            api.create_tag(repo_id, tag=tag, revision=done.oid)
    where = "" if revision == "main" else f"/tree/{revision}"
    return Pushed(repo_id, revision, done.oid, tag, f"{api.endpoint}/{repo_id}{where}")


def _is_of_a_model(name: str) -> bool:
    return any(fnmatch(name, kind) for kind in _OF_A_MODEL)


# Fetching -----------------------------------------------------------------------------------------------------------


def _fetch(repo_id: str, branch: str, run_dir: Path) -> Path | None:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RemoteEntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError

    api = HfApi(library_name="hf_gpt")
    try:
        commit = api.repo_info(repo_id, revision=branch).sha
    except RevisionNotFoundError:
        return None
    except RepositoryNotFoundError:
        api.whoami()  # or a private repository is taken for none, and the run begun anew
        return None
    there = set(api.list_repo_files(repo_id, revision=commit))
    if not {checkpoint.MANIFEST, f"{_RECORDS_FOLDER}/recipe.yaml"} <= there:
        raise UserError(
            f"checkpoint.resume: hub, but {repo_id} at {branch!r} holds no training state; it is pushed with"
            " hub.with_training_state: true"
        )

    def small(name: str) -> Path:
        return Path(api.hf_hub_download(repo_id, name, revision=commit))

    progress = read_json(small(f"{checkpoint.TRAINING_STATE}/state.json"))["progress"]
    theirs = read_json(small(_RUN_ID)).get("run_id")
    ours = read_json(run_dir / "environment.json").get("run_id")
    if ours not in (None, theirs):
        raise UserError(
            f"{run_dir}: holds another run than {repo_id} at {branch!r}; give another --output_dir or hub.repo_id"
        )
    newest, _ = checkpoint.newest_whole(run_dir)
    if newest is not None and checkpoint.step_of(newest) >= progress["step"]:
        return None
    if progress.get("best_step") not in (None, progress["step"]):
        best = checkpoint.name_of(progress["best_step"])
        # It may never have been pushed, or without its state, or another run has its tag: then it stays away.
        with contextlib.suppress(RevisionNotFoundError, RemoteEntryNotFoundError):
            tagged = api.repo_info(repo_id, revision=best).sha
            of_run = read_json(Path(api.hf_hub_download(repo_id, _RUN_ID, revision=tagged))).get("run_id")
            if of_run == theirs:
                _download(api, repo_id, tagged, run_dir / "checkpoints" / best)
    # The records after the best checkpoint and before the newest: whenever this process dies, it can begin again.
    for name in RECORDS:
        if f"{_RECORDS_FOLDER}/{name}" in there:
            write_text(run_dir / name, small(f"{_RECORDS_FOLDER}/{name}").read_text(encoding="utf-8"))
    return _download(api, repo_id, commit, run_dir / "checkpoints" / checkpoint.name_of(progress["step"]))


def _download(api, repo_id: str, commit: str, final: Path) -> Path:
    """A checkpoint from the Hub, without the records of its run: there whole or not at all."""
    with replacing_directory(final) as directory:
        came = Path(api.snapshot_download(repo_id, revision=commit, ignore_patterns=f"{_RECORDS_FOLDER}/*"))
        for path in came.rglob("*"):
            name = path.relative_to(came)
            if path.is_file() and not name.name.startswith(".") and not name.is_relative_to(_RECORDS_FOLDER):
                (directory / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, directory / name)
        checkpoint.verify(directory)
    return final


# What can go wrong --------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _translate_hub_errors(repo_id: str) -> Iterator[None]:
    """The many exceptions of the client as one line that says what would help.

    Where the Hub's own words are needed they come without addresses: those of uploads are signed.
    """
    from huggingface_hub import constants, get_token
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalTokenNotFoundError,
        OfflineModeIsEnabled,
    )

    address = urlsplit(constants.ENDPOINT).hostname
    try:
        yield
    except (UserError, HubError):
        raise
    except HFValidationError:
        raise UserError(f"{repo_id!r} cannot be the name of a repository; such as someone/my-gpt") from None
    except OfflineModeIsEnabled:
        raise HubError("HF_HUB_OFFLINE is set, and the Hub is not asked for anything") from None
    except LocalTokenNotFoundError:
        raise HubError("there is no token for the Hub; log in with: hf auth login") from None
    except HfHubHTTPError as error:
        raise _refusal(error, repo_id, get_token() is not None) from None
    except OSError as error:
        if error.errno is not None and not isinstance(error, (ConnectionError, TimeoutError)):
            raise  # of a disk
        raise HubError(f"{address} was not reached: {_why(error)}", passes=True) from None
    except UnicodeEncodeError:
        raise HubError("the token has a character that no token has; log in with: hf auth login") from None
    except (RuntimeError, ValueError) as error:
        if isinstance(error.__cause__, HubError):  # of a file's upload
            raise error.__cause__ from None
        if isinstance(error.__cause__, HfHubHTTPError):
            raise _refusal(error.__cause__, repo_id, get_token() is not None) from None
        if isinstance(error, ValueError):
            raise HubError(f"{address} does not take it: {_without_addresses(str(error))}") from None
        raise HubError(f"a file did not arrive at {address}: {_why(error)}", passes=True) from None
    except Exception as error:
        if not type(error).__module__.startswith(("httpx", "httpcore")):
            raise
        raise HubError(f"{address} was not reached: {_why(error)}", passes=True) from None


def _refusal(error, repo_id: str, has_token: bool) -> HubError:
    status, headers = error.response.status_code, error.response.headers
    log_in = "log in with: hf auth login" if not has_token else "it has run out or was revoked; hf auth login"
    texts = {
        401: f"the token is not accepted (401); {log_in}" if has_token else f"the Hub wants a token (401); {log_in}",
        400: f"the Hub does not take it (400): {_without_addresses(error.server_message or 'it does not say why')}",
        403: f"the token may not do this with {repo_id} (403); to publish it needs the permission to write there",
        404: f"{repo_id} is not there, or not for this token (404)",
        409: f"{repo_id} is being written to by another (409)",
        412: f"{repo_id} was changed by another meanwhile (412)",
        413: f"a file is too large for {repo_id} (413); what is stored may be at its limit",
        429: "too many requests (429)",
    }
    text = texts.get(status, f"the Hub has a fault of its own ({status})" if status >= 500 else f"refused ({status})")
    wait, passes = headers.get("Retry-After", ""), status >= 500 or status in (408, 409, 412, 429)
    return HubError(text, passes, float(wait) if wait.isdigit() else None)


def _without_addresses(text: str) -> str:
    """One line of what the Hub says; addresses of uploads are signed."""
    return re.sub(r"https?://\S+", "...", " ".join(text.split()))[:300]


def _why(error: BaseException) -> str:
    """The innermost reason, without addresses."""
    reason, kind = error, type(error).__name__
    while reason.__cause__ or reason.__context__:
        reason = reason.__cause__ or reason.__context__
    if "Timeout" in kind:
        return "no answer in time"
    return getattr(reason, "strerror", None) or {"RemoteProtocolError": "the connection was cut"}.get(kind, kind)
