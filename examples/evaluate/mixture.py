"""A training corpus of several kinds of text in fixed shares, for the second MAGNET row of Table 6.

    python examples/evaluate/mixture.py --texts 2:wikipedia.jsonl.xz 1:stories.txt.xz 1:papers.tsv.gz:abstract \
        --characters 30000000 --output mixture.jsonl

A source is SHARE:FILE[:COLUMN], its column `text` if none is named. Short texts of a source are joined until they fill
a row of training, so that a step of the mixture has as many tokens as one of long articles. A source that is too small
for its share is used once in full, which is said. (The paper takes SlimPajama, `DKYoon/SlimPajama-6B` on the Hub.)
"""

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
from tqdm import tqdm

from examples.command_line import OneLineParser, at_least, start
from trainer import load_texts
from trainer.whole_files import whole_file

# Characters of a row of the output at least: more than 512 tokens of English.
ROW_CHARACTERS = 4000
# What stands between texts in TinyStories, and is not one.
SEPARATORS = ("<|endoftext|>",)


def joined(texts: Sequence[str], *, least: int) -> Iterator[str]:
    """Join texts, a blank line between them, until a row has `least` characters; the last row may be shorter.

    Example:
        >>> list(joined(["One.", "Two.", "Three is long."], least=8))
        ['One.\\n\\nTwo.', 'Three is long.']
    """
    row: list[str] = []
    for text in texts:
        row.append(text)
        if sum(map(len, row)) + 2 * (len(row) - 1) >= least:
            yield "\n\n".join(row)
            row = []
    if row:
        yield "\n\n".join(row)


def drawn(texts: Sequence[str], *, characters: int, generator: np.random.Generator) -> list[str]:
    """Return rows of texts in random order, of a given number of characters together, or all there are."""
    order = generator.permutation(len(texts))
    rows, total = [], 0
    for row in joined([texts[int(index)] for index in order], least=ROW_CHARACTERS):
        if total >= characters:
            break
        rows.append(row)
        total += len(row)
    return rows


def main(arguments: list[str] | None = None) -> dict[str, int]:
    """Write a mixture."""
    parser = OneLineParser(description=__doc__)
    parser.add_argument("--texts", nargs="+", required=True, metavar="SHARE:FILE[:COLUMN]", help="the sources")
    parser.add_argument("--characters", type=at_least(), default=30_000_000, help="of the whole mixture")
    parser.add_argument("--seed", type=at_least(0), default=0, help="draws and shuffles texts")
    parser.add_argument("--output", type=Path, required=True, help=".jsonl file to write")
    args = parser.parse_args(arguments)
    sources = [_source(item) for item in args.texts]
    whole = sum(share for share, _, _ in sources)
    generator = np.random.default_rng(args.seed)
    rows: list[str] = []
    written: dict[str, int] = {}
    for share, file, column in tqdm(sources, desc="Mixing", unit="source"):
        texts = [text for text in load_texts(file, text_column=column)["text"] if text.strip() not in SEPARATORS]
        wanted = round(args.characters * share / whole)
        own = drawn(texts, characters=wanted, generator=generator)
        written[file] = sum(map(len, own))
        short = "" if written[file] >= wanted else f", all there is; {wanted:,} were asked for"
        print(f"{Path(file).name}: {written[file]:,} characters{short}", flush=True)
        rows += own
    args.output.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(args.output) as stream:
        for index in generator.permutation(len(rows)):
            stream.write((json.dumps({"text": rows[int(index)]}, ensure_ascii=False) + "\n").encode())
    print(f"mixture: OK ({args.output}; {len(rows):,} rows)")
    return written


def _source(item: str) -> tuple[float, str, str]:
    """Return share, file and column of a source."""
    share, _, rest = item.partition(":")
    file, _, column = rest.partition(":")
    try:
        if not (file and float(share) > 0):
            raise ValueError
    except ValueError:
        raise ValueError(f"`--texts` has {item!r}; expected SHARE:FILE[:COLUMN], such as 2:texts.jsonl.") from None
    return float(share), file, column or "text"


if __name__ == "__main__":
    start(main)
