"""Losses, gradients, logs and saved models of training steps."""

import math

import pytest
import torch
import torch.nn.functional as F
from transformers import LlamaForCausalLM

from trainer.fused_adapters import casting_layers
from trainer.lora import LoraArguments, apply_lora
from trainer.objectives import contrastive_embeddings

from .processes import KeepGradients
from .tiny import tiny_args, tiny_model, tiny_pairs, tiny_rows, tiny_tokenizer, tiny_trainer


def gradients(args, **changes):
    """Train and return the gradients of each step and the logs."""
    keep = KeepGradients()
    trainer = tiny_trainer(args, callbacks=[keep], **changes)
    trainer.train()
    return keep.steps, [log for log in trainer.state.log_history if "loss" in log]


def assert_same_gradients(steps, expected_steps):
    assert len(steps) == len(expected_steps) > 0
    for step, expected in zip(steps, expected_steps, strict=True):
        assert step.keys() == expected.keys()
        for name in step:
            difference = (step[name] - expected[name]).abs().max().item()
            assert difference <= 1e-5 * max(1.0, expected[name].abs().max().item()), name


def joint_only(tmp_path, **changes):
    return tiny_args(tmp_path, **{"loss_phases": ["2:1,0,1"], "max_grad_norm": 0, **changes})


@pytest.mark.parametrize("normalization", [{}, {"losses_as_printed": True}])
def test_four_accumulated_batches_give_loss_and_gradients_of_one_four_times_as_large(tmp_path, normalization):
    rows = tiny_rows(32)
    one, one_log = gradients(joint_only(tmp_path, per_device_train_batch_size=16, **normalization), train_dataset=rows)
    args = joint_only(tmp_path, per_device_train_batch_size=4, gradient_accumulation_steps=4, **normalization)
    four, four_log = gradients(args, train_dataset=rows)
    assert_same_gradients(four, one)
    for log, expected in zip(four_log, one_log, strict=True):
        for name in ("loss", "loss_mntp", "loss_msg"):
            assert log[name] == pytest.approx(expected[name], rel=1e-5)
    batches = [trainer_batch for trainer_batch in tiny_trainer(args, train_dataset=rows).get_train_dataloader()]
    assert len({(batch["mntp_labels"] >= 0).sum().item() for batch in batches}) > 1
    assert len({(batch["msg_labels"] >= 0).sum().item() for batch in batches}) > 1


def test_a_short_window_at_the_end_of_an_epoch_is_exact_too(tmp_path):
    # Six batches in windows of four: the second window of an epoch has two.
    args = joint_only(tmp_path, loss_phases=["3:1,0,1"], gradient_accumulation_steps=4)
    _, logs = gradients(args)
    reference, _ = gradients(joint_only(tmp_path, loss_phases=["1:1,0,1"], per_device_train_batch_size=16))
    first, _ = gradients(args)
    assert_same_gradients(first[:1], reference)
    for log in logs:
        assert log["loss"] == pytest.approx(log["loss_mntp"] + log["loss_msg"], rel=1e-5)


def explicit_losses(model, batch, *, num_mntp, num_msg):
    logits = model(
        batch["input_ids"], attention_mask=batch["attention_mask"], mode="infill", segment_ids=batch["segment_ids"]
    ).logits
    sums = {"mntp": torch.zeros(()), "msg": torch.zeros(())}
    for row in range(logits.shape[0]):
        for position in range(logits.shape[1]):
            for name in sums:
                label = batch[f"{name}_labels"][row, position]
                if label >= 0:
                    sums[name] = sums[name] + F.cross_entropy(logits[row, position], label)
    return sums["mntp"] / num_mntp, sums["msg"] / num_msg


