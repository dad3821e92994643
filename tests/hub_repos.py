"""The repos of `hub_server.py`: what git makes of files, and how the Hub describes it. No HTTP here.

A tree is a mapping from path to file and never changes; a commit has one, and its parent; a branch or a tag is the
name of a commit. A small text is a *regular* file and lies in git itself; of a large or binary one, an *LFS* object,
git holds only a pointer with its SHA-256.
"""

import base64
import fnmatch
import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import yaml

MAX_REGULAR_SIZE = 10 * 1024 * 1024  # bytes; what is larger must be an LFS object
# From the .gitattributes of a new repo on the Hub, with the images of a dataset's.
_LFS_SUFFIXES = """7z arrow bin bz2 ckpt ftz gz h5 joblib mlmodel model msgpack npy npz onnx ot parquet pb pickle pkl
pt pth rar safetensors tar tflite tgz wasm xz zip zst bmp gif jpg jpeg png tiff webp"""
LFS_PATTERNS = [*(f"*.{suffix}" for suffix in _LFS_SUFFIXES.split()), "*.lfs.*", "*.tar.*", "*tfevents*"]
ATTRIBUTES = "".join(f"{pattern} filter=lfs diff=lfs merge=lfs -text\n" for pattern in LFS_PATTERNS).encode()
PIECE = 1 << 20  # bytes read or written at once


@dataclass(frozen=True)
class File:
    """A file of a tree. A regular one is known by git's SHA-1, an LFS object by its SHA-256."""

    content: bytes | Path
    size: int
    sha256: str | None  # of LFS objects only
    blob_id: str  # git's; of an LFS object, that of the pointer that git holds in its place

    @property
    def etag(self) -> str:
        return self.sha256 or self.blob_id

    @property
    def lfs(self) -> dict[str, Any]:
        return {"oid": self.sha256, "size": self.size, "pointerSize": len(_pointer(self.sha256, self.size))}


@dataclass(frozen=True)
class Commit:
    id: str
    parent: "Commit | None"
    tree: dict[str, File]
    title: str
    message: str
    author: str
    date: str

    def history(self) -> Iterator["Commit"]:
        commit: Commit | None = self
        while commit:
            yield commit
            commit = commit.parent


@dataclass
class Repo:
    id: str
    kind: str
    private: bool
    gated: bool
    created: str
    branches: dict[str, Commit] = field(default_factory=dict)
    tags: dict[str, Commit] = field(default_factory=dict)

    @property
    def owner(self) -> str:
        return self.id.split("/")[0]

    @property
    def page(self) -> str:
        return self.id if self.kind == "model" else f"{self.kind}s/{self.id}"

    def at(self, revision: str) -> Commit:
        """The commit that a branch, a tag or a full commit id names."""
        names = {**self.tags, **self.branches}
        for name in (revision, revision.removeprefix("refs/heads/"), revision.removeprefix("refs/tags/")):
            if name in names:
                return names[name]
        for head in names.values():
            for commit in head.history():
                if commit.id == revision:
                    return commit
        raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")


class Refused(Exception):
    """An answer with an error, which the client turns into an exception by its status and `X-Error-Code`."""

    def __init__(self, status: int, message: str, code: str | None = None, **headers: str):
        self.status, self.message = status, message
        line = " ".join(message.split()).encode("ascii", "replace").decode()  # as a header can hold it
        self.headers = {"X-Error-Message": line, **({"X-Error-Code": code} if code else {}), **headers}


def now() -> str:
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.000Z")


def read(content: bytes | Path) -> bytes:
    return content.read_bytes() if isinstance(content, Path) else content


def pieces(content: bytes | Path, start: int, stop: int) -> Iterator[bytes]:
    if isinstance(content, bytes):
        yield content[start:stop]
        return
    with content.open("rb") as file:
        file.seek(start)
        while start < stop and (piece := file.read(min(PIECE, stop - start))):
            start += len(piece)
            yield piece


def _git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _pointer(sha256: str, size: int) -> bytes:
    """What git holds of an LFS object."""
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()


def regular_file(content: bytes) -> File:
    return File(content, len(content), None, _git_hash(content))


def lfs_file(content: bytes | Path) -> File:
    size = content.stat().st_size if isinstance(content, Path) else len(content)
    digest = hashlib.sha256()
    for piece in pieces(content, 0, size):
        digest.update(piece)
    return File(content, size, digest.hexdigest(), _git_hash(_pointer(digest.hexdigest(), size)))


def is_lfs(path: str, size: int) -> bool:
    name = path.split("/")[-1]
    return size > MAX_REGULAR_SIZE or any(fnmatch.fnmatchcase(name, pattern) for pattern in LFS_PATTERNS)


def is_ignored(path: str, gitignore: str) -> bool:
    """Whether a .gitignore names a file or a folder above it; without the `!` and `**` of the real one."""
    patterns = [line.strip().strip("/") for line in gitignore.splitlines() if line.strip() and line[0] != "#"]
    return any(fnmatch.fnmatchcase(part, p) for p in patterns for part in (path, *path.split("/")))


