"""Reproduce Table 4 of the paper: infilling perplexity over the tokens of the removed spans.

    python examples/evaluate/infilling_perplexity.py --model base=DIR --reading left
    python examples/evaluate/infilling_perplexity.py --model MAGNET=DIR
    python examples/evaluate/infilling_perplexity.py --model "MAGNET, other suffix=DIR" --suffix other

A random sentence of each story of ROCStories is removed, and one to three spans of 8 to 32 tokens of each block of
WikiText and of the held-out files of `--texts`. A model sees the text on both sides of a span. With `--reading left`
it sees all tokens before the span, including removed ones. With `--suffix other`, another text follows each span; the
increase in perplexity shows how much the model uses the text after a span.

If `--reference` is on record for the same texts, each perplexity is also printed as a multiple of the reference's,
with the standard error of that ratio.
"""

import argparse
import sys
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from datasets import Dataset

from examples.command_line import raise_complaints, start
from examples.evaluate.parts.driver import Measurement, Unit, run, unless_absent
from examples.evaluate.parts.options import add_limit, complaints_of, make_parser, model_complaints, parse
from examples.evaluate.parts.records import Record, RecordFile, digest_files, newest
from examples.evaluate.parts.span_rows import READINGS, RemovedSpans, block_rows, span_logprobs, story_row
from examples.evaluate.parts.stories import CORPORA, SENTENCES, TITLES, derange, read_stories, stories_source
from examples.evaluate.parts.wikitext import read_wikitext, wikitext_form, wikitext_source
from modeling_magnet.families_magnet import open_without_weights
from modeling_magnet.tokenization_magnet import context_length
from trainer import load_texts, texts_to_blocks
from trainer.metrics import perplexity, perplexity_ratio
from trainer.samplers import row_generator

UNITS = ("ROCStories", "WikiText")
HELD_OUT = "held-out texts"
TABLE = "infilling"
SPANS = {"max_spans": 3, "min_span_tokens": 8, "max_span_tokens": 32}


def draw(number: int, *, limit: int | None, seed: int) -> list[int]:
    """Return the texts to measure: all, or a random sample of the size of the limit."""
    if limit is None:
        return list(range(number))
    order = torch.randperm(number, generator=row_generator(seed, epoch=1, row_id=0))
    return sorted(order[:limit].tolist())


def make_story_rows(tokenizer: Any, stories: list[list[str]], *, foreign: bool, seed: int) -> list[RemovedSpans]:
    """Remove a random sentence from each story; with `foreign`, follow it by the end of another story."""
    others = derange(len(stories), seed=seed) if foreign else None
    rows = []
    for number, story in enumerate(stories):
        generator = row_generator(seed, epoch=0, row_id=number)
        index = int(torch.randint(SENTENCES, (), generator=generator))
        after = None if others is None else stories[others[number]][index + 1 :]
        rows.append(story_row(tokenizer, story, index, after=after))
    return rows


def make_block_rows(tokenizer: Any, texts: list[str], args: argparse.Namespace) -> list[RemovedSpans]:
    """Make blocks of joined texts and remove spans from them."""
    blocks = texts_to_blocks(
        Dataset.from_dict({"text": texts}),
        tokenizer,
        max_length=args.max_length,
        min_length=SPANS["max_span_tokens"],
        concatenate=True,
    )["input_ids"]
    chosen = [blocks[index] for index in draw(len(blocks), limit=args.limit, seed=args.seed)]
    after = None
    if args.suffix == "other":
        after = [chosen[other] for other in derange(len(chosen), seed=args.seed)]
    return block_rows(chosen, **SPANS, seed=args.seed, after=after)


def measure(model: Any, rows: list[RemovedSpans], *, reading: Any) -> Measurement:
    """Return the perplexity of the removed tokens."""
    by_text: list[tuple[float, int]] = []
    for row, logprobs in zip(rows, span_logprobs(model, rows, reading=reading), strict=True):
        # With another text's suffix, each span of a text has a row of its own.
        loss, count = by_text.pop() if row.first_counted else (0.0, 0)
        by_text.append((loss - sum(logprobs), count + len(logprobs)))
    tokens = sum(count for _, count in by_text)
    value = perplexity(sum(loss for loss, _ in by_text), tokens)
    spans = sum(len(row.spans) - row.first_counted for row in rows)
    counts = {"texts": len(by_text), "spans": spans, "tokens": tokens}
    by_text = [(round(loss, 4), count) for loss, count in by_text]
    return Measurement(metrics={"perplexity": value}, counts=counts, by_text=by_text)