@pytest.mark.parametrize("shift", ["next", "same"])
@pytest.mark.parametrize("equations", [False, True])
def test_the_joint_loss_equals_an_explicit_loop_with_its_gradients(tmp_path, equations, shift):
    changes = {"losses_as_printed": True} if equations else {}
    changes["mntp_shift"] = shift
    trainer = tiny_trainer(tiny_args(tmp_path, loss_phases=["1:0.5,0,3"], **changes))
    batch = next(iter(trainer.get_train_dataloader()))
    selected, missing = batch["mntp_labels"] >= 0, batch["msg_labels"] >= 0
    num_mntp = batch["attention_mask"].sum() if equations else selected.sum()
    num_msg = missing.any(dim=1).sum() if equations else missing.sum()

    model = trainer.model.train()
    loss, parts = trainer.compute_loss(model, batch, return_outputs=True)
    loss.backward()
    actual = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    mntp, msg = explicit_losses(model, batch, num_mntp=num_mntp, num_msg=num_msg)
    (0.5 * mntp + 3 * msg).backward()
    torch.testing.assert_close(loss, 0.5 * mntp + 3 * msg)
    torch.testing.assert_close(parts["mntp"], mntp)
    torch.testing.assert_close(parts["msg"], msg)
    for name, p in model.named_parameters():
        torch.testing.assert_close(actual[name], p.grad, rtol=1e-4, atol=1e-6)


def test_the_contrastive_loss_equals_an_explicit_double_loop(tmp_path):
    trainer = tiny_trainer(
        tiny_args(tmp_path, loss_phases=["1:0,2,0"], losses_as_printed=True, contrastive_head="none")
    )
    pairs = trainer._pair_stream.fetch(0)
    rows = next(iter(trainer.get_train_dataloader()))
    loss = trainer.compute_loss(trainer.model, {**rows, "pairs": pairs})
    states = trainer.model(**pairs, mode="bidirectional").last_hidden_state
    last = pairs["attention_mask"].sum(dim=1) - 1
    vectors = states[torch.arange(8), last]
    total = torch.zeros(())
    for anchor in range(4):
        scores = [vectors[anchor] @ vectors[4 + other] / 0.1 for other in range(4)]
        total = total - scores[anchor] + torch.logsumexp(torch.stack(scores), 0)
    torch.testing.assert_close(loss, 2 * total / 4)


def test_the_contrastive_loss_is_a_mean_over_micro_batches_in_a_short_window_too(tmp_path):
    # Four pairs that are all alike have the loss log 4; the second window of an epoch has two batches and not four.
    args = tiny_args(tmp_path, loss_phases=["4:0,1,0"], gradient_accumulation_steps=4)
    _, logs = gradients(args, pair_dataset=[{"anchor": "w1 w2 w3", "positive": "w1 w2 w3"}] * 20)
    for name in ("loss", "loss_sscl"):
        assert [log[name] for log in logs] == pytest.approx([math.log(4)] * 4, rel=1e-5)


class Calls:
    """Count forwards by mode, collations of pairs, and positions the LM head sees."""

    def __init__(self, trainer):
        self.by_step, self.head_inputs, self.head_rows = [], [], []
        model = trainer.model
        model.register_forward_pre_hook(self._count, with_kwargs=True)
        model.lm_head.register_forward_pre_hook(lambda _, args: self.head_inputs.append(tuple(args[0].shape)))
        trainer.head.register_forward_pre_hook(self._count_head)
        self.trainer = trainer

    def _count(self, _, args, kwargs):
        self.by_step.append((self.trainer.state.global_step, kwargs["mode"]))

    def _count_head(self, _, args):
        self.head_rows.append(len(args[0]))


def test_the_contrastive_forward_does_not_run_while_its_weight_is_0(tmp_path):
    collated = []

    class Pairs(list):
        def __getitem__(self, index):
            collated.append(index)
            return super().__getitem__(index)

    trainer = tiny_trainer(
        tiny_args(tmp_path, loss_phases=["3:1,0,1", "2:1,9,1", "2:1,0,1"]), pair_dataset=Pairs(tiny_pairs())
    )
    collated.clear()  # the checks look at one pair
    calls = Calls(trainer)
    trainer.train()
    assert calls.by_step == [
        (0, "infill"),
        (1, "infill"),
        (2, "infill"),
        (3, "infill"),
        (3, "bidirectional"),
        (4, "infill"),
        (4, "bidirectional"),
        (5, "infill"),
        (6, "infill"),
    ]
    assert calls.head_rows == [1, 1, 1, 8, 8, 1, 1], "without pairs a row of zeros, for gradients of all weights"
    assert len(collated) == 8
    steps = [log["step"] for log in trainer.state.log_history if "loss_sscl" in log]
    assert steps == [4, 5]


