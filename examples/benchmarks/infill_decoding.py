"""Measure what infilling costs with more blanks, texts and candidates, and what the cache saves.

    python examples/benchmarks/infill_decoding.py --model DIR
    python examples/benchmarks/infill_decoding.py --model DIR --shape 7b --device cuda --dtype bfloat16

Floor: on one sequence a decoded token reads every weight once, and the keys and values of all tokens before it, at the
rate at which the same run copies a large tensor. The blanks of a text and the texts of a batch advance together, so
that all their tokens read the weights once; each also costs its own operations, and the context of each text has to be
read first. Filled tokens and scores are compared with plain full-mask forwards before anything is timed. Ratios are
taken within a round, so that a busy machine disturbs both sides.
"""

import argparse
import random
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from examples.benchmarks.measuring import (
    SHAPES,
    add_results,
    copy_rate,
    machine,
    open_shaped,
    quartiles,
    seconds,
    write_report,
)
from examples.command_line import OneLineParser, add_device, add_dtype, add_model, choose_device, start
from modeling_magnet.spans_magnet import continuation_ids, lay_out
from modeling_magnet.tokenization_magnet import special_ids

WORDS = "The river runs through the old town and its bridges were built in the last century .".split()
FILL_TOKENS = 16
DECODE_TOKENS = 64  # tokens for the comparison with generate
BATCH = 32
CONTEXTS = (32, 256)  # tokens around the blanks of a batch
LONG_CONTEXT = 512
CANDIDATES = 16


