"""What an adaptation gained and what it cost, against the base and the controls a sceptic would ask for.

    python examples/benchmarks/adaptation.py --base DIR --magnet DIR --causal_control DIR \
        --texts wikipedia=FILE wikitext2=FILE --sts FILE --name wiki7m

Infilling perplexity counts the tokens of up to three spans of 8 to 32 tokens. Controls: the base from left to right;
the base trained causally for the same steps on the same rows; the adapted model with the text behind the first span
taken from another row. Prints a table and writes JSON beside this file.
"""

import csv
import gzip
import platform
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

# A script finds its own folder alone.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import torch
import transformers
from datasets import Dataset
from transformers.utils.logging import tqdm

from examples.command_line import (
    OneLineParser,
    add_device,
    also,
    at_least,
    check,
    choose_device,
    named_items,
    need,
    start,
)
from examples.models import open_magnet
from modeling_magnet.batching_magnet import pad_token_rows
from modeling_magnet.pooling_magnet import last_token_states
from modeling_magnet.prompts_magnet import join_prompt
from modeling_magnet.texts_magnet import tokenize_texts
from trainer import CorruptionSettings, DataCollatorForMagnet, load_texts, texts_to_blocks
from trainer.corruption import IGNORE_INDEX
from trainer.evaluation import EvaluationCollator, language_metrics, language_sums
from trainer.metrics import perplexity
from trainer.objectives import forward_targets
from trainer.whole_files import write_json

SPANS = CorruptionSettings(mask_ratio=0.0, max_spans=3, min_span_tokens=8, max_span_tokens=32)
BATCH_SIZE = 16


def keep_first_span(batch: dict[str, torch.Tensor], *, shuffle_suffix: bool) -> dict[str, torch.Tensor]:
    """Rows with their first span alone missing, the text behind it their own or the next row's.

    The other spans become context, so that both variants score the same tokens and differ in the suffix alone.

    Args:
        batch (`dict`): What `DataCollatorForMagnet` returns for rows of one length, `(B, S)` each.
        shuffle_suffix (`bool`): Whether the text behind the span comes from the next row of the batch.
    """
    first = batch["segment_ids"] == 1
    ends = first.shape[1] - first.flip(1).long().argmax(1)  # (B,): index behind the first span
    behind = torch.arange(first.shape[1]) >= ends[:, None]
    input_ids = torch.where(behind, batch["input_ids"].roll(1, 0), batch["input_ids"])
    targets = first.roll(-1, 1)
    return {
        **batch,
        "input_ids": input_ids if shuffle_suffix else batch["input_ids"],
        "segment_ids": first.long(),
        "msg_labels": batch["msg_labels"].where(targets, torch.tensor(-100)),
    }


@torch.no_grad()
def measure_language(model: Any, rows: Dataset, *, max_rows: int) -> dict[str, float]:
    """Perplexities and masked-token accuracy of one model on held-out rows of one length."""
    tokenizer, config = model.tokenizer, model.config

    def collator(settings: CorruptionSettings) -> DataCollatorForMagnet:
        mask = config.magnet["mask_token_id"]
        return DataCollatorForMagnet.from_tokenizer(
            tokenizer, model_config=config, mask_token_id=mask, settings=settings, seed=0
        )

    collate = EvaluationCollator(corruption=collator(CorruptionSettings()), infilling=collator(SPANS))
    length = max(map(len, rows["input_ids"]))
    full = [ids for ids in rows["input_ids"] if len(ids) == length][:max_rows]
    sums: dict[str, float] = defaultdict(float)
    for begin in tqdm(range(0, len(full), BATCH_SIZE), desc="Reading", leave=False):
        numbered = [
            {"input_ids": ids, "row_id": begin + index, "epoch": 0}
            for index, ids in enumerate(full[begin : begin + BATCH_SIZE])
        ]
        batch = collate(numbered)
        asked = language_sums(model, batch)
        for name, shuffle in (("own_suffix", False), ("other_suffix", True)):
            first = keep_first_span(batch["infilling"], shuffle_suffix=shuffle)
            asked[f"{name}_loss"] = forward_targets(model, first).losses["msg"].sum().item()
            asked[f"{name}_tokens"] = int((first["msg_labels"] != IGNORE_INDEX).sum())
        for name, value in asked.items():
            sums[name] += value
    metrics = language_metrics(sums)
    for name in ("own_suffix", "other_suffix"):
        metrics[f"first_span_{name}_perplexity"] = perplexity(sums[f"{name}_loss"], int(sums[f"{name}_tokens"]))
    return {**metrics, "rows": len(full), "span_tokens": sums["span_tokens"]}


