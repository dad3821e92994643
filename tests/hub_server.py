"""A small Hugging Face Hub on loopback, over real HTTP, for tests of what downloads and publishes.

It answers what `huggingface_hub`, `transformers` and `datasets` ask when `HF_ENDPOINT` points at it: models and
datasets with branches, tags and commits, uploads, downloads, private repositories, and faults on request. It has one
user, "someone", who may write to `someone/...` (see `hub_repos.py` for what a repository is).

    with HubServer() as hub:
        hub.url, hub.token                         # http://127.0.0.1:PORT
        hub.url_with_password, hub.password        # the same, for one who logs in by the address
        hub.environment(cache_dir)                 # for a process whose Hub this is
        hub.add_repo("Salesforce/wikitext", {"README.md": b"...", "x.parquet": Path(...)}, kind="dataset")
        hub.files("someone/model"), hub.commits("someone/model"), hub.refs("someone/model")
        hub.requests                               # what was asked
        hub.fail(Fault("/commit/", status=503, times=1))
        hub.mend()

A regular file travels inside the commit, in base64. An LFS object is sent to a storage of another address, which knows
objects by their SHA-256 and takes no token; the commit only names its hash. A client with `hf_xet` would use another
protocol: `environment` switches it off.
"""

import base64
import contextlib
import hashlib
import json
import os
import re
import secrets
import socket
import struct
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from hub_repos import Commit, File, Refused, Repo, card_data, change, entries_of, is_lfs


@dataclass
class Fault:
    """What goes wrong with a request whose method and path match; the first fault that matches is the one."""

    path: str = ""  # a regular expression, searched for in the path and query
    method: str = ""  # any
    times: int | None = None  # how often; None: until `mend`
    status: int | None = None  # answered in place of doing anything
    headers: dict[str, str] = field(default_factory=dict)  # with `status`, such as {"Retry-After": "1"}
    body: str = '{"error": "a fault"}'  # with `status`
    cut_request_after: int | None = None  # bytes of the request's body; nothing is done
    cut_response_after: int | None = None  # bytes of the answer's body; what was asked is done
    hang: bool = False  # no answer until the server closes; nothing is done
    delay: float = 0  # seconds before anything is done
    stalls: bool = False  # with `cut_response_after`: nothing more comes, and the connection stays open
    reset: bool = False  # with `cut_request_after` or `cut_response_after`: not an end, but an error


@dataclass
class Asked:
    """A request; the path of one to the storage begins with /cdn/."""

    method: str
    path: str


