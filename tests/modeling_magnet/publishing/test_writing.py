"""Test saves that are killed, cannot write, or replace another checkpoint."""

import copy
import os
import resource
import subprocess
import sys
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from modeling_magnet import MagnetLlamaForCausalLM
from modeling_magnet.publishing.merging import largest_differences
from modeling_magnet.publishing.writing import stale_files
from tests.adapters import add_lora

REPOSITORY = Path(__file__).resolve().parents[3]


def kills(folder, old, new, how, count):
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.modeling_magnet.kill_saves", str(folder), old, new, how, str(count)],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        env=environment,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    *outcomes, last = done.stdout.splitlines()
    assert last == "clean", "the next save removes what killed ones left behind"
    assert len(outcomes) == count
    return Counter(outcomes)


@pytest.mark.nightly
def test_fifty_kills_at_random_moments_never_leave_a_mixture(tiny_model, tmp_path):
    tiny_model.save_pretrained(tmp_path / "models")
    outcomes = kills(tmp_path / "models", "sharded", "plain", "seconds", 50)
    assert set(outcomes) <= {"old", "new", "refused"}, outcomes
    assert outcomes["old"]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param("sharded", "plain", marks=pytest.mark.long),
        pytest.param("plain", "adapter", marks=pytest.mark.nightly),
        pytest.param("plain", "sharded", marks=pytest.mark.nightly),
        pytest.param("adapter", "plain", marks=pytest.mark.nightly),
    ],
)
def test_kills_between_file_operations_never_leave_a_mixture(tiny_model, tmp_path, old, new):
    tiny_model.save_pretrained(tmp_path / "models")
    outcomes = kills(tmp_path / "models", old, new, "events", 30)
    assert set(outcomes) <= {"old", "new", "refused"}, outcomes
    assert outcomes["old"] and outcomes["refused"], "some of the moments lie among the moves"


def test_an_adapter_and_a_checkpoint_replace_each_other(checkpoint, tiny_model, tmp_path):
    adapted = add_lora(MagnetLlamaForCausalLM.from_pretrained(checkpoint))
    target = tmp_path / "target"
    for _ in range(2):
        adapted.save_pretrained(target)
        assert not (target / "config.json").exists() and not (target / "model.safetensors").exists()
        assert max(largest_differences(adapted, MagnetLlamaForCausalLM.from_pretrained(target)).values()) == 0
        tiny_model.save_pretrained(target)
        of_adapters = {"adapter_model.safetensors", "adapter_config.json", "magnet_adapter.json"}
        assert not of_adapters & {file.name for file in target.iterdir()}
        assert max(largest_differences(tiny_model, MagnetLlamaForCausalLM.from_pretrained(target)).values()) == 0


def test_an_unwritable_target_raises(tiny_model, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"file/inner' could not be written"):
        tiny_model.save_pretrained(tmp_path / "file" / "inner")
    with pytest.raises(ValueError, match="'/proc/inner' could not be written"):
        tiny_model.save_pretrained("/proc/inner")


@pytest.mark.long
def test_a_full_disk_leaves_the_old_checkpoint(tiny_model, tmp_path):
    """A limit on file sizes stops the writing of weights midway, as a full disk does."""
    tiny_model.save_pretrained(tmp_path / "target")
    before = {file: file.read_bytes() for file in (tmp_path / "target").rglob("*") if file.is_file()}
    program = (
        "import resource, signal, sys\n"
        "from modeling_magnet import MagnetLlamaForCausalLM\n"
        "model = MagnetLlamaForCausalLM.from_pretrained(sys.argv[1])\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))\n"
        "try:\n"
        "    model.save_pretrained(sys.argv[1])\n"
        "except ValueError as error:\n"
        "    print(error)\n"
    )
    assert resource.RLIMIT_FSIZE is not None
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "target")],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "could not be written" in done.stdout and "free space" in done.stdout
    assert {file: file.read_bytes() for file in (tmp_path / "target").rglob("*") if file.is_file()} == before
    assert [file.name for file in tmp_path.iterdir()] == ["target"]


@pytest.fixture
def other_device(tmp_path):
    """Return a directory on another file system."""
    memory = Path("/dev/shm")
    if not memory.is_dir() or memory.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("no second file system here")
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        yield Path(folder)


def test_a_link_to_another_file_system_is_followed(tiny_model, tmp_path, other_device):
    """Formerly, the rename failed after the old config had been deleted."""
    (tmp_path / "link").symlink_to(other_device)
    for _ in range(2):
        tiny_model.save_pretrained(tmp_path / "link")
        loaded = MagnetLlamaForCausalLM.from_pretrained(tmp_path / "link")
        assert max(largest_differences(tiny_model, loaded).values()) == 0
    assert (tmp_path / "link").is_symlink() and not list(other_device.glob(".*"))
    assert [file.name for file in tmp_path.iterdir()] == ["link"]
    assert other_device.name in (other_device / "README.md").read_text(), "the name of the directory, not of the link"


