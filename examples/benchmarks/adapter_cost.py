"""What does an adapter cost that is bound to modes instead of merged?

    python examples/benchmarks/adapter_cost.py --model LLAMA --texts corpus.jsonl.xz --output result.json

The floor: an adapter of rank r on a layer of n inputs and m outputs adds r (n + m) products to n m. What is above it
is memory traffic and the many small products. Merged, there is no adapter at all.
"""

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from peft import LoraConfig

from examples.benchmarks.measuring import machine
from examples.command_line import OneLineParser, add_device, add_dtype, add_model, also, choose_device, start
from examples.evaluate.results import write_results
from examples.models import open_magnet
from trainer import load_texts
from trainer.lora import adapter_cost

BINDINGS = {"always on": None, "bound": ["bidirectional", "infill"]}


def extra_products(model: Any) -> float:
    """Products that the adapter adds to those of the layers it is on, as a share."""
    layers = [module for module in model.modules() if hasattr(module, "lora_A")]
    added = sum(p.numel() for layer in layers for p in (*layer.lora_A.parameters(), *layer.lora_B.parameters()))
    return added / sum(layer.get_base_layer().weight.numel() for layer in layers)


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Measure, print a table and write the result."""
    parser = OneLineParser(description=__doc__)
    add_model(parser, help="directory or Hub id of a plain decoder or a MAGNET checkpoint")
    parser.add_argument("--texts", nargs="+", required=True, help="files or a Hub id of texts")
    number = parser.add_argument("--number", type=int, default=64, help="texts to embed")
    also(parser, number, "--num_texts")
    rank = parser.add_argument("--lora_r", type=int, default=16, help="rank of the adapter")
    also(parser, rank, "--rank")
    parser.add_argument("--rounds", type=int, default=9, help="rounds that are timed")
    add_device(parser)
    add_dtype(parser)
    parser.add_argument("--output", type=Path, help="JSON file to write")
    args = parser.parse_args(arguments)
    if min(args.number, args.lora_r, args.rounds) < 1:
        parser.error("`--number`, `--lora_r` and `--rounds` are at least 1.")
    source = args.texts[0] if len(args.texts) == 1 else args.texts
    texts = [text[:400] for text in load_texts(source, limit=args.number)["text"]]
    device = torch.device(choose_device(args.device))
    model = open_magnet(args.model, dtype=args.dtype, device=str(device))
    model.add_adapter(LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", r=args.lora_r))
    share = extra_products(model)
    rows = {}
    print(f"{'adapter':10}" + "".join(f"{name:>12}" for name in ("encode", "infill", "generate")))
    for name, modes in BINDINGS.items():
        model.set_adapter_modes(modes)
        rows[name] = adapter_cost(model, texts=texts, rounds=args.rounds)
        print(f"{name:10}" + "".join(f"{ratio:11.2f}x" for ratio in rows[name].values()), flush=True)
    print(f"floor of encode and infill: {1 + share:.2f}x; of generate, bound: 1.00x")
    result = {
        **machine(device, dtype=args.dtype),
        "settings": {"rank": args.lora_r, "rounds": args.rounds, "num_texts": len(texts)},
        "times_over_merged": rows,
        "products_over_merged": 1 + share,
    }
    write_results(args.output, result, models={"base": args.model})
    print(f"adapter_cost: OK ({args.output or 'not written'})", flush=True)
    return result


if __name__ == "__main__":
    start(main)
