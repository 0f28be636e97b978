"""Tokenizers of any kind over a tiny random model: encoding, infilling and scoring of hostile texts."""

import random
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from modeling_magnet.configuration_magnet import check_tokenizer_fits, resolve_mask_token
from modeling_magnet.gaps_magnet import continuation_ids, lay_out
from modeling_magnet.seams_magnet import vocabulary_texts
from modeling_magnet.texts_magnet import check_room, tokenize_texts
from tests.fuzz import inputs
from tests.fuzz.judging import Target, check
from tests.fuzz.targets_texts import split_by_hand
from tests.trainer.tiny import tiny_model

SPECIAL = ["<unk>", "<s>", "</s>", "_"]
LETTERS = [*"abcdefghijklmnopqrstuvwxyzABDFINS012.,:!? \n", "▁", "[", "]", "é", "中", "👍"]
SIZE = 400  # of the embedding matrix, more than any of these tokenizers has


def _word_level(draw: random.Random) -> Tokenizer:
    words = [*SPECIAL, "w1", "w2", "the", "cat", ".", "[", "blank", "]", "a", "find", "sentence", ":"]
    made = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    made.pre_tokenizer = draw.choice(
        (pre_tokenizers.Whitespace(), pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation())
    )
    return made


def _byte_level(draw: random.Random) -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [
        ("t", "h"),
        ("th", "e"),
        ("Ġ", "the"),
        ("c", "a"),
        ("Ġ", "ca"),
        ("Ġ", "Ġ"),
        ("Ċ", "a"),
        ("a", "a"),
        ("a", "Ġ"),
    ]
    words = [*SPECIAL[:3], *alphabet, *dict.fromkeys(left + right for left, right in merges)]
    made = Tokenizer(models.BPE({word: number for number, word in enumerate(words)}, merges))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=draw.random() < 0.3, use_regex=draw.random() < 0.5)
    made.decoder = decoders.ByteLevel()
    return made


def _characters(draw: random.Random) -> Tokenizer:
    """SentencePiece's way: a mark for spaces, one in front, bytes or nothing for what is unknown."""
    fallback = draw.random() < 0.6
    bytes_ = [f"<0x{byte:02X}>" for byte in range(256)] if fallback else []
    words = [*SPECIAL, *bytes_, *LETTERS, "th", "the", "▁the", "▁▁"]
    merges = [("t", "h"), ("th", "e"), ("▁", "the"), ("▁", "▁")]
    vocabulary = {word: number for number, word in enumerate(dict.fromkeys(words))}
    made = Tokenizer(
        models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=fallback, fuse_unk=draw.random() < 0.5)
    )
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    made.decoder = decoders.Sequence(parts)
    return made


def _unigram(draw: random.Random) -> Tokenizer:
    words = [*SPECIAL, *LETTERS, "▁the", "▁cat", "he", "blank"]
    made = Tokenizer(
        models.Unigram([(word, -float(number)) for number, word in enumerate(dict.fromkeys(words))], unk_id=0)
    )
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=draw.choice(("always", "never", "first")))
    made.decoder = decoders.Metaspace(prepend_scheme="always")
    return made


def _lossy(draw: random.Random) -> Tokenizer:
    made = _byte_level(draw)
    made.normalizer = draw.choice(
        (
            normalizers.Lowercase(),
            normalizers.NFKC(),
            normalizers.Strip(),
            normalizers.StripAccents(),
            normalizers.Replace("the", ""),
        )
    )
    return made


@cache
def tokenizer(number: int) -> PreTrainedTokenizerFast:
    """One of many tokenizers, each with some of the special tokens."""
    draw = random.Random(number)
    made = draw.choice((_word_level, _byte_level, _byte_level, _characters, _characters, _unigram, _lossy))(draw)
    special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>", "mask_token": "a"}
    chances = {"bos_token": 0.7, "eos_token": 0.9, "pad_token": 0.5, "mask_token": 0.2}
    kept = {name: token for name, token in special.items() if draw.random() < chances.get(name, 0.9)}
    limits = {} if draw.random() < 0.6 else {"model_max_length": draw.choice((3, 8, 20))}
    return PreTrainedTokenizerFast(tokenizer_object=made, **kept, **limits)


TOKENIZERS = 40


@cache
def _model() -> Any:
    return tiny_model(vocab_size=SIZE, num_hidden_layers=1).eval()


def model(draw: random.Random) -> Any:
    """The tiny model with one of the tokenizers, and settings that go with it."""
    made = _model()
    made.tokenizer = tokenizer(draw.randrange(TOKENIZERS))
    made.config.magnet["end_of_span"] = draw.choice((0, 0, 0, 4)) if made.tokenizer.eos_token_id is not None else 0
    return made