def is_inside(path: str, folder: str) -> bool:
    return not folder or path.startswith(f"{folder}/")


def change(tree: dict[str, File], objects: dict[str, File], key: str, value: dict[str, Any]) -> None:
    """One line of a commit, done to a tree; LFS objects must be among those that arrived."""
    path = value["path"].strip("/")
    if not path or any(part in ("", ".", "..", ".git") for part in path.split("/")):
        raise Refused(400, f"Not a path of a repo: {value['path']!r}")
    if key == "file":
        content = value["content"]
        content = base64.b64decode(content, validate=True) if value.get("encoding") == "base64" else content.encode()
        if len(content) > MAX_REGULAR_SIZE:
            raise Refused(400, f"Your push was rejected because it contains files larger than 10 MiB: {path}")
        if path == "README.md" and (errors := check_card(content.decode())[0]):
            raise Refused(400, f"Your push was rejected because of README.md: {errors[0]}")
        tree[path] = regular_file(content)
    elif key == "lfsFile":
        stored = objects.get(value["oid"])
        if not stored or value.get("size") not in (None, stored.size):
            raise Refused(400, f"Your push was rejected: the LFS object of {path} has not arrived")
        tree[path] = stored
    elif key == "deletedFile" and path in tree:
        del tree[path]
    elif key == "deletedFolder" and (inside := [name for name in tree if name.startswith(f"{path}/")]):
        for name in inside:
            del tree[name]
    elif key in ("deletedFile", "deletedFolder"):
        raise Refused(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
    else:
        raise Refused(400, f"Not an operation of a commit: {key}")


def entries_of(tree: dict[str, File]) -> list[dict[str, Any]]:
    """All files and folders of a tree, as the Hub lists them."""
    entries = {}
    for path, file in tree.items():
        entries[path] = {"type": "file", "path": path, "oid": file.blob_id, "size": file.size}
        if file.sha256:
            entries[path]["lfs"] = file.lfs
        while "/" in path:
            path = path.rpartition("/")[0]
            inside = sorted((name, f.blob_id) for name, f in tree.items() if is_inside(name, path))
            oid = hashlib.sha1(json.dumps(inside).encode()).hexdigest()
            entries[path] = {"type": "directory", "path": path, "oid": oid, "size": 0}
    return [entries[path] for path in sorted(entries)]


def check_card(text: str) -> tuple[list[str], list[str]]:
    """Errors and warnings about the YAML at the head of a README."""
    block = re.match(r"\s*---[\r\n]+(.*?)(?:[\r\n]+|^)---\s*?(?:[\r\n]|$)", text, re.DOTALL)
    if not block:
        return [], ["empty or missing yaml metadata in repo card"]
    try:
        metadata = yaml.safe_load(block[1])
    except yaml.YAMLError as error:
        return [f"YAML metadata does not parse: {error}"], []
    if not isinstance(metadata, dict | None):
        return [f"YAML metadata is no mapping but a {type(metadata).__name__}"], []
    return [], []


def card_data(tree: dict[str, File]) -> dict[str, Any]:
    if "README.md" not in tree:
        return {}
    text = read(tree["README.md"].content).decode(errors="replace")
    block = re.match(r"\s*---[\r\n]+(.*?)[\r\n]+---", text, re.DOTALL)
    return (yaml.safe_load(block[1]) or {}) if block and not check_card(text)[0] else {}


def wikitext_files(data_dir: str | Path) -> dict[str, bytes | Path]:
    """The rows of WikiText-2 in the folder of test data, laid out as `Salesforce/wikitext` is, for `add_repo`.

    The folder has two of three splits, and of the tokenised release: `wikitext-2-v1`, validation and test. So that
    recipes can ask by the names that they have, there is `wikitext-2-raw-v1` too, and a train split, with the same
    rows and with those of test: a stand-in, as the README here says, good for trying how a corpus is read and not for
    any figure.
    """
    configs, files = [], {}
    for name in ("wikitext-2-raw-v1", "wikitext-2-v1"):
        paths = {path.name: path for path in (Path(data_dir) / "wikitext" / "wikitext-2-v1").glob("*.parquet")}
        paths |= {name.replace("test", "train"): path for name, path in paths.items() if name.startswith("test")}
        splits = sorted({file.split("-")[0] for file in paths})
        data_files = [{"split": split, "path": f"{name}/{split}-*"} for split in splits]
        configs.append({"config_name": name, "data_files": data_files})
        files |= {f"{name}/{file}": path for file, path in paths.items()}
    card = yaml.safe_dump({"language": ["en"], "license": ["cc-by-sa-3.0"], "configs": configs}, sort_keys=False)
    text = "WikiText-2 for tests: in both configs the rows of wikitext-2-v1, tokenised; those of test are train too.\n"
    return {"README.md": f"---\n{card}---\n{text}".encode(), **files}
