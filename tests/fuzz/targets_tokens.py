"""Token rows of hostile texts by odd tokenizers: framed, continued, laid out around gaps."""

import random
from pathlib import Path
from typing import Any

from modeling_magnet.configuration_magnet import check_tokenizer_fits, resolve_mask_token
from modeling_magnet.spans_magnet import continuation_ids, lay_out, read_vocabulary
from modeling_magnet.texts_magnet import check_room, tokenize_texts
from tests.fuzz import inputs
from tests.fuzz.judging import Target, check
from tests.fuzz.odd_tokenizers import SIZE, TOKENIZERS, tokenizer


def tokens(draw: random.Random, folder: Path) -> None:
    """Token rows of any text by any tokenizer: framed, cut to their length, and continued as they began."""
    chosen = tokenizer(draw.randrange(TOKENIZERS))
    texts = [inputs.unicode_text(draw, 4) for _ in range(draw.randrange(3))]
    length, prompt = (
        draw.choice((3, 4, 9, 64)),
        draw.choice((None, "", inputs.unicode_text(draw, 2), inputs.text(draw, 2))),
    )
    check_room(chosen, prompt=prompt, max_length=length)
    rows = tokenize_texts(chosen, texts, prompt=prompt, max_length=length)
    for row in rows:
        check(len(row) <= length and row[-1] == chosen.eos_token_id, f"{row} for {length}")
        check(chosen.bos_token_id in (None, row[0]), f"{row} without BOS")
    for text in texts:
        ids = continuation_ids(chosen, text)
        check(
            bool(ids) or not chosen(text, add_special_tokens=False)["input_ids"] or not text.strip(),
            f"{text!r} is lost",
        )


def vocabularies(draw: random.Random, folder: Path) -> None:
    """The mask token is one of the vocabulary, which fits; and each of its tokens has a text."""
    chosen, size = tokenizer(draw.randrange(TOKENIZERS)), draw.choice((SIZE, SIZE, 10, 1000))
    texts = read_vocabulary(chosen, size).texts
    check(len(texts) == size, f"{len(texts)} texts of {size} tokens")
    check_tokenizer_fits(chosen, size)
    name, number = resolve_mask_token(chosen, draw.choice((None, None, "_", "the", "nothing", "", "<unk>")))
    check(chosen.convert_ids_to_tokens(number) == name, f"{name!r} is not {number}")


def layouts(draw: random.Random, folder: Path) -> None:
    """Gaps keep their positions free, and what is laid out has as many positions as its parts."""
    chosen = tokenizer(draw.randrange(TOKENIZERS))
    pieces = [inputs.unicode_text(draw, 3) + draw.choice(("", " ", "  ")) for _ in range(draw.randint(2, 4))]
    lengths: list[Any] = [
        draw.choice((1, 2, 5, 0, True, 1.0, 2**40)) if draw.random() < 0.1 else draw.randint(1, 4) for _ in pieces[1:]
    ]
    made = lay_out(chosen, pieces, span_lengths=lengths, context_length=64, heal=draw.choice((None, "space", "token")))
    check(len(made.token_ids) == len(made.positions) and made.length <= 64, f"{made}")
    check(made.length == len(made.token_ids) + sum(lengths), "positions of tokens and gaps")
    free = {start + place for start, length in zip(made.span_starts, lengths, strict=True) for place in range(length)}
    check(
        free.isdisjoint(made.positions) and len(free) == sum(lengths),
        f"gaps at {made.span_starts} in {made.positions}",
    )


TARGETS = (
    Target(name="tokens", run=tokens, weight=30, seeds=200),
    Target(name="layouts", run=layouts, weight=30, seeds=200),
    Target(name="vocabularies", run=vocabularies, weight=1, seeds=20),
)