class HubServer:
    """The Hub. Starts when made; `close` (or the end of `with`) ends every request, hanging ones too."""

    def __init__(self) -> None:
        self.requests: list[Asked] = []
        self.repos: dict[tuple[str, str], Repo] = {}
        self.objects: dict[str, File] = {}  # LFS objects that arrived, by SHA-256
        self.faults: list[Fault] = []
        self.lock = threading.RLock()
        self.closing = threading.Event()
        self.token, self.password = "hf_" + secrets.token_hex(17), "pa-" + secrets.token_hex(6)
        self._hub, self._storage = _Listener(self, _HubHandler), _Listener(self, _StorageHandler)
        self.url, self.storage_url = self._hub.url, self._storage.url
        self.url_with_password = self.url.replace("//", f"//someone:{self.password}@")

    def __enter__(self) -> "HubServer":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.closing.set()
        self._hub.close()
        self._storage.close()

    def environment(self, cache_dir: str | Path) -> dict[str, str]:
        """Variables that make this server the Hub of a process, with caches of its own in a folder and `token`."""
        caches = {"HF_HOME": ".", "HF_HUB_CACHE": "hub", "HF_DATASETS_CACHE": "datasets", "HF_XET_CACHE": "xet"}
        caches |= {"HF_MODULES_CACHE": "modules", "HF_ASSETS_CACHE": "assets", "HF_TOKEN_PATH": "token"}
        offline = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")
        return {
            "HF_ENDPOINT": self.url,
            "HF_TOKEN": self.token,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_UPDATE_CHECK": "1",
            "HF_HUB_DISABLE_IMPLICIT_TOKEN": "0",
            "NO_PROXY": "*",
            "no_proxy": "*",
            **dict.fromkeys(offline, "0"),
            **{name: str(Path(cache_dir).absolute() / folder) for name, folder in caches.items()},
        }

    def add_repo(
        self, repo_id: str, files: dict[str, bytes | Path], kind: str = "model", private: bool = False
    ) -> str:
        """A repository with one commit, whose id is returned."""
        tree = {}
        for path, content in files.items():
            content = content.read_bytes() if isinstance(content, Path) else content
            tree[path] = File(content, is_lfs(path, len(content)))
            self.objects[tree[path].sha256] = tree[path]
        self.repos[kind, repo_id] = Repo(repo_id, kind, private)
        return self.repos[kind, repo_id].commit("main", None, tree, "initial commit").id

    def files(self, repo_id: str, revision: str = "main", kind: str = "model") -> dict[str, bytes]:
        """Path and content of every file at a revision."""
        return {path: file.content for path, file in self.repos[kind, repo_id].at(revision).tree.items()}

    def commits(self, repo_id: str, revision: str = "main", kind: str = "model") -> list[dict[str, str]]:
        """The commits of a revision, newest first: `id`, `title`."""
        history = self.repos[kind, repo_id].at(revision).history()
        return [{"id": commit.id, "title": commit.title} for commit in history]

    def refs(self, repo_id: str, kind: str = "model") -> dict[str, dict[str, str]]:
        """Branches and tags: the commit id of each."""
        repo = self.repos[kind, repo_id]
        found = {"branches": dict(repo.branches), "tags": dict(repo.tags)}
        return {what: {name: commit.id for name, commit in named.items()} for what, named in found.items()}

    def fail(self, fault: Fault) -> None:
        """From now on requests that match go wrong."""
        self.faults.append(fault)

    def mend(self) -> None:
        """No faults any more. A request that hangs stays so."""
        self.faults.clear()

    def fault_of(self, method: str, path: str) -> Fault:
        with self.lock:
            for fault in self.faults:
                if fault.method in ("", method) and fault.times != 0 and re.search(fault.path, path):
                    fault.times = fault.times and fault.times - 1
                    return fault
        return Fault()


# --- HTTP ------------------------------------------------------------------------------------------------------------


def _cut(connection: socket.socket, reset: bool = False) -> None:
    with contextlib.suppress(OSError):  # it has ended
        if reset:  # without the time in which it would end in order
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            return os.close(connection.detach())
        connection.shutdown(socket.SHUT_RDWR)


class _Listener(ThreadingHTTPServer):
    """A port of the server, with a thread for each connection."""

    daemon_threads, block_on_close, request_queue_size = True, False, 64

    def __init__(self, hub: HubServer, handler: type) -> None:
        super().__init__(("127.0.0.1", 0), handler)
        self.hub, self.connections = hub, set()
        self.url = f"http://127.0.0.1:{self.server_port}"
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = super().get_request()
        self.connections.add(connection)
        return connection, address

    def shutdown_request(self, request: socket.socket) -> None:
        self.connections.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: socket.socket, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], OSError):  # which is a client that went away
            super().handle_error(request, client_address)

    def close(self) -> None:
        self.shutdown()
        self._thread.join()
        self.server_close()
        for connection in list(self.connections):
            _cut(connection)


class _Cut(Exception):
    """The connection is to end here."""


