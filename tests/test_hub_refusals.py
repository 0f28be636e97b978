"""What the test server `hub_server` refuses, and by which exception the real client tells."""

import hashlib
import http.client
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from .hub_client import refusal, run_client
from .hub_server import HubServer

BATCH = "/owner/model.git/info/lfs/objects/batch"
Change = tuple[str, dict[str, Any]]


def ask(
    url: str, method: str, body: Any = b"", *, token: str | None = "hf_owner", byte_range: str | None = None
) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of a request that the client itself would not send."""
    address = urlsplit(url)
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    connection = http.client.HTTPConnection(address.netloc)
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    connection.request(method, address.path, content, headers | ({"Range": byte_range} if byte_range else {}))
    response = connection.getresponse()
    answer = response.status, dict(response.headers), response.read()
    connection.close()
    return answer


@pytest.fixture
def hub() -> Iterator[HubServer]:
    """A Hub with one repository, in which is `.gitattributes` alone."""
    with HubServer({"hf_owner": "owner"}) as server:
        assert ask(f"{server.url}/api/repos/create", "POST", {"name": "model"})[0] == 200
        yield server


def put(path: str, content: str = "QQ==") -> Change:
    return "file", {"path": path, "content": content, "encoding": "base64"}


def commit(hub: HubServer, *changes: Change) -> tuple[int, str]:
    """Status and error of a commit."""
    lines = [("header", {"summary": "By hand"}), *changes]
    body = b"\n".join(json.dumps({"key": key, "value": value}).encode() for key, value in lines)
    status, _, answer = ask(f"{hub.url}/api/models/owner/model/commit/main", "POST", body)
    return status, json.loads(answer).get("error", "")


def is_untouched(hub: HubServer) -> bool:
    return [state.title for state in hub.commits("owner/model")] == ["initial commit"]


# ---- What the client says ----


def ask_for_what_is_not_there() -> dict[str, Any]:
    from huggingface_hub import CommitOperationDelete, HfApi, hf_hub_download, snapshot_download

    api, name = HfApi(), "owner/model"
    old = api.upload_file(repo_id=name, path_or_fileobj=b"1", path_in_repo="a.txt").oid
    api.upload_file(repo_id=name, path_or_fileobj=b"2", path_in_repo="a.txt")
    api.create_tag(name, tag="v1")
    upload = {"repo_id": name, "path_or_fileobj": b"3", "path_in_repo": "a.txt"}
    delete = [CommitOperationDelete("none.txt")]
    return {
        "repository": refusal(hf_hub_download, "owner/none", "a.txt"),
        "repository of no user": refusal(hf_hub_download, "none", "a.txt"),
        "snapshot": refusal(snapshot_download, "owner/none"),
        "dataset": refusal(api.dataset_info, name),
        "revision": refusal(hf_hub_download, name, "a.txt", revision="none"),
        "hash": refusal(hf_hub_download, name, "a.txt", revision="0" * 40),
        "info": refusal(api.model_info, name, revision="none"),
        "branch": refusal(api.upload_file, **upload, revision="none"),
        "file": refusal(hf_hub_download, name, "none.txt"),
        "folder": refusal(lambda: list(api.list_repo_tree(name, "none"))),
        "deletion": refusal(api.create_commit, name, operations=delete, commit_message="Delete"),
        "second of a repository": refusal(api.create_repo, name),
        "second of a tag": refusal(api.create_tag, name, tag="v1"),
        "main": refusal(api.delete_branch, name, branch="main"),
        "parent": refusal(api.upload_file, **upload, parent_commit=old),
        "pull request": refusal(api.upload_file, **upload, create_pr=True),
    }


def test_what_is_not_there_raises_the_clients_own_exceptions(hub, tmp_path):
    seen = run_client(ask_for_what_is_not_there, hub=hub, home=tmp_path, token="hf_owner")
    assert {name: tuple(refused[:2]) for name, refused in seen.items()} == {
        "repository": ("RepositoryNotFoundError", 404),
        "repository of no user": ("RepositoryNotFoundError", 404),
        "snapshot": ("RepositoryNotFoundError", 404),
        "dataset": ("RepositoryNotFoundError", 404),
        "revision": ("RevisionNotFoundError", 404),
        "hash": ("RevisionNotFoundError", 404),
        "info": ("RevisionNotFoundError", 404),
        "branch": ("RevisionNotFoundError", 404),
        "file": ("RemoteEntryNotFoundError", 404),
        "folder": ("RemoteEntryNotFoundError", 404),
        "deletion": ("RemoteEntryNotFoundError", 404),
        "second of a repository": ("HfHubHTTPError", 409),
        "second of a tag": ("HfHubHTTPError", 409),
        "main": ("HfHubHTTPError", 403),
        "parent": ("HfHubHTTPError", 412),
        "pull request": ("HfHubHTTPError", 501),
    }
    assert "is_folder" in seen["deletion"][2]  # the client has recognised the message
    assert hub.files("owner/model")["a.txt"] == b"2"


def push_what_is_wrong(folder: str) -> dict[str, Any]:
    """A file that changes after its hash was taken, and cards whose metadata the Hub cannot read."""
    from huggingface_hub import CommitOperationAdd, HfApi

    file = Path(folder) / "weights.safetensors"
    file.write_bytes(b"before")
    changed = CommitOperationAdd(path_in_repo=file.name, path_or_fileobj=file)
    assert changed.upload_info.sha256.hex()
    file.write_bytes(b"after!")
    api, name = HfApi(), "owner/model"

    def push_card(metadata: str) -> Any:
        card = f"---\n{metadata}\n---\n# Model\n".encode()
        return refusal(api.upload_file, repo_id=name, path_or_fileobj=card, path_in_repo="README.md")

    return {
        "changed": refusal(api.create_commit, name, operations=[changed], commit_message="Push"),
        "yaml": push_card("tags: [a"),
        "tags": push_card("tags: magnet"),
        "base": push_card("base_model: ../stories260K"),
    }


def test_wrong_content_is_refused_before_anything_is_committed(hub, tmp_path):
    seen = run_client(push_what_is_wrong, str(tmp_path), hub=hub, home=tmp_path / "home", token="hf_owner")
    assert seen["changed"][0] == "RuntimeError" and "weights.safetensors" in seen["changed"][2]
    assert [request.status for request in hub.requests if request.method == "PUT"] == [400]
    assert seen["yaml"][0] == "ValueError" and "invalid YAML" in seen["yaml"][2]
    assert seen["tags"][0] == "ValueError" and '"tags" must be an array' in seen["tags"][2]
    assert seen["base"][0] == "ValueError" and "../stories260K" in seen["base"][2]
    assert is_untouched(hub)


# ---- What the client would not do ----


@pytest.mark.parametrize(
    "path", ["../a", "/a", "a/../../b", "a//b", "./a", "a/", "", ".git/config", "a/.git/hooks", "a\\b", "a\0b"]
)
def test_a_path_that_leads_elsewhere_is_refused(hub, path):
    status, error = commit(hub, put("fine.txt"), put(path))
    assert status == 400 and error.startswith("Invalid path")
    assert is_untouched(hub)


def test_no_path_leads_out_of_a_repository(hub):
    for path in ("../../../etc/passwd", "..%2F..%2Fetc%2Fpasswd", "%2Fetc%2Fpasswd"):
        assert ask(f"{hub.url}/owner/model/resolve/main/{path}", "GET")[0] == 404
    assert ask(f"{hub.url}/api/repos/create", "POST", {"name": "../model"})[0] == 400
    assert ask(f"{hub.url}/api/models/owner/model/branch/..%2Fmain", "POST", {})[0] == 400


def test_a_commit_with_one_change_that_cannot_be_made_changes_nothing(hub):
    assert commit(hub, put("a.txt"), ("deletedFile", {"path": "none.txt"}))[0] == 404
    assert commit(hub, put("a.txt"), put("b.txt", "not base64"))[0] == 400
    assert commit(hub, put("a.txt"), put("a.txt/b.txt")) == (400, "Both a file and a folder: a.txt")
    assert commit(hub, put("a.txt"), ("rename", {"path": "a.txt"}))[0] == 400
    assert commit(hub, put("README.md", "LS0tCnRhZ3M6IFsKLS0tCg=="))[0] == 400  # unfinished YAML
    assert is_untouched(hub)


def test_large_files_are_what_they_were_announced_to_be(hub):
    content = b"\0\1\2\3\4"
    announced = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content)}
    pointer = ("lfsFile", {"path": "w.bin", "algo": "sha256", **announced})
    assert commit(hub, pointer)[0] == 400, "nothing was uploaded yet"

    (row,) = json.loads(ask(hub.url + BATCH, "POST", {"objects": [announced]})[2])["objects"]
    address = row["actions"]["upload"]["href"]
    assert ask(address, "PUT", b"\0\1\2\3\5", token=None)[0] == 400
    assert ask(address, "PUT", content + b"\5", token=None)[0] == 400
    assert ask(address, "PUT", content)[0] == 400, "the token is none of the storage's business"
    (other,) = json.loads(ask(hub.url + BATCH, "POST", {"objects": [announced | {"size": 6}]})[2])["objects"]
    assert ask(other["actions"]["upload"]["href"], "PUT", content, token=None)[0] == 400
    assert ask(address + "a", "PUT", content, token=None)[0] == 403
    assert ask(row["actions"]["verify"]["href"], "POST", announced)[0] == 400
    assert commit(hub, pointer)[0] == 400 and is_untouched(hub)

    assert ask(address, "PUT", content, token=None)[0] == 200
    assert ask(row["actions"]["verify"]["href"], "POST", announced)[0] == 200
    assert json.loads(ask(hub.url + BATCH, "POST", {"objects": [announced]})[2])["objects"] == [announced]
    assert commit(hub, (pointer[0], pointer[1] | {"size": 6}))[0] == 400
    assert commit(hub, pointer) == (200, "")

    status, headers, _ = ask(f"{hub.url}/owner/model/resolve/main/w.bin", "HEAD", token=None)
    assert (status, headers["X-Linked-Size"], headers["X-Linked-Etag"]) == (302, "5", f'"{announced["oid"]}"')
    assert headers["X-Repo-Commit"] == hub.commits("owner/model")[0].id
    assert ask(headers["Location"], "GET", token=None)[2] == content
    assert ask(headers["Location"], "GET", token=None, byte_range="bytes=3-")[2] == content[3:]


def test_a_part_of_a_file_is_sent_and_a_part_beyond_its_end_is_not(hub):
    commit(hub, put("a.txt", "MDEyMzQ1Njc4OQ=="))
    address = f"{hub.url}/owner/model/resolve/main/a.txt"
    for byte_range, part in (("2-4", b"234"), ("7-", b"789"), ("-2", b"89"), ("8-99", b"89"), ("-99", b"0123456789")):
        status, headers, body = ask(address, "GET", byte_range=f"bytes={byte_range}")
        assert (status, body) == (206, part), byte_range
    assert headers["Content-Range"] == "bytes 0-9/10"
    assert ask(address, "GET", byte_range="bytes=10-")[0] == 416
    status, headers, body = ask(address, "HEAD")
    assert (status, headers["Content-Length"], body) == (200, "10", b"")
    assert headers["ETag"] == f'"{hashlib.sha1(b"blob 10" + bytes(1) + b"0123456789").hexdigest()}"'


def test_what_the_server_cannot_do_it_says(hub):
    assert ask(f"{hub.url}/api/models/owner/model/discussions", "GET")[0] == 501
    assert ask(f"{hub.url}/api/models/owner/model/commit/main", "POST", b"{")[0] == 400
    assert [request.status for request in hub.requests][-2:] == [501, 400]
