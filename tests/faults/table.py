"""Disturb every job by every fault at many moments, and print what became of it as a table.

    python tests/faults/table.py --seeds 4 --report faults.jsonl

A report that is there is gone on with: what is in it is not run again.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

# A script finds its own folder alone.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
os.environ["HF_HUB_OFFLINE"] = "1"

from tqdm import tqdm

from tests.faults.calamities import FAULTS, NotPossibleError
from tests.faults.harness import Undisturbed, disturb
from tests.faults.jobs import JOBS

HEAD = "| job | fault | runs | disturbed | survived | rows lost | rows twice |\n|---|---|---|---|---|---|---|"


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    """Run what no report has yet, print the table; the exit code is 1 where a run did not survive."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=1, help="runs of each job with each fault")
    parser.add_argument("--jobs", nargs="+", default=list(JOBS), choices=list(JOBS))
    parser.add_argument("--faults", nargs="+", default=list(FAULTS), choices=list(FAULTS))
    parser.add_argument("--report", type=Path, required=True, help="JSONL file, one line a run")
    args = parser.parse_args(arguments)
    rows = read_report(args.report)
    known = {(row["job"], row["fault"], row["seed"]) for row in rows}
    asked = [(job, fault, seed) for seed in range(args.seeds) for job in args.jobs for fault in args.faults]
    with tempfile.TemporaryDirectory() as folder:
        whole = {job: Undisturbed(JOBS[job], Path(folder) / job) for job in args.jobs}
        for job, fault, seed in tqdm([one for one in asked if one not in known], desc="Faults", unit="run"):
            rows.append(run(whole[job], job, fault, seed, base=Path(folder)))
            with args.report.open("a", encoding="utf-8") as file:
                file.write(json.dumps(rows[-1]) + "\n")
    print("\n".join(table(rows)))
    return rows


def run(whole: Undisturbed, job: str, fault: str, seed: int, *, base: Path) -> dict[str, Any]:
    """One disturbed job; what went wrong is told and does not end the others."""
    row: dict[str, Any] = {"job": job, "fault": fault, "seed": seed}
    try:
        with tempfile.TemporaryDirectory(dir=base) as folder:
            return row | asdict(disturb(whole, FAULTS[fault], seed=seed, base=Path(folder)))
    except NotPossibleError as reason:
        return row | {"impossible": str(reason)}
    except AssertionError as failure:
        return row | {"failure": str(failure)}


def table(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Markdown, one line for each job and fault."""
    yield HEAD
    for job, fault in dict.fromkeys((row["job"], row["fault"]) for row in rows):
        these = [row for row in rows if (row["job"], row["fault"]) == (job, fault) and "impossible" not in row]
        survived = sum(row.get("differing") == [] for row in these)
        sums = [sum(row.get(name, 0) for row in these) for name in ("disturbed", "lost", "duplicated")]
        yield f"| {job} | {fault} | {len(these)} | {sums[0]} | {survived} | {sums[1]} | {sums[2]} |"


def read_report(file: Path) -> list[dict[str, Any]]:
    """The runs on record; half a line is dropped."""
    rows = []
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else []:
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    return rows


if __name__ == "__main__":
    found = main()
    sys.exit(any(row.get("differing") != [] and "impossible" not in row for row in found))
