"""What the Hub answers about files: commits and uploads, listings and downloads."""

import base64
import json
import re
import secrets
from typing import Any
from urllib.parse import parse_qs

from .hub_api import API_REPO, URL_REPO, Answer, Call, HubApi, as_date, as_error, as_json, endpoint
from .hub_card import check_metadata, read_metadata
from .hub_repository import Commit, Delete, File, HubError, Put, Repository

# ---- Uploads ----


@endpoint("POST", f"{API_REPO}/preupload/(?P<revision>[^/]+)")
def preupload(hub: HubApi, call: Call) -> Answer:
    """Say of each file whether it goes into the commit itself or into LFS, and what is there already."""
    commit = hub.repository(call, write=True).find(call.parts["revision"])
    _refuse_pull_requests(call)
    rows = []
    for given in call.data["files"]:
        path = given["path"]
        if path == ".gitignore" or ".gitignore" in commit.files:
            raise HubError(501, "The test server does not implement .gitignore")
        mode = "lfs" if commit.is_lfs(path) or given["size"] > hub.lfs_threshold else "regular"
        row: dict[str, Any] = {"path": path, "uploadMode": mode, "shouldIgnore": False}
        if path in commit.files:  # with the same id, the client leaves the file out of the commit
            row["oid"] = commit.files[path].etag
        rows.append(row)
    return as_json({"files": rows})


@endpoint("POST", rf"{URL_REPO}\.git/info/lfs/objects/batch")
def lfs_batch(hub: HubApi, call: Call) -> Answer:
    """Give signed addresses to which new content goes; content that is there already gets none."""
    repository = hub.repository(call, write=True)
    rows = []
    for given in call.data["objects"]:
        oid, size = given["oid"], given["size"]
        row: dict[str, Any] = {"oid": oid, "size": size}
        if oid not in repository.lfs_objects:
            secret = secrets.token_urlsafe()
            hub.uploads[secret] = (repository, oid, size)
            prefix = "" if repository.kind == "models" else f"{repository.kind}/"
            verify = f"{hub.url}/{prefix}{repository.name}.git/info/lfs/objects/verify"
            row["actions"] = {"upload": {"href": f"{hub.storage_url}/storage/{secret}"}, "verify": {"href": verify}}
        rows.append(row)
    return as_json({"transfer": "basic", "objects": rows})


@endpoint("POST", rf"{URL_REPO}\.git/info/lfs/objects/verify")
def lfs_verify(hub: HubApi, call: Call) -> Answer:
    _uploaded(hub.repository(call, write=True), call.data)
    return as_json({})


def storage(hub: HubApi, method: str, target: str, body: bytes, token: str | None, byte_range: str | None) -> Answer:
    """Answer in place of the storage behind the Hub, where a signed address is all the permission there is."""
    secret = target.removeprefix("/storage/")
    if token is not None:
        return as_error(HubError(400, "A token was sent to the storage, which is not the Hub"))
    if method in ("GET", "HEAD") and secret in hub.downloads:
        file = hub.downloads[secret]
        return _send(file, byte_range, {"ETag": f'"{file.sha256}"'})
    if method == "PUT" and secret in hub.uploads:
        repository, oid, size = hub.uploads[secret]
        file = File(body, lfs=True)
        if (file.sha256, len(body)) != (oid, size):
            message = f"Expected {size} bytes of SHA-256 {oid}; got {len(body)} bytes of SHA-256 {file.sha256}"
            return as_error(HubError(400, message))
        repository.lfs_objects[oid] = file
        return Answer()
    return as_error(HubError(403, f"No permission to {method} {target}"))


@endpoint("POST", f"{API_REPO}/commit/(?P<revision>[^/]+)")
def create_commit(hub: HubApi, call: Call) -> Answer:
    """Make a commit of the changes in the body, one JSON per line after that of the message."""
    repository = hub.repository(call, write=True)
    _refuse_pull_requests(call)
    header, *lines = [json.loads(line) for line in call.body.splitlines()]
    message = header["value"]
    commit = repository.commit(
        call.parts["revision"],
        [_change(hub, repository, line["key"], line["value"]) for line in lines],
        title=message["summary"],
        description=message.get("description", ""),
        author=str(call.user),
        parent=message.get("parentCommit", ""),
    )
    url = f"{hub.url}/{'' if repository.kind == 'models' else f'{repository.kind}/'}{repository.name}"
    return as_json({"success": True, "commitOid": commit.id, "commitUrl": f"{url}/commit/{commit.id}"})


def _change(hub: HubApi, repository: Repository, key: str, value: dict[str, Any]) -> Put | Delete:
    """One line of a commit's body."""
    if key in ("deletedFile", "deletedFolder"):
        return Delete(value["path"].rstrip("/"), is_folder=key == "deletedFolder")
    if key == "lfsFile":
        return Put(value["path"], _uploaded(repository, value))
    if key != "file" or value["encoding"] != "base64":
        raise HubError(400, f"Unknown change in a commit: {key!r}, encoding {value.get('encoding')!r}")
    content = base64.b64decode(value["content"], validate=True)
    if len(content) > hub.lfs_threshold:
        raise HubError(400, f"{value['path']} has {len(content)} bytes; from {hub.lfs_threshold} on, LFS is required")
    errors, _ = check_metadata(content.decode()) if value["path"] == "README.md" else ([], [])
    if errors:
        raise HubError(400, f"Invalid metadata in README.md: {'; '.join(errors)}")
    return Put(value["path"], File(content))


def _uploaded(repository: Repository, given: dict[str, Any]) -> File:
    """The content that an LFS object names, if it is there."""
    file = repository.lfs_objects.get(given["oid"])
    if file is None or given.get("size", len(file.content)) != len(file.content):
        raise HubError(400, f"An LFS pointer pointed to a file that does not exist: {given}")
    return file


