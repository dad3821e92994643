"""What a checkpoint is: write, verify, find, prune.

A checkpoint is a Hub repo that stands on its own: weights, configuration, tokenizer, model card. What only training
needs lies in its `training_state/`, among it a manifest with the size and SHA-256 of every file but the card, which
people may edit. Writing one is atomic: it is filled under a temporary name, flushed to disk, then renamed. The
manifest finds what happened to it later, and says what the checkpoint is: a file that somebody added changes nothing.
`latest` and `best` are small files that hold the name of a step.

    <run>/checkpoints/step-00000500/     config.json model.safetensors tokenizer.json ... training_state/manifest.json
    <run>/checkpoints/latest             step-00000500
    <run>/checkpoints/best               step-00000400

A checkpoint whose content is not the manifest's is damaged, and can be set aside. One that cannot be read may be
whole, so it is only refused. This file knows files only: what is in a training state is the business of
`training/state.py`.
"""

import atexit
import contextlib
import hashlib
import os
import re
import shutil
import stat
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from .data.tokenizer import TOKENIZER_FILES
from .errors import HubError, UserError
from .loading import quiet, reading_model, refuse_other_models, say_unused, skeleton, with_weights
from .network import hub_requests
from .storage import (
    entries,
    is_there,
    local_path,
    parse_json,
    read_file,
    read_json,
    reading,
    refusing_unreadable,
    remove,
    replacing_directory,
    set_aside,
    translate_disk_errors,
    write_json,
    write_text,
)
from .transformers_4 import with_older_names

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TRAINING_STATE = "training_state"
MANIFEST = f"{TRAINING_STATE}/manifest.json"
MILESTONE = "milestone.json"  # in a checkpoint that stays for ever
_CARD, _ADAPTER = "README.md", "adapter_config.json"
_STEP = re.compile(r"step-([0-9]{8}|[1-9][0-9]{8,17})")


class DamagedCheckpoint(UserError):
    """A checkpoint whose content is not what its manifest says, or that lacks one."""


def name_of(step: int) -> str:
    """`step-00000500`"""
    return f"step-{step:08d}"


def step_of(checkpoint: Path) -> int:
    """The step in a checkpoint's name."""
    return int(_STEP.fullmatch(checkpoint.name).group(1))


def saved(run_dir: str | Path) -> list[Path]:
    """All checkpoints of a run, oldest first. Half-written ones have another name and are not among them.

    Raises:
        UserError: their folder cannot be read.
    """
    return sorted((path for path in entries(Path(run_dir) / "checkpoints") if _STEP.fullmatch(path.name)), key=step_of)


def checkpoints(run_dir: str | Path) -> list[Path]:
    """Those of them that can be resumed: all but milestones without a training state."""
    return [path for path in saved(run_dir) if _has_state(path)]


def milestones(run_dir: str | Path) -> list[Path]:
    """Those of them that stay for ever."""
    return [path for path in saved(run_dir) if is_there(path / MILESTONE)]


def milestone(checkpoint: Path) -> dict[str, Any] | None:
    """What the `milestone.json` of a checkpoint says; None if it is no milestone.

    Raises:
        UserError: it is damaged, or cannot be read.
    """
    if not is_there(checkpoint / MILESTONE):
        return None
    found = read_json(checkpoint / MILESTONE)
    asked = found.get("asked")
    counts = [found.get(name) for name in ("step", "tokens", "words")]
    lists = [asked.get(name) for name in ("tokens", "words")] if isinstance(asked, dict) else [None]
    if not all(isinstance(one, list) for one in lists) or not all(type(n) is int for n in sum(lists, counts)):
        raise UserError(f"{checkpoint / MILESTONE}: is damaged")
    return found


def _has_state(checkpoint: Path) -> bool:
    """Whether a checkpoint has a training state, by its manifest; also if that is damaged, which is then found out."""
    try:
        return f"{TRAINING_STATE}/state.json" in (names := listed(checkpoint)) or MILESTONE not in names
    except UserError:
        return True


