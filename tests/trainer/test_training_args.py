"""Defaults of the training arguments, and invalid values, which raise in one error."""

import dataclasses
import json
import shlex

import pytest
import torch
from transformers import HfArgumentParser

from trainer.training_args import MagnetTrainingArguments


def make(tmp_path, **changes):
    return MagnetTrainingArguments(**{"output_dir": str(tmp_path), "use_cpu": True, "report_to": "none", **changes})


def test_the_defaults_are_the_papers(tmp_path):
    args = make(tmp_path)
    assert (args.learning_rate, args.per_device_train_batch_size, args.contrastive_batch_size) == (3e-5, 32, 64)
    assert (args.max_spans, args.min_span_tokens, args.max_span_tokens, args.causal_ratio) == (2, 4, 128, 0.0)


@pytest.mark.parametrize("is_there", [False, True])
def test_half_precision_works_on_a_cpu_without_other_options(tmp_path, monkeypatch, is_there):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: is_there)
    monkeypatch.setattr("transformers.training_args.is_torch_bf16_gpu_available", lambda: is_there)
    args = MagnetTrainingArguments(output_dir=str(tmp_path), bf16=True, report_to="none")
    assert args.use_cpu is not is_there


def test_the_phases_decide_how_many_steps_there_are(tmp_path):
    assert make(tmp_path, loss_phases=["30:1,0,1", "12:0,1,0"]).max_steps == 42
    assert make(tmp_path, loss_phases=["30:1,0,1"], max_steps=30).max_steps == 30
    assert make(tmp_path, loss_phases=["5:0,0,1"], max_spans=0, causal_ratio=1).max_steps == 5


@pytest.mark.parametrize("phases", [["3:1,0,1"], ["3: mntp=1 msg=1", " 2:1,9,1"]])
def test_arguments_survive_saving_and_loading_as_the_user_wrote_them(tmp_path, phases):
    args = make(tmp_path, loss_phases=phases, temperature=0.05, max_spans=1)
    torch.save(args, tmp_path / "training_args.bin")
    assert torch.load(tmp_path / "training_args.bin", weights_only=False).loss_phases == phases
    saved = json.loads(args.to_json_string())
    assert saved["loss_phases"] == phases
    fields = {field.name for field in dataclasses.fields(MagnetTrainingArguments) if field.init}
    again = MagnetTrainingArguments(**{name: value for name, value in saved.items() if name in fields})
    assert again.to_dict() == args.to_dict()


def test_a_command_line_sets_every_kind_of_field(tmp_path):
    line = (
        f"--output_dir {tmp_path} --use_cpu --report_to none --loss_phases 3:1,0,1 '2: mntp=1 sscl=9' "
        "--contrastive_head none --mask_ratio 0.3 --max_spans 1 --losses_as_printed --view_dropout 0.3"
    )
    (args,) = HfArgumentParser(MagnetTrainingArguments).parse_args_into_dataclasses(shlex.split(line))
    assert args.max_steps == 5
    assert (args.losses_as_printed, args.contrastive_head) == (True, "none")
    assert (args.corruption_settings.mask_ratio, args.corruption_settings.max_spans) == (0.3, 1)


def test_invalid_arguments_raise_in_one_error(tmp_path):
    with pytest.raises(ValueError) as caught:
        make(
            tmp_path,
            loss_phases=["30:0,0,0", "7"],
            mask_ratio=1.5,
            max_span_tokens=1,
            temperature=0.0,
            contrastive_head="linear",
            remove_unused_columns=True,
            view_dropout=0.3,
            activation_checkpointing=True,
        )
    message = str(caught.value)
    for expected in (
        "all weights are 0",
        "phase 2, '7'",
        "`mask_ratio` is 1.5",
        "`max_span_tokens` is 1",
        "`temperature` is 0.0",
        "`contrastive_head` is 'linear'; pass one of ('tanh', 'keep', 'none')",
        "`remove_unused_columns` is True",
        "`view_dropout` is 0.3 and activation checkpointing is on",
    ):
        assert expected in message


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_steps": 7}, "`max_steps` is 7, but"),
        ({"loss_phases": []}, "at least one"),
        ({"num_train_epochs": 1}, "`num_train_epochs` is 1, but `loss_phases` determine"),
        ({"loss_phases": ["5:1,0,0"], "mask_ratio": 0}, "weight mntp, but with `mask_ratio` 0"),
        ({"loss_phases": ["5:1,0,1"], "causal_ratio": 1}, "weight mntp"),
        ({"loss_phases": ["5:0,0,1"], "max_spans": 0}, "weight msg, but"),
        ({"contrastive_head": "keep", "loss_phases": ["5:1,0,1"]}, "never train it"),
        ({"contrastive_recompute": True}, "Pass `contrastive_mini_batch_tokens`"),
        ({"contrastive_mini_batch_tokens": 127}, "less than a text of `contrastive_max_length` 128"),
        ({"batch_eval_metrics": True}, "`batch_eval_metrics` is True"),
        ({"view_dropout": 1.0}, "`view_dropout` is 1.0"),
        ({"label_smoothing_factor": 0.1}, "`label_smoothing_factor` is 0.1"),
        ({"train_sampling_strategy": "sequential"}, "rows are shuffled by seed and epoch"),
        ({"ddp_find_unused_parameters": True}, "two forwards in one step"),
    ],
)
def test_invalid_arguments_raise(tmp_path, changes, message):
    with pytest.raises(ValueError, match="The training arguments cannot be used") as caught:
        make(tmp_path, **changes)
    assert message in str(caught.value)