def test_without_contrastive_phase_no_head_or_pairs(tmp_path):
    trainer = tiny_trainer(tiny_args(tmp_path, loss_phases=["2:1,0,1"]), pair_dataset=tiny_pairs())
    trainer.train()
    assert not [name for name, _ in trainer.model.named_parameters() if "sscl_head" in name]


def test_the_lm_head_is_applied_to_labeled_positions_only(tmp_path):
    trainer = tiny_trainer(tiny_args(tmp_path, loss_phases=["1:1,9,1"]))
    batch = next(iter(trainer.get_train_dataloader()))
    calls = Calls(trainer)
    trainer.compute_loss(trainer.model, {**batch, "pairs": trainer._pair_stream.fetch(0)})
    # Padded to a multiple of 16, so that products have few shapes.
    assert 0 < batch["num_labels"] <= 32 < batch["input_ids"].numel()
    assert calls.head_inputs == [(32, 16), (8, 0, 16)]  # of the eight texts of the pairs no position


def test_phase_with_only_pairs_runs_no_infill_forward(tmp_path):
    trainer = tiny_trainer(tiny_args(tmp_path, loss_phases=["2:0,1,0"]))
    calls = Calls(trainer)
    trainer.train()
    assert {mode for _, mode in calls.by_step} == {"bidirectional"}


def test_every_parameter_gets_a_gradient_in_every_step(tmp_path):
    steps, _ = gradients(tiny_args(tmp_path, loss_phases=["1:1,0,1", "1:1,9,1", "1:0,1,0"]))
    names = {name for name, _ in tiny_model().named_parameters()} | {
        "sscl_head.linear.weight",
        "sscl_head.linear.bias",
    }
    assert [set(step) for step in steps] == [names] * 3
    assert steps[0]["sscl_head.linear.weight"].abs().max() == 0
    assert steps[1]["sscl_head.linear.weight"].abs().max() > 0
    assert steps[2]["lm_head.weight"].abs().max() == 0


@pytest.mark.parametrize(("lora", "reentrant"), [(False, False), (True, False), (True, True)])
def test_checkpointed_activations_give_the_same_gradients(tmp_path, lora, reentrant):
    found = []
    for changes in (
        {},
        {"activation_checkpointing": True, "activation_checkpointing_kwargs": {"use_reentrant": reentrant}},
    ):
        torch.manual_seed(1)
        model = apply_lora(tiny_model(), LoraArguments(lora_r=2 if lora else 0))
        args = tiny_args(tmp_path, loss_phases=["1:1,0,1", "2:1,9,1"], max_grad_norm=0, **changes)
        found.append(gradients(args, model=model)[0])
    assert_same_gradients(*found)


def test_head_is_trained_with_adapters_and_initialized_from_the_seed(tmp_path):
    torch.manual_seed(1)
    model = apply_lora(tiny_model(), LoraArguments(lora_r=2))
    state = torch.get_rng_state()
    trainer = tiny_trainer(tiny_args(tmp_path), model=model)
    other = tiny_trainer(tiny_args(tmp_path))
    assert torch.equal(trainer.head.linear.weight, other.head.linear.weight)
    torch.set_rng_state(state)
    before = trainer.head.linear.weight.detach().clone()
    trainer.train()
    trained = {name for name, p in model.named_parameters() if p.requires_grad and "lora" not in name}
    assert trained == {"base_model.model.sscl_head.linear.weight", "base_model.model.sscl_head.linear.bias"}
    assert not torch.equal(trainer.head.linear.weight, before)


