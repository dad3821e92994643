"""A small Hugging Face Hub on loopback, over real HTTP, for tests of what downloads and publishes.

It answers what `huggingface_hub`, `transformers` and `datasets` ask when `HF_ENDPOINT` points at it: models and
datasets with branches, tags and commits, uploads, downloads, private and gated repos, and faults on request. A commit
is a whole tree that never changes, a branch is the name of a commit (see `hub_repos.py`). So whoever reads finds one
commit and reads only that: the old tree or the new one, never something between.

    with HubServer() as hub:
        hub.url                                    # http://127.0.0.1:PORT
        hub.token                                  # of the user "someone"
        hub.environment(cache_dir)                 # for a process whose Hub this is
        hub.add_user("ada", token="hf_...")
        hub.add_repo("Salesforce/wikitext", {"README.md": b"...", "x.parquet": Path(...)}, kind="dataset")
        hub.files("someone/model"), hub.commits("someone/model"), hub.refs("someone/model")
        hub.requests                               # what was asked, and how it was answered
        hub.fail(Fault("/commit/", status=503, times=1))
        hub.mend()

How a file arrives: the client asks `preupload` how each file is to travel. A *regular* file travels inside the commit,
in base64. A large or binary one is an *LFS* object: `objects/batch` says where to PUT it, on a storage of another
address that knows objects by their SHA-256 and takes no token; `verify` asks whether it arrived; the commit only names
its hash. `resolve` sends a file, and for an LFS object the address in the storage. A client with `hf_xet` installed
sends large files by another protocol without asking, unless HF_HUB_DISABLE_XET is set: `environment` sets it.

What the real Hub does otherwise: it may say 401 for a hidden repo without an error code, which the client understands
only from an https address, so the code is added here; its storage signs addresses; it pages its lists; it knows more
rules for the metadata of a README. Left out: pull requests, discussions, spaces, xet, multipart uploads, the last
commit of each file, deleting repos.

On its own, for a person who follows the README: `python tests/hub_server.py --port 8080 [--wikitext DATA_DIR]`.
"""

import argparse
import contextlib
import hashlib
import json
import os
import re
import secrets
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from hub_repos import (
    ATTRIBUTES,
    PIECE,
    Commit,
    File,
    Refused,
    Repo,
    card_data,
    change,
    check_card,
    entries_of,
    is_ignored,
    is_inside,
    is_lfs,
    lfs_file,
    now,
    pieces,
    read,
    regular_file,
    wikitext_files,
)


@dataclass
class Fault:
    """What goes wrong with a request whose method and path match; the first fault that matches is the one."""

    path: str = ""  # a regular expression, searched for in the path and query, which are as in `HubServer.requests`
    method: str = ""  # any
    times: int | None = None  # how often; None: until `mend`
    status: int | None = None  # answered in place of doing anything
    headers: dict[str, str] = field(default_factory=dict)  # with `status`, such as {"Retry-After": "1"}
    body: str = '{"error": "a fault"}'  # with `status`
    cut_request_after: int | None = None  # bytes of the request's body; nothing is done
    cut_response_after: int | None = (
        None  # bytes of the answer's body, 0: before its first line; what was asked is done
    )
    hang: bool = False  # no answer until the server closes; nothing is done
    delay: float = 0  # seconds before anything is done


@dataclass
class Asked:
    """A request, as `HubServer.requests` lists it: without the token."""

    method: str
    path: str  # with the query; that of a request to the storage begins with /cdn/
    authorised: bool  # it had the token of a user
    status: int | None = None  # None: not answered, or not yet