@torch.no_grad()
def embed(model: Any, texts: list[str], *, mode: str, pooling: str, prompt: str | None) -> np.ndarray:
    """Unit vectors `(len(texts), H)` by any mode and pooling, for baselines that `encode` does not offer."""
    tokenizer = model.tokenizer
    # BOS and the prompt; the prompt's last space belongs to the first word's token.
    front = 1 + len(tokenizer(join_prompt(prompt, "").rstrip(), add_special_tokens=False)["input_ids"])
    vectors = []
    for begin in range(0, len(texts), 64):
        rows = tokenize_texts(tokenizer, texts[begin : begin + 64], prompt=prompt, max_length=256)
        batch = pad_token_rows(rows, pad_token_id=0)
        nowhere = torch.zeros_like(batch["input_ids"], dtype=torch.bool)
        states = model(**batch, mode=mode, logits_to_keep=nowhere).last_hidden_state
        if pooling == "mean":
            inside = batch["attention_mask"].clone()
            inside[:, :front] = 0  # neither BOS nor the prompt
            pooled = (states * inside[:, :, None]).sum(1) / inside.sum(1)[:, None]
        else:
            pooled = last_token_states(states, batch["attention_mask"])
        vectors.append(torch.nn.functional.normalize(pooled, dim=-1).numpy())
    return np.concatenate(vectors)


def measure_sts(model: Any, file: Path) -> dict[str, float]:
    """Spearman correlation x100 of cosine and human score, by mode, pooling and prompt."""
    from scipy.stats import spearmanr  # of the extra `eval`

    with gzip.open(file, "rt", encoding="utf-8", newline="") as stream:
        rows = list(csv.reader(stream))
    scores = [float(row[2]) for row in rows]
    default = model.magnet_settings.prompts[model.magnet_settings.default_prompt_name]
    results = {}
    for mode, pooling in (
        ("causal", "last"),
        ("causal", "mean"),
        ("bidirectional", "last"),
        ("bidirectional", "mean"),
    ):
        for name, prompt in (("prompt", default), ("no prompt", None)):
            left = embed(model, [row[0] for row in rows], mode=mode, pooling=pooling, prompt=prompt)
            right = embed(model, [row[1] for row in rows], mode=mode, pooling=pooling, prompt=prompt)
            results[f"{mode} {pooling}, {name}"] = 100 * float(spearmanr((left * right).sum(1), scores).statistic)
    return results


def print_table(results: dict[str, Any], names: list[str]) -> None:
    """The figures side by side, one row per question."""
    for corpus, by_model in results["language"].items():
        print(f"\n{corpus:38s}" + "".join(f"{name:>16s}" for name in names))
        for metric in next(iter(by_model.values())):
            print(f"  {metric:36s}" + "".join(f"{by_model[name].get(metric, float('nan')):16.4f}" for name in names))
        base = by_model["base"]["left_to_right_perplexity"]
        print(f"  infilling / base left to right: {by_model['adapted']['infilling_perplexity'] / base:.4f}")
        if "causal_control" in by_model:
            control = by_model["causal_control"]["left_to_right_perplexity"]
            print(f"  infilling / causal control:     {by_model['adapted']['infilling_perplexity'] / control:.4f}")
    for name, values in results["sts"].items():
        best = max(values, key=lambda key: values[key])
        print(f"\nSTS {name}: best {best} {values[best]:.2f}; " + ", ".join(f"{k} {v:.2f}" for k, v in values.items()))


def main() -> None:
    """Measure the models that were named."""
    parser = OneLineParser(description=__doc__)
    parser.add_argument("--base", required=True, help="the model it was adapted from")
    action = parser.add_argument("--magnet", required=True, help="the adapted model")
    also(parser, action, "--adapted")
    parser.add_argument("--causal_control", help="the base trained causally for the same steps and rows")
    parser.add_argument("--texts", nargs="+", required=True, metavar="NAME=FILE", help="held-out texts")
    parser.add_argument("--sts", type=Path, help="csv.gz of sentence, sentence, score")
    action = parser.add_argument("--limit", type=at_least(), default=128, help="rows of 512 tokens of each corpus")
    also(parser, action, "--max_rows")
    add_device(parser)
    parser.add_argument("--name", required=True, help="name of the JSON file")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results", help="where it goes")
    args = parser.parse_args()
    files, complaints = named_items(args.texts, option="--texts", what="FILE")
    if args.sts is not None and not args.sts.is_file():
        complaints.append(f"`--sts` {str(args.sts)!r} is not a file. Name one, or leave it out.")
    check(complaints)
    if args.sts is not None:
        need("eval", "scipy")
    device = choose_device(args.device)
    started = time.perf_counter()
    models = {
        name: open_magnet(path, device=device)
        for name, path in (("base", args.base), ("adapted", args.magnet), ("causal_control", args.causal_control))
        if path is not None
    }
    results: dict[str, Any] = {"language": {}, "sts": {}}
    for name, file in files.items():
        texts = load_texts(file)
        blocks = texts_to_blocks(texts, models["base"].tokenizer, max_length=512, concatenate="wikitext" in name)
        results["language"][name] = {
            which: measure_language(model, blocks, max_rows=args.limit) for which, model in models.items()
        }
    if args.sts is not None:
        results["sts"] = {which: measure_sts(model, args.sts) for which, model in models.items()}
    print_table(results, list(models))
    report = {
        **results,
        "hardware": {"processor": platform.processor() or platform.machine(), "threads": torch.get_num_threads()},
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "seconds": time.perf_counter() - started,
    }
    file = args.results / f"{args.name}.json"
    write_json(file, report)
    print(f"\nadaptation: OK ({file.name}; {report['seconds']:.0f} s)")


if __name__ == "__main__":
    start(main)
