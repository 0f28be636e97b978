"""Which data sets a trainer takes, and what it hands to `compute_metrics`."""

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict
from datasets import IterableDataset as Stream
from torch.utils.data import IterableDataset

from examples.benchmarks.training_memory import PeakBytes

from .tiny import tiny_args, tiny_model, tiny_pairs, tiny_rows, tiny_trainer


class TorchStream(IterableDataset):
    """Has a length, as some streams do."""

    def __len__(self):
        return 24

    def __iter__(self):
        return iter(tiny_rows())


def stream(rows):
    return Stream.from_generator(lambda: iter(rows))


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("train_dataset", stream(tiny_rows())),
        ("train_dataset", TorchStream()),
        ("train_dataset", iter(tiny_rows())),
        ("eval_dataset", stream(tiny_rows())),
        ("eval_dataset['wiki']", {"wiki": stream(tiny_rows()), "other": tiny_rows()}),
        ("pair_dataset", stream(tiny_pairs())),
        ("eval_pair_dataset", stream(tiny_pairs())),
    ],
    ids=["train", "torch", "iterator", "eval", "eval-dict", "pairs", "eval-pairs"],
)
def test_a_stream_is_refused_with_what_to_do(tmp_path, name, given):
    with pytest.raises(ValueError) as caught:
        tiny_trainer(tiny_args(tmp_path), **{name.partition("[")[0]: given})
    assert f"`{name}` is a stream" in str(caught.value) and "Dataset.from_list(list(stream.take(" in str(caught.value)
    assert str(caught.value).count("\n- ") == 1


def test_a_stream_is_refused_by_evaluate_too(tmp_path):
    trainer = tiny_trainer(tiny_args(tmp_path))
    for given in (stream(tiny_rows()), TorchStream()):
        with pytest.raises(ValueError, match="`eval_dataset` is a stream"):
            trainer.evaluate(given)


def test_several_splits_are_no_rows(tmp_path):
    splits = DatasetDict({"train": Dataset.from_list(tiny_rows()), "test": Dataset.from_list(tiny_rows())})
    for name in ("train_dataset", "pair_dataset"):
        with pytest.raises(ValueError, match=rf"`{name}` is datasets.DatasetDict of \['test', 'train'\]; pass one"):
            tiny_trainer(tiny_args(tmp_path), **{name: splits})


@pytest.mark.parametrize("as_dataset", [False, True])
@pytest.mark.parametrize("name", ["train_dataset", "eval_dataset", "eval_dataset['wiki']"])
def test_rows_longer_than_the_positions_of_the_model_are_refused(tmp_path, name, as_dataset):
    rows = [*tiny_rows(), {"input_ids": [1] * 65}, *tiny_rows(4)]
    given = Dataset.from_list(rows) if as_dataset else rows
    with pytest.raises(ValueError) as caught:
        tiny_trainer(tiny_args(tmp_path), **{name.partition("[")[0]: {"wiki": given} if "[" in name else given})
    assert f"Row 24 of `{name}` has 65 tokens, and the model has positions for 64" in str(caught.value)
    tiny_trainer(tiny_args(tmp_path), train_dataset=[*tiny_rows(), {"input_ids": [1] * 64}])


def test_pairs_longer_than_the_positions_of_the_model_are_refused(tmp_path):
    with pytest.raises(ValueError, match="`contrastive_max_length` is 65, and the model has positions for 64"):
        tiny_trainer(tiny_args(tmp_path, contrastive_max_length=65))


def test_the_longest_row_may_be_anywhere_in_a_large_data_set(tmp_path):
    lengths = [20] * 25_000 + [70] + [20] * 10
    rows = Dataset.from_dict({"input_ids": [[1] * length for length in lengths]})
    with pytest.raises(ValueError, match="Row 25000 of `train_dataset` has 70 tokens"):
        tiny_trainer(tiny_args(tmp_path), train_dataset=rows)


# ---- compute_metrics ----