def make_units(args: argparse.Namespace) -> list[Unit]:
    """Return the requested columns; a corpus is read when the first model needs it."""

    @cache
    def stories() -> list[list[str]]:
        stories = unless_absent(lambda: read_stories(args.data, corpus=args.corpus), folder=args.data)
        full = [story for story in stories if len(story) >= SENTENCES]  # the five sentences that may be drawn
        return [full[index] for index in draw(len(full), limit=args.limit, seed=args.seed)]

    @cache
    def paragraphs() -> list[str]:
        return unless_absent(lambda: read_wikitext(args.data), folder=args.data)

    @cache
    def held_out() -> list[str]:
        return list(load_texts(args.texts)["text"])

    def measure_stories(model: Any) -> Measurement:
        rows = make_story_rows(model.tokenizer, stories(), foreign=args.suffix == "other", seed=args.seed)
        return measure(model, rows, reading=args.reading)

    def measure_blocks(texts: Callable[[], list[str]], model: Any) -> Measurement:
        return measure(model, make_block_rows(model.tokenizer, texts(), args), reading=args.reading)

    shared = {"reading": args.reading, "suffix": args.suffix, "limit": args.limit}
    settings: dict[str, dict[str, Any]] = {}  # only the files of requested corpora have to exist
    if "ROCStories" in args.units:
        source, form = stories_source(args.data, corpus=args.corpus)
        settings["ROCStories"] = {"source": source, "text": form, "removed": "one sentence of the first five"}
    if "WikiText" in args.units:
        source = wikitext_source(args.data)
        settings["WikiText"] = {"source": source, "text": wikitext_form(), "max_length": args.max_length, **SPANS}
    if args.texts:
        source = ", ".join(file.name for file in args.texts)
        settings[HELD_OUT] = {"source": source, "files": digest_files(args.texts), "max_length": args.max_length}
        settings[HELD_OUT] |= SPANS
    measures: dict[str, Callable[[Any], Measurement]] = {
        "ROCStories": measure_stories,
        "WikiText": partial(measure_blocks, paragraphs),
        HELD_OUT: partial(measure_blocks, held_out),
    }
    names = {"ROCStories": TITLES[args.corpus]}
    return [Unit(names.get(unit, unit), {**shared, **own}, measures[unit]) for unit, own in settings.items()]


def print_ratios(records: list[Record], args: argparse.Namespace) -> None:
    """Print each perplexity as a multiple of that of the reference, if that is on record for the same texts."""
    on_record = newest(RecordFile(args.results, TABLE).read())
    references = {record.unit: record for record in on_record if record.system == args.reference}
    for record in records:
        reference = references.get(record.unit)
        if reference is None or not record.by_text or record.system == args.reference:
            continue
        try:
            ratio, error = perplexity_ratio(record.by_text, reference.by_text)
            print(f"{record.system}, {record.unit}: {ratio:.3f} ± {error:.3f} of the perplexity of {args.reference!r}")
        except ValueError:
            print(f"{record.system}, {record.unit}: {args.reference!r} was measured on other texts, or before this")


def check_arguments(args: argparse.Namespace) -> None:
    """Refuse invalid arguments before weights are read."""
    complaints = []
    if args.reading == "left" and args.suffix == "other":
        complaints.append("`--suffix other` changes nothing with `--reading left`, which sees no suffix. Drop one.")
    if args.suffix == "other" and args.limit == 1:
        complaints.append("`--limit` is 1, but `--suffix other` takes each suffix from another text. Raise it.")
    if args.max_length <= SPANS["max_span_tokens"] + 1:
        complaints.append(f"`--max_length` is {args.max_length}; a block must hold a span of 32 tokens. Raise it.")
    sources = {
        "ROCStories": lambda: stories_source(args.data, corpus=args.corpus),
        "WikiText": lambda: wikitext_source(args.data),
    }
    complaints += complaints_of({unit: sources[unit] for unit in args.units})
    complaints += [f"`--texts` {str(file)!r} is not a file. Name one." for file in args.texts if not file.is_file()]
    complaints += model_complaints(args.model, lambda path: _check_model(path, args))
    raise_complaints(complaints)


def _check_model(path: str, args: argparse.Namespace) -> None:
    config, tokenizer = open_without_weights(path)
    if tokenizer.bos_token_id is None:
        raise ValueError("it has no BOS, from which a first sentence is predicted and which opens blocks. Set one.")
    context = context_length(config, tokenizer)
    if ("WikiText" in args.units or args.texts) and args.max_length > context:
        raise ValueError(
            f"`--max_length` is {args.max_length}, but it reads {context} tokens at most. Lower it for all models."
        )


def main(arguments: list[str] | None = None) -> list[Record]:
    """Measure the named models."""
    parser = make_parser(__doc__, smoke={"limit": 64, "max_length": 256}, paper={"limit": None, "max_length": 512})
    parser.add_argument("--units", nargs="+", default=list(UNITS), choices=UNITS, help="corpora")
    parser.add_argument("--texts", nargs="+", type=Path, default=[], help="files of texts that were not trained on")
    parser.add_argument("--reference", default="base, left", help="row whose perplexities the others are divided by")
    parser.add_argument("--reading", default="infill", choices=READINGS, help="both sides of a span, or its left")
    parser.add_argument("--suffix", default="own", choices=["own", "other"], help="the text after a span")
    parser.add_argument("--corpus", default="rocstories", choices=CORPORA, help="stories; each corpus is a unit")
    add_limit(parser, "stories and blocks, drawn at random; all if left out")
    parser.add_argument("--max_length", type=int, help="tokens of a block of WikiText, BOS included")
    args = parse(parser, arguments)
    check_arguments(args)
    records = run(TABLE, args, make_units(args))
    print_ratios(records, args)
    return records


if __name__ == "__main__":
    start(main)
