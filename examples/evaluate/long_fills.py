"""Reproduce Appendix E of the paper: long spans, filled at once or in chunks that can use earlier chunks.

    python examples/evaluate/long_fills.py --model MAGNET=DIR --judge BASE
    python examples/evaluate/long_fills.py --model MAGNET=DIR --judge BASE --texts articles.jsonl.xz --chunks 128 32

Spans of 128 tokens of held-out texts are filled greedily and by sampling. Each fill is measured by its repetitions, by
its perplexity under a causal model (`--judge`), and by the perplexity of the text after it given prefix and fill. The
removed text, an empty fill, and a continuation by the judge are measured in the same way.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import torch

from examples.command_line import at_least, raise_complaints, start
from examples.evaluate.parts.driver import Measurement, Unit, open_magnet, run, unless_absent
from examples.evaluate.parts.options import add_limit, complaints_of, make_parser, model_complaints, parse
from examples.evaluate.parts.prompted_infilling import PromptedInfiller
from examples.evaluate.parts.records import Record, identify
from examples.evaluate.parts.wikitext import read_wikitext, wikitext_form, wikitext_source
from modeling_magnet.families_magnet import open_without_weights
from modeling_magnet.spans_magnet import continuation_ids, decode_fill
from modeling_magnet.tokenization_magnet import text_ids
from trainer import load_texts
from trainer.metrics import perplexity, repetition_n
from trainer.sources import is_hub_id, local_files

# Number of tokens after a span that are judged.
CONTINUATION_TOKENS = 32
PREFIX_TOKENS, SUFFIX_TOKENS = 192, 128
SAMPLING: dict[str, Any] = {"do_sample": True, "top_p": 0.9, "temperature": 0.8, "top_k": 0}
KINDS: dict[str, dict[str, Any]] = {"greedy": {}, "sampled": SAMPLING}
# Characters of joined WikiText paragraphs, enough for a span and its surroundings.
TEXT_CHARACTERS = 4000


class HeldOutSpan(NamedTuple):
    """A span of a text and its surroundings."""

    prefix: str
    truth: str
    suffix: str
    length: int  # number of tokens of the original span


def draw_spans(
    source: str | Sequence[str],
    tokenizer: Any,
    *,
    lengths: Sequence[int],
    prefix_tokens: int,
    suffix_tokens: int,
    seed: int,
) -> list[HeldOutSpan]:
    """Draw one span per text for the given lengths; span and suffix begin at a space, as words do."""
    draw = np.random.default_rng(seed)
    name = repr(source) if isinstance(source, str) else f"A list of {len(source)} texts"
    texts = load_texts(source)["text"] if isinstance(source, str) else source
    spans: list[HeldOutSpan] = []
    for index in draw.permutation(len(texts)):
        if len(spans) == len(lengths):
            break
        length = lengths[len(spans)]
        ids = text_ids(tokenizer, texts[int(index)][:40_000])
        places = draw.permutation(max(len(ids) - prefix_tokens - length - suffix_tokens, 0))[:50]
        for first in (int(place) + prefix_tokens for place in places):
            before, own = ids[first - prefix_tokens : first], ids[first : first + length]
            after = ids[first + length : first + length + suffix_tokens]
            prefix = str(tokenizer.decode(before, clean_up_tokenization_spaces=False))
            truth, suffix = decode_fill(tokenizer, before, own), decode_fill(tokenizer, [*before, *own], after)
            # Only texts that tokenize back to the same tokens, so that the original span has the stated length.
            same = continuation_ids(tokenizer, truth) == own and "\n" not in truth
            if same and truth.startswith(" ") and suffix.startswith(" "):
                spans.append(HeldOutSpan(prefix.lstrip(), truth, suffix, length))
                break
    if len(spans) < len(lengths):
        raise ValueError(
            f"{name} has {len(spans)} texts that are long enough; {len(lengths)} are needed. Lower `--limit`."
        )
    return spans


def continuation_perplexity(judge: Any, tokenizer: Any, spans: Sequence[HeldOutSpan], fills: Sequence[str]) -> float:
    """Return the perplexity of the text after the spans to a causal model that has read prefix and fill.

    The first `CONTINUATION_TOKENS` tokens of each suffix count. An incoherent fill makes them surprising.
    """
    reader = PromptedInfiller(judge, tokenizer)
    starts = [
        tokenizer.decode(
            continuation_ids(tokenizer, span.suffix)[:CONTINUATION_TOKENS], clean_up_tokenization_spaces=False
        )
        for span in spans
    ]
    starts = [start if start.startswith(" ") else f" {start}" for start in starts]
    with torch.no_grad():
        scored = reader.score_infill(
            [span.prefix + fill for span, fill in zip(spans, fills, strict=True)],
            [[start] for start in starts],
            [""] * len(spans),
        )
    total = -sum(candidates[0].logprob for candidates in scored)
    return perplexity(total, sum(len(candidates[0].token_ids) for candidates in scored))


class Judge:
    """The model that reads the fills, opened for the first unit, and the spans in each model's tokens."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.opened = cache(lambda: open_magnet(args.judge, args))
        self.texts = cache(lambda: args.texts or joined_wikitext(args))
        self.drawn: tuple[Any, list[HeldOutSpan]] = (None, [])

    def spans(self, model: Any) -> list[HeldOutSpan]:
        """Draw the spans in the tokens of a model, and keep them while that model is measured."""
        if self.drawn[0] is not model.tokenizer:
            spans = draw_spans(
                self.texts(),
                model.tokenizer,
                lengths=[self.args.span_tokens] * self.args.limit,
                prefix_tokens=PREFIX_TOKENS,
                suffix_tokens=SUFFIX_TOKENS,
                seed=self.args.seed,
            )
            self.drawn = (model.tokenizer, spans)
        return self.drawn[1]

    def measure(self, model: Any, *, write: Callable[[Any, list[HeldOutSpan]], list[str]]) -> Measurement:
        """Measure the judge's perplexity of the fills that `write` returns, and of the text after them."""
        judge, spans = self.opened(), self.spans(model)
        fills = write(model, spans)
        metrics = {"continuation_perplexity": continuation_perplexity(judge, judge.tokenizer, spans, fills)}
        metrics["rep_4"] = repetition_n(fills)
        if any(fills):
            reader = PromptedInfiller(judge, judge.tokenizer)
            scored = [row[0] for row in reader.score_infill(*_around(spans, fills=[[fill] for fill in fills]))]
            tokens = sum(len(fill.token_ids) for fill in scored)
            metrics["fill_perplexity"] = perplexity(-sum(fill.logprob for fill in scored), tokens)
        shown = [span._asdict() | {"fill": fill} for span, fill in zip(spans[:3], fills, strict=False)]
        return Measurement(metrics=metrics, counts={"gaps": len(spans)}, samples=shown)