class _LeftAlone(Exception):
    """The checkpoint is there."""


@contextlib.contextmanager
def writing(run_dir: str | Path, step: int, *, with_state: bool = True) -> Iterator[Path]:
    """A directory to fill; when the block ends without an error it becomes the checkpoint of `step` in one rename.

    One that is there and has the same weights is left alone, unless it lacks the training state of the new one, or is
    a milestone for something else.

    Args:
        with_state: keep what the block puts into `training_state/`.
    """
    final = Path(run_dir) / "checkpoints" / name_of(step)
    # A bar would cross that of the run.
    with contextlib.suppress(_LeftAlone), translate_disk_errors(final), quiet(), placing(final) as directory:
        (directory / TRAINING_STATE).mkdir()
        yield directory
        if not with_state:
            shutil.rmtree(directory / TRAINING_STATE)
            (directory / TRAINING_STATE).mkdir()
        write_json(directory / MANIFEST, _describe(directory))
        lacks_nothing = is_whole(final) and (_has_state(final) or not with_state)
        if lacks_nothing and _held(final) == _held(directory):
            raise _LeftAlone


def _held(checkpoint: Path) -> Any:
    """What two checkpoints of one step agree in: their weights, and what they are milestones for."""
    return hashes_of_weights(checkpoint), listed(checkpoint).get(MILESTONE)


@contextlib.contextmanager
def placing(final: Path) -> Iterator[Path]:
    """A directory to fill, which then becomes the checkpoint `final`; one there is set aside, a milestone goes."""
    with replacing_directory(final) as directory:
        yield directory
        if is_there(final / MILESTONE) and is_whole(final):
            discard(final)
        elif is_there(final):
            set_aside(final)


def leave_out_odd(directory: Path) -> list[str]:
    """Remove from a checkpoint that is being written what is no file, such as a link or a pipe; returns the names."""
    odd = []
    for path in sorted(directory.rglob("*")):
        if not _is_plain(path) and (path.is_symlink() or not path.is_dir()):
            odd.append(path.relative_to(directory).as_posix())
            remove(path)
    return odd


