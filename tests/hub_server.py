"""A small Hub on this machine for the real client: it keeps commits, checks tokens and tells what it was asked."""

import os
import sys
import threading
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self
from urllib.parse import unquote

from .hub_api import Answer, HubApi
from .hub_files import storage
from .hub_repository import Commit

Answerer = Callable[[str, str, bytes, str | None, str | None], Answer]


@dataclass(frozen=True)
class Request:
    """What a client asked for, with which token, and the status it got; `path` is without its query."""

    method: str
    path: str
    token: str | None
    status: int


class HubServer:
    """A Hub for the time of a `with` block; what was pushed to it lives in memory and ends with it.

    Large files come from a second port, as the real Hub's come from a storage at another address, to which no client
    may send its token. Not there: pull requests, Xet, multipart uploads, `.gitignore`, and repositories under a name
    that is not a user's.

    Args:
        tokens (`Mapping[str, str]`):
            The user to whom each token belongs; users own the repositories `user/name`.
        read_only (`Collection[str]`):
            The tokens that may not write.
        lfs_threshold (`int`):
            Bytes from which on files go into LFS even if no rule of `.gitattributes` sends them there.

    Examples:

        >>> with HubServer(tokens={"hf_owner": "owner"}) as hub:
        ...     hub.url.startswith("http://127.0.0.1:")
        True
    """

    def __init__(
        self, tokens: Mapping[str, str], *, read_only: Collection[str] = (), lfs_threshold: int = 10_000_000
    ) -> None:
        self.requests: list[Request] = []
        self._api = HubApi(tokens, read_only, lfs_threshold)
        self._servers: list[_Server] = []

    def __enter__(self) -> Self:
        for answer in (self._api.answer, partial(storage, self._api)):
            server = _Server(answer, self.requests)
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
            self._servers.append(server)
        self._api.url, self._api.storage_url = (f"http://127.0.0.1:{server.server_port}" for server in self._servers)
        return self

    def __exit__(self, *_: object) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()
        self._servers.clear()

    @property
    def url(self) -> str:
        """The address that `HF_ENDPOINT` names."""
        return self._api.url

    def environment(self, home: Path, *, token: str | None = None) -> dict[str, str]:
        """The variables of a process that knows no other Hub, no cache outside `home` and no token but this one."""
        foreign = ("HF_", "HUGGINGFACE", "HUGGING_FACE", "TRANSFORMERS_")  # offline mode and caches among them
        variables = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
        variables |= {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            # Where `hf_xet` is installed, the client uploads large files through it and never asks the Hub whether it
            # knows Xet. Downloads need no such switch.
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_UPDATE_CHECK": "1",
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }
        return variables if token is None else variables | {"HF_TOKEN": token}

    def files(self, repo_id: str, revision: str = "main", *, repo_type: str = "model") -> dict[str, bytes]:
        """The content of every file at a branch, tag or commit."""
        (commit, *_) = self.commits(repo_id, revision, repo_type=repo_type)
        return {path: file.content for path, file in sorted(commit.files.items())}

    def commits(self, repo_id: str, revision: str = "main", *, repo_type: str = "model") -> list[Commit]:
        """The history up to a branch, tag or commit, the newest first."""
        return self._api.repositories[f"{repo_type}s", repo_id].history(revision)


class _Server(ThreadingHTTPServer):
    """A port of this machine and what answers there."""

    def __init__(self, answer: Answerer, requests: list[Request]) -> None:
        self.answer, self.requests = answer, requests
        super().__init__(("127.0.0.1", 0), _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # a client that ended in the middle is no news
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    """One connection: reads requests, has them answered, keeps a record."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # headers and body go out separately; the second would wait for the first
    server: _Server

    def _handle(self) -> None:
        kind, _, token = self.headers.get("Authorization", "").partition(" ")
        sent = token if kind == "Bearer" else None
        body = self._read()  # all of it even if it is refused, because the connection serves the next request, too
        answer = self.server.answer(self.command, self.path, body, sent, self.headers.get("Range"))
        path = unquote(self.path.partition("?")[0])
        self.server.requests.append(Request(self.command, path, sent, answer.status))
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value.replace("\n", " ").encode("ascii", "replace").decode())
        self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _handle

    def _read(self) -> bytes:
        """The body, whose length is in the headers or in front of each chunk."""
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        chunks = []
        while length := int(self.rfile.readline().split(b";")[0], 16):
            chunks.append(self.rfile.read(length))
            self.rfile.readline()
        while self.rfile.readline().strip():  # trailers
            pass
        return b"".join(chunks)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing; `requests` has it."""
