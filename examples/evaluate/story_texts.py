"""Write TinyStories as texts to train on, half of them in lower case: both are rare in Wikipedia.

    python examples/evaluate/story_texts.py --data ../shared/data/stories --output outputs/stories.jsonl.xz --copies 6

Without `--data`, the stories come from the Hub.
"""

import lzma
import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from examples.command_line import OneLineParser, at_least, start
from examples.evaluate.parts.stories import read_stories
from trainer.files import atomic_write, json_bytes


def main(arguments: list[str] | None = None) -> None:
    """Write the texts."""
    parser = OneLineParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="folder with the data files; by default from the Hub")
    parser.add_argument("--output", type=Path, required=True, help="file to write, .jsonl.xz")
    parser.add_argument("--copies", type=at_least(), default=1, help="copies of each story, each in lower case or not")
    args = parser.parse_args(arguments)
    draw = random.Random(0)
    texts = [" ".join(story) for story in read_stories(args.data, corpus="tinystories")] * args.copies
    lines = [json_bytes({"text": text.lower() if draw.random() < 0.5 else text}) for text in texts]
    args.output.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(args.output) as file:
        file.write(lzma.compress(b"\n".join(lines) + b"\n"))
    print(f"story_texts: OK ({len(lines):,} texts; {args.output})")


if __name__ == "__main__":
    start(main)
