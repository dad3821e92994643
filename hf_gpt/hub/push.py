"""Publish a model on the Hub.

A push is one commit: readers of the repository see the model before or after it, never a mixture. The same commit
removes files of the previous model that the new one lacks. A tag is set after the commit. Files that the Hub has
already are not sent again.

`training_state/` is sent only on request, together with the records of the run (in `training_state/run/`), from which
fetch.py resumes it on another machine. What people wrote into the model card stays (card_merge.py).

huggingface_hub does the traffic and knows the token, the address (`HF_ENDPOINT`), the cache and the offline mode. No
message contains the token. background.py pushes during training.
"""

import contextlib
import re
import tempfile
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from .. import checkpoint
from ..data.tokenizer import TOKENIZER_FILES
from ..errors import UserError, without_secrets
from ..network import hub_requests
from ..storage import read_json
from .card_merge import as_gpt2_card, bare_card, merge, with_repo_id

RECORDS = ("recipe.yaml", "environment.json", "metrics.jsonl", "samples.jsonl", "events.jsonl")
RECORDS_FOLDER = f"{checkpoint.TRAINING_STATE}/run"
ENVIRONMENT = f"{RECORDS_FOLDER}/environment.json"

# The files of a model, at the top of a repository. A push removes those that the pushed model lacks. All other files
# may be a person's and stay, such as `vocab.txt` or what only matches a pattern of TOKENIZER_FILES.
_MODEL_FILES = (
    "config.json",
    "generation_config.json",
    "model*.safetensors",
    "model.safetensors.index.json",
    "pytorch_model*.bin",
    "pytorch_model.bin.index.json",
    *(name for name in TOKENIZER_FILES if name != "vocab.txt" and "*" not in name),
    "tokenizer.model",
    "chat_template.jinja",
    "configuration_gpt.py",
    "modeling_gpt.py",
    "loss.png",
    checkpoint.MILESTONE,
)
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")  # never sent: loading one can run code


@dataclass(frozen=True)
class Pushed:
    """Where a model was published."""

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
    named: str | None = None,
) -> Pushed:
    """Publish a model in one commit; the repository and the branch are created where they do not exist.

    Args:
        model: a model's directory, or a run's, which means its best checkpoint.
        repo_id: `OWNER/NAME`, or `NAME` for your own.
        private: create a private repository. An existing public one is refused.
        revision: the branch to commit to.
        tag: set to the commit; an existing tag of that name is moved.
        message: of the commit; by default it names the step.
        with_training_state: also send what resuming needs, with the run's recipe and records.
        as_gpt2: send a stock `GPT2LMHeadModel`, which needs neither this package nor remote code.
        named: the tag or branch that will be made at the commit, which then holds this model and nothing else.

    Raises:
        UserError: there is no such model here, or an argument cannot work.
        HubError: the Hub was not reached, or refused.
    """
    source = Path(checkpoint.resolve_model(str(model)))
    if not source.is_dir():
        raise UserError(f"{model}: no such directory; only a model on this disk can be pushed")
    source = source.resolve()  # so that its parents are those of the run
    is_checkpoint = (source / checkpoint.MANIFEST).is_file()
    if is_checkpoint:  # a run may take the state out of a milestone meanwhile
        is_sent = lambda name: with_training_state or not name.startswith(f"{checkpoint.TRAINING_STATE}/")  # noqa: E731
        checkpoint.verify(source, {*filter(is_sent, checkpoint.listed(source))})
    if with_training_state and not is_checkpoint:
        raise UserError(f"{model} has none; only checkpoints of a run have one", field="with_training_state")
    if as_gpt2 and with_training_state:
        raise UserError("excludes the training state; only a model in our form can be resumed", field="as_gpt2")
    message = message or _message(source)
    with tempfile.TemporaryDirectory() as folder:
        files = _gpt2_files(source, Path(folder, "gpt2")) if as_gpt2 else _files(source, with_training_state)
        with hub_requests(repo_id):
            return _commit(files, repo_id, private, revision, tag, message, as_gpt2, named)


def _message(folder: Path) -> str:
    with contextlib.suppress(AttributeError):
        return f"Step {checkpoint.step_of(folder)}"
    return "Upload model"


