"""Test chunked losses against all logits at once: values, gradients, hits and memory."""

import copy
from typing import Any
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from modeling_magnet import losses_magnet
from modeling_magnet.families_magnet import MagnetGemma3ForCausalLM
from modeling_magnet.modeling_magnet import MagnetLlamaForCausalLM

from ..peak_bytes import PeakBytes
from .test_families_magnet import make_config

HIDDEN, VOCAB = 6, 11


def make_head(*, bias: bool = False, trained: bool = False, dtype: torch.dtype = torch.float32) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(HIDDEN, VOCAB, bias=bias).to(dtype).requires_grad_(trained)


def draw(shape: tuple[int, ...], *, ratio: float, seed: int, dtype: torch.dtype = torch.float32) -> tuple[Any, Any]:
    """Draw states, and targets `(B, S)` or `(K, B, S)` of which about the given ratio is set."""
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(*shape[-2:], HIDDEN, generator=generator).to(dtype).requires_grad_()
    targets = torch.randint(VOCAB, shape, generator=generator)
    return states, targets.where(torch.rand(shape, generator=generator) < ratio, -100)


def at_once(states: torch.Tensor, targets: torch.Tensor, head: nn.Module) -> torch.Tensor:
    """Compute all logits, and the cross entropy target by target."""
    logits = head(states)
    losses = torch.zeros(targets.shape, dtype=torch.promote_types(logits.dtype, torch.float32))
    for place in (targets != -100).nonzero().tolist():
        row, column = place[-2:]
        probabilities = logits[row, column].to(losses.dtype).softmax(-1)
        losses[tuple(place)] = -probabilities[targets[tuple(place)]].log()
    return losses


def token_losses(*args: Any, chunk_size: int | None = None, **options: Any) -> losses_magnet.TokenLosses:
    """Call the function under test, with chunks of `chunk_size` positions if it is given."""
    if chunk_size is None:
        return losses_magnet.token_losses(*args, **options)
    with mock.patch.object(losses_magnet, "_chunk_size", return_value=chunk_size):
        return losses_magnet.token_losses(*args, **options)


