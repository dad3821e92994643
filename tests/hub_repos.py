"""The repositories of `hub_server.py`: what git makes of files, and how the Hub describes it. No HTTP here.

A tree is a mapping from path to file and never changes; a commit has one, and its parent; a branch or a tag is the
name of a commit. A small text is a *regular* file and lies in git itself; a large or binary one is an *LFS* object,
known by its SHA-256.
"""

import base64
import fnmatch
import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

_MAX_REGULAR_SIZE = 10 * 1024 * 1024  # bytes; a larger file must be an LFS object
_LFS_PATTERNS = ("*.safetensors", "*.bin", "*.parquet", "*.model", "*.png")  # some of a new repository's


@dataclass(eq=False)
class File:
    content: bytes
    is_lfs: bool

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @cached_property
    def blob_id(self) -> str:
        """git's; of an LFS object, that of the pointer which git holds in its place."""
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(self.content)}\n"
        content = pointer.encode() if self.is_lfs else self.content
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.is_lfs else self.blob_id


@dataclass
class Commit:
    id: str
    parent: "Commit | None"
    tree: dict[str, File]
    title: str
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
    branches: dict[str, Commit] = field(default_factory=dict)
    tags: dict[str, Commit] = field(default_factory=dict)

    @property
    def owner(self) -> str:
        return self.id.split("/")[0]

    def at(self, revision: str) -> Commit:
        """The commit that a branch, a tag or a full commit id names."""
        names = {**self.tags, **self.branches}
        if revision in names:
            return names[revision]
        for head in names.values():
            for commit in head.history():
                if commit.id == revision:
                    return commit
        raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    def commit(self, branch: str, parent: Commit | None, tree: dict[str, File], title: str) -> Commit:
        """A new head of a branch."""
        content = repr([parent and parent.id, title, sorted((path, file.etag) for path, file in tree.items())])
        date = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.000Z")
        self.branches[branch] = Commit(hashlib.sha1(content.encode()).hexdigest(), parent, tree, title, date)
        return self.branches[branch]


class Refused(Exception):
    """An answer with an error, which the client turns into an exception by its status and `X-Error-Code`."""

    def __init__(self, status: int, message: str, code: str | None = None, **headers: str):
        self.status, self.message = status, message
        self.headers = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {}), **headers}


def is_lfs(path: str, size: int) -> bool:
    is_binary = any(fnmatch.fnmatchcase(path.split("/")[-1], pattern) for pattern in _LFS_PATTERNS)
    return size > _MAX_REGULAR_SIZE or (is_binary and size > 0)


def change(tree: dict[str, File], objects: dict[str, File], key: str, value: dict[str, Any]) -> None:
    """One line of a commit, done to a tree; LFS objects must be among those that arrived."""
    path = value["path"]
    if key == "file":
        tree[path] = File(base64.b64decode(value["content"], validate=True), is_lfs=False)
        if path == "README.md":
            card_data(tree)
    elif key == "lfsFile":
        if value["oid"] not in objects:
            raise Refused(400, f"Your push was rejected: the LFS object of {path} has not arrived")
        tree[path] = objects[value["oid"]]
    elif key == "deletedFile" and path in tree:
        del tree[path]
    else:
        raise Refused(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")


def entries_of(tree: dict[str, File]) -> list[dict[str, Any]]:
    """All files and folders of a tree, as the Hub lists them."""
    entries = {}
    for path, file in tree.items():
        entries[path] = {"type": "file", "path": path, "oid": file.blob_id, "size": len(file.content)}
        if file.is_lfs:
            entries[path]["lfs"] = {"oid": file.sha256, "size": len(file.content), "pointerSize": 130}
        while "/" in path:
            path = path.rpartition("/")[0]
            entries[path] = {"type": "directory", "path": path, "oid": "0" * 40, "size": 0}
    return [entries[path] for path in sorted(entries)]


def card_data(tree: dict[str, File]) -> dict[str, Any]:
    """The metadata at the head of a README, which must be a mapping."""
    text = tree["README.md"].content.decode() if "README.md" in tree else ""
    block = re.match(r"\s*---[\r\n]+(.*?)(?:[\r\n]+|^)---\s*?(?:[\r\n]|$)", text, re.DOTALL)
    try:
        metadata = (yaml.safe_load(block[1]) or {}) if block else {}
    except yaml.YAMLError as error:
        metadata = error
    if not isinstance(metadata, dict):
        raise Refused(400, "Your push was rejected because of README.md: its YAML metadata is no mapping")
    return metadata


def wikitext_files(data_dir: str | Path) -> dict[str, bytes]:
    """The rows of WikiText-2 in the folder of test data, laid out as `Salesforce/wikitext` is, for `add_repo`.

    The folder has two of three splits, and of the tokenised release: `wikitext-2-v1`, validation and test. So that
    recipes can ask by the names that they have, there is `wikitext-2-raw-v1` too, and a train split, with the same
    rows and with those of test: a stand-in for trying how a corpus is read, not for any figure.
    """
    folder, name = Path(data_dir) / "wikitext" / "wikitext-2-v1", "wikitext-2-raw-v1"
    paths = {path.name: path for path in folder.glob("*.parquet")}
    paths |= {name.replace("test", "train"): path for name, path in paths.items() if name.startswith("test")}
    splits = sorted({file.split("-")[0] for file in paths})
    data_files = [{"split": split, "path": f"{name}/{split}-*"} for split in splits]
    card = yaml.safe_dump({"configs": [{"config_name": name, "data_files": data_files}]}, sort_keys=False)
    return {
        "README.md": f"---\n{card}---\n".encode(),
        **{f"{name}/{file}": path.read_bytes() for file, path in paths.items()},
    }
