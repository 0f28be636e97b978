"""Schedules, corruption, batches and arguments of training, with numbers that no run should have."""

import math
import random
from pathlib import Path
from typing import Any

import torch

from modeling_magnet.losses_magnet import token_losses
from tests.fuzz import inputs
from tests.fuzz.judging import Target, check
from tests.trainer.tiny import tiny_tokenizer
from trainer import LoraArguments, MagnetTrainingArguments
from trainer.corruption import IGNORE_INDEX, CorruptionSettings, corrupt_row, row_generator, sample_spans
from trainer.data_collator import DataCollatorForMagnet, DataCollatorForPairs
from trainer.phases import contrastive_steps_before, parse_phases, phase_at
from trainer.samplers import EpochRowSampler, EvenBatchSampler, MicroBatchStream, PairBatchSampler

TOKENIZER = tiny_tokenizer()
NUMBERS = (0, 1, 2, 3, 5, 8, -1, 2**40, 0.0, 0.5, 1.0, 1.5, -0.1, 1e308, math.nan, math.inf, -math.inf)


def phases(draw: random.Random, folder: Path) -> None:
    """Phases follow one another as counting steps one by one does; every phase that is none is named."""
    weights = ("0", "1", "9", "0.5", "1e-3", "-1", "nan", "inf", "1e999", "", " 1", "1_0", "٣", "x", "0x1", "-0")
    entries: Any = [
        f"{draw.choice(('1', '3', '800', '0', '-2', '1.5', '1e3', '', '9' * 400, '9' * 5000, '٣'))}:"
        + ",".join(
            inputs.some(draw, weights, 1) + [draw.choice(weights[:5]) for _ in range(draw.choice((2, 3, 3, 3)))]
        )
        if draw.random() < 0.4
        else f"{draw.randint(1, 4)}:{draw.choice(weights[:5])},{draw.choice(weights[:5])},1"
        for _ in range(draw.randint(0, 4))
    ]
    if draw.random() < 0.2:
        entries = draw.choice(
            (lambda: inputs.text(draw), lambda: [*entries, inputs.text(draw, 3)], lambda: inputs.value(draw))
        )()
    made = parse_phases(entries)
    if sum(phase.steps for phase in made) > 1000:
        return
    by_hand = [phase for phase in made for _ in range(phase.steps)] + [made[-1]] * 2
    for step, phase in enumerate(by_hand):
        check(phase_at(made, step) is phase, f"step {step} of {made}")
        counted = sum(one.sscl > 0 for one in by_hand[:step])
        check(contrastive_steps_before(made, step) == counted, f"contrastive steps before {step} of {made}")


def corruption(draw: random.Random, folder: Path) -> None:
    """A corrupted row hides only what it predicts, whatever the settings let through."""
    changes = {
        name: draw.choice((0, 0.1, 0.2, 0.5, 1.0) if draw.random() < 0.9 else NUMBERS)
        for name in ("mask_ratio", "mask_token_share", "random_token_share", "causal_ratio")
        if draw.random() < 0.3
    }
    for name in ("max_spans", "min_span_tokens", "max_span_tokens", "end_of_span"):
        if draw.random() < 0.4:
            changes[name] = draw.choice((1, 2, 3, 4) if draw.random() < 0.85 else (0, 8, -1, 2**40))
    if draw.random() < 0.3:
        changes["mntp_shift"] = draw.choice(("next", "same", "same", ""))
    settings = CorruptionSettings(**changes)
    ids = torch.tensor([1, *(draw.randrange(4, 44) for _ in range(draw.choice((0, 1, 3, 10, 40))))])
    row = corrupt_row(
        ids,
        settings=settings,
        mask_token_id=3,
        special_token_ids=torch.tensor([0, 1, 2, 3]),
        replacement_ids=torch.arange(4, 44),
        generator=row_generator(draw.getrandbits(70), epoch=draw.randrange(5), row_id=draw.randrange(5)),
        end_of_span_id=draw.choice((2, 2, None)),
    )
    for field in row:
        check(field.shape == ids.shape, f"{field.shape} for {ids.shape}")
    check(bool((row.input_ids == ids)[row.segment_ids > 0].all()), "tokens of spans keep their ids")
    check(int(row.segment_ids[0]) == 0, "the first token is in no span")
    shifted = torch.cat([ids[1:], ids[:1]])
    wanted = ids if settings.mntp_shift == "same" else shifted
    check(bool((row.mntp_labels == wanted)[row.mntp_labels != IGNORE_INDEX].all()), "labels of masked tokens")
    is_end = row.msg_labels == 2 if settings.end_of_span else torch.zeros_like(ids, dtype=torch.bool)
    check(bool((row.msg_labels == shifted)[(row.msg_labels != IGNORE_INDEX) & ~is_end].all()), "labels of spans")
    check(bool((row.position_ids[1:] > row.position_ids[:-1]).all()), "positions ascend")


