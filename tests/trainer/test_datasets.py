"""Loading and cutting texts: order, whitespace, and blocks with every token and without padding."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from trainer.datasets import load_texts, texts_to_blocks

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared"
BOS = 0


@pytest.fixture(scope="module")
def word_tokenizer() -> PreTrainedTokenizerFast:
    """Make a tokenizer in which `w7` is token 7 and 0 is BOS, with a context of 16."""
    words = Tokenizer(models.WordLevel({"<s>": BOS, **{f"w{i}": i for i in range(1, 100)}}, unk_token="<s>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    return PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>", model_max_length=16)


@pytest.fixture(scope="module")
def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Make a tokenizer of one token per byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    byte_level = Tokenizer(models.BPE({"<s>": BOS, **{char: i + 1 for i, char in enumerate(alphabet)}}, []))
    byte_level.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    byte_level.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=byte_level, bos_token="<s>")


def words(numbers: range | list[int]) -> str:
    return " ".join(f"w{number}" for number in numbers)


def blocks_of(texts: list[str], tokenizer: PreTrainedTokenizerBase, **arguments: int | bool) -> list[list[int]]:
    return texts_to_blocks(Dataset.from_dict({"text": texts}), tokenizer, **arguments)["input_ids"][:]  # type: ignore[arg-type]


def test_texts_are_stripped_and_empty_ones_dropped(tmp_path):
    rows = [" one\n", " \n", None, "two\nlines"]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"body": row}) + "\n" for row in rows))
    texts = load_texts(tmp_path / "a.jsonl", text_column="body")
    assert texts[:] == {"text": ["one", "two\nlines"]}


def test_limit_counts_usable_texts_and_may_exceed_them(tmp_path):
    (tmp_path / "a.txt").write_text("\n\na\n\nb\nc\n")
    assert load_texts(tmp_path / "a.txt", limit=2)["text"][:] == ["a", "b"]
    assert load_texts(tmp_path / "a.txt", limit=9)["text"][:] == ["a", "b", "c"]
    with pytest.raises(ValueError, match="`limit` is 0"):
        load_texts(tmp_path / "a.txt", limit=0)
    (tmp_path / "b.txt").write_text("\n  \n")
    with pytest.raises(ValueError, match="2 rows .*whitespace in column 'text'"):
        load_texts(tmp_path / "b.txt")


@pytest.mark.parametrize(
    ("num_tokens", "expected"),
    [
        (2, []),
        (3, [[BOS, 1, 2, 3]]),
        (4, [[BOS, 1, 2, 3, 4]]),
        (5, [[BOS, 1, 2, 3, 4], [BOS, 2, 3, 4, 5]]),
        (8, [[BOS, 1, 2, 3, 4], [BOS, 5, 6, 7, 8]]),
        (10, [[BOS, 1, 2, 3, 4], [BOS, 5, 6, 7, 8], [BOS, 7, 8, 9, 10]]),
    ],
)
def test_long_texts_are_cut_and_the_last_block_overlaps(word_tokenizer, num_tokens, expected):
    padding = [words(range(90, 94))]  # a text that always stays, so that there is a block
    blocks = blocks_of(padding + [words(range(1, num_tokens + 1))], word_tokenizer, max_length=5, min_length=3)
    assert blocks[1:] == expected


def test_concatenation_joins_texts_with_newlines(byte_tokenizer):
    blocks = blocks_of(["ab", "cd", "e"], byte_tokenizer, max_length=5, min_length=1, concatenate=True)
    assert [byte_tokenizer.decode(block[1:]) for block in blocks] == ["ab\nc", "d\ne\n"]
    assert [block[0] for block in blocks] == [BOS, BOS]


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 60), min_size=1, max_size=8),
    max_length=st.integers(2, 16),
    min_length=st.integers(1, 15),
)
def test_every_token_of_every_text_is_kept_in_order(word_tokenizer, lengths, max_length, min_length):
    min_length = min(min_length, max_length - 1)
    texts = [list(range(1, length + 1)) for length in [*lengths, 16]]
    blocks = blocks_of([words(text) for text in texts], word_tokenizer, max_length=max_length, min_length=min_length)
    expected = []
    for text in texts:
        if len(text) < min_length:
            continue
        position = 0
        while position < len(text):
            start = max(0, min(position, len(text) - (max_length - 1)))
            expected.append([BOS] + text[start : start + max_length - 1])
            position = start + max_length - 1
    assert blocks == expected


def test_parts_of_a_joined_stream_have_the_tokens_of_the_whole():
    if not SHARED.is_dir():
        pytest.skip("needs the shared data and models beside the repository")
    tokenizer = AutoTokenizer.from_pretrained(SHARED / "models" / "wiki-7m")
    texts = load_texts(SHARED / "data" / "wikitext2" / "wiki.valid.tokens.xz", limit=200)
    stream = "\n".join(texts["text"]) + "\n"
    whole = tokenizer(stream, add_special_tokens=False, split_special_tokens=True, verbose=False)["input_ids"]
    assert tokenizer.unk_token in stream and tokenizer.unk_token_id not in whole, "WikiText writes its rare words so"
    blocks = texts_to_blocks(texts, tokenizer, max_length=512, concatenate=True)["input_ids"][:]
    stream = [token for block in blocks[:-1] for token in block[1:]]
    stream += blocks[-1][1:][len(stream) - len(whole) :]
    assert len(whole) > 20_000 and stream == whole
    assert {len(block) for block in blocks} == {512}


def test_changed_arguments_do_not_use_cached_blocks(tmp_path, byte_tokenizer):
    (tmp_path / "a.txt").write_text("abcdefgh\nij\n")
    texts = load_texts(tmp_path / "a.txt")
    variants: list[dict[str, int | bool]] = [
        {"max_length": 5, "min_length": 1},
        {"max_length": 6, "min_length": 1},
        {"max_length": 5, "min_length": 3},
        {"max_length": 5, "min_length": 1, "concatenate": True},
    ]
    for _ in range(2):
        counts = [len(texts_to_blocks(texts, byte_tokenizer, **variant)) for variant in variants]  # type: ignore[arg-type]
        assert counts == [3, 3, 2, 3]
    (tmp_path / "a.txt").write_text("abcdefgh\nik\n")
    again = texts_to_blocks(load_texts(tmp_path / "a.txt"), byte_tokenizer, max_length=5, min_length=1)
    assert byte_tokenizer.decode(again[2]["input_ids"][1:]) == "ik"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_length": 17}, "`max_length` 17.* at most 16"),
        ({"max_length": 3}, "`min_length` is 3 and `max_length` 3"),
        ({"max_length": 9, "min_length": 0}, "`min_length` is 0"),
        ({"max_length": 9, "min_length": 8}, "1 texts .*`min_length`=8.*concatenate=True"),
    ],
)
def test_invalid_lengths_raise(word_tokenizer, arguments, message):
    with pytest.raises(ValueError, match=message):
        blocks_of([words(range(1, 5))], word_tokenizer, **{"min_length": 3, **arguments})


def test_tokenizer_without_bos_raises(byte_tokenizer):
    plain = PreTrainedTokenizerFast(tokenizer_object=byte_tokenizer.backend_tokenizer)
    with pytest.raises(ValueError, match="no BOS"):
        texts_to_blocks(["a"], plain, max_length=20)


def test_invalid_utf8_in_parquet_raises(tmp_path):
    offsets = pa.array([0, 1, 4], type=pa.int32()).buffers()[1]
    parts = [None, offsets, pa.py_buffer(b"xa\xff\xed")]
    pq.write_table(pa.table({"text": pa.Array.from_buffers(pa.string(), 2, parts)}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"a\.parquet' has a string that is not UTF-8 \("):
        load_texts(tmp_path / "a.parquet")
