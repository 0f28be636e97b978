"""Compiled layers train like plain layers, and run only in training steps."""

from types import SimpleNamespace

import pytest
import torch
from accelerate.utils import DynamoBackend, TorchDynamoPlugin
from torch._dynamo.utils import counters

from modeling_magnet.families_magnet import FAMILIES
from tests.modeling_magnet.test_families_magnet import make_config
from trainer.compilation import compile_layers, compiled, take_over_compilation
from trainer.lora import apply_lora

from .processes import FULL, run_alone
from .test_distributed import CACHED, CONTRASTIVE, FSDP2, LORA, assert_same_training, run_one, run_two
from .tiny import tiny_args, tiny_model, tiny_rows, tiny_trainer

# Both phases, views in mini-batches of two widths, layers that are recomputed.
CHANGES = {**CONTRASTIVE, **CACHED, "contrastive_batch_size": 4}


@pytest.fixture(autouse=True)
def _forget_compiled():
    torch.compiler.reset()
    counters.clear()
    yield
    torch.compiler.reset()


@pytest.mark.parametrize(
    ("lora", "checkpointed", "backend"),
    [
        pytest.param(FULL, True, "aot_eager", id="full-recomputed", marks=pytest.mark.nightly),
        pytest.param(LORA, True, "aot_eager", id="recomputed", marks=pytest.mark.long),
        pytest.param(LORA, False, "aot_eager", id="lora", marks=pytest.mark.nightly),
        pytest.param(LORA, False, "inductor", id="default-compiler", marks=pytest.mark.nightly),
    ],
)
def test_a_compiled_run_has_the_gradients_losses_and_weights_of_a_plain_one(tmp_path, lora, checkpointed, backend):
    changes = {**CHANGES, "activation_checkpointing": checkpointed}
    plain = run_alone(directory=tmp_path, lora=lora, **changes)
    compiled = run_alone(directory=tmp_path, lora=lora, torch_compile_backend=backend, **changes)
    assert_same_training(compiled, plain)
    assert compiled["weights"].keys() == plain["weights"].keys(), "names are those of layers that are not compiled"
    for name, weight in plain["weights"].items():
        assert torch.allclose(compiled["weights"][name], weight, rtol=1e-4, atol=1e-6), name


@pytest.mark.parametrize(
    "config",
    [pytest.param(None, id="ddp", marks=pytest.mark.nightly), pytest.param(FSDP2, id="fsdp2", marks=pytest.mark.long)],
)
def test_two_processes_with_compiled_layers_equal_one_without(tmp_path, config):
    two = run_two(
        tmp_path, config=config, torch_compile_backend="aot_eager", **{**CHANGES, "contrastive_batch_size": 2}
    )
    assert_same_training(two, run_one(tmp_path, **CHANGES))


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
@pytest.mark.parametrize("model_type", FAMILIES)
def test_the_layers_of_every_family_are_compiled(model_type, lora):
    model = apply_lora(FAMILIES[model_type](make_config(model_type)), lora)
    forms = compile_layers(model, {"backend": "eager", "fullgraph": True})
    assert len(forms) == model.config.num_hidden_layers
    with compiled(forms):
        assert all("_compiled_call_impl" in vars(layer) for layer, _ in forms)
    assert not any("_compiled_call_impl" in vars(layer) for layer, _ in forms)
