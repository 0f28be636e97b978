"""Interrupt `examples/encode_corpus.py`, and compare with an uninterrupted run.

`tests/faults` kills it at random moments.
"""

import fcntl
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from examples import encode_corpus
from examples.corpus.writing import WorkFolder
from examples.encode_corpus import main

from ..conftest import REPOSITORY
from .tiny_corpus import make_texts, write_jsonl

NUM_TEXTS, CHUNK_SIZE = 600, 8
NUM_CHUNKS = NUM_TEXTS // CHUNK_SIZE
ALL_VECTORS = NUM_TEXTS * 32 * 4  # bytes
# A chunk that is too large for a file that can hold the manifest.
LARGE_CHUNK, NO_ROOM = "--chunk_size=300", 20_000


@pytest.fixture
def options(tmp_path, checkpoint) -> list[str]:
    texts: list[str | None] = [*make_texts(NUM_TEXTS)]
    texts[123] = None
    return [
        f"--model_name_or_path={checkpoint}",
        f"--texts={write_jsonl(tmp_path / 'texts.jsonl', texts)}",
        f"--output={tmp_path / 'out.npy'}",
        f"--chunk_size={CHUNK_SIZE}",
        "--threads=1",
        "--prompt=",
    ]


@pytest.fixture
def undisturbed(tmp_path, options) -> Path:
    """Return the output of an uninterrupted run."""
    main([*options, f"--output={tmp_path / 'undisturbed.npy'}"])
    return tmp_path / "undisturbed.npy"


@pytest.fixture
def interrupted(tmp_path, options, monkeypatch) -> Path:
    """Return the work folder of a run that ended when all chunks were finished."""
    with monkeypatch.context() as patched:
        patched.setattr(encode_corpus, "merge_parts", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            main(options)
    assert not (tmp_path / "out.npy").exists()
    return tmp_path / "out.npy.parts"


def _interrupt(*_, **__):
    raise KeyboardInterrupt


def parts_of(folder: Path) -> list[Path]:
    """Return the finished chunks."""
    return sorted(folder.glob("*.npy"))


def start_run(options: list[str], **more) -> subprocess.Popen:
    """Start the script in a subprocess."""
    command = [sys.executable, str(REPOSITORY / "examples" / "encode_corpus.py"), *options]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, **more)


def error_of_full_disk(options: list[str], *, largest_file: int) -> str:
    """Return the error of a run in which writing beyond so many bytes of a file fails."""
    limits = (largest_file, largest_file)
    process = start_run(options, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limits))
    error = process.communicate()[1].splitlines()[-1]
    assert process.returncode == 2 and "(File too large)" in error
    return error


# ---- Killed ----


def test_interrupted_run_resumes_to_identical_bytes(tmp_path, options, undisturbed, monkeypatch, capsys):
    folder, keep = tmp_path / "out.npy.parts", WorkFolder.keep
    kept = 20

    def keep_some(self, chunk, vectors):
        if chunk.index == kept:
            raise KeyboardInterrupt
        keep(self, chunk, vectors)

    with monkeypatch.context() as patched:
        patched.setattr(WorkFolder, "keep", keep_some)
        with pytest.raises(KeyboardInterrupt):
            main(options)
    assert len(parts_of(folder)) == kept
    assert not (tmp_path / "out.npy").exists() and not (tmp_path / "out.npy.json").exists()
    # As after a crash of the machine: an incomplete row of the log does not count.
    log = folder / "chunks.jsonl"
    log.write_bytes(b"".join(log.read_bytes().splitlines(keepends=True)[:-1]) + b'{"chunk": 7')
    (folder / "00000099.npy.unfinished").write_bytes(b"half")
    done = CHUNK_SIZE * (kept - 1)

    capsys.readouterr()
    report = main(options)
    assert (tmp_path / "out.npy").read_bytes() == undisturbed.read_bytes()
    assert report["rows_encoded"] == NUM_TEXTS - done
    assert [complaint["row"] for complaint in report["corrupt"]] == [123]
    first_bar = re.search(rf"Encoding: [^\r]*\| (\d+)/{NUM_TEXTS} ", capsys.readouterr().err)
    assert first_bar is not None and int(first_bar[1]) == done
    assert not folder.exists()