def tokens(draw: random.Random, folder: Path) -> None:
    """Token rows of any text by any tokenizer: framed, cut to their length, and continued as they began."""
    chosen = tokenizer(draw.randrange(TOKENIZERS))
    texts = [inputs.unicode_text(draw, 4) for _ in range(draw.randrange(3))]
    length, prompt = (
        draw.choice((3, 4, 9, 64)),
        draw.choice((None, "", inputs.unicode_text(draw, 2), inputs.text(draw, 2))),
    )
    check_tokenizer_fits(chosen, draw.choice((SIZE, SIZE, 3)))
    name, number = resolve_mask_token(chosen, draw.choice((None, None, "_", "the", "nothing", "", "<unk>")))
    check(chosen.convert_ids_to_tokens(number) == name, f"{name!r} is not {number}")
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


def layouts(draw: random.Random, folder: Path) -> None:
    """Gaps keep their positions free, and what is laid out has as many positions as its parts."""
    chosen = tokenizer(draw.randrange(TOKENIZERS))
    pieces = [inputs.unicode_text(draw, 3) + draw.choice(("", " ", "  ")) for _ in range(draw.randint(2, 4))]
    lengths: list[Any] = [
        draw.choice((1, 2, 5, 0, True, 1.0, 2**40)) if draw.random() < 0.1 else draw.randint(1, 4) for _ in pieces[1:]
    ]
    made = lay_out(chosen, pieces, gap_lengths=lengths, context_length=64, heal=draw.choice((None, "space", "token")))
    check(len(made.token_ids) == len(made.positions) and made.length <= 64, f"{made}")
    check(made.length == len(made.token_ids) + sum(lengths), "positions of tokens and gaps")
    free = {start + place for start, length in zip(made.gap_starts, lengths, strict=True) for place in range(length)}
    check(
        free.isdisjoint(made.positions) and len(free) == sum(lengths), f"gaps at {made.gap_starts} in {made.positions}"
    )


def vocabularies(draw: random.Random, folder: Path) -> None:
    """The text of each token of a vocabulary, for any tokenizer."""
    chosen, size = tokenizer(draw.randrange(TOKENIZERS)), draw.choice((SIZE, 10, 1000))
    texts = vocabulary_texts(chosen, size)
    check(len(texts) == size, f"{len(texts)} texts of {size} tokens")


def _options(draw: random.Random, names: dict[str, tuple[Any, ...]]) -> dict[str, Any]:
    """Some of these options; now and then one with a value of any kind."""
    given = {name: draw.choice(values) for name, values in names.items() if draw.random() < 0.3}
    if given and draw.random() < 0.1:
        given[draw.choice([*given])] = draw.choice((lambda: inputs.value(draw), lambda: inputs.number(draw)))()
    return given


def encoding(draw: random.Random, folder: Path) -> None:
    """Vectors of any texts are numbers, one for each, and the same alone as in a list."""
    chosen = model(draw)
    texts: Any = [inputs.unicode_text(draw, 4) for _ in range(draw.randrange(4))]
    if draw.random() < 0.1:
        texts = draw.choice(
            (lambda: inputs.value(draw), lambda: [*texts, inputs.text(draw)], lambda: np.array(texts))
        )()
    options = _options(
        draw,
        {
            "prompt": ("", "the", "find: ", None),
            "prompt_name": ("sentence", "STS", "x"),
            "batch_size": (1, 2, 0),
            "batch_tokens": (1, 8, -1),
            "max_length": (3, 5, 64, 65, 2),
            "pooling": ("last", "mean", "weighted_mean", "cls"),
            "truncate_dim": (1, 16, 17, 0),
            "normalize_embeddings": (True, False),
            "precision": ("float32", "ubinary", "int8"),
            "output_value": ("sentence_embedding", "token_embeddings"),
        },
    )
    made = chosen.encode(texts, **options)
    if isinstance(texts, str):
        return
    check(len(made) == len(texts), f"{len(made)} vectors of {len(texts)} texts")
    if options.get("output_value") == "token_embeddings" or options.get("precision") == "int8" or not len(texts):
        return
    check(bool(np.isfinite(made).all()), "vectors that are no numbers")
    alone = chosen.encode(texts[-1], **options)
    close = np.allclose(alone.astype(float), made[-1].astype(float), atol=1e-4)
    check(close or made.dtype != np.float32, f"{texts[-1]!r} has another vector in company")


def words(draw: random.Random, folder: Path) -> None:
    """Each word and each token has its place in the text, in order, and a vector of numbers."""
    chosen = model(draw)
    text = inputs.unicode_text(draw, 6)
    options = _options(
        draw,
        {
            "prompt": ("", "the", "a: "),
            "shift": ("next", "same", "x"),
            "mode": ("bidirectional", "causal", "infill"),
            "max_length": (4, 8, 64),
            "window_overlap": (0, 1, 3, 100),
            "batch_tokens": (8, 1),
        },
    )
    kind = draw.randrange(3)
    if kind == 0:
        made = chosen.encode_tokens(text, **options)
        check(
            all(0 <= start <= end <= len(text) for start, end in made.offsets.tolist()),
            f"{made.offsets.tolist()} of {text!r}",
        )
    else:
        given: Any = text if kind == 1 else (text.split() if draw.random() < 0.9 else inputs.value(draw))
        made = chosen.encode_words(given, is_split_into_words=kind == 2, **options)
        if isinstance(made, list):
            return
        whole = text if kind == 1 else " ".join(given)
        shown = [whole[start:end] for start, end in made.offsets.tolist()]
        check(shown == (text.split() if kind == 1 else list(given)), f"{shown} of {given!r}")
    check(
        len(made.vectors) == len(made.offsets) and bool(np.isfinite(made.vectors).all()), "vectors that are no numbers"
    )


