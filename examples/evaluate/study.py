"""Train every system of a plan, run every script of the tables, and write the report.

    python examples/evaluate/study.py examples/evaluate/study_wiki7m.json --output_dir outputs/study
    python examples/evaluate/study.py examples/evaluate/study_wiki7m.json --output_dir outputs/trial --preset smoke
    python examples/evaluate/study.py PLAN.json --output_dir DIR --only train --jobs 2
    python examples/evaluate/study.py PLAN.json --output_dir OTHER --base outputs/llama-2m

All systems have the same data, steps and parameters; the plan says what differs. The same command resumes an
interrupted study: a training at its last checkpoint, a table at its first missing cell. `--jobs` trainings run at a
time, each on its share of the cores.
"""

import fcntl
import importlib
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from examples.command_line import OneLineParser, add_output_dir, at_least, require_extra, start
from examples.evaluate import report, training_curves
from examples.evaluate.parts.study_plan import ADAPTER, BASE, Call, Plan, Run, read_plan
from examples.evaluate.training_curves import REPORT, models_by_step
from trainer.checkpoints import last_complete_checkpoint

ADAPT = Path(__file__).resolve().parents[1] / "adapt.py"
STAGES = ("train", "evaluate", "report")
# Settings of a training on a CPU: a bound on oneDNN's cache of bfloat16 products, which has an entry per shape; freed
# memory that is reused, not cleared by the kernel; and huge pages, ten times as fast on some virtual machines.
MEMORY = {
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64",
    "MALLOC_MMAP_THRESHOLD_": "4000000000",
    "MALLOC_TRIM_THRESHOLD_": "8000000000",
    "MALLOC_TOP_PAD_": "500000000",
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}


def training_command(plan: Plan, run: Run) -> list[str]:
    """Return the `adapt.py` command of a run; it resumes from a checkpoint if there is one."""
    command = [sys.executable, str(ADAPT)]
    options = {
        **run.arguments,
        "model_name_or_path": str(next((base.folder for base in _bases(plan, run)), plan.base)),
        "output_dir": str(run.folder),
    }
    if last_complete_checkpoint(run.folder) is not None:
        options["resume_from_checkpoint"] = "true"
    for name, value in options.items():
        if value is None:
            continue
        command += [f"--{name}", *map(str, value)] if isinstance(value, list) else [f"--{name}={value}"]
    return command


