"""How much memory does a joint training step take, against the same losses written naively, as the vocabulary grows?

And against its halves: the trainer back-propagates the token losses before the contrastive forward.

    python examples/benchmarks/training_memory.py --model DIR --texts FILES --pairs FILE

The floor: the logits of B rows of S tokens are B x S x V numbers, and with their logarithms and gradients a naive step
holds several times that; labels of a tenth of the positions need a tenth of it, a chunk at a time next to nothing. Of
every tensor of a step the bytes are counted as it is made and let go; weights and optimizer, the same for both, are
not. Neither is what a kernel uses inside.
"""

import sys
import tempfile
import weakref
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from examples.benchmarks.measuring import machine
from examples.benchmarks.training_systems import (
    JOINT,
    NAIVE,
    PAIRS,
    PHASES,
    ROWS,
    add_arguments,
    collate,
    loss_of,
    make_trainer,
    read_data,
    widened,
)
from examples.command_line import OneLineParser, add_model, at_least, start
from examples.models import open_magnet
from trainer import LoraArguments, apply_lora, texts_to_blocks
from trainer.whole_files import write_json

MIB = 2**20


class PeakBytes(TorchDispatchMode):
    """Counts the bytes of the tensors that are made inside, and remembers when there were most."""

    def __init__(self) -> None:
        super().__init__()
        self.held = self.most = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for storage in _storages((args, kwargs)):
            if storage._cdata not in self._known:  # from outside: weights and the batch
                self._known.add(storage._cdata)
                weakref.finalize(storage, self._let_go, storage._cdata, 0)  # its address may be used again
        result = func(*args, **(kwargs or {}))
        for storage in _storages(result):
            if storage._cdata not in self._known:
                self._known.add(storage._cdata)
                self.held += storage.nbytes()
                weakref.finalize(storage, self._let_go, storage._cdata, storage.nbytes())
        self.most = max(self.most, self.held)
        return result

    def _let_go(self, key: int, size: int) -> None:
        self.held -= size
        self._known.discard(key)


def _storages(values: Any) -> list[torch.UntypedStorage]:
    """Return where the tensors among some values have their numbers."""
    return [value.untyped_storage() for value in tree_leaves(values) if isinstance(value, torch.Tensor)]


def peak(trainer: Any, batch: dict[str, Any], *, system: str, autocast: bool) -> int:
    """Return the largest number of bytes of the tensors that a step makes."""
    with PeakBytes() as counted:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            loss = loss_of(system, trainer, batch)
        loss.backward()
    trainer.model.zero_grad(set_to_none=True)
    return counted.most


def peak_of_step(trainer: Any, batch: dict[str, Any], *, kind: str) -> int:
    """Return the largest number of bytes of a whole step's tensors, gradients included."""
    trainer.state.global_step = list(PHASES).index(kind)
    given = {name: value for name, value in batch.items() if name != "pairs" or kind != ROWS}
    with PeakBytes() as counted:
        trainer.training_step(trainer.model, given)
    trainer.model.zero_grad(set_to_none=True)
    return counted.most


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Count, print, write."""
    parser = OneLineParser(description=__doc__)
    add_model(parser, help="directory or Hub id of a plain Llama, whose shape and tokenizer are used")
    parser.add_argument(
        "--vocab_sizes", type=at_least(), nargs="+", default=[8192, 32_000, 128_000], help="vocabularies"
    )
    parser.add_argument("--name", default="training_memory", help="name of the JSON file")
    add_arguments(parser, batch_size=4, pairs_a_step=16)
    args = parser.parse_args(arguments)
    args.device = "cpu"
    torch.manual_seed(0)
    texts, pairs = read_data(args)
    rows = {}
    print(
        f"{'vocabulary':>10s}{'joint, MiB':>12s}{'naive, MiB':>12s}{'share':>8s}"
        f"{'step: tokens':>12s}{'pairs':>12s}{'both':>12s}{'over':>8s}"
    )
    for vocab_size in args.vocab_sizes:
        with tempfile.TemporaryDirectory() as folder:
            path = widened(args.model, vocab_size=vocab_size, folder=folder)
            model = open_magnet(path)
            adapted = apply_lora(model, LoraArguments(lora_r=args.lora_r))
            blocks = texts_to_blocks(texts, model.tokenizer, max_length=args.max_length)
            trainer = make_trainer(adapted, args, blocks, pairs, folder)
        trainer.model.train()
        batch = collate(trainer, blocks, kind=JOINT)
        held = {name: peak(trainer, batch, system=name, autocast=args.autocast) for name in (JOINT, NAIVE)}
        steps = {kind: peak_of_step(trainer, batch, kind=kind) for kind in (ROWS, PAIRS, JOINT)}
        over = steps[JOINT] / max(steps[ROWS], steps[PAIRS])
        rows[vocab_size] = {**held, "share": held[JOINT] / held[NAIVE], "steps": steps, "over the larger half": over}
        print(
            f"{vocab_size:10,}{held[JOINT] / MIB:12,.0f}{held[NAIVE] / MIB:12,.0f}{rows[vocab_size]['share']:8.3f}"
            f"{''.join(f'{size / MIB:12,.0f}' for size in steps.values())}{over:8.3f}",
            flush=True,
        )
    report = {
        "bytes": rows,
        "settings": {name: getattr(args, name) for name in ("lora_r", "batch_size", "max_length", "pairs_a_step")},
        **machine(torch.device("cpu"), dtype="bfloat16 products" if args.autocast else "float32"),
    }
    file = args.results / f"{args.name}.json"
    write_json(file, report)
    print(f"training_memory: OK ({file.name})")
    return report


if __name__ == "__main__":
    start(main)
