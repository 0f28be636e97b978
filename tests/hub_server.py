"""Serve a small Hugging Face Hub on this machine: repositories in memory, and a record of requests."""

import base64
import hashlib
import json
import os
import re
import threading
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self
from urllib.parse import parse_qs, unquote

import yaml

NAME = r"(?P<name>[^/]+/[^/]+)"
API = f"/api/(?:models|datasets)/{NAME}"
REPO_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
Answer = tuple[int, dict[str, str], bytes]


class RefusedError(Exception):
    """Signal a refusal with a status, a message, and the code by which the client chooses its exception."""

    def __init__(self, status: int, message: str, code: str = "", commit: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.headers = {"X-Error-Message": message, "X-Error-Code": code, "X-Repo-Commit": commit}


@dataclass(frozen=True)
class Request:
    """Record what a client requested, its token, and the returned status; `path` has no query."""

    method: str
    path: str
    token: str | None
    status: int


@dataclass(frozen=True)
class Commit:
    """Hold a state of all files."""

    files: Mapping[str, bytes]
    title: str
    parent: str = ""

    @property
    def id(self) -> str:
        """Return 40 hexadecimal digits that depend on the files, the title and the history."""
        return hashlib.sha1(repr((self.title, self.parent, sorted(self.files.items()))).encode()).hexdigest()


class Repository:
    """Hold the history of each branch, newest commit first."""

    def __init__(self, *, private: bool) -> None:
        self.private = private
        self.branches = {"main": [Commit({".gitattributes": b""}, "initial commit")]}

    def history(self, revision: str) -> list[Commit]:
        """Return the commits up to a branch or commit id, newest first."""
        for branch, commits in self.branches.items():
            for index, commit in enumerate(commits):
                if revision in (branch, commit.id):
                    return commits[index:]
        raise RefusedError(404, f"Invalid rev id: {revision}", "RevisionNotFound")


@dataclass(frozen=True)
class Call:
    """Hold a routed request: the named parts of its path, the query, the body, the sender."""

    parts: Mapping[str, str]
    query: Mapping[str, list[str]]
    body: bytes
    user: str | None
    may_write: bool

    def json(self) -> Any:
        """Return the parsed body."""
        return json.loads(self.body or b"{}")


class HubServer:
    """Serve a Hub within a `with` block.

    Files travel inside commits, never through LFS or Xet. Not implemented: pull requests, tags, ranges of bytes.

    Args:
        tokens (`Mapping[str, str]`): The user to whom each token belongs; users own the repositories `user/name`.
        read_only (`Collection[str]`): The tokens that may not write.
    """

    def __init__(self, tokens: Mapping[str, str], *, read_only: Collection[str] = ()) -> None:
        self.tokens, self.read_only = tokens, read_only
        self.requests: list[Request] = []
        self.repositories: dict[str, Repository] = {}
        self.lock = threading.Lock()

    def __enter__(self) -> Self:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, self))
        self._server.handle_error = lambda *_: None  # type: ignore[method-assign]  # a client that left is not news
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def environment(self, home: Path, *, token: str | None = None) -> dict[str, str]:
        """Return variables of a process that knows no other Hub, no cache outside `home` and no other token."""
        foreign = ("HF_", "HUGGINGFACE", "HUGGING_FACE", "TRANSFORMERS_")  # including offline mode and caches
        variables = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
        switches = ("HF_HUB_DISABLE_XET", "HF_HUB_DISABLE_TELEMETRY", "HF_HUB_DISABLE_PROGRESS_BARS")
        variables |= dict.fromkeys((*switches, "HF_HUB_DISABLE_UPDATE_CHECK"), "1")
        variables |= {"HF_ENDPOINT": self.url, "HF_HOME": str(home), "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
        return variables if token is None else variables | {"HF_TOKEN": token}

    def commits(self, repo_id: str, revision: str = "main") -> list[Commit]:
        """Return the history up to a branch or commit, newest first."""
        return self.repositories[repo_id].history(revision)

    def files(self, repo_id: str, revision: str = "main") -> dict[str, bytes]:
        """Return the content of every file at a branch or commit."""
        return dict(self.commits(repo_id, revision)[0].files)

    def answer(self, method: str, target: str, body: bytes, token: str | None) -> Answer:
        """Answer one request; `target` is the path with its query."""
        path, _, query = target.partition("?")
        try:
            if token is not None and token not in self.tokens:
                raise RefusedError(401, "Invalid credentials in Authorization header")
            for methods, pattern, function in ROUTES:
                if method in methods.split() and (found := re.fullmatch(pattern, path)):
                    parts = {key: unquote(part) for key, part in found.groupdict().items() if part is not None}
                    user = None if token is None else self.tokens[token]
                    with self.lock:
                        return function(self, Call(parts, parse_qs(query), body, user, token not in self.read_only))
            raise RefusedError(501, f"The test server does not implement {method} {path}")
        except RefusedError as error:
            return error.status, error.headers, json.dumps({"error": str(error)}).encode()

    def repository(self, call: Call, *, write: bool = False) -> Repository:
        """Return the repository of a request if its sender may read it and, with `write`, change it."""
        name = call.parts["name"]
        repository, is_owner = self.repositories.get(name), name.split("/")[0] == call.user
        if repository is None or (repository.private and not is_owner) or (write and call.user is None):
            raise RefusedError(401 if call.user is None else 404, "Repository not found", "RepoNotFound")
        if write and not (is_owner and call.may_write):
            raise RefusedError(403, f"Forbidden: {call.user} has no write access to {name} with this token")
        return repository

    def head(self, call: Call) -> Commit:
        """Return the commit that a request reads."""
        return self.repository(call).history(call.parts.get("revision", "main"))[0]


def _json(value: Any, status: int = 200) -> Answer:
    return status, {"Content-Type": "application/json"}, json.dumps(value).encode()


def card_errors(card: str) -> list[str]:
    """Return why the Hub refuses a model card: unreadable metadata, or invalid tags or base models."""
    found = re.match(r"---[ \t]*\n(.*?)^---[ \t]*$", card.replace("\r\n", "\n"), flags=re.DOTALL | re.MULTILINE)
    try:
        metadata = (yaml.safe_load(found[1]) or {}) if found else {}
        tags, bases = metadata.get("tags", []), metadata.get("base_model", [])
    except (yaml.YAMLError, AttributeError) as error:
        return [f"invalid metadata: {error}"]
    bases = [bases] if isinstance(bases, str) else bases
    errors = [] if isinstance(tags, list) and all(isinstance(tag, str) for tag in tags) else [f"tags: {tags!r}"]
    return errors + [f"base_model: {base!r} is not valid" for base in bases if not REPO_ID.fullmatch(str(base))]


def _validate_card(hub: HubServer, call: Call) -> Answer:
    errors = card_errors(call.json()["content"])
    return _json({"errors": [{"message": error} for error in errors], "warnings": []}, 400 if errors else 200)


def _create_repository(hub: HubServer, call: Call) -> Answer:
    given = call.json()
    name = f"{given.get('organization') or call.user}/{given['name']}"
    if not call.may_write or name.split("/")[0] != call.user:
        raise RefusedError(403, f"You don't have the rights to create a model under this namespace: {name}")
    is_new = name not in hub.repositories
    hub.repositories.setdefault(name, Repository(private=given.get("visibility") == "private"))
    return _json({"url": f"{hub.url}/{name}", "name": name}, 200 if is_new else 409)


def _create_branch(hub: HubServer, call: Call) -> Answer:
    repository, branch = hub.repository(call, write=True), call.parts["branch"]
    if branch in repository.branches:
        raise RefusedError(409, f"Reference already exists: {branch}")
    repository.branches[branch] = repository.history(call.json().get("startingPoint", "main"))
    return _json({})


def _preupload(hub: HubServer, call: Call) -> Answer:
    """Let every file be sent in the commit itself."""
    hub.repository(call, write=True).history(call.parts["revision"])
    paths = [file["path"] for file in call.json()["files"]]
    return _json({"files": [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in paths]})


def _commit(hub: HubServer, call: Call) -> Answer:
    """Apply all changes of the body, one JSON per line after that of the message, or none."""
    repository, branch = hub.repository(call, write=True), call.parts["revision"]
    head = repository.history(branch)[0]
    header, *changes = [json.loads(line) for line in call.body.splitlines()]
    files = dict(head.files)
    for change in changes:
        path, kind = change["value"]["path"].rstrip("/"), change["key"]
        if kind == "file":
            files[path] = base64.b64decode(change["value"]["content"], validate=True)
            if path == "README.md" and (errors := card_errors(files[path].decode())):
                raise RefusedError(400, f"Invalid metadata in README.md: {errors}")
        elif kind == "deletedFile" and path in files:
            del files[path]
        elif kind == "deletedFolder":
            files = {name: content for name, content in files.items() if not name.startswith(f"{path}/")}
        else:
            raise RefusedError(404, f"A file with this name doesn't exist. Path: {path}", "EntryNotFound")
    commit = Commit(files, header["value"]["summary"], head.id)
    repository.branches[branch] = [commit, *repository.branches[branch]]
    url = f"{hub.url}/{call.parts['name']}/commit/{commit.id}"
    return _json({"success": True, "commitOid": commit.id, "commitUrl": url})


def _tree(hub: HubServer, call: Call) -> Answer:
    """List the files in a folder, or with `recursive` also those below; folders are left out."""
    folder, recursive = call.parts.get("path", "").strip("/"), call.query.get("recursive") == ["true"]
    start = f"{folder}/" if folder else ""
    inside = {path: data for path, data in hub.head(call).files.items() if path.startswith(start)}
    if folder and not inside:
        raise RefusedError(404, f"{folder} does not exist", "EntryNotFound")
    found = [(path, data) for path, data in inside.items() if recursive or "/" not in path.removeprefix(start)]
    return _json([{"type": "file", "path": path, "oid": _etag(data), "size": len(data)} for path, data in found])


def _etag(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


def _resolve(hub: HubServer, call: Call) -> Answer:
    commit = hub.head(call)
    content = commit.files.get(call.parts["path"])
    if content is None:
        raise RefusedError(404, "Entry not found", "EntryNotFound", commit.id)
    return 200, {"ETag": f'"{_etag(content)}"', "X-Repo-Commit": commit.id}, content


def _info(hub: HubServer, call: Call) -> Answer:
    commit, private = hub.head(call), hub.repository(call).private
    known = {"private": private, "tags": [], "downloads": 0, "likes": 0}
    siblings = [{"rfilename": path} for path in sorted(commit.files)]
    return _json({"id": call.parts["name"], "sha": commit.id, "siblings": siblings, **known})


REVISION = "(?P<revision>[^/]+)"
ROUTES: tuple[tuple[str, str, Callable[[HubServer, Call], Answer]], ...] = (
    ("GET", "/api/whoami-v2", lambda hub, call: _json({"type": "user", "name": call.user, "orgs": []})),
    ("POST", "/api/validate-yaml", _validate_card),
    ("POST", "/api/repos/create", _create_repository),
    ("POST", f"{API}/branch/(?P<branch>[^/]+)", _create_branch),
    ("POST", f"{API}/preupload/{REVISION}", _preupload),
    ("POST", f"{API}/commit/{REVISION}", _commit),
    ("GET", f"{API}/tree/{REVISION}(?:/(?P<path>.+))?", _tree),
    ("GET", f"{API}(?:/revision/{REVISION})?", _info),
    ("GET HEAD", f"/{NAME}/resolve/{REVISION}/(?P<path>.+)", _resolve),
)


class _Handler(BaseHTTPRequestHandler):
    """Read requests of one connection, have them answered, and record them."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # headers and body are sent separately; the second would wait for the first

    def __init__(self, hub: HubServer, *arguments: Any) -> None:
        self.hub = hub
        super().__init__(*arguments)

    def _handle(self) -> None:
        kind, _, token = self.headers.get("Authorization", "").partition(" ")
        sent = token if kind == "Bearer" else None
        status, headers, content = self.hub.answer(self.command, self.path, self._read(), sent)
        self.hub.requests.append(Request(self.command, unquote(self.path.partition("?")[0]), sent, status))
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            if value:
                self.send_header(name, value.replace("\n", " ").encode("ascii", "replace").decode())
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _handle

    def _read(self) -> bytes:
        """Read the body, whose length is in the headers or before each chunk."""
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chunks = []
        while length := int(self.rfile.readline().split(b";")[0], 16):
            chunks.append(self.rfile.read(length))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing; `requests` records everything."""
