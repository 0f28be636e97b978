"""Compare the speed of `encode` with sentence-transformers on the same weights and texts, and with the arithmetic.

    python examples/benchmarks/encoding_throughput.py --model DIR --texts FILE
    python examples/benchmarks/encoding_throughput.py --model DIR --texts FILE --shape 7b --device cuda \
        --dtype bfloat16 --attn_implementation flex_attention --limit 20000

The floor: every real token costs two operations per weight outside the embedding, and attention 4 x length x width per
layer; padding and everything else come on top. The floor's time is taken at the rate of one large matrix product on
the same machine in the same run. Vectors are compared before anything is timed; rounds alternate between the systems.
"""

import argparse
import re
import statistics
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import torch

from examples.benchmarks.measuring import (
    SHAPES,
    add_results,
    machine,
    matrix_rate,
    open_shaped,
    quartiles,
    seconds,
    write_report,
)
from examples.command_line import (
    OneLineParser,
    add_device,
    add_dtype,
    add_model,
    at_least,
    choose_device,
    require_extra,
    start,
)
from modeling_magnet.tokenization_magnet import tokenize_texts
from trainer import load_texts

THEIR_BATCH_SIZES = (4, 8, 16, 32, 64, 128)
DEFAULT_BATCH_SIZE = 32


def sample_texts(file: str, *, number: int, seed: int) -> list[str]:
    """Draw texts in random order: half of them sentences, half paragraphs."""
    paragraphs = [line.strip() for text in load_texts(file)["text"] for line in text.split("\n")]
    paragraphs = [line for line in paragraphs if len(re.findall(r"[.!?] [A-Z]", line)) >= 1]
    draw = np.random.default_rng(seed)
    draw.shuffle(paragraphs)
    sentences = [draw.choice(re.split(r"(?<=[.!?]) (?=[A-Z])", line)) for line in paragraphs[: number // 2]]
    mixed = [str(text) for text in sentences] + paragraphs[number // 2 : number]
    draw.shuffle(mixed)
    return mixed


def operations(lengths: list[int], config: Any) -> float:
    """Count the floating-point operations of one forward over rows of these lengths, without the LM head."""
    width, heads = config.hidden_size, config.num_attention_heads
    attention = width * config.head_dim * (2 * heads + 2 * config.num_key_value_heads)
    weights = config.num_hidden_layers * (attention + 3 * width * config.intermediate_size)
    scores = 4 * heads * config.head_dim * config.num_hidden_layers
    return float(sum(2 * weights * length + scores * length * length for length in lengths))


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = OneLineParser(description=__doc__)
    add_model(parser, help="directory or Hub id of a plain decoder or a MAGNET checkpoint")
    parser.add_argument("--texts", required=True, help="texts with paragraphs")
    parser.add_argument("--limit", type=at_least(), default=2000, help="texts to embed")
    parser.add_argument(
        "--shape", choices=list(SHAPES), help="random weights of this size instead, with its tokenizer"
    )
    parser.add_argument("--attn_implementation", default="sdpa", help="back-end of `encode`")
    add_device(parser)
    add_dtype(parser)
    parser.add_argument(
        "--batch_sizes", type=at_least(), nargs="+", default=THEIR_BATCH_SIZES, help="those of the library"
    )
    add_results(parser, name="encoding_throughput", rounds=5)
    args = parser.parse_args(arguments)
    require_extra("eval", "sentence_transformers")
    args.device = choose_device(args.device)
    return args


def open_both(args: argparse.Namespace) -> tuple[Any, Any]:
    """Open the same weights with this library and with sentence-transformers."""
    from sentence_transformers import SentenceTransformer

    dtype = getattr(torch, args.dtype)
    with tempfile.TemporaryDirectory() as folder:
        model = open_shaped(args, folder)
        model.save_pretrained(Path(folder) / "magnet")
        embedder = SentenceTransformer(str(Path(folder) / "magnet"), device=args.device, model_kwargs={"dtype": dtype})
    return model, embedder


def named_calls(model: Any, embedder: Any, texts: list[str], args: argparse.Namespace) -> dict[str, Callable[[], Any]]:
    """Return the timed calls by name."""
    systems: dict[str, Callable[[], Any]] = {"encode": partial(model.encode, texts)}
    for size in args.batch_sizes:
        name = f"sentence-transformers, {size}"
        systems[name] = partial(embedder.encode, texts, batch_size=size, show_progress_bar=False)
    return systems


def summary(times: dict[str, list[float]], tokens: int, *, floor: float, rate: float) -> dict[str, Any]:
    """Print the table and return the contents of the report."""
    medians = {name: statistics.median(values) for name, values in times.items()}
    best = min((name for name in medians if name.startswith("sentence-transformers")), key=lambda name: medians[name])
    print(f"\n{'':28s}{'seconds':>9s}{'quartiles':>16s}{'tokens/s':>11s}{'of the floor':>14s}{'encode is':>11s}")
    for name, values in times.items():
        low, _, high = quartiles(values)
        print(
            f"{name:28s}{medians[name]:9.2f}{f'{low:.2f} - {high:.2f}':>16s}{tokens / medians[name]:11,.0f}"
            f"{floor / rate / medians[name]:14.0%}{medians[name] / medians['encode']:10.2f}x"
        )
    default = f"sentence-transformers, {DEFAULT_BATCH_SIZE}"
    ratios = {"ratio_default": medians[default] / medians["encode"], "ratio_best": medians[best] / medians["encode"]}
    print(
        f"\nagainst the default {ratios['ratio_default']:.2f}x, against the best, {best}, {ratios['ratio_best']:.2f}x"
    )
    return {"seconds": times, **ratios, "best": best, "tokens": tokens}


def main(arguments: list[str] | None = None) -> None:
    """Compare the vectors, time the calls, print the table, and write the report."""
    args = parse_arguments(arguments)
    device, dtype = torch.device(args.device), getattr(torch, args.dtype)
    texts = sample_texts(args.texts, number=args.limit, seed=0)
    model, embedder = open_both(args)
    prompt = model.magnet_settings.prompts[model.magnet_settings.default_prompt_name]
    rows = tokenize_texts(model.tokenizer, texts, prompt=prompt, max_length=model.config.max_position_embeddings)
    lengths = [len(row) for row in rows.input_ids]
    floor, rate = operations(lengths, model.config), matrix_rate(dtype, device)
    print(
        f"{len(texts)} texts, {sum(lengths):,} tokens with prompts, lengths {np.percentile(lengths, [5, 50, 95])}; "
        f"{floor / 1e9:.0f} GFLOP, {rate / 1e9:.0f} GFLOP/s: floor {floor / rate:.2f} s"
    )
    ours, theirs = (encoder.encode(texts, normalize_embeddings=True) for encoder in (model, embedder))
    difference = np.abs(ours - theirs).max()
    print(f"largest difference of unit vectors: {difference:.1e}")
    if difference > (limit := 1e-5 if dtype == torch.float32 else 5e-2):
        raise SystemExit(f"The vectors differ by more than {limit:g}, so the times are not comparable.")

    systems = named_calls(model, embedder, texts, args)
    times: dict[str, list[float]] = {name: [] for name in systems}
    for _ in range(args.rounds):
        for name, call in systems.items():
            times[name].append(seconds(call, device))
    report = {
        **summary(times, sum(lengths), floor=floor, rate=rate),
        "texts": len(texts),
        "floor_flop": floor,
        "matrix_flop_per_second": rate,
        "largest_difference": float(difference),
        **machine(device, dtype=args.dtype),
    }
    write_report(args, report, script="encoding_throughput")


if __name__ == "__main__":
    start(main)