def test_view_dropout_acts_only_in_the_contrastive_forward(tmp_path):
    seen = []
    trainer = tiny_trainer(tiny_args(tmp_path, loss_phases=["2:1,1,1"], view_dropout=0.5))
    attention = trainer.model.model.layers[0].self_attn
    trainer.model.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append((kwargs["mode"], attention.attention_dropout)), with_kwargs=True
    )
    trainer.train()
    assert seen == [("infill", 0.0), ("bidirectional", 0.5)] * 2
    pairs = trainer.pair_collator([{"anchor": "w1 w2 w3 w4", "positive": "w1 w2 w3 w4"}] * 2)
    trainer.model.train()
    anchors, positives = contrastive_embeddings(trainer.model, pairs, head=trainer.head, dropout=0.5)
    assert (anchors - positives).abs().max() > 1e-3
    anchors, positives = contrastive_embeddings(trainer.model, pairs, head=trainer.head)
    torch.testing.assert_close(anchors, positives)


@pytest.mark.parametrize(("lora", "dtype"), [(False, torch.float32), (True, torch.float32), (False, torch.bfloat16)])
def test_bfloat16_trains_and_evaluates(tmp_path, lora, dtype):
    model = apply_lora(tiny_model().to(dtype), LoraArguments(lora_r=2 if lora else 0))
    args = tiny_args(tmp_path, bf16=dtype == torch.float32, eval_strategy="steps", eval_steps=4)
    trainer = tiny_trainer(args, model=model, eval_dataset=tiny_rows(5), eval_pair_dataset=tiny_pairs(8))
    trainer.train()
    assert all(math.isfinite(log["loss"]) for log in trainer.state.log_history if "loss" in log)
    assert trainer.head.linear.weight.dtype == torch.float32


def test_adapters_in_half_precision_keep_no_copies_of_their_inputs(tmp_path):
    found = []
    for converts in (False, True):
        torch.manual_seed(0)
        model = apply_lora(tiny_model().bfloat16(), LoraArguments(lora_r=2))
        trainer = tiny_trainer(tiny_args(tmp_path, bf16=True, loss_phases=["1:1,9,1"]), model=model)
        if converts:
            trainer._autocast_layers = []
        keep, kept = KeepGradients(), {}
        trainer.add_callback(keep)

        def pack(tensor, kept=kept):
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            trainer.train()
        found.append((keep.steps[0], sum(kept.values())))
        assert all(layer.cast_input_dtype_enabled for layer in casting_layers(model))
    (gradients, held), (expected, more) = found
    assert gradients.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(gradients[name], value, rtol=0.02, atol=0.01 * float(value.abs().max()))
    assert held < 0.9 * more, f"{held} bytes of {more}"


def test_the_losses_are_logged_as_means_over_the_steps_they_ran_in(tmp_path):
    single = tiny_trainer(tiny_args(tmp_path, loss_phases=["3:1,0,1", "3:1,9,1"]))
    single.train()
    several = tiny_trainer(tiny_args(tmp_path, loss_phases=["3:1,0,1", "3:1,9,1"], logging_steps=2))
    several.train()
    one = [log for log in single.state.log_history if "loss" in log]
    two = [log for log in several.state.log_history if "loss" in log]
    for first, second, both in zip(one[::2], one[1::2], two, strict=True):
        for name in ("loss", "loss_mntp", "loss_msg"):
            assert both[name] == pytest.approx((first[name] + second[name]) / 2, rel=1e-5)
    assert "loss_sscl" not in two[0]
    assert two[1]["loss_sscl"] == pytest.approx(one[3]["loss_sscl"], rel=1e-5)  # step 3 had none


def test_training_learns_repeated_rows(tmp_path):
    rows = [{"input_ids": [1, *[4 + n % 3 + k % 8 for k in range(15)]]} for n in range(24)]
    args = tiny_args(tmp_path, loss_phases=["60:1,0,1"], learning_rate=2e-2)
    trainer = tiny_trainer(args, train_dataset=rows, eval_dataset=rows[:8])
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    assert after["eval_infilling_perplexity"] < before["eval_infilling_perplexity"] / 5
    assert after["eval_masked_accuracy"] > 0.5


