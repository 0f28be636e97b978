"""Provide what the benchmarks share: random Llamas of known sizes, timing, and facts about the machine."""

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

from examples.command_line import at_least
from examples.models import open_magnet
from trainer.files import write_json

# Llamas with random weights: hidden size, MLP width, layers, heads, key-value heads.
SHAPES = {"1b": (2048, 5632, 22, 32, 4), "7b": (4096, 11008, 32, 32, 32)}
# Steps of the paper's recipe without pairs and with them (Khosla et al. 2025, training details).
PAPER_STEPS = (3400, 800)


def random_llama(shape: str, tokenizer: Any, folder: Path, *, dtype: torch.dtype) -> str:
    """Save a Llama of a known size with reproducible random weights and return its folder."""
    hidden_size, intermediate_size, layers, heads, key_value_heads = SHAPES[shape]
    config = transformers.LlamaConfig(
        vocab_size=max(32_000, len(tokenizer)),
        hidden_size=hidden_size,
        intermediate_size=intermediate_size,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_value_heads,
        max_position_embeddings=4096,
        dtype=dtype,
    )
    with torch.random.fork_rng(), torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype, trust_remote_code=False)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(str(folder))
    del model
    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # the caller may start other processes on the same device
    return str(folder)


def open_shaped(args: argparse.Namespace, folder: str) -> Any:
    """Open the named model, or random weights of the requested shape, with its tokenizer."""
    path = args.model
    if args.shape is not None:
        tokenizer = transformers.AutoTokenizer.from_pretrained(args.model, trust_remote_code=False)
        path = random_llama(args.shape, tokenizer, Path(folder) / "random", dtype=getattr(torch, args.dtype))
    options = {"attn_implementation": args.attn_implementation} if hasattr(args, "attn_implementation") else {}
    model = open_magnet(path, dtype=args.dtype, device=args.device, **options)
    assert model.tokenizer is not None  # read before its folder is removed
    return model


def add_results(parser: argparse.ArgumentParser, *, name: str, rounds: int) -> None:
    """Add the options of timing and of the report that `write_report` writes."""
    parser.add_argument("--rounds", type=at_least(), default=rounds, help="rounds that are timed")
    parser.add_argument("--name", default=name, help="name of the JSON file")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results", help="output folder")


def write_report(args: argparse.Namespace, report: dict[str, Any], *, script: str) -> None:
    """Write the results of a benchmark and print its last line."""
    write_json(args.results / f"{args.name}.json", report)
    print(f"{script}: OK ({args.name}.json)")


def seconds(call: Callable[[], Any], device: torch.device) -> float:
    """Measure the time of one call."""
    started = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def quartiles(values: list[float]) -> tuple[float, float, float]:
    """Return the lower quartile, the median and the upper quartile; of a single value, that value."""
    low, middle, high = statistics.quantiles(values, n=4) if len(values) > 1 else values * 3
    return low, middle, high


def matrix_rate(dtype: torch.dtype, device: torch.device) -> float:
    """Return the operations per second of one large matrix product, the best of a few runs."""
    size = 2048 if device.type == "cpu" else 8192
    left, right = torch.randn(2, size, size, device=device).to(dtype)
    best = min(seconds(lambda: left @ right, device) for _ in range(6))
    return 2 * size**3 / best


def copy_rate(device: torch.device) -> float:
    """Return the bytes per second that a copy of a large tensor reads and writes, the best of a few runs."""
    source = torch.zeros(2**26 if device.type == "cpu" else 2**31, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    best = min(seconds(lambda: target.copy_(source), device) for _ in range(6))
    return 2 * source.numel() / best


def machine(device: torch.device, *, dtype: str) -> dict[str, dict[str, Any]]:
    """Return hardware and versions for the reports."""
    name = torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "hardware": {"device": name, "threads": torch.get_num_threads(), "dtype": dtype},
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }
