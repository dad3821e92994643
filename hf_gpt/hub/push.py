"""Publish a model on the Hub.

The one idea: a push is one commit. Whoever reads the repository sees the model before or after it, never a mixture:
files of the previous model that the new one lacks are removed in the same commit, and a tag is set once the commit is
there. Files that the Hub has already are not sent again.

`training_state/` is sent only on request. With it go the records of the run, in `training_state/run/`, from which
another machine can resume it (`fetch.py`). What people wrote into the model card stays (`card_merge.py`).

Traffic, token, address (`HF_ENDPOINT`), cache and offline mode are huggingface_hub's. No message contains the token.
Pushes during training are background.py's.
"""

import contextlib
import os
import re
import tempfile
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from .. import checkpoint
from ..errors import HubError, UserError, translate_hub_errors
from ..storage import read_json
from .card_merge import as_gpt2_card, bare_card, merge, with_repo_id

RECORDS = ("recipe.yaml", "environment.json", "metrics.jsonl", "samples.jsonl", "events.jsonl")
RECORDS_FOLDER = f"{checkpoint.TRAINING_STATE}/run"
ENVIRONMENT = f"{RECORDS_FOLDER}/environment.json"

# The files of a model, at the top of a repository. Those on the Hub that the pushed model lacks are removed; files
# with other names or in other folders (but `training_state/`) are other people's and stay.
_MODEL_FILES = (
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
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")  # reading one can run code

_TIMEOUT = 60.0  # seconds, unless HF_HUB_DOWNLOAD_TIMEOUT is set
_LONGEST_RETRY_AFTER = 15.0  # seconds that the client may sleep inside a request because the Hub asked it to


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
    """Publish a model in one commit; the repository and the branch are created where they do not exist.

    Args:
        model: a model's directory, or a run's, which means its best checkpoint.
        repo_id: `OWNER/NAME`, or `NAME` for one's own.
        private: a repository that is created now is private. An existing public one is refused.
        revision: the branch to commit to.
        tag: set to the commit; a tag of that name is moved.
        message: of the commit; by default it names the step.
        with_training_state: also send what resuming needs, with the run's recipe and records.
        as_gpt2: send a stock `GPT2LMHeadModel`, which needs neither this package nor remote code.

    Raises:
        UserError: there is no such model here, or an argument cannot work.
        HubError: the Hub was not reached, or refused.
    """
    source = Path(checkpoint.resolve_model(str(model)))
    if not source.is_dir():
        raise UserError(f"{model}: no such directory; only a model on this disk can be pushed")
    source = source.resolve()  # so that a checkpoint's parents are its run's
    for name, value in (("revision", revision), ("tag", tag)):
        if value == "":
            raise UserError(f"{name}: it is empty; give a name, or leave it out")
    is_checkpoint = (source / checkpoint.MANIFEST).is_file()
    if is_checkpoint:
        checkpoint.verify(source)
    if with_training_state and not is_checkpoint:
        raise UserError(f"with_training_state: {model} has none; only checkpoints of a run have")
    if as_gpt2 and with_training_state:
        raise UserError("as_gpt2: excludes with_training_state; training resumes from our own form only")
    message = message or _message(source)
    with tempfile.TemporaryDirectory() as folder:
        files = _gpt2_files(source, Path(folder, "gpt2")) if as_gpt2 else _files(source, with_training_state)
        with translate_hub_errors(repo_id):
            return _commit(files, repo_id, private, revision, tag, message, as_gpt2)


def give_up_silent_connections() -> None:
    """Let this process's requests to the Hub fail when nothing arrives for a minute; many have no time limit.

    `HF_HUB_DOWNLOAD_TIMEOUT`, in seconds, sets another limit. A request that the Hub asks to repeat after a long pause
    fails at once, with that pause in the error; the client would sleep through it.
    """
    from huggingface_hub import get_session, set_client_factory

    default, timeout = get_session(), os.environ.get("HF_HUB_DOWNLOAD_TIMEOUT", "")
    hooks = {**default.event_hooks, "response": [*default.event_hooks.get("response", []), _refuse_long_pause]}
    options = {
        "event_hooks": hooks,
        "follow_redirects": default.follow_redirects,
        "timeout": float(timeout) if timeout.isdigit() else _TIMEOUT,
    }
    set_client_factory(lambda: type(default)(**options))


def _refuse_long_pause(response) -> None:
    pause = response.headers.get("Retry-After", "")
    if response.status_code >= 400 and pause.isdigit() and float(pause) > _LONGEST_RETRY_AFTER:
        what = "too many requests" if response.status_code == 429 else "the Hub is not ready"
        raise HubError(f"{what} ({response.status_code})", is_transient=True, retry_after=float(pause))


def _message(folder: Path) -> str:
    with contextlib.suppress(AttributeError):
        return f"Step {checkpoint.step_of(folder)}"
    return "Upload model"


def _files(folder: Path, with_training_state: bool) -> dict[str, Path]:
    """The files to send, by their paths in the repository."""
    names = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    found = {
        name: path
        for name, path in names.items()
        if not re.search(r"(^|/)(\.|__pycache__/)", name)
        and not any(fnmatch(name, pattern) for pattern in _PICKLES)
        and (with_training_state or not name.startswith(f"{checkpoint.TRAINING_STATE}/"))
    }
    if not any(fnmatch(name, "*.safetensors") for name in found):
        raise UserError(f"{folder}: has no safetensors weights; a .bin is a pickle, and can run code")
    if not with_training_state:
        return found
    run_dir = folder.parent.parent
    for name in RECORDS:
        if (run_dir / name).is_file():
            found[f"{RECORDS_FOLDER}/{name}"] = run_dir / name
        elif name in ("recipe.yaml", "environment.json"):
            raise UserError(f"with_training_state: {folder} lies in no run with a {name}, which resuming needs")
    return found


def _gpt2_files(source: Path, folder: Path) -> dict[str, Path]:
    """The model as a stock GPT-2, converted into `folder`, with its card and plot."""
    from ..conversion import to_gpt2

    to_gpt2(str(source), str(folder))
    page = {name: source / name for name in ("README.md", "loss.png") if (source / name).is_file()}
    return _files(folder, with_training_state=False) | page


def _commit(
    files: dict[str, Path], repo_id: str, private: bool, revision: str, tag: str | None, message: str, as_gpt2: bool
) -> Pushed:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    api = HfApi(library_name="hf_gpt")
    repo_id = api.create_repo(repo_id, private=private or None, exist_ok=True).repo_id
    if private and not api.repo_info(repo_id).private:
        raise UserError(f"private: {repo_id} is public already; only a new repository can be created private")
    refs = api.list_repo_refs(repo_id)
    tags = {ref.name: ref.target_commit for ref in refs.tags}
    if revision in tags:
        raise UserError(f"revision: {revision!r} is a tag of {repo_id}; a commit goes to a branch")
    if revision not in {"main", *(ref.name for ref in refs.branches)}:
        api.create_branch(repo_id, branch=revision)
    parent = api.repo_info(repo_id, revision=revision).sha
    published = api.list_repo_files(repo_id, revision=parent)

    def download(name: str) -> Path:
        return Path(api.hf_hub_download(repo_id, name, revision=parent))

    if ENVIRONMENT in files and ENVIRONMENT in published:
        ours, theirs = (read_json(path).get("run_id") for path in (files[ENVIRONMENT], download(ENVIRONMENT)))
        if ours != theirs:
            raise UserError(f"{repo_id}: its branch {revision!r} holds another run; give another branch or repository")
    contents: dict[str, Path | bytes] = dict(files)
    if "README.md" in files or "README.md" in published:
        # Of a model without a card nothing is known: the published card keeps only what people wrote.
        card = files["README.md"].read_text(encoding="utf-8") if "README.md" in files else bare_card()
        card = as_gpt2_card(card, repo_id) if as_gpt2 else card
        card = with_repo_id(card, repo_id)
        if "README.md" in published:
            card = merge(card, download("README.md").read_text(encoding="utf-8"))
        contents["README.md"] = card.encode()
    removed = [name for name in published if name not in files and _belongs_to_a_model(name)]
    commit = api.create_commit(
        repo_id,
        [
            *(CommitOperationAdd(name, content) for name, content in contents.items()),
            *(CommitOperationDelete(name) for name in removed),
        ],
        commit_message=message,
        revision=revision,
        parent_commit=parent,
    ).oid
    if tag is not None and tags.get(tag) != commit:
        if tag in tags:
            api.delete_tag(repo_id, tag=tag)
        api.create_tag(repo_id, tag=tag, revision=commit)
    page = "" if revision == "main" else f"/tree/{revision}"
    return Pushed(repo_id, revision, commit, tag, f"{api.endpoint}/{repo_id}{page}")


def _belongs_to_a_model(name: str) -> bool:
    if name.startswith(f"{checkpoint.TRAINING_STATE}/"):
        return True
    return "/" not in name and any(fnmatch(name, pattern) for pattern in _MODEL_FILES)
