"""Control tokens in a corpus are read as text wherever training reads texts."""

import copy

import pytest
from datasets import Dataset, IterableDataset
from transformers import AutoTokenizer

from tests.byte_tokenizer import byte_tokenizer
from trainer import dropout_pairs, texts_to_blocks
from trainer.data_collator import DataCollatorForPairs

from .tiny import tiny_args, tiny_pairs, tiny_trainer

TYPED = "a </s> b <unk> c <s> d <start_of_turn> e <eos>"


@pytest.fixture(params=["bytes", "wiki-7m"])
def tokenizer(request):
    """Make a Llama tokenizer with additional control tokens of Gemma."""
    made = (
        byte_tokenizer()
        if request.param == "bytes"
        else AutoTokenizer.from_pretrained(request.getfixturevalue("wiki_7m"))
    )
    made = copy.deepcopy(made)
    made.add_special_tokens({"additional_special_tokens": ["<start_of_turn>", "<eos>"]})
    return made


def control_tokens(tokenizer, ids):
    special = {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    return [tokenizer.convert_ids_to_tokens(index) for index in ids if index in special]


@pytest.mark.parametrize("concatenate", [False, True])
def test_blocks_have_no_control_tokens_except_bos(tokenizer, concatenate):
    arguments = {"max_length": 256, "min_length": 1, "concatenate": concatenate}
    (row,) = texts_to_blocks([TYPED], tokenizer, **arguments)["input_ids"]
    assert control_tokens(tokenizer, row) == [tokenizer.bos_token]
    assert tokenizer.decode(row[1:]).strip() == TYPED
    (old,) = texts_to_blocks([TYPED], tokenizer, split_special_tokens=False, **arguments)["input_ids"]
    assert control_tokens(tokenizer, old[1:]) == ["</s>", "<unk>", "<s>", "<start_of_turn>", "<eos>"]
    plain = tokenizer(TYPED, add_special_tokens=False)["input_ids"]
    assert old[1:] == plain or concatenate, "another call reads as the tokenizer always does"


def test_pairs_have_only_their_own_control_tokens(tokenizer):
    collate = DataCollatorForPairs(tokenizer=tokenizer, prompt="Say:", max_length=200, pad_token_id=0)
    pairs = [{"anchor": TYPED, "positive": "a b"}]
    (row, _) = collate(pairs)["input_ids"].tolist()
    row = row[: row.index(tokenizer.eos_token_id) + 1]
    assert control_tokens(tokenizer, row) == [tokenizer.bos_token, tokenizer.eos_token]
    assert tokenizer.decode(row[1:-1]).strip() == f"Say: {TYPED}"
    collate.split_special_tokens = False
    assert control_tokens(tokenizer, collate(pairs)["input_ids"][0].tolist()).count(tokenizer.eos_token) == 2


def test_trainer_passes_split_special_tokens_to_pairs(tmp_path):
    for split in (True, False):
        trainer = tiny_trainer(tiny_args(tmp_path, split_special_tokens=split), pair_dataset=tiny_pairs())
        assert trainer.pair_collator.split_special_tokens is split


# ---- What can be cut into blocks ----


def test_a_list_of_strings_gives_the_blocks_of_a_data_set():
    texts = ["the cat sat on the mat and slept", "a dog ran by the river in the sun"]
    expected = texts_to_blocks(Dataset.from_dict({"text": texts}), byte_tokenizer(), max_length=16, min_length=4)
    for given in (texts, tuple(texts), Dataset.from_dict({"body": texts})["body"]):
        blocks = texts_to_blocks(given, byte_tokenizer(), max_length=16, min_length=4)
        assert blocks["input_ids"] == expected["input_ids"]
    long = " ".join(["word"] * 30)
    assert dropout_pairs([long])[0] == {"anchor": long, "positive": long}


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (IterableDataset.from_generator(lambda: iter([{"text": "a"}])), r"`texts` is datasets.IterableD"),
        (iter(["a"]), "`texts` is builtins.list_iterator.*from_list"),
        ("one text", "`texts` is a string"),
        (["a", 3], r"`texts\[1\]` is int"),
        ([], "`texts` is empty"),
        ({"train": ["a"]}, r"`texts` is builtins.dict.*\['train'\]"),
        (None, "`texts` is builtins.NoneType, but"),
    ],
    ids=["stream", "iterator", "string", "number", "empty", "dict", "none"],
)
def test_invalid_texts_raise(texts, message):
    for read in (lambda: texts_to_blocks(texts, byte_tokenizer(), max_length=16), lambda: dropout_pairs(texts)):
        with pytest.raises(ValueError, match=message):
            read()
