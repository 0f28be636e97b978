"""Load pairs of sentences for the contrastive loss, or make them by dropout or paraphrasing.

Every function returns a `datasets.Dataset` of two columns, `anchor` and `positive`.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from tqdm.auto import tqdm
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging

from .files import append_rows, resume_rows
from .sources import Source, as_texts, check_are_text, check_columns, check_limit, is_text, map_texts, read_source

logger = logging.get_logger(__name__)

_PREFIX = "paraphrase: "  # marks the task for Parrot, a T5
# The sampling options of Parrot without diverse beams.
_GENERATION: dict[str, Any] = {"do_sample": True, "top_k": 50, "top_p": 0.95}


def load_pairs(
    source: Source,
    *,
    columns: tuple[str, str] | None = None,
    label_column: str | None = None,
    split: str = "train",
    config_name: str | None = None,
    limit: int | None = None,
) -> Dataset:
    """Read pairs of sentences from two columns of files or of a Hub dataset; pairs with an empty side are dropped.

    Args:
        source (`str`, `Path` or a list of these): As for `load_texts`, for example a `.tsv.gz` file.
        columns (`tuple[str, str]`, *optional*):
            Columns of the anchor and the positive; by default `anchor` and `positive`, or the only two columns of
            text.
        label_column (`str`, *optional*):
            Column that is 1 in the rows to keep. A source with a column `label` requires this, or `columns` to use
            every row.
        split, config_name: As for `load_texts`.
        limit (`int`, *optional*): Keep the first `limit` usable pairs, >= 1.

    Returns:
        `datasets.Dataset`: columns `anchor` and `positive`, stripped, of at least one row.

    Raises:
        ValueError: If the source or a column is missing, the columns are ambiguous, or no pair is left.
    """
    check_limit(limit)
    if columns is not None and len(set(columns)) != 2:
        raise ValueError(f"`columns` is {columns!r}; expected two different names. Pass (anchor, positive).")
    rows = read_source(source, columns=columns or (), split=split, config_name=config_name)
    if label_column is not None:
        check_columns(source, [label_column], rows.column_names)
    anchor, positive = columns or _pair_columns(source, rows, label_column)
    check_are_text(source, (anchor, positive), rows)
    labels = "" if label_column is None else f" and 1 in {label_column!r} (it holds {rows[:3][label_column]}, ...)"
    return map_texts(
        rows,
        _pick_pairs,
        columns=["anchor", "positive"],
        source=source,
        empty=f"None of the {len(rows)} rows of {source!r} has text in {anchor!r} and {positive!r}{labels}. "
        "Name other columns, or give another source.",
        limit=limit,
        desc="Reading pairs",
        anchor=anchor,
        positive=positive,
        label=label_column,
    )


def dropout_pairs(texts: Dataset | Sequence[str], *, min_words: int = 21, limit: int | None = None) -> Dataset:
    """Pair every line of enough words with itself; dropout in the model makes the two embeddings differ.

    Args:
        texts (`datasets.Dataset` or list of `str`): Column `text` as of `load_texts`, or the texts themselves; a
            text may have several lines.
        min_words (`int`): Lines of fewer words, split at whitespace, are dropped; >= 1.
        limit (`int`, *optional*): Keep the first `limit` lines, >= 1.

    Returns:
        `datasets.Dataset`: columns `anchor` and `positive`, equal in every row, of at least one row.

    Raises:
        ValueError: If an argument is out of range or no line is long enough.

    Source: Gao et al. 2021, SimCSE, unsupervised; the length of the lines from Khosla et al. 2025 (arXiv 2501.08648).
    """
    lines = _long_lines(texts, min_words=min_words, limit=limit)
    return lines.rename_column("text", "anchor").map(
        lambda batch: {"positive": batch["anchor"]}, batched=True, desc="Pairing lines"
    )


def paraphrase_pairs(
    texts: Dataset | Sequence[str],
    *,
    output_path: str | Path,
    model_id: str = "prithivida/parrot_paraphraser_on_T5",
    min_words: int = 21,
    limit: int | None = None,
    max_length: int = 128,
    batch_size: int = 32,
    num_candidates: int = 4,
    seed: int = 42,
) -> Dataset:
    """Pair every line of enough words with a paraphrase, and store the pairs in a JSONL file that can be resumed.

    The positive is the first of `num_candidates` outputs that `choose_paraphrase` accepts, or the line itself. Draws
    depend only on the seed and the batch, so a resumed file equals an uninterrupted one byte for byte on the same kind
    of machine. In a distributed job, call this in one process first.

    Args:
        texts, min_words, limit: As for `dropout_pairs`.
        output_path (`str` or `Path`): A `.jsonl` file of `anchor` and `positive`, which `load_pairs` can read.
        model_id (`str`): A sequence-to-sequence model that paraphrases lines after "paraphrase: "; it runs on CUDA if
            available.
        max_length (`int`): Limit of input tokens, prefix included, and of output tokens; >= 8.
        batch_size, num_candidates (`int`): Lines per call of the model, and outputs per line to choose from; >= 1.
        seed (`int`): Seed of the sampling, >= 0.

    Raises:
        ValueError: If an argument is out of range, no line is long enough, or the file belongs to another job.

    Source: Khosla et al. 2025 (arXiv 2501.08648), self-supervised contrastive learning.
    """
    settings = {
        "model_id": model_id,
        "prefix": _PREFIX,
        "max_length": max_length,
        "batch_size": batch_size,
        "num_candidates": num_candidates,
        "generation_options": _GENERATION,
        "seed": seed,
    }
    if Path(output_path).suffix != ".jsonl":
        raise ValueError(f"`output_path` is {str(output_path)!r}; expected a name that ends in '.jsonl'. Rename it.")
    lines = _long_lines(texts, min_words=min_words, limit=limit)["text"][:]
    settings |= {"num_lines": len(lines), "lines_sha256": hashlib.sha256(json.dumps(lines).encode()).hexdigest()}
    done = resume_rows(output_path, settings=settings)
    if [row.get("anchor") for row in done] != lines[: len(done)]:
        raise ValueError(
            f"The rows of {str(output_path)!r} are not the lines of `texts` in order: the file was edited. Restore "
            "it, or pass another `output_path`."
        )
    if len(done) < len(lines):
        _write_paraphrases(output_path, lines, num_done=len(done), settings=settings)
    pairs = load_pairs(str(output_path), columns=("anchor", "positive"))
    num_copies = sum(anchor == positive for anchor, positive in zip(pairs["anchor"], pairs["positive"], strict=True))
    if num_copies:
        logger.warning(f"{num_copies} of {len(pairs)} lines have no paraphrase and are paired with themselves.")
    return pairs


def _pair_columns(source: Source, rows: Dataset, label_column: str | None) -> tuple[str, str]:
    """Return the columns to use if the caller passed none; raise if they are ambiguous."""
    if "label" in rows.column_names and label_column is None:
        raise ValueError(
            f"{source!r} has a column 'label', which may mark pairs of different meaning. Pass "
            "`label_column='label'` to keep the rows in which it is 1, or `columns` to keep every row."
        )
    if {"anchor", "positive"} <= set(rows.column_names):
        return "anchor", "positive"
    names = [name for name in rows.column_names if is_text(rows.features[name]) and name != label_column]
    if len(names) != 2:
        raise ValueError(
            f"{source!r} has the columns of text {names}; expected two, or 'anchor' and 'positive'. "
            "Pass `columns=(anchor, positive)`."
        )
    return names[0], names[1]


def _pick_pairs(batch: dict[str, list], *, anchor: str, positive: str, label: str | None) -> dict[str, list[str]]:
    """Return the pairs of a batch with two non-empty sides and, with a label column, the label 1."""
    labels = [1] * len(batch[anchor]) if label is None else batch[label]
    sides = [
        (left.strip(), right.strip())
        for left, right, value in zip(batch[anchor], batch[positive], labels, strict=True)
        if left and right and value in (1, "1")
    ]
    kept = [(left, right) for left, right in sides if left and right]
    return {"anchor": [left for left, _ in kept], "positive": [right for _, right in kept]}


def _long_lines(texts: Dataset | Sequence[str], *, min_words: int, limit: int | None) -> Dataset:
    """Return the lines of the texts with at least `min_words` words, in column `text`."""
    check_limit(limit)
    texts = as_texts(texts)
    check_columns("texts", ["text"], texts.column_names)
    if min_words < 1:
        raise ValueError(f"`min_words` is {min_words}; expected at least 1. Raise it.")
    return map_texts(
        texts,
        _split_lines,
        columns=["text"],
        source="texts",
        empty=f"None of the {len(texts)} texts has a line of at least `min_words`={min_words} words. "
        "Lower `min_words`, or give other texts.",
        limit=limit,
        desc="Splitting lines",
        min_words=min_words,
    )


def _split_lines(batch: dict[str, list], *, min_words: int) -> dict[str, list[str]]:
    """Return the lines of a batch of texts with at least `min_words` words."""
    lines = (line.strip() for text in batch["text"] for line in text.split("\n"))
    return {"text": [line for line in lines if len(line.split()) >= min_words]}


def _write_paraphrases(
    output_path: str | Path,
    lines: Sequence[str],
    *,
    num_done: int,
    settings: Mapping[str, Any],
) -> None:
    """Paraphrase the lines from `num_done` on, and append each batch to the file."""
    tokenizer = AutoTokenizer.from_pretrained(settings["model_id"], trust_remote_code=False)
    model = AutoModelForSeq2SeqLM.from_pretrained(settings["model_id"], trust_remote_code=False)
    model.eval().to("cuda" if torch.cuda.is_available() else "cpu")
    size = settings["batch_size"]
    options = {name: settings[name] for name in ("max_length", "num_candidates")}
    with tqdm(total=len(lines), initial=num_done, desc="Paraphrasing", unit="line") as progress:
        # A partly written batch is generated again as a whole, since its lines share a seed.
        for start in range(num_done - num_done % size, len(lines), size):
            batch = lines[start : start + size]
            seed = int(np.random.SeedSequence([settings["seed"], start]).generate_state(1)[0])
            paraphrases = paraphrase_batch(batch, model=model, tokenizer=tokenizer, seed=seed, **options)
            pairs = [{"anchor": line, "positive": other} for line, other in zip(batch, paraphrases, strict=True)]
            new_pairs = pairs[max(0, num_done - start) :]
            append_rows(output_path, new_pairs)
            progress.update(len(new_pairs))


@torch.inference_mode()
def paraphrase_batch(
    sentences: Sequence[str],
    *,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    num_candidates: int,
    seed: int,
) -> list[str]:
    """Paraphrase each of P sentences by the first candidate that `choose_paraphrase` accepts.

    Draws depend only on the seed, and the global random state does not change.

    Source: Damodaran 2021, Parrot, https://github.com/PrithivirajDamodaran/Parrot_Paraphraser.
    """
    encoded = tokenizer(
        [_PREFIX + sentence for sentence in sentences],
        split_special_tokens=True,  # `</s>` in a sentence is text
        padding=True,
        truncation=True,
        max_length=max_length,
        return_tensors="pt",
    ).to(model.device)
    # `generate` only draws from the global generators.
    with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
        torch.manual_seed(seed)
        output = model.generate(  # type: ignore[operator]
            input_ids=encoded["input_ids"],
            attention_mask=encoded["attention_mask"],
            max_new_tokens=max_length,
            num_return_sequences=num_candidates,
            **_GENERATION,
        )  # (P * num_candidates, tokens)
    candidates = tokenizer.batch_decode(output, skip_special_tokens=True)
    return [
        choose_paraphrase(sentence, candidates[index * num_candidates : (index + 1) * num_candidates])
        for index, sentence in enumerate(sentences)
    ]


def choose_paraphrase(sentence: str, candidates: Sequence[str]) -> str:
    """Return the first candidate that differs in more than case, punctuation and spaces, else the sentence itself.

    Example:
        >>> choose_paraphrase("A cat sat.", ["a cat  sat", "", "A cat was  sitting."])
        'A cat was sitting.'
        >>> choose_paraphrase("A cat sat.", ["a cat  sat"])
        'A cat sat.'
    """
    words, *others = (re.findall(r"\w+", text.casefold()) for text in (sentence, *candidates))
    for candidate, other in zip(candidates, others, strict=True):
        if other not in ([], words):
            return " ".join(candidate.split())
    return sentence
