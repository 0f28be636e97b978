"""Collated batches, their padding, and corruption that does not depend on the batch."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from torch.utils.data import DataLoader
from transformers import LlamaConfig, PreTrainedTokenizerFast

from trainer.corruption import CorruptionSettings, corrupt_row
from trainer.data_collator import DataCollatorForMagnet, DataCollatorForPairs
from trainer.samplers import row_generator

VOCAB_SIZE = 60
UNK, BOS, EOS, MASK = 0, 1, 2, 9
WORDS = "find it : a cat sat and one dog ran".split()  # tokens 3, 4, ..


def make_tokenizer(**special_tokens: str) -> PreTrainedTokenizerFast:
    """Make a tokenizer with one token per word, without a pad token by default."""
    vocabulary = {token: number for number, token in enumerate(["<unk>", "<s>", "</s>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    special_tokens = dict(unk_token="<unk>", bos_token="<s>", eos_token="</s>") | special_tokens
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special_tokens)


def make_collator(*, seed: int = 0, **fields) -> DataCollatorForMagnet:
    return DataCollatorForMagnet(
        settings=CorruptionSettings(**fields),
        mask_token_id=MASK,
        pad_token_id=EOS,
        special_token_ids=[UNK, BOS, EOS],
        vocab_size=VOCAB_SIZE,
        seed=seed,
    )


def test_end_of_span_without_its_token_raises():
    with pytest.raises(ValueError, match="`end_of_span_id`"):
        make_collator(end_of_span=8)


def make_rows(lengths: list[int], *, epoch: int = 0) -> list[dict]:
    generator = torch.Generator().manual_seed(0)
    return [
        {
            "input_ids": [BOS, *torch.randint(3, VOCAB_SIZE, (length - 1,), generator=generator).tolist()],
            "row_id": row_id,
            "epoch": epoch,
        }
        for row_id, length in enumerate(lengths)
    ]


def unpad(batch: dict[str, Any]) -> list[dict[str, list[int]]]:
    """Return the rows of a batch without padding, after checking its number of labels."""
    assert batch.pop("num_labels") == sum((batch[name] != -100).sum() for name in ("mntp_labels", "msg_labels"))
    assert len(batch.pop("row_ids")) == len(batch.pop("epochs")) == len(batch["input_ids"])
    lengths = batch["attention_mask"].sum(1).tolist()
    return [{name: batch[name][row, :length].tolist() for name in batch} for row, length in enumerate(lengths)]


# ---- DataCollatorForMagnet ----


def test_a_batch_by_hand():
    collate = make_collator(mask_ratio=1.0, mask_token_share=1.0, random_token_share=0.0, min_span_tokens=2)
    batch = collate(
        [
            {"input_ids": [BOS, 10, 11, 12], "row_id": 0, "epoch": 0},  # room for one span of two, in one way
            {"input_ids": [BOS, 20, EOS], "row_id": 1, "epoch": 0},  # no room
            {"input_ids": [BOS], "row_id": 2, "epoch": 0},
        ]
    )
    expected = {
        "input_ids": [[BOS, 10, 11, 12], [BOS, MASK, EOS, EOS], [BOS, EOS, EOS, EOS]],
        "attention_mask": [[1, 1, 1, 1], [1, 1, 1, 0], [1, 0, 0, 0]],
        "segment_ids": [[0, 1, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]],
        "position_ids": [[0, 1, 2, 3], [0, 1, 2, 0], [0, 0, 0, 0]],
        "mntp_labels": [[-100] * 4, [20, -100, -100, -100], [-100] * 4],
        "msg_labels": [[10, 11, -100, -100], [-100] * 4, [-100] * 4],
    }
    assert (batch.pop("num_labels"), batch.pop("row_ids"), batch.pop("epochs")) == (3, [0, 1, 2], [0, 0, 0])
    assert {name: tensor.tolist() for name, tensor in batch.items()} == expected
    assert all(tensor.dtype == torch.long for tensor in batch.values())


@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=6), seed=st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_a_batch_is_its_rows_corrupted_one_by_one(lengths, seed):
    collate, rows = make_collator(seed=seed, causal_ratio=0.2), make_rows(lengths)
    batch = collate(rows)
    found_rows = unpad(batch)
    assert all(tensor.shape == (len(rows), max(lengths)) for tensor in batch.values())
    for row, found in zip(rows, found_rows, strict=True):
        expected = corrupt_row(
            torch.tensor(row["input_ids"]),
            settings=collate.settings,
            mask_token_id=MASK,
            special_token_ids=torch.tensor([UNK, BOS, EOS]),
            replacement_ids=torch.arange(3, VOCAB_SIZE),
            generator=row_generator(seed, epoch=0, row_id=row["row_id"]),
        )
        found.pop("attention_mask")
        assert found == {name: tensor.tolist() for name, tensor in expected._asdict().items()}
    padding = batch["attention_mask"] == 0
    for name, value in [("input_ids", EOS), ("segment_ids", 0), ("mntp_labels", -100), ("msg_labels", -100)]:
        assert (batch[name][padding] == value).all()


def test_workers_and_the_global_seed_do_not_change_a_row():
    rows = make_rows([30, 12, 25, 40, 8, 33, 21])

    def collated(**loader):
        torch.seed()
        batches = DataLoader(rows, batch_size=2, collate_fn=make_collator(), **loader)
        return [row for batch in batches for row in unpad(batch)]

    assert collated(num_workers=0) == collated(num_workers=2, prefetch_factor=1)


def test_epoch_row_and_seed_change_the_corruption():
    collate, (row,) = make_collator(), make_rows([200])
    batches = [
        collate([row]),
        collate([row | {"epoch": 1}]),
        collate([row | {"row_id": 1}]),
        make_collator(seed=1)([row]),
    ]
    assert len({tuple(batch["mntp_labels"][0].tolist()) for batch in batches}) == 4


def test_rows_are_not_modified_and_may_be_tensors():
    collate, rows = make_collator(mask_ratio=1.0), make_rows([30, 12])
    tensors = [row | {"input_ids": torch.tensor(row["input_ids"], dtype=torch.int32)} for row in rows]
    assert unpad(collate(tensors)) == unpad(collate(rows))
    assert rows == make_rows([30, 12])
    assert [row["input_ids"].tolist() for row in tensors] == [row["input_ids"] for row in rows]


def test_random_replacements_are_the_whole_vocabulary_but_special_tokens():
    collate = make_collator(mask_ratio=1.0, mask_token_share=0.0, random_token_share=1.0, max_spans=0)
    batch = collate([{"input_ids": [BOS] + [5] * 4000, "row_id": 0, "epoch": 0}])
    assert batch["input_ids"][0, 1:].unique().tolist() == list(range(3, VOCAB_SIZE))


def test_row_without_tokens_raises():
    with pytest.raises(ValueError, match="7"):
        make_collator()([*make_rows([5]), {"input_ids": [], "row_id": 7, "epoch": 0}])


# ---- from_tokenizer ----


def from_tokenizer(tokenizer, *, vocab_size: int = VOCAB_SIZE) -> DataCollatorForMagnet:
    return DataCollatorForMagnet.from_tokenizer(
        tokenizer,
        model_config=LlamaConfig(vocab_size=vocab_size, magnet={"mask_token": "a", "mask_token_id": 5}),
        settings=CorruptionSettings(),
        seed=0,
    )


def test_the_vocabulary_is_what_tokenizer_and_model_share():
    tokenizer = make_tokenizer()
    assert from_tokenizer(tokenizer, vocab_size=1000).vocab_size == len(tokenizer) == 13
    assert from_tokenizer(tokenizer, vocab_size=11).vocab_size == 11


def test_special_tokens_include_those_without_a_role():
    tokenizer = make_tokenizer()
    tokenizer.add_tokens([AddedToken("<|reserved|>", special=True), "ordinary"])
    assert 13 not in tokenizer.all_special_ids
    assert from_tokenizer(tokenizer).special_token_ids == [UNK, BOS, EOS, 13]
    assert from_tokenizer(tokenizer).vocab_size == 15


def test_padding_is_the_pad_token_or_else_eos():
    assert from_tokenizer(make_tokenizer()).pad_token_id == EOS
    assert from_tokenizer(make_tokenizer(pad_token="<unk>")).pad_token_id == UNK


def test_a_pad_token_without_an_embedding_is_not_used():
    tokenizer = make_tokenizer(pad_token="<pad>")
    assert tokenizer.pad_token_id == 13
    assert from_tokenizer(tokenizer, vocab_size=13).pad_token_id == EOS


# ---- DataCollatorForPairs ----

PAIRS = [{"anchor": "a cat sat", "positive": "one cat"}, {"anchor": "a dog", "positive": "one dog ran and ran"}]


def test_pairs_by_hand():
    collate = DataCollatorForPairs(make_tokenizer(), prompt=None, max_length=6, pad_token_id=UNK)
    batch = collate(PAIRS)
    assert batch["input_ids"].tolist() == [  # all anchors, then all positives
        [BOS, 6, 7, 8, EOS, UNK],
        [BOS, 6, 11, EOS, UNK, UNK],
        [BOS, 10, 7, EOS, UNK, UNK],
        [BOS, 10, 11, 12, 9, EOS],  # the last word is cut off, EOS is not
    ]
    assert batch["attention_mask"].tolist() == [
        [1, 1, 1, 1, 1, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0, 0],
        [1, 1, 1, 1, 1, 1],
    ]


def test_the_prompt_is_put_before_both_sides():
    collate = DataCollatorForPairs(make_tokenizer(), prompt="find it", max_length=20, pad_token_id=UNK)
    batch = collate(PAIRS[:1])
    assert batch["input_ids"].tolist() == [[BOS, 3, 4, 5, 6, 7, 8, EOS], [BOS, 3, 4, 5, 10, 7, EOS, UNK]]
