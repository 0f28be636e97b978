"""How long is a gap? The length a model finds against the true one, on held-out text.

    python examples/evaluate/gap_lengths.py --magnet DIR --judge DIR --texts FILE --output lengths.json
    python examples/evaluate/gap_lengths.py --magnet DIR --end_of_span DIR --exact DIR --judge DIR --texts FILE

Each gap held 4 to 48 tokens. The candidates are filled greedily and ranked by parts of the score and all of it (see
`infilling_magnet`); the true length is one of them, so a guess finds it at rank (candidates + 1) / 2 on average. What
is filled in is judged by the text behind it: its perplexity to a causal model that has read the fill, and by the words
it shares with what stood there. `--end_of_span` is a model that was taught to end its fills, `--exact` its control,
which was trained as long without. The judge should be the unadapted base.
"""

import sys
from pathlib import Path
from typing import Any

# A script finds its own folder alone.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
from tqdm import tqdm

from examples.command_line import OneLineParser, add_device, at_least, choose_device, start
from examples.evaluate.held_out_gaps import HeldOutGap, continuation_perplexity, draw_gaps, word_overlap
from examples.evaluate.results import write_results
from examples.models import open_magnet
from modeling_magnet.spans_magnet import continuation_ids
from trainer.prompted_infilling import PromptedInfiller

CANDIDATES = tuple(range(4, 49, 4))
PREFIX_TOKENS, SUFFIX_TOKENS = 128, 64


def score_tables(model: Any, gaps: list[HeldOutGap]) -> tuple[dict[str, np.ndarray], list[list[str]]]:
    """Scores `(gaps, candidates)` by each rule, and the fills of each gap by candidate."""
    prefixes, suffixes = [gap.prefix for gap in gaps], [gap.suffix for gap in gaps]
    output = model.infill(prefixes, suffixes, num_tokens=list(CANDIDATES), chunk_size=CANDIDATES[-1],
                          return_dict_in_generate=True)  # fmt: skip
    both = np.array([[gap_scores[0][length] for length in CANDIDATES] for gap_scores in output.length_scores])
    means, totals, fills = [], [], []
    for length in tqdm(CANDIDATES, desc="Lengths"):
        one = model.infill(prefixes, suffixes, max_new_tokens=length, chunk_size=length, return_dict_in_generate=True)
        means.append([gaps_of[0][0].mean_logprob for gaps_of in one.fills])
        totals.append([gaps_of[0][0].logprob for gaps_of in one.fills])
        fills.append([gaps_of[0][0].text for gaps_of in one.fills])
    mean = np.array(means).T
    tables = {
        "fill, total": np.array(totals).T,
        "fill, mean": mean,
        "join, mean": both - mean,
        "fill + join, means (used)": both,
    }
    return tables, [list(column) for column in zip(*fills, strict=True)]


