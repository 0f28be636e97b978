"""Reproduce section 5 of the paper: perplexity of whole texts from left to right, before and after adaptation.

    python examples/evaluate/text_perplexity.py --model base=DIR MAGNET=DIR
    python examples/evaluate/text_perplexity.py --model base=DIR MAGNET=DIR --texts Wikipedia=articles.jsonl.xz

A text is cut into windows of the context length that do not overlap; BOS is before each, and each token
counts once. WikiText is one text, headings included, its lines joined by newlines; of a file each row is a text.
"""

import argparse
import sys
from functools import cache, partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from examples.command_line import at_least, named_items, raise_complaints, start
from examples.evaluate.parts.driver import Measurement, Unit, run, unless_absent
from examples.evaluate.parts.options import add_limit, complaints_of, make_parser, model_complaints, parse
from examples.evaluate.parts.records import Record
from examples.evaluate.parts.span_rows import RemovedSpans, span_logprobs
from examples.evaluate.parts.wikitext import read_wikitext, wikitext_form, wikitext_source
from modeling_magnet.families_magnet import open_without_weights
from modeling_magnet.tokenization_magnet import bos_ids, context_length, text_ids
from trainer import load_texts
from trainer.metrics import perplexity
from trainer.sources import local_files


def make_windows(tokenizer: Any, texts: list[str], *, size: int) -> list[RemovedSpans]:
    """Split texts into windows in which every token counts except the first, which is BOS if the tokenizer has one."""
    front = bos_ids(tokenizer)
    step = size - len(front)
    rows = []
    for text in texts:
        ids = text_ids(tokenizer, text)
        cut = [front + ids[begin : begin + step] for begin in range(0, len(ids), step)]
        rows += [RemovedSpans(window, [(1, len(window))]) for window in cut if len(window) > 1]
    return rows


def measure(model: Any, read: Any, args: argparse.Namespace) -> Measurement:
    """Measure the perplexity of all tokens of a corpus."""
    texts = read()
    size = args.max_length or context_length(model.config, model.tokenizer)
    rows = make_windows(model.tokenizer, texts, size=size)[: args.limit]
    by_row = span_logprobs(model, rows, reading="left")
    tokens = sum(map(len, by_row))
    value = perplexity(-sum(map(sum, by_row)), tokens)
    counts = {"texts": len(texts), "windows": len(rows), "window": size, "tokens": tokens}
    return Measurement(metrics={"perplexity": value}, counts=counts)


def make_units(args: argparse.Namespace) -> list[Unit]:
    """Return the columns: WikiText, and the named files."""

    @cache
    def wikitext() -> list[str]:
        lines = unless_absent(lambda: read_wikitext(args.data, headings=True), folder=args.data)
        return ["\n".join(lines)]

    def texts_of(file: str) -> list[str]:
        return list(load_texts(file)["text"])

    shared = {"window": args.max_length or "the model's context", "limit": args.limit}
    settings = {**shared, "source": wikitext_source(args.data), "text": wikitext_form()}
    units = [Unit("WikiText", settings, partial(measure, read=wikitext, args=args))]
    for name, file in args.texts.items():
        read = cache(partial(texts_of, file))
        units.append(Unit(name, {**shared, "source": Path(file).name}, partial(measure, read=read, args=args)))
    return units


def check_arguments(args: argparse.Namespace) -> None:
    """Refuse invalid arguments before weights are read; convert `--texts` to names and files."""
    args.texts, faults = named_items(args.texts, option="--texts", what="FILE")
    if "WikiText" in args.texts:
        faults.append("`--texts` has a corpus named WikiText, which is measured anyway. Give it another name.")
    faults += complaints_of({name: partial(local_files, file, name="--texts") for name, file in args.texts.items()})
    faults += complaints_of({"WikiText": lambda: wikitext_source(args.data)})
    faults += model_complaints(args.model, lambda path: _check_model(path, args))
    raise_complaints(faults)


def _check_model(path: str, args: argparse.Namespace) -> None:
    context = context_length(*open_without_weights(path))
    if args.max_length is not None and args.max_length > context:
        raise ValueError(f"`--max_length` is {args.max_length}, but it reads {context} tokens at most. Lower it.")


def main(arguments: list[str] | None = None) -> list[Record]:
    """Measure the named models."""
    parser = make_parser(__doc__, smoke={"limit": 16}, paper={"limit": None})
    parser.add_argument("--texts", nargs="+", default=[], metavar="NAME=FILE", help="further corpora, as .jsonl.xz")
    add_limit(parser, "windows of each corpus, from the first on; all if left out")
    parser.add_argument("--max_length", type=at_least(2), help="tokens per window; defaults to the model's context")
    args = parse(parser, arguments)
    check_arguments(args)
    return run("perplexity", args, make_units(args))


if __name__ == "__main__":
    start(main)
