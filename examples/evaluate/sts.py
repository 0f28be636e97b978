"""Table 2 of the paper: semantic textual similarity without task training, Spearman's rank correlation x 100.

    python examples/evaluate/sts.py --models base=DIR magnet=DIR --output sts.json
    python examples/evaluate/sts.py --models magnet=DIR --data FOLDER --tasks STS12 STSBenchmark --mteb

A model is a MAGNET checkpoint or a plain Llama, read bidirectionally. With `--mteb`, `mteb.evaluate` runs on the same
pairs as well, and both figures are printed.
"""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from datasets import Dataset
from scipy.stats import spearmanr

# A script finds its own folder alone.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from examples.evaluate.sts_data import STS_SETS, StsPair, read_sts
from modeling_magnet import MagnetLlamaForCausalLM
from modeling_magnet.prompts_magnet import PAPER_PROMPTS
from modeling_magnet.similarity_magnet import similarity_pairs


def sts_correlation(model: Any, pairs: list[StsPair], **encode_kwargs: Any) -> float:
    """Spearman's rank correlation of cosine and human score, x 100.

    Args:
        model (`PreTrainedModel`): With `encode`.
        pairs (`list[StsPair]`): Sentences and scores.
        encode_kwargs: Passed to `encode`, such as `prompt` and `pooling`.
    """
    left = model.encode([pair.sentence1 for pair in pairs], **encode_kwargs)
    right = model.encode([pair.sentence2 for pair in pairs], **encode_kwargs)
    cosines = similarity_pairs(left, right, name="cosine")
    return 100 * float(spearmanr(cosines.numpy(), [pair.score for pair in pairs]).statistic)


def sts_correlation_by_mteb(model: Any, name: str, pairs: list[StsPair], *, pooling: str) -> float:
    """The same figure by `mteb.evaluate`, on the same pairs, so that no network is needed."""
    import mteb

    from trainer.mteb_encoder import MagnetEncoder

    task = mteb.get_task(name)
    columns: dict[str, list[Any]] = {field: [getattr(pair, field) for pair in pairs] for field in StsPair._fields}
    task.dataset = {"default": {"test": Dataset.from_dict(columns)}}
    task.data_loaded = True
    encoder: Any = MagnetEncoder(model, pooling=pooling)  # it has a signature of its own, as many wrappers have
    result = mteb.evaluate(encoder, task, cache=None, co2_tracker=False)
    return 100 * float(result.task_results[0].get_score())


def print_table(results: dict[str, dict[str, Any]], tasks: list[str]) -> None:
    """Systems by sets, with their mean."""
    print(f"\n{'':24s}" + "".join(f"{task:>14s}" for task in tasks) + f"{'mean':>10s}")
    for name, result in results.items():
        for driver, scores in result["scores"].items():
            mean = sum(scores.values()) / len(scores)
            print(f"{name + ', ' + driver:24s}" + "".join(f"{scores[task]:14.4f}" for task in tasks) + f"{mean:10.2f}")


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Measure the models that were named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", required=True, metavar="NAME=MODEL", help="directories or Hub ids")
    parser.add_argument("--tasks", nargs="+", default=list(STS_SETS), choices=list(STS_SETS), help="sets to run")
    parser.add_argument("--data", type=Path, help="folder of the sets' files; the Hub if left out")
    parser.add_argument("--prompt", default=PAPER_PROMPTS["STS"], help="instruction; the paper's if left out")
    parser.add_argument("--pooling", default="last", help="last, mean or weighted_mean")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"], help="dtype of the weights")
    parser.add_argument("--mteb", action="store_true", help="run mteb on the same pairs, too")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    args = parser.parse_args(arguments)
    data = {task: read_sts(task, folder=args.data) for task in args.tasks}
    results: dict[str, dict[str, Any]] = {}
    for name, path in (item.split("=", 1) for item in args.models):
        model = MagnetLlamaForCausalLM.from_pretrained(path, dtype=getattr(torch, args.dtype)).eval()
        if args.mteb:
            model.config.magnet["prompts"]["STS"] = args.prompt
        ours = {
            task: sts_correlation(model, pairs, prompt=args.prompt, pooling=args.pooling)
            for task, pairs in data.items()
        }
        scores = {"ours": ours}
        if args.mteb:
            scores["mteb"] = {
                task: sts_correlation_by_mteb(model, task, pairs, pooling=args.pooling) for task, pairs in data.items()
            }
        results[name] = {
            "scores": scores,
            "model": path,
            "revision": getattr(model.config, "_commit_hash", None),
            "dtype": args.dtype,
            "prompt": args.prompt,
            "pooling": args.pooling,
            "pairs": {task: len(pairs) for task, pairs in data.items()},
            "transformers": transformers.__version__,
            "torch": torch.__version__,
        }
    print_table(results, args.tasks)
    if args.output is not None:
        scratch = args.output.with_name(f".{args.output.name}")
        scratch.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        os.replace(scratch, args.output)
    print(f"sts: OK ({', '.join(args.tasks)})")
    return results


if __name__ == "__main__":
    main()