class _Handler(BaseHTTPRequestHandler):
    """What the Hub and its storage share: the request's body, the answer, faults, and the list of what was asked."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Listener
    routes: "list[tuple[str, re.Pattern, Callable]]"
    fault = Fault()

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except (_Cut, OSError):
            self.close_connection = True
            _cut(self.connection, self.fault.reset)

    def answer(self) -> None:
        self.hub = self.server.hub
        self.hub.requests.append(Asked(self.command, self.path))
        self.fault = fault = self.hub.fault_of(self.command, self.path)
        if fault.hang or fault.delay:
            self.hub.closing.wait(None if fault.hang else fault.delay)
            if self.hub.closing.is_set():
                raise _Cut
        length = int(self.headers.get("Content-Length") or 0)
        if fault.cut_request_after is not None:
            self.rfile.read(min(length, fault.cut_request_after))
            raise _Cut
        self.body = self.rfile.read(length)
        if len(self.body) < length:
            raise _Cut
        try:
            self.authenticate()
            if fault.status is not None:
                self.send(fault.status, fault.body.encode(), {"Content-Type": "application/json", **fault.headers})
            else:
                self.route()
        except Refused as refusal:
            self.send_json({"error": refusal.message}, refusal.status, **refusal.headers)
        except (KeyError, TypeError, ValueError) as error:  # a body that is not what the address takes
            self.send_json({"error": f"Not understood: {error!r}"}, 400)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = answer

    def route(self) -> None:
        path = urlsplit(self.path).path
        for methods, pattern, function in self.routes:
            match = pattern.fullmatch(path)
            if match and self.command in methods.split():
                return function(self, **{k: v and unquote(v) for k, v in match.groupdict().items()})
        raise Refused(404, f"Sorry, we can't find the page: {self.command} {path}")

    def json(self) -> dict[str, Any]:
        return json.loads(self.body or b"{}")

    def send_json(self, content: Any, status: int = 200, **headers: str) -> None:
        self.send(status, json.dumps(content).encode(), {"Content-Type": "application/json", **headers})

    def send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        """An answer; of a file the range that was asked for. A fault may cut it short."""
        span = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if "Accept-Ranges" in headers and span:
            start, stop = int(span[1]), min(int(span[2] or len(content)) + 1, len(content))
            headers = {**headers, "Content-Range": f"bytes {start}-{stop - 1}/{len(content)}"}
            status, content = 206, content[start:stop]
        self.send_response_only(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[: self.fault.cut_response_after])
        if self.fault.cut_response_after is not None:
            self.hub.closing.wait(None if self.fault.stalls else 0)
            raise _Cut

    def log_message(self, *_: object) -> None:
        """Nothing is printed."""


def _route(routes: list, methods: str, address: str) -> Callable:
    """A function answers these methods at addresses like this one, with what stands in its {brackets}."""
    parts = {"kind": "models|datasets", "page": "datasets/|", "repo": "[^/]+/[^/]+|[^/]+", "file": ".+"}
    pattern = re.sub(r"\{(\w+)\}", lambda name: f"(?P<{name[1]}>{parts.get(name[1], '[^/]+')})", address)

    def register(function: Callable) -> Callable:
        routes.append((methods, re.compile(pattern), function))
        return function

    return register


# --- the Hub ---------------------------------------------------------------------------------------------------------


class _HubHandler(_Handler):
    """The Hub's own address: everything but the content of LFS objects."""

    routes: list = []  # noqa: RUF012

    def authenticate(self) -> None:
        """A wrong token is refused, for public repositories too."""
        authorization = self.headers.get("Authorization")
        basic = base64.b64encode(f"someone:{self.hub.password}".encode()).decode()
        self.is_someone = authorization in (f"Bearer {self.hub.token}", f"Basic {basic}")
        if authorization and not self.is_someone:
            raise Refused(401, "Invalid credentials in Authorization header")

    def must_be_someone(self) -> None:
        if not self.is_someone:
            raise Refused(401, "Invalid username or password.")

    def repo(self, kind: str, repo: str, write: bool = False) -> Repo:
        """A repository that the user may see, or write to. One that is hidden is like one that is not there."""
        found = self.hub.repos.get(("dataset" if kind.startswith("datasets") else "model", repo))
        if not found or (found.private and not self.is_someone):
            raise Refused(404 if self.is_someone else 401, "Repository not found", "RepoNotFound")
        if write:
            self.must_be_someone()
            if found.owner != "someone":
                raise Refused(403, f"You don't have the rights to write to {repo} with this token")
        return found


def _hub(methods: str, address: str) -> Callable:
    return _route(_HubHandler.routes, methods, address)


@_hub("GET", "/api/whoami-v2")
def _who_am_i(ask: _HubHandler) -> None:
    ask.must_be_someone()
    ask.send_json({"type": "user", "id": "someone", "name": "someone", "orgs": []})


@_hub("POST", "/api/validate-yaml")
def _validate(ask: _HubHandler) -> None:
    card_data({"README.md": File(ask.json()["content"].encode(), is_lfs=False)})
    ask.send_json({"errors": [], "warnings": []})


