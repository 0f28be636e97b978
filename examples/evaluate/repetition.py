"""Reproduce Table 11 and Figures 5 and 6 of the paper: how much greedy open-ended generation repeats itself.

    python examples/evaluate/repetition.py --model base=meta-llama/Llama-2-7b-hf MAGNET=outputs/magnet
    python examples/evaluate/repetition.py --model MAGNET=outputs/magnet/checkpoint-400 --step 400

Beginnings are the first five words of a paragraph of WikiText, or the first sentence of a story of ROCStories; 1,000
of each are continued by up to 128 tokens (the paper says neither number), without a repetition penalty, until the
model ends the text. `rep_sen` is the share of sentences of what was written that repeat an earlier one, `rep_4` that
of 4-grams of words, which vocabularies share, and `rep_4_tokens` that of tokens, which also sees a word without end;
averaged over continuations. One that ends at once repeats nothing: `counts` has how many tokens were written. A curve
over training steps is one command for each checkpoint.
"""

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np

from examples.command_line import raise_complaints, start
from examples.evaluate.parts import stories, wikitext
from examples.evaluate.parts.continuing import continue_texts
from examples.evaluate.parts.driver import Measurement, Unit, run, unless_absent
from examples.evaluate.parts.options import (
    add_batch_size,
    add_limit,
    add_max_new_tokens,
    complaints_of,
    make_parser,
    model_complaints,
    parse,
)
from examples.evaluate.parts.records import Record
from modeling_magnet.families_magnet import open_without_weights
from modeling_magnet.tokenization_magnet import context_length
from trainer.metrics import repetition_n, repetition_sentences

SMOKE = {"limit": 16, "max_new_tokens": 64}
PAPER = {"limit": 1000, "max_new_tokens": 128}
PREFIX_WORDS = 5
SAMPLES = 3
_FIRST_WORDS = re.compile(rf"\s*(\S+(?:\s+\S+){{{PREFIX_WORDS - 1}}})(?=\s+\S)")


def wikitext_beginnings(folder: Path | None) -> list[str]:
    """Return the first five words of each paragraph that has more words and no `<unk>` among the five."""
    beginnings = map(first_words, wikitext.read_wikitext(folder, keep_unknown=True))
    # The raw texts on the Hub contain rare words; those of a folder have `<unk>`, which no text would continue.
    return [words for words in beginnings if words is not None and wikitext.UNKNOWN not in words]


def rocstories_beginnings(folder: Path | None) -> list[str]:
    """Return the first sentence of each story."""
    return [story[0] for story in stories.read_stories(folder)]


def first_words(text: str) -> str | None:
    """Return the first five words unchanged, or `None` if no words follow them.

    Example:
        >>> first_words("One, two  three 4.5 five, six.")
        'One, two  three 4.5 five,'
    """
    match = _FIRST_WORDS.match(text)
    return None if match is None else match[1]


class Corpus(NamedTuple):
    """Describe a corpus: its reader, its beginnings, and its source."""

    read: Callable[[Path | None], list[str]]
    beginning: str
    source: Callable[[Path | None], str]


CORPORA = {
    "WikiText": Corpus(wikitext_beginnings, f"first {PREFIX_WORDS} words", wikitext.wikitext_source),
    "ROCStories": Corpus(rocstories_beginnings, "first sentence", lambda folder: stories.stories_source(folder)[0]),
}


def draw(beginnings: Sequence[str], *, limit: int, seed: int) -> list[str]:
    """Draw beginnings at random, in the order of the corpus; if there are no more than requested, return all."""
    order = np.random.default_rng(seed).permutation(len(beginnings))[:limit]
    return [beginnings[int(index)] for index in sorted(order)]


def measure(model: Any, *, read: Callable[[], list[str]], args: argparse.Namespace) -> Measurement:
    """Continue the beginnings of a corpus and measure the repetition.

    Raises:
        NotAvailableError: If the corpus is on the Hub, which cannot be reached.
    """
    beginnings = draw(unless_absent(read, folder=args.data), limit=args.limit, seed=args.seed)
    if not beginnings:
        raise ValueError("`--data` has a corpus with nothing to continue. Name a folder with its texts.")
    written = continue_texts(model, beginnings, max_new_tokens=args.max_new_tokens, batch_size=args.batch_size)
    texts = [continuation.text for continuation in written]
    return Measurement(
        metrics={
            "rep_sen": repetition_sentences(texts),
            "rep_4": repetition_n(texts, n=4),
            "rep_4_tokens": repetition_n([continuation.token_ids for continuation in written], n=4),
        },
        counts={
            "texts": len(texts),
            "tokens": sum(len(continuation.token_ids) for continuation in written),
            "ended": sum(continuation.has_ended for continuation in written),
        },
        samples=[
            {"prefix": prefix, "continuation": text}
            for prefix, text in zip(beginnings[:SAMPLES], texts[:SAMPLES], strict=True)
        ],
    )


def _check_model(path: str, args: argparse.Namespace) -> None:
    """Refuse a model without enough positions for the new tokens."""
    positions = context_length(*open_without_weights(path))
    if args.max_new_tokens >= positions:
        raise ValueError(f"`--max_new_tokens` is {args.max_new_tokens}, but it has {positions} positions. Lower it.")


def main(arguments: list[str] | None = None) -> list[Record]:
    """Measure the named models."""
    parser = make_parser(__doc__, smoke=SMOKE, paper=PAPER)
    add_limit(parser, "beginnings of each corpus, drawn at random")
    add_max_new_tokens(parser, "continuation")
    add_batch_size(parser, "continuations at once")
    args = parse(parser, arguments)
    complaints = model_complaints(args.model, lambda path: _check_model(path, args))
    complaints += complaints_of({name: partial(corpus.source, args.data) for name, corpus in CORPORA.items()})
    raise_complaints(complaints)
    units = [
        Unit(
            name,
            {
                "reading": "causal",
                "prefix": corpus.beginning,
                "limit": args.limit,
                "new_tokens": args.max_new_tokens,
                "data": corpus.source(args.data),
            },
            partial(measure, read=cache(partial(corpus.read, args.data)), args=args),
        )
        for name, corpus in CORPORA.items()
    ]
    return run("repetition", args, units)


if __name__ == "__main__":
    start(main)
