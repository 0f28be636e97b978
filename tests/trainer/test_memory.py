"""A contrastive step keeps one graph at a time; its two backward passes equal a single one."""

import pytest
import torch

from trainer import MagnetTrainer
from trainer.lora import LoraArguments, apply_lora

from ..peak_bytes import PeakBytes
from .processes import KeepGradients
from .test_magnet_trainer import assert_same_gradients
from .tiny import tiny_args, tiny_model, tiny_pairs, tiny_rows, tiny_tokenizer, tiny_trainer

PHASES = ["1:1,0,1", "2:0.5,9,2"]


class OneBackward(MagnetTrainer):
    """Change the loss, as a user's subclass does."""

    factor = 1.0

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        loss, parts = super().compute_loss(model, inputs, True, num_items_in_batch)
        return (self.factor * loss, parts) if return_outputs else self.factor * loss


def trained(args, *, trainer_class=MagnetTrainer, lora=False, factor=1.0):
    """Return the gradients of each step, the weights and the logs of a run."""
    keep = KeepGradients()
    torch.manual_seed(1)
    model = apply_lora(tiny_model(), LoraArguments(lora_r=2 if lora else 0, lora_dropout=0.1))
    trainer = trainer_class(
        model=model,
        args=args,
        train_dataset=tiny_rows(),
        pair_dataset=tiny_pairs(),
        processing_class=tiny_tokenizer(),
        callbacks=[keep],
    )
    trainer.factor = factor
    trainer.train()
    logs = [log for log in trainer.state.log_history if "loss" in log]
    return keep.steps, {name: weight.clone() for name, weight in model.named_parameters()}, logs


# ---- Two backward passes ----


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"gradient_accumulation_steps": 4},  # the second window of an epoch has two micro-batches
        {"contrastive_mini_batch_tokens": 24, "contrastive_recompute": True},
        {"activation_checkpointing": True},
        pytest.param({"torch_compile": True, "torch_compile_backend": "eager"}, marks=pytest.mark.long),
        {"losses_as_printed": True, "contrastive_head": "none"},
    ],
    ids=["plain", "accumulated", "recomputed", "checkpointed", "compiled", "equations"],
)
def test_two_backward_passes_give_the_gradients_of_one(tmp_path, changes, lora):
    args = {"loss_phases": PHASES, "max_grad_norm": 0, "optim": "sgd", **changes}
    two, _, logs = trained(tiny_args(tmp_path, **args), lora=lora)
    one, _, expected_logs = trained(tiny_args(tmp_path, **args), lora=lora, trainer_class=OneBackward)
    assert_same_gradients(two, one)
    for log, expected in zip(logs, expected_logs, strict=True):
        assert {name for name in log if name.startswith("loss")} == {n for n in expected if n.startswith("loss")}
        for name in ("loss", "loss_mntp", "loss_msg"):
            assert log[name] == pytest.approx(expected[name], rel=1e-5)


def test_subclass_changes_the_whole_loss_once(tmp_path):
    args = {"loss_phases": ["1:1,9,1"], "max_grad_norm": 0}
    (expected,), _, _ = trained(tiny_args(tmp_path, **args))
    (halved,), _, _ = trained(tiny_args(tmp_path, **args), trainer_class=OneBackward, factor=0.5)
    assert_same_gradients([{name: 2 * grad for name, grad in halved.items()}], [expected])


def test_token_losses_are_back_propagated_before_the_contrastive_forward(tmp_path):
    events = []
    trainer = tiny_trainer(tiny_args(tmp_path, loss_phases=["1:1,9,1"]))
    trainer.model.register_forward_pre_hook(lambda _, args, kwargs: events.append(kwargs["mode"]), with_kwargs=True)
    trainer.model.model.embed_tokens.weight.register_hook(lambda _: events.append("backward"))
    trainer.train()
    assert events == ["infill", "backward", "bidirectional", "backward"]


def test_the_loss_of_a_call_has_all_parts_in_its_graph(tmp_path):
    trainer = tiny_trainer(tiny_args(tmp_path, loss_phases=["1:1,9,1"]))
    batch = {**next(iter(trainer.get_train_dataloader())), "pairs": trainer._pair_stream.fetch(0)}
    loss, parts = trainer.compute_loss(trainer.model, batch, return_outputs=True)
    assert set(parts) == {"mntp", "msg", "sscl"}
    torch.testing.assert_close(loss, parts["mntp"] + parts["msg"] + 9 * parts["sscl"])
    loss.backward()
    whole = {name: p.grad.clone() for name, p in trainer.model.named_parameters()}
    trainer.model.zero_grad()
    stepped = trainer.training_step(trainer.model, batch)
    torch.testing.assert_close(stepped, loss.detach())
    assert_same_gradients([{name: p.grad for name, p in trainer.model.named_parameters()}], [whole])


def test_contrastive_step_needs_the_memory_of_its_larger_part(tmp_path):
    """Count all tensors except weights; both graphs together would need about twice as much."""
    peaks = {}
    for name, phase in (("tokens", "1:1,0,1"), ("pairs", "1:0,9,0"), ("both", "1:1,9,1")):
        model = tiny_model(hidden_size=32, intermediate_size=64, num_hidden_layers=4)
        args = tiny_args(tmp_path, loss_phases=[phase], per_device_train_batch_size=12, contrastive_batch_size=18)
        trainer = tiny_trainer(args, model=model, pair_dataset=tiny_pairs())
        batch = next(iter(trainer.get_train_dataloader()))
        if name != "tokens":
            batch["pairs"] = trainer._pair_stream.fetch(0)
        with PeakBytes() as counted:
            trainer.training_step(trainer.model, batch)
        peaks[name] = counted.most
    assert min(peaks["tokens"], peaks["pairs"]) > 0.4 * max(peaks["tokens"], peaks["pairs"])
    gradients = sum(p.numel() * 4 for p in trainer.model.parameters())
    assert peaks["both"] <= 1.15 * max(peaks["tokens"], peaks["pairs"]) + gradients
