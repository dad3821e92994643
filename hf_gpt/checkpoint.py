"""What a checkpoint is: write, verify, find, prune.

A checkpoint is a Hub repo that stands on its own: weights, configuration, tokenizer, model card. What only training
needs lies in its `training_state/`, among it a manifest with the size and SHA-256 of every file but the card, which
people may edit. Writing one is atomic: it is filled under a temporary name, flushed to disk, then renamed. The
manifest finds what happened to it later. `latest` and `best` are small files that hold the name of a step.

    <run>/checkpoints/step-00000500/     config.json model.safetensors tokenizer.json ... training_state/manifest.json
    <run>/checkpoints/latest             step-00000500
    <run>/checkpoints/best               step-00000400

This file knows files only. What is in a training state is the business of `training/state.py`.
"""

import contextlib
import hashlib
import json
import pickle
import re
import shutil
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from .data.tokenizer import TOKENIZER_FILES
from .errors import HubError, UserError, translate_hub_errors
from .storage import replacing_directory, translate_disk_errors, write_json, write_text

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TRAINING_STATE = "training_state"
MANIFEST = f"{TRAINING_STATE}/manifest.json"
_STEP = re.compile(r"step-(\d{8,})")


def name_of(step: int) -> str:
    """`step-00000500`"""
    return f"step-{step:08d}"


def step_of(checkpoint: Path) -> int:
    """The step in a checkpoint's name."""
    return int(_STEP.fullmatch(checkpoint.name).group(1))


def checkpoints(run_dir: str | Path) -> list[Path]:
    """The checkpoints of a run, oldest first. Half-written ones have another name and are not among them."""
    found = [path for path in (Path(run_dir) / "checkpoints").glob("step-*") if _STEP.fullmatch(path.name)]
    return sorted(found, key=step_of)


@contextlib.contextmanager
def writing(run_dir: str | Path, step: int) -> Iterator[Path]:
    """A directory to fill; when the block ends without an error it becomes the checkpoint of `step` in one rename."""
    final = Path(run_dir) / "checkpoints" / name_of(step)
    with translate_disk_errors(final), replacing_directory(final) as directory:
        (directory / TRAINING_STATE).mkdir()
        yield directory
        write_json(directory / MANIFEST, _describe(directory))