@_hub("POST", "/api/repos/create")
def _create_repo(ask: _HubHandler) -> None:
    ask.must_be_someone()
    asked = ask.json()
    repo_id, kind = f"{asked.get('organization') or 'someone'}/{asked['name']}", asked.get("type") or "model"
    if not repo_id.startswith("someone/"):
        raise Refused(403, f"You don't have the rights to create {repo_id}")
    answer = {"name": repo_id, "id": repo_id, "url": f"{ask.hub.url}/{repo_id}"}
    with ask.hub.lock:
        if is_new := (kind, repo_id) not in ask.hub.repos:
            private = bool(asked.get("private")) or asked.get("visibility") == "private"
            ask.hub.add_repo(repo_id, {".gitattributes": b"*.safetensors filter=lfs\n"}, kind, private)
    ask.send_json(answer if is_new else {"error": "You already created this repo", **answer}, 200 if is_new else 409)


@_hub("POST", "/api/{kind}/{repo}/preupload/{revision}")
def _preupload(ask: _HubHandler, kind: str, repo: str, revision: str) -> None:
    tree, answer = ask.repo(kind, repo, write=True).at(revision).tree, []
    for file in ask.json()["files"]:
        mode = "lfs" if is_lfs(file["path"], file["size"]) else "regular"
        answer.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False})
        if file["path"] in tree:
            answer[-1]["oid"] = tree[file["path"]].etag  # who has the same file need not send it
    ask.send_json({"files": answer})


@_hub("POST", "/{page}{repo}.git/info/lfs/objects/batch")
def _lfs_batch(ask: _HubHandler, page: str, repo: str) -> None:
    ask.repo(page, repo, write=True)
    answer = [{"oid": wanted["oid"], "size": wanted["size"]} for wanted in ask.json()["objects"]]
    for wanted in answer:
        if wanted["oid"] not in ask.hub.objects:
            wanted["actions"] = {"upload": {"href": f"{ask.hub.storage_url}/cdn/{wanted['oid']}"}}
    ask.send_json({"transfer": "basic", "objects": answer})


@_hub("POST", "/api/{kind}/{repo}/commit/{revision}")
def _commit(ask: _HubHandler, kind: str, repo: str, revision: str) -> None:
    found = ask.repo(kind, repo, write=True)
    lines = [json.loads(line) for line in ask.body.splitlines()]
    header = lines[0]["value"]
    with ask.hub.lock:
        if revision not in found.branches:
            raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        head = found.branches[revision]
        if header.get("parentCommit") not in (None, head.id):
            raise Refused(412, "A commit has happened since. Please refresh and try again.")
        tree = dict(head.tree)
        for line in lines[1:]:
            change(tree, ask.hub.objects, line["key"], line["value"])
        made = found.commit(revision, head, tree, header["summary"])
    ask.send_json({"success": True, "commitOid": made.id, "commitUrl": f"{ask.hub.url}/{repo}/commit/{made.id}"})


@_hub("GET", "/api/{kind}/{repo}/tree/{revision}(?:/{file})?")
def _list_tree(ask: _HubHandler, kind: str, repo: str, revision: str, file: str | None) -> None:
    commit, folder = ask.repo(kind, repo).at(revision), f"{file.strip('/')}/" if file else ""
    inside = [entry for entry in entries_of(commit.tree) if entry["path"].startswith(folder)]
    if folder and not inside:
        raise Refused(404, f"{file} does not exist on {revision}", "EntryNotFound", **{"X-Repo-Commit": commit.id})
    is_recursive = "recursive=true" in ask.path.lower()
    ask.send_json([entry for entry in inside if is_recursive or "/" not in entry["path"].removeprefix(folder)])


@_hub("POST", "/api/{kind}/{repo}/paths-info/{revision}")
def _paths_info(ask: _HubHandler, kind: str, repo: str, revision: str) -> None:
    paths = parse_qs(ask.body.decode()).get("paths", [])
    entries = entries_of(ask.repo(kind, repo).at(revision).tree)
    ask.send_json([entry for entry in entries if entry["path"] in paths])


@_hub("GET", "/api/{kind}/{repo}/refs")
def _refs(ask: _HubHandler, kind: str, repo: str) -> None:
    found = ask.repo(kind, repo)
    answer = {
        what: [{"name": n, "ref": f"refs/{path}/{n}", "targetCommit": c.id} for n, c in named.items()]
        for what, path, named in (("branches", "heads", found.branches), ("tags", "tags", found.tags))
    }
    ask.send_json({**answer, "converts": [], "pullRequests": []})


