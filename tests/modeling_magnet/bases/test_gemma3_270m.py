"""A model that comes as a Python package: found, joined, checked, and kept where caches are."""

import hashlib
import subprocess
import sys
import textwrap

import pytest

from modeling_magnet.bases import gemma3_270m, locate
from modeling_magnet.sources_magnet import CheckpointError, ModelSource

CHUNKS = [b"GGUF" * 1000, b"", b"end of the file"]
CONTENT = b"".join(CHUNKS)


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package of small chunks in place of the real one, and an empty cache."""
    place = tmp_path / "site" / "small_model"
    place.mkdir(parents=True)
    for number, chunk in enumerate(CHUNKS):
        (place / f"part{number}").write_bytes(chunk)
    code = f"""
        from pathlib import Path

        def chunk_paths():
            return [Path(__file__).parent / f"part{{number}}" for number in range({len(CHUNKS)})]
    """
    (place / "__init__.py").write_text(textwrap.dedent(code))
    monkeypatch.syspath_prepend(place.parent)
    monkeypatch.setattr(gemma3_270m, "PACKAGE", "small_model")
    monkeypatch.setattr(gemma3_270m, "SHA256", hashlib.sha256(CONTENT).hexdigest())
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    gemma3_270m._checked_file.cache_clear()
    yield place
    gemma3_270m._checked_file.cache_clear()
    sys.modules.pop("small_model", None)


def test_the_chunks_are_joined_once(package, tmp_path):
    file = gemma3_270m.packaged_file()
    assert file.parent == tmp_path / "cache" / "magnet" / "gemma-3-270m"
    assert file.read_bytes() == CONTENT
    (package / "part0").unlink()
    gemma3_270m._checked_file.cache_clear()  # as in another process
    assert gemma3_270m.packaged_file() == file, "the package is not read again"
    assert [path.name for path in file.parent.iterdir() if path.name != ".lock"] == [file.name]


def test_a_cache_that_cannot_be_written_is_named(package, tmp_path):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(CheckpointError, match="is installed, and cannot be put into the cache: .*cache"):
        ModelSource("gemma-3-270m", {})


def test_what_a_killed_process_left_is_cleared(package):
    left = gemma3_270m.cache_directory() / f".{gemma3_270m.FILE}.123456"
    left.parent.mkdir(parents=True)
    left.write_bytes(CONTENT[:100])
    assert gemma3_270m.packaged_file().read_bytes() == CONTENT and not left.exists()


def test_a_damaged_file_in_the_cache_is_written_anew(package):
    file = gemma3_270m.packaged_file()
    file.write_bytes(CONTENT[:-1] + b"?")
    gemma3_270m._checked_file.cache_clear()
    assert gemma3_270m.packaged_file().read_bytes() == CONTENT


@pytest.mark.parametrize("change", ["other bytes", "missing"])
def test_damaged_chunks_leave_nothing(package, change):
    (package / "part0").unlink() if change == "missing" else (package / "part0").write_bytes(b"other")
    with pytest.raises(OSError, match="part0" if change == "missing" else "pip install --force-reinstall"):
        gemma3_270m.packaged_file()
    assert [path.name for path in gemma3_270m.cache_directory().iterdir()] == [".lock"]


def test_several_processes_get_one_whole_file(package, tmp_path):
    code = f"""
        import hashlib, sys
        sys.path.insert(0, {str(package.parent)!r})
        from modeling_magnet.bases import gemma3_270m
        gemma3_270m.PACKAGE, gemma3_270m.SHA256 = "small_model", {hashlib.sha256(CONTENT).hexdigest()!r}
        print(hashlib.sha256(gemma3_270m.packaged_file().read_bytes()).hexdigest())
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    told = {process.communicate()[0].split()[-1] for process in started}
    assert told == {hashlib.sha256(CONTENT).hexdigest()}


def test_the_cache_is_where_the_user_keeps_caches(monkeypatch, tmp_path):
    for name in ("HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    own = ("magnet", "gemma-3-270m")
    assert gemma3_270m.cache_directory() == tmp_path.joinpath(".cache", "huggingface", *own)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert gemma3_270m.cache_directory() == tmp_path.joinpath("xdg", "huggingface", *own)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    assert gemma3_270m.cache_directory() == tmp_path.joinpath("hf", *own)


def test_without_the_package_the_name_is_that_of_the_hub(monkeypatch):
    monkeypatch.setattr(gemma3_270m, "PACKAGE", "no_such_package")
    assert locate("gemma-3-270m") == ("google/gemma-3-270m", None)
    assert locate("google/gemma-3-270m") is None and locate("gemma") is None
    source = ModelSource("gemma-3-270m", {})
    assert (source.path, source.name, source.arguments) == ("google/gemma-3-270m", "google/gemma-3-270m", {})


def test_a_source_keeps_its_short_name(package, tmp_path, monkeypatch):
    source = ModelSource("gemma-3-270m", {"token": "secret"})
    assert source.name == "gemma-3-270m" and str(source) == "'gemma-3-270m'" and source.is_packaged
    assert source.gguf().read_bytes() == CONTENT and source.arguments["token"] == "secret"
    of_hub = ModelSource("gemma-3-270m", {"revision": "main"})
    assert of_hub.path == "google/gemma-3-270m" and not of_hub.is_packaged
    (tmp_path / "gemma-3-270m").mkdir()
    monkeypatch.chdir(tmp_path)
    assert ModelSource("gemma-3-270m", {}).path == "gemma-3-270m", "a directory comes first"