def test_run_interrupted_beside_its_output_removes_the_work_folder(tmp_path, options, interrupted, undisturbed):
    shutil.copytree(interrupted, tmp_path / "copy")
    for _ in range(2):  # without the output, then with it
        assert main(options)["rows_encoded"] == 0
        assert (tmp_path / "out.npy").read_bytes() == undisturbed.read_bytes()
        assert json.loads((tmp_path / "out.npy.json").read_text())["rows"] == NUM_TEXTS
        assert not interrupted.exists()
        shutil.copytree(tmp_path / "copy", interrupted)


# ---- Going on ----


def test_run_resumes_only_with_the_same_arguments_and_inputs_and_exclusively(tmp_path, options, interrupted):
    before = {file: file.stat().st_mtime_ns for file in parts_of(interrupted)}
    assert len(before) == NUM_CHUNKS
    for change, message in (
        ("--pooling=mean", "`pooling` was None and is now 'mean'"),
        ("--chunk_size=9", "`chunk_size` was 8 and is now 9"),
        ("--threads=2", "`threads` was 1 and is now 2"),
        ("--limit=600", "`limit` was None and is now 600"),
    ):
        with pytest.raises(ValueError, match=message):
            main([*options, change])
    for name in ("texts.jsonl", "tiny/model.safetensors"):
        state = (tmp_path / name).stat()
        os.utime(tmp_path / name, ns=(state.st_atime_ns, state.st_mtime_ns + 1))
        with pytest.raises(ValueError, match=f"{name} was '.* ns' and is now '.* ns'"):
            main(options)
        os.utime(tmp_path / name, ns=(state.st_atime_ns, state.st_mtime_ns))
    with open(interrupted / "lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ValueError, match="Another run is at work"):
            main(options)
    assert before == {file: file.stat().st_mtime_ns for file in parts_of(interrupted)}
    assert main(options)["rows_encoded"] == 0


# ---- Full disk ----


@pytest.mark.long
def test_full_disk_is_reported_and_finished_chunks_are_kept(tmp_path, options):
    folder = tmp_path / "out.npy.parts"
    error = error_of_full_disk([*options, LARGE_CHUNK], largest_file=NO_ROOM)
    assert re.search(r"00000000.npy' cannot be written \(File too large\); [\d,]+ bytes are free", error)
    assert parts_of(folder) == [] and list(folder.glob("*.unfinished")) == []

    for output in ("out.npy", "out.parquet"):  # does not fit
        error = error_of_full_disk([*options, f"--output={tmp_path / output}"], largest_file=ALL_VECTORS)
        assert f"{output}' cannot be written" in error and "run the same command" in error
        assert len(parts_of(tmp_path / f"{output}.parts")) == NUM_CHUNKS
        assert not (tmp_path / output).exists() and not (tmp_path / f"{output}.json").exists()


# ---- Memory ----


@pytest.mark.long
@pytest.mark.parametrize("suffix", [".npy", ".parquet"])
def test_memory_does_not_grow_with_the_corpus(tmp_path, options, suffix):
    peaks = []
    for number in (200, 20_000):
        file = write_jsonl(tmp_path / "texts.jsonl", make_texts(number, longest=4))
        output = tmp_path / f"{number}{suffix}"
        process = start_run([*options, f"--texts={file}", f"--output={output}", "--chunk_size=100"])
        process.stderr.read()
        _, status, usage = os.wait4(process.pid, 0)
        assert status == 0
        peaks.append(usage.ru_maxrss)
    assert peaks[1] < 1.2 * peaks[0]


# ---- Several processes ----


def children_of(pid: int) -> list[str]:
    """Return the child processes."""
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


@pytest.mark.nightly
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks for orphans in /proc")
def test_two_killed_processes_resume_to_the_bytes_of_one(tmp_path, options, undisturbed):
    options = [*options, "--num_processes=2"]
    process = start_run(options)
    while len(parts_of(tmp_path / "out.npy.parts")) < 3:
        assert process.poll() is None
        time.sleep(0.001)
    workers = children_of(process.pid)
    assert len(workers) >= 2
    process.kill()
    process.wait()
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{worker}").exists() for worker in workers):
        assert time.monotonic() < deadline, "a worker outlived its parent"
        time.sleep(0.1)

    report = main(options)
    assert 0 < report["rows_encoded"] < NUM_TEXTS
    assert (tmp_path / "out.npy").read_bytes() == undisturbed.read_bytes()
