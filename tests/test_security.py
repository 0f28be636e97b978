"""Test the promises of SECURITY.md: no pickle is read, no remote code runs, versions are locked."""

import ast
import contextlib
import json
import os
import re
import shutil

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file

from modeling_magnet import AutoMagnetForCausalLM, MagnetLlamaForCausalLM

from .conftest import REPOSITORY
from .test_architecture import EXAMPLES, HUB_FILES, PACKAGE_FILES, absolute_imports, parse, relative
from .trainer.tiny import tiny_args, tiny_trainer

SOURCES = [*PACKAGE_FILES, *EXAMPLES]
PICKLE_MODULES = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}

# Modules that remote files must not import, except `huggingface_hub` for `push_to_hub` and card metadata.
PROCESSES_AND_NETWORK = {
    *"asyncio ctypes ftplib http importlib multiprocessing pty runpy signal smtplib socket socketserver ssl".split(),
    *"subprocess telnetlib urllib webbrowser xmlrpc aiohttp httpx requests urllib3".split(),
}
# Operations on files, processes or the environment: functions by name, methods of any object, whole modules.
FUNCTIONS = {*"open exec eval compile __import__ input breakpoint load_file safe_open save_file".split()}
METHODS = {
    *"open read_text read_bytes write_text write_bytes mkdir rmdir rename unlink touch symlink_to hardlink_to".split(),
    *"chmod hf_hub_download snapshot_download upload_folder upload_file create_repo create_branch delete_repo".split(),
    "load_state_dict_from_url",
}
MODULES = {"os", "shutil", "tempfile", "fcntl", "sys", "torch.hub", "torch.serialization"}
MAY_REACH = {
    *"os.PathLike os.O_RDONLY os.W_OK os.X_OK fcntl.LOCK_EX fcntl.LOCK_NB sys.modules sys.maxsize".split(),  # names
    *"open read_text read_bytes load_file safe_open os.path os.pardir".split(),  # to open what the user names
    # saves to the requested directory
    *"save_file write_text write_bytes mkdir shutil.copy shutil.copytree sys._getframe".split(),
    # moves a saved checkpoint into place and removes the one that it replaces
    *"os.open os.close os.access os.replace os.rename rename rmdir unlink fcntl.flock shutil.disk_usage".split(),
    *"shutil.rmtree tempfile.mkdtemp tempfile.TemporaryDirectory".split(),
    *"create_branch create_repo hf_hub_download upload_folder".split(),  # `push_to_hub`, when the user calls it
}


def calls(file):
    """Yield every call as written, with its keywords."""
    for node in ast.walk(parse(file)):
        if isinstance(node, ast.Call):
            keywords = {word.arg: ast.unparse(word.value) for word in node.keywords}
            yield ast.unparse(node.func), keywords