def make_text(model: Any, *, context_tokens: int, blanks: int) -> str:
    """Return words of about `context_tokens` tokens with evenly spread blanks."""
    text = [WORDS[index % len(WORDS)] for index in range(context_tokens)]
    while len(model.tokenizer(" ".join(text))["input_ids"]) > context_tokens:
        text.pop()
    for blank in range(blanks, 0, -1):
        text.insert(blank * len(text) // (blanks + 1), "[blank]")
    return " ".join(text)


def make_fills(model: Any, *, number: int) -> list[str]:
    """Return random words of `FILL_TOKENS` tokens after a space."""
    draw = random.Random(0)
    words = [word for word in map(model.tokenizer.decode, range(300, len(model.tokenizer))) if word.strip().isalpha()]
    fills: list[str] = []
    while len(fills) < number:
        fill = " " + " ".join(word.strip() for word in draw.sample(words, FILL_TOKENS))
        ids = continuation_ids(model.tokenizer, fill)[:FILL_TOKENS]
        fill = model.tokenizer.decode(ids, clean_up_tokenization_spaces=False).strip()
        if len(continuation_ids(model.tokenizer, f" {fill}")) == FILL_TOKENS:
            fills.append(fill)
    return fills


@torch.no_grad()
def full_mask_logits(model: Any, layout: Any, fill: list[int], *, last_only: bool) -> torch.Tensor:
    """Return the logits that predict a fill and the token after it, from one forward without a cache."""
    cut = layout.predictors[0] + 1
    ids = torch.tensor([layout.token_ids[:cut] + fill + layout.token_ids[cut:]], device=model.device)
    segments = torch.tensor([[0] * cut + [1] * len(fill) + [0] * (len(layout.token_ids) - cut)], device=model.device)
    start = layout.span_starts[0]
    positions = torch.tensor(
        [[*layout.positions[:cut], *range(start, start + len(fill)), *layout.positions[cut:]]], device=model.device
    )
    keep = torch.arange(cut - 1 + (len(fill) if last_only else 0), cut + len(fill), device=model.device)
    return model(ids, position_ids=positions, mode="infill", segment_ids=segments, logits_to_keep=keep).logits[0]


def fill_without_cache(model: Any, layout: Any, *, first: int) -> list[int]:
    """Fill greedily without a cache, reading the whole row for each token; token healing gives the first token."""
    special = sorted(special_ids(model.tokenizer))
    fill = [first]
    while len(fill) < FILL_TOKENS:
        logits = full_mask_logits(model, layout, fill, last_only=True)[-1]
        logits[special] = -torch.inf
        fill.append(int(logits.argmax()))
    return fill


def check(model: Any, *, prefix: str, suffix: str, fills: list[str], layout: Any) -> tuple[int, float]:
    """Return the first token of a fill, and the largest difference between scores and one forward per fill.

    Raises:
        SystemExit: If the tokens differ, or in float32 the scores.
    """
    output = model.infill(prefix, suffix, max_new_tokens=FILL_TOKENS, return_dict_in_generate=True)
    tokens = output.fills[0][0][0].token_ids
    exact = model.dtype == torch.float32
    if exact and fill_without_cache(model, layout, first=tokens[0]) != tokens:
        raise SystemExit("The fills with and without a cache differ, so times are not comparable.")
    difference = 0.0
    for fill in model.score_infill(prefix, fills, suffix):
        logprobs = torch.log_softmax(full_mask_logits(model, layout, fill.token_ids, last_only=False).float(), -1)
        own = logprobs[:-1].gather(-1, torch.tensor(fill.token_ids, device=model.device)[:, None])[:, 0]
        difference = max(difference, float((own.cpu() - torch.tensor(fill.logprobs)).abs().max()))
    if exact and difference > 1e-4:
        raise SystemExit(f"Scores differ by {difference:.1e} from one forward for each fill; the limit is 1e-4.")
    return tokens[0], difference


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = OneLineParser(description=__doc__)
    add_model(parser, help="directory or Hub id of a plain decoder or a MAGNET checkpoint")
    parser.add_argument("--shape", choices=list(SHAPES), help="random weights of this size, with the tokenizer")
    add_device(parser)
    add_dtype(parser)
    add_results(parser, name="infill_decoding", rounds=15)
    args = parser.parse_args(arguments)
    args.device = choose_device(args.device)
    return args


def timed_calls(
    model: Any, prefix: str, suffix: str, *, fills: list[str], layout: Any, first: int
) -> dict[str, Callable[[], Any]]:
    """Return the timed calls by name."""
    fill: Callable[..., Any] = partial(model.infill_blanks, max_new_tokens=FILL_TOKENS, batch_size=BATCH)
    texts = {(n, k): make_text(model, context_tokens=n, blanks=k) for n in CONTEXTS for k in (1, 8)}
    prompt = model.tokenizer(texts[256, 1].replace("[blank]", ""), return_tensors="pt").to(model.device)

    def generate(tokens: int) -> Any:
        return model.generate(**prompt, min_new_tokens=tokens, max_new_tokens=tokens, do_sample=False, pad_token_id=0)

    long = {"max_new_tokens": FILL_TOKENS + DECODE_TOKENS, "chunk_size": FILL_TOKENS + DECODE_TOKENS}
    calls: dict[str, Callable[[], Any]] = {
        "one blank": partial(fill, texts[256, 1]),
        "one blank, long": partial(model.infill_blanks, texts[256, 1], **long),
        "eight blanks": partial(fill, texts[256, 8]),
        "generate": partial(generate, FILL_TOKENS),
        "generate, long": partial(generate, FILL_TOKENS + DECODE_TOKENS),
        "cached": partial(model.infill, prefix, suffix, max_new_tokens=FILL_TOKENS),
        "recomputed": partial(fill_without_cache, model, layout, first=first),
        "one score": partial(model.score_infill, prefix, fills[:1], suffix),
        f"{CANDIDATES} scores": partial(model.score_infill, prefix, fills, suffix),
    }
    for n in CONTEXTS:
        for name, given in (("one text", texts[n, 1]), (f"{BATCH} texts", [texts[n, 1]] * BATCH)):
            calls[f"{name}, {n}"] = partial(fill, given)
            calls[f"{name}, {n}, one token"] = partial(fill, given, max_new_tokens=1)
    return calls


def main(arguments: list[str] | None = None) -> None:
    """Check, measure, print the medians, and write JSON."""
    args = parse_arguments(arguments)
    torch.manual_seed(0)
    device = torch.device(args.device)
    with tempfile.TemporaryDirectory() as folder:
        model = open_shaped(args, folder)
    prefix, suffix = make_text(model, context_tokens=LONG_CONTEXT, blanks=1).split("[blank]")
    fills = make_fills(model, number=CANDIDATES)
    layout = lay_out(
        model.tokenizer,
        [prefix, suffix],
        span_lengths=[FILL_TOKENS],
        context_length=model.config.max_position_embeddings,
        heal="space",
    )
    first, difference = check(model, prefix=prefix, suffix=suffix, fills=fills, layout=layout)
    print(f"cached = recomputed; {CANDIDATES} scores of one forward to {difference:.1e} of {CANDIDATES} forwards\n")

    calls = timed_calls(model, prefix, suffix, fills=fills, layout=layout, first=first)
    for call in calls.values():
        call()
    rounds = [{name: seconds(call, device) for name, call in calls.items()} for _ in range(args.rounds)]
    floor = step_bytes(model, context=256 + FILL_TOKENS + DECODE_TOKENS // 2) / copy_rate(device)
    ratios = [measured_ratios(times, floor=floor) for times in rounds]
    report: dict[str, Any] = {"seconds": {}, "ratios": {}}
    for kind, values in (("seconds", rounds), ("ratios", ratios)):
        print(f"{kind:52s}{'median':>9s}{'quartiles':>20s}")
        for name in values[0]:
            low, median, high = quartiles([ratio_set[name] for ratio_set in values])
            report[kind][name] = {"median": median, "quartiles": [low, high]}
            print(f"  {name:50s}{median:9.4f}{f'{low:.4f} .. {high:.4f}':>20s}")
    report |= {
        "largest_score_difference": difference,
        "arguments": {"shape": args.shape, "rounds": args.rounds, "model": Path(args.model).name},
        "weights_gb": sum(p.numel() * p.element_size() for p in model.parameters()) / 1e9,
        "floor_seconds": floor,
        **machine(device, dtype=args.dtype),
    }
    print(f"weights read per step: {report['weights_gb']:.4f} GB; floor of a step {1000 * floor:.3f} ms")
    write_report(args, report, script="infill_decoding")


def step_bytes(model: Any, *, context: int) -> int:
    """Count the bytes that a decoding step of one row reads: weights without the input embedding, keys and values."""
    config, embedding, head = model.config, model.get_input_embeddings().weight, model.get_output_embeddings().weight
    weights = sum(p.numel() for p in model.base_model.parameters()) - embedding.numel() + head.numel()
    states = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * context
    return (weights + states) * embedding.element_size()


def measured_ratios(one: dict[str, float], *, floor: float) -> dict[str, float]:
    """Return the ratios of one round. A long call minus a short one leaves only decoding, without the context."""
    infill_token = one["one blank, long"] - one["one blank"]
    generate_token = one["generate, long"] - one["generate"]
    ratios = {
        "eight blanks / one blank": one["eight blanks"] / one["one blank"],
        "a filled token / one of generate": infill_token / generate_token,
        "recomputed / cached": one["recomputed"] / one["cached"],
        f"{CANDIDATES} scores / one": one[f"{CANDIDATES} scores"] / one["one score"],
        "share of the copying rate": floor / (infill_token / DECODE_TOKENS),
    }
    for n in CONTEXTS:
        single, batch = one[f"one text, {n}"], one[f"{BATCH} texts, {n}"]
        single_step, batch_step = (
            single - one[f"one text, {n}, one token"],
            batch - one[f"{BATCH} texts, {n}, one token"],
        )
        ratios[f"{BATCH} texts / one, tokens/s decoded, context {n}"] = BATCH * single_step / batch_step
        ratios[f"{BATCH} texts / one, tokens/s with reading, context {n}"] = BATCH * single / batch
    return ratios


if __name__ == "__main__":
    start(main)