def gradients(losses: torch.Tensor, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Compute the gradients of a weighted sum of the losses."""
    weights = torch.linspace(0.5, 2.0, losses.numel(), dtype=losses.dtype).view(losses.shape)
    return torch.autograd.grad((losses * weights).sum(), inputs)


@settings(max_examples=60, deadline=None)
@given(
    shape=st.sampled_from([(1, 1), (3, 7), (2, 3, 5), (3, 1, 4)]),
    ratio=st.sampled_from([0.0, 0.3, 1.0]),
    chunk_size=st.sampled_from([None, 1, 2, 3, 64]),
    surplus=st.sampled_from([None, 0, 5]),
    bias=st.booleans(),
    trained=st.booleans(),
    named=st.booleans(),
    seed=st.integers(0, 99),
)
def test_losses_and_gradients_equal_those_of_all_logits(shape, ratio, chunk_size, surplus, bias, trained, named, seed):
    head = make_head(bias=bias, trained=trained)
    states, targets = draw(shape, ratio=ratio, seed=seed)
    num_targets = None if surplus is None else int((targets != -100).sum()) + surplus
    found = token_losses(
        states,
        targets,
        head=head,
        vocab_size=VOCAB,
        project=None if named else head,
        num_targets=num_targets,
        chunk_size=chunk_size,
    )
    assert found.hits is None and found.losses.dtype == torch.float32
    expected = at_once(states, targets, head)
    torch.testing.assert_close(found.losses, expected)
    assert not found.losses[targets == -100].any()
    inputs = (states, *head.parameters()) if trained else (states,)
    if ratio:
        torch.testing.assert_close(
            gradients(found.losses, *inputs), gradients(expected + 0 * head(states).sum(), *inputs)
        )
    else:
        assert not any(gradient.any() for gradient in gradients(found.losses, *inputs)), "zeros, not nothing"


@pytest.mark.parametrize("named", [True, False], ids=["frozen head", "any head"])
@pytest.mark.parametrize("autocast", [True, False])
def test_half_precision_is_summed_in_float32(named, autocast):
    head = make_head(dtype=torch.float32 if autocast else torch.bfloat16)
    states, targets = draw((8, 50), ratio=0.9, seed=1, dtype=torch.float32 if autocast else torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        found = token_losses(
            states, targets, head=head, vocab_size=VOCAB, project=None if named else head, chunk_size=64
        ).losses
        logits = head(states)
    expected = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="none").view(targets.shape)
    assert logits.dtype == torch.bfloat16 and found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    (gradient,), (wanted,) = gradients(found, states), gradients(expected, states)
    assert gradient.dtype == states.dtype
    torch.testing.assert_close(gradient.float(), wanted.float(), rtol=2e-2, atol=2e-2)


@torch.no_grad()
def test_hits_are_targets_with_the_largest_logit():
    head = make_head()
    states, targets = draw((2, 4, 9), ratio=0.8, seed=2)
    targets[0, :, ::2] = head(states).argmax(-1)[:, ::2]
    found = token_losses(states, targets, head=head, vocab_size=VOCAB, chunk_size=4)
    expected = (head(states).argmax(-1) == targets) & (targets != -100)
    assert torch.equal(found.hits, expected) and expected.any() and not expected[targets != -100].all()
    torch.testing.assert_close(found.losses, at_once(states, targets, head))


@pytest.mark.parametrize("trained", [True, False])
def test_at_most_one_chunk_of_logits_is_in_memory(trained):
    head, sizes, kept = make_head(trained=trained), [], []

    class Counted(nn.Linear):
        def forward(self, states: torch.Tensor) -> torch.Tensor:
            sizes.append(len(states))
            return super().forward(states)

    counted = Counted(HIDDEN, VOCAB, bias=False)
    counted.weight = head.weight
    states, targets = draw((4, 40), ratio=1.0, seed=5)
    chosen: Any = counted if trained else head
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        found = token_losses(states, targets, head=chosen, vocab_size=VOCAB, chunk_size=16)
    assert not any(tensor.shape[-1:] == (VOCAB,) for tensor in kept if tensor is not head.weight)
    found.losses.sum().backward()
    assert set(sizes) == ({16} if trained else set())
    assert len(sizes) == (20 if trained else 0), "ten chunks, each made again for its gradient"


def test_chunk_size_depends_on_the_vocabulary():
    head, sizes = make_head(), []
    head.register_forward_hook(lambda _, arguments, output: sizes.append(len(output)))
    states, targets = draw((4, 40), ratio=1.0, seed=5)
    token_losses(states, targets, head=head, vocab_size=2**28 // 400)  # 256 MiB in float32: 100 positions, so 80
    assert sizes == [80, 80]
    many, all_set = draw((9, 400), ratio=1.0, seed=5)
    token_losses(many, all_set, head=head, vocab_size=VOCAB)  # 3,600 positions in 8 chunks of at most 512
    assert sizes[2:] == [464] * 8


@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("no_grad", [True, False])
def test_a_head_that_is_gathered_for_each_call_is_called_once(trained, named, no_grad):
    head, calls = make_head(trained=trained), []
    head.weight.ds_id = 0  # so DeepSpeed marks a weight of which this process has a part
    head.register_forward_hook(lambda _, arguments, output: calls.append(output))
    states, targets = draw((4, 40), ratio=0.9, seed=5)
    with torch.set_grad_enabled(not no_grad):
        found = token_losses(
            states, targets, head=head, vocab_size=VOCAB, project=None if named else head, chunk_size=16
        )
    assert len(calls) == 1 and "forward" not in vars(head)
    torch.testing.assert_close(found.losses, at_once(states, targets, head))
    if no_grad:
        assert torch.equal(found.hits, (head(states).argmax(-1) == targets) & (targets != -100))
    else:
        inputs = (states, *head.parameters()) if trained else (states,)
        expected = gradients(at_once(states, targets, head), *inputs)
        torch.testing.assert_close(gradients(found.losses, *inputs), expected)


class Doubled(nn.Linear):
    """Represent a head whose class is not `nn.Linear`."""

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(states)


@pytest.mark.parametrize("put", ["hook", "forward", "gathered forward", "class"])
@pytest.mark.parametrize("trained", [True, False])
def test_hooks_and_wrappers_of_a_head_are_called(put, trained):
    head = make_head(trained=trained)
    plain = head.forward
    if put == "hook":
        head.register_forward_hook(lambda _, arguments, output: 2 * output)
    elif put == "class":
        head = Doubled(HIDDEN, VOCAB, bias=False).requires_grad_(trained)
        head.weight.data = make_head().weight.data
    else:
        head.forward = lambda states: 2 * plain(states)
    if put == "gathered forward":
        head.weight.ds_id = 0
    own = vars(head).get("forward")
    states, targets = draw((2, 6), ratio=0.7, seed=4)
    found = token_losses(states, targets, head=head, vocab_size=VOCAB, chunk_size=4).losses
    assert vars(head).get("forward") is own
    expected = at_once(2 * states, targets, make_head())
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gradients(found, states), gradients(expected, states))


@pytest.mark.parametrize("shape", [(2, 4), (3,), (2, 2, 2, 3), (3, 2)])
def test_targets_of_another_shape_raise(shape):
    with pytest.raises(ValueError, match=r"`target_ids`.*expected \(2, 3\)"):
        token_losses(
            torch.zeros(2, 3, HIDDEN), torch.zeros(shape, dtype=torch.long), head=make_head(), vocab_size=VOCAB
        )


def test_num_targets_below_the_count_raises():
    with pytest.raises(ValueError, match="`num_targets` is 5, but 6 targets"):
        token_losses(
            torch.zeros(2, 3, HIDDEN),
            torch.zeros(2, 3, dtype=torch.long),
            head=make_head(),
            vocab_size=VOCAB,
            num_targets=5,
        )


# ---- In the model ----


@pytest.mark.parametrize("mode", ["causal", "bidirectional", "infill"])
@pytest.mark.parametrize("frozen", [True, False])
def test_a_forward_with_targets_equals_one_with_logits(tiny_model, mode, frozen):
    model: MagnetLlamaForCausalLM = copy.deepcopy(tiny_model)
    model.get_output_embeddings().requires_grad_(not frozen)
    ids = torch.randint(5, 90, (3, 12), generator=torch.Generator().manual_seed(0))
    segments = {"segment_ids": torch.tensor([[0, 0, 1, 1, 0, 0, 2, 2, 2, 0, 0, 0]] * 3)} if mode == "infill" else {}
    targets = ids.roll(-1, dims=1)
    targets[:, ::3] = -100
    output = model(ids, mode=mode, target_ids=targets, num_targets=24, **segments)
    assert output.logits is None and output.token_hits is None
    logits = model(ids, mode=mode, **segments).logits
    expected = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view(targets.shape)
    torch.testing.assert_close(output.token_losses, expected)
    weight = model.model.layers[0].self_attn.q_proj.weight
    # Their largest value is 10; in float32 both are up to 2e-5 from those in float64.
    (found,), (wanted,) = gradients(output.token_losses, weight), gradients(expected, weight)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=3e-5)
    with torch.no_grad():
        hits = model(ids, mode=mode, target_ids=targets, **segments).token_hits
    assert torch.equal(hits, (logits.argmax(-1) == targets) & (targets != -100))


def test_a_forward_takes_labels_and_targets_together(tiny_model):
    ids = torch.randint(5, 90, (2, 9), generator=torch.Generator().manual_seed(0))
    both = tiny_model(ids, mode="causal", labels=ids, target_ids=ids.roll(-1, dims=1))
    assert torch.equal(both.logits, tiny_model(ids, mode="causal").logits)
    torch.testing.assert_close(both.token_losses[:, :-1].mean(), both.loss)


def make_gemma(cap: float | None) -> MagnetGemma3ForCausalLM:
    """Build a model with capped logits and a frozen head."""
    torch.manual_seed(0)
    small = {"num_hidden_layers": 1, "layer_types": ["sliding_attention"], "initializer_range": 0.02}
    config = make_config("gemma3_text", final_logit_softcapping=cap, **small)
    model = MagnetGemma3ForCausalLM(config).eval().requires_grad_(False)
    model.model.layers[0].requires_grad_(True)
    return model


def test_an_overridden_project_is_called():
    model = make_gemma(0.5)
    ids = torch.randint(5, 90, (2, 9), generator=torch.Generator().manual_seed(0))
    logits = model(ids, mode="bidirectional").logits
    assert logits.abs().max() < 0.5
    found = model(ids, mode="bidirectional", target_ids=ids).token_losses
    expected = F.cross_entropy(logits.flatten(0, 1), ids.flatten(), reduction="none").view(ids.shape)
    torch.testing.assert_close(found, expected)
    weight = model.model.layers[0].self_attn.q_proj.weight
    torch.testing.assert_close(gradients(found, weight), gradients(expected, weight))


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [False, True])
def test_a_soft_cap_has_the_losses_hits_and_gradients_of_all_logits(trained, dtype, bias):
    head = make_head(trained=trained, dtype=dtype, bias=bias)
    states, targets = draw((4, 40), ratio=0.9, seed=7, dtype=dtype)
    asked: Any = {"head": head, "vocab_size": VOCAB, "softcap": 0.3, "chunk_size": 16}
    found = token_losses(states, targets, **asked).losses
    logits = torch.tanh(head(states) / 0.3) * 0.3
    expected = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), reduction="none").view(targets.shape)
    close = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 2e-2, "atol": 2e-2}
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    inputs = (states, *head.parameters()) if trained else (states,)
    for one, other in zip(gradients(found, *inputs), gradients(expected, *inputs), strict=True):
        scale = other.float().abs().max()
        torch.testing.assert_close(one.float() / scale, other.float() / scale, **close)
    with torch.no_grad():
        without = token_losses(states, targets, **asked)
    torch.testing.assert_close(without.losses, found)
    assert torch.equal(without.hits, (logits.argmax(-1) == targets) & (targets != -100))


@pytest.mark.parametrize("no_grad", [False, True])
@pytest.mark.parametrize("cap", [None, 0.5], ids=["no cap", "cap"])
def test_the_weight_of_a_frozen_head_is_converted_once(no_grad, cap):
    """Under autocast a float32 head projects in bfloat16; its weight is the only tensor of shape (V, H)."""
    head = nn.Linear(HIDDEN, 97, bias=False).requires_grad_(False)
    states = torch.randn(4, 40, HIDDEN, requires_grad=True)
    targets = torch.randint(97, (4, 40))
    converted = []

    class Counting(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func is torch.ops.aten._to_copy.default and kwargs["dtype"] == torch.bfloat16:
                converted.append(tuple(args[0].shape))
            return func(*args, **(kwargs or {}))

    with Counting(), torch.set_grad_enabled(not no_grad):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            losses = token_losses(states, targets, head=head, vocab_size=97, softcap=cap, chunk_size=16).losses
        if not no_grad:
            losses.sum().backward()
    assert converted.count((97, HIDDEN)) == 1


@pytest.mark.parametrize("cap", [None, 30.0])
def test_a_gemma_takes_the_path_of_a_frozen_head(cap, monkeypatch):
    """`final_logit_softcapping` is null in Gemma 3."""
    monkeypatch.setattr(losses_magnet, "checkpoint", None)
    ids = torch.randint(5, 90, (2, 400))
    losses = make_gemma(cap)(ids, mode="bidirectional", target_ids=ids).token_losses
    assert any("FrozenHead" in name for name in nodes_of(losses.grad_fn))


def nodes_of(node: Any) -> set[str]:
    """Return the names of the nodes of a graph."""
    names, waiting = set(), [node]
    while waiting:
        node = waiting.pop()
        names.add(type(node).__name__)
        waiting += [before for before, _ in node.next_functions if before is not None]
    return names


@pytest.mark.long
def test_logits_of_a_wide_vocabulary_take_a_quarter_of_a_gibibyte():
    """512 positions of 262,144 tokens in bfloat16; the gradient overwrites the logits."""
    head = nn.Linear(2, 262_144, bias=False).to(torch.bfloat16).requires_grad_(False)
    states = torch.randn(1, 1100, 2).to(torch.bfloat16).requires_grad_()
    with PeakBytes() as counted:
        losses = token_losses(states, torch.zeros(1, 1100, dtype=torch.long), head=head, vocab_size=262_144).losses
        losses.sum().backward()
    assert 2**27 < counted.most < 2**28 + 2**23


def test_an_adapter_on_the_head_gets_its_gradient(tiny_model):
    lora = LoraConfig(target_modules=["lm_head", "q_proj"], r=2, lora_alpha=4, init_lora_weights=False)
    model = get_peft_model(copy.deepcopy(tiny_model), lora)
    ids = torch.randint(5, 90, (2, 9), generator=torch.Generator().manual_seed(0))
    found = model(input_ids=ids, mode="bidirectional", target_ids=ids).token_losses
    logits = model(input_ids=ids, mode="bidirectional").logits
    expected = F.cross_entropy(logits.flatten(0, 1), ids.flatten(), reduction="none").view(ids.shape)
    adapters = [weight for weight in model.parameters() if weight.requires_grad]
    assert len(adapters) > 2
    found_gradients = gradients(found, *adapters)
    torch.testing.assert_close(found_gradients, gradients(expected, *adapters))
    assert all(gradient.any() for gradient in found_gradients)