def train(plan: Plan, *, jobs: int) -> None:
    """Train every run that has not finished, each after its base.

    Raises:
        ChildProcessError: If a run fails; the message names it and its log. Runs in progress are finished first.
    """
    waiting = [run for run in plan.runs if not is_finished(run)]
    print(f"{len(plan.runs) - len(waiting)} of {len(plan.runs)} runs are finished", flush=True)
    under_way: dict[Future[int], Run] = {}
    failed: list[Run] = []
    bar = tqdm(total=len(waiting), desc="Training", unit="run", file=sys.stderr)
    with bar, ThreadPoolExecutor(max_workers=jobs) as pool:
        while under_way or (waiting and not failed):
            ready = [run for run in waiting if all(map(is_finished, _bases(plan, run)))]
            for run in ready[: jobs - len(under_way)] if not failed else []:
                waiting.remove(run)
                under_way[pool.submit(_train, plan, run, threads=max(1, (os.cpu_count() or 1) // jobs))] = run
            done, _ = wait(under_way, return_when=FIRST_COMPLETED)
            for future in done:
                run = under_way.pop(future)
                bar.update()
                if future.result():
                    failed.append(run)
    if failed:
        names = ", ".join(f"{run.name} ({log_of(run)})" for run in failed)
        raise ChildProcessError(f"Did not finish: {names}. Read the log; the same command resumes the study.")


def evaluate(plan: Plan, *, results: Path) -> None:
    """Run every driver on its systems, beginning with the curves; recorded cells are not measured again.

    Unfinished runs are skipped and reported.
    """
    open_runs = [f"{run.name}, replica {run.replica}" for run in plan.runs if not is_finished(run)]
    if open_runs:
        print(f"left out, since their training has not finished: {'; '.join(open_runs)}", flush=True)
    for run in filter(is_finished, plan.runs):
        named = f"{run.name}={run.folder}"
        training_curves.main(["--runs", named, "--results", str(results), "--replica", str(run.replica)])
    bar = tqdm(list(driver_commands(plan, results=results)), desc="Evaluating", unit="command", file=sys.stderr)
    for number, (driver, arguments) in enumerate(bar, start=1):
        print(f"\n[{number}/{bar.total}] {driver}.py {shlex.join(arguments)}", flush=True)
        importlib.import_module(f"examples.evaluate.{driver}").main(arguments)


def driver_commands(plan: Plan, *, results: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield each driver to run, with its arguments."""
    for call in plan.calls:
        data = [] if call.data is None else ["--data", str(plan.data / call.data)]
        own = [argument.replace("{base}", plan.base) for argument in call.arguments]
        shared = [*own, *data, "--results", str(results)]
        for replica, step, models in _models(plan, call):
            at_step = [] if step is None else ["--step", str(step)]
            yield call.driver, ["--model", *models, *shared, "--replica", str(replica), *at_step]


def is_finished(run: Run) -> bool:
    """Return whether a run has written its result."""
    return (run.folder / REPORT).is_file()


def log_of(run: Run) -> Path:
    """Return the path of a training's log."""
    return run.folder.with_suffix(".log")


def _models(plan: Plan, call: Call) -> Iterator[tuple[int, int | None, list[str]]]:
    """Yield the models of one command each: replica, step, and models as `NAME=MODEL`."""
    groups: dict[tuple[int, int | None], list[str]] = {}
    for name, wanted in call.systems.items():
        system = wanted.removesuffix(ADAPTER)
        if system == BASE:
            groups.setdefault((0, 0 if call.over_steps else None), []).append(f"{name}={plan.base}")
        for run in filter(is_finished, plan.replicas(system)[: call.replicas]):
            if wanted.endswith(ADAPTER):
                last = last_complete_checkpoint(run.folder)
                if last is None:
                    raise ValueError(f"{str(run.folder)!r} has no checkpoint, so no adapter. Let the plan save some.")
                groups.setdefault((run.replica, None), []).append(f"{name}={last}")
                continue
            if not call.over_steps:
                groups.setdefault((run.replica, None), []).append(f"{name}={run.folder}")
                continue
            models = list(models_by_step(run.folder).items())
            for step, model in models[::-1][:: call.over_steps]:
                groups.setdefault((run.replica, step), []).append(f"{name}={model}")
    for place in sorted(groups, key=lambda place: (place[0], place[1] or 0)):
        yield *place, groups[place]


def _train(plan: Plan, run: Run, *, threads: int) -> int:
    """Train in a subprocess, write its output to a log, and return the exit status."""
    run.folder.parent.mkdir(parents=True, exist_ok=True)
    environment = {**MEMORY, "OMP_NUM_THREADS": str(threads), **os.environ}
    started = time.perf_counter()
    with log_of(run).open("ab") as log:
        # The training inherits the lock: one that outlives a killed study is waited for, not run twice.
        fcntl.flock(log, fcntl.LOCK_EX)
        if is_finished(run):
            return 0
        for unfinished in run.folder.glob("checkpoint-*") if last_complete_checkpoint(run.folder) is None else []:
            shutil.rmtree(unfinished)  # killed in its first checkpoint; `adapt.py` would refuse the folder
        print(f"training {run.name}, replica {run.replica} ({log_of(run)})", flush=True)
        status = subprocess.run(
            training_command(plan, run), env=environment, stdout=log, stderr=subprocess.STDOUT, check=False
        ).returncode
    result = "finished" if status == 0 else f"FAILED with status {status}"
    print(f"{run.name}, replica {run.replica}: {result} ({time.perf_counter() - started:.0f} s)", flush=True)
    return status


def _bases(plan: Plan, run: Run) -> list[Run]:
    """Return the run that a run starts from, in a list: the same replica, or the first; empty for the base model."""
    runs = plan.replicas(run.base)
    return [base for base in runs if base.replica == run.replica] or runs[:1]


def main(arguments: list[str] | None = None) -> None:
    """Train, evaluate, and report.

    Raises:
        ChildProcessError: If a training fails.
    """
    parser = OneLineParser(description=__doc__)
    parser.add_argument("plan", type=Path, help="JSON file, see study_plan.py")
    add_output_dir(parser, required=True, help="folder of the runs, the records and the page")
    parser.add_argument("--preset", default="paper", help="one of the plan's presets")
    parser.add_argument("--only", choices=STAGES, help="only this stage")
    parser.add_argument("--jobs", type=at_least(), default=1, help="trainings at a time")
    parser.add_argument("--base", help="another base model than the plan's, such as one of another size")
    parser.add_argument("--title", help="title of the page, instead of the plan's")
    parser.add_argument(
        "--compare", nargs="+", default=[], metavar="NAME=DIR", help="results on other bases, for the page"
    )
    args = parser.parse_args(arguments)
    if args.only != "train":
        require_extra("eval", "markdown_it", "scipy")  # checked first: a study of hours must not end without a report
    compared = ["--compare", *args.compare] if args.compare else []
    plan = read_plan(args.plan, preset=args.preset, output=args.output)
    plan = replace(plan, base=args.base or plan.base, title=args.title or plan.title)
    results, started = args.output / "results", time.perf_counter()
    stages: dict[str, Callable[[], Any]] = {
        "train": lambda: train(plan, jobs=args.jobs),
        "evaluate": lambda: evaluate(plan, results=results),
        "report": lambda: report.main(
            ["--results", str(results), "--output_dir", str(args.output / "page"), "--title", plan.title, *compared]
        ),
    }
    for name, stage in stages.items():
        if args.only in (None, name):
            stage()
    print(f"study: OK ({args.output}; {time.perf_counter() - started:.0f} s)", flush=True)


if __name__ == "__main__":
    start(main)
