"""Tokenizers of any kind over a tiny random model: encoding, infilling and scoring of hostile texts."""

import random
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.fuzz import inputs
from tests.fuzz.judging import Target, check
from tests.fuzz.odd_tokenizers import SIZE, TOKENIZERS, tokenizer
from tests.fuzz.targets_texts import split_by_hand
from tests.trainer.tiny import tiny_model


@cache
def _model() -> Any:
    return tiny_model(vocab_size=SIZE, num_hidden_layers=1).eval()


def model(draw: random.Random) -> Any:
    """The tiny model with one of the tokenizers, and settings that go with it."""
    made = _model()
    made.tokenizer = tokenizer(draw.randrange(TOKENIZERS))
    made.config.magnet["end_of_span"] = draw.choice((0, 0, 0, 4)) if made.tokenizer.eos_token_id is not None else 0
    return made


def _options(draw: random.Random, good: dict[str, tuple[Any, ...]], bad: dict[str, tuple[Any, ...]]) -> dict[str, Any]:
    """Some of the good options; now and then a bad one, or a value of any kind."""
    given = {name: draw.choice(values) for name, values in good.items() if draw.random() < 0.25}
    if draw.random() < 0.15:
        name = draw.choice([*bad])
        given[name] = draw.choice(bad[name])
    if given and draw.random() < 0.05:
        given[draw.choice([*given])] = draw.choice((inputs.value(draw), inputs.number(draw)))
    return given


ENCODING: dict[str, tuple[Any, ...]] = {
    "prompt": ("", "the", "find: ", None),
    "batch_size": (1, 2),
    "batch_tokens": (1, 8, 100),
    "max_length": (3, 5, 64),
    "pooling": ("last", "mean", "weighted_mean"),
    "truncate_dim": (1, 16),
    "normalize_embeddings": (True, False),
    "precision": ("float32", "ubinary", "binary"),
    "output_value": ("sentence_embedding", "token_embeddings"),
}
BAD_ENCODING: dict[str, tuple[Any, ...]] = {
    "prompt_name": ("sentence", "STS", "x"),
    "batch_size": (0,),
    "batch_tokens": (-1,),
    "max_length": (2, 65),
    "pooling": ("cls",),
    "truncate_dim": (0, 17),
    "precision": ("int8", "x"),
}


def encoding(draw: random.Random, folder: Path) -> None:
    """Vectors of any texts are numbers, one for each, and the same alone as in a list."""
    chosen = model(draw)
    texts: Any = [inputs.unicode_text(draw, 4) for _ in range(draw.randrange(4))]
    if draw.random() < 0.1:
        texts = draw.choice(
            (lambda: inputs.value(draw), lambda: [*texts, inputs.text(draw)], lambda: np.array(texts))
        )()
    options = {"prompt": "", **_options(draw, ENCODING, BAD_ENCODING)}
    if options.get("prompt_name") is not None:
        options.pop("prompt")
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
    good = {"prompt": ("", "the", "a: "), "shift": ("next", "same"), "mode": ("bidirectional", "causal")}
    limits = {"max_length": (8, 64), "window_overlap": (0, 1, 3), "batch_tokens": (8, 1)}
    bad = {"shift": ("x",), "mode": ("infill",), "max_length": (0, 4, 65), "window_overlap": (-1, 100)}
    options = _options(draw, {**good, **limits}, bad)
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
    "chunk_size": (1, 2, 32),
    "do_sample": (True,),
    "temperature": (0.1, 5.0),
    "top_k": (1, 5, 0),
    "top_p": (0.5, 1.0),
    "min_p": (0.1,),
    "num_return_sequences": (1, 2, 3),
    "repetition_penalty": (1.5,),
    "no_repeat_ngram_size": (1, 2),
    "trim_overlap": (True,),
    "return_dict_in_generate": (True, False),
    "batch_size": (1, 2),
}
BAD_FILLING: dict[str, tuple[Any, ...]] = {
    "stop_strings": ("a", ".", "", ["the", " "]),  # not beside heal="token", as the next two
    "stop_at_sentence_end": (True,),
    "stop_at_end_of_span": (True,),
    "chunk_size": (0,),
    "temperature": (0.0, -1.0),
    "top_k": (-1,),
    "top_p": (0.0, 2.0),
    "num_return_sequences": (0,),
    "cache_implementation": ("static",),
}


def infilling(draw: random.Random, folder: Path) -> None:
    """Fills of any text are text, as many as gaps; a filled text has all that stood around them."""
    chosen, options = model(draw), _options(draw, FILLING, BAD_FILLING)
    if draw.random() < 0.1:
        options["num_tokens"] = draw.choice(("auto", [1, 3], [0], []))
    else:
        options["max_new_tokens"] = draw.choice((1, 2, 3, 5, 8) if draw.random() < 0.9 else (0, [1, 2], 100))
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
        _check_fills(made[0] if isinstance(made, list) else made, options.get("max_new_tokens"))
        return
    check(len(made) == gaps, f"{len(made)} fills of {gaps} gaps of {text!r}")
    answers = [one if isinstance(one, list) else [one] for one in made]
    most = options.get("num_return_sequences") or 1
    check(all(len(set(own)) == len(own) <= most and own for own in answers), f"answers {answers!r:.200}")
    check(all(isinstance(one, str) for own in answers for one in own), f"fills that are no text: {made!r:.200}")


def _check_fills(output: Any, length: Any) -> None:
    """Each answer has its tokens with a log-probability each, no more than were asked for."""
    for answer in (answer for gaps in output.fills for answers in gaps for answer in answers):
        check(len(answer.token_ids) == len(answer.logprobs), "a log-probability for each token")
        check(not isinstance(length, int) or len(answer.token_ids) <= length, f"more than {length} tokens")
        check(all(score <= 1e-6 for score in answer.logprobs), f"{answer.logprobs} are no log-probabilities")


def scoring(draw: random.Random, folder: Path) -> None:
    """Scores of given fills are log-probabilities, one for each token."""
    chosen = model(draw)
    fills: Any = [inputs.unicode_text(draw, 3) or "a" for _ in range(draw.randint(1, 3))]
    if draw.random() < 0.15:
        fills = draw.choice((inputs.value(draw), [*fills, inputs.text(draw)], "lone", [], [*fills, ""]))
    before, after = inputs.unicode_text(draw, 3), inputs.unicode_text(draw, 3)
    options = _options(draw, {"batch_tokens": (1, 16)}, {"batch_tokens": (0,)})
    made = chosen.score_infill(before, fills, after, **options)
    check([fill.text for fill in made] == list(fills), "fills in their order")
    for fill in made:
        check(
            len(fill.token_ids) == len(fill.logprobs), f"{len(fill.logprobs)} scores of {len(fill.token_ids)} tokens"
        )
        check(all(score <= 1e-6 for score in fill.logprobs), f"{fill.logprobs} are no log-probabilities")


TARGETS = (
    Target(name="encoding", run=encoding, weight=10, seeds=60),
    Target(name="words", run=words, weight=10, seeds=60),
    Target(name="infilling", run=infilling, weight=8, seeds=60, allowed=("logits_process.py",)),
    Target(name="scoring", run=scoring, weight=6, seeds=60),
)