def explicit_predictions(trainer, rows):
    """The likeliest token at each label of the corrupted rows, one row and position at a time, from all logits."""
    expected = []
    for batch in trainer.get_eval_dataloader(rows):
        corrupted = batch["corrupted"]
        for row in range(len(corrupted["input_ids"])):
            length = int(corrupted["attention_mask"][row].sum())
            with torch.no_grad():
                logits = trainer.model(
                    corrupted["input_ids"][row : row + 1, :length],
                    segment_ids=corrupted["segment_ids"][row : row + 1, :length],
                    position_ids=corrupted["position_ids"][row : row + 1, :length],
                    mode="infill",
                ).logits[0]
            for position in range(length):
                for objective, name in enumerate(("mntp_labels", "msg_labels")):
                    label = int(corrupted[name][row, position])
                    if label != -100:
                        found = (len(expected), position, objective, int(logits[position].argmax()), label)
                        expected.append(found)
    return [entry[1:] for entry in expected]


@pytest.mark.parametrize("shift", ["next", "same"])
def test_compute_metrics_gets_the_likeliest_tokens_beside_the_right_ones(tmp_path, shift):
    got = {}

    def compute_metrics(evaluated):
        predictions, labels, _ = evaluated  # two where no inputs are asked for
        got.update(predictions=predictions, labels=labels, inputs=evaluated.inputs)
        is_label = labels != -100
        return {"accuracy": float((predictions == labels)[is_label].mean()), "rows": len(labels)}

    rows = tiny_rows(7, seed=3)
    trainer = tiny_trainer(
        tiny_args(tmp_path, mntp_shift=shift, include_for_metrics=["inputs"]),
        eval_dataset=rows,
        compute_metrics=compute_metrics,
    )
    trainer.model.eval()
    metrics = trainer.evaluate()
    predictions, labels = got["predictions"], got["labels"]
    assert isinstance(predictions, np.ndarray) and predictions.dtype.kind == "i"
    assert predictions.shape == labels.shape == (7, max(len(row["input_ids"]) for row in rows), 2)
    assert ((predictions == -100) == (labels == -100)).all()
    assert got["inputs"].shape == predictions.shape[:2]
    found = [
        (
            int(position),
            int(objective),
            int(predictions[row, position, objective]),
            int(labels[row, position, objective]),
        )
        for row, position, objective in np.argwhere(labels != -100)
    ]
    assert found == explicit_predictions(trainer, rows) and found
    assert metrics["eval_rows"] == 7
    first = labels[..., 0] != -100
    assert metrics["eval_masked_accuracy"] == pytest.approx((predictions == labels)[..., 0][first].mean())
    assert metrics["eval_accuracy"] == pytest.approx(np.mean([guess == label for _, _, guess, label in found]))


def test_metrics_of_a_user_are_logged_during_training_and_serve_to_choose_a_model(tmp_path):
    trainer = tiny_trainer(
        tiny_args(
            tmp_path,
            eval_strategy="steps",
            eval_steps=4,
            save_strategy="steps",
            save_steps=4,
            load_best_model_at_end=True,
            metric_for_best_model="mine",
        ),
        eval_dataset=tiny_rows(5),
        compute_metrics=lambda evaluated: {"mine": float(evaluated.predictions.max())},
    )
    trainer.train()
    assert [log["step"] for log in trainer.state.log_history if "eval_mine" in log] == [4, 8]
    assert all("eval_loss_mntp" in log for log in trainer.state.log_history if "eval_mine" in log)
    predicted = trainer.predict(tiny_rows(3))
    assert predicted.predictions.shape == predicted.label_ids.shape and predicted.predictions.shape[::2] == (3, 2)
    assert "test_mine" in predicted.metrics


def test_nothing_as_large_as_tokens_times_vocabulary_is_held_for_metrics(tmp_path):
    vocab_size, rows = 70_000, [{"input_ids": [1, *range(4, 44)]}] * 64
    args = tiny_args(tmp_path, loss_phases=["1:1,0,1"], per_device_eval_batch_size=64, mask_ratio=0.5)
    trainer = tiny_trainer(
        args, model=tiny_model(vocab_size=vocab_size), eval_dataset=rows, compute_metrics=lambda evaluated: {}
    )
    with PeakBytes() as counted:
        trainer.evaluate()
    assert counted.most < 0.4 * 64 * 41 * vocab_size * 4


def test_metrics_by_the_batch_are_refused(tmp_path):
    with pytest.raises(ValueError, match="`batch_eval_metrics` is True"):
        tiny_args(tmp_path, batch_eval_metrics=True)