def _around(spans: list[HeldOutSpan], *, fills: Any = None) -> list[Any]:
    """Return prefixes, fills if there are any, and suffixes."""
    return [[span.prefix for span in spans], *([] if fills is None else [fills]), [span.suffix for span in spans]]


def joined_wikitext(args: argparse.Namespace) -> list[str]:
    """Join neighboring paragraphs of WikiText until they are long enough for a span."""
    texts = [""]
    for paragraph in unless_absent(lambda: read_wikitext(args.data), folder=args.data):
        if len(texts[-1]) >= TEXT_CHARACTERS:
            texts.append("")
        texts[-1] += f" {paragraph}" if texts[-1] else paragraph
    return texts


def make_units(args: argparse.Namespace) -> list[Unit]:
    """Return a unit for each way to fill, and for each baseline."""
    judge = Judge(args)
    settings = {
        "judge": identify(args.judge),
        "texts": Path(args.texts).name if args.texts else f"{wikitext_source(args.data)}, {wikitext_form()}",
        "gap_tokens": args.span_tokens,
        "prefix_tokens": PREFIX_TOKENS,
        "suffix_tokens": SUFFIX_TOKENS,
        "continuation_tokens": CONTINUATION_TOKENS,
        "number": args.limit,
    }

    def infill(model: Any, spans: list[HeldOutSpan], *, kind: str, chunk: int) -> list[str]:
        torch.manual_seed(args.seed)
        fills: list[str] = model.infill(
            *_around(spans), max_new_tokens=args.span_tokens, chunk_size=chunk, **KINDS[kind]
        )
        return fills

    def continue_prefix(model: Any, spans: list[HeldOutSpan], *, kind: str) -> list[str]:
        torch.manual_seed(args.seed)
        reader = PromptedInfiller(judge.opened(), judge.opened().tokenizer)
        fills: list[str] = reader.infill(*_around(spans), max_new_tokens=args.span_tokens, **KINDS[kind])
        return fills

    def unit(name: str, write: Any, **more: Any) -> Unit:
        return Unit(name, {**settings, **more}, partial(judge.measure, write=write))

    units = [
        unit("what stood there", lambda model, spans: [span.truth for span in spans]),
        unit("nothing", lambda model, spans: [""] * len(spans)),
    ]
    for kind in args.kinds:
        more = {"sampling": KINDS[kind]}
        units.append(unit(f"judge, left to right, {kind}", partial(continue_prefix, kind=kind), **more))
        for chunk in args.chunks:
            name = "at once" if chunk == args.span_tokens else f"chunks of {chunk}"
            units.append(unit(f"{name}, {kind}", partial(infill, kind=kind, chunk=chunk), **more))
    return units