def listed(checkpoint: Path) -> dict[str, tuple[int, str]]:
    """What the manifest of a checkpoint lists: size and SHA-256 by the file's path in it.

    Raises:
        DamagedCheckpoint: there is no manifest, or it is not one.
        UserError: it cannot be read.
    """
    content = read_file(checkpoint / MANIFEST)
    try:
        manifest = parse_json(content or b"")
        files = {name: (entry["size"], entry["sha256"]) for name, entry in manifest["files"].items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        files = {}
    if not files or not all(map(_stays_inside, files)):
        raise DamagedCheckpoint(f"{checkpoint}: not a complete training checkpoint: {MANIFEST} is missing or damaged")
    return files


def verify(checkpoint: str | Path, names: Collection[str] | None = None) -> None:
    """Compare a checkpoint, or those of its files with these `names`, with its manifest.

    Raises:
        DamagedCheckpoint: the first file that is not right.
        UserError: the first that cannot be read.
    """
    checkpoint = Path(checkpoint)
    for name, (size, digest) in listed(checkpoint).items():
        if names is not None and name not in names:
            continue
        path = checkpoint / name
        with reading(path) as file:
            if file is None:
                raise DamagedCheckpoint(f"{path}: missing")
            if _sha256(file) != digest or os.fstat(file.fileno()).st_size != size:
                raise DamagedCheckpoint(f"{path}: truncated or altered: its size or SHA-256 is not the manifest's")


def is_whole(checkpoint: Path) -> bool:
    """Whether a checkpoint is there, and verifies."""
    try:
        verify(checkpoint)
    except DamagedCheckpoint:
        return False
    return True


def hashes_of_weights(checkpoint: Path) -> dict[str, str]:
    """The SHA-256 of each file of the weights of a checkpoint, by its manifest.

    Raises:
        UserError: there is no manifest, or it cannot be read.
    """
    files = listed(checkpoint)
    return {path.name: files[path.name][1] for path in weight_files(checkpoint)}


def weights_hash(folder: Path) -> str:
    """SHA-256 of the file of a model's weights, or of the hashes of its shards; of a checkpoint, by its manifest.

    Raises:
        UserError: there are none, or they cannot be read.
    """
    hashes = hashes_of_weights(folder) if is_there(folder / MANIFEST) else {}
    for path in [] if hashes else weight_files(folder):
        with reading(path) as file:
            hashes[path.name] = _sha256(file)
    first, *others = hashes.values()
    return hashlib.sha256("".join([first, *others]).encode()).hexdigest() if others else first


def unlisted(checkpoint: Path) -> list[str]:
    """Files and folders that somebody put into a checkpoint; not what no program looks for: the card, hidden ones."""
    known = {name.partition("/")[0] for name in listed(checkpoint)} | {TRAINING_STATE, _CARD, "__pycache__"}
    return [path.name for path in entries(checkpoint) if path.name not in known and not path.name.startswith(".")]


def opened(folder: Path, patterns: Iterable[str] = ("*",)) -> Path:
    """The folder that transformers may be given for the model in `folder`, or for its files of some names.

    Of a checkpoint, these files are verified. If something was added to it, that is left out, in words and from the
    folder: what comes back has links to the listed files, and is gone when this process ends. Its training state is
    not looked at. Another folder is what is in it.

    Raises:
        UserError: it is damaged, cannot be read, names files of other folders, or holds an adapter: transformers would
            add that to the model, or to another one that it names, without a word.
    """
    if not is_there(folder / MANIFEST):
        for index in ("model.safetensors.index.json", "pytorch_model.bin.index.json"):
            if is_there(folder / index):
                _shards(folder / index)
        if is_there(folder / _ADAPTER):
            what = "move that elsewhere to use the model alone, or merge it with PEFT's merge_and_unload()"
            raise UserError(f"{folder}: holds an adapter, {_ADAPTER}, beside a model; {what}")
        return folder
    files = {name for name in listed(folder) if not name.startswith(f"{TRAINING_STATE}/")}
    verify(folder, {name for name in files if any(fnmatch(name, pattern) for pattern in patterns)})
    added = [*unlisted(folder), *({_ADAPTER} & files)]
    if not added:
        return folder
    print(f"{folder}: {', '.join(added)}: no part of the model by its manifest, and left out", file=sys.stderr)
    view = Path(tempfile.mkdtemp(prefix="hf_gpt-model-"))
    atexit.register(shutil.rmtree, view, ignore_errors=True)
    for name in files - {_ADAPTER}:
        (view / name).parent.mkdir(parents=True, exist_ok=True)
        _link(folder / name, view / name)
    return view


def tokenizer_folder(folder: Path) -> Path:
    """The folder that transformers may be given for the tokenizer in `folder`: as `opened`, without its adapters."""
    return opened(folder, ("config.json", *TOKENIZER_FILES)) if is_there(folder / MANIFEST) else folder


def copy_listed(source: Path, destination: Path, *, with_training_state: bool) -> None:
    """Copy a checkpoint into a directory: what its manifest lists and the card, and nothing else."""
    for name in (*listed(source), MANIFEST, _CARD):
        is_copied = with_training_state or not name.startswith(f"{TRAINING_STATE}/")
        with reading(source / name) as file:
            if is_copied and file is not None:
                (destination / name).parent.mkdir(parents=True, exist_ok=True)
                with open(destination / name, "wb") as copy:
                    shutil.copyfileobj(file, copy)


def weight_files(folder: Path) -> list[Path]:
    """The files of a model's weights, as transformers chooses them: one, or the shards that its index names.

    A checkpoint has those that its manifest lists; another folder's may be pickled.

    Raises:
        UserError: there are none, or the index is damaged or names a file that is not there or in another folder.
    """
    here = set(listed(folder)) if is_there(folder / MANIFEST) else {path.name for path in entries(folder)}
    for name in ("model.safetensors", "pytorch_model.bin"):
        if found := {name, f"{name}.index.json"} & here:
            names = [name] if name in found else _shards(folder / f"{name}.index.json")
            if missing := [file for file in names if file not in here]:
                raise UserError(f"{folder}: has no {missing[0]}")
            return [folder / file for file in names]
    raise UserError(f"{folder}: has no model.safetensors")


def newest_whole(run_dir: str | Path) -> tuple[Path | None, dict[Path, str]]:
    """The newest checkpoint that verifies, and each newer one that is damaged, with what is wrong with it.

    Raises:
        UserError: one of them cannot be read: it may be whole.
    """
    problems = {}
    for checkpoint in reversed(checkpoints(run_dir)):
        try:
            verify(checkpoint)
            return checkpoint, problems
        except DamagedCheckpoint as error:
            problems[checkpoint] = str(error)
    return None, problems


def point(run_dir: str | Path, name: str, checkpoint: Path | None) -> None:
    """Let `latest` or `best` name a checkpoint, or none any more."""
    pointer = Path(run_dir) / "checkpoints" / name
    if checkpoint is None:
        pointer.unlink(missing_ok=True)
    else:
        write_text(pointer, checkpoint.name + "\n")


def pointed(run_dir: str | Path, name: str) -> Path | None:
    """The checkpoint that `latest` or `best` names, if it is there.

    Raises:
        UserError: it names no checkpoint of this run, or cannot be read.
    """
    pointer = Path(run_dir) / "checkpoints" / name
    if (content := read_file(pointer)) is None:
        return None
    found = content.decode("utf-8", "replace").strip()
    if pointer.is_symlink() or not _STEP.fullmatch(found):
        what = "is a link" if pointer.is_symlink() else f"names '{found[:60]}'"
        raise UserError(f"{pointer}: {what}, and must hold the name of a checkpoint beside it; remove it or mend it")
    return pointer.parent / found if is_there(pointer.parent / found) else None


def prune(
    run_dir: str | Path, keep: int | None, needed: Collection[Path] = (), *, strips_milestones: bool = True
) -> None:
    """Remove all but the newest `keep` checkpoints, the best one and those `needed`. The newest always stays.

    A milestone loses its training state instead, if `strips_milestones`.
    """
    clear_unfinished(run_dir)
    if keep is None:
        return
    try:
        best = pointed(run_dir, "best")
    except UserError:
        return  # any of them may be the best
    for checkpoint in checkpoints(run_dir)[:-keep]:
        if checkpoint != best and checkpoint not in needed:
            if not is_there(checkpoint / MILESTONE):
                discard(checkpoint)
            elif strips_milestones:
                files = {
                    name: {"size": size, "sha256": digest}
                    for name, (size, digest) in listed(checkpoint).items()
                    if not name.startswith(f"{TRAINING_STATE}/")
                }
                write_json(checkpoint / MANIFEST, {"files": files})  # from here on it has none
                _remove_state(checkpoint)


def discard(checkpoint: Path) -> None:
    """Remove a checkpoint; no half-removed directory ever bears the name of one."""
    doomed = checkpoint.with_name(f".removing-{checkpoint.name}")
    checkpoint.rename(doomed)
    with contextlib.suppress(OSError):  # the next run tries again
        remove(doomed)


def _remove_state(checkpoint: Path) -> None:
    for path in entries(checkpoint / TRAINING_STATE):
        if path.name != Path(MANIFEST).name:
            with contextlib.suppress(OSError):
                remove(path)


def clear_unfinished(run_dir: str | Path) -> None:
    """Remove what a process that died left half-written or half-removed."""
    for path in entries(Path(run_dir) / "checkpoints"):
        if path.name.startswith((".writing-", ".removing-")):
            with contextlib.suppress(OSError):
                remove(path)
    for path in milestones(run_dir):
        if not _has_state(path):
            _remove_state(path)


@contextlib.contextmanager
def run_lock(run_dir: str | Path) -> Iterator[None]:
    """While the block runs, no other process can train into `run_dir`: the lock goes with the process that holds it.

    Raises:
        UserError: another process holds it, or there can be no lock.
    """
    from filelock import FileLock, Timeout

    path = Path(run_dir) / "checkpoints" / ".lock"
    with contextlib.ExitStack() as held:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            held.enter_context(FileLock(path, timeout=0))
        except Timeout:
            text = "another process is training there; wait for it, or give another output_dir"
            raise UserError(f"{run_dir}: {text}") from None
        except (OSError, NotImplementedError) as error:  # a directory in its place, a disk that knows no locks
            raise UserError(f"{path}: cannot be locked: {getattr(error, 'strerror', None) or error}") from error
        yield


def load_model(model: str, device: str = "auto") -> tuple["PreTrainedModel", "PreTrainedTokenizerBase"]:
    """The model and the tokenizer of what a person named (see `resolve_model`), ready to evaluate or generate.

    Raises:
        UserError: it is not there, is damaged, or not a causal language model with a tokenizer; or the device is not.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    from .probing import refuse_later_tokens

    device = find_device(device)
    source = opened(model_folder(model))
    with reading_model(model):
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
        refuse_other_models(config, model, text_alone=False)
        is_whole = getattr(config, "quantization_config", None) is None  # else weights are smaller than they look
        skeleton(lambda: AutoModelForCausalLM.from_config(config, trust_remote_code=False), config, model, is_whole)
        loaded, unused = with_weights(AutoModelForCausalLM, source, model, trust_remote_code=False)
        say_unused(model, unused)
        if not any(list(source.glob(names)) for names in TOKENIZER_FILES):
            raise UserError(f"{model}: has no tokenizer; put the files of the one it was trained with into its folder")
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        loaded = loaded.to(device).eval()
        refuse_later_tokens(loaded, model)
    return loaded, tokenizer


def save_model(
    model: "PreTrainedModel",
    folder: Path,
    weights: "dict[str, torch.Tensor] | None" = None,
    dtype: "torch.dtype | None" = None,
) -> None:
    """Write a model, so that transformers 4 too loads it. Every one is saved here.

    Args:
        weights: instead of its own; most of them are in `dtype`, which `config.json` then names.
    """
    model.save_pretrained(folder, state_dict=weights)
    config = read_json(folder / "config.json")
    known = with_older_names(config)
    if not any(folder.glob("*.py")):
        known.pop("auto_map", None)  # of a repository that has code for a type that transformers has too
    if dtype is not None:
        known["dtype"] = str(dtype).removeprefix("torch.")
    if known != config:
        write_json(folder / "config.json", known)


def meta_weights(folder: Path) -> "dict[str, torch.Tensor]":
    """The weights in a model's files: their shapes and dtypes, without contents."""
    from transformers.modeling_utils import load_state_dict

    weights: dict[str, torch.Tensor] = {}
    for file in weight_files(folder):
        weights |= load_state_dict(file, map_location="meta")
    return weights


def dtypes_of(folder: Path | None) -> "Mapping[str, torch.dtype]":
    """What each weight of a model's files is in, whatever its `config.json` says; for other names, what most are in.

    Without a folder it is fp32 for all.
    """
    import torch

    if folder is None:
        return defaultdict(lambda: torch.float32)
    weights, sizes = meta_weights(folder), Counter()
    for weight in weights.values():
        sizes[weight.dtype] += weight.numel()
    return defaultdict(lambda: max(sizes, key=sizes.get), {name: weight.dtype for name, weight in weights.items()})


def find_device(name: str = "auto", field: str = "device") -> str:
    """A device that is here: cpu, cuda, cuda:1, mps, or what `auto` means: cuda, else mps, else cpu.

    Raises:
        UserError: it is not; the error names `field`.
    """
    import torch

    if name == "auto":
        return next((kind for kind in ("cuda", "mps") if getattr(torch, kind).is_available()), "cpu")
    kind, _, number = name.partition(":")
    if kind not in ("cpu", "cuda", "mps") or not (number or "0").isdecimal():
        raise UserError(f"{name} is no device; use auto, cpu, cuda, cuda:1 or mps", field=field)
    if kind != "cpu" and not int(number or 0) < getattr(torch, kind).device_count():
        raise UserError(f"{name} is not available here; use cpu or auto", field=field)
    return name


def resolve_model(model: str) -> str:
    """What `from_pretrained` should be given for a MODEL a person named.

    A run's directory means its best checkpoint, else its latest; `<run>/checkpoints/best` and `latest` mean what they
    name; any other directory is itself; anything that is not on disk is left to be a Hub id, perhaps with a branch,
    tag or commit (`someone/my-gpt@step-00000500`).

    Raises:
        UserError: a local path that is missing or holds no model.
    """
    path = local_path(model)
    with refusing_unreadable(path):
        if path.name in ("best", "latest") and path.absolute().parent.name == "checkpoints":
            found = pointed(path.absolute().parents[1], path.name)
        elif (path / "checkpoints").is_dir():
            found = pointed(path, "best")
            if found is None and is_there(path / "checkpoints" / "best"):
                print(f"{model}: its best checkpoint is not there; taking its newest", file=sys.stderr)
            found = found or next(reversed(checkpoints(path)), None)
        else:
            is_local = path.exists() or path.is_absolute() or model.startswith((".", "~")) or model.count("/") > 1
            if is_local and not (path.is_dir() and is_there(path / "config.json")):
                raise UserError(f"{model}: no such directory, or not a model: it has no config.json")
            return str(path) if model.startswith("~") else model
    if found is None:
        raise UserError(f"{model}: the run has no checkpoint yet")
    return str(found)


def short_name(model: str) -> str:
    """What a MODEL is called on a page: the name of a run or a folder, without its place here; or a Hub id."""
    if not Path(model).exists():
        return model
    path = Path(model).absolute() if Path(model).name not in ("", "..") else Path(model).resolve()
    of_run = path.parent.name == "checkpoints" and path.parent.parent.name
    return f"{of_run}, {path.name}" if of_run else path.name or model


def model_folder(model: str, revision: str | None = None) -> Path:
    """The directory of what a person named (see `resolve_model`): itself, or a Hub id's files in the cache.

    The Hub is asked once and within limits, before transformers would without them.

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

    small = ["*.json", "*.txt", "*.model", "*.jinja", _CARD]
    try:
        with hub_requests(f"{model}: neither a directory here nor found on the Hub"):
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
    found = {}
    for path in sorted(path for path in directory.rglob("*") if _is_plain(path) and path.name != _CARD):
        with open(path, "rb") as file:
            found[path.relative_to(directory).as_posix()] = {"size": path.stat().st_size, "sha256": _sha256(file)}
    return {"files": found}


def _is_plain(path: Path) -> bool:
    return stat.S_ISREG(path.lstat().st_mode)


def _stays_inside(name: str) -> bool:
    """Whether a path in a manifest or an index is one of a file in the folder."""
    path = Path(name)
    return bool(path.parts) and not path.anchor and ".." not in path.parts and "\0" not in name


def _shards(index: Path) -> list[str]:
    """The files that the index of a model in shards names."""
    weights = read_json(index).get("weight_map")
    names = [*weights.values()] if isinstance(weights, dict) and weights else [None]
    for name in names:
        if not isinstance(name, str) or not _stays_inside(name) or "/" in name:
            what = f"names '{name}', which is no file of its folder" if isinstance(name, str) else "names no files"
            raise UserError(f"{index}: {what}; the weights were not read")
    return [*dict.fromkeys(names)]


def _link(file: Path, link: Path) -> None:
    try:
        link.symlink_to(file.resolve())
    except OSError:  # Windows asks for a permission
        shutil.copyfile(file, link)


def _sha256(file: IO[bytes]) -> str:
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()
