"""What does filling gaps cost: several gaps against one, and a filled token against one of `generate`?

    python examples/benchmarks/infill_decoding.py --model DIR

Floor: on one sequence a decoded token reads every weight once. k gaps advance together, so that k tokens a step read
the weights once as well; their cost beyond one gap is k - 1 tokens of attention and of small matrix products. The
times of one round are taken one after another, and ratios within a round, so that a busy machine disturbs both sides.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

from modeling_magnet import MagnetLlamaForCausalLM


def seconds(call: Callable[[], Any]) -> float:
    """Wall time of one call."""
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def make_text(model: Any, *, context_tokens: int, blanks: int) -> str:
    """Words of about so many tokens in all, with blanks spread evenly."""
    words = "The river runs through the old town and its bridges were built in the last century .".split()
    text = [words[index % len(words)] for index in range(context_tokens)]
    while len(model.tokenizer(" ".join(text))["input_ids"]) > context_tokens:
        text.pop()
    for blank in range(blanks, 0, -1):
        text.insert(blank * len(text) // (blanks + 1), "[blank]")
    return " ".join(text).replace(" [blank]", "[blank]")


def main() -> None:
    """Measure, print the medians, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--context_tokens", type=int, default=256)
    parser.add_argument("--fill_tokens", type=int, default=16)
    parser.add_argument("--decode_tokens", type=int, default=64, help="tokens of the comparison with generate")
    parser.add_argument("--rounds", type=int, default=30)
    args = parser.parse_args()
    torch.manual_seed(0)
    model = MagnetLlamaForCausalLM.from_pretrained(args.model).eval()
    texts = {k: make_text(model, context_tokens=args.context_tokens, blanks=k) for k in (1, 4)}
    prompt = model.tokenizer(texts[1].replace("[blank]", ""), return_tensors="pt")

    def fill(blanks: int, tokens: int) -> float:
        return seconds(lambda: model.infill_blanks(texts[blanks], max_new_tokens=tokens))

    def generate(tokens: int) -> float:
        options = {"min_new_tokens": tokens, "max_new_tokens": tokens, "do_sample": False, "pad_token_id": 0}
        return seconds(lambda: model.generate(**prompt, **options))

    for warm_up in (lambda: fill(4, 4), lambda: generate(4)):
        warm_up()
    rounds = []
    for _ in range(args.rounds):
        short, long = args.fill_tokens, args.fill_tokens + args.decode_tokens
        one, four = fill(1, short), fill(4, short)
        # The difference of a long and a short call is decoding alone: the prefill drops out.
        infill_token = (fill(1, long) - one) / args.decode_tokens
        generate_token = (generate(long) - generate(short)) / args.decode_tokens
        rounds.append(
            {
                "one_gap_s": one,
                "four_gaps_s": four,
                "infill_token_ms": 1e3 * infill_token,
                "generate_token_ms": 1e3 * generate_token,
                "four_to_one": four / one,
                "infill_to_generate": infill_token / generate_token,
            }
        )
    report: dict[str, Any] = {}
    for name in rounds[0]:
        values = sorted(one_round[name] for one_round in rounds)
        quartiles = statistics.quantiles(values, n=4)
        report[name] = {"median": quartiles[1], "quartiles": [quartiles[0], quartiles[2]]}
        print(f"{name:20s} median {quartiles[1]:8.4f}   quartiles {quartiles[0]:8.4f} .. {quartiles[2]:8.4f}")
    weights_gb = sum(p.numel() * p.element_size() for p in model.parameters()) / 1e9
    print(f"weights read per step: {weights_gb:.4f} GB")
    report |= {
        "arguments": {**vars(args), "model": Path(args.model).name},
        "weights_gb": weights_gb,
        "hardware": {"processor": platform.processor() or platform.machine(), "threads": torch.get_num_threads()},
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }
    file = Path(__file__).parent / "results" / "infill_decoding.json"
    file.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