class HubServer:
    """The Hub. Starts when made; `close` (or the end of `with`) ends every request, hanging ones too."""

    def __init__(self, port: int = 0) -> None:
        self.requests: list[Asked] = []
        self._repos: dict[tuple[str, str], Repo] = {}
        self._users: dict[bytes, tuple[str, str]] = {}  # digest of the token: name and role
        self._faults: list[Fault] = []
        self._lock = threading.RLock()  # for all of these
        self._announced: dict[str, int] = {}  # size of LFS objects that may be sent, by SHA-256
        self._objects: dict[str, File] = {}  # those that arrived
        self._folder = tempfile.TemporaryDirectory(prefix="hub-")
        self._closing = threading.Event()
        self.token = "hf_" + secrets.token_urlsafe(32).replace("-", "a").replace("_", "b")[:34]
        self.add_user("someone", self.token)
        self._hub, self._storage = _Listener(self, _HubHandler, port), _Listener(self, _StorageHandler, 0)
        self.url, self.storage_url = self._hub.url, self._storage.url

    def __enter__(self) -> "HubServer":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._closing.set()
        self._hub.close()
        self._storage.close()
        self._folder.cleanup()

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

    def add_user(self, name: str, token: str, role: str = "write") -> None:
        """A user, who may write to the repos of their own name, unless their token has the role "read"."""
        with self._lock:
            self._users[hashlib.sha256(token.encode()).digest()] = (name, role)

    def add_repo(
        self,
        repo_id: str,
        files: dict[str, bytes | Path],
        kind: str = "model",
        private: bool = False,
        gated: bool = False,
    ) -> str:
        """A repo with one commit, whose id is returned. Files given by path are read when they are asked for."""
        tree = {}
        for path, content in files.items():
            size = content.stat().st_size if isinstance(content, Path) else len(content)
            if size and is_lfs(path, size):
                tree[path] = self._store(lfs_file(content))
            else:
                tree[path] = regular_file(read(content))
        return self._create(Repo(repo_id, kind, private, gated, now()), tree, repo_id.split("/")[0]).id

    def files(self, repo_id: str, revision: str = "main", kind: str = "model") -> dict[str, bytes]:
        """Path and content of every file at a revision."""
        return {path: read(file.content) for path, file in self._repo(repo_id, kind).at(revision).tree.items()}

    def commits(self, repo_id: str, revision: str = "main", kind: str = "model") -> list[dict[str, str]]:
        """The commits of a revision, newest first: `id`, `title`, `message`, `author`."""
        names = ("id", "title", "message", "author")
        history = self._repo(repo_id, kind).at(revision).history()
        return [{name: getattr(commit, name) for name in names} for commit in history]

    def refs(self, repo_id: str, kind: str = "model") -> dict[str, dict[str, str]]:
        """Branches and tags: the commit id of each."""
        repo = self._repo(repo_id, kind)
        with self._lock:
            found = {"branches": repo.branches, "tags": repo.tags}
            return {what: {name: commit.id for name, commit in named.items()} for what, named in found.items()}

    def fail(self, fault: Fault) -> None:
        """From now on requests that match go wrong."""
        with self._lock:
            self._faults.append(fault)

    def mend(self) -> None:
        """No faults any more. A request that hangs stays so."""
        with self._lock:
            self._faults.clear()

    # What the answers are made from.

    def _repo(self, repo_id: str, kind: str) -> Repo:
        with self._lock:
            return self._repos[kind, repo_id]

    def _store(self, file: File) -> File:
        with self._lock:
            return self._objects.setdefault(file.sha256, file)

    def _user(self, authorization: str | None) -> tuple[str, str] | None:
        """Name and role of whom a token belongs to; a wrong token is refused, for public repos too."""
        if not authorization:
            return None
        token = authorization.removeprefix("Bearer ").encode()
        with self._lock:
            user = self._users.get(hashlib.sha256(token).digest())
        if not user:
            raise Refused(401, "Invalid credentials in Authorization header")
        return user

    def _fault_of(self, method: str, path: str) -> Fault:
        with self._lock:
            for fault in self._faults:
                if fault.method in ("", method) and fault.times != 0 and re.search(fault.path, path):
                    fault.times = fault.times and fault.times - 1
                    return fault
        return Fault()

    def _create(self, repo: Repo, tree: dict[str, File], author: str) -> Commit:
        with self._lock:
            if (repo.kind, repo.id) in self._repos:
                raise Refused(409, f"You already created this {repo.kind} repo: {repo.id}")
            self._repos[repo.kind, repo.id] = repo
            return self._commit(repo, "main", None, tree, "initial commit", "", author)

    def _commit(
        self, repo: Repo, branch: str, parent: Commit | None, tree: dict[str, File], title: str, text: str, by: str
    ) -> Commit:
        content = [parent and parent.id, title, text, by, sorted((path, file.etag) for path, file in tree.items())]
        commit_id = hashlib.sha1(json.dumps(content).encode()).hexdigest()
        repo.branches[branch] = Commit(commit_id, parent, tree, title, text, by, now())
        return repo.branches[branch]


# --- HTTP ------------------------------------------------------------------------------------------------------------


def _cut(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):  # it has ended
        connection.shutdown(socket.SHUT_RDWR)


class _Listener(ThreadingHTTPServer):
    """A port of the server, with a thread for each connection."""

    daemon_threads, block_on_close, request_queue_size = True, False, 64

    def __init__(self, hub: HubServer, handler: type, port: int) -> None:
        super().__init__(("127.0.0.1", port), handler)
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

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except (_Cut, OSError):
            self.close_connection = True
            _cut(self.connection)

    def answer(self) -> None:
        self.hub, self.user = self.server.hub, None
        self.length = self.left = int(self.headers.get("Content-Length") or 0)
        self.asked = Asked(self.command, self.path, False)
        self.hub.requests.append(self.asked)
        self.fault = fault = self.hub._fault_of(self.command, self.path)
        if fault.hang or fault.delay:
            self.hub._closing.wait(None if fault.hang else fault.delay)
            if self.hub._closing.is_set():
                raise _Cut
        if fault.cut_request_after is not None:
            self.left = min(self.left, fault.cut_request_after)
            self.drain()
            raise _Cut
        try:
            self.user = self.authenticate()
            self.asked.authorised = self.user is not None
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

    def authenticate(self) -> tuple[str, str] | None:
        raise NotImplementedError

    @property
    def query(self) -> dict[str, list[str]]:
        return parse_qs(urlsplit(self.path).query)

    def pieces(self) -> Iterator[bytes]:
        """The body of the request."""
        while self.left:
            piece = self.rfile.read(min(self.left, PIECE))
            if not piece:
                raise _Cut
            self.left -= len(piece)
            yield piece

    def body(self) -> bytes:
        return b"".join(self.pieces())

    def json(self) -> dict[str, Any]:
        content = json.loads(self.body() or b"{}")
        if not isinstance(content, dict):
            raise ValueError("no object")
        return content

    def drain(self) -> None:
        """The rest of a body that nobody wanted: unread it would be taken for the next request."""
        for _ in self.pieces():
            pass

    def send_json(self, content: Any, status: int = 200, **headers: str) -> None:
        self.send(status, json.dumps(content).encode(), {"Content-Type": "application/json", **headers})

    def send(self, status: int, content: bytes | Path, headers: dict[str, str]) -> None:
        """An answer; of a file the range that was asked for. A fault may cut it short."""
        self.drain()
        size = content.stat().st_size if isinstance(content, Path) else len(content)
        start, stop = 0, size
        if "Accept-Ranges" in headers and (span := re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))):
            first, last = span.groups()
            start = int(first) if first else max(size - int(last), 0)
            stop = min(int(last) + 1, size) if first and last else size
            status, headers = 206, {**headers, "Content-Range": f"bytes {start}-{stop - 1}/{size}"}
            if start >= size:
                status, start, stop = 416, size, size
                headers["Content-Range"] = f"bytes */{size}"
        cut = self.fault.cut_response_after
        if cut == 0:
            raise _Cut
        self.asked.status = status
        self.send_response_only(status)
        for name, value in {**headers, "Content-Length": str(stop - start)}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            for piece in pieces(content, start, stop if cut is None else min(stop, start + cut)):
                self.wfile.write(piece)
        if cut is not None:
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

    def authenticate(self) -> tuple[str, str] | None:
        return self.hub._user(self.headers.get("Authorization"))

    def must_be_known(self) -> str:
        if not self.user:
            raise Refused(401, "Invalid username or password.")
        return self.user[0]

    def repo(self, kind: str, repo: str, write: bool = False) -> Repo:
        """A repo that the user may see, or write to. One that is hidden from them is like one that is not there."""
        kind = "dataset" if kind.startswith("datasets") else "model"
        name, role = self.user or (None, None)
        try:
            found = self.hub._repo(repo, kind)
        except KeyError:
            found = None
        if not found or (found.private and found.owner != name):
            if name is None:
                raise Refused(401, "Invalid username or password.", "RepoNotFound")
            raise Refused(404, "Repository not found", "RepoNotFound")
        if write:
            self.must_be_known()
            if found.owner != name or role != "write":
                raise Refused(403, f"You don't have the rights to write to {kind} {repo} with this token")
        return found


