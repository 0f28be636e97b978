"""Table 2 of the paper: semantic textual similarity without task training, Spearman's rank correlation x 100.

    python examples/evaluate/sts.py --models base=DIR magnet=DIR --output sts.json
    python examples/evaluate/sts.py --models magnet=DIR --data FOLDER --tasks STS12 STSBenchmark --mteb

A model is a MAGNET checkpoint or a plain Llama, read bidirectionally. With `--mteb`, `mteb.evaluate` runs on the same
pairs as well, and both figures are printed.
"""

import argparse
import importlib.util
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from datasets import Dataset
from scipy.stats import spearmanr

# A script finds its own folder alone.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from examples.evaluate.sts_data import STS_SETS, StsPair, read_sts
from modeling_magnet import AutoMagnetForCausalLM
from modeling_magnet.families_magnet import open_without_weights
from modeling_magnet.pooling_magnet import POOLINGS
from modeling_magnet.prompts_magnet import PAPER_PROMPTS
from modeling_magnet.similarity_magnet import similarity_pairs
from modeling_magnet.texts_magnet import check_room


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


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", required=True, metavar="NAME=MODEL", help="directories or Hub ids")
    parser.add_argument("--tasks", nargs="+", default=list(STS_SETS), choices=list(STS_SETS), help="sets to run")
    parser.add_argument("--data", type=Path, help="folder of the sets' files; the Hub if left out")
    parser.add_argument("--prompt", default=PAPER_PROMPTS["STS"], help="instruction; the paper's if left out")
    parser.add_argument("--pooling", default="last", help=", ".join(POOLINGS))
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"], help="dtype of the weights")
    parser.add_argument("--device", help="such as cpu or cuda:1; CUDA where there is some if left out")
    parser.add_argument("--mteb", action="store_true", help="run mteb on the same pairs, too")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    args = parser.parse_args(arguments)
    args.device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    return args


def check_arguments(args: argparse.Namespace) -> None:
    """Refuse what cannot work before weights are read or anything is measured.

    Raises:
        ValueError: listing it.
    """
    complaints = list(_about_models(args))
    if args.pooling not in POOLINGS:
        complaints.append(f"`--pooling` is {args.pooling!r}; pass one of {list(POOLINGS)}.")
    try:
        torch.empty(1, device=args.device)
    except (RuntimeError, AssertionError) as error:  # the second where torch was built without CUDA
        reason = str(error).splitlines()[0]
        complaints.append(
            f"`--device` is {args.device!r}, which cannot be used ({reason}). Pass another, such as cpu."
        )
    for task in args.tasks if args.data is not None else []:
        if not (args.data / STS_SETS[task].file_name).is_file():
            complaints.append(
                f"`--data` {str(args.data)!r} has no {STS_SETS[task].file_name}, of {task}. Put it there."
            )
    if args.output is not None and (args.output.is_dir() or not args.output.parent.is_dir()):
        complaints.append(f"`--output` is {str(args.output)!r}; name a file in a folder that exists.")
    if args.mteb and importlib.util.find_spec("mteb") is None:
        complaints.append("`--mteb` needs a package that is not here. Install it: pip install '.[eval]'.")
    if complaints:
        raise ValueError("\n- ".join(["The arguments cannot be used:", *complaints]))


def _about_models(args: argparse.Namespace) -> Iterator[str]:
    """What is wrong with the models and their names."""
    names = []
    for item in args.models:
        name, separator, path = item.partition("=")
        if not (name and separator and path):
            yield f"`--models` has {item!r}; expected NAME=MODEL, such as magnet={item.strip('=') or 'DIR'}."
            continue
        if name in names:
            yield f"`--models` has two models named {name!r}. Give each a name of its own."
        names.append(name)
        try:
            config, tokenizer = open_without_weights(path)
            context = min(config.max_position_embeddings, tokenizer.model_max_length)
            check_room(tokenizer, prompt=args.prompt, max_length=context)
        except ValueError as error:
            yield f"`--models` {name}: {error}"


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Measure the models that were named.

    Raises:
        ValueError: arguments or files that cannot be used.
    """
    args = parse_arguments(arguments)
    check_arguments(args)
    data = {task: read_sts(task, folder=args.data) for task in args.tasks}
    results: dict[str, dict[str, Any]] = {}
    for name, path in (item.split("=", 1) for item in args.models):
        model: Any = AutoMagnetForCausalLM.from_pretrained(path, dtype=getattr(torch, args.dtype))
        model.to(args.device).eval()
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
            "device": args.device,
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
    try:
        main()
    except (ValueError, OSError) as error:  # what the user can mend; anything else needs its traceback
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