def verify(checkpoint: str | Path) -> None:
    """Compare a checkpoint with its manifest; a :class:`UserError` names the first file that is not right."""
    checkpoint = Path(checkpoint)
    try:
        manifest = json.loads((checkpoint / MANIFEST).read_text())
        files = {name: (entry["size"], entry["sha256"]) for name, entry in manifest["files"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        files = {}
    if not files:
        raise UserError(f"{checkpoint}: not a complete training checkpoint: {MANIFEST} is missing or damaged")
    for name, (size, digest) in files.items():
        path = checkpoint / name
        try:
            is_whole = path.stat().st_size == size and _sha256(path) == digest
        except OSError as error:
            raise UserError(f"{path}: missing or unreadable: {error.strerror or error}") from None
        if not is_whole:
            raise UserError(f"{path}: truncated or altered: its size or SHA-256 is not the manifest's")


def newest_whole(run_dir: str | Path) -> tuple[Path | None, dict[Path, str]]:
    """The newest checkpoint that verifies, and each newer one with what is wrong with it."""
    problems = {}
    for checkpoint in reversed(checkpoints(run_dir)):
        try:
            verify(checkpoint)
            return checkpoint, problems
        except UserError as error:
            problems[checkpoint] = str(error)
    return None, problems


def set_aside(checkpoint: Path) -> None:
    """Rename a damaged checkpoint, so that no run resumes from it and a person can still look at it."""
    aside = checkpoint.with_name(f"damaged-{checkpoint.name}")
    shutil.rmtree(aside, ignore_errors=True)
    checkpoint.rename(aside)


def point(run_dir: str | Path, name: str, checkpoint: Path) -> None:
    """Let `latest` or `best` name a checkpoint."""
    write_text(Path(run_dir) / "checkpoints" / name, checkpoint.name + "\n")


def pointed(run_dir: str | Path, name: str) -> Path | None:
    """The checkpoint that `latest` or `best` names, if it is there."""
    pointer = Path(run_dir) / "checkpoints" / name
    with contextlib.suppress(OSError, UnicodeDecodeError):
        checkpoint = pointer.parent / pointer.read_text().strip()
        if _STEP.fullmatch(checkpoint.name) and checkpoint.is_dir():
            return checkpoint
    return None


def prune(run_dir: str | Path, keep: int | None, needed: Collection[Path] = ()) -> None:
    """Remove all but the newest `keep` checkpoints, the best one and those `needed`. The newest always stays."""
    clear_unfinished(run_dir)
    if keep is None:
        return
    best = pointed(run_dir, "best")
    for checkpoint in checkpoints(run_dir)[:-keep]:
        if checkpoint != best and checkpoint not in needed:
            doomed = checkpoint.with_name(f".removing-{checkpoint.name}")
            checkpoint.rename(doomed)  # so that no half-removed directory ever bears a checkpoint's name
            shutil.rmtree(doomed)


def clear_unfinished(run_dir: str | Path) -> None:
    """Remove what a process that died left half-written or half-removed."""
    for pattern in (".writing-*", ".removing-*"):
        for path in (Path(run_dir) / "checkpoints").glob(pattern):
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


@contextlib.contextmanager
def run_lock(run_dir: str | Path) -> Iterator[None]:
    """While the block runs, no other process can train into `run_dir`: the lock goes with the process that holds it.

    Raises:
        UserError: another process holds it.
    """
    from filelock import FileLock, Timeout

    path = Path(run_dir) / "checkpoints" / ".lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(FileLock(path, timeout=0))
        except Timeout:
            text = "another process is training there; wait for it, or give another output_dir"
            raise UserError(f"{run_dir}: {text}") from None
        yield


def load_model(model: str) -> tuple["PreTrainedModel", "PreTrainedTokenizerBase"]:
    """The model and the tokenizer of what a person named (see `resolve_model`), ready to evaluate or generate.

    Raises:
        UserError: it is not there, is damaged, or not a causal language model with a tokenizer.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from .configuration_gpt import WRAPPERS, forget_wrappers

    source = model_folder(model)
    if (source / MANIFEST).is_file():
        verify(source)
    try:
        loaded, report = AutoModelForCausalLM.from_pretrained(
            source, trust_remote_code=False, output_loading_info=True, key_mapping={WRAPPERS: ""}
        )
        forget_wrappers(loaded)
        if not any(list(source.glob(names)) for names in TOKENIZER_FILES):
            raise UserError(f"{model}: has no tokenizer; put the files of the one it was trained with into its folder")
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except pickle.UnpicklingError:
        raise UserError(f"{model}: its weights are a pickle that could run code, and were not read") from None
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise UserError(f"{model}: cannot be loaded as a model: {error}") from None
    refuse_missing_weights(model, report)
    return loaded.to(best_device()).eval(), tokenizer


def best_device() -> str:
    """What `auto` means: cuda, else mps, else cpu."""
    import torch

    return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"


def refuse_missing_weights(model: str, report: Mapping[str, Any]) -> None:
    """Refuse weights that a checkpoint lacks; transformers would draw them at random and only warn.

    `report` is what `from_pretrained(..., output_loading_info=True)` gives beside the model.
    """
    for kind in ("missing_keys", "mismatched_keys"):
        if found := sorted(map(str, report.get(kind) or ())):
            what = "lacks" if kind == "missing_keys" else "has other shapes than its config.json for"
            raise UserError(f"{model}: {what} {found[0]} and {len(found) - 1} more of the model's weights")


def resolve_model(model: str) -> str:
    """What `from_pretrained` should be given for a MODEL a person named.

    A run's directory means its best checkpoint, else its latest; `<run>/checkpoints/best` and `latest` mean what they
    name; any other directory is itself; anything that is not on disk is left to be a Hub id, perhaps with a branch,
    tag or commit (`someone/my-gpt@step-00000500`).

    Raises:
        UserError: a local path that is missing or holds no model.
    """
    path = Path(model)
    if path.name in ("best", "latest") and path.parent.name == "checkpoints":
        found = pointed(path.parent.parent, path.name)
    elif (path / "checkpoints").is_dir():
        found = pointed(path, "best") or next(iter(reversed(checkpoints(path))), None)
    else:
        is_local = path.exists() or path.is_absolute() or model.startswith((".", "~")) or model.count("/") > 1
        if is_local and not (path / "config.json").is_file():
            raise UserError(f"{model}: no such directory, or not a model: it has no config.json")
        return model
    if found is None:
        raise UserError(f"{model}: the run has no checkpoint yet")
    return str(found)


def model_folder(model: str, revision: str | None = None) -> Path:
    """The directory of what a person named (see `resolve_model`): itself, or a Hub id's files in the cache.

    The Hub is asked once, before transformers would: left to itself without a network, that retries for a minute.

    Raises:
        UserError: there is none, or it holds no model.
    """
    place = resolve_model(model)
    if Path(place).is_dir():
        return Path(place)
    from huggingface_hub import snapshot_download

    repo_id, _, named = place.partition("@")

    def download(patterns: list[str]) -> Path:
        files = {"allow_patterns": patterns, "ignore_patterns": ["*/*"]}
        return Path(snapshot_download(repo_id, revision=revision or named or None, **files))

    small = ["*.json", "*.txt", "*.model", "*.jinja"]
    try:
        with translate_hub_errors(f"{model}: neither a directory here nor found on the Hub"):
            folder = download([*small, "model.safetensors", "model-*.safetensors"])
            if not any(folder.glob("model*.safetensors")):
                folder = download([*small, "pytorch_model*.bin"])
    except HubError as error:
        raise UserError(str(error)) from None
    if not (folder / "config.json").is_file():
        raise UserError(f"{model}: not a model: it has no config.json")
    return folder


def _describe(directory: Path) -> dict[str, Any]:
    # The card is not among them: people write into it, here and on the Hub.
    files = sorted(path for path in directory.rglob("*") if path.is_file() and path.name != "README.md")
    return {
        "files": {
            path.relative_to(directory).as_posix(): {"size": path.stat().st_size, "sha256": _sha256(path)}
            for path in files
        }
    }


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