def _hub(methods: str, address: str) -> Callable:
    return _route(_HubHandler.routes, methods, address)


@_hub("GET", "/api/whoami-v2")
def _who_am_i(ask: _HubHandler) -> None:
    name = ask.must_be_known()
    token = {"displayName": "a token", "role": ask.user[1], "createdAt": now()}
    user = {"type": "user", "id": name, "name": name, "fullname": name, "email": f"{name}@example.org", "orgs": []}
    ask.send_json({**user, "auth": {"type": "access_token", "accessToken": token}})


@_hub("POST", "/api/validate-yaml")
def _validate(ask: _HubHandler) -> None:
    errors, warnings = check_card(ask.json()["content"])
    answer = {"errors": [{"message": m} for m in errors], "warnings": [{"message": m} for m in warnings]}
    ask.send_json(answer, 400 if errors else 200)


@_hub("POST", "/api/repos/create")
def _create_repo(ask: _HubHandler) -> None:
    name, asked = ask.must_be_known(), ask.json()
    owner, kind = asked.get("organization") or name, asked.get("type") or "model"
    if owner != name or ask.user[1] != "write":
        raise Refused(403, f"You don't have the rights to create a {kind} under the namespace {owner!r}")
    if kind not in ("model", "dataset") or not re.fullmatch(r"[\w.-]{1,96}", asked["name"]):
        raise Refused(400, f"Not a name or kind of repo here: {kind} {asked['name']!r}")
    private = asked.get("private") or asked.get("visibility") == "private"
    repo = Repo(f"{owner}/{asked['name']}", kind, bool(private), False, now())
    answer = {"name": repo.id, "id": repo.id, "url": f"{ask.hub.url}/{repo.page}"}
    try:
        ask.hub._create(repo, {".gitattributes": regular_file(ATTRIBUTES)}, name)
    except Refused as refusal:  # the address is there too: who wanted the repo to exist goes on with it
        return ask.send_json({"error": refusal.message, **answer}, refusal.status)
    return ask.send_json(answer)


@_hub("POST", "/api/{kind}/{repo}/preupload/{revision}")
def _preupload(ask: _HubHandler, kind: str, repo: str, revision: str) -> None:
    tree, asked = ask.repo(kind, repo, write=True).at(revision).tree, ask.json()
    ignored = asked.get("gitIgnore")
    if ignored is None:
        ignored = read(tree[".gitignore"].content).decode() if ".gitignore" in tree else ""
    answer = []
    for file in asked["files"]:
        path = file["path"]
        mode = "lfs" if is_lfs(path, file["size"]) else "regular"
        answer.append({"path": path, "uploadMode": mode, "shouldIgnore": is_ignored(path, ignored)})
        if path in tree:
            answer[-1]["oid"] = tree[path].etag  # who has the same file need not send it
    ask.send_json({"files": answer})


