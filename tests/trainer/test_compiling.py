"""Compiled layers train like plain layers, and run only in training steps."""

from types import SimpleNamespace

import pytest
import torch
from accelerate.utils import DynamoBackend, TorchDynamoPlugin
from torch._dynamo.utils import counters

from modeling_magnet.families_magnet import FAMILIES
from tests.modeling_magnet.test_families_magnet import make_config
from trainer.distributed import compile_layers, compiled, take_over_compilation
from trainer.lora import LoraArguments, apply_lora

from .processes import FULL, run_alone, run_together
from .test_distributed import CONTRASTIVE, FSDP2, assert_same_training
from .tiny import tiny_args, tiny_model, tiny_rows, tiny_trainer

# Both phases, views in mini-batches of two widths, layers that are recomputed.
CHANGES = {
    **CONTRASTIVE,
    "temperature": 0.5,
    "contrastive_mini_batch_tokens": 24,
    "contrastive_recompute": True,
    "contrastive_batch_size": 4,
}
LORA = LoraArguments(lora_r=2, lora_alpha=2)


@pytest.fixture(autouse=True)
def _forget_compiled():
    torch.compiler.reset()
    counters.clear()
    yield
    torch.compiler.reset()


@pytest.mark.parametrize(
    ("lora", "checkpointed"),
    [
        pytest.param(FULL, True, id="full-recomputed", marks=pytest.mark.nightly),
        pytest.param(LORA, True, id="recomputed", marks=pytest.mark.long),
        pytest.param(LORA, False, id="lora", marks=pytest.mark.nightly),
    ],
)
def test_a_compiled_run_has_the_gradients_losses_and_weights_of_a_plain_one(tmp_path, lora, checkpointed):
    changes = {**CHANGES, "activation_checkpointing": checkpointed}
    plain = run_alone(directory=tmp_path, lora=lora, **changes)
    compiled = run_alone(directory=tmp_path, lora=lora, torch_compile_backend="aot_eager", **changes)
    assert_same_training(compiled, plain)
    assert compiled["weights"].keys() == plain["weights"].keys(), "names are those of layers that are not compiled"
    for name, weight in plain["weights"].items():
        assert torch.allclose(compiled["weights"][name], weight, rtol=1e-4, atol=1e-6), name


@pytest.mark.nightly
def test_the_default_compiler_trains_too(tmp_path):
    plain = run_alone(directory=tmp_path, lora=LORA, **CHANGES)
    assert_same_training(run_alone(directory=tmp_path, lora=LORA, torch_compile=True, **CHANGES), plain)


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(None, id="ddp", marks=pytest.mark.nightly),
        pytest.param(FSDP2, id="fsdp2", marks=pytest.mark.long),
    ],
)
def test_two_processes_with_compiled_layers_equal_one_without(tmp_path, config):
    plain = run_alone(directory=tmp_path, per_device_train_batch_size=4, **CHANGES)
    halves = {**CHANGES, "per_device_train_batch_size": 2, "contrastive_batch_size": 2}
    two = run_together(2, directory=tmp_path, config=config, torch_compile_backend="aot_eager", **halves)
    assert_same_training(two, plain)


@pytest.mark.long
def test_layers_share_one_compilation_used_only_in_training_steps(tmp_path):
    trainer = tiny_trainer(
        tiny_args(tmp_path, torch_compile_backend="eager", loss_phases=["6:1,1,1"]),
        model=tiny_model(num_hidden_layers=3),
        eval_dataset=tiny_rows(7, seed=3),
    )
    assert trainer.accelerator.state.dynamo_plugin.backend == DynamoBackend.NO, "nobody compiles the model as a whole"
    trainer.train()
    assert not counters["graph_break"]
    graphs = counters["stats"]["unique_graphs"]
    # Rows and pairs, each of a first length and then of any; not one for each of three layers.
    assert 1 <= graphs <= 4
    trainer.evaluate()
    trainer.model(torch.tensor([[1, 5, 6]]))
    assert counters["stats"]["unique_graphs"] == graphs


def test_second_trainer_with_the_same_arguments_compiles(tmp_path):
    args = tiny_args(tmp_path, torch_compile_backend="eager")
    for _ in range(2):
        trainer = tiny_trainer(args)
        assert len(trainer.compiled_layers) == trainer.model.config.num_hidden_layers


def test_without_the_argument_nothing_is_compiled(tmp_path):
    tiny_trainer(tiny_args(tmp_path, loss_phases=["1:1,1,1"])).train()
    assert not counters["stats"]


def test_compiler_settings_of_the_launcher_are_used():
    plugin = TorchDynamoPlugin(backend="eager", mode="reduce-overhead", use_regional_compilation=True)
    args = SimpleNamespace(torch_compile=False)
    arguments = take_over_compilation(plugin, args)
    again = take_over_compilation(plugin, args)
    assert {name: again[name] for name in ("backend", "mode")} == {n: arguments[n] for n in ("backend", "mode")}
    assert plugin.backend == DynamoBackend.NO
    assert (arguments["backend"].lower(), arguments["mode"]) == ("eager", "reduce-overhead")
    assert "use_regional_compilation" not in arguments
    assert len(compile_layers(tiny_model(), arguments)) == 2


@pytest.mark.parametrize("lora", [FULL, LORA], ids=["full", "lora"])
@pytest.mark.parametrize(
    "model_type", [name if name == "llama" else pytest.param(name, marks=pytest.mark.long) for name in FAMILIES]
)
def test_a_layer_of_every_family_is_one_graph_in_every_mode(model_type, lora):
    torch.manual_seed(0)
    model = apply_lora(FAMILIES[model_type](make_config(model_type)).train(), lora)
    ids, mask = torch.tensor([[1, 5, 6, 7], [1, 8, 9, 2]]), torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
    forms = compile_layers(model, {"backend": "eager", "fullgraph": True})
    assert len(forms) == model.config.num_hidden_layers
    for more in ({"mode": "causal"}, {"mode": "bidirectional"}, {"mode": "infill", "segment_ids": ids % 2}):
        expected = model(ids, attention_mask=mask, use_cache=False, **more).logits
        with compiled(forms):
            actual = model(ids, attention_mask=mask, use_cache=False, **more).logits
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
    assert counters["stats"]["unique_graphs"] >= 1
