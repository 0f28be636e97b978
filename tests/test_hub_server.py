"""The test server `hub_server` is a Hub to the real client: it keeps every commit and knows who may do what."""

import hashlib
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest

from .hub_client import refusal, run_client, write_files
from .hub_repository import File, Put, Repository
from .hub_server import HubServer

CARD = "---\nlicense: apache-2.0\nlibrary_name: transformers\ntags: [magnet]\n---\n# Model\n"
LARGE = b"0123456789" * 30_000  # text that no rule, only the threshold of these tests sends to LFS


@pytest.fixture
def hub() -> Iterator[HubServer]:
    tokens = {"hf_owner": "owner", "hf_reader": "owner", "hf_other": "other"}
    with HubServer(tokens, read_only={"hf_reader"}, lfs_threshold=200_000) as server:
        yield server


# ---- Commits, revisions and downloads ----


def push_and_load(folder: str) -> dict[str, Any]:
    """Two commits, of which the second deletes, and what every name of a commit gives after that."""
    from huggingface_hub import HfApi, hf_hub_download, snapshot_download

    api, name = HfApi(), "owner/model"
    created = api.create_repo(name, private=True)
    texts: dict[str, str | bytes] = {"README.md": CARD, "config.json": '{"a": 1}', "stale/old.txt": "stale"}
    old = write_files(Path(folder) / "old", texts | {"w.safetensors": b"\0\1", "large.txt": LARGE})
    first = api.upload_folder(repo_id=name, folder_path=old, commit_message="First")
    again = api.upload_folder(repo_id=name, folder_path=old)  # nothing changed: no commit
    api.create_tag(name, tag="v1", tag_message="The first")
    api.create_branch(name, branch="side/branch", revision=first.oid)
    new = write_files(Path(folder) / "new", {"config.json": '{"a": 2}', "w.safetensors": b"\0\2"})
    second = api.upload_folder(repo_id=name, folder_path=new, delete_patterns=["*.txt", "*.safetensors"])

    def download(file: str, revision: str | None) -> str:
        return Path(hf_hub_download(name, file, revision=revision)).read_bytes().decode()

    snapshot = Path(snapshot_download(name, revision="v1"))
    info = api.model_info(name, files_metadata=True)
    assert info.card_data is not None and info.siblings is not None
    refs = api.list_repo_refs(name)
    old_names = (first.oid, first.oid[:8], "v1", "side/branch")
    return {
        "created": [created.repo_id, info.private, api.create_repo(name, exist_ok=True)],
        "who": api.whoami()["name"],
        "oids": [first.oid, again.oid, second.oid],
        "new config": [download("config.json", revision) for revision in (None, "main", second.oid)],
        "old config": [download("config.json", revision) for revision in old_names],
        "weights": [download("w.safetensors", revision) for revision in ("main", "v1")],
        "large": download("large.txt", "side/branch") == LARGE.decode(),
        "snapshot": sorted(path.relative_to(snapshot).as_posix() for path in snapshot.rglob("*") if path.is_file()),
        "checksums": len(api.verify_repo_checksums(name, revision="v1").mismatches),
        "files": [api.list_repo_files(name, revision=revision) for revision in ("main", "v1")],
        "tree": [[type(row).__name__, row.path] for row in api.list_repo_tree(name, revision="v1")],
        "folder": [row.path for row in api.list_repo_tree(name, "stale", revision="v1")],
        "paths": [row.path for row in api.get_paths_info(name, ["stale", "config.json", "none"], revision="v1")],
        "exists": [api.file_exists(name, "large.txt", revision=revision) for revision in ("v1", "main", "none")],
        "info": [info.id, info.sha, info.library_name, info.tags, info.card_data.license],
        "siblings": {row.rfilename: [row.size, row.lfs and row.lfs.sha256] for row in info.siblings},
        "refs": {row.ref: row.target_commit for row in [*refs.branches, *refs.tags]},
        "titles": [row.title for row in api.list_repo_commits(name)],
    }


