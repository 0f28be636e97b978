"""Placement of adapters, and their training fused with their layers on a CPU."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from trainer.contrastive_head import attach_contrastive_head
from trainer.fused_adapters import AdaptedLinear, adapters_under_autocast, can_be_fused, casting_layers
from trainer.lora import LoraArguments, apply_lora

from .tiny import tiny_args, tiny_model, tiny_trainer

IDS = torch.tensor([[1, 5, 6, 7, 8, 9]])
SEGMENTS = torch.tensor([[0, 0, 1, 1, 0, 0]])


def test_all_linear_layers_but_the_lm_head_get_adapters():
    model = apply_lora(tiny_model(), LoraArguments())
    adapted = {name.split(".lora_A")[0].split(".")[-1] for name, _ in model.named_parameters() if ".lora_A" in name}
    assert adapted == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    trained = [name for name, weight in model.named_parameters() if weight.requires_grad]
    assert len(trained) == 2 * 2 * 7  # A and B, two layers
    config = model.peft_config["default"]
    assert (config.r, config.lora_alpha, config.lora_dropout) == (16, 32, 0.0)
    assert all(".lora_A" in name or ".lora_B" in name for name in trained)


def test_rank_0_returns_the_model():
    model = tiny_model()
    assert apply_lora(model, LoraArguments(lora_r=0)) is model
    assert all(weight.requires_grad for weight in model.parameters())


def test_existing_head_gets_no_adapter():
    model = tiny_model()
    attach_contrastive_head(model, kind="tanh", hidden_size=16, seed=0)
    names = [name for name, _ in apply_lora(model, LoraArguments()).named_parameters()]
    assert not [name for name in names if "sscl_head" in name and "lora" in name]


def test_invalid_arguments_raise_in_one_error():
    with pytest.raises(ValueError) as caught:
        LoraArguments(lora_r=-1, lora_alpha=0, lora_dropout=1.0)
    assert all(name in str(caught.value) for name in ("`lora_r` is -1", "`lora_alpha` is 0", "`lora_dropout` is 1.0"))


def test_adapter_added_by_transformers_raises(tmp_path):
    config = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"])
    model = tiny_model()
    model.add_adapter(config)
    with pytest.raises(ValueError, match=r"add_adapter.*lora.apply_lora"):
        tiny_trainer(tiny_args(tmp_path / "run"), model=model)
    assert not (tmp_path / "run").exists()
    tiny_trainer(tiny_args(tmp_path / "run"), model=model, train_dataset=None)  # to evaluate it
    tiny_trainer(tiny_args(tmp_path / "run"), model=get_peft_model(tiny_model(), config))


# ---- Fused adapters ----


DTYPE = torch.bfloat16


def adapted_layer(size_in=12, size_out=20, *, bias=False, dtype=torch.float32, **options):
    """Make a linear layer with a nonzero adapter."""
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(size_in, size_out, bias=bias, dtype=dtype))
    model = get_peft_model(base, LoraConfig(target_modules=["0"], **{"r": 3, "lora_alpha": 6, **options}))
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(weight)
    (layer,) = casting_layers(model)
    return layer


def run(layer, inputs, *, fused, **arguments):
    """Return outputs and gradients of the inputs, A and B of a weighted sum under autocast."""
    inputs = inputs.clone().requires_grad_()
    with torch.autocast("cpu", dtype=DTYPE):
        if fused:
            with adapters_under_autocast([layer]):
                outputs = layer(inputs, **arguments)
        else:
            outputs = layer(inputs, **arguments)
    trained = [weight for weight in layer.parameters() if weight.requires_grad]
    slopes = torch.arange(outputs.numel()).reshape(outputs.shape).remainder(7) - 3.0
    gradients = torch.autograd.grad((outputs * slopes).sum(), [inputs, *trained])
    return [value.double() for value in (outputs.detach(), *gradients)]


def exact(layer, inputs):
    """Compute the same by definition in float64."""
    inputs = inputs.double().requires_grad_()
    base, down, up = layer.base_layer, layer.lora_A["default"].weight, layer.lora_B["default"].weight
    down, up = (weight.detach().double().requires_grad_() for weight in (down, up))
    bias = 0 if base.bias is None else base.bias.double()
    outputs = inputs @ base.weight.double().t() + bias + layer.scaling["default"] * (inputs @ down.t() @ up.t())
    slopes = torch.arange(outputs.numel()).reshape(outputs.shape).remainder(7) - 3.0
    return [outputs.detach(), *torch.autograd.grad((outputs * slopes).sum(), [inputs, down, up])]


@pytest.mark.parametrize("sizes", [(12, 20), (20, 12), (16, 16)])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, DTYPE])
@pytest.mark.parametrize("shape", [(40,), (4, 10), (2, 2, 10)])
def test_outputs_and_gradients_are_as_exact_as_those_of_peft(sizes, bias, dtype, shape):
    layer = adapted_layer(*sizes, bias=bias, dtype=dtype)
    inputs = torch.randn(*shape, sizes[0]).to(dtype)
    right, ours, peft = exact(layer, inputs), run(layer, inputs, fused=True), run(layer, inputs, fused=False)
    for value, found, theirs in zip(right, ours, peft, strict=True):
        assert found.shape == value.shape
        assert (found - value).norm() <= max(1.3 * (theirs - value).norm(), 0.004 * value.norm())


def test_inputs_without_requires_grad_get_no_gradient():
    layer = adapted_layer()
    with torch.autocast("cpu", dtype=DTYPE), adapters_under_autocast([layer]):
        layer(torch.randn(5, 12)).sum().backward()
    assert layer.base_layer.weight.grad is None
    assert layer.lora_A["default"].weight.grad.dtype == torch.float32
    assert layer.lora_A["default"].weight.grad.abs().sum() > 0


def test_class_is_restored_after_the_context_and_after_errors():
    layer = adapted_layer()
    before = type(layer)
    with pytest.raises(KeyError), adapters_under_autocast([layer]):
        assert type(layer) is AdaptedLinear
        raise KeyError
    assert type(layer) is before and can_be_fused(layer)


@pytest.mark.parametrize("change", ["merged", "disabled", "named", "without autocast"])
def test_unsupported_calls_are_left_to_peft(change):
    layer, inputs = adapted_layer(), torch.randn(4, 12)
    arguments = {"adapter_names": ["__base__"] * 4} if change == "named" else {}
    if change == "merged":
        layer.merge()
    elif change == "disabled":
        layer.enable_adapters(False)
    with torch.no_grad(), torch.autocast("cpu", dtype=DTYPE, enabled=change != "without autocast"):
        expected = layer(inputs, **arguments)
        with adapters_under_autocast([layer]):
            assert torch.equal(layer(inputs, **arguments), expected)


@pytest.mark.parametrize(
    "options", [{"lora_dropout": 0.1}, {"use_dora": True}, {"lora_bias": True}, {"trains": "bias"}], ids=str
)
def test_other_adapters_are_left_to_peft(options):
    options, trains_bias = dict(options), "trains" in options
    options.pop("trains", None)
    layer = adapted_layer(bias=True, **options)
    if trains_bias:
        layer.base_layer.bias.requires_grad_()
    assert not can_be_fused(layer)
    with adapters_under_autocast([layer]):
        assert type(layer) is not AdaptedLinear


def test_layers_with_hooks_or_on_other_devices_are_left_to_peft():
    assert not can_be_fused(adapted_layer().to("meta"))
    layer = adapted_layer()
    layer.base_layer.register_forward_pre_hook(lambda module, args: None)
    assert not can_be_fused(layer)
    layer = adapted_layer()
    layer.base_layer.weight.ds_id = 1
    assert not can_be_fused(layer)
