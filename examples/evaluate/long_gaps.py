"""Long gaps at once or in chunks: does a chunk gain from seeing what was filled before it?

    python examples/evaluate/long_gaps.py --magnet DIR --judge DIR --texts FILE --output long.json

Gaps of 128 tokens on held-out text (appendix E), filled greedily and by sampling, at once and in chunks. A fill is
judged by the perplexity of the text behind it to a causal model that has read prefix and fill, by its own perplexity
to that model, and by its repetitions.
"""

import argparse
import math
import sys
from pathlib import Path
from typing import Any

# A script finds its own folder alone.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from tqdm import tqdm

from examples.evaluate.held_out_gaps import continuation_perplexity, draw_gaps
from examples.evaluate.results import write_results
from modeling_magnet import AutoMagnetForCausalLM
from trainer.metrics import perplexity, repetition_n
from trainer.prompted_infilling import PromptedInfiller

CHUNKS = (128, 64, 32, 16, 8)
PREFIX_TOKENS, SUFFIX_TOKENS = 192, 128
SAMPLING: dict[str, Any] = {"do_sample": True, "top_p": 0.9, "temperature": 0.8, "top_k": 0}


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Fill, judge, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--magnet", required=True, help="the adapted model")
    parser.add_argument("--judge", required=True, help="a causal model that reads fills and what is behind them")
    parser.add_argument("--texts", required=True, help="held-out texts")
    parser.add_argument("--number", type=int, default=200, help="gaps")
    parser.add_argument("--gap_tokens", type=int, default=128, help="tokens of a gap")
    parser.add_argument("--seed", type=int, default=0, help="draws texts, places and samples")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    args = parser.parse_args(arguments)
    magnet, judge = (AutoMagnetForCausalLM.from_pretrained(path).eval() for path in (args.magnet, args.judge))
    gaps = draw_gaps(
        args.texts,
        magnet.tokenizer,
        lengths=[args.gap_tokens] * args.number,
        prefix_tokens=PREFIX_TOKENS,
        suffix_tokens=SUFFIX_TOKENS,
        seed=args.seed,
    )
    prefixes, suffixes = [gap.prefix for gap in gaps], [gap.suffix for gap in gaps]
    reader = PromptedInfiller(judge, judge.tokenizer)
    systems: dict[str, list[str]] = {"what stood there": [gap.truth for gap in gaps], "nothing": [""] * len(gaps)}
    for kind, options in (("greedy", {}), ("sampled", SAMPLING)):
        torch.manual_seed(args.seed)
        systems[f"judge, left to right, {kind}"] = reader.infill(
            prefixes, suffixes, max_new_tokens=args.gap_tokens, **options
        )
        for chunk in tqdm([chunk for chunk in CHUNKS if chunk <= args.gap_tokens], desc=kind):
            torch.manual_seed(args.seed)
            name = "at once" if chunk == args.gap_tokens else f"chunks of {chunk}"
            systems[f"{name}, {kind}"] = magnet.infill(
                prefixes, suffixes, max_new_tokens=args.gap_tokens, chunk_size=chunk, **options
            )
    report: dict[str, Any] = {"gaps": len(gaps), "gap_tokens": args.gap_tokens, "fills": {}}
    print(f"\n{'fills':32s}{'perplexity behind':>18s}{'of the fill':>14s}{'Rep-4':>9s}")
    for name, fills in systems.items():
        scored = (
            [one[0] for one in reader.score_infill(prefixes, [[fill] for fill in fills], suffixes)]
            if any(fills)
            else []
        )
        total, tokens = -sum(one.logprob for one in scored), sum(len(one.token_ids) for one in scored)
        row = report["fills"][name] = {
            "continuation_perplexity": continuation_perplexity(judge, judge.tokenizer, gaps, fills),
            "fill_perplexity": perplexity(total, tokens) if tokens else None,
            "rep_4": repetition_n(fills),
        }
        own = math.nan if row["fill_perplexity"] is None else row["fill_perplexity"]
        print(f"{name:32s}{row['continuation_perplexity']:18.2f}{own:14.2f}{row['rep_4']:9.3f}")
    means = {
        kind: {name: row for name, row in report["fills"].items() if name.endswith(kind)}
        for kind in ("greedy", "sampled")
    }
    for kind, rows in means.items():
        best = min((n for n in rows if not n.startswith("judge")), key=lambda n: rows[n]["continuation_perplexity"])
        print(f"{kind}: the text behind is read best after {best}")
    write_results(args.output, report, models={"magnet": args.magnet, "judge": args.judge})
    print(f"\nlong_gaps: OK ({len(gaps)} gaps of {args.gap_tokens} tokens)")
    return report


if __name__ == "__main__":
    main()
