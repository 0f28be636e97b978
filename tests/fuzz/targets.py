"""Call public functions with hostile texts, options and tensors; list all targets."""

import functools
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import EvalResult, ModelCard
from markdown_it import MarkdownIt

from examples.demo.fills import render_page
from modeling_magnet.publishing.card import MARK, CardFacts, parse_card, rename_card, with_tags, write_card
from tests.fuzz import inputs, targets_files
from tests.fuzz.judge import Target, check
from tests.fuzz.odd_tokenizers import SIZE, TOKENIZERS, tokenizer
from tests.test_security import CARD_TAGS, Elements, check_harmless
from tests.trainer.tiny import tiny_model
from trainer import LoraArguments, MagnetTrainingArguments
from trainer.metrics import repetition_n, repetition_sentences, split_sentences

Values = dict[str, tuple[Any, ...]]


@functools.cache
def _tiny(**changes: Any) -> Any:
    return tiny_model(**changes).eval()


def _model(draw: random.Random) -> Any:
    """Return a tiny model with one of the odd tokenizers and matching settings."""
    made = _tiny(vocab_size=SIZE, num_hidden_layers=1)
    made.tokenizer = tokenizer(draw.randrange(TOKENIZERS))
    made.config.magnet["end_of_span"] = draw.choice((0, 0, 0, 4)) if made.tokenizer.eos_token_id is not None else 0
    return made


def _options(draw: random.Random, good: Values, bad: Values) -> dict[str, Any]:
    """Draw some valid options; occasionally an invalid one, or a value of any kind."""
    given = {name: draw.choice(values) for name, values in good.items() if draw.random() < 0.25}
    if draw.random() < 0.15:
        name = draw.choice([*bad])
        given[name] = draw.choice(bad[name])
    if given and draw.random() < 0.05:
        given[draw.choice([*given])] = inputs.value(draw)
    return given


# ---- Encoding ----

ENCODING: Values = {
    **{"prompt": ("", "the", "find: ", None), "batch_size": (1, 2), "batch_tokens": (1, 8, 100)},
    **{"max_length": (3, 5, 64), "pooling": ("last", "mean", "weighted_mean"), "truncate_dim": (1, 16)},
    **{"normalize_embeddings": (True, False), "precision": ("float32", "ubinary", "binary")},
    "output_value": ("sentence_embedding", "token_embeddings"),
}
BAD_ENCODING: Values = {
    **{"prompt_name": ("sentence", "STS", "x"), "batch_size": (0,), "batch_tokens": (-1,), "max_length": (2, 65)},
    **{"pooling": ("cls",), "truncate_dim": (0, 17), "precision": ("int8", "x")},
}


def encoding(draw: random.Random, folder: Path) -> None:
    """Encode texts: each has a finite vector, the same alone as in a list."""
    chosen = _model(draw)
    texts: Any = [inputs.unicode_text(draw, 4) for _ in range(draw.randrange(4))]
    if draw.random() < 0.15:
        texts = draw.choice((inputs.value(draw), [*texts, inputs.text(draw)], np.array(texts), [*texts, 3]))
    options = {"prompt": "", **_options(draw, ENCODING, BAD_ENCODING)}
    if options.get("prompt_name") is not None:
        options.pop("prompt")
    made = chosen.encode(texts, **options)
    if isinstance(texts, str):
        return
    check(len(made) == len(texts), f"{len(made)} vectors of {len(texts)} texts")
    if options.get("output_value") == "token_embeddings" or options.get("precision") == "int8" or not len(texts):
        return
    check(bool(np.isfinite(made).all()), "vectors that are not numbers")
    alone = chosen.encode(texts[-1], **options)
    close = np.allclose(alone.astype(float), made[-1].astype(float), atol=1e-4)
    check(close or made.dtype != np.float32, f"{texts[-1]!r} has another vector in company")


WORDS: Values = {
    **{"prompt": ("", "the", "a: "), "shift": ("next", "same"), "mode": ("bidirectional", "causal")},
    **{"max_length": (8, 64), "batch_tokens": (8, 1)},
}
BAD_WORDS: Values = {"shift": ("x",), "mode": ("infill",), "max_length": (0, 4, 65)}


