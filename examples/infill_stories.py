"""Fill the blanks of many texts: read JSONL, write JSONL with fills and scores, and a page that shows them in place.

    python examples/infill_stories.py --model DIR --texts stories.jsonl --output fills.jsonl --max_new_tokens 12
    python examples/infill_stories.py --model DIR --texts stories.jsonl --output fills.jsonl --num_tokens auto \
        --num_return_sequences 3 --html fills.html

Each row of the input has a text with blanks, by default marked `[blank]`. The same command resumes an
interrupted run. A row that cannot be filled is reported in its place and counted.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from tqdm import tqdm
from transformers import GenerationConfig, PreTrainedConfig

from examples.command_line import OneLineParser, add_device, add_dtype, add_model, at_least, choose_device, start
from examples.demo.fills import describe, render_page
from examples.models import not_adapted, offline_where_unreachable, open_magnet
from modeling_magnet import InfillOptions
from modeling_magnet.spans_magnet import split_at_marks
from trainer.files import append_rows, atomic_write, resume_rows
from trainer.sources import is_hub_id, read_source


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Return the options; see `--help`."""
    parser = OneLineParser(description=__doc__)
    add_model(parser, help="a MAGNET checkpoint: directory or Hub id")
    parser.add_argument("--texts", required=True, help="rows with blanks: .jsonl, .csv, .parquet, also compressed")
    parser.add_argument("--text_column", default="text", help="column of the text")
    parser.add_argument("--output", type=Path, required=True, help=".jsonl file to write, one line per row")
    parser.add_argument("--html", type=Path, help="page to write, too")
    parser.add_argument("--blank", default="[blank]", help="mark of a blank; after a backslash it is text")
    parser.add_argument("--max_new_tokens", type=at_least(), help="tokens of each fill")
    parser.add_argument("--num_tokens", nargs="+", help="instead: lengths to try, or auto")
    parser.add_argument("--num_return_sequences", type=int, default=1, help="answers to each blank")
    parser.add_argument("--do_sample", action="store_true", help="draw tokens instead of taking the likeliest")
    parser.add_argument("--temperature", type=float, default=1.0, help="sampling temperature")
    parser.add_argument("--top_p", type=float, default=1.0, help="probability of the tokens to sample from")
    parser.add_argument("--stop_at_sentence_end", action="store_true", help="end a fill after its first sentence")
    parser.add_argument("--trim_overlap", action="store_true", help="remove repetitions of the context")
    parser.add_argument(
        "--heal",
        choices=["space", "token", "none"],
        default="space",
        help="what may be retokenized at a blank: the space before it, a token on either side, or nothing",
    )
    parser.add_argument("--limit", type=at_least(), help="rows, from the first on")
    parser.add_argument("--batch_size", type=at_least(), default=16, help="texts filled together")
    parser.add_argument("--seed", type=at_least(0), default=0, help="seed of sampling")
    add_device(parser)
    add_dtype(parser)
    args = parser.parse_args(arguments)
    if (args.max_new_tokens is None) == (args.num_tokens is None):
        parser.error("pass one of --max_new_tokens and --num_tokens")
    if args.num_tokens == ["auto"]:
        args.num_tokens = "auto"
    elif args.num_tokens is not None:
        try:
            args.num_tokens = [int(length) for length in args.num_tokens]
        except ValueError:
            parser.error(f"--num_tokens {' '.join(args.num_tokens)}: expected auto, or whole numbers")
    any_model = SimpleNamespace(config=PreTrainedConfig(), generation_config=GenerationConfig())
    try:
        InfillOptions.from_arguments(any_model, infill_options(args))
    except ValueError as error:  # before a model is loaded or a row is written
        parser.error(str(error))
    return args


def infill_options(args: argparse.Namespace) -> dict[str, Any]:
    """Return the options of every `infill_blanks` call."""
    lengths = {"max_new_tokens": args.max_new_tokens} if args.num_tokens is None else {"num_tokens": args.num_tokens}
    sampling = {"do_sample": True, "temperature": args.temperature, "top_p": args.top_p} if args.do_sample else {}
    return {
        **lengths,
        **sampling,
        "num_return_sequences": args.num_return_sequences,
        "stop_at_sentence_end": args.stop_at_sentence_end,
        "trim_overlap": args.trim_overlap,
        "heal": None if args.heal == "none" else args.heal,
        "return_dict_in_generate": True,
    }


def fill_rows(model: Any, texts: Sequence[str], *, first: int, args: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the output rows of some texts; if one of them cannot be filled, try each separately."""
    torch.manual_seed(args.seed + first)
    try:
        # A single text is passed as a string, so that errors do not call it the first of a list.
        given = texts[0] if len(texts) == 1 else list(texts)
        output = model.infill_blanks(given, blank=args.blank, **infill_options(args))
    except ValueError as error:
        if len(texts) == 1:
            return [{"row": first, "text": str(texts[0]), "error": str(error)}]
        return [
            row
            for number, text in enumerate(texts)
            for row in fill_rows(model, [text], first=first + number, args=args)
        ]
    rows = []
    for number, (text, blanks) in enumerate(zip(texts, output.fills, strict=True)):
        parts = split_at_marks(text, args.blank, name="text")
        fills = [[describe(model, fill) for fill in answers] for answers in blanks]
        filled = parts[0] + "".join(best.text + after for (best, *_), after in zip(blanks, parts[1:], strict=True))
        rows.append({"row": first + number, "pieces": parts, "fills": fills, "filled": filled})
    return rows


def main(arguments: list[str] | None = None) -> None:
    """Fill, resume, and render."""
    args = parse_arguments(arguments)
    for path in (args.output, args.html):
        if path is not None and not path.parent.is_dir():
            raise ValueError(f"{str(path.parent)!r}, the folder of {path.name!r}, does not exist. Make it first.")
    device = choose_device(args.device)
    if is_hub_id(str(args.texts)):
        offline_where_unreachable()
    texts = read_source(args.texts, columns=[args.text_column])[args.text_column][: args.limit]
    settings = {k: v for k, v in vars(args).items() if k not in ("output", "html", "device", "limit")}
    rows = resume_rows(args.output, settings={**settings, "model": str(args.model)})
    done = len(rows)
    if done < len(texts):
        model = open_magnet(args.model, dtype=args.dtype, device=device)
        if note := not_adapted(args.model):
            print(note, file=sys.stderr)
        with tqdm(total=len(texts), initial=done, desc="Filling", unit="text") as progress:
            while done < len(texts):
                # Batches begin at multiples of their size, so that a resumed run draws the same numbers.
                end = min((done // args.batch_size + 1) * args.batch_size, len(texts))
                start = done // args.batch_size * args.batch_size
                new = fill_rows(model, texts[start:end], first=start, args=args)[done - start :]
                append_rows(args.output, new)
                rows += new
                progress.update(end - done)
                done = end
    errors = sum("error" in row for row in rows)
    if args.html is not None:
        with atomic_write(args.html) as file:
            file.write(render_page(rows, title=f"{Path(args.texts).name}, filled").encode())
    print(f"infill_stories: OK ({args.output}; {len(rows)} rows, {errors} that could not be filled)")


if __name__ == "__main__":
    start(main)
