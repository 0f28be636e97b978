"""What the Hub answers to each request: the part of its HTTP API that pushing to it and loading from it need."""

import json
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from urllib.parse import unquote

from .hub_card import check_metadata
from .hub_repository import File, HubError, Repository

API_REPO = r"/api/(?P<kind>models|datasets|spaces)/(?P<name>[^/]+(?:/[^/]+)?)"
URL_REPO = r"(?:/(?P<kind>datasets|spaces))?/(?P<name>[^/]+(?:/[^/]+)?)"
REPO_ID = re.compile(r"(?!.*(--|\.\.|\.git$))\w[\w.-]{0,95}/\w[\w.-]{0,95}", re.ASCII)


@dataclass(frozen=True)
class Call:
    """A request: its path in parts as the endpoint's pattern names them, and who sent it."""

    method: str
    parts: Mapping[str, str]
    query: str
    body: bytes
    byte_range: str | None
    user: str | None
    may_write: bool

    @property
    def data(self) -> dict[str, Any]:
        return json.loads(self.body)


@dataclass
class Answer:
    """A response."""

    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)


def as_json(value: Any, status: int = 200) -> Answer:
    return Answer(json.dumps(value, default=str).encode(), status, {"Content-Type": "application/json"})


def as_date(date: datetime) -> str:
    """A date as the client reads it; an offset in place of the Z would not do."""
    return date.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def as_error(error: HubError) -> Answer:
    """The body for people, the headers by which the client chooses its exception."""
    answer = as_json({"error": error.message}, error.status)
    answer.headers["X-Error-Message"] = error.message
    if error.code is not None:
        answer.headers["X-Error-Code"] = error.code
    if error.commit is not None:  # the client remembers at which commit there was no such file
        answer.headers["X-Repo-Commit"] = error.commit
    return answer


Endpoint = Callable[["HubApi", Call], Answer]
ENDPOINTS: list[tuple[str, re.Pattern[str], Endpoint]] = []


def endpoint(methods: str, pattern: str) -> Callable[[Endpoint], Endpoint]:
    """Register what answers these methods at paths of this pattern; the first that fits answers."""

    def register(function: Endpoint) -> Endpoint:
        ENDPOINTS.extend((method, re.compile(pattern), function) for method in methods.split())
        return function

    return register


class HubApi:
    """Users, repositories and permissions, without any HTTP."""

    def __init__(self, tokens: Mapping[str, str], read_only: Collection[str], lfs_threshold: int) -> None:
        self.tokens, self.read_only, self.lfs_threshold = dict(tokens), set(read_only), lfs_threshold
        self.url = self.storage_url = ""
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.uploads: dict[str, tuple[Repository, str, int]] = {}  # by the secret part of a signed address
        self.downloads: dict[str, File] = {}

    def answer(self, method: str, target: str, body: bytes, token: str | None, byte_range: str | None) -> Answer:
        """Answer one request; `target` is the path and the query as they came."""
        path, _, query = target.partition("?")
        try:
            if token is not None and token not in self.tokens:
                raise HubError(401, "Invalid credentials in Authorization header")
            for known, pattern, function in ENDPOINTS:
                if known == method and (found := pattern.fullmatch(path)):
                    parts = {key: unquote(part) for key, part in found.groupdict().items() if part is not None}
                    user = None if token is None else self.tokens[token]
                    may_write = token not in self.read_only
                    return function(self, Call(method, parts, query, body, byte_range, user, may_write))
            raise HubError(501, f"The test server does not implement {method} {path}")
        except HubError as error:
            return as_error(error)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            return as_error(HubError(400, f"Malformed {method} {path}: {error!r}"))

    def repository(self, call: Call, *, write: bool = False) -> Repository:
        """The repository of a request, if its sender may see it, and may write to it where that is asked."""
        repository = self.repositories.get((call.parts.get("kind", "models"), call.parts["name"]))
        if repository is None or (repository.private and repository.owner != call.user):
            # Nobody learns which private repositories exist. The client understands a bare 401 only from https, so
            # that the code has to say it.
            if call.user is None:
                raise HubError(401, "Invalid username or password.", code="RepoNotFound")
            raise HubError(404, "Repository not found", code="RepoNotFound")
        if write and call.user is None:
            raise HubError(401, "Invalid username or password.", code="RepoNotFound")
        if write and not (call.may_write and repository.owner == call.user):
            raise HubError(403, f"Forbidden: {call.user} has no write access to {repository.name} with this token")
        return repository