def _refuse_pull_requests(call: Call) -> None:
    if "create_pr" in parse_qs(call.query):
        raise HubError(501, "The test server does not implement pull requests")


# ---- Listings ----


def _row(path: str, file: File) -> dict[str, Any]:
    """A file as listings show it."""
    row: dict[str, Any] = {"type": "file", "path": path, "oid": file.git_id, "size": len(file.content)}
    if file.lfs:
        row["lfs"] = {"oid": file.sha256, "size": len(file.content), "pointerSize": len(file.pointer)}
    return row


def _rows(commit: Commit) -> dict[str, dict[str, Any]]:
    """All files and folders of a commit."""
    folders = {
        path: {"type": "directory", "path": path, "oid": oid, "size": 0} for path, oid in commit.folders.items()
    }
    return folders | {path: _row(path, file) for path, file in sorted(commit.files.items())}


def _refuse_expand(expand: list[str]) -> None:
    if expand == ["true"]:
        raise HubError(501, "The test server does not implement expand=True")


@endpoint("GET", f"{API_REPO}/tree/(?P<revision>[^/]+)(?:/(?P<path>.+))?")
def list_tree(hub: HubApi, call: Call) -> Answer:
    commit = hub.repository(call).find(call.parts["revision"])
    query = parse_qs(call.query)
    _refuse_expand(query.get("expand", []))
    folder = call.parts.get("path", "").strip("/")
    if folder not in commit.folders:
        raise HubError(404, f"{folder} does not exist on {call.parts['revision']}", code="EntryNotFound")
    prefix = f"{folder}/" if folder else ""
    rows = {path: row for path, row in _rows(commit).items() if path.startswith(prefix) and path != folder}
    if query.get("recursive") != ["true"]:
        rows = {path: row for path, row in rows.items() if "/" not in path.removeprefix(prefix)}
    return as_json(list(rows.values()))


@endpoint("POST", f"{API_REPO}/paths-info/(?P<revision>[^/]+)")
def paths_info(hub: HubApi, call: Call) -> Answer:
    rows = _rows(hub.repository(call).find(call.parts["revision"]))
    form = parse_qs(call.body.decode())
    _refuse_expand(form.get("expand", []))
    return as_json([rows[path] for path in form.get("paths", []) if path and path in rows])


# ---- Downloads ----


@endpoint("GET HEAD", f"{URL_REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)")
def resolve(hub: HubApi, call: Call) -> Answer:
    """Send a file, or send to the storage where it is in LFS."""
    commit = hub.repository(call).find(call.parts["revision"])
    file = commit.files.get(call.parts["path"])
    if file is None:
        raise HubError(404, "Entry not found", code="EntryNotFound", commit=commit.id)
    headers = {"ETag": f'"{file.etag}"', "X-Repo-Commit": commit.id}
    if not file.lfs:
        return _send(file, call.byte_range, headers)
    secret = secrets.token_urlsafe()
    hub.downloads[secret] = file
    headers |= {"X-Linked-Etag": f'"{file.sha256}"', "X-Linked-Size": str(len(file.content))}
    return Answer(b"", 302, headers | {"Location": f"{hub.storage_url}/storage/{secret}"})


def _send(file: File, byte_range: str | None, headers: dict[str, str]) -> Answer:
    """All of a file, or the range of bytes that was asked for."""
    content, size = file.content, len(file.content)
    headers |= {"Content-Type": "application/octet-stream", "Accept-Ranges": "bytes"}
    found = re.fullmatch(r"bytes=(\d*)-(\d*)", byte_range or "")
    if found is None or found.groups() == ("", ""):
        return Answer(content, 200, headers)
    first, last = found.groups()
    start = int(first) if first else max(0, size - int(last))  # `-n` asks for the last n bytes
    stop = min(size, int(last) + 1) if first and last else size
    if start >= stop:
        return Answer(b"", 416, headers | {"Content-Range": f"bytes */{size}"})
    return Answer(content[start:stop], 206, headers | {"Content-Range": f"bytes {start}-{stop - 1}/{size}"})


# ---- Repositories as a whole; last, because its pattern fits other paths, too ----


@endpoint("GET", f"{API_REPO}(?:/revision/(?P<revision>[^/]+))?")
def repo_info(hub: HubApi, call: Call) -> Answer:
    repository = hub.repository(call)
    commit = repository.find(call.parts.get("revision", "main"))
    card = commit.files.get("README.md", File(b"")).content.decode(errors="replace")
    metadata = read_metadata(card) or {}
    siblings: list[dict[str, Any]] = [{"rfilename": path} for path in sorted(commit.files)]
    query = parse_qs(call.query)
    if "blobs" in query:
        for sibling in siblings:
            row = _row(sibling["rfilename"], commit.files[sibling["rfilename"]])
            sibling |= {"size": row["size"], "blobId": row["oid"]}
            if "lfs" in row:
                sibling["lfs"] = row["lfs"] | {"sha256": row["lfs"]["oid"]}
    info = {
        "id": repository.name,
        "author": repository.owner,
        "sha": commit.id,
        "lastModified": as_date(commit.date),
        "createdAt": as_date(repository.history("main")[-1].date),
        "private": repository.private,
        "gated": False,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "tags": metadata.get("tags", []),
        "pipeline_tag": metadata.get("pipeline_tag"),
        "library_name": metadata.get("library_name"),
        "cardData": metadata or None,
        "siblings": siblings,
    }
    wanted = query.get("expand", [])
    return as_json({key: value for key, value in info.items() if not wanted or key in ("id", *wanted)})
