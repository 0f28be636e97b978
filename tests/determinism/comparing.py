"""Run a script in two processes that share nothing, and compare the files that they write."""

import json
import os
import shlex
import subprocess
import sys

from ..conftest import REPOSITORY

# `python SCRIPT ARGUMENTS`, but with other states of torch's generator at the beginning.
START = """
import runpy, sys, torch
_, seed, root, *sys.argv = sys.argv
torch.manual_seed(int(seed))
sys.path[:1] = [root, sys.argv[0].rpartition("/")[0]]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def run_twice(folder, script, options, *, printed=None, **folders):
    """Run a script with two hash seeds, folders, caches and random states at once, and return the output folders.

    Args:
        folder: An empty one.
        script: Its path.
        options: What follows the script, with `{output}` and the names of `folders` for paths.
        printed: Names a file for what the script prints.
        folders: Further folders.
    """
    outputs, processes, log = [], [], printed or "../log"
    for seed, place in ((0, folder / "one"), (31337, folder / "quite_another" / "deeper")):
        outputs.append(place / "output")
        outputs[-1].mkdir(parents=True)
        caches = ("HF_HOME", "HF_DATASETS_CACHE", "HF_MODULES_CACHE", "MPLCONFIGDIR")
        environment = os.environ | {name: str(place / "cache" / name) for name in caches}
        environment |= {"PYTHONHASHSEED": str(seed), "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
        arguments = [option.format(output=outputs[-1], **folders) for option in shlex.split(options)]
        command = [sys.executable, "-c", START, str(seed), str(REPOSITORY), str(script), *arguments]
        with open(outputs[-1] / log, "wb") as stream:
            processes.append(subprocess.Popen(command, cwd=place, env=environment, stdout=stream, stderr=stream))
    for process, output in zip(processes, outputs, strict=True):
        assert process.wait() == 0, f"{process.returncode} {(output / log).read_text()[-3000:]}"
    return outputs


def check_same(outputs, *, writes, dropped=(), unread=()):
    """Check that folders contain the same files with the same bytes, except for dropped fields and unread files."""
    seen = set()
    one, other = (_contents(output, dropped, unread, seen) for output in outputs)
    assert list(one) == list(other)
    assert writes in one and any(one.values())
    assert [name for name in one if one[name] != other[name]] == []
    absent = sorted({*dropped, *unread} - seen)
    assert not absent, absent


def _contents(folder, dropped, unread, seen):
    """Return the files of a folder by name, without the folder's own name; JSON keeps its order of fields."""

    def keep(pairs):
        seen.update(name for name, _ in pairs)
        return {name: value for name, value in pairs if name not in dropped}

    found = {}
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        seen.add(file.name)
        content = file.read_bytes().replace(str(folder).encode(), b"FOLDER")
        if file.suffix in (".json", ".jsonl"):
            parts = [content] if file.suffix == ".json" else content.splitlines()
            content = json.dumps([json.loads(part, object_pairs_hook=keep) for part in parts]).encode()
        found[str(file.relative_to(folder))] = b"" if file.name in unread else content
    return found