@_hub("POST", "/{page}{repo}.git/info/lfs/objects/batch")
def _lfs_batch(ask: _HubHandler, page: str, repo: str) -> None:
    found, asked = ask.repo(page, repo, write=True), ask.json()
    if asked["operation"] != "upload" or asked.get("hash_algo", "sha256") != "sha256":
        raise Refused(422, "Only uploads of objects known by their SHA-256")
    answer = []
    for wanted in asked["objects"]:
        oid, size = wanted["oid"], wanted["size"]
        if not re.fullmatch(r"[0-9a-f]{64}", oid) or not isinstance(size, int):
            raise Refused(422, f"Not an LFS object: {wanted}")
        answer.append({"oid": oid, "size": size, "authenticated": True})
        if oid not in ask.hub._objects:
            ask.hub._announced[oid] = size
            verify = {"href": f"{ask.hub.url}/{found.page}.git/info/lfs/verify"}
            answer[-1]["actions"] = {"upload": {"href": f"{ask.hub.storage_url}/cdn/{oid}"}, "verify": verify}
    ask.send_json({"transfer": "basic", "objects": answer})


@_hub("POST", "/{page}{repo}.git/info/lfs/verify")
def _lfs_verify(ask: _HubHandler, page: str, repo: str) -> None:
    ask.repo(page, repo, write=True)
    asked = ask.json()
    stored = ask.hub._objects.get(asked["oid"])
    if not stored or stored.size != asked["size"]:
        raise Refused(404, f"LFS object {asked['oid']} of {asked['size']} bytes has not arrived", "EntryNotFound")
    ask.send_json({})


@_hub("POST", "/api/{kind}/{repo}/commit/{revision}")
def _commit(ask: _HubHandler, kind: str, repo: str, revision: str) -> None:
    found = ask.repo(kind, repo, write=True)
    lines = [json.loads(line) for line in ask.body().splitlines()]
    if not lines or lines[0]["key"] != "header" or not lines[0]["value"].get("summary"):
        raise Refused(400, "A commit begins with a header that has a summary")
    header, branch = lines[0]["value"], revision.removeprefix("refs/heads/")
    with ask.hub._lock:
        if branch not in found.branches:
            raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        head = found.branches[branch]
        if header.get("parentCommit") not in (None, head.id):
            raise Refused(412, "A commit has happened since. Please refresh and try again.")
        tree = dict(head.tree)
        for line in lines[1:]:
            change(tree, ask.hub._objects, line["key"], line["value"])
        texts = header["summary"], header.get("description") or ""
        made = ask.hub._commit(found, branch, head, tree, *texts, ask.user[0])
    url = f"{ask.hub.url}/{found.page}/commit/{made.id}"
    ask.send_json({"success": True, "commitOid": made.id, "commitUrl": url, "hookOutput": ""})


@_hub("GET", "/api/{kind}/{repo}/tree/{revision}(?:/{file})?")
def _list_tree(ask: _HubHandler, kind: str, repo: str, revision: str, file: str | None) -> None:
    commit, folder = ask.repo(kind, repo).at(revision), (file or "").strip("/")
    inside = [entry for entry in entries_of(commit.tree) if is_inside(entry["path"], folder)]
    if folder and not inside:
        raise Refused(404, f"{folder} does not exist on {revision}", "EntryNotFound", **{"X-Repo-Commit": commit.id})
    depth = folder.count("/") + 1 if folder else 0
    ask.send_json([e for e in inside if _flag(ask, "recursive") or e["path"].count("/") == depth])


@_hub("POST", "/api/{kind}/{repo}/paths-info/{revision}")
def _paths_info(ask: _HubHandler, kind: str, repo: str, revision: str) -> None:
    form = parse_qs(ask.body().decode())
    entries = entries_of(ask.repo(kind, repo).at(revision).tree)
    ask.send_json([entry for entry in entries if entry["path"] in form.get("paths", [])])