def check_arguments(args: argparse.Namespace) -> None:
    """Refuse invalid arguments before weights are read."""
    complaints = []
    if wrong := [chunk for chunk in args.chunks if chunk > args.span_tokens]:
        complaints.append(
            f"`--chunks` has {wrong}; expected 1 to {args.span_tokens}, the tokens of a span. Leave them out."
        )
    complaints += model_complaints({**args.model, "the judge": args.judge}, lambda path: _check_model(path, args))
    if args.texts is None:
        complaints += complaints_of({"WikiText": lambda: wikitext_source(args.data)})
    elif not is_hub_id(args.texts):
        complaints += complaints_of({"`--texts`": lambda: local_files(args.texts, name="--texts")})
    raise_complaints(complaints)


def _check_model(path: str, args: argparse.Namespace) -> None:
    needed = PREFIX_TOKENS + args.span_tokens + SUFFIX_TOKENS + 1
    context = open_without_weights(path)[0].max_position_embeddings
    if context < needed:
        raise ValueError(f"it reads {context} tokens, but a span and its text take {needed}. Lower `--span_tokens`.")


def main(arguments: list[str] | None = None) -> list[Record]:
    """Fill, judge, print, and record."""
    paper = {"limit": 200, "span_tokens": 128, "chunks": [128, 64, 32, 16, 8], "kinds": list(KINDS)}
    parser = make_parser(__doc__, smoke={**paper, "limit": 8, "chunks": [128, 32], "kinds": ["greedy"]}, paper=paper)
    parser.add_argument("--judge", required=True, help="a causal model that reads the fills and the text after them")
    parser.add_argument("--texts", help="held-out texts, a file or a data set of the Hub; defaults to WikiText")
    add_limit(parser, "spans")
    parser.add_argument("--span_tokens", type=at_least(), help="tokens of a span")
    parser.add_argument("--chunks", type=at_least(), nargs="+", help="tokens filled at once")
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), help="how tokens are chosen")
    args = parse(parser, arguments)
    check_arguments(args)
    return run("long_fills", args, make_units(args))


if __name__ == "__main__":
    start(main)