def words(draw: random.Random, folder: Path) -> None:
    """Encode words and tokens: each has ordered offsets in the text and a finite vector."""
    chosen, text, kind = _model(draw), inputs.unicode_text(draw, 6), draw.randrange(3)
    options = _options(draw, WORDS, BAD_WORDS)
    if kind == 0:
        made = chosen.encode_tokens(text, **options)
        offsets = made.offsets.tolist()
        check(all(0 <= start <= end <= len(text) for start, end in offsets), f"{offsets} of {text!r}")
    else:
        given: Any = text if kind == 1 else (text.split() if draw.random() < 0.9 else inputs.value(draw))
        made = chosen.encode_words(given, is_split_into_words=kind == 2, **options)
        if isinstance(made, list):
            return
        whole = text if kind == 1 else " ".join(given)
        shown = [whole[start:end] for start, end in made.offsets.tolist()]
        check(shown == (text.split() if kind == 1 else list(given)), f"{shown} of {given!r}")
    finite = len(made.vectors) == len(made.offsets) and bool(np.isfinite(made.vectors).all())
    check(finite, "vectors that are not numbers")


# ---- Infilling ----

FILLING: Values = {
    **{"heal": ("space", "token", None), "chunk_size": (1, 2, 32), "do_sample": (True,), "temperature": (0.1, 5.0)},
    **{"top_k": (1, 5, 0), "top_p": (0.5, 1.0), "min_p": (0.1,), "num_return_sequences": (1, 2, 3)},
    **{"repetition_penalty": (1.5,), "no_repeat_ngram_size": (1, 2), "trim_overlap": (True,), "batch_size": (1, 2)},
    "return_dict_in_generate": (True, False),
}
BAD_FILLING: Values = {
    "stop_strings": ("a", ".", "", ["the", " "]),  # not together with heal="token", like the next two
    **{
        "stop_at_sentence_end": (True,),
        "stop_at_end_of_span": (True,),
        "chunk_size": (0,),
        "temperature": (0.0, -1.0),
    },
    **{"top_k": (-1,), "top_p": (0.0, 2.0), "num_return_sequences": (0,), "cache_implementation": ("x",)},
}