def reached(file):
    """Yield the names in a file that access files, processes or the environment."""
    for node in ast.walk(parse(file)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in FUNCTIONS:
            yield node.func.id
        elif isinstance(node, ast.Attribute):
            whole = ast.unparse(node)
            if ast.unparse(node.value) in MODULES or whole in ("torch.load", "torch.save"):
                yield whole
            elif node.attr in METHODS:
                yield node.attr
        elif isinstance(node, ast.ImportFrom) and node.module in MODULES:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


# ---- The source ----


@pytest.mark.parametrize("file", SOURCES, ids=relative)
def test_no_pickle_is_loaded(file):
    loaders = absolute_imports(file) & PICKLE_MODULES
    for name, keywords in calls(file):
        if name.endswith("torch.load"):
            assert keywords.get("weights_only") == "True", name
        if name.endswith(("np.load", "numpy.load")):
            assert keywords.get("allow_pickle", "False") == "False", name
        if name.endswith(("read_pickle", "to_pickle", "load_state_dict_from_url", "hub.load")):
            loaders.add(name)
    assert not loaders


def test_trust_remote_code_is_never_left_to_a_prompt():
    """Left out, `trust_remote_code` has transformers ask at the terminal; only False is an answer by itself."""
    trusted = []
    for file in SOURCES:
        for name, keywords in calls(file):
            if re.search(r"\bAuto(?!Magnet|Peft)\w+\.(from_pretrained|from_config)$", name):
                answer = keywords.get("trust_remote_code")
                assert answer in ("False", "True"), f"{relative(file)}: {name} leaves it to a prompt"
                trusted += [relative(file)] if answer == "True" else []
    assert len(trusted) <= 1 and all(file.startswith("examples/") for file in trusted), "what a toy has just saved"


@pytest.mark.parametrize("file", HUB_FILES, ids=relative)
def test_remote_files_access_only_declared_resources(file):
    assert not absolute_imports(file) & PROCESSES_AND_NETWORK
    assert set(reached(file)) <= MAY_REACH


# ---- Loading ----


class Bomb:
    """Create a file when it is unpickled."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return (os.mkdir, (self.marker,))


@pytest.fixture
def marker(tmp_path):
    """Return the file that a test's hostile code would create."""
    yield tmp_path / "marker"
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("options", [{}, {"use_safetensors": False}, {"variant": "odd"}], ids=str)
def test_options_never_load_a_pickle(checkpoint, marker, options):
    (checkpoint / "model.safetensors").unlink()
    torch.save({"model.norm.weight": Bomb(marker)}, checkpoint / "pytorch_model.bin")
    torch.save({"model.norm.weight": torch.ones(32)}, checkpoint / "pytorch_model.odd.bin")
    for load in (AutoMagnetForCausalLM.from_pretrained, MagnetLlamaForCausalLM.from_pretrained):
        with pytest.raises(ValueError if "use_safetensors" in options else OSError, match="safetensors"):
            load(checkpoint, **options)


def test_added_adapter_never_loads_a_pickle(checkpoint, marker, tmp_path):
    model = MagnetLlamaForCausalLM.from_pretrained(checkpoint)
    model.add_adapter(LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"]))
    model.save_pretrained(tmp_path / "adapter")
    weights = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    (tmp_path / "adapter" / "adapter_model.safetensors").unlink()
    torch.save({**weights, "bomb": Bomb(marker)}, tmp_path / "adapter" / "adapter_model.bin")
    other = MagnetLlamaForCausalLM.from_pretrained(checkpoint)
    with pytest.raises(ValueError, match=r"adapter_model\.safetensors"):
        other.load_adapter(str(tmp_path / "adapter"))
    assert not getattr(other, "peft_config", None)


def change(file, **values):
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def write_remote_code(folder, marker):
    """Write code that creates a marker file, named by config and tokenizer."""
    base = "from transformers import LlamaForCausalLM, PreTrainedTokenizerFast\n"
    classes = "class Theirs(LlamaForCausalLM): pass\nclass TheirsFast(PreTrainedTokenizerFast): pass\n"
    (folder / "theirs.py").write_text(f"import os\nos.mkdir({str(marker)!r})\n{base}{classes}")
    change(folder / "config.json", auto_map=dict.fromkeys(("AutoModel", "AutoModelForCausalLM"), "theirs.Theirs"))
    tokenizer = {"auto_map": {"AutoTokenizer": [None, "theirs.TheirsFast"]}, "tokenizer_class": "TheirsFast"}
    change(folder / "tokenizer_config.json", **tokenizer)
    (folder / "custom_generate").mkdir()
    (folder / "custom_generate" / "generate.py").write_text((folder / "theirs.py").read_text())


def test_remote_code_does_not_run_even_if_the_terminal_agrees(checkpoint, marker, monkeypatch):
    write_remote_code(checkpoint, marker)
    monkeypatch.setattr("builtins.input", lambda *prompt: "y")
    for load in (AutoMagnetForCausalLM.from_pretrained, MagnetLlamaForCausalLM.from_pretrained):
        model = load(checkpoint)
        assert type(model).__module__.startswith("modeling_magnet.")
        with pytest.raises(ValueError, match="tokenizer"):
            _ = model.tokenizer


@pytest.mark.parametrize("value", ["some/kernel", {"": "some/kernel@v1:name"}], ids=["one", "by part"])
def test_config_that_names_attention_code_is_refused(checkpoint, value):
    change(checkpoint / "config.json", attn_implementation=value)
    for load in (AutoMagnetForCausalLM.from_pretrained, MagnetLlamaForCausalLM.from_pretrained):
        with pytest.raises(ValueError, match=r"attn_implementation.*some/kernel"):
            load(checkpoint)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    tiny_trainer(tiny_args(folder, save_strategy="steps", save_steps=2)).train()
    return folder / "checkpoint-2"


@pytest.mark.parametrize("name", ["training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_resuming_does_not_execute_pickles(run, tmp_path, marker, name):
    folder = shutil.copytree(run, tmp_path / "run" / "checkpoint-2")
    torch.save({"state": Bomb(marker)}, folder / name)
    refused = pytest.raises(Exception, match="(?i)weights.only")
    with contextlib.nullcontext() if name == "training_args.bin" else refused:  # that one is never read
        tiny_trainer(tiny_args(tmp_path / "run")).train(resume_from_checkpoint=str(folder))


# ---- Paths ----


@pytest.mark.parametrize("name", ["../elsewhere.safetensors", "/elsewhere.safetensors", "a/../../elsewhere"])
def test_index_cannot_name_files_outside_its_directory(tiny_model, tmp_path, name):
    tiny_model.save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    shard = sorted((tmp_path / "sharded").glob("model-*.safetensors"))[0]
    shard.rename(tmp_path / "elsewhere.safetensors")
    index = tmp_path / "sharded" / "model.safetensors.index.json"
    index.write_text(index.read_text().replace(shard.name, name))
    with pytest.raises(ValueError, match="outside of its directory"):
        AutoMagnetForCausalLM.from_pretrained(tmp_path / "sharded")


# ---- Versions ----


def pins(name):
    """Return package -> version without build tags, and the number of hashes of each."""
    text = (REPOSITORY / name).read_text(encoding="utf-8")
    text = re.sub(r"\\\n", " ", text)
    for line in text.splitlines():
        if line and not line.startswith("#"):
            requirement, *hashes = line.split()
            package, version = requirement.split("==")
            yield re.sub(r"[-_.]+", "-", package).lower(), version.partition("+")[0], hashes


def test_lock_matches_constraints():
    locked = {package: version for package, version, _ in pins("requirements.lock")}
    assert {package: version for package, version, _ in pins("constraints.txt")}.items() <= locked.items()


def test_locked_packages_have_hashes():
    names = [package for package, _, _ in pins("requirements.lock")]
    assert len(names) == len(set(names)) > 100
    for package, _, hashes in pins("requirements.lock"):
        assert hashes and all(re.fullmatch("--hash=sha256:[0-9a-f]{64}", one) for one in hashes), package
    text = (REPOSITORY / "requirements.lock").read_text(encoding="utf-8")
    assert "://" not in text and not re.search("^[-/.]|@", text, flags=re.MULTILINE)
