"""Interrupt `examples/encode_corpus.py` by kills and full disks, and compare with an uninterrupted run."""

import errno
import fcntl
import json
import os
import random
import re
import shutil
import time
from pathlib import Path

import pytest

from examples.encode_corpus import main

from .tiny_corpus import finish_run, make_texts, start_run, write_jsonl

NUM_TEXTS, CHUNK_SIZE = 600, 8
NUM_CHUNKS = NUM_TEXTS // CHUNK_SIZE
ALL_VECTORS = NUM_TEXTS * 32 * 4  # bytes
# A chunk that is too large for a file that can hold the manifest.
LARGE_CHUNK, NO_ROOM = "--chunk_size=300", 20_000


@pytest.fixture
def options(tmp_path, tiny_model) -> list[str]:
    tiny_model.save_pretrained(tmp_path / "model")
    texts: list[str | None] = [*make_texts(NUM_TEXTS)]
    texts[123] = None
    return [
        f"--model_name_or_path={tmp_path / 'model'}",
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
def interrupted(tmp_path, options) -> Path:
    """Return the work folder of a run whose chunks are finished but whose output did not fit on the disk."""
    error, _ = finish_run(options, largest_file=ALL_VECTORS)
    assert isinstance(error, OSError)
    return tmp_path / "out.npy.parts"


def parts_of(folder: Path) -> list[Path]:
    """Return the finished chunks."""
    return sorted(folder.glob("*.npy"))


def wait_for_parts(folder: Path, number: int, process) -> None:
    """Wait until the given number of chunks is finished."""
    deadline = time.monotonic() + 120
    while len(parts_of(folder)) < number and process.is_alive():
        assert time.monotonic() < deadline
        time.sleep(0.001)


# ---- Killed ----


@pytest.mark.long
def test_run_killed_at_random_moments_resumes_to_identical_bytes(tmp_path, options, undisturbed, capsys):
    seed = random.randrange(10**6)
    print(f"seed {seed}")  # shown when the test fails
    draw = random.Random(seed)
    folder = tmp_path / "out.npy.parts"
    for moment in sorted(draw.sample(range(1, NUM_CHUNKS // 2), 3)):
        process, _ = start_run(options)
        wait_for_parts(folder, moment, process)
        time.sleep(draw.uniform(0, 0.02))
        process.kill()
        process.join()
        assert process.exitcode == -9, "the run was over before it was killed"
        assert not (tmp_path / "out.npy").exists() and not (tmp_path / "out.npy.json").exists()
    found = parts_of(folder)
    assert 0 < len(found) <= NUM_CHUNKS
    # As after a crash of the machine: an incomplete row of the log does not count.
    log = folder / "chunks.jsonl"
    before = log.read_bytes().splitlines(keepends=True)[:-1]
    log.write_bytes(b"".join(before) + b'{"chunk": 7')
    (folder / "00000099.npy.unfinished").write_bytes(b"half")

    capsys.readouterr()
    report = main(options)
    assert (tmp_path / "out.npy").read_bytes() == undisturbed.read_bytes()
    assert report["rows_encoded"] == NUM_TEXTS - CHUNK_SIZE * len(before)
    assert [complaint["row"] for complaint in report["corrupt"]] == [123]
    first_bar = re.search(rf"Encoding: [^\r]*\| (\d+)/{NUM_TEXTS} ", capsys.readouterr().err)
    assert first_bar is not None and int(first_bar[1]) == CHUNK_SIZE * len(before)
    assert not folder.exists()


def test_run_killed_during_the_merge_leaves_a_whole_output_or_none(tmp_path, options, interrupted, undisturbed):
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    draw = random.Random(seed)
    output, seconds = tmp_path / "out.npy", 0.0
    shutil.copytree(interrupted, tmp_path / "copy")
    for attempt in range(8):
        started = time.monotonic()
        process, _ = start_run(options)
        if attempt:  # the first run measures the duration
            time.sleep(draw.uniform(0.5, 1) * seconds)
            process.kill()
        process.join()
        seconds = seconds or time.monotonic() - started
        if output.exists():
            assert output.read_bytes() == undisturbed.read_bytes()
        if interrupted.exists():
            main(options)
        assert output.read_bytes() == undisturbed.read_bytes()
        assert json.loads((tmp_path / "out.npy.json").read_text())["rows"] == NUM_TEXTS
        assert not interrupted.exists()
        output.unlink()
        (tmp_path / "out.npy.json").unlink()
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
    for name in ("texts.jsonl", "model/model.safetensors"):
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
def test_full_disk_is_reported_and_finished_chunks_are_kept(tmp_path, options, undisturbed):
    folder = tmp_path / "out.npy.parts"
    error, _ = finish_run([*options, LARGE_CHUNK], largest_file=NO_ROOM)
    assert isinstance(error, OSError) and error.errno == errno.EFBIG
    assert re.search(r"00000000.npy' cannot be written \(File too large\); [\d,]+ bytes are free", str(error))
    assert parts_of(folder) == [] and list(folder.glob("*.unfinished")) == []

    error, _ = finish_run(options, largest_file=ALL_VECTORS)  # the output does not fit
    assert isinstance(error, OSError) and error.errno == errno.EFBIG
    assert "out.npy' cannot be written" in str(error) and "run the same command" in str(error)
    assert len(parts_of(folder)) == NUM_CHUNKS and list(folder.glob("*.unfinished")) == []
    assert not (tmp_path / "out.npy").exists() and not (tmp_path / "out.npy.json").exists()

    parquet = [*options, f"--output={tmp_path / 'out.parquet'}", "--id_column=key"]
    error, _ = finish_run(parquet, largest_file=ALL_VECTORS)
    assert isinstance(error, OSError) and error.errno == errno.EFBIG
    assert not (tmp_path / "out.parquet").exists()

    main(options)
    assert (tmp_path / "out.npy").read_bytes() == undisturbed.read_bytes()


# ---- Memory ----


@pytest.mark.long
@pytest.mark.parametrize("suffix", [".npy", ".parquet"])
def test_memory_does_not_grow_with_the_corpus(tmp_path, options, suffix):
    peaks = []
    for number in (200, 20_000):
        file = write_jsonl(tmp_path / "texts.jsonl", make_texts(number, longest=4))
        output = tmp_path / f"{number}{suffix}"
        error, peak = finish_run([*options, f"--texts={file}", f"--output={output}", "--chunk_size=100"])
        assert error is None
        peaks.append(peak)
    assert peaks[1] < 1.2 * peaks[0]


# ---- Several processes ----


def children_of(pid: int) -> set[int]:
    """Return the child processes."""
    children = set()
    for file in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = file.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid:
            children.add(int(file.parent.name))
    return children


@pytest.mark.nightly
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for orphans in /proc")
def test_two_killed_processes_resume_to_the_bytes_of_one(tmp_path, options, undisturbed):
    options = [*options, "--num_processes=2"]
    process, _ = start_run(options)
    wait_for_parts(tmp_path / "out.npy.parts", 3, process)
    workers = children_of(process.pid)
    assert len(workers) >= 2
    process.kill()
    process.join()
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{worker}").exists() for worker in workers):
        assert time.monotonic() < deadline, "a worker outlived its parent"
        time.sleep(0.1)

    report = main(options)
    assert 0 < report["rows_encoded"] < NUM_TEXTS
    assert (tmp_path / "out.npy").read_bytes() == undisturbed.read_bytes()