def _files(folder: Path, with_training_state: bool) -> dict[str, Path]:
    """The files to send, by their paths in the repository."""
    if (folder / checkpoint.MANIFEST).is_file():  # a checkpoint is what its manifest says
        paths = [folder / name for name in (*checkpoint.listed(folder), checkpoint.MANIFEST, "README.md")]
    else:
        paths = sorted(folder.rglob("*"))
    names = {path.relative_to(folder).as_posix(): path for path in paths if path.is_file() or path.is_symlink()}
    found = {
        name: path
        for name, path in names.items()
        if not re.search(r"(^|/)(\.|__pycache__/)", name)
        and not any(fnmatch(name, pattern) for pattern in _PICKLES)
        and (with_training_state or not name.startswith(f"{checkpoint.TRAINING_STATE}/"))
    }
    cache = folder.parent.parent if folder.parent.name == "snapshots" else None  # the Hub's, whose files are links
    for path in found.values():
        if path.is_symlink() and not (cache and path.resolve().is_relative_to(cache)):
            raise UserError(f"{path}: is a link, and could send any file of this machine; put the file itself there")
    if not any(fnmatch(name, "*.safetensors") for name in found):
        raise UserError(f"{folder}: has no safetensors weights; a .bin is not sent, because a pickle can run code")
    if not with_training_state:
        return found
    run_dir = folder.parent.parent
    for name in RECORDS:
        if (run_dir / name).is_file():
            found[f"{RECORDS_FOLDER}/{name}"] = run_dir / name
        elif name in ("recipe.yaml", "environment.json"):
            raise UserError(f"{folder} is in no run with a {name}, which resuming needs", field="with_training_state")
    return found


def _gpt2_files(source: Path, folder: Path) -> dict[str, Path]:
    """The model as a stock GPT-2, converted into `folder`, with its card, its plot and what it says of a milestone."""
    from ..conversion import to_gpt2

    to_gpt2(str(source), str(folder))
    beside = ("README.md", "loss.png", checkpoint.MILESTONE)
    page = {name: source / name for name in beside if (source / name).is_file()}
    return _files(folder, with_training_state=False) | page


def _commit(
    files: dict[str, Path],
    repo_id: str,
    private: bool,
    revision: str,
    tag: str | None,
    message: str,
    as_gpt2: bool,
    named: str | None,
) -> Pushed:
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    api = HfApi(library_name="hf_gpt")
    repo_id = api.create_repo(repo_id, private=private or None, exist_ok=True).repo_id
    if private and not api.repo_info(repo_id).private:
        raise UserError(f"{repo_id} is public already; only a new repository can be created private", field="private")
    refs = api.list_repo_refs(repo_id)
    tags = {ref.name: ref.target_commit for ref in refs.tags}
    if revision in tags:
        raise UserError(f"'{revision}' is a tag of {repo_id}; a commit goes to a branch", field="revision")
    branches = {"main", *(ref.name for ref in refs.branches)}
    if tag in {revision, *branches}:
        raise UserError(f"'{tag}' is a branch of {repo_id}; give the tag another name", field="tag")
    if revision not in branches:
        api.create_branch(repo_id, branch=revision)
    parent = api.repo_info(repo_id, revision=revision).sha
    published = api.list_repo_files(repo_id, revision=parent)

    def download(name: str) -> Path:
        return Path(api.hf_hub_download(repo_id, name, revision=parent))

    if ENVIRONMENT in files and ENVIRONMENT in published:
        ours, theirs = (read_json(path).get("run_id") for path in (files[ENVIRONMENT], download(ENVIRONMENT)))
        if ours != theirs:
            raise UserError(f"{repo_id}: its branch '{revision}' holds another run; give another branch or repository")
    contents: dict[str, Path | bytes] = dict(files)
    is_merged = "README.md" in published and named is None
    if "README.md" in files or is_merged:
        # For a model without a card, the published card keeps only what people wrote.
        card = files["README.md"].read_text(encoding="utf-8") if "README.md" in files else bare_card()
        card = with_repo_id(as_gpt2_card(card) if as_gpt2 else card, repo_id, named)
        if is_merged:
            card = merge(card, download("README.md").read_text(encoding="utf-8"))
        contents["README.md"] = card.encode()
    is_ours = (lambda name: name != ".gitattributes") if named else _belongs_to_a_model
    removed = [name for name in published if name not in contents and is_ours(name)]
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
    if tag and tags.get(tag) != commit:
        if tag in tags:
            api.delete_tag(repo_id, tag=tag)
        api.create_tag(repo_id, tag=tag, revision=commit)
    page = "" if revision == "main" else f"/tree/{revision}"
    return Pushed(repo_id, revision, commit, tag, without_secrets(f"{api.endpoint}/{repo_id}{page}"))


def _belongs_to_a_model(name: str) -> bool:
    if name.startswith((f"{checkpoint.TRAINING_STATE}/", "additional_chat_templates/")):
        return True
    return "/" not in name and any(fnmatch(name, pattern) for pattern in _MODEL_FILES)
