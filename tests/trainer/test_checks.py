"""Invalid combinations of model, data and arguments raise before a run writes anything."""

import pytest
from datasets import Dataset, DatasetDict
from datasets import IterableDataset as Stream
from torch.utils.data import IterableDataset
from transformers import LlamaForCausalLM
from transformers.utils import logging

from .tiny import tiny_args, tiny_model, tiny_pairs, tiny_rows, tiny_trainer


class TorchStream(IterableDataset):
    """Represent a stream with a length."""

    def __len__(self):
        return 24

    def __iter__(self):
        return iter(tiny_rows())


def stream(rows):
    return Stream.from_generator(lambda: iter(rows))


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("train_dataset", TorchStream()),
        ("train_dataset", iter(tiny_rows())),
        ("eval_dataset['wiki']", {"wiki": stream(tiny_rows()), "other": tiny_rows()}),
        ("pair_dataset", stream(tiny_pairs())),
        ("eval_pair_dataset", stream(tiny_pairs())),
    ],
    ids=["torch", "iterator", "eval-dict", "pairs", "eval-pairs"],
)
def test_stream_raises_with_remedy(tmp_path, name, given):
    with pytest.raises(ValueError) as caught:
        tiny_trainer(tiny_args(tmp_path), **{name.partition("[")[0]: given})
    assert f"`{name}` is " in str(caught.value) and "Dataset.from_list(list(stream.take(" in str(caught.value)
    assert str(caught.value).count("\n- ") == 1


def test_dataset_dict_raises(tmp_path):
    splits = DatasetDict({"train": Dataset.from_list(tiny_rows()), "test": Dataset.from_list(tiny_rows())})
    for name in ("train_dataset", "pair_dataset"):
        with pytest.raises(ValueError, match=rf"`{name}` is datasets.DatasetDict.*\['test', 'train'\]"):
            tiny_trainer(tiny_args(tmp_path), **{name: splits})


@pytest.mark.parametrize("as_dataset", [False, True])
@pytest.mark.parametrize("name", ["train_dataset", "eval_dataset", "eval_dataset['wiki']"])
def test_rows_longer_than_the_model_positions_raise(tmp_path, name, as_dataset):
    rows = [*tiny_rows(), {"input_ids": [1] * 65}, *tiny_rows(4)]
    given = Dataset.from_list(rows) if as_dataset else rows
    with pytest.raises(ValueError) as caught:
        tiny_trainer(tiny_args(tmp_path), **{name.partition("[")[0]: {"wiki": given} if "[" in name else given})
    assert f"Row 24 of `{name}` has 65 tokens, but the model has 64 positions" in str(caught.value)
    tiny_trainer(tiny_args(tmp_path), train_dataset=[*tiny_rows(), {"input_ids": [1] * 64}])


def test_longest_row_is_found_in_a_large_data_set(tmp_path):
    lengths = [20] * 25_000 + [70] + [20] * 10
    rows = Dataset.from_dict({"input_ids": [[1] * length for length in lengths]})
    with pytest.raises(ValueError, match="Row 25000 of `train_dataset` has 70 tokens"):
        tiny_trainer(tiny_args(tmp_path), train_dataset=rows)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pair_dataset": None}, "weight sscl, but `pair_dataset` is missing"),
        ({"pair_dataset": tiny_pairs(3)}, "`pair_dataset` .*3 pairs.*4"),
        ({"pair_dataset": [{"a": "x", "positive": "y"}] * 8}, r"columns \['a', 'positive'\] but no anchor"),
        ({"train_dataset": []}, "`train_dataset` has no rows"),
        ({"train_dataset": [{"text": "x"}]}, r"has the columns \['text'\] but no input_ids"),
        ({"train_dataset": [{"input_ids": [1, 5, 6]}] * 9}, "rows of 4 tokens.* longest .* has 3"),
        ({"processing_class": None}, "`processing_class` is missing"),
        ({"eval_pair_dataset": []}, "`eval_pair_dataset` has no rows"),
        ({"model": LlamaForCausalLM(tiny_model().config)}, "segment_ids.*LlamaForCausalLM.*from_pretrained"),
        ({"model": tiny_model(magnet={})}, "no mask token"),
        ({"model": tiny_model(vocab_size=43)}, "44 tokens, but the model embeds 43"),
    ],
)
def test_invalid_data_raises_before_anything_is_written(tmp_path, changes, message):
    output_dir = tmp_path / "run"
    with pytest.raises(ValueError, match=message):
        tiny_trainer(tiny_args(output_dir), **changes)
    assert not output_dir.exists()


@pytest.mark.parametrize(("length", "message"), [(65, "but the model has 64 positions"), (5, "but prompt, BOS")])
def test_invalid_contrastive_max_length_raises(tmp_path, length, message):
    with pytest.raises(ValueError, match=f"`contrastive_max_length` is {length}, {message}"):
        tiny_trainer(tiny_args(tmp_path, contrastive_max_length=length))


def test_end_of_span_beyond_the_model_positions_raises(tmp_path):
    rows = [{"input_ids": [1, *range(4, 33)]}] * 8
    args = tiny_args(tmp_path / "run", loss_phases=["2:1,0,1"], end_of_span=32)
    with pytest.raises(ValueError, match="30 tokens.*2 spans.*92.*64"):
        tiny_trainer(args, train_dataset=rows)
    tiny_trainer(tiny_args(tmp_path / "run", loss_phases=["2:1,0,1"], end_of_span=16), train_dataset=rows)


def test_unused_pairs_warn(tmp_path, caplog):
    logging.enable_propagation()
    try:
        tiny_trainer(tiny_args(tmp_path, loss_phases=["2:1,0,1"]), pair_dataset=tiny_pairs())
    finally:
        logging.disable_propagation()
    assert "`pair_dataset` is not used" in caplog.text