@pytest.mark.parametrize("kind", [["-t", "tmpfs", "tmpfs"], ["--bind", "."]], ids=["other device", "same device"])
def test_a_mount_point_is_written_in_place(tiny_model, tmp_path, kind):
    """A mount of the same file system has the same device number, but files cannot be renamed into it."""
    target, source = tmp_path / "target", tmp_path / "source"
    target.mkdir()
    source.mkdir()
    options = [str(source) if option == "." else option for option in kind]
    mounted = subprocess.run(["mount", *options, str(target)], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here ({mounted.stderr.strip()})")
    try:
        for _ in range(2):
            (target / ".saving-killed").mkdir()  # of a save that was killed
            tiny_model.save_pretrained(target)
            assert (target / "config.json").is_file() and not list(target.glob(".*"))
    finally:
        subprocess.run(["umount", str(target)], check=True)


def test_an_error_says_whether_the_target_was_changed(tiny_model, tmp_path, monkeypatch):
    tiny_model.save_pretrained(tmp_path / "target")
    replace = os.replace

    def fail(source, destination):
        raise OSError("disk gone")

    for allowed in (0, 1, 5, 10):
        moves = iter([replace] * allowed)
        monkeypatch.setattr(os, "replace", lambda *files, moves=moves: next(moves, fail)(*files))
        with pytest.raises(ValueError, match="It is incomplete now"):
            tiny_model.save_pretrained(tmp_path / "target")
        with pytest.raises(ValueError, match="config.json"):
            MagnetLlamaForCausalLM.from_pretrained(tmp_path / "target")
    monkeypatch.setattr(os, "replace", replace)
    tiny_model.save_pretrained(tmp_path / "target")
    monkeypatch.setattr(tiny_model.tokenizer, "save_pretrained", lambda folder: fail(None, None))
    with pytest.raises(ValueError, match="It was not changed"):
        tiny_model.save_pretrained(tmp_path / "target")


def test_other_files_are_kept(tiny_model, tmp_path):
    theirs = ("model_ema.safetensors", "model.fp16.safetensors", "adapter_model_notes.txt", "model-1.safetensors")
    for name in theirs:
        (tmp_path / name).write_text("mine")
    (tmp_path / "adapter_model_old").mkdir()
    (tmp_path / "adapter_model_old" / "adapter_config.json").write_text("mine")
    for _ in range(2):
        tiny_model.save_pretrained(tmp_path)
    assert all((tmp_path / name).read_text() == "mine" for name in (*theirs, "adapter_model_old/adapter_config.json"))


def test_a_blocking_directory_raises_before_anything_changes(tiny_model, tmp_path):
    tiny_model.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "tokenizer.json").mkdir()
    with pytest.raises(ValueError, match=r"tokenizer.json' .* Nothing was changed"):
        tiny_model.save_pretrained(tmp_path)
    assert (tmp_path / "config.json").is_file()


def test_the_tokenizer_of_the_old_checkpoint_is_deleted(tiny_model, tmp_path):
    stale = ("chat_template.jinja", "added_tokens.json", "special_tokens_map.json", "merges.txt", "tokenizer.model")
    for name in stale:
        (tmp_path / name).write_text("{}")
    (tmp_path / "vocab.txt").write_text("mine")
    tiny_model.save_pretrained(tmp_path)
    assert not any((tmp_path / name).exists() for name in stale)
    assert (tmp_path / "tokenizer.json").is_file() and (tmp_path / "vocab.txt").is_file()
    assert stale_files(["vocab.json", "notes"], []) == []
    assert stale_files(["vocab.json", "config.json"], ["config.json"]) == ["vocab.json"]
    assert stale_files(["vocab.json"], ["tokenizer.json"]) == ["vocab.json"]


@pytest.mark.long
def test_concurrent_saves_to_one_target_are_never_mixed(tiny_model, tmp_path):
    """Two threads and two other processes save different models."""
    other = copy.deepcopy(tiny_model)
    with torch.no_grad():
        other.lm_head.weight.mul_(-1)
    for name, model in (("first", tiny_model), ("second", other)):
        model.save_pretrained(tmp_path / name)
    program = (
        "import sys\n"
        "from modeling_magnet import MagnetLlamaForCausalLM\n"
        "model = MagnetLlamaForCausalLM.from_pretrained(sys.argv[1])\n"
        "for number in range(15):\n"
        "    model.save_pretrained(sys.argv[2], max_shard_size='20KB' if number % 2 else '1GB')\n"
    )
    target = tmp_path / "target"
    running = [
        subprocess.Popen(
            [sys.executable, "-c", program, str(tmp_path / name), str(target)],
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for name in ("first", "second")
    ]
    with ThreadPoolExecutor() as pool:
        threads = [pool.submit(model.save_pretrained, target) for _ in range(10) for model in (tiny_model, other)]
        for thread in threads:
            thread.result()
    for process in running:
        assert process.wait() == 0, process.stderr.read()[-2000:]
    loaded = MagnetLlamaForCausalLM.from_pretrained(target)
    assert 0 in [max(largest_differences(model, loaded).values()) for model in (tiny_model, other)]
    assert bool(list(target.glob("model-*"))) != (target / "model.safetensors").exists(), "the files of one save"
    assert {file.name for file in tmp_path.iterdir()} == {"first", "second", "target"}


def test_leftovers_beside_a_name_with_glob_characters_are_removed(tiny_model, tmp_path):
    mine, foreign = tmp_path / ".run[1]-saving-killed", tmp_path / ".run1-saving-killed"
    mine.mkdir()
    foreign.mkdir()
    tiny_model.save_pretrained(tmp_path / "run[1]")
    assert not mine.exists() and foreign.exists()