@_hub("POST DELETE", "/api/{kind}/{repo}/branch/{name}")
def _branch(ask: _HubHandler, kind: str, repo: str, name: str) -> None:
    found = ask.repo(kind, repo, write=True)
    if ask.command == "DELETE" and name == "main":
        raise Refused(403, "The branch main cannot be deleted")
    _name(ask, found.branches, name, found.at(ask.json().get("startingPoint") or "main"))


@_hub("POST DELETE", "/api/{kind}/{repo}/tag/{name}")
def _tag(ask: _HubHandler, kind: str, repo: str, name: str) -> None:
    """The address of a new tag has the revision that it names; that of one to be deleted has the tag."""
    found = ask.repo(kind, repo, write=True)
    _name(ask, found.tags, ask.json()["tag"] if ask.command == "POST" else name, found.at(name))


def _name(ask: _HubHandler, named: dict[str, Commit], name: str, commit: Commit) -> None:
    """A branch or a tag is made or deleted."""
    with ask.hub.lock:
        if ask.command == "DELETE" and name not in named:
            raise Refused(404, f"Invalid reference: {name}", "RevisionNotFound")
        if ask.command == "DELETE":
            del named[name]
        elif name in named:
            raise Refused(409, f"Reference exists already: {name}")
        else:
            named[name] = commit
    ask.send_json({})


@_hub("GET", "/api/{kind}/{repo}(?:/revision/{revision})?")
def _info(ask: _HubHandler, kind: str, repo: str, revision: str | None) -> None:
    found = ask.repo(kind, repo)
    commit = found.at(revision or "main")
    card = card_data(commit.tree)
    info = {
        "id": found.id,
        "author": found.owner,
        "sha": commit.id,
        "lastModified": commit.date,
        "private": found.private,
        "gated": False,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "tags": card.get("tags") or [],
        "cardData": card,
        "siblings": [{"rfilename": path} for path in commit.tree],
    }
    ask.send_json(info | {name: card[name] for name in ("library_name", "pipeline_tag") if name in card})


@_hub("GET HEAD", "/{page}{repo}/resolve/{revision}/{file}")
def _resolve(ask: _HubHandler, page: str, repo: str, revision: str, file: str) -> None:
    commit = ask.repo(page, repo).at(revision)
    headers = {"X-Repo-Commit": commit.id}
    if file not in commit.tree:
        raise Refused(404, "Entry not found", "EntryNotFound", **headers)
    entry = commit.tree[file]
    if entry.is_lfs:  # the storage is another host: a client reads these headers and takes its token no further
        linked = {"X-Linked-Etag": f'"{entry.sha256}"', "X-Linked-Size": str(len(entry.content))}
        return ask.send(302, b"", {**headers, **linked, "Location": f"{ask.hub.storage_url}/cdn/{entry.sha256}"})
    return ask.send(200, entry.content, {**headers, "ETag": f'"{entry.blob_id}"', "Accept-Ranges": "bytes"})


# --- the storage -----------------------------------------------------------------------------------------------------


class _StorageHandler(_Handler):
    """Where LFS objects lie. It knows no users: as on the real one, a token that comes along is refused."""

    routes: list = []  # noqa: RUF012

    def authenticate(self) -> None:
        if "Authorization" in self.headers:
            raise Refused(400, "Only one auth mechanism allowed")


@_route(_StorageHandler.routes, "PUT", "/cdn/{oid}")
def _put_object(ask: _StorageHandler, oid: str) -> None:
    if hashlib.sha256(ask.body).hexdigest() != oid:
        raise Refused(400, f"What arrived is not {oid}")
    ask.hub.objects[oid] = File(ask.body, is_lfs=True)
    ask.send(200, b"", {"ETag": f'"{oid}"'})


@_route(_StorageHandler.routes, "GET HEAD", "/cdn/{oid}")
def _get_object(ask: _StorageHandler, oid: str) -> None:
    headers = {"ETag": f'"{oid}"', "Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
    ask.send(200, ask.hub.objects[oid].content, headers)
