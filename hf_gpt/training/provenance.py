"""What decides a run beside its recipe: versions, hardware, and its text, tokenizer and model by hash or revision.

It is written to `environment.json`. A resumed run compares: another text is refused, other versions or hardware are
warned of, since the last digits may differ.
"""

import contextlib
import importlib.metadata
import platform
import uuid
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from huggingface_hub import metadata_load

from .. import checkpoint
from ..data.tokenizer import vocab_size
from ..errors import UserError
from ..precision import describe_cpu
from ..storage import is_there, local_path
from ..texts import is_further, label_of, recorded_as
from . import deepspeed
from .data import Data, text_facts
from .resume import read_environment


def describe_environment(run_dir: Path, accelerator: Accelerator, data: Data) -> dict[str, Any]:
    """Versions and hardware, the content of the text by its hash, and the id of the run in `run_dir` or a new one.

    A run that is resumed also keeps what was found out about its model: how its loss is computed.
    """
    recorded = read_environment(run_dir / "environment.json")
    run_id = recorded.get("run_id") or uuid.uuid4().hex[:8]
    kept = {"head_makes_logits"} & recorded.keys() if checkpoint.checkpoints(run_dir) else ()
    packages = ("hf_gpt", "torch", "transformers", "accelerate", "datasets", "tokenizers", "tiktoken", "safetensors")
    versions = {p: importlib.metadata.version(p) for p in packages} | {"deepspeed": deepspeed.version()}
    device = accelerator.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "run_id": run_id,  # by which trackers recognise the run
        "versions": {"python": platform.python_version(), **versions},
        "platform": platform.platform(),
        "device": device.type,
        "device_name": name,
        "processes": accelerator.num_processes,
        "cpu_threads": torch.get_num_threads(),
        **({"cpu": describe_cpu()} if device.type == "cpu" else {}),
        "text": {name: windows.store.path.name for name, windows in data.evaluated.items()},
        "sources": describe_sources(data),
        **{name: recorded[name] for name in kept},
    }


def changes_of_environment(run_dir: Path, environment: dict[str, Any]) -> list[str]:
    """What is different from where the run began, as lines to warn with."""
    before = read_environment(run_dir / "environment.json")
    if not before:
        return []
    texts, now = before.get("text", environment["text"]), environment["text"]
    for text in texts.keys() & now.keys():
        if is_further(text) and texts[text] != now[text]:
            name, what = label_of(text), "is another text than this run called so; its losses would not compare"
            raise UserError(f"{what}; give it another name", field=f"evaluation.datasets.{name}")
    if _own(texts) != _own(now) or _has_other_size(before, environment):
        raise UserError(
            f"{run_dir}: the run there began with another text: the files of the corpus, or the Python that"
            " builtin:python-docs comes from, have changed, or an earlier version read them otherwise; give another"
            " output_dir"
        )
    compared = [key for key in environment if key not in ("run_id", "versions", "text", "sources", "parent")]
    flat = [(key, before.get(key, environment[key]), environment[key]) for key in compared]
    flat += [(key, before.get("versions", {}).get(key), value) for key, value in environment["versions"].items()]
    changed = [f"{key} was {old}, is {new}" for key, old, new in flat if old != new]
    if not changed:
        return []
    return [f"not where this run began, so the last digits may differ: {'; '.join(changed)}"]


def with_further_texts(recorded: dict[str, Any], environment: dict[str, Any]) -> dict[str, Any]:
    """What a run that is resumed has recorded, with the texts that it is evaluated on now too."""
    if not recorded:
        return recorded
    merged = dict(recorded)
    for kind in ("text", "sources"):
        new = {text: facts for text, facts in environment[kind].items() if is_further(text)}
        merged |= {kind: {**recorded.get(kind, {}), **new}} if new else {}
    return merged


def _own(texts: dict[str, str]) -> dict[str, str]:
    """Those that the run trains on, and is validated on by `data.validation_*`."""
    return {text: identity for text, identity in texts.items() if not is_further(text)}


def _has_other_size(before: dict[str, Any], environment: dict[str, Any]) -> bool:
    """Whether a text has another size than it had: the same files, which an earlier version did not read right."""
    recorded = before.get("sources", {})
    return any(
        recorded.get(name, {}).get(key, size) != size
        for name in ("training", "validation")
        for key, size in environment["sources"].get(name, {}).items()
        if key in ("characters", "documents")
    )


def describe_sources(data: Data) -> dict[str, Any]:
    """What a run was made from, in words that hold on another machine: no paths, but names, revisions and hashes."""
    sources: dict[str, Any] = {
        recorded_as(text): {**text_facts(windows), **windows.store.origin} for text, windows in data.evaluated.items()
    }
    tokenizer, model = data.recipe.tokenizer, data.recipe.model
    sources["tokenizer"] = {"trained": True} if tokenizer.train else _named(tokenizer.name, tokenizer.revision)
    sources["tokenizer"]["entries"] = vocab_size(data.tokenizer)
    if model.from_pretrained:
        sources["model"] = _named(checkpoint.resolve_model(model.from_pretrained), data.pretrained.commit)
        sources["model"] |= _license(data.pretrained.folder)
    return sources


def _license(folder: Path) -> dict[str, str]:
    """What the card of a model says of its licence."""
    found: dict[str, Any] = {}
    with contextlib.suppress(Exception):  # there is none, or not of the Hub's format: people write it
        found = metadata_load(folder / "README.md") or {}
    return {name: str(found[name]) for name in ("license", "license_name", "license_link") if found.get(name)}


def _named(name: str, revision: str | None) -> dict[str, Any]:
    """A model or tokenizer: a Hub id and its revision, or a local folder by name; a checkpoint also by its run."""
    if name in ("gpt2", "bytes"):
        return {"name": name}
    path = local_path(name)
    if not path.exists():
        repo_id, _, named = name.partition("@")
        return {"hub": repo_id, "revision": revision or named or None}
    path = path.absolute()
    if path.parent.name != "checkpoints":
        return {"local": path.name}
    files = checkpoint.listed(path) if is_there(path / checkpoint.MANIFEST) else {}
    digest = files.get("model.safetensors", (None, None))[1]
    return {"local": f"{path.parent.parent.name} {path.name}", "sha256": digest}
