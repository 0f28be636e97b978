"""Push to a local Hub over HTTP with the real client, and load by name without the package."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from modeling_magnet import MagnetLlamaForCausalLM
from tests.adapters import add_lora
from tests.hub_client import refusal, run_client
from tests.hub_server import HubServer

TOKENS = {"hf_owner": "me", "hf_other": "other", "hf_reader": "me"}
REPO = "me/mine"

# What a user of the Hub runs: no checkout, no package.
USER = """
import json, sys
sys.modules["modeling_magnet"] = sys.modules["trainer"] = None  # importing either fails
import torch
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoModelForCausalLM
first = sys.argv[1]
results = {}
for name, where in (("new", {}), ("old", {"revision": first})):
    model = AutoModel.from_pretrained("me/mine", trust_remote_code=True, **where)
    results[name] = [model.encode(["The cat sat."]).tolist(), model.infill("The cat", " mat.", max_new_tokens=4)]
results["embedder"] = SentenceTransformer("me/mine").encode(["The cat sat."]).tolist()
stock = AutoModelForCausalLM.from_pretrained("me/mine", revision=first)
assert type(stock).__module__.startswith("transformers.")
results["stock"] = stock(torch.tensor([[1, 40, 41]])).logits.tolist()
print(json.dumps(results))
"""


def push(folder, repo, *options):
    """Push a directory; options are `name=value`."""
    from modeling_magnet import AutoMagnetForCausalLM

    chosen = {name: {"True": True}.get(value, value) for name, value in (option.split("=") for option in options)}
    model = AutoMagnetForCausalLM.from_pretrained(folder)
    return refusal(model.push_to_hub, repo, **chosen)


def push_adapter(base, repo, modes):
    """Push a random adapter of a base on the Hub, and return a fingerprint of its results."""
    from modeling_magnet import AutoMagnetForCausalLM

    model = add_lora(AutoMagnetForCausalLM.from_pretrained(base))
    model.set_adapter_modes(modes.split("+") if modes else None)
    commit = model.push_to_hub(repo)
    return [commit.oid, model.encode(["The cat sat."]).tolist(), model.infill("The cat", " mat.", max_new_tokens=4)]


def open_adapter(repo, base, revision):
    """Return the results of the pushed adapter, and whether it generates as the base does."""
    import torch
    from transformers import AutoModel, AutoModelForCausalLM

    from modeling_magnet import AutoMagnetForCausalLM

    ids = torch.tensor([[1, 40, 41]])
    answers = []
    # The Auto classes look for the adapter's revision in the base, where it need not be.
    for factory, where in ((AutoMagnetForCausalLM, {"revision": revision}), (AutoModel, {})):
        model = factory.from_pretrained(repo, trust_remote_code=True, **where).eval()
        same = torch.equal(model(ids).logits, AutoModelForCausalLM.from_pretrained(base).eval()(ids).logits)
        embedding, fill = model.encode(["The cat sat."]), model.infill("The cat", " mat.", max_new_tokens=4)
        answers.append([embedding.tolist(), fill, same])
    return answers


def open_with_token(repo, token):
    """Load a model and its tokenizer from a private repository with the `token` argument."""
    from modeling_magnet import AutoMagnetForCausalLM

    model = AutoMagnetForCausalLM.from_pretrained(repo, token=token)
    return model.tokenizer.decode(model.tokenizer("The cat").input_ids)


def push_cards(folder, repo):
    """Push over hand-written files and cards; return the card after each push, and the files at the end."""
    from huggingface_hub import HfApi, hf_hub_download

    from modeling_magnet import AutoMagnetForCausalLM

    api, model = HfApi(), AutoMagnetForCausalLM.from_pretrained(folder)
    model.push_to_hub(repo)
    for name in ("model_ema.safetensors", "vocab.json", "old/model.safetensors", "old/adapter_config.json"):
        api.upload_file(path_or_fileobj=b"mine", path_in_repo=name, repo_id=repo)
    cards = []
    api.upload_file(path_or_fileobj=b"# Mine\n", path_in_repo="README.md", repo_id=repo)
    for tags in ((), ["new"]):
        model.push_to_hub(repo, tags=tags)
        cards.append(open(hf_hub_download(repo, "README.md")).read())
    for number, content in enumerate((b"# \xff\n", b"---\ntags: [a\n---\n")):
        Path(folder, "README.md").write_bytes(content)
        model.push_to_hub(f"{repo}-{number}", tags=["new"])
        assert not api.file_exists(f"{repo}-{number}", "README.md") and api.file_exists(
            f"{repo}-{number}", "config.json"
        )
    model.card = "# Set\n"
    model.push_to_hub(repo)
    cards.append(open(hf_hub_download(repo, "README.md")).read())
    return [cards, api.list_repo_files(repo)]


def refusals(folder, repo):
    """Return the errors of invalid loads and pushes."""
    from modeling_magnet import AutoMagnetForCausalLM

    model = AutoMagnetForCausalLM.from_pretrained(folder)
    load = AutoMagnetForCausalLM.from_pretrained
    return [
        refusal(load, "me/unknown"),
        refusal(load, repo, revision="unknown"),
        refusal(load, repo, subfolder="unknown"),
        refusal(model.push_to_hub, "stranger/mine"),
        refusal(model.push_to_hub, "a/b/c"),
    ]


@pytest.fixture
def hub():
    with HubServer(TOKENS, read_only={"hf_reader"}) as server:
        yield server


def as_user(hub, tmp_path, *arguments):
    """Run a user's program with a separate home and working directory."""
    folder = tmp_path / "user"
    folder.mkdir()
    environment = hub.environment(folder)
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(
        [sys.executable, "-I", "-c", USER, *arguments], env=environment, cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.long
def test_a_round_trip_over_http(hub, checkpoint, tiny_model, tmp_path):
    assert run_client(push, str(checkpoint), REPO, "tags=mine", hub=hub, home=tmp_path, token="hf_owner") is None
    files = hub.files(REPO)
    local = {str(file.relative_to(checkpoint)) for file in checkpoint.rglob("*") if file.is_file()}
    assert local <= set(files)
    for name in local - {"README.md", "tokenizer_config.json"}:
        assert files[name] == (checkpoint / name).read_bytes(), name
    card = files["README.md"].decode()
    assert "# me/mine" in card and '"me/mine"' in card and "- mine\n" in card
    first = hub.commits(REPO)[0].id

    # A second version, in shards: the first is still there by its hash, and no weights of it lie beside the second.
    with torch.no_grad():
        tiny_model.lm_head.weight.mul_(-1)
        tiny_model.model.embed_tokens.weight.mul_(2)
    before = tiny_model.config.magnet["prompts"].copy()
    tiny_model.save_pretrained(tmp_path / "second")
    options = (str(tmp_path / "second"), REPO, "max_shard_size=20KB", "commit_message=Second")
    assert run_client(push, *options, hub=hub, home=tmp_path, token="hf_owner") is None
    assert "model.safetensors" not in hub.files(REPO) and "model.safetensors.index.json" in hub.files(REPO)
    assert hub.commits(REPO)[0].title == "Second"
    assert tiny_model.config.magnet["prompts"] == before

    results = as_user(hub, tmp_path, first)
    original = MagnetLlamaForCausalLM.from_pretrained(checkpoint)
    for name, model in (("new", tiny_model), ("old", original)):
        assert results[name] == [
            model.encode(["The cat sat."]).tolist(),
            model.infill("The cat", " mat.", max_new_tokens=4),
        ]
    np.testing.assert_allclose(results["embedder"], results["new"][0], atol=1e-5)
    with torch.no_grad():
        assert results["stock"] == original(torch.tensor([[1, 40, 41]])).logits.tolist()


@pytest.mark.nightly
def test_an_adapter_over_a_base_of_the_hub(hub, checkpoint, tmp_path):
    at = {"hub": hub, "home": tmp_path / "owner", "token": "hf_owner"}
    assert run_client(push, str(checkpoint), "me/base", **at) is None
    commit, embedding, fill = run_client(push_adapter, "me/base", REPO, "bidirectional+infill", **at)
    files = hub.files(REPO)
    assert "adapter_model.safetensors" in files and "config.json" not in files
    assert b"base_model: me/base" in files["README.md"] and b"base_model_relation: adapter" in files["README.md"]
    # Its revision is the adapter's own: the base has no such commit.
    answers = run_client(open_adapter, REPO, "me/base", commit, hub=hub, home=tmp_path / "user")
    assert answers == [[embedding, fill, True]] * 2
    # A whole checkpoint takes the adapter's place in one commit.
    assert run_client(push, str(checkpoint), REPO, **at) is None
    assert not {"adapter_model.safetensors", "adapter_config.json", "magnet_adapter.json"} & set(hub.files(REPO))


@pytest.mark.nightly
def test_a_private_repository_and_its_token(hub, checkpoint, tmp_path):
    options = (str(checkpoint), REPO, "private=True", "revision=side")
    assert run_client(push, *options, hub=hub, home=tmp_path, token="hf_owner") is None
    assert "config.json" in hub.files(REPO, "side") and "config.json" not in hub.files(REPO)
    assert run_client(push, str(checkpoint), REPO, hub=hub, home=tmp_path, token="hf_owner") is None
    seen = len(hub.requests)
    text = run_client(open_with_token, REPO, "hf_owner", hub=hub, home=tmp_path / "reader")
    assert "The cat" in text
    tokenizer = [request for request in hub.requests[seen:] if request.path.endswith("/tokenizer.json")]
    assert tokenizer and all(request.token == "hf_owner" for request in tokenizer)


@pytest.mark.nightly
def test_errors_of_the_hub_name_a_remedy(hub, checkpoint, tmp_path):
    assert run_client(push, str(checkpoint), REPO, hub=hub, home=tmp_path, token="hf_owner") is None
    answers = run_client(refusals, str(checkpoint), REPO, hub=hub, home=tmp_path, token="hf_owner")
    kinds, _, texts = zip(*answers, strict=True)
    assert set(kinds) == {"CheckpointError"}
    unknown, revision, subfolder, stranger, odd = texts
    assert "'me/unknown' is not a local directory" in unknown
    assert "unknown" in revision and "`revision`" in revision
    assert "has no config.json" in subfolder
    assert "'stranger/mine' was not pushed" in stranger and "the token's write permission" in stranger
    assert "'a/b/c' was not pushed" in odd
    name, _, text = run_client(push, str(checkpoint), REPO, hub=hub, home=tmp_path / "reader", token="hf_reader")
    assert name == "CheckpointError" and "was not pushed" in text
    hub.__exit__(None, None, None)
    name, _, text = run_client(push, str(checkpoint), REPO, hub=hub, home=tmp_path / "late", token="hf_owner")
    assert name == "CheckpointError" and "the network" in text


@pytest.mark.long
def test_hand_written_files_and_cards_are_kept(hub, checkpoint, tmp_path):
    cards, files = run_client(push_cards, str(checkpoint), REPO, hub=hub, home=tmp_path, token="hf_owner")
    assert cards == ["# Mine\n", "---\ntags:\n- new\n---\n# Mine\n", "# Set\n"]
    assert {"model_ema.safetensors", "old/model.safetensors", "old/adapter_config.json"} <= set(files)
    assert "vocab.json" not in files


def test_an_error_without_a_message_shows_its_type(tiny_model, monkeypatch):
    def fail(*args, **kwargs):
        raise ConnectionError

    monkeypatch.setattr("huggingface_hub.HfApi.create_repo", fail)
    with pytest.raises(ValueError, match=r"'me/mine' was not pushed: ConnectionError\."):
        tiny_model.push_to_hub(REPO)