def test_a_new_commit_leaves_the_old_one_to_its_hash_its_tag_and_its_branch(hub, tmp_path):
    seen = run_client(push_and_load, str(tmp_path), hub=hub, home=tmp_path / "home", token="hf_owner")
    first, again, second = seen["oids"]
    assert first == again != second and len(first) == 40
    assert seen["created"] == ["owner/model", True, f"{hub.url}/owner/model"]
    assert seen["who"] == "owner"
    assert seen["new config"] == ['{"a": 2}'] * 3 and seen["old config"] == ['{"a": 1}'] * 4
    assert seen["weights"] == ["\0\2", "\0\1"]
    assert seen["large"] is True

    new = [".gitattributes", "README.md", "config.json", "w.safetensors"]
    old = sorted([*new, "large.txt", "stale/old.txt"])
    assert seen["files"] == [new, old] and seen["snapshot"] == old and seen["checksums"] == 0
    top = [["RepoFolder", "stale"], *(["RepoFile", path] for path in old if "/" not in path)]
    assert sorted(seen["tree"]) == sorted(top)
    assert seen["folder"] == ["stale/old.txt"] and seen["paths"] == ["stale", "config.json"]
    assert seen["exists"] == [True, False, False]
    assert seen["info"] == ["owner/model", second, "transformers", ["magnet"], "apache-2.0"]
    assert seen["siblings"]["w.safetensors"] == [2, hashlib.sha256(b"\0\2").hexdigest()]
    assert seen["siblings"]["config.json"] == [8, None]
    assert seen["refs"] == {"refs/heads/main": second, "refs/heads/side/branch": first, "refs/tags/v1": first}
    assert seen["titles"] == ["Upload folder using huggingface_hub", "First", "initial commit"]

    assert hub.files("owner/model", first)["large.txt"] == LARGE and "large.txt" not in hub.files("owner/model")
    assert b"\nlarge.txt filter=lfs " in hub.files("owner/model", first)[".gitattributes"]
    to_storage = [request for request in hub.requests if request.path.startswith("/storage/")]
    assert {(request.method, request.token) for request in to_storage} == {("PUT", None), ("GET", None)}
    assert {request.token for request in hub.requests if request not in to_storage} == {"hf_owner"}


def push_at_once(folder: str) -> None:
    """Four clients push to the same branch, three times each, always the same names with a mark of their own."""
    from huggingface_hub import HfApi

    HfApi().create_repo("owner/model")
    start = Barrier(4)

    def push(client: int) -> None:
        start.wait()
        for turn in range(3):
            mark = f"{client}-{turn}"
            files: dict[str, str | bytes] = {f"{i}.{suffix}": mark for i in range(4) for suffix in ("txt", "bin")}
            content = write_files(Path(folder) / mark, files)
            HfApi().upload_folder(repo_id="owner/model", folder_path=content, commit_message=mark)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(push, range(4)))


def test_commits_at_the_same_time_come_one_after_the_other_and_whole(hub, tmp_path):
    run_client(push_at_once, str(tmp_path), hub=hub, home=tmp_path / "home", token="hf_owner")
    history = hub.commits("owner/model")[:-1]
    assert sorted(commit.title for commit in history) == [
        f"{client}-{turn}" for client in range(4) for turn in range(3)
    ]
    for commit in history:
        contents = {file.content for path, file in commit.files.items() if path != ".gitattributes"}
        assert contents == {commit.title.encode()} and len(commit.files) == 9


def test_a_commit_that_takes_long_loses_to_none_that_comes_meanwhile():
    repository = Repository(kind="models", name="owner/model", private=False, author="owner")
    start = Barrier(4)

    def push(client: int) -> None:
        def slow_changes() -> Iterator[Put]:
            for name in "ab":
                time.sleep(0.02)
                yield Put(name, File(str(client).encode()))

        start.wait()
        repository.commit("main", slow_changes(), title=str(client), description="", author="owner", parent="")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(push, range(4)))
    history = repository.history("main")[:-1]
    assert sorted(commit.title for commit in history) == ["0", "1", "2", "3"]
    for commit in history:
        assert commit.files["a"].content == commit.files["b"].content == commit.title.encode()


