"""Test special tokens, the mask token, batches and padding."""

import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from modeling_magnet import MagnetLlamaForCausalLM
from modeling_magnet.batching_magnet import plan_batches
from modeling_magnet.spans_magnet import continuation_ids, fill_ids, lay_out
from modeling_magnet.tokenization_magnet import (
    check_tokenizer_fits,
    pad_token_rows,
    read_texts,
    resolve_mask_token,
    special_ids,
    text_ids,
    tokenize_texts,
)
from tests.byte_tokenizer import byte_tokenizer
from tests.modeling_magnet.lifting import lifting
from tests.space_run_tokenizer import NAMED, RESERVED


def test_flagged_added_tokens_are_special(space_run_model):
    tokenizer = space_run_model.tokenizer
    assert special_ids(tokenizer) == set(tokenizer.convert_tokens_to_ids([*NAMED, *RESERVED]))
    assert len(tokenizer.all_special_ids) == len(NAMED), "transformers names only these"


def test_a_token_added_later_is_special(tiny_tokenizer):
    tokenizer = copy.deepcopy(tiny_tokenizer)
    before = special_ids(tokenizer)
    tokenizer.add_tokens(["<later>"], special_tokens=True)
    tokenizer.add_tokens(["plainly"])
    assert special_ids(tokenizer) == before | {tokenizer.convert_tokens_to_ids("<later>")}
    assert special_ids(tiny_tokenizer) == before


@pytest.mark.parametrize("options", [{}, {"do_sample": True}, {"num_return_sequences": 4}, {"heal": "token"}])
def test_a_processor_cannot_lift_a_special_token_into_a_fill(space_run_model, options):
    special = sorted(special_ids(space_run_model.tokenizer))
    output = space_run_model.infill(
        "She ate", " for lunch.", max_new_tokens=3, logits_processor=lifting(special),
        return_dict_in_generate=True, **options
    )  # fmt: skip
    for fill in output.fills[0][0]:
        assert not {*fill.token_ids} & {*special}


def test_ids_without_a_token_are_never_generated(space_run_model):
    size = len(space_run_model.tokenizer)
    space_run_model.resize_token_embeddings(size + 8)

    def lift(module, inputs, output):
        return torch.cat([output[..., :size], output[..., size:] + 100.0], dim=-1)

    space_run_model.lm_head.register_forward_hook(lift)
    output = space_run_model.infill("She ate", " lunch.", max_new_tokens=4, return_dict_in_generate=True)
    assert max(output.fills[0][0][0].token_ids) < size


@settings(max_examples=200, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 60), max_size=40),
    max_tokens=st.integers(1, 200),
    max_rows=st.none() | st.integers(1, 5),
)
def test_batches_hold_every_row_once_within_the_budget(lengths, max_tokens, max_rows):
    batches = plan_batches(lengths, max_tokens=max_tokens, max_rows=max_rows)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        own = [lengths[index] for index in batch]
        assert own == sorted(own, reverse=True)
        assert max(own) * len(own) <= max_tokens or len(own) == 1
        assert max_rows is None or len(own) <= max_rows
    for batch in batches[:-1]:
        fuller = lengths[batch[0]] * (len(batch) + 1)
        assert fuller > max_tokens or len(batch) == max_rows, "no batch ends before it is full"


@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_padding_is_on_the_requested_side(padding_side):
    batch = pad_token_rows([[5, 6, 7], [8]], pad_token_id=0, padding_side=padding_side)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [0, 0, 8] if padding_side == "left" else [8, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [0, 0, 1] if padding_side == "left" else [1, 0, 0]]


TYPED = ["a </s> b", "<s>", "<unk>, he said", "</s></s>", "x<unk>y\n<s>"]


def ids_of_characters(tokenizer, text):
    """Tokenize with the same vocabulary and merges, but without any control tokens."""
    bare = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    bare.encode_special_tokens = True
    return bare.encode(text, add_special_tokens=False).ids


@pytest.fixture(params=["tiny", "wiki-7m", "stories260K", "added later"])
def tokenizer(request):
    """Return tokenizers with byte-level and SentencePiece vocabularies, and control tokens before or after them."""
    if request.param == "tiny":
        return byte_tokenizer()
    if request.param == "added later":
        added = byte_tokenizer()
        added.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<start_of_turn>"]})
        return added
    return AutoTokenizer.from_pretrained(request.getfixturevalue(request.param.replace("-", "_").lower()))


def test_control_tokens_in_a_text_are_read_as_characters(tokenizer):
    special = set(tokenizer.all_special_ids)
    plain = ["The cat sat.", "1 < 2 > 0"]
    rows, _ = read_texts(tokenizer, [*TYPED, *plain, "<|im_start|>user <start_of_turn>"])
    for text, row in zip([*TYPED, *plain, "<|im_start|>user <start_of_turn>"], rows, strict=True):
        assert not special & set(row), text
        assert row == ids_of_characters(tokenizer, text)
        assert tokenizer.decode(row).strip() == text, "nothing was lost"
    assert rows[len(TYPED) : -1] == tokenizer(plain, add_special_tokens=False)["input_ids"]
    as_before, _ = read_texts(tokenizer, TYPED, split_special_tokens=False)
    assert as_before == tokenizer(TYPED, add_special_tokens=False)["input_ids"]
    assert tokenizer.eos_token_id in as_before[0]


