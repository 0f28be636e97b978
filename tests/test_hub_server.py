"""Test that `hub_server` behaves like a Hub for the real client: it keeps commits and checks permissions."""

from .hub_client import refusal, run_client
from .hub_server import HubServer

TOKENS = {"hf_owner": "owner", "hf_reader": "owner", "hf_other": "other"}


def push_and_ask(*tokens):
    """Push two commits to a private and a public repository, and return what the client reads and is refused."""
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, hf_hub_download

    api, name = HfApi(), "owner/public"
    api.create_repo("owner/private", private=True)
    api.create_repo(name)

    def push(text, path="a.txt", **options):
        return api.upload_file(repo_id=name, path_or_fileobj=text, path_in_repo=path, **options)

    first = push(b"1", "sub/a.txt").oid
    api.create_branch(name, branch="side")
    changes = [CommitOperationDelete("sub/a.txt"), CommitOperationAdd("b.txt", b"2")]
    second = api.create_commit(name, operations=changes, commit_message="Second").oid
    refused = {
        "repository": refusal(hf_hub_download, "owner/none", "b.txt"),
        "revision": refusal(hf_hub_download, name, "b.txt", revision="none"),
        "file": refusal(hf_hub_download, name, "none.txt"),
        "branch": refusal(push, b"3", revision="none"),
        "yaml": refusal(push, b"---\ntags: [a\n---\n", "README.md"),
        "base": refusal(push, b"---\nbase_model: ../a/b\n---\n", "README.md"),
    }
    for token in tokens:
        other = HfApi(token=token or False)
        for repository in ("private", "public"):
            target = {"repo_id": f"owner/{repository}", "path_in_repo": "c.txt", "path_or_fileobj": b"c"}
            refused[f"{token} reads {repository}"] = refusal(other.model_info, target["repo_id"])
            refused[f"{token} writes {repository}"] = refusal(other.upload_file, **target)
    read = [open(hf_hub_download(name, "sub/a.txt", revision=one)).read() for one in ("side", first)]
    tree = [row.path for row in api.list_repo_tree(name, "sub", revision="side")]
    return [read, second, api.list_repo_files(name), tree, refused]


def of_token(token, *outcomes):
    kinds = ("reads private", "writes private", "reads public", "writes public")
    return {f"{token} {kind}": outcome for kind, outcome in zip(kinds, outcomes, strict=True)}


def test_server_keeps_commits_and_refuses_like_the_hub(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_of_somebody")
    with HubServer(TOKENS, read_only={"hf_reader"}) as hub:
        seen = run_client(
            push_and_ask, "hf_reader", "hf_other", "", "hf_wrong", hub=hub, home=tmp_path, token="hf_owner"
        )
        read, second, files, tree, refused = seen
        assert read == ["1", "1"] and files == [".gitattributes", "b.txt"] and tree == ["sub/a.txt"]
        assert hub.commits("owner/public")[0].id == second and hub.files("owner/public")["b.txt"] == b"2"
        assert {request.token for request in hub.requests} == {*TOKENS, "hf_wrong", None}
    hidden, forbidden, wrong = ("RepositoryNotFoundError", 404), ("HfHubHTTPError", 403), ("HfHubHTTPError", 401)
    unknown = ("RepositoryNotFoundError", 401)
    assert {name: one and (one[0], one[1]) for name, one in refused.items()} == {
        "repository": hidden,
        "revision": ("RevisionNotFoundError", 404),
        "file": ("RemoteEntryNotFoundError", 404),
        "branch": ("RevisionNotFoundError", 404),
        "yaml": ("ValueError", None),
        "base": ("ValueError", None),
        **of_token("hf_reader", None, forbidden, None, forbidden),
        **of_token("hf_other", hidden, hidden, None, forbidden),
        **of_token("", unknown, unknown, None, unknown),
        **of_token("hf_wrong", wrong, wrong, wrong, wrong),
    }
