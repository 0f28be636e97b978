"""Every family x mode x back-end on tiny random weights of the real configuration classes.

Causal mode against the stock class bit for bit, with windows shorter than the text; the other modes against the stock
class with masks computed by a double loop.
"""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from modeling_magnet.families_magnet import FAMILIES, AutoMagnetForCausalLM
from modeling_magnet.masking_magnet import layer_windows
from tests.modeling_magnet.infill_reference import fill_by_loop
from tests.scripts import run_python

WINDOW = 4
# What differs from the defaults of a family, so that the parts under test are there: windows, soft caps.
SPECIAL = {
    "mistral": {"sliding_window": WINDOW},
    "qwen2": {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
    "qwen3": {"head_dim": 8},
    "gemma3_text": {
        "sliding_window": WINDOW,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        "head_dim": 8,
        "final_logit_softcapping": 5.0,
        "query_pre_attn_scalar": 8,
    },
    "smollm3": {"no_rope_layers": [1, 0, 1]},
}
WINDOWED = ("mistral", "qwen2", "gemma3_text")


def make_config(model_type, **changes):
    """Return the config of a tiny decoder of a family."""
    return CONFIG_MAPPING[model_type](
        **{
            "vocab_size": 300,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 256,
            "initializer_range": 0.2,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 2,
            **SPECIAL.get(model_type, {}),
            **changes,
        }
    )


def write_decoder(folder, model_type, tokenizer, **changes):
    """Write a plain decoder of a family."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(make_config(model_type, **changes))
    with torch.no_grad():  # norms begin as ones, which hides a forgotten one
        for name, weight in model.named_parameters():
            if "norm" in name:
                weight.add_(0.3 * torch.randn_like(weight))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(str(folder))
    return folder


@pytest.fixture(scope="module", params=list(FAMILIES))
def checkpoint(request, tiny_tokenizer, tmp_path_factory):
    return write_decoder(tmp_path_factory.mktemp("families") / request.param, request.param, tiny_tokenizer)


def twins(checkpoint, implementation):
    ours = AutoMagnetForCausalLM.from_pretrained(checkpoint, attn_implementation=implementation).eval()
    stock = AutoModelForCausalLM.from_pretrained(checkpoint, attn_implementation=implementation).eval()
    assert type(ours) is FAMILIES[ours.config.model_type]
    return ours, stock


def make_batch(padding_side, length=11):
    ids = torch.randint(3, 300, (2, length), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    if padding_side is not None:
        mask[0, : 3 if padding_side == "left" else None][: 3 if padding_side == "left" else 0] = 0
        if padding_side == "right":
            mask[0, -3:] = 0
    return ids, mask


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("padding_side", [None, "left", "right"])
@torch.no_grad()
def test_causal_mode_is_the_stock_class_bit_for_bit(checkpoint, implementation, padding_side):
    ours, stock = twins(checkpoint, implementation)
    ids, mask = make_batch(padding_side)
    expected = stock(ids, attention_mask=mask, labels=ids)
    output = ours(ids, attention_mask=mask, labels=ids, mode="causal")
    assert torch.equal(output.logits, expected.logits)
    assert torch.equal(output.loss, expected.loss)
    options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 2}
    row = {"input_ids": ids[1:], "attention_mask": mask[1:]}
    assert torch.equal(ours.generate(**row, **options), stock.generate(**row, **options))


@torch.no_grad()
def test_generation_from_embeddings_is_the_stock_class_s(checkpoint):
    ours, stock = twins(checkpoint, "sdpa")
    ids, mask = make_batch("left")
    options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 2, "attention_mask": mask}
    generated = [one.generate(inputs_embeds=one.get_input_embeddings()(ids), **options) for one in (ours, stock)]
    assert torch.equal(*generated)
    assert torch.equal(generated[0], ours.generate(ids, **options)[:, ids.shape[1] :])
    both = [one.generate(ids, inputs_embeds=one.get_input_embeddings()(ids), **options) for one in (ours, stock)]
    assert torch.equal(*both)


def looped_masks(config, segments, positions, mask):
    """Return additive masks for each layer type, computed one cell at a time."""
    batch, length = segments.shape
    masks = {}
    for kind, window in layer_windows(config).items():
        table = torch.full((batch, 1, length, length), torch.finfo(torch.float32).min)
        for row in range(batch):
            for query in range(length):
                for key in range(length):
                    sees = segments[row, key] == 0 or (segments[row, key] == segments[row, query] and key <= query)
                    sees = sees and bool(mask[row, key])
                    if window is not None:
                        sees = sees and abs(int(positions[row, query] - positions[row, key])) <= window
                    if sees or key == query:
                        table[row, 0, query, key] = 0.0
        masks[kind] = table
    return masks.get("", masks)


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("padding_side", [None, "left", "right"])
@pytest.mark.parametrize("mode", ["bidirectional", "infill"])
@torch.no_grad()
def test_other_modes_are_the_stock_class_with_masks_by_loop(checkpoint, implementation, padding_side, mode):
    ours, _ = twins(checkpoint, implementation)
    _, stock = twins(checkpoint, "eager")
    ids, mask = make_batch(padding_side)
    segments = torch.zeros_like(ids)
    if mode == "infill":
        segments[:, 4:7], segments[1, 8:10] = 1, 2
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    output = ours(ids, attention_mask=mask, mode=mode, segment_ids=segments if mode == "infill" else None)
    masks = looped_masks(ours.config, segments, positions, mask)
    expected = stock(ids, attention_mask=masks, position_ids=positions)
    real = mask.bool()
    torch.testing.assert_close(output.logits[real], expected.logits[real], atol=2e-5, rtol=1e-4)


@torch.no_grad()
def test_a_later_token_affects_only_positions_in_its_window(checkpoint):
    ours, _ = twins(checkpoint, "sdpa")
    ids, _ = make_batch(None, length=30)
    ids = ids[:1]
    changed = ids.clone()
    changed[0, -1] = (changed[0, -1] + 1) % 300
    moved = (
        (ours(ids, mode="bidirectional").last_hidden_state - ours(changed, mode="bidirectional").last_hidden_state)
        .abs()
        .amax(-1)[0]
    )
    windows = layer_windows(ours.config)
    if None in windows.values():
        assert (moved > 0).all()
    else:  # three layers of one window reach three windows back
        reach = 3 * WINDOW
        assert (moved[-reach - 1 :] > 0).all()
        assert (moved[: -reach - 1] == 0).all()
    assert torch.equal(ours(ids, mode="causal").logits[:, :-1], ours(changed, mode="causal").logits[:, :-1])


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_blanks_equal_a_loop_of_full_mask_forwards(checkpoint, implementation):
    ours, _ = twins(checkpoint, implementation)
    text = "The cat [blank] on the mat, and the [blank] barked at the cat in the forest."
    output = ours.infill_blanks(text, max_new_tokens=[5, 7], return_dict_in_generate=True)
    for answers, (tokens, logprobs) in zip(
        output.fills[0], fill_by_loop(ours, text.split("[blank]"), [5, 7]), strict=True
    ):
        assert answers[0].token_ids == tokens
        torch.testing.assert_close(torch.tensor(answers[0].logprobs), torch.tensor(logprobs), atol=1e-4, rtol=0)


def test_an_embedding_does_not_depend_on_the_batch(checkpoint):
    ours, _ = twins(checkpoint, "sdpa")
    texts = ["The cat sat.", "She ate the apple for breakfast and the bread for lunch.", "dog"]
    together = ours.encode(texts, normalize_embeddings=True)
    for text, vector in zip(texts, together, strict=True):
        assert abs(ours.encode(text, normalize_embeddings=True) - vector).max() < 1e-5


@pytest.mark.long
def test_checkpoints_of_all_families_open_in_a_clean_process(tiny_tokenizer, tmp_path):
    expected = {}
    for model_type in FAMILIES:
        plain = write_decoder(tmp_path / "plain" / model_type, model_type, tiny_tokenizer)
        ours = AutoMagnetForCausalLM.from_pretrained(plain).eval()
        ours.save_pretrained(tmp_path / model_type)
        expected[model_type] = [type(ours).__name__, ours.infill("The cat", " mat.", max_new_tokens=4)]
    program = (
        "import json; from transformers import AutoModel; results = {}\n"
        f"for name in {list(FAMILIES)}:\n"
        "    model = AutoModel.from_pretrained(name, trust_remote_code=True)\n"
        "    results[name] = [type(model).__name__, model.infill('The cat', ' mat.', max_new_tokens=4)]\n"
        "    assert type(model).__module__.startswith('transformers_modules.'), 'the code of the checkpoint'\n"
        "print(json.dumps(results))"
    )
    assert json.loads(run_python(program, folder=tmp_path).splitlines()[-1]) == expected


def test_a_family_without_a_class_raises(tmp_path):
    PreTrainedConfig.from_dict({"model_type": "gpt2"}).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(ValueError, match=r"'gpt2'.*\['gemma3_text'"):
        AutoMagnetForCausalLM.from_pretrained(tmp_path)


def test_unknown_layer_types_raise():
    config = make_config("qwen3")
    config.layer_types = ["full_attention", "linear_attention", "full_attention"]
    with pytest.raises(ValueError, match=r"layers of \['linear_attention'\]"):
        layer_windows(config)


@pytest.mark.parametrize("model_type", WINDOWED)
@torch.no_grad()
def test_a_cache_without_positions_raises_with_sliding_windows(model_type):
    model = FAMILIES[model_type](make_config(model_type)).eval()
    ids, _ = make_batch(None)
    cache = model(ids, mode="causal", use_cache=True).past_key_values
    with pytest.raises(ValueError, match="sliding windows.*mode='bidirectional'"):
        model(ids[:, :1], past_key_values=cache, mode="bidirectional")
