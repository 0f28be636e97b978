"""Reproduce Tables 9 to 11: the systems' sentences in the blanks of stories, and their continuations, side by side.

    python examples/evaluate/side_by_side.py --model base=meta-llama/Llama-2-7b-hf MAGNET=outputs/magnet \
        "LLM2Vec recipe=outputs/llm2vec"
    python examples/evaluate/side_by_side.py --model base=DIR MAGNET=DIR --data DIR --stories mine.jsonl --preset smoke

The stories and beginnings of the paper's tables are not part of this project. Without `--stories`, held-out texts are
drawn at random: stories of ROCStories on the Hub, or of Story Cloze in a folder, without a middle sentence; and the
first five words of paragraphs of WikiText. To see the paper's own, write them into a file: a JSON object a line, with
`prefix` and `suffix` for a blank, `prefix` only for a text to continue, and, if wanted, `title`. A kind of which the
file has none is drawn. Solved examples are always drawn.

The model named `base` continues from the left and is prompted, without and with solved examples; the one named
`MAGNET` infills; both, and all others, continue from left to right.
"""

import argparse
import contextlib
import hashlib
import io
import json
import sys
from collections.abc import Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from examples.command_line import at_least, raise_complaints, start
from examples.evaluate.parts import options
from examples.evaluate.parts.continuing import continue_texts
from examples.evaluate.parts.driver import Measurement, NotAvailableError, Unit, open_magnet, run
from examples.evaluate.parts.fill_systems import BASE, MAGNET, SHOTS, FillSystem, StoryBlank, draw_blanks, fill_systems
from examples.evaluate.parts.prompted_infilling import SolvedBlank
from examples.evaluate.parts.records import Record
from examples.evaluate.parts.stories import read_stories
from examples.evaluate.parts.wikitext import read_text
from examples.evaluate.repetition import draw, wikitext_beginnings
from trainer.files import parse_json

SMOKE = {"limit": 2, "shots": 2, "continuation_tokens": 32}
PAPER = {"limit": 5, "shots": SHOTS, "continuation_tokens": 128}
BATCH_SIZE = 16


class Texts(NamedTuple):
    """The texts to fill and to continue, with titles."""

    blanks: dict[str, StoryBlank]
    examples: list[SolvedBlank]
    beginnings: dict[str, str]


def read_own(file: Path) -> tuple[dict[str, StoryBlank], dict[str, str]]:
    """Read the user's blanks and beginnings by title."""
    blanks: dict[str, StoryBlank] = {}
    beginnings: dict[str, str] = {}
    for number, line in enumerate(read_text(file).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
            title, prefix, suffix = row.get("title", f"Line {number}"), row["prefix"].strip(), row.get("suffix")
            if suffix is None:
                beginnings[title] = prefix
            else:
                blanks[title] = StoryBlank(prefix, "", f" {suffix.strip()}")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f'Line {number} of {str(file)!r} is {line!r:.80}; expected {{"prefix": TEXT, "suffix": TEXT, "title": '
                "TEXT}, the last two where wanted."
            ) from error
    return blanks, beginnings


def read_texts(args: argparse.Namespace) -> Texts:
    """Return the user's texts; draw texts of each kind that the user gave none of."""
    blanks, beginnings = read_own(args.stories) if args.stories is not None else ({}, {})
    stories = read_stories(args.data, corpus="rocstories" if args.data is None else "story_cloze")
    drawn, examples = draw_blanks(stories, number=args.limit, shots=args.shots, seed=args.seed)
    if not beginnings:
        words = draw(wikitext_beginnings(args.data), limit=args.limit, seed=args.seed)
        beginnings = {f"WikiText {number}": text for number, text in enumerate(words, start=1)}
    return Texts(blanks or {f"Story {n}": blank for n, blank in enumerate(drawn, start=1)}, examples, beginnings)


def fill(model: Any, *, system: FillSystem, texts: Texts, args: argparse.Namespace) -> Measurement:
    """Fill the blanks with a system.

    Raises:
        NotAvailableError: If a prompt or text is too long for the model.
    """
    blanks = list(texts.blanks.values())
    over = system.overflow(model, blanks, texts.examples, new_tokens=args.max_new_tokens)
    if over:
        raise NotAvailableError(f"its longest prompt exceeds the model's context by {over} tokens")
    try:
        fills = system.fill(
            model, blanks, examples=texts.examples, max_new_tokens=args.max_new_tokens, batch_size=BATCH_SIZE
        )
    except ValueError as error:  # a text that is too long for `infill`
        raise NotAvailableError(str(error)) from error
    samples = [
        {"title": title, "prefix": blank.prefix, "fill": text, "suffix": blank.suffix.strip()}
        for (title, blank), text in zip(texts.blanks.items(), fills, strict=True)
    ]
    return Measurement(metrics={}, counts={"texts": len(samples)}, samples=samples)


