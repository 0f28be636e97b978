"""How much memory and time do Llamas of 7 to 70 billion parameters take on 1 to 64 GPUs? A model, not a measurement.

    python examples/benchmarks/scaling.py
    python examples/benchmarks/scaling.py --page examples/benchmarks/SCALING.md

Prints the tables of `SCALING.md`, or writes them into it. The formulas and what anchors them are in
`scaling_model.py` and on the page.
"""

import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

# A script finds its own folder alone.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from examples.benchmarks.measuring import PAPER_STEPS, SHAPES
from examples.benchmarks.scaling_model import Gpu, Shape, gathered_seconds, memory, operations
from examples.command_line import OneLineParser, start

MODELS = {
    "7B": Shape(*SHAPES["7b"]),
    "13B": Shape(5120, 13824, 40, 40, 40),
    "70B": Shape(8192, 28672, 80, 64, 8),
}
# Dense bfloat16 rates, memory and NVLink as their makers state them; 400 Gb/s a GPU between nodes.
GPUS = {
    "A100": Gpu(flops=312e12, memory=80e9, near=300e9, far=50e9),
    "H100": Gpu(flops=989e12, memory=80e9, near=450e9, far=50e9),
    "H200": Gpu(flops=989e12, memory=141e9, near=450e9, far=50e9),
}
PLACEMENTS = [(1, False), (8, False), (8, True), (16, True), (64, True)]
ROW, USABLE, UTILISATION = 512, 0.9, 0.5
# The paper's recipe: rows and pairs of a step; labels are a fifth of the tokens for MNTP and about as many for MSG, a
# pair is taken for two sentences of 50 tokens with their prompt.
STEPS, JOINT_STEPS = PAPER_STEPS
ROWS, PAIRS, PAIR_TOKENS, LABELS = 32, 64, 100, 0.4


def placed(gpus: int, *, sharded: bool) -> str:
    """A placement in words."""
    if gpus == 1:
        return "one GPU"
    return f"{gpus} GPUs, {'FSDP2' if sharded else 'DDP'}"