def spans(draw: random.Random, folder: Path) -> None:
    """Spans are apart from each other, in their range, and leave the first token alone."""
    limits = {
        name: draw.choice((0, 1, 2, 3, 4, 9, -1, 2**40))
        for name in ("max_spans", "min_span_tokens", "max_span_tokens")
    }
    length = draw.choice((0, 1, 2, 3, 5, 17, 200, 2**20 if limits["max_spans"] < 10 and draw.random() < 0.01 else 9))
    generator = torch.Generator().manual_seed(draw.getrandbits(40))
    found = sample_spans(length, **limits, generator=generator)
    edges = [edge for span in found for edge in span]
    check(edges == sorted(set(edges)) and (not edges or 1 <= edges[0] and edges[-1] < length), f"{found} of {length}")
    check(
        all(limits["min_span_tokens"] <= end - start <= limits["max_span_tokens"] for start, end in found), f"{found}"
    )
    check(len(found) <= limits["max_spans"], f"{len(found)} spans")


def collators(draw: random.Random, folder: Path) -> None:
    """Batches of hostile rows and pairs, padded where they are not real."""
    if draw.random() < 0.5:
        rows: list[Any] = [
            {
                "input_ids": [draw.choice((1, 4, 43)) for _ in range(draw.randrange(9))],
                "row_id": draw.choice((0, 7, 2**70)),
                "epoch": 0,
            }
            for _ in range(draw.randrange(4))
        ]
        if rows and draw.random() < 0.2:
            rows[0].pop(draw.choice([*rows[0]]))
        size = draw.choice((44, 44, 44, 4, 0))
        collate = DataCollatorForMagnet(
            settings=CorruptionSettings(min_span_tokens=2, end_of_span=draw.choice((0, 4))),
            mask_token_id=draw.choice((3, 3, 3, -1, 44)),
            pad_token_id=draw.choice((2, 2, 44)),
            special_token_ids=draw.choice(([0, 1, 2, 3], [], [0, 2**40], list(range(44)))),
            vocab_size=size,
            seed=draw.choice((0, -1, 2**80)),
            end_of_span_id=draw.choice((2, None)),
        )
        batch = collate(rows)
        mask = batch["attention_mask"].bool()
        check(mask.sum(1).tolist() == [len(row["input_ids"]) for row in rows], "real tokens")
        check(bool((batch["msg_labels"][~mask] == IGNORE_INDEX).all()), "padding predicts nothing")
        check(size < 44 or bool((batch["input_ids"] < size).all()), "ids of the vocabulary")
        return
    length = draw.choice((3, 4, 8, 64, 2))
    given = [
        {"anchor": inputs.unicode_text(draw, 3), "positive": "w1 " * draw.choice((0, 1, 90))}
        for _ in range(draw.randrange(4))
    ]
    pairs = DataCollatorForPairs(TOKENIZER, draw.choice((None, "", "w5: ")), length, 2, draw.choice((None, 64, 200)))
    batch = pairs(given)
    check(batch["input_ids"].shape[0] == 2 * len(given) and batch["input_ids"].shape[1] <= length, "rows and columns")
    if "mini_batches" in batch:
        check(sum(rows for rows, _ in batch["mini_batches"]) == 2 * len(given), "each row in a mini-batch")
        check(sorted(batch["order"].tolist()) == list(range(2 * len(given))), "an order of all rows")