@_hub("GET", "/api/{kind}/{repo}/refs")
def _refs(ask: _HubHandler, kind: str, repo: str) -> None:
    found = ask.repo(kind, repo)
    named = ask.hub.refs(found.id, found.kind)
    answer = {
        what: [{"name": n, "ref": f"refs/{path}/{n}", "targetCommit": c} for n, c in named[what].items()]
        for what, path in (("branches", "heads"), ("tags", "tags"))
    }
    ask.send_json({**answer, "converts": [], "pullRequests": []})


@_hub("POST DELETE", "/api/{kind}/{repo}/branch/{name}")
def _branch(ask: _HubHandler, kind: str, repo: str, name: str) -> None:
    found = ask.repo(kind, repo, write=True)
    _name(ask, found.branches, name, found.at(ask.json().get("startingPoint") or "main"))


@_hub("POST DELETE", "/api/{kind}/{repo}/tag/{name}")
def _tag(ask: _HubHandler, kind: str, repo: str, name: str) -> None:
    """The address of a new tag has the revision that it names; that of one to be deleted has the tag."""
    found = ask.repo(kind, repo, write=True)
    is_new = ask.command == "POST"
    _name(ask, found.tags, ask.json()["tag"] if is_new else name, found.at(name))


def _name(ask: _HubHandler, named: dict[str, Commit], name: str, commit: Commit) -> None:
    """A branch or a tag is made or deleted."""
    with ask.hub._lock:
        if ask.command == "POST" and name in named:
            raise Refused(409, f"Reference exists already: {name}")
        if ask.command == "DELETE" and name not in named:
            raise Refused(404, f"Invalid rev id: {name}", "RevisionNotFound")
        if ask.command == "DELETE" and name == "main":
            raise Refused(403, "The main branch cannot be deleted")
        if ask.command == "POST":
            named[name] = commit
        else:
            del named[name]
    ask.send_json({})


@_hub("GET", "/api/{kind}/{repo}/commits/{revision}")
def _commits(ask: _HubHandler, kind: str, repo: str, revision: str) -> None:
    history = ask.repo(kind, repo).at(revision).history()
    ask.send_json(
        [
            {"id": c.id, "title": c.title, "message": c.message, "authors": [{"user": c.author}], "date": c.date}
            for c in history
        ]
    )


@_hub("GET", "/api/{kind}/{repo}/auth-check(?:/{write})?")
def _auth_check(ask: _HubHandler, kind: str, repo: str, write: str | None) -> None:
    _must_be_let_in(ask, ask.repo(kind, repo, write=write is not None))
    ask.send_json({})


@_hub("GET", "/api/{kind}/{repo}(?:/revision/{revision})?")
def _info(ask: _HubHandler, kind: str, repo: str, revision: str | None) -> None:
    found = ask.repo(kind, repo)
    commit = found.at(revision or "main")
    card = card_data(commit.tree)
    siblings = [{"rfilename": path} for path in commit.tree]
    if _flag(ask, "blobs"):
        for sibling, file in zip(siblings, commit.tree.values()):
            sibling |= {"size": file.size, "blobId": file.blob_id}
            if file.sha256:
                sibling["lfs"] = {"sha256": file.sha256, "size": file.size, "pointerSize": file.lfs["pointerSize"]}
    info = {
        "id": found.id,
        "author": found.owner,
        "sha": commit.id,
        "createdAt": found.created,
        "lastModified": commit.date,
        "private": found.private,
        "gated": "auto" if found.gated else False,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "tags": card.get("tags") or [],
        "cardData": card,
        "siblings": siblings,
        **{name: card[name] for name in ("library_name", "pipeline_tag") if name in card},
    }
    wanted = ask.query.get("expand", []) + ask.query.get("expand[]", [])
    ask.send_json({name: value for name, value in info.items() if not wanted or name in ("id", *wanted)})