# ---- Who may do what ----


def read_and_write(folder: str, *tokens: str) -> dict[str, list[Any]]:
    """What comes of reading and of writing a private and a public repository of `owner` with each token."""
    from huggingface_hub import HfApi, hf_hub_download

    for name in ("owner/private", "owner/public"):
        HfApi().create_repo(name, private=name == "owner/private")
        HfApi().upload_file(repo_id=name, path_or_fileobj=b"{}", path_in_repo="config.json")
    seen: dict[str, list[Any]] = {}
    for token in tokens:
        api = HfApi(token=token or False)
        for name in ("owner/private", "owner/public"):
            # A cache of its own: what another token has downloaded is given to every later one.
            download = {"token": token or False, "cache_dir": f"{folder}/cache-{token}"}
            seen[f"{token} {name}"] = [
                refusal(api.model_info, name),
                refusal(hf_hub_download, name, "config.json", **download),
                refusal(api.upload_file, repo_id=name, path_or_fileobj=b"1", path_in_repo=f"{token}.txt"),
                refusal(api.create_tag, name, tag=f"v{token}"),
            ]
        seen[f"{token} new"] = [refusal(api.create_repo, f"owner/new{token}")]
    return seen


def test_a_repository_opens_to_the_right_token_only(hub, tmp_path):
    tokens = ("hf_owner", "hf_reader", "hf_other", "", "hf_wrong")
    seen = run_client(read_and_write, str(tmp_path), *tokens, hub=hub, home=tmp_path / "home", token="hf_owner")
    outcomes = {name: [refused and tuple(refused[:2]) for refused in refusals] for name, refusals in seen.items()}
    hidden, unknown = ("RepositoryNotFoundError", 404), ("RepositoryNotFoundError", 401)
    forbidden, wrong = ("HfHubHTTPError", 403), ("HfHubHTTPError", 401)
    assert outcomes == {
        "hf_owner owner/private": [None] * 4,
        "hf_owner owner/public": [None] * 4,
        "hf_owner new": [None],
        "hf_reader owner/private": [None, None, forbidden, forbidden],
        "hf_reader owner/public": [None, None, forbidden, forbidden],
        "hf_reader new": [forbidden],
        "hf_other owner/private": [hidden] * 4,
        "hf_other owner/public": [None, None, forbidden, forbidden],
        "hf_other new": [forbidden],
        " owner/private": [unknown] * 4,
        " owner/public": [None, None, unknown, unknown],
        " new": [wrong],
        "hf_wrong owner/private": [wrong] * 4,
        "hf_wrong owner/public": [wrong] * 4,
        "hf_wrong new": [wrong],
    }
    assert set(hub.files("owner/private")) == set(hub.files("owner/public"))
    assert set(hub.files("owner/public")) == {".gitattributes", "config.json", "hf_owner.txt"}


def test_a_client_learns_of_no_other_hub(hub, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_TOKEN", "hf_of_somebody")
    monkeypatch.setenv("TRANSFORMERS_OFFLINE", "1")
    monkeypatch.setenv("HUGGINGFACE_HUB_CACHE", "/elsewhere")
    variables = hub.environment(tmp_path)
    assert variables["HF_ENDPOINT"] == hub.url and variables["HF_HOME"] == str(tmp_path)
    assert not {"HF_HUB_OFFLINE", "HF_TOKEN", "TRANSFORMERS_OFFLINE", "HUGGINGFACE_HUB_CACHE"} & set(variables)
    assert hub.environment(tmp_path, token="hf_owner")["HF_TOKEN"] == "hf_owner"
