"""Blanks, prompts, sentences and other places where text is cut or joined, without a model."""

import random
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig

from examples.evaluate.conll import read_lines, to_iob2
from examples.evaluate.wikitext import detokenize
from examples.reporting.blocks import anchor, clean
from modeling_magnet.options_magnet import SUPPORTED, InfillOptions
from modeling_magnet.prompts_magnet import choose_prompt, default_prompts, join_prompt
from modeling_magnet.quantization_magnet import PRECISIONS, quantize_embeddings
from modeling_magnet.similarity_magnet import SIMILARITIES, similarity_matrix, similarity_pairs
from modeling_magnet.spans_magnet import cuts_a_character, split_at_marks, split_at_ranges, trim_overlap
from modeling_magnet.texts_magnet import check_is_unicode, check_texts
from modeling_magnet.words_magnet import owners_of_tokens
from tests.fuzz import inputs
from tests.fuzz.judging import Target, check, naming
from trainer.metrics import repetition_n, repetition_sentences, split_sentences


def split_by_hand(text: str, blank: str) -> list[str]:
    """The pieces around marks, read from left to right."""
    pieces, place = [""], 0
    while place < len(text):
        end = place
        while text.startswith("\\", end) and not text.startswith(blank, end):
            end += 1
        if text.startswith(blank, end):
            count = end - place
            pieces[-1] += "\\" * (count // 2)
            if count % 2:
                pieces[-1] += blank
            else:
                pieces.append("")
            place = end + len(blank)
        else:
            end = max(end, place + 1)
            pieces[-1] += text[place:end]
            place = end
    return pieces


def marks(draw: random.Random, folder: Path) -> None:
    """Texts are cut at their marks, as reading them by hand does."""
    blank: Any = draw.choice(
        ("[blank]", "[blank]", "[blank]", "_", ".", "(a+)+$", "\n", "ab", "", None, 3, "👩", "][")
    )
    text = inputs.text(draw)
    if isinstance(blank, str) and draw.random() < 0.8:
        text += "\\" * draw.randrange(4) + blank + inputs.text(draw, 3)
    with naming("`text[3]`" if isinstance(blank, str) and blank else "`blank`"):
        pieces = split_at_marks(text, blank, name="`text[3]`")
    check(pieces == split_by_hand(text, blank), f"{text!r} at {blank!r}: {pieces!r}")


def ranges(draw: random.Random, folder: Path) -> None:
    """What stands around ranges and what stands in them is the text."""
    text = inputs.text(draw, 5)
    places = sorted(draw.randint(0, len(text) + 1) for _ in range(2 * draw.randint(0, 3)))
    given: Any = [tuple(places[k : k + 2]) for k in range(0, len(places), 2)]
    if draw.random() < 0.3:
        given = draw.choice(
            (
                lambda: inputs.value(draw),
                lambda: [*given, inputs.value(draw)],
                lambda: given[::-1],
                lambda: np.array(given),
            )
        )()
    pieces = split_at_ranges(text, given, name="`text`")
    taken = [text[start:end] for start, end in given]
    joined = "".join(piece + gap for piece, gap in zip(pieces, [*taken, ""], strict=True))
    check(joined == text, f"{text!r} at {given!r}: {pieces!r}")
    check(not any(cuts_a_character(text, place) for one in given for place in one), f"{given!r} cuts a character")


def columns(draw: random.Random, folder: Path) -> None:
    """Anything that is handed over as texts is a list of Unicode strings, or refused by name and place."""
    texts: Any = [inputs.text(draw, 3) for _ in range(draw.randrange(4))]
    if draw.random() < 0.5:
        texts = draw.choice(
            (
                lambda: inputs.value(draw),
                lambda: [*texts, inputs.value(draw)],
                lambda: np.array(texts, dtype=object),
                lambda: np.array([texts, texts]),
                lambda: np.array("lone"),
                lambda: torch.zeros(2, 2),
                lambda: (text for text in texts),
                lambda: {"text": texts},
            )
        )()
    with naming("`inputs"):
        checked = check_texts(texts, name="inputs")
    for text in checked:
        text.encode("utf-8")
    check(len(checked) == len(texts), f"{len(checked)} of {len(texts)} texts")


def prompts(draw: random.Random, folder: Path) -> None:
    """A prompt is chosen or refused, and joined in front of the text."""
    stored = {**default_prompts(), inputs.text(draw, 2): inputs.text(draw, 2)}
    given: dict[str, Any] = dict.fromkeys(("prompt", "prompt_name", "default_prompt_name"))
    for name in given:
        if draw.random() < 0.4:
            given[name] = draw.choice((lambda: draw.choice([*stored]), lambda: inputs.value(draw, 1), lambda: "STs"))()
    if not isinstance(given["default_prompt_name"], str):
        given["default_prompt_name"] = None  # MagnetSettings has no other
    chosen = choose_prompt(stored, **given)
    text = inputs.text(draw, 3)
    joined = join_prompt(chosen, text)
    check(joined.endswith(text) and joined.startswith(chosen or ""), f"{chosen!r} and {text!r}: {joined!r}")


def overlaps(draw: random.Random, folder: Path) -> None:
    """A trimmed fill is a part of the fill, and trimming is soon over."""
    before, fill, after = (inputs.text(draw, 6) for _ in range(3))
    if draw.random() < 0.5:
        fill = f"{before[-draw.randint(1, 20) :]}{fill}{after[: draw.randint(1, 20)]}"
    check(trim_overlap(fill, before=before, after=after) in fill, f"{fill!r} between {before!r} and {after!r}")


def sentences(draw: random.Random, folder: Path) -> None:
    """Splitting, counting and putting text back together keeps its words."""
    text = inputs.text(draw)
    parts = split_sentences(text)
    check("".join("".join(parts).split()) == "".join(text.split()), f"sentences of {text!r}: {parts!r}")
    for measured in (repetition_sentences(text), repetition_n([text, ""], n=draw.randint(1, 5))):
        check(0 <= measured < 1, f"{measured} of {text!r}")
    running = detokenize(text)
    letters = [char for char in text if char.isalnum()]
    check([char for char in running if char.isalnum()] == letters, f"{text!r} became {running!r}")
    shown = clean(text)
    shown.encode("utf-8")
    check(
        "\x00" not in shown
        and "\u202e" not in shown
        and all(c in "abcdefghijklmnopqrstuvwxyz0123456789-" for c in anchor(text)),
        shown,
    )
    if "\ud800" <= max(text, default="a") <= "\udfff":
        check_is_unicode(text, name="text")
        raise AssertionError("half of a surrogate pair went through")


def tagged(draw: random.Random, folder: Path) -> None:
    """Lines of CoNLL-2003 are sentences with as many tags as words, or the line is named."""
    tags = ("O", "I-LOC", "B-LOC", "I-PER", "B-", "I", "-", "I-\u2028", "X-LOC", "b-loc")
    lines = [
        draw.choice(("", " ", "-DOCSTART- -X- O O", inputs.text(draw, 2)))
        if draw.random() < 0.3
        else f"{draw.choice(('EU', 'é', chr(0xA0), chr(0x85) + 'x'))} NN {draw.choice(tags[:4])} {draw.choice(tags)}"
        for _ in range(draw.randrange(6))
    ]
    with naming("'eng.x'", "Line "):
        found = list(read_lines(lines, name="eng.x"))
    for sentence in found:
        check(len({len(column) for column in sentence}) == 1 and sentence.words, f"{sentence}")
        check(to_iob2(sentence.ner) == sentence.ner, "IOB2 of IOB2 is the same")


def _embeddings(draw: random.Random, shape: tuple[int, ...]) -> Any:
    """Numbers of a shape in one of the forms that callers have them in."""
    numbers = [draw.choice((0.0, 1.0, -2.5, np.nan, np.inf, 1e38)) for _ in range(int(np.prod(shape)))]
    array = np.array(numbers).reshape(shape)
    forms = [array, torch.from_numpy(array), array.tolist(), array.astype(np.float16)]
    forms += [array[::-1], list(torch.from_numpy(array))] if array.ndim else []
    return draw.choice(forms) if draw.random() < 0.9 else draw.choice((array.astype(str), inputs.value(draw)))


def vectors(draw: random.Random, folder: Path) -> None:
    """Similarities of hostile embeddings have the right shape, or are refused."""
    width, number = draw.choice((1, 3, 0)), draw.randrange(4)
    shapes = [(number, width) if draw.random() < 0.9 else draw.choice(((3,), (), (2, 3, 1), (1, 4))) for _ in "ab"]
    left, right = (_embeddings(draw, shape) for shape in shapes)
    name = draw.choice(SIMILARITIES if draw.random() < 0.95 else ("Cosine", "", None))
    if draw.random() < 0.5:
        matrix = similarity_matrix(left, right, name=name)
        check(matrix.dim() == 2 and matrix.dtype == torch.float32, "no matrix of float32")
    else:
        check(similarity_pairs(left, right, name=name).dim() == 1, "no row of pairs")


def bits(draw: random.Random, folder: Path) -> None:
    """Quantised embeddings keep their number, their width and their signs."""
    rows, width = draw.randrange(4), draw.choice((1, 3, 8, 9))
    array = np.array([draw.uniform(-3, 3) for _ in range(rows * width)], dtype=np.float32).reshape(rows, width)
    precision = draw.choice((*PRECISIONS, "INT8", "", "int4", None))
    made = quantize_embeddings(array, precision=precision)
    is_bits = precision.endswith("binary")
    check(made.shape == (rows, -(-width // 8) if is_bits else width), f"{made.shape} of {array.shape}")
    if precision == "ubinary":
        check(np.array_equal(np.unpackbits(made, axis=-1)[:, :width], array > 0), "signs")


def options(draw: random.Random, folder: Path) -> None:
    """Options of `infill` are options, or each that is none is named."""
    names = (*(one.name for one in fields(InfillOptions)), *SUPPORTED)
    given: dict[str, Any] = {"max_new_tokens": inputs.small(draw)} if draw.random() < 0.8 else {}
    for name in inputs.some(draw, (*names, "max_tokens", "temperatur", ""), 3):
        given[name] = draw.choice(
            (
                lambda: inputs.number(draw),
                lambda: inputs.value(draw),
                lambda: inputs.small(draw),
                lambda: "auto",
                lambda: "token",
            )
        )()
    made = InfillOptions.of_call(given, default_config=GenerationConfig(), end_of_span=draw.choice((0, 0, 8)))
    check(made.num_answers >= 1 and made.batch_size >= 1 and made.chunk_size >= 1, "a number below 1")
    lengths = made.candidate_lengths(end_of_span=8) if made.num_tokens is not None else [1]
    check(lengths == sorted(set(lengths)) and min(lengths) >= 1, f"{lengths}")


def owners(draw: random.Random, folder: Path) -> None:
    """Each token belongs to the word that holds most of its characters, of equal ones the last."""
    edges = sorted(draw.sample(range(40), 2 * draw.randrange(6)))
    words = list(zip(edges[::2], edges[1::2], strict=True))
    tokens = [(start := draw.randrange(40), start + draw.randrange(6)) for _ in range(draw.randrange(9))]
    expected = []
    for start, end in tokens:
        held = [len({*range(start, end)} & {*range(*word)}) for word in words]
        most = max(held, default=0)
        expected.append(len(held) - 1 - held[::-1].index(most) if most else -1)
    check(owners_of_tokens(words, tokens) == expected, f"{words} {tokens}")


TARGETS = (
    Target(name="marks", run=marks, weight=300, seeds=1000),
    Target(name="ranges", run=ranges, weight=200, seeds=500),
    Target(name="columns", run=columns, weight=150, seeds=500),
    Target(name="prompts", run=prompts, weight=150, seeds=300),
    Target(name="overlaps", run=overlaps, weight=100, seeds=300),
    Target(name="sentences", run=sentences, weight=100, seeds=300),
    Target(name="tagged", run=tagged, weight=80, seeds=200),
    Target(name="vectors", run=vectors, weight=60, seeds=300),
    Target(name="bits", run=bits, weight=40, seeds=100),
    Target(name="options", run=options, weight=40, seeds=300, allowed=("logits_process.py",)),
    Target(name="owners", run=owners, weight=80, seeds=200),
)
