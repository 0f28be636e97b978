"""Tables 9 to 11: what the systems write, side by side: sentences in the gaps of stories, and continuations.

    python examples/evaluate/side_by_side.py --model base=meta-llama/Llama-2-7b-hf MAGNET=outputs/magnet \
        "LLM2Vec recipe=outputs/llm2vec" --masked BERT=bert-large-uncased
    python examples/evaluate/side_by_side.py --model base=DIR MAGNET=DIR --data DIR --stories mine.jsonl --preset smoke

The stories and beginnings of the paper's tables are not part of this project. Without `--stories`, held-out texts are
drawn at random: stories of ROCStories on the Hub, or of Story Cloze in a folder, without a middle sentence; and the
first five words of paragraphs of WikiText. To see the paper's own, write them into a file: a JSON object a line, with
`prefix` and `suffix` for a gap, `prefix` alone for a text to go on with, and, if wanted, `title`. A kind of which the
file has none is drawn. Solved examples are always drawn.

The model named `base` goes on from the left and is prompted, without and with solved examples; the one named `MAGNET`
infills; both, and all others, continue from left to right. Models of `--masked` continue by appended masks.
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

from examples.command_line import at_least, check, start
from examples.evaluate.continuing import Reading, continue_texts
from examples.evaluate.driver import Measurement, NotAvailableError, Unit, run
from examples.evaluate.fill_systems import BASE, MAGNET, SHOTS, FillSystem, StoryGap, draw_gaps, fill_systems
from examples.evaluate.options import make_parser, parse
from examples.evaluate.records import Record
from examples.evaluate.repetition import draw, open_reader, wikitext_beginnings
from examples.evaluate.stories import Corpus, read_stories
from examples.evaluate.wikitext import read_text
from trainer.prompted_infilling import SolvedGap
from trainer.whole_files import parse_json

SMOKE = {"number": 2, "shots": 2, "new_tokens": 32}
PAPER = {"number": 5, "shots": SHOTS, "new_tokens": 128}
BATCH_SIZE = 16


class Texts(NamedTuple):
    """What is filled and continued, with titles."""

    gaps: dict[str, StoryGap]
    examples: list[SolvedGap]
    beginnings: dict[str, str]

    def digest(self) -> str:
        """Return what tells these texts from others."""
        return hashlib.sha256(json.dumps(self).encode()).hexdigest()[:16]


class Row(NamedTuple):
    """A system, what it reads with, and what it writes."""

    model: str
    reading: Reading
    units: list[Unit]


def read_own(file: Path) -> tuple[dict[str, StoryGap], dict[str, str]]:
    """Return the user's gaps and beginnings by title."""
    gaps: dict[str, StoryGap] = {}
    beginnings: dict[str, str] = {}
    complaints = []
    for number, line in enumerate(read_text(file).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
        except ValueError:
            row = None
        values = row.values() if isinstance(row, dict) else [None]
        if not (
            all(isinstance(value, str) and value.strip() for value in values)
            and {"prefix"} <= row.keys() <= {"prefix", "suffix", "title"}
        ):
            complaints.append(
                f'Line {number} of {str(file)!r} is {line!r:.80}; expected {{"prefix": TEXT, "suffix": TEXT, "title": '
                "TEXT}, the last two where wanted."
            )
            continue
        title = row.get("title", f"Line {number}")
        if title in gaps or title in beginnings:
            complaints.append(f"Line {number} of {str(file)!r} has the title {title!r}, as another line has.")
        if "suffix" in row:
            gaps[title] = StoryGap(row["prefix"].strip(), "", f" {row['suffix'].strip()}")
        else:
            beginnings[title] = row["prefix"].strip()
    if not (gaps or beginnings or complaints):
        complaints.append(f"{str(file)!r} has no line. Write a text into it.")
    check(complaints)
    return gaps, beginnings


def read_texts(args: argparse.Namespace) -> Texts:
    """Return the texts of a run: the user's, and drawn ones of a kind that the user gave none of."""
    gaps, beginnings = read_own(args.stories) if args.stories is not None else ({}, {})
    corpus: Corpus = "rocstories" if args.data is None else "story_cloze"
    drawn, examples = draw_gaps(
        read_stories(args.data, corpus=corpus), number=args.number, shots=args.shots, seed=args.seed
    )
    if not gaps:
        gaps = {f"Story {number}": gap for number, gap in enumerate(drawn, start=1)}
    if not beginnings:
        words = draw(wikitext_beginnings(args.data), limit=args.number, seed=args.seed)
        beginnings = {f"WikiText {number}": text for number, text in enumerate(words, start=1)}
    return Texts(gaps, examples, beginnings)


def fill(reader: tuple[Any, Any], *, system: FillSystem, texts: Texts, args: argparse.Namespace) -> Measurement:
    """Return what a system puts into the gaps.

    Raises:
        NotAvailableError: prompts or texts that the model cannot read.
    """
    model, gaps = reader[0], list(texts.gaps.values())
    over = system.overflow(model, gaps, texts.examples, room=args.max_new_tokens)
    if over:
        raise NotAvailableError(f"its longest prompt exceeds the model's context by {over} tokens")
    try:
        fills = system.fill(
            model, gaps, examples=texts.examples, max_new_tokens=args.max_new_tokens, batch_size=BATCH_SIZE
        )
    except ValueError as error:  # too long for the gaps of `infill`
        raise NotAvailableError(str(error)) from error
    samples = [
        {"title": title, "prefix": gap.prefix, "fill": text, "suffix": gap.suffix.strip()}
        for (title, gap), text in zip(texts.gaps.items(), fills, strict=True)
    ]
    return Measurement(metrics={}, counts={"texts": len(samples)}, samples=samples)


def go_on(reader: tuple[Any, Any], *, reading: Reading, texts: Texts, args: argparse.Namespace) -> Measurement:
    """Return how a system goes on.

    Raises:
        NotAvailableError: a text that leaves no room in the model's context.
    """
    options = {"reading": reading, "max_new_tokens": args.new_tokens, "batch_size": BATCH_SIZE}
    try:
        written = continue_texts(*reader, list(texts.beginnings.values()), **options)
    except ValueError as error:
        raise NotAvailableError(str(error)) from error
    pairs = zip(texts.beginnings.items(), written, strict=True)
    samples = [{"title": title, "prefix": prefix, "continuation": one.text} for (title, prefix), one in pairs]
    return Measurement(metrics={}, counts={"texts": len(samples)}, samples=samples)


def rows_of(args: argparse.Namespace, texts: Texts) -> dict[str, Row]:
    """Return the rows of the tables by system, those of one model after each other."""
    rows: dict[str, Row] = {}
    common = {"texts": texts.digest()}
    for name, path in {**args.model, **args.masked}.items():
        reading: Reading = "masked" if name in args.masked else "causal"
        for system in fill_systems(shots=args.shots):
            if name == system.model and reading == "causal":
                settings = {**common, **system.settings(max_new_tokens=args.max_new_tokens)}
                unit = Unit("infilling", settings, partial(fill, system=system, texts=texts, args=args))
                rows[system.name] = Row(path, reading, [unit])
        settings = {**common, "reading": reading, "new_tokens": args.new_tokens}
        unit = Unit("continuation", settings, partial(go_on, reading=reading, texts=texts, args=args))
        rows.setdefault(name, Row(path, reading, [])).units.append(unit)
    return rows


def print_texts(records: Sequence[Record]) -> None:
    """Print what each system wrote, text by text."""
    for unit, key in (("infilling", "fill"), ("continuation", "continuation")):
        of_unit = [record for record in records if record.unit == unit]
        titles = list(dict.fromkeys(sample["title"] for record in of_unit for sample in record.samples))
        width = max((len(record.system) for record in of_unit), default=0) + 2
        for title in titles:
            found = {r.system: s for r in of_unit for s in r.samples if s["title"] == title}
            first = next(iter(found.values()))
            print(f"\n{unit}, {title}: {first['prefix']} [...] {first.get('suffix', '')}".rstrip())
            for system, sample in found.items():
                print(f"  {system:{width}s}{' '.join(sample[key].split())}")
        for record in of_unit:
            if record.unavailable:
                print(f"{record.system}, {unit}: not available here: {record.unavailable}")


def _check_arguments(args: argparse.Namespace) -> None:
    """Refuse what cannot be; leaves the models of `masked` by name."""
    systems = [system.name for system in fill_systems(shots=args.shots) if system.name != MAGNET]
    complaints = [
        f"`--model` has {name!r}, the name of a row. Take another." for name in systems if name in args.model
    ]
    masked, args.masked = args.masked, {}
    for item in masked:
        name, _, path = item.partition("=")
        if not (name and path) or name in {*args.model, *args.masked, *systems}:
            complaints.append(f"`--masked` has {item!r}; expected NAME=MODEL with a name that nothing else has.")
        args.masked[name] = path
    if args.stories is not None and not args.stories.is_file():
        complaints.append(f"`--stories` {str(args.stories)!r} is not a file.")
    check(complaints)


def main(arguments: list[str] | None = None) -> list[Record]:
    """Write, print, keep."""
    parser = make_parser(__doc__, smoke=SMOKE, paper=PAPER)
    parser.add_argument("--masked", nargs="+", default=[], metavar="NAME=MODEL", help="masked encoders that continue")
    parser.add_argument("--stories", type=Path, help="your own texts, see above: .jsonl, also .gz or .xz")
    parser.add_argument("--number", type=at_least(), help="texts of each kind that are drawn")
    parser.add_argument("--shots", type=at_least(0), help="solved examples in front of the prompts that take some")
    parser.add_argument("--max_new_tokens", type=at_least(), default=32, help="tokens of a fill at most")
    parser.add_argument("--new_tokens", type=at_least(), help="tokens of a continuation at most")
    args = parse(parser, arguments)
    _check_arguments(args)
    texts = read_texts(args)

    @lru_cache(maxsize=1)  # several rows have one model
    def open_once(path: str, reading: Reading) -> tuple[Any, Any]:
        return open_reader(path, argparse.Namespace(**vars(args), reading=reading))

    records = []
    for system, row in rows_of(args, texts).items():
        own = argparse.Namespace(**{**vars(args), "model": {system: row.model}, "reading": row.reading})
        with contextlib.redirect_stdout(io.StringIO()):  # a table of figures has nothing to show of texts
            records += run("side_by_side", own, row.units, open_model=lambda path, own: open_once(path, own.reading))
    print_texts(records)
    for name in [name for name in (BASE, MAGNET) if name not in args.model]:
        print(f"No model is named {name}: its rows of the infilling are left out.")
    print(f"\nside_by_side: OK ({len(texts.gaps)} gaps, {len(texts.beginnings)} beginnings; {args.results})")
    return records


if __name__ == "__main__":
    start(main)
