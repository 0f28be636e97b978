"""Fill the blanks of your own text from both sides, beside what the same weights write from the left only.

    python examples/fill.py "Nora was at the market. She found a [blank] there. When the storm broke, she stayed dry."
    python examples/fill.py --model DIR_OR_HUB_ID --max_new_tokens 4 --num_return_sequences 5
    python examples/fill.py < texts.txt

Without a text it asks for one after another, or reads lines. Without `--model` it takes the quickstart's model, which
knows a small made-up language, and trains it on the first start. `infill_stories.py` fills files.
"""

import argparse
import math
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

# Busy-waiting threads slow a tiny model down many times if other jobs share the cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from transformers.utils import logging

from examples.command_line import OneLineParser, add_device, add_model, at_least, start
from examples.demo.infill import fill_from_left
from examples.models import not_adapted
from examples.toy.model import describe_model, open_model
from modeling_magnet import Fill
from modeling_magnet.spans_magnet import split_at_marks

# Below this, one digit after the point would print "0.0 %".
SMALLEST_PERCENT = 0.05


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Return the options; see `--help`."""
    parser = OneLineParser(description=__doc__)
    parser.add_argument("text", nargs="?", help="a text with [blank] in place of each missing part")
    add_model(parser, required=False, help="a MAGNET directory or Hub id; defaults to the quickstart model")
    parser.add_argument("--gguf_file", help="the GGUF file there that holds the model")
    parser.add_argument("--max_new_tokens", type=at_least(), help="tokens of each fill; default: the model chooses")
    parser.add_argument("--num_return_sequences", type=at_least(), default=3, help="answers to each blank")
    add_device(parser)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Fill the given texts and return the exit status."""
    args = parse_arguments(arguments)
    logging.disable_progress_bar()  # hides the bar of reading weights; training keeps its own
    model = open_model(args.model, gguf_file=args.gguf_file, device=args.device)
    print(f"Filling with {describe_model(model, named=args.model)}.")
    if args.model is not None and (note := not_adapted(args.model, gguf_file=args.gguf_file)):
        print(note)
    options = {"num_return_sequences": args.num_return_sequences, "max_new_tokens": args.max_new_tokens}
    if args.max_new_tokens is None:
        options["num_tokens"] = "auto"
    failed = 0
    for text in given_texts(args.text):
        try:
            blanks = model.infill_blanks(text, **options, return_dict_in_generate=True).fills[0]
            parts = split_at_marks(text, "[blank]", name="text")
            from_left = fill_from_left(model, parts, [len(answers[0].token_ids) for answers in blanks])
            print("\n" + render(parts, blanks, from_left))
        except ValueError as error:  # a later text may be valid
            print(f"error: {error}", file=sys.stderr)
            failed += 1
    return 1 if failed else 0


def given_texts(text: str | None) -> Iterator[str]:
    """Yield the text of the command line, or the lines of standard input until it ends."""
    if text is not None:
        yield text
        return
    while True:
        try:
            line = input("\nA text with [blank] in it (Ctrl+D ends): " if sys.stdin.isatty() else "")
        except EOFError:
            return
        if line.strip():
            yield line


def render(parts: Sequence[str], blanks: Sequence[Sequence[Fill]], from_left: Sequence[Fill] | None) -> str:
    """Render the text as filled from both sides and from the left only, and all answers to each blank.

    Example:
        >>> print(render(["She ", " dry."], [[Fill("stayed", [7], [-0.5])]], from_left=None))
        from both sides:     She <stayed> dry.
        blank 1:  60.7 %  stayed
    """
    lines = [f"from both sides:     {_in_place(parts, [answers[0] for answers in blanks])}"]
    if from_left is not None:
        lines.append(f"from the left only:  {_in_place(parts, from_left)}")
    for number, answers in enumerate(blanks, start=1):
        for answer in answers:
            lines.append(f"blank {number}: {how_likely(answer)}  {_on_one_line(answer.text)}")
    return "\n".join(lines)


def how_likely(answer: Fill) -> str:
    """Format the probability of a fill; if many tokens make it tiny, add the geometric mean per token.

    Example:
        >>> how_likely(Fill("a", [7], [-0.5])), how_likely(Fill("a", [7] * 10, [-2.0] * 10))
        (' 60.7 %', '2.1e-07 %, 13.5 % a token')
    """
    percent = 100 * math.exp(answer.logprob)
    if percent >= SMALLEST_PERCENT:
        return f"{percent:5.1f} %"
    shown = f"{percent:.2g} %" if percent else "below 1e-300 %"
    each = 100 * math.exp(answer.mean_logprob)
    return f"{shown}, {each:.1f} % a token" if each >= SMALLEST_PERCENT else shown


def _in_place(parts: Sequence[str], fills: Sequence[Fill]) -> str:
    """Return the text with its fills in angle brackets."""
    shown = parts[0]
    for fill, part in zip(fills, parts[1:], strict=True):
        space = " " if fill.text.startswith(" ") else ""
        shown += f"{space}<{_on_one_line(fill.text)}>{part}"
    return shown


def _on_one_line(text: str) -> str:
    return " ".join(text.split())


if __name__ == "__main__":
    start(lambda: sys.exit(main()))