def test_end_of_span_is_a_setting_of_the_last_run_that_trains_spans(tmp_path):
    model = tiny_model()
    for end_of_span in (8, 0):
        tiny_trainer(tiny_args(tmp_path, loss_phases=["1:0,0,1"], end_of_span=end_of_span), model=model)
        assert model.magnet_settings.end_of_span == end_of_span


def test_a_saved_model_has_the_card_of_its_run(tmp_path):
    """The card of the base is not saved, but a card set by hand is."""
    first = tiny_model()
    first.tokenizer = tiny_tokenizer()
    first.card = "---\nlicense: mit\n---\n\n# First\n"
    first.save_pretrained(tmp_path / "first")
    model = type(first).from_pretrained(tmp_path / "first")
    trainer = tiny_trainer(tiny_args(tmp_path / "second", loss_phases=["1:1,0,1"], seed=7), model=model)
    trainer.train()
    trainer.save_model()
    text = (tmp_path / "second" / "README.md").read_text()
    assert "# second\n" in text and "license: mit" in text and "| loss_phases | 1:1,0,1 |" in text
    assert "| seed | 7 |" in text and "# First" not in text
    assert model.card == first.card, "the model itself is as it was"
    model.card = "# By hand\n"
    trainer.save_model()
    assert (tmp_path / "second" / "README.md").read_text() == "# By hand\n" == model.card


def test_card_of_a_new_model_has_no_base(tmp_path, monkeypatch):
    """The empty name of the model is not read as the current directory, which has an unrelated card."""
    (tmp_path / "README.md").write_text("---\nlicense: mit\nlanguage: en\n---\n\n# Another\n")
    monkeypatch.chdir(tmp_path)
    trainer = tiny_trainer(tiny_args(tmp_path / "run", loss_phases=["1:1,0,1"]))
    trainer.save_model()
    for text in ((tmp_path / "run" / "README.md").read_text(), trainer.card_text("run")):
        assert "license" not in text and "language:" not in text


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("kept", [False, True])
def test_a_kept_head_is_saved_with_the_model_and_a_dropped_one_is_not(tmp_path, kept, lora):
    torch.manual_seed(1)
    model = apply_lora(tiny_model(), LoraArguments(lora_r=2 if lora else 0))
    trainer = tiny_trainer(tiny_args(tmp_path / "run", contrastive_head="keep" if kept else "tanh"), model=model)
    trainer.train()
    final = model.merge_and_unload() if lora else model
    final.tokenizer = tiny_tokenizer()
    final.save_pretrained(tmp_path / "model")
    again = type(final).from_pretrained(tmp_path / "model")
    assert again.config.use_cache
    assert again.magnet_settings.contrastive_head == ("tanh" if kept else None)
    assert [name for name, _ in again.named_children() if name == "sscl_head"] == (["sscl_head"] if kept else [])
    for name, weight in again.state_dict().items():
        assert torch.equal(weight, final.state_dict()[name]), name
    torch.testing.assert_close(again.encode(["w1 w2 w3"]), final.eval().encode(["w1 w2 w3"]))
    stock, info = LlamaForCausalLM.from_pretrained(tmp_path / "model", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]


def test_kept_head_is_trained_further_or_frozen(tmp_path):
    model = tiny_model(magnet={"mask_token": "_", "mask_token_id": 3, "contrastive_head": "tanh"})
    before = model.sscl_head.linear.weight.detach().clone()
    resting = tiny_trainer(tiny_args(tmp_path, loss_phases=["2:1,0,1"]), model=model)
    resting.train()
    assert torch.equal(model.sscl_head.linear.weight, before)
    assert model.config.magnet["contrastive_head"] == "tanh"
    going_on = tiny_trainer(tiny_args(tmp_path, contrastive_head="keep"), model=model)
    assert going_on.head is model.sscl_head
    going_on.train()
    assert not torch.equal(model.sscl_head.linear.weight, before)
    with pytest.raises(ValueError, match="'tanh'.*`contrastive_head` is 'none'"):
        tiny_trainer(tiny_args(tmp_path, contrastive_head="none"), model=model)
