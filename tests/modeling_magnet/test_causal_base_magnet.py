"""A base that says `use_bidirectional_attention`, as EmbeddingGemma does: each mode is what its name says."""

import json

import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassFieldValidationError
from transformers import AutoModelForCausalLM, Gemma3ForCausalLM, Gemma3TextConfig, LlamaConfig

from examples import adapt
from modeling_magnet import AutoMagnetForCausalLM, MagnetLlamaForCausalLM
from modeling_magnet.masking_magnet import layer_windows

from ..examples.tiny_run import tiny_options
from .test_families_magnet import make_config, write_decoder

IDS = torch.randint(3, 300, (2, 14), generator=torch.Generator().manual_seed(2))
TEXTS = ["The cat sat on the mat and the dog barked at it.", "dog"]
OPTIONS = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 2}


@pytest.fixture(params=[4, 8])
def encoder(request, tiny_tokenizer, tmp_path):
    """Write such a base, with the window of its file."""
    write_decoder(tmp_path / "base", "gemma3_text", tiny_tokenizer)
    edit(tmp_path / "base", use_bidirectional_attention=True, sliding_window=request.param)
    return tmp_path / "base"


def edit(folder, **values):
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def stock(folder, *, causal):
    """Load the stock class, as the file says or with the flag off."""
    encoder = Gemma3ForCausalLM.from_pretrained(folder).eval()
    if not causal:
        return encoder
    values = json.loads((folder / "config.json").read_text())
    decoder = Gemma3ForCausalLM(Gemma3TextConfig(**{**values, "use_bidirectional_attention": False})).eval()
    decoder.load_state_dict(encoder.state_dict())
    return decoder


@torch.no_grad()
def test_each_mode_is_the_stock_class_with_and_without_the_flag(encoder):
    ours = AutoMagnetForCausalLM.from_pretrained(encoder).eval()
    both_ways, to_the_left = stock(encoder, causal=False), stock(encoder, causal=True)
    assert torch.equal(ours(IDS, mode="causal").logits, to_the_left(IDS).logits)
    assert torch.equal(ours(IDS, mode="bidirectional").logits, both_ways(IDS).logits)
    assert torch.equal(ours(IDS).last_hidden_state, both_ways.model(IDS).last_hidden_state)  # opened as what it is
    no_span = ours(IDS, mode="infill", segment_ids=torch.zeros_like(IDS))
    assert torch.equal(no_span.logits, both_ways(IDS).logits)
    assert torch.equal(ours.generate(IDS, **OPTIONS), to_the_left.generate(IDS, **OPTIONS))


@torch.no_grad()
def test_a_saved_copy_is_the_same_model_and_a_causal_stock_decoder(encoder, tmp_path):
    ours = AutoMagnetForCausalLM.from_pretrained(encoder).eval()
    ours.encode(TEXTS)  # checks that causal mode is causal
    ours.save_pretrained(tmp_path / "ours")
    again = AutoMagnetForCausalLM.from_pretrained(tmp_path / "ours").eval()
    for mode in ("causal", "bidirectional"):
        assert torch.equal(again(IDS, mode=mode).logits, ours(IDS, mode=mode).logits)
    reader = AutoModelForCausalLM.from_pretrained(tmp_path / "ours").eval()
    assert torch.equal(reader.generate(IDS, **OPTIONS), stock(encoder, causal=True).generate(IDS, **OPTIONS))


@pytest.mark.parametrize("trust_remote_code", [False, True])
@torch.no_grad()
def test_sentence_transformers_reads_the_copy_with_the_window_of_encode(encoder, tmp_path, trust_remote_code):
    library = pytest.importorskip("sentence_transformers", reason="an optional extra: pip install .[eval]")
    ours = AutoMagnetForCausalLM.from_pretrained(encoder).eval()
    ours.save_pretrained(tmp_path / "ours")
    for turn in ("ours", "copy"):
        embedder = library.SentenceTransformer(str(tmp_path / turn), trust_remote_code=trust_remote_code, device="cpu")
        np.testing.assert_allclose(embedder.encode(TEXTS), ours.encode(TEXTS), atol=1e-5, rtol=1e-5)
        embedder.save(str(tmp_path / "copy"))
    if trust_remote_code:
        states = embedder[0].model(IDS, mode="causal").logits
        assert torch.equal(states, stock(encoder, causal=True)(IDS).logits)


@pytest.mark.parametrize("value", ["all", "vision", 1])
def test_a_flag_of_another_family_raises(encoder, value):
    edit(encoder, use_bidirectional_attention=value)
    with pytest.raises(StrictDataclassFieldValidationError, match="use_bidirectional_attention"):
        AutoMagnetForCausalLM.from_pretrained(encoder)


def test_a_stock_config_with_the_flag_has_the_window_of_its_masks():
    config = Gemma3TextConfig(sliding_window=64, use_bidirectional_attention=True)
    assert layer_windows(config)["sliding_attention"] == 32


@pytest.mark.parametrize(
    "stray", [{"sliding_window": 4}, {"attention_chunk_size": 3}, {"use_bidirectional_attention": True}]
)
@torch.no_grad()
def test_fields_that_the_stock_decoder_does_not_read_change_no_mode(stray):
    plain = MagnetLlamaForCausalLM(make_config("llama")).eval()
    model = MagnetLlamaForCausalLM(LlamaConfig(**{**make_config("llama").to_dict(), **stray})).eval()
    model.load_state_dict(plain.state_dict())
    for mode in ("causal", "bidirectional"):
        assert torch.equal(model(IDS, mode=mode).logits, plain(IDS, mode=mode).logits)


@pytest.mark.long
def test_such_a_base_is_adapted_to_the_end(encoder, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    adapt.main([*tiny_options(tmp_path, model=encoder), "--lora_r=2"])
    adapted = AutoMagnetForCausalLM.from_pretrained(tmp_path / "run")
    assert adapted.magnet_settings.bidirectional_window == adapted.config.sliding_window // 2
