"""Pairs of views of one sentence, for the contrastive loss: given, by dropout, or written by a paraphraser.

Every function returns a `datasets.Dataset` of two columns, `anchor` and `positive`.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, Features, Value
from tqdm.auto import tqdm
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer
from transformers.utils import logging

from .paraphraser import PARROT_GENERATION, paraphrase_batch
from .resumable import append_rows, resume_rows
from .sources import Source, as_texts, check_are_text, check_columns, check_limit, is_text, naming_bytes, read_source

logger = logging.get_logger(__name__)

_PAIR = Features({"anchor": Value("string"), "positive": Value("string")})


def load_pairs(
    source: Source,
    *,
    columns: tuple[str, str] | None = None,
    label_column: str | None = None,
    split: str = "train",
    config_name: str | None = None,
    limit: int | None = None,
) -> Dataset:
    """Read pairs of sentences from two columns of files or of a Hub dataset; pairs with an empty side are left out.

    Args:
        source (`str`, `Path` or a list of these): As for `load_texts`, for example a `.tsv.gz` file.
        columns (`tuple[str, str]`, *optional*):
            Columns of the anchor and of the positive; by default `anchor` and `positive` if both are there, else the
            only two columns of text.
        label_column (`str`, *optional*):
            Column that says whether the two mean the same: only rows that hold 1 there are kept. A source that has a
            column `label` needs this, or `columns` to use every row.
        split, config_name: As for `load_texts`.
        limit (`int`, *optional*): Keep the first `limit` usable pairs, >= 1.

    Returns:
        `datasets.Dataset`: columns `anchor` and `positive`, stripped, of at least one row.

    Raises:
        ValueError: If the source or a column is not there, the columns are ambiguous, or no pair is left.
    """
    check_limit(limit)
    if columns is not None and len(set(columns)) != 2:
        raise ValueError(f"`columns` is {columns!r}; expected two different names. Pass (anchor, positive).")
    rows = read_source(source, columns=columns or (), split=split, config_name=config_name)
    if label_column is not None:
        check_columns(source, [label_column], rows.column_names)
    anchor, positive = columns or _pair_columns(source, rows, label_column)
    check_are_text(source, (anchor, positive), rows)
    with naming_bytes(source):
        pairs = rows.map(
            _pick_pairs,
            batched=True,
            fn_kwargs={"anchor": anchor, "positive": positive, "label": label_column},
            remove_columns=rows.column_names,
            features=_PAIR,
            desc="Reading pairs",
        )
    if not len(pairs):
        labels = "" if label_column is None else f" and 1 in {label_column!r} (it holds {rows[:3][label_column]}, ...)"
        raise ValueError(
            f"None of the {len(rows)} rows of {source!r} has text in {anchor!r} and {positive!r}{labels}. "
            "Name other columns, or give another source."
        )
    return pairs if limit is None else pairs.select(range(min(limit, len(pairs))))


def dropout_pairs(texts: Dataset | Sequence[str], *, min_words: int = 21, limit: int | None = None) -> Dataset:
    """Pair every long enough line with itself: only the dropout of the model makes the two views differ.

    Args:
        texts (`datasets.Dataset` or list of `str`): Column `text` as of `load_texts`, or the texts themselves; a
            text may have several lines.
        min_words (`int`): Lines of fewer words, split at whitespace, are left out; >= 1.
        limit (`int`, *optional*): Keep the first `limit` lines, >= 1.

    Returns:
        `datasets.Dataset`: columns `anchor` and `positive`, equal in every row, of at least one row.

    Raises:
        ValueError: If an argument is out of range or no line is long enough.

    Source: Gao et al. 2021, SimCSE, unsupervised; the length of the lines from Khosla et al. 2025 (arXiv 2501.08648).
    """
    lines = _long_lines(texts, min_words=min_words, limit=limit)
    return lines.rename_column("text", "anchor").map(
        lambda batch: {"positive": batch["anchor"]}, batched=True, features=_PAIR, desc="Pairing lines"
    )


def paraphrase_pairs(
    texts: Dataset | Sequence[str],
    *,
    output_path: str | Path,
    model_id: str = "prithivida/parrot_paraphraser_on_T5",
    prefix: str = "paraphrase: ",
    min_words: int = 21,
    limit: int | None = None,
    max_length: int = 128,
    batch_size: int = 32,
    num_candidates: int = 4,
    generation_options: Mapping[str, Any] = PARROT_GENERATION,
    seed: int = 42,
    device: str | torch.device | None = None,
) -> Dataset:
    """Pair every long enough line with a paraphrase, kept in a JSONL file that a killed job goes on with.

    The positive is the first of `num_candidates` outputs that differs from the line in more than case, punctuation and
    spaces; where none does, it is the line itself, a view by dropout, so that the file has one row per line, in order.
    Draws depend on the seed and the batch alone, which makes a resumed file equal to an uninterrupted one, byte for
    byte, on the same kind of machine. In a distributed job one process calls this before the others do.

    Args:
        texts (`datasets.Dataset` or list of `str`): Column `text` as of `load_texts`, or the texts themselves; a
            text may have several lines.
        output_path (`str` or `Path`): A `.jsonl` file of `anchor` and `positive`, which `load_pairs` reads too.
        model_id (`str`): Any sequence-to-sequence model, on the Hub or in a folder.
        prefix (`str`): Put in front of every line; the default is Parrot's.
        min_words, limit: As for `dropout_pairs`.
        max_length (`int`): Tokens read of a line, prefix included, and tokens written; >= 8.
        batch_size (`int`): Lines per call of the model, >= 1.
        num_candidates (`int`): Outputs per line to choose from, >= 1.
        generation_options (`Mapping[str, Any]`): Passed to `generate`; the default samples as Parrot does.
        seed (`int`): Seed of the sampling, >= 0.
        device (`str` or `torch.device`, *optional*): Where the model runs; by default a GPU if there is one.

    Returns:
        `datasets.Dataset`: columns `anchor` and `positive`, one row per line.

    Raises:
        ValueError: If an argument is out of range, no line is long enough, or the file belongs to another job.

    Source: Khosla et al. 2025 (arXiv 2501.08648), the augmented views of self-supervised contrastive learning.
    """
    settings = {
        "model_id": model_id,
        "prefix": prefix,
        "max_length": max_length,
        "batch_size": batch_size,
        "num_candidates": num_candidates,
        "generation_options": dict(generation_options),
        "seed": seed,
    }
    _check_paraphrase_settings(output_path, settings)
    lines = _long_lines(texts, min_words=min_words, limit=limit)["text"][:]
    settings |= {"num_lines": len(lines), "lines_sha256": hashlib.sha256(json.dumps(lines).encode()).hexdigest()}
    done = resume_rows(output_path, settings=settings)
    if [row.get("anchor") for row in done] != lines[: len(done)]:
        raise ValueError(
            f"The rows of {str(output_path)!r} are not the lines of `texts` in order: the file was edited. "
            "Restore it, or give another `output_path`."
        )
    if len(done) < len(lines):
        _write_paraphrases(output_path, lines, num_done=len(done), settings=settings, device=device)
    pairs = load_pairs(str(output_path), columns=("anchor", "positive"))
    num_copies = sum(anchor == positive for anchor, positive in zip(pairs["anchor"], pairs["positive"], strict=True))
    if num_copies:
        logger.warning(f"{num_copies} of {len(pairs)} lines found no paraphrase and are paired with themselves.")
    return pairs


def _pair_columns(source: Source, rows: Dataset, label_column: str | None) -> tuple[str, str]:
    """The columns to take where the caller named none, or an error where that is not plain."""
    if "label" in rows.column_names and label_column is None:
        raise ValueError(
            f"{source!r} has a column 'label', which may mark pairs that do not mean the same. Pass "
            "`label_column='label'` to keep the rows that hold 1 there, or `columns` to keep every row."
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
    """The pairs of a batch that have two sides and, with a label column, a 1 there."""
    labels = [1] * len(batch[anchor]) if label is None else batch[label]
    sides = [
        (left.strip(), right.strip())
        for left, right, value in zip(batch[anchor], batch[positive], labels, strict=True)
        if left and right and value in (1, "1")
    ]
    kept = [(left, right) for left, right in sides if left and right]
    return {"anchor": [left for left, _ in kept], "positive": [right for _, right in kept]}


def _long_lines(texts: Dataset | Sequence[str], *, min_words: int, limit: int | None) -> Dataset:
    """The lines of the texts with at least `min_words` words, in column `text`."""
    check_limit(limit)
    texts = as_texts(texts)
    check_columns("texts", ["text"], texts.column_names)
    if min_words < 1:
        raise ValueError(f"`min_words` is {min_words}; expected at least 1. Raise it.")
    lines = texts.map(
        _split_lines,
        batched=True,
        fn_kwargs={"min_words": min_words},
        remove_columns=texts.column_names,
        features=Features({"text": Value("string")}),
        desc="Splitting lines",
    )
    if not len(lines):
        raise ValueError(
            f"None of the {len(texts)} texts has a line of at least `min_words`={min_words} words. "
            "Lower `min_words`, or give other texts."
        )
    return lines if limit is None else lines.select(range(min(limit, len(lines))))


def _split_lines(batch: dict[str, list], *, min_words: int) -> dict[str, list[str]]:
    """The long enough lines of a batch of texts."""
    lines = (line.strip() for text in batch["text"] for line in text.split("\n"))
    return {"text": [line for line in lines if len(line.split()) >= min_words]}


def _check_paraphrase_settings(output_path: str | Path, settings: Mapping[str, Any]) -> None:
    """All complaints about the file, numbers and options of `paraphrase_pairs` in one error."""
    complaints = [
        f"`{name}` is {settings[name]}; expected at least {least}. Raise it."
        for name, least in (("max_length", 8), ("batch_size", 1), ("num_candidates", 1), ("seed", 0))
        if settings[name] < least
    ]
    own = {"max_length": "max_length", "max_new_tokens": "max_length", "num_return_sequences": "num_candidates"}
    complaints += [
        f"`generation_options` sets {option!r}, which `{argument}` says. Set that instead."
        for option, argument in own.items()
        if option in settings["generation_options"]
    ]
    if Path(output_path).suffix != ".jsonl":
        complaints.append(f"`output_path` is {str(output_path)!r}; expected a name that ends in '.jsonl'. Rename it.")
    if complaints:
        raise ValueError("\n".join(complaints))


def _write_paraphrases(
    output_path: str | Path,
    lines: Sequence[str],
    *,
    num_done: int,
    settings: Mapping[str, Any],
    device: str | torch.device | None,
) -> None:
    """Paraphrase all lines from `num_done` on and append them, batch by batch."""
    tokenizer = AutoTokenizer.from_pretrained(settings["model_id"], trust_remote_code=False)
    if settings["max_length"] > tokenizer.model_max_length:
        raise ValueError(
            f"`max_length` is {settings['max_length']}; {settings['model_id']!r} reads at most "
            f"{tokenizer.model_max_length} tokens. Lower it."
        )
    model = AutoModelForSeq2SeqLM.from_pretrained(settings["model_id"], trust_remote_code=False)
    model.eval().to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    size = settings["batch_size"]
    with tqdm(total=len(lines), initial=num_done, desc="Paraphrasing", unit="line") as progress:
        # A batch that was written in part is drawn again as a whole: its draws belong to all its lines together.
        for start in range(num_done - num_done % size, len(lines), size):
            batch = lines[start : start + size]
            paraphrases = paraphrase_batch(
                batch,
                model=model,
                tokenizer=tokenizer,
                prefix=settings["prefix"],
                max_length=settings["max_length"],
                num_candidates=settings["num_candidates"],
                generation_options=settings["generation_options"],
                seed=int(np.random.SeedSequence([settings["seed"], start]).generate_state(1)[0]),
            )
            pairs = [{"anchor": line, "positive": other} for line, other in zip(batch, paraphrases, strict=True)]
            new_pairs = pairs[max(0, num_done - start) :]
            append_rows(output_path, new_pairs)
            progress.update(len(new_pairs))


__all__ = ["dropout_pairs", "load_pairs", "paraphrase_pairs"]