FILLING: dict[str, tuple[Any, ...]] = {
    "heal": ("space", "token", None),
    "chunk_size": (1, 2, 32, 0),
    "do_sample": (True,),
    "temperature": (0.1, 5.0, 0.0, -1.0),
    "top_k": (1, 5, 0, -1),
    "top_p": (0.5, 0.0, 1.0, 2.0),
    "min_p": (0.1, 2.0),
    "num_return_sequences": (1, 2, 3, 0),
    "stop_strings": ("a", ".", "", ["the", " "]),
    "repetition_penalty": (1.5, 0.0),
    "no_repeat_ngram_size": (1, 2),
    "stop_at_sentence_end": (True,),
    "trim_overlap": (True,),
    "stop_at_end_of_span": (True, False),
    "return_dict_in_generate": (True, False),
    "batch_size": (1, 2),
    "cache_implementation": ("dynamic", "static", "x"),
}


def infilling(draw: random.Random, folder: Path) -> None:
    """Fills of any text are text, as many as gaps; a filled text has all that stood around them."""
    chosen, options = model(draw), _options(draw, FILLING)
    options |= (
        {"num_tokens": draw.choice(("auto", [1, 3], [0], []))}
        if draw.random() < 0.1
        else {"max_new_tokens": draw.choice((1, 2, 3, 5, 0, [1, 2], 100))}
    )
    if draw.random() < 0.05:
        options[draw.choice(("max_new_tokens", "num_tokens"))] = draw.choice((inputs.number(draw), inputs.value(draw)))
    torch.manual_seed(draw.randrange(100))
    before, after = inputs.unicode_text(draw, 3), inputs.unicode_text(draw, 3)
    text, kind = f"{before}[blank]{after}", draw.randrange(4)
    gaps = len(split_by_hand(text, "[blank]")) - 1
    if kind == 0:
        made = [chosen.infill(before, after, **options)]
        gaps = 1
    elif kind == 1:
        made = chosen.infill_blanks(text, **options)
    elif kind == 2:
        start = draw.randint(0, len(text))
        made = [chosen.rewrite(text, start, draw.randint(start, len(text)), **options)]
        gaps = 1
    else:
        given: Any = inputs.value(draw) if draw.random() < 0.2 else [inputs.unicode_text(draw, 2), after]
        made = chosen.infill([before, "the cat"], given, **options)
        gaps = 2
    if options.get("return_dict_in_generate"):
        return
    check(len(made) == gaps, f"{len(made)} fills of {gaps} gaps of {text!r}")
    answers = [one if isinstance(one, list) else [one] for one in made]
    most = options.get("num_return_sequences") or 1
    check(all(len(set(own)) == len(own) <= most and own for own in answers), f"answers {answers!r:.200}")
    check(all(isinstance(one, str) for own in answers for one in own), f"fills that are no text: {made!r:.200}")


def scoring(draw: random.Random, folder: Path) -> None:
    """Scores of given fills are log-probabilities, one for each token."""
    chosen = model(draw)
    fills: Any = [inputs.unicode_text(draw, 2) for _ in range(draw.randrange(4))]
    if draw.random() < 0.15:
        fills = draw.choice((lambda: inputs.value(draw), lambda: [*fills, inputs.text(draw)], lambda: "lone"))()
    before, after = inputs.unicode_text(draw, 3), inputs.unicode_text(draw, 3)
    made = chosen.score_infill(before, fills, after, **_options(draw, {"batch_tokens": (1, 16, 0)}))
    check([fill.text for fill in made] == list(fills), "fills in their order")
    for fill in made:
        check(
            len(fill.token_ids) == len(fill.logprobs), f"{len(fill.logprobs)} scores of {len(fill.token_ids)} tokens"
        )
        check(all(score <= 1e-6 for score in fill.logprobs), f"{fill.logprobs} are no log-probabilities")


TARGETS = (
    Target(name="tokens", run=tokens, weight=30, seeds=200),
    Target(name="layouts", run=layouts, weight=30, seeds=200),
    Target(name="vocabularies", run=vocabularies, weight=1, seeds=20),
    Target(name="encoding", run=encoding, weight=6, seeds=60),
    Target(name="words", run=words, weight=6, seeds=60),
    Target(name="infilling", run=infilling, weight=3, seeds=60, allowed=("logits_process.py",)),
    Target(name="scoring", run=scoring, weight=4, seeds=60),
)
