"""Gaps inside words: does healing the seams help to complete them?

    python examples/evaluate/broken_words.py --model_name_or_path DIR --texts FILE --output words.json

Words of held-out text lose letters from their middle, at least two at either end staying. A fill is right where it
puts the very letters back, and spells a word where the joined letters occur as a word in the texts. One to three
tokens are tried for each, the model choosing the number.
"""

import re
import sys
from pathlib import Path
from typing import Any, NamedTuple

# A script finds its own folder alone.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np

from examples.command_line import OneLineParser, add_device, add_model, also, at_least, choose_device, start
from examples.evaluate.results import write_results
from examples.models import open_magnet
from trainer import load_texts

LENGTHS = (1, 2, 3)
CONTEXT_CHARACTERS = 300
WORD = re.compile(r"(?<= )[a-z]{6,}(?=[ ,.])")


class BrokenWord(NamedTuple):
    """A piece of text with letters missing from one of its words."""

    prefix: str
    missing: str
    suffix: str

    def spelt(self, fill: str) -> str:
        """The word that a fill makes."""
        return self.prefix.rpartition(" ")[2] + fill + re.split(r"[ ,.]", self.suffix, maxsplit=1)[0]


def break_words(texts: list[str], *, number: int, seed: int) -> list[BrokenWord]:
    """One word in each of as many texts, cut at random.

    Raises:
        ValueError: too few texts with a long word in the midst of them.
    """
    draw = np.random.default_rng(seed)
    broken = []
    for index in draw.permutation(len(texts)):
        text = texts[int(index)]
        found = [
            match for match in WORD.finditer(text, CONTEXT_CHARACTERS) if match.end() + CONTEXT_CHARACTERS < len(text)
        ]
        if not found:
            continue
        match = found[int(draw.integers(len(found)))]
        length = match.end() - match.start()
        left = int(draw.integers(2, length - 3))
        right = int(draw.integers(left + 1, length - 1))
        start, end = match.start() + left, match.start() + right
        before, after = text[start - CONTEXT_CHARACTERS : start], text[end : end + CONTEXT_CHARACTERS]
        broken.append(BrokenWord(before.partition(" ")[2], text[start:end], after))
        if len(broken) == number:
            return broken
    raise ValueError(f"{len(broken)} of {len(texts)} texts have a word to break; {number} were asked for.")


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """Break, fill, count, print, write."""
    parser = OneLineParser(description=__doc__)
    also(parser, add_model(parser, help="the adapted model"), "--magnet")
    parser.add_argument("--texts", required=True, help="held-out texts")
    parser.add_argument("--number", type=at_least(), default=300, help="words")
    parser.add_argument("--seed", type=at_least(0), default=0, help="draws texts, words and cuts")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    add_device(parser)
    args = parser.parse_args(arguments)
    model = open_magnet(args.model, device=choose_device(args.device))
    texts = list(load_texts(args.texts)["text"])
    broken = break_words(texts, number=args.number, seed=args.seed)
    words = {word for text in texts for word in re.findall(r"[a-z]+", text)}
    report: dict[str, Any] = {"words": len(broken), "heal": {}}
    print(f"{'heal':12s}{'right':>8s}{'spells a word':>15s}")
    for heal in (None, "token"):
        fills = model.infill(
            [one.prefix for one in broken], [one.suffix for one in broken], num_tokens=list(LENGTHS), heal=heal
        )
        right = float(np.mean([fill == one.missing for fill, one in zip(fills, broken, strict=True)]))
        spelt = float(np.mean([one.spelt(fill) in words for fill, one in zip(fills, broken, strict=True)]))
        report["heal"][str(heal)] = {"right": right, "spells_a_word": spelt}
        print(f"{heal!s:12s}{right:8.1%}{spelt:15.1%}")
    write_results(args.output, report, models={"magnet": args.model})
    print(f"broken_words: OK ({len(broken)} words)")
    return report


if __name__ == "__main__":
    start(main)