def rank_report(table: np.ndarray, truths: list[int]) -> dict[str, float]:
    """How high the true length ranks, and how far the chosen one is off."""
    own = np.array([CANDIDATES.index(length) for length in truths])
    ranks = 1 + (table > table[np.arange(len(own)), own][:, None]).sum(1)
    chosen = np.array(CANDIDATES)[table.argmax(1)]
    return {
        "mean_rank": float(ranks.mean()),
        "first": float((ranks == 1).mean()),
        "within_4": float((abs(chosen - np.array(truths)) <= 4).mean()),
        "mean_error": float(abs(chosen - np.array(truths)).mean()),
        "mean_chosen": float(chosen.mean()),
    }


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Fill, rank, judge, print, write."""
    parser = OneLineParser(description=__doc__)
    parser.add_argument("--magnet", required=True, help="the adapted model")
    parser.add_argument("--end_of_span", help="a model that was taught to end its fills")
    parser.add_argument("--exact", help="its control, trained as long without")
    parser.add_argument("--judge", required=True, help="a causal model that reads on behind the fills")
    parser.add_argument("--texts", required=True, help="held-out texts")
    parser.add_argument("--number", type=at_least(), default=240, help="gaps")
    parser.add_argument("--seed", type=at_least(0), default=0, help="draws texts, places and lengths")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    add_device(parser)
    args = parser.parse_args(arguments)
    device = choose_device(args.device)
    paths = {name: getattr(args, name) for name in ("magnet", "end_of_span", "exact", "judge")}
    models: dict[str, Any] = {name: open_magnet(path, device=device) for name, path in paths.items() if path}
    magnet, judge = models["magnet"], models["judge"]
    draw = np.random.default_rng(args.seed)
    truths = [int(length) for length in draw.choice(CANDIDATES, args.number)]
    gaps = draw_gaps(
        args.texts,
        magnet.tokenizer,
        lengths=truths,
        prefix_tokens=PREFIX_TOKENS,
        suffix_tokens=SUFFIX_TOKENS,
        seed=args.seed,
    )
    prefixes, suffixes = [gap.prefix for gap in gaps], [gap.suffix for gap in gaps]
    tables, by_candidate = score_tables(magnet, gaps)
    report: dict[str, Any] = {"gaps": len(gaps), "candidates": CANDIDATES, "ranks": {}, "fills": {}}
    print(f"\n{'rule':28s}{'mean rank':>10s}{'first':>8s}{'within 4':>10s}{'error':>8s}{'chosen':>8s}")
    guess = np.random.default_rng(args.seed).random((len(gaps), len(CANDIDATES)))
    for name, table in {**tables, "a guess": guess}.items():
        ranks = report["ranks"][name] = rank_report(table, truths)
        print(
            f"{name:28s}{ranks['mean_rank']:10.2f}{ranks['first']:8.1%}{ranks['within_4']:10.1%}"
            f"{ranks['mean_error']:8.1f}{ranks['mean_chosen']:8.1f}"
        )

    def exact(model: Any, **options: Any) -> list[str]:
        """Fills of the true lengths."""
        fills = [""] * len(gaps)
        for length in CANDIDATES:
            own = [index for index, truth in enumerate(truths) if truth == length]
            texts = model.infill([prefixes[i] for i in own], [suffixes[i] for i in own], max_new_tokens=length,
                                 chunk_size=length, **options)  # fmt: skip
            for index, fill in zip(own, texts, strict=True):
                fills[index] = fill
        return fills

    used = tables["fill + join, means (used)"].argmax(1)
    read_on = PromptedInfiller(judge, judge.tokenizer)
    systems = {
        "what stood there": [gap.truth for gap in gaps],
        "true length": exact(magnet),
        "length found": [fills[choice] for fills, choice in zip(by_candidate, used, strict=True)],
        "length guessed": [fills[choice] for fills, choice in zip(by_candidate, guess.argmax(1), strict=True)],
        "nothing": [""] * len(gaps),
        "judge, left to right, true length": [
            read_on.infill(gap.prefix, gap.suffix, max_new_tokens=gap.length) for gap in gaps
        ],
    }
    if "exact" in models:
        systems["control, true length"] = exact(models["exact"])
    if "end_of_span" in models:
        taught = models["end_of_span"]
        systems["taught, true length"] = exact(taught, stop_at_end_of_span=False)
        multiple = taught.magnet_settings.end_of_span
        limit = -(-CANDIDATES[-1] // multiple) * multiple
        systems["taught, ends by itself"] = taught.infill(prefixes, suffixes, max_new_tokens=limit, chunk_size=limit)
        systems["taught, gap found"] = taught.infill(prefixes, suffixes, num_tokens="auto", chunk_size=limit)
    print(f"\n{'fills':36s}{'perplexity behind':>18s}{'word F1':>9s}{'length error':>14s}{'length':>8s}")
    for name, fills in systems.items():
        sizes = np.array([len(continuation_ids(judge.tokenizer, fill)) for fill in fills])
        row = report["fills"][name] = {
            "continuation_perplexity": continuation_perplexity(judge, judge.tokenizer, gaps, fills),
            "word_f1": float(np.mean([word_overlap(fill, gap.truth) for fill, gap in zip(fills, gaps, strict=True)])),
            "length_error": float(abs(sizes - np.array(truths)).mean()),
            "mean_length": float(sizes.mean()),
        }
        print(
            f"{name:36s}{row['continuation_perplexity']:18.2f}{row['word_f1']:9.3f}{row['length_error']:14.1f}"
            f"{row['mean_length']:8.1f}"
        )
    write_results(args.output, report, models={name: path for name, path in paths.items() if path})
    print(f"\ngap_lengths: OK ({len(gaps)} gaps)")
    return report


if __name__ == "__main__":
    start(main)