@_hub("GET HEAD", "/{page}{repo}/resolve/{revision}/{file}")
def _resolve(ask: _HubHandler, page: str, repo: str, revision: str, file: str) -> None:
    found = ask.repo(page, repo)
    _must_be_let_in(ask, found)
    commit = found.at(revision)
    headers = {"X-Repo-Commit": commit.id}
    if file not in commit.tree:
        raise Refused(404, "Entry not found", "EntryNotFound", **headers)
    entry = commit.tree[file]
    if entry.sha256:  # the storage is another host: a client reads these headers and takes its token no further
        linked = {"X-Linked-Etag": f'"{entry.sha256}"', "X-Linked-Size": str(entry.size)}
        return ask.send(302, b"", {**headers, **linked, "Location": f"{ask.hub.storage_url}/cdn/{entry.sha256}"})
    return ask.send(200, entry.content, {**headers, "ETag": f'"{entry.blob_id}"', "Accept-Ranges": "bytes"})


def _must_be_let_in(ask: _HubHandler, repo: Repo) -> None:
    """A gated repo shows what it is to all, and its files to its owner only."""
    if repo.gated and (not ask.user or ask.user[0] != repo.owner):
        raise Refused(403 if ask.user else 401, f"Access to {repo.kind} {repo.id} is restricted", "GatedRepo")


def _flag(ask: _Handler, name: str) -> bool:
    return ask.query.get(name, ["false"])[0].lower() in ("true", "1")


# --- the storage -----------------------------------------------------------------------------------------------------


class _StorageHandler(_Handler):
    """Where LFS objects lie. It knows no users: as on the real one, a token that comes along is refused."""

    routes: list = []  # noqa: RUF012

    def authenticate(self) -> None:
        if "Authorization" in self.headers:
            raise Refused(400, "Only one auth mechanism allowed")


@_route(_StorageHandler.routes, "PUT", "/cdn/{oid}")
def _put_object(ask: _StorageHandler, oid: str) -> None:
    if oid not in ask.hub._announced:
        raise Refused(403, "Access denied: this object was not announced")
    if "Content-Length" not in ask.headers:
        raise Refused(411, "You must provide the Content-Length HTTP header.")
    with tempfile.NamedTemporaryFile(dir=ask.hub._folder.name, delete=False) as arriving:
        for piece in ask.pieces():
            arriving.write(piece)
    arrived = lfs_file(Path(arriving.name))
    if (arrived.sha256, arrived.size) != (oid, ask.hub._announced[oid]):
        os.remove(arriving.name)
        raise Refused(400, f"What arrived is not {oid} of {ask.hub._announced[oid]} bytes")
    ask.hub._store(arrived)
    ask.send(200, b"", {"ETag": f'"{oid}"'})


@_route(_StorageHandler.routes, "GET HEAD", "/cdn/{oid}")
def _get_object(ask: _StorageHandler, oid: str) -> None:
    if oid not in ask.hub._objects:
        raise Refused(404, "No such key")
    headers = {"ETag": f'"{oid}"', "Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
    ask.send(200, ask.hub._objects[oid].content, headers)


def main() -> None:
    parser = argparse.ArgumentParser(description="Serve a small Hugging Face Hub on this machine.")
    parser.add_argument("--port", type=int, default=0, help="0: any that is free")
    parser.add_argument("--wikitext", type=Path, metavar="DIR", help="folder of test data: serve Salesforce/wikitext")
    options = parser.parse_args()
    with HubServer(options.port) as hub:
        if options.wikitext:
            hub.add_repo("Salesforce/wikitext", wikitext_files(options.wikitext), kind="dataset")
        names = ("HF_ENDPOINT", "HF_TOKEN", "HF_HUB_DISABLE_XET")
        print(" ".join(f"{name}={hub.environment('.')[name]}" for name in names), flush=True)
        try:
            while True:
                time.sleep(3600)
        except KeyboardInterrupt:
            pass


if __name__ == "__main__":
    main()