# ---- Users and repositories ----


@endpoint("GET", "/api/whoami-v2")
def whoami(hub: HubApi, call: Call) -> Answer:
    if call.user is None:
        raise HubError(401, "Invalid username or password.")
    role = "write" if call.may_write else "read"
    token = {"type": "access_token", "accessToken": {"displayName": "test", "role": role}}
    return as_json({"type": "user", "name": call.user, "fullname": call.user, "orgs": [], "auth": token})


@endpoint("POST", "/api/validate-yaml")
def validate_yaml(hub: HubApi, call: Call) -> Answer:
    errors, warnings = check_metadata(call.data["content"])
    found = {"errors": [{"message": text} for text in errors], "warnings": [{"message": text} for text in warnings]}
    return as_json(found, 400 if errors else 200)


@endpoint("POST", "/api/repos/create")
def create_repo(hub: HubApi, call: Call) -> Answer:
    if call.user is None:
        raise HubError(401, "Invalid username or password.")
    kind = call.data.get("type", "model")
    name = f"{call.data.get('organization') or call.user}/{call.data['name']}"
    if kind not in ("model", "dataset", "space") or not REPO_ID.fullmatch(name):
        raise HubError(400, f"Invalid {kind} name: {name!r}")
    if not call.may_write or name.split("/")[0] != call.user:
        raise HubError(403, f"You don't have the rights to create a {kind} under this namespace: {name}")
    made = {"url": f"{hub.url}/{'' if kind == 'model' else f'{kind}s/'}{name}", "name": name}
    private = call.data.get("visibility") == "private"
    new = Repository(kind=f"{kind}s", name=name, private=private, author=call.user)
    if hub.repositories.setdefault((new.kind, name), new) is not new:
        return as_json({"error": f"You already created this {kind} repo", **made}, 409)
    return as_json(made)


@endpoint("GET", f"{API_REPO}/auth-check(?P<write>/write)?")
def auth_check(hub: HubApi, call: Call) -> Answer:
    hub.repository(call, write="write" in call.parts)
    return as_json({})


# ---- Branches, tags and history ----


@endpoint("GET", f"{API_REPO}/refs")
def list_refs(hub: HubApi, call: Call) -> Answer:
    repository = hub.repository(call)

    def rows(kind: str, refs: Mapping[str, str]) -> list[dict[str, str]]:
        return [{"name": name, "ref": f"refs/{kind}/{name}", "targetCommit": oid} for name, oid in refs.items()]

    branches, tags = rows("heads", repository.branches), rows("tags", repository.tags)
    return as_json({"branches": branches, "tags": tags, "converts": [], "pullRequests": []})


@endpoint("POST DELETE", f"{API_REPO}/branch/(?P<branch>[^/]+)")
def change_branch(hub: HubApi, call: Call) -> Answer:
    repository = hub.repository(call, write=True)
    if call.method == "DELETE":
        repository.delete_ref(repository.branches, call.parts["branch"])
    else:
        repository.create_ref(repository.branches, call.parts["branch"], call.data.get("startingPoint", "main"))
    return as_json({})


@endpoint("POST DELETE", f"{API_REPO}/tag/(?P<revision>[^/]+)")
def change_tag(hub: HubApi, call: Call) -> Answer:
    repository = hub.repository(call, write=True)
    if call.method == "DELETE":
        repository.delete_ref(repository.tags, call.parts["revision"])
    else:  # here the path names what is tagged
        repository.create_ref(repository.tags, call.data["tag"], call.parts["revision"])
    return as_json({})


@endpoint("GET", f"{API_REPO}/commits/(?P<revision>[^/]+)")
def list_commits(hub: HubApi, call: Call) -> Answer:
    history = hub.repository(call).history(call.parts["revision"])
    return as_json(
        [
            {
                "id": commit.id,
                "authors": [{"user": commit.author}],
                "date": as_date(commit.date),
                "title": commit.title,
                "message": commit.description,
            }
            for commit in history
        ]
    )