def continue_beginnings(model: Any, *, texts: Texts, args: argparse.Namespace) -> Measurement:
    """Continue the beginnings with a system.

    Raises:
        NotAvailableError: If a text leaves no room in the model's context.
    """
    beginnings, tokens = texts.beginnings, args.continuation_tokens
    try:
        written = continue_texts(model, list(beginnings.values()), max_new_tokens=tokens, batch_size=BATCH_SIZE)
    except ValueError as error:
        raise NotAvailableError(str(error)) from error
    pairs = zip(beginnings.items(), written, strict=True)
    samples = [{"title": title, "prefix": prefix, "continuation": written.text} for (title, prefix), written in pairs]
    return Measurement(metrics={}, counts={"texts": len(samples)}, samples=samples)


def units_of(name: str, args: argparse.Namespace, texts: Texts) -> dict[str, list[Unit]]:
    """Return the rows of the table for a model, with their columns."""
    digest = {"texts": hashlib.sha256(json.dumps(texts).encode()).hexdigest()[:16]}
    rows: dict[str, list[Unit]] = {}
    for system in fill_systems(shots=args.shots):
        if name == system.model:
            settings = {**digest, **system.settings(max_new_tokens=args.max_new_tokens)}
            rows[system.name] = [Unit("infilling", settings, partial(fill, system=system, texts=texts, args=args))]
    settings = {**digest, "reading": "causal", "new_tokens": args.continuation_tokens}
    measure = partial(continue_beginnings, texts=texts, args=args)
    rows.setdefault(name, []).append(Unit("continuation", settings, measure))
    return rows


def print_texts(records: Sequence[Record]) -> None:
    """Print the output of each system, text by text."""
    width = max((len(record.system) for record in records), default=0) + 2
    for unit, key in (("infilling", "fill"), ("continuation", "continuation")):
        lines_by_head: dict[str, list[str]] = {}
        for record in records:
            for sample in record.samples if record.unit == unit else ():
                head = f"\n{unit}, {sample['title']}: {sample['prefix']} [...] {sample.get('suffix', '')}".rstrip()
                lines_by_head.setdefault(head, []).append(f"  {record.system:{width}s}{' '.join(sample[key].split())}")
        for head, lines in lines_by_head.items():
            print("\n".join([head, *lines]))
    for record in records:
        if record.unavailable:
            print(f"{record.system}, {record.unit}: not available here: {record.unavailable}")


def main(arguments: list[str] | None = None) -> list[Record]:
    """Write, print, and record."""
    parser = options.make_parser(__doc__, smoke=SMOKE, paper=PAPER)
    parser.add_argument("--stories", type=Path, help="your own texts, see above: .jsonl, also .gz or .xz")
    options.add_limit(parser, "texts of each kind that are drawn")
    parser.add_argument("--shots", type=at_least(0), help="solved examples in the prompts that take some")
    options.add_max_new_tokens(parser, "fill", default=32)
    parser.add_argument("--continuation_tokens", type=at_least(), help="tokens of a written continuation, at most")
    args = options.parse(parser, arguments)
    rows = {system.name for system in fill_systems(shots=args.shots)} - {MAGNET}
    if taken := sorted(rows & args.model.keys()):
        raise_complaints([f"`--model` has {taken}, the names of rows of the table. Give the models other names."])
    texts = read_texts(args)

    open_once = lru_cache(maxsize=1)(lambda path: open_magnet(path, args))  # several rows share one model
    records = []
    for name, path in args.model.items():
        for system, units in units_of(name, args, texts).items():
            own = argparse.Namespace(**{**vars(args), "model": {system: path}})
            with contextlib.redirect_stdout(io.StringIO()):  # a table of figures cannot show texts
                records += run("side_by_side", own, units, open_model=lambda path, own: open_once(path))
    print_texts(records)
    for name in [name for name in (BASE, MAGNET) if name not in args.model]:
        print(f"No model is named {name}: its rows of the infilling are left out.")
    print(f"\nside_by_side: OK ({len(texts.blanks)} blanks, {len(texts.beginnings)} beginnings; {args.results})")
    return records


if __name__ == "__main__":
    start(main)
