"""The model of memory and time: its counts against real Llamas, real backward passes, and the page that shows it."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from examples.benchmarks import scaling
from examples.benchmarks.scaling_model import HALF, Shape, gathered_seconds, layer_bytes_of_token, memory, operations
from examples.benchmarks.training_memory import PeakBytes
from examples.benchmarks.training_systems import step_operations
from modeling_magnet import MagnetLlamaForCausalLM
from trainer import LoraArguments, apply_lora
from trainer.lora import adapter_layers, adapters_under_autocast
from trainer.phases import LossPhase

from ..conftest import REPOSITORY

PAGE = REPOSITORY / "examples" / "benchmarks" / "SCALING.md"


def config_of(shape: Shape) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_value_heads,
        attn_implementation="sdpa",  # as on a GPU; the default on a CPU keeps the scores in bfloat16
    )


@pytest.fixture(autouse=True)
def adapters_as_on_a_gpu(monkeypatch):
    """The page counts what peft's layers keep; on a CPU they are fused with their base."""
    monkeypatch.setattr("trainer.lora.can_be_fused", lambda layer: False)


def adapted_model(shape: Shape, *, checkpointing: bool = False):
    """Frozen bfloat16 weights and float32 adapters."""
    model = apply_lora(MagnetLlamaForCausalLM(config_of(shape)).bfloat16(), LoraArguments(lora_r=shape.rank))
    base = model.get_base_model()
    if checkpointing:
        base.gradient_checkpointing_enable({"use_reentrant": False})
        base.enable_input_require_grads()
    return model.train()


def step(model, *, rows: int, row: int) -> torch.Tensor:
    """The loss of a forward as the trainer has it: an infilling mask, labels of a quarter of the tokens."""
    ids = torch.arange(rows * row).view(rows, row) % 90 + 4
    segments = torch.zeros_like(ids)
    segments[:, row // 2 : row // 2 + 8] = 1
    targets = torch.where(ids % 4 == 0, ids, -100)
    with adapters_under_autocast(adapter_layers(model)), torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(ids, segment_ids=segments, mode="infill", use_cache=False, target_ids=targets)
    return output.token_losses.sum()


def kept_bytes(shape: Shape, *, rows: int, row: int) -> int:
    """Bytes of what autograd keeps of a forward, each storage once, without the weights."""
    model = adapted_model(shape)
    weights = {tensor.untyped_storage()._cdata for tensor in (*model.parameters(), *model.buffers())}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept.setdefault(storage._cdata, storage)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        step(model, rows=rows, row=row)
    return sum(storage.nbytes() for storage in kept.values())


@pytest.mark.parametrize(
    ("hidden", "intermediate", "heads", "key_value_heads", "rank", "row"),
    [(256, 704, 4, 4, 16, 64), (256, 704, 4, 2, 16, 128), (512, 1024, 8, 8, 4, 64)],
)
def test_a_block_keeps_what_the_formula_says_byte_for_byte(hidden, intermediate, heads, key_value_heads, rank, row):
    def shape(layers):
        return Shape(hidden, intermediate, layers, heads, key_value_heads, vocabulary=128, rank=rank)

    one_block = (kept_bytes(shape(3), rows=2, row=row) - kept_bytes(shape(2), rows=2, row=row)) / (2 * row)
    copies = HALF * shape(1).adapter_weights / (2 * row)  # of adapters in half precision, not of tokens
    assert one_block == layer_bytes_of_token(shape(1), row=row) + copies


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(("hidden", "intermediate", "layers"), [(512, 1408, 2), (256, 1408, 3), (256, 704, 6)])
def test_the_height_of_a_step_is_what_the_formula_says(hidden, intermediate, layers, checkpointing):
    shape = Shape(hidden, intermediate, layers, 8, 8, vocabulary=128, rank=8)
    model = adapted_model(shape, checkpointing=checkpointing)
    with PeakBytes() as counted:
        step(model, rows=2, row=512).backward()
    assert all(weight.grad is not None for weight in model.parameters() if weight.requires_grad)
    said = memory(shape, rows=2, row=512, checkpointing=checkpointing)
    assert counted.most == pytest.approx(said.activations, rel=0.03)


def test_weights_are_those_of_transformers_and_of_peft():
    for name, count in (("7B", 6_738_415_616), ("13B", 13_015_864_320), ("70B", 68_976_648_192)):
        shape = scaling.MODELS[name]
        with torch.device("meta"):
            model = LlamaForCausalLM(config_of(shape))
        assert shape.weights == model.num_parameters() == count
    shape = Shape(64, 96, 2, 4, 2, vocabulary=50, rank=3)
    model = adapted_model(shape)
    trained = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    assert (shape.weights, shape.adapter_weights) == (model.num_parameters() - trained, trained)


def test_operations_are_those_that_the_benchmark_counts():
    shape = Shape(64, 96, 2, 4, 2, vocabulary=50, rank=3)
    batch = {"attention_mask": torch.ones(3, 20), "mntp_labels": torch.tensor([1, 2, -100])}
    counted = step_operations(adapted_model(shape), batch, weights=LossPhase(steps=1, mntp=1.0, sscl=0.0, msg=0.0))
    assert operations(shape, tokens=60, row=20, labels=2) == counted
    again = operations(shape, tokens=60, row=20, labels=2, checkpointing=True)
    assert 1 < again / counted < 1.5


def test_sharing_and_checkpointing_take_less_and_links_take_time():
    shape = scaling.MODELS["7B"]
    alone, shared = memory(shape, rows=4), memory(shape, rows=4, gpus=8, sharded=True)
    assert shared.adapters == alone.adapters / 8
    assert alone.weights / 8 < shared.weights < alone.weights / 3
    assert shared.activations == alone.activations
    assert memory(shape, rows=4, checkpointing=True).total < alone.total
    gpu = scaling.GPUS["H200"]
    assert gathered_seconds(shape, gpu, gpus=8) == pytest.approx(4 * shape.weights * 7 / 8 / 450e9)
    assert gathered_seconds(shape, gpu, gpus=16) > 9 * gathered_seconds(shape, gpu, gpus=8)


def test_the_page_has_the_tables_of_now(tmp_path, capsys):
    text = PAGE.read_text(encoding="utf-8")
    assert scaling.with_tables(text) == text, (
        "run examples/benchmarks/scaling.py --page examples/benchmarks/SCALING.md"
    )
    blank = tmp_path / "page.md"
    blank.write_text("".join(f"<!-- {name} -->\nold\n<!-- / -->\n" for name in scaling.TABLES))
    scaling.main(["--page", str(blank)])
    assert "old" not in blank.read_text() and "| 70B | 64 GPUs, FSDP2 | 1 |" in blank.read_text()
    scaling.main([])
    assert capsys.readouterr().out.splitlines()[-1] == "scaling: OK"
    with pytest.raises(ValueError, match="no marks `<!-- memory -->`"):
        scaling.with_tables("# A page")
