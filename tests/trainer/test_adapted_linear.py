"""A fused adapter computes what peft's layer does, at least as exactly."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from trainer.lora import AdaptedLinear, adapter_layers, adapters_under_autocast, can_be_fused

DTYPE = torch.bfloat16


def adapted_layer(size_in=12, size_out=20, *, bias=False, dtype=torch.float32, **options):
    """One linear layer with an adapter that is not zero."""
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(size_in, size_out, bias=bias, dtype=dtype))
    model = get_peft_model(base, LoraConfig(target_modules=["0"], **{"r": 3, "lora_alpha": 6, **options}))
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(weight)
    (layer,) = adapter_layers(model)
    return layer


def run(layer, inputs, *, fused, **arguments):
    """Outputs, gradient of the inputs, gradients of A and B, of one weighted sum under autocast."""
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
    """The same in float64, by the definition."""
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


def test_inputs_that_ask_for_no_gradient_get_none():
    layer = adapted_layer()
    with torch.autocast("cpu", dtype=DTYPE), adapters_under_autocast([layer]):
        layer(torch.randn(5, 12)).sum().backward()
    assert layer.base_layer.weight.grad is None
    assert layer.lora_A["default"].weight.grad.dtype == torch.float32
    assert layer.lora_A["default"].weight.grad.abs().sum() > 0


def test_the_class_is_pefts_again_after_the_context_even_after_an_error():
    layer = adapted_layer()
    before = type(layer)
    with pytest.raises(KeyError), adapters_under_autocast([layer]):
        assert type(layer) is AdaptedLinear
        raise KeyError
    assert type(layer) is before and can_be_fused(layer)


@pytest.mark.parametrize("change", ["merged", "disabled", "named", "without autocast"])
def test_what_only_peft_can_do_peft_does(change):
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


def test_layers_that_hooks_or_devices_hold_are_left_to_peft():
    assert not can_be_fused(adapted_layer().to("meta"))
    layer = adapted_layer()
    layer.base_layer.register_forward_pre_hook(lambda module, args: None)
    assert not can_be_fused(layer)
    layer = adapted_layer()
    layer.base_layer.weight.ds_id = 1
    assert not can_be_fused(layer)