def split_by_hand(text: str, blank: str) -> list[str]:
    """Split a text at its marks from left to right; a backslash before a mark makes it text."""
    pieces, place = [""], 0
    while place < len(text):
        end = place
        while text.startswith("\\", end) and not text.startswith(blank, end):
            end += 1
        if not text.startswith(blank, end):
            end = max(end, place + 1)
            pieces[-1] += text[place:end]
            place = end
            continue
        count = end - place
        pieces[-1] += "\\" * (count // 2) + (blank if count % 2 else "")
        pieces += [] if count % 2 else [""]
        place = end + len(blank)
    return pieces


def infilling(draw: random.Random, folder: Path) -> None:
    """Infill a text: one text per blank, each with a log-probability per token."""
    chosen, options = _model(draw), _options(draw, FILLING, BAD_FILLING)
    if draw.random() < 0.1:
        options["num_tokens"] = draw.choice(("auto", [1, 3], [0], []))
    else:
        options["max_new_tokens"] = draw.choice((1, 2, 3, 5, 8) if draw.random() < 0.9 else (0, [1, 2], 100))
    if draw.random() < 0.05:
        options[draw.choice(("max_new_tokens", "num_tokens"))] = inputs.value(draw)
    torch.manual_seed(draw.randrange(100))
    before, after = inputs.unicode_text(draw, 3), inputs.unicode_text(draw, 3)
    text, kind, blanks = f"{before}[blank]{after}", draw.randrange(4), 1
    if kind == 0:
        made = [chosen.infill(before, after, **options)]
    elif kind == 1:
        made, blanks = chosen.infill_blanks(text, **options), len(split_by_hand(text, "[blank]")) - 1
    elif kind == 2:
        start = draw.randint(0, len(text))
        made = [chosen.rewrite(text, start, draw.randint(start, len(text)), **options)]
    else:
        given: Any = inputs.value(draw) if draw.random() < 0.2 else [inputs.unicode_text(draw, 2), after]
        made, blanks = chosen.infill([before, "the cat"], given, **options), 2
    if options.get("return_dict_in_generate"):
        fills = (made[0] if isinstance(made, list) else made).fills
        _check_fills([one for row in fills for answers in row for one in answers], options.get("max_new_tokens"))
        return
    check(len(made) == blanks, f"{len(made)} fills of {blanks} blanks of {text!r}")
    answers, most = [one if isinstance(one, list) else [one] for one in made], options.get("num_return_sequences", 1)
    check(all(len(set(own)) == len(own) <= (most or 1) and own for own in answers), f"answers {answers!r:.200}")
    check(all(isinstance(one, str) for own in answers for one in own), f"fills that are not text: {made!r:.200}")


def _check_fills(fills: list[Any], length: Any = None) -> None:
    for fill in fills:
        check(len(fill.token_ids) == len(fill.logprobs), "not a log-probability for each token")
        check(not isinstance(length, int) or len(fill.token_ids) <= length, f"more than {length} tokens")
        check(all(score <= 1e-6 for score in fill.logprobs), f"{fill.logprobs} are not log-probabilities")


def scoring(draw: random.Random, folder: Path) -> None:
    """Score given fills: one log-probability per token, in order."""
    chosen = _model(draw)
    fills: Any = [inputs.unicode_text(draw, 3) or "a" for _ in range(draw.randint(1, 3))]
    if draw.random() < 0.15:
        fills = draw.choice((inputs.value(draw), [*fills, inputs.text(draw)], "lone", [], [*fills, ""]))
    before, after = inputs.unicode_text(draw, 3), inputs.unicode_text(draw, 3)
    made = chosen.score_infill(
        before, fills, after, **_options(draw, {"batch_tokens": (1, 16)}, {"batch_tokens": (0,)})
    )
    check([fill.text for fill in made] == list(fills), "fills in their order")
    _check_fills(made)


# ---- The forward ----

MODES = ("causal", "bidirectional", "infill", "infill")
DTYPES = (torch.int64, torch.int32, torch.int8, torch.uint8, torch.bool, torch.float32, torch.complex64)


def _tensor(draw: random.Random, shape: tuple[int, ...], values: tuple[int, ...]) -> Any:
    """Draw a tensor of about this shape: occasionally of another shape or type, or a list."""
    if draw.random() < 0.1:
        shape = draw.choice((shape[:-1], (*shape, 1), shape[::-1], (shape[0], 0), (0, shape[-1]), (shape[0], 70)))
    tensor = torch.tensor([draw.choice(values) for _ in range(math.prod(shape))], dtype=torch.long).reshape(shape)
    tensor = tensor.to(draw.choice(DTYPES)) if draw.random() < 0.1 else tensor
    return tensor.tolist() if draw.random() < 0.03 else tensor


def forward(draw: random.Random, folder: Path) -> None:
    """Run a forward with hostile tables: states that depend on nothing hidden, or a clear error."""
    shape = (draw.randint(1, 3), draw.randint(1, 8))
    # torch refuses invalid ids, and causal mode passes other input on to the parent class.
    ids = torch.tensor([draw.choice((1, 4, 5, 20, 43)) for _ in range(math.prod(shape))]).reshape(shape)
    given: dict[str, Any] = {"input_ids": ids}
    mode: Any = draw.choice(MODES)
    if draw.random() < 0.15:
        mode = draw.choice(([draw.choice(MODES) for _ in range(shape[0])], "Causal", "", [], ["infill"]))
    if mode == "infill" or "infill" in mode or draw.random() < 0.1:
        given["segment_ids"] = _tensor(draw, shape, draw.choice(((0, 1, 2), (0, 0, 1, 3, 7), (0, -1))))
    is_causal = mode == "causal" or "causal" in mode
    if not is_causal and draw.random() < 0.4:
        given["attention_mask"] = _tensor(draw, shape, draw.choice(((0, 1, 1, 1), (1,), (0,), (-1, 2))))
    if not is_causal and draw.random() < 0.2:
        given["position_ids"] = _tensor(draw, shape, draw.choice(((0, 1, 2, 5), (63,), (100_000,), (-1,))))
    if draw.random() < 0.15:
        given["target_ids"] = _tensor(draw, shape, draw.choice(((-100, 4, 43), (-100,), (44,), (-1,))))
        given["num_targets"] = draw.choice((None, None, 0, 1, 1000, -1))
    with torch.no_grad():
        states = _tiny()(**given, mode=mode).last_hidden_state
        check(states.shape[:2] == shape, f"states of shape {tuple(states.shape)}")
        check(bool(torch.isfinite(states).all()), "states that are not numbers")
        if mode != "infill" or "attention_mask" in given or not int((segments := given["segment_ids"]).max()):
            return
        hidden = segments == segments.max()
        given["input_ids"] = torch.where(hidden, 48 - ids.clamp(5, 43), ids)
        other = _tiny()(**given, mode="infill").last_hidden_state
    check(
        torch.allclose(states[~hidden], other[~hidden], atol=1e-5), f"a span is seen from outside: {segments.tolist()}"
    )


# ---- Training and measuring ----

NUMBERS = (0, 1, 2, 3, 5, 8, -1, 2**40, 0.0, 0.5, 1.0, 1.5, -0.1, 1e308, math.nan, math.inf, -math.inf)
FLAGS = ("contrastive_recompute", "losses_as_printed", "gradient_checkpointing", "remove_unused_columns")
SHARES = ("mask_ratio", "mask_token_share", "random_token_share", "causal_ratio", "view_dropout", "temperature")
COUNTS = ("max_spans", "min_span_tokens", "max_span_tokens", "end_of_span")
NAMED = ("contrastive_head", "mntp_shift")
ARGUMENTS: Values = {
    **{"loss_phases": (["2:1,0,1"], ["1:1,1,1", "1:1,9,1"], ["1:0,1,0"], ["0:1,1,1"], [], ["x"])},
    **{"contrastive_max_length": (2, 3, 128, -1), "contrastive_batch_size": (0, 1, 2, -1, 2**40)},
    **{"contrastive_mini_batch_tokens": (None, 1, 4096, -1), "max_steps": (-1, 2, 7)},
    **{"label_smoothing_factor": (0, 0.1), "per_device_train_batch_size": (1, 0, -1)},
    **dict.fromkeys(SHARES, NUMBERS),
    **dict.fromkeys(COUNTS, (0, 1, 4, -1, 2**40)),
    **dict.fromkeys(FLAGS, (True, False)),
    **dict.fromkeys(NAMED, ("keep", "none", "tanh", "", "same", "token")),
}
WEIGHTS = ("0", "1", "9", "0.5", "1e-3", "-1", "nan", "1e999", "", " 1", "1_0", "٣", "x", "-0")


def arguments(draw: random.Random, folder: Path) -> None:
    """Accept training arguments that are consistent, and name all that are not."""
    LoraArguments(**{name: draw.choice(NUMBERS) for name in inputs.some(draw, ("lora_r", "lora_dropout"), 1)})
    given = {name: draw.choice(ARGUMENTS[name]) for name in inputs.some(draw, tuple(ARGUMENTS), 3)}
    if draw.random() < 0.5:
        steps = draw.choice(("1", "3", "800", "0", "-2", "1.5", "1e3", "", "9" * 400, "9" * 5000, "٣"))
        phase = f"{steps}:{','.join(draw.choice(WEIGHTS) for _ in range(draw.choice((2, 3, 3, 4))))}"
        given["loss_phases"] = draw.choice(([phase], ["2:1,0,1", phase], inputs.text(draw), inputs.value(draw)))
    made = MagnetTrainingArguments(output_dir=str(folder), use_cpu=True, report_to="none", **given)
    check(made.max_steps == sum(phase.steps for phase in made.phases) >= 1, f"{made.max_steps} steps")
    check(
        0 <= made.corruption_settings.mask_ratio <= 1 and made.temperature > 0, "a share or a temperature out of range"
    )


def sentences(draw: random.Random, folder: Path) -> None:
    """Split and measure a text: no character is lost, and repetition is a share."""
    text = inputs.text(draw)
    parts = split_sentences(text)
    check("".join("".join(parts).split()) == "".join(text.split()), f"sentences of {text!r}: {parts!r}")
    for measured in (repetition_sentences(text), repetition_n([text, ""], n=draw.randint(1, 5))):
        check(0 <= measured < 1, f"{measured} of {text!r}")


# ---- Pages ----

MARKDOWN = MarkdownIt("commonmark").enable(["table", "strikethrough"])
METADATA = (
    *("", "tags: [a]\n", "tags: a\n", "tags: {a: 1}\n", "tags: 3\n", "model-index: 3\n", "a: &a [*a]\n", "- 1\n"),
    *("? [1]\n: 2\n", "model-index:\n- name: x\n  results: []\n", "tags: [[a], 1]\n", "base_model: 2026-11-22\n"),
    *("!!python/object:os.system 1\n", "a: " + "[" * 200 + "\n", "tags: [null]\n", "no: on\n"),
)


def cards(draw: random.Random, folder: Path) -> None:
    """Write a model card: it has exactly the given metadata, and shows text, not markup."""

    def one() -> str:
        return inputs.unicode_text(draw, 3)

    shown, prompt = _tiny(), one()
    shown.config.magnet |= {"prompts": {prompt: "Prompt:"}, "default_prompt_name": draw.choice((None, prompt))}
    result = EvalResult("text-generation", "held-out", one() or "d", "perplexity", draw.choice((2.0, 1e300, math.nan)))
    facts = CardFacts(
        base_model=draw.choice((None, "me/base", one())),
        datasets=[one()],
        language=draw.choice(((), ("en",), ("no", "on"))),
        license=draw.choice((None, "apache-2.0", one() or None)),
        recipe=[(one(), one())],
        results=[result],
        notes=[one(), one()],
    )
    for card in (written := write_card(shown, one() or "x", facts), rename_card(written, one() or "y")):
        check(MARK in card and parse_card(card) is not None, "our own card cannot be read")
        parsed = ModelCard(card)
        data = parsed.data.to_dict()
        check(data["tags"][:1] == ["magnet"] and len(data["tags"]) == 4, f"tags {data['tags']}")
        # PyYAML reads some line ends as spaces.
        check((data.get("license") or "").split() == (facts.license or "").split(), f"license {data.get('license')!r}")
        rendered = MARKDOWN.render(parsed.text.partition("-->")[2])
        check_harmless(rendered)
        check(Elements(rendered).tags <= CARD_TAGS, f"elements {Elements(rendered).tags}")


def foreign_cards(draw: random.Random, folder: Path) -> None:
    """Rename and tag foreign cards: unreadable ones are not changed, and nothing raises."""
    extra = inputs.text(draw, 2) if draw.random() < 0.3 else ""
    text = f"---\n{draw.choice(METADATA)}{extra}---\n{inputs.text(draw)}"
    text += draw.choice(("", "\n<!-- written by magnet -->\n# x\n", "<!-- written by magnet"))
    renamed, tagged = rename_card(text, inputs.text(draw, 2)), with_tags(text, ["magnet", "x"])
    if parse_card(text) is None:
        check(renamed == tagged == text, "a card that cannot be read was changed")
    elif MARK not in text:
        check(renamed == text and parse_card(tagged) is not None, f"a person's card was renamed or broken: {tagged!r}")


def fills_pages(draw: random.Random, folder: Path) -> None:
    """Show fills on a page as text."""

    def fill() -> dict[str, Any]:
        parts = [inputs.unicode_text(draw, 2) for _ in range(draw.randrange(3))]
        whole = "".join(parts) if draw.random() < 0.7 else inputs.unicode_text(draw, 2)
        return {"text": whole, "tokens": parts, "logprobs": [-1e4] * len(parts), "logprob": -1.0, "mean_logprob": -1.0}

    pieces = [inputs.unicode_text(draw, 2) for _ in range(draw.randint(2, 3))]
    rows = [
        {"row": 0, "pieces": pieces, "fills": [[fill(), fill()] for _ in pieces[1:]]},
        {"row": 1, "text": inputs.unicode_text(draw), "error": inputs.unicode_text(draw)},
    ]
    text = check_harmless(render_page(rows, title=inputs.unicode_text(draw, 2)))
    letters = "".join(filter(str.isalnum, text))  # HTML parsers change line ends and odd characters
    check(all("".join(filter(str.isalnum, piece)) in letters for piece in pieces), f"a piece of {pieces} is missing")


# Targets by name, with the number of inputs per test; the nightly run divides its inputs likewise.
TARGETS: dict[str, tuple[Target, int]] = {
    "loading": (targets_files.loading, 60),
    "adapting": (targets_files.adapting, 20),
    "json_files": (targets_files.json_files, 400),
    "corpora": (targets_files.corpora, 250),
    "training_files": (targets_files.training_files, 40),
    "evaluations": (targets_files.evaluations, 250),
    "encoding": (encoding, 80),
    "words": (words, 60),
    "infilling": (infilling, 80),
    "scoring": (scoring, 60),
    "forward": (forward, 120),
    "arguments": (arguments, 120),
    "sentences": (sentences, 200),
    "cards": (cards, 30),
    "foreign_cards": (foreign_cards, 60),
    "fills_pages": (fills_pages, 100),
}