def test_offsets_of_control_tokens_match_their_characters(tokenizer):
    rows, offsets = read_texts(tokenizer, [*TYPED, "The cat"], return_offsets=True)
    for text, row, places in zip([*TYPED, "The cat"], rows, offsets, strict=True):
        assert len(row) == len(places)
        covered = {character for start, end in places for character in range(start, end)}
        assert {n for n, character in enumerate(text) if not character.isspace()} <= covered


def test_bos_and_eos_that_we_add_are_control_tokens(tokenizer):
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    rows = tokenize_texts(tokenizer, TYPED, prompt="Find <s>", max_length=256).input_ids
    for text, row in zip(TYPED, rows, strict=True):
        assert row == [bos, *ids_of_characters(tokenizer, f"Find <s>: {text}"), eos]


def test_a_context_and_a_fill_are_text_too(tokenizer):
    special = set(tokenizer.all_special_ids)
    ids = continuation_ids(tokenizer, " and </s> then")
    assert not special & set(ids) and tokenizer.decode(ids).strip() == "and </s> then"
    assert fill_ids(tokenizer, "<unk>", prefix="") == ids_of_characters(tokenizer, "<unk>")
    parts = lay_out(tokenizer, ["<s>He", "</s>."], span_lengths=[2], context_length=256).parts
    assert parts[0][0] == tokenizer.bos_token_id
    assert not special & {*parts[0][1:], *parts[1]}
    read = lay_out(tokenizer, ["<s>He", "</s>."], span_lengths=[2], context_length=256, split_special_tokens=False)
    assert read.parts[0][1] == tokenizer.bos_token_id and read.parts[1][0] == tokenizer.eos_token_id


def test_an_unknown_character_is_still_unknown():
    characters = {"<unk>": 0, **{character: n for n, character in enumerate("<unk>abc ", start=1)}}
    backend = Tokenizer(models.WordLevel(characters, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")
    assert text_ids(tokenizer, "a日") == [characters["a"], 0]
    assert text_ids(tokenizer, "日<unk>") == [0, *(characters[character] for character in "<unk>")]


def test_a_token_that_becomes_special_later_is_split_from_then_on():
    tokenizer = byte_tokenizer()
    before = text_ids(tokenizer, "a <turn> b </s>")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<turn>"]})
    assert len(tokenizer("<turn>", add_special_tokens=False)["input_ids"]) == 1
    assert text_ids(tokenizer, "a <turn> b </s>") == before
    tokenizer.add_tokens(["<later>"], special_tokens=True)
    assert text_ids(tokenizer, "a <turn> b </s>") == before
    assert len(tokenizer("<later>", add_special_tokens=False)["input_ids"]) == 1
    assert tokenizer.decode(text_ids(tokenizer, "<later>")) == "<later>" and len(text_ids(tokenizer, "<later>")) > 1


def test_threads_may_read_one_tokenizer_both_ways():
    tokenizer = byte_tokenizer()
    texts = ["the cat </s> sat on <s> the mat "] * 40
    expected = {
        split: read_texts(copy.deepcopy(tokenizer), texts, split_special_tokens=split)[0] for split in (True, False)
    }
    assert expected[True] != expected[False]

    def read(split):
        return all(read_texts(tokenizer, texts, split_special_tokens=split)[0] == expected[split] for _ in range(15))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(read, [True, False] * 4))
    assert not tokenizer.backend_tokenizer.encode_special_tokens, "its own switch, which all threads share"


def test_empty_inputs_have_no_tokens(tokenizer):
    assert read_texts(tokenizer, []) == ([], [])
    assert text_ids(tokenizer, "") == []


def test_loading_a_plain_llama_finds_its_mask_token(wiki_7m, stories260k, babyllama):
    for directory, token in ((wiki_7m, "_"), (stories260k, "<0x5F>")):
        model = MagnetLlamaForCausalLM.from_pretrained(directory)
        assert model.magnet_settings.mask_token == token
        assert model.magnet_settings.mask_token_id == model.tokenizer.convert_tokens_to_ids(token)
        assert model.config.magnet == model.magnet_settings.to_dict()
    with pytest.raises(ValueError, match=r"No mask token.*105.*rare.*`mask_token`"):
        MagnetLlamaForCausalLM.from_pretrained(babyllama)
    assert MagnetLlamaForCausalLM.from_pretrained(babyllama, mask_token="~").magnet_settings.mask_token == "~"


def test_the_tokenizers_own_mask_token_comes_first(tiny_tokenizer):
    tokenizer = type(tiny_tokenizer)(tokenizer_object=tiny_tokenizer._tokenizer, mask_token="~", unk_token="<unk>")
    assert resolve_mask_token(tokenizer) == ("~", tokenizer.convert_tokens_to_ids("~"))
    assert resolve_mask_token(tokenizer, "_")[0] == "_"


@pytest.mark.parametrize("token", ["<unk>", "no such token"])
def test_a_mask_token_outside_the_vocabulary_raises(tiny_tokenizer, token):
    with pytest.raises(ValueError, match=rf"none of \['{token}'\] is a single token"):
        resolve_mask_token(tiny_tokenizer, token)


def test_a_tokenizer_with_more_tokens_than_embeddings_raises(tiny_model, tiny_tokenizer):
    check_tokenizer_fits(tiny_tokenizer, 300)
    with pytest.raises(ValueError, match=r"300 tokens.*299.*resize_token_embeddings"):
        check_tokenizer_fits(tiny_tokenizer, 299)
    larger = type(tiny_tokenizer)(tokenizer_object=tiny_tokenizer._tokenizer)
    larger.add_tokens(["<new>"])
    with pytest.raises(ValueError, match="has 301 tokens"):
        tiny_model.tokenizer = larger