def orders(draw: random.Random, folder: Path) -> None:
    """Every order is a permutation, over all processes together, and can be entered anywhere."""
    rows, seed, epoch = draw.randint(1, 30), draw.choice((0, 1, -5, 2**70)), draw.choice((0, 3, 2**31))
    sampler = EpochRowSampler(rows, seed=seed)
    sampler.set_epoch(epoch)
    check(sorted(index - epoch * rows for index in sampler) == list(range(rows)), "not every row once")
    size, processes = draw.randint(1, 4), draw.randint(1, 3)
    shares = [
        EvenBatchSampler(rows, batch_size=size, num_processes=processes, process_index=rank)
        for rank in range(processes)
    ]
    check(len({len(list(share)) for share in shares}) == 1, "as many batches on each process")
    check(sorted(i for share in shares for batch in share for i in batch) == list(range(rows)), "not every item once")
    first = draw.randrange(9)
    parts = [
        list(
            PairBatchSampler(
                rows,
                seed=seed,
                batch_size=size,
                num_processes=processes,
                process_index=rank,
                first_micro_batch=first,
                end_micro_batch=first + 4,
            )
        )
        for rank in range(processes)
    ]
    for batch in zip(*parts, strict=True):
        together = [index for part in batch for index in part]
        check(len(set(together)) == size * processes, f"a pair twice in a batch: {batch}")
    stream = MicroBatchStream(lambda number: iter(range(number, number + 50)))
    wanted = [draw.randrange(20) for _ in range(5)]
    check([stream.fetch(number) for number in wanted] == wanted, f"micro-batches {wanted}")


ARGUMENTS = {
    "loss_phases": (["2:1,0,1"], ["1:1,1,1", "1:1,9,1"], ["1:0,1,0"], ["0:1,1,1"], [], ["x"]),
    "contrastive_max_length": (2, 3, 128, -1),
    "contrastive_mini_batch_tokens": (None, 1, 4096, -1),
    "contrastive_batch_size": (0, 1, 2, -1, 2**40),
    **dict.fromkeys(
        ("mask_ratio", "mask_token_share", "random_token_share", "causal_ratio", "view_dropout", "temperature"),
        NUMBERS,
    ),
    **dict.fromkeys(
        ("max_spans", "min_span_tokens", "max_span_tokens", "end_of_span", "eval_max_spans"), (0, 1, 4, -1, 2**40)
    ),
    **dict.fromkeys(
        ("contrastive_recompute", "keep_contrastive_head", "gradient_checkpointing", "remove_unused_columns"),
        (True, False),
    ),
    **dict.fromkeys(
        ("similarity", "contrastive_head", "mntp_shift", "msg_normalization"),
        ("cosine", "none", "tanh", "", "same", "token"),
    ),
    "max_steps": (-1, 2, 7),
    "label_smoothing_factor": (0, 0.1),
    "per_device_train_batch_size": (1, 0, -1),
}


def arguments(draw: random.Random, folder: Path) -> None:
    """Arguments of a training that are accepted fit each other; all that do not are named at once."""
    lora = {name: draw.choice(NUMBERS) for name in inputs.some(draw, ("lora_r", "lora_alpha", "lora_dropout"), 1)}
    LoraArguments(**lora)
    given = {name: draw.choice(ARGUMENTS[name]) for name in inputs.some(draw, tuple(ARGUMENTS), 3)}
    made = MagnetTrainingArguments(output_dir=str(folder), use_cpu=True, report_to="none", **given)
    check(made.max_steps == sum(phase.steps for phase in made.phases) >= 1, f"{made.max_steps} steps")
    check(
        0 <= made.corruption_settings.mask_ratio <= 1 and made.temperature > 0, "a share or a temperature out of range"
    )


def losses(draw: random.Random, folder: Path) -> None:
    """Losses of hostile targets are those of torch, and 0 where there is none."""
    rows, length = draw.randint(1, 3), draw.randint(1, 5)
    states, head = torch.randn(rows, length, 4), torch.nn.Linear(4, 9, bias=False)
    shape = draw.choice(((rows, length), (2, rows, length), (rows, length + 1), (rows,)))
    targets = torch.tensor([draw.choice((-100, -100, 0, 8)) for _ in range(math.prod(shape))]).reshape(shape)
    with torch.no_grad():
        made = token_losses(
            states,
            targets,
            head=head,
            vocab_size=9,
            num_targets=draw.choice((None, None, 0, 100)),
            chunk_size=draw.choice((None, 1, 64)),
        )
        logits = head(states).expand(*shape, 9)
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, -2), targets.flatten(), reduction="none")
    check(torch.allclose(made.losses.flatten(), expected, atol=1e-5), f"losses of {targets.tolist()}")


TARGETS = (
    Target(name="phases", run=phases, weight=200, seeds=500),
    Target(name="corruption", run=corruption, weight=50, seeds=200),
    Target(name="spans", run=spans, weight=100, seeds=300),
    Target(name="collators", run=collators, weight=30, seeds=150),
    Target(name="orders", run=orders, weight=20, seeds=100),
    Target(name="arguments", run=arguments, weight=6, seeds=60),
    Target(name="losses", run=losses, weight=40, seeds=100),
)