def memory_lines() -> Iterator[str]:
    """Bytes on a GPU at the paper's 32 rows, in all or on each."""
    yield "| model | placement | rows a GPU | weights | adapters | activations | all | all with checkpointing |"
    yield "|---|---|---|---|---|---|---|---|"
    for name, shape in MODELS.items():
        for gpus, sharded in PLACEMENTS:
            rows = max(1, ROWS // gpus)
            plain = memory(shape, rows=rows, row=ROW, gpus=gpus, sharded=sharded)
            less = memory(shape, rows=rows, row=ROW, gpus=gpus, sharded=sharded, checkpointing=True)
            figures = [plain.weights, plain.adapters, plain.activations, plain.total, less.total]
            told = " | ".join(f"{figure / 1e9:.1f}" for figure in figures)
            yield f"| {name} | {placed(gpus, sharded=sharded)} | {rows} | {told} |"


def rows_lines() -> Iterator[str]:
    """The most rows that fit on a GPU."""

    def told(shape: Shape, gpu: Gpu, *, gpus: int, sharded: bool) -> str:
        rows, more = (_most_rows(shape, gpu, gpus=gpus, sharded=sharded, checkpointing=c) for c in (False, True))
        return f"{rows} ({more})" if more else "does not fit"

    return _by_gpu(told, PLACEMENTS)


def _by_gpu(told: Callable[..., str], placements: Sequence[tuple[int, bool]]) -> Iterator[str]:
    """A table of rows with a column for each kind of GPU."""
    yield f"| model | placement | {' | '.join(f'{gpu}: rows' for gpu in GPUS)} |"
    yield "|---|---|" + "---|" * len(GPUS)
    for name, shape in MODELS.items():
        for gpus, sharded in placements:
            cells = [told(shape, gpu, gpus=gpus, sharded=sharded) for gpu in GPUS.values()]
            yield f"| {name} | {placed(gpus, sharded=sharded)} | {' | '.join(cells)} |"


def _most_rows(shape: Shape, gpu: Gpu, *, gpus: int, sharded: bool, checkpointing: bool) -> int:
    """Rows that fit into what is usable of a GPU's memory; memory grows with rows in a straight line."""
    none, one = (
        memory(shape, rows=rows, row=ROW, gpus=gpus, sharded=sharded, checkpointing=checkpointing).total
        for rows in (0, 1)
    )
    return max(0, int((USABLE * gpu.memory - none) // (one - none)))


def recipe_operations(shape: Shape, *, checkpointing: bool) -> float:
    """Operations of the paper's whole recipe."""
    tokens = ROWS * ROW
    rows = operations(shape, tokens=tokens, row=ROW, labels=LABELS * tokens, checkpointing=checkpointing)
    pairs = operations(shape, tokens=PAIRS * PAIR_TOKENS, row=PAIR_TOKENS / 2, checkpointing=checkpointing)
    return (STEPS + JOINT_STEPS) * rows + JOINT_STEPS * pairs


def time_lines() -> Iterator[str]:
    """Hours of the paper's recipe, where it fits: the arithmetic, and where weights are shared their arrival."""
    yield f"| model | placement | rows a GPU | checkpointing | {' | '.join(f'{gpu}: hours' for gpu in GPUS)} |"
    yield "|---|---|---|---|" + "---|" * len(GPUS)
    for name, shape in MODELS.items():
        for gpus, sharded in PLACEMENTS:
            rows = ROWS // gpus
            if rows == 0:
                continue
            for checkpointing in (False, True):
                cells = [
                    _hours(shape, gpu, rows=rows, gpus=gpus, sharded=sharded, checkpointing=checkpointing)
                    for gpu in GPUS.values()
                ]
                again = "yes" if checkpointing else "no"
                yield f"| {name} | {placed(gpus, sharded=sharded)} | {rows} | {again} | {' | '.join(cells)} |"


def _hours(shape: Shape, gpu: Gpu, *, rows: int, gpus: int, sharded: bool, checkpointing: bool) -> str:
    """Hours, with a star where the links decide."""
    needed = memory(shape, rows=rows, row=ROW, gpus=gpus, sharded=sharded, checkpointing=checkpointing).total
    if needed > USABLE * gpu.memory:
        return "does not fit"
    computing = recipe_operations(shape, checkpointing=checkpointing) / gpus / (UTILISATION * gpu.flops)
    arriving = (STEPS + 2 * JOINT_STEPS) * gathered_seconds(shape, gpu, gpus=gpus) if sharded else 0.0
    return f"{max(computing, arriving) / 3600:.2f}{' *' if arriving > computing else ''}"


def hiding_lines() -> Iterator[str]:
    """Rows a GPU from which sharded weights arrive while others are computed with."""

    def told(shape: Shape, gpu: Gpu, *, gpus: int, sharded: bool) -> str:
        of_row = operations(shape, tokens=ROW, row=ROW, labels=LABELS * ROW)
        return f"{gathered_seconds(shape, gpu, gpus=gpus) * UTILISATION * gpu.flops / of_row:.1f}"

    return _by_gpu(told, [(gpus, sharded) for gpus, sharded in PLACEMENTS if sharded])


TABLES = {"memory": memory_lines, "rows": rows_lines, "time": time_lines, "hiding": hiding_lines}


def with_tables(page: str) -> str:
    """A page with each table written between its marks, `<!-- NAME -->` and `<!-- / -->`.

    Raises:
        ValueError: a table that the page has no marks for.
    """
    for name, lines in TABLES.items():
        marks = re.compile(rf"(<!-- {name} -->\n).*?(<!-- / -->)", re.DOTALL)
        if not marks.search(page):
            raise ValueError(f"The page has no marks `<!-- {name} -->` and `<!-- / -->` for the table {name!r}.")
        table = "".join(f"{line}\n" for line in lines())
        page = marks.sub(lambda found, table=table: f"{found[1]}{table}{found[2]}", page, count=1)  # type: ignore[misc]
    return page


def main(arguments: list[str] | None = None) -> None:
    """Print, or write into the page."""
    parser = OneLineParser(description=__doc__)
    parser.add_argument("--page", type=Path, help="file whose tables are written anew")
    args = parser.parse_args(arguments)
    if args.page is not None:
        args.page.write_text(with_tables(args.page.read_text(encoding="utf-8")), encoding="utf-8")
        print(f"scaling: OK ({args.page})")
        return
    for name, lines in TABLES.items():
        print(f"{name}\n" + "\n".join(lines()) + "\n")
    print("scaling: OK")


if __name__ == "__main__":
    start(main)
