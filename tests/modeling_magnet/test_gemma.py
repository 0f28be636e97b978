"""Test the real Gemma 3 270M with texts longer than its window of 512 and its vocabulary of 262,144."""

import copy
import json

import pytest
import torch

from modeling_magnet import AutoMagnetForCausalLM

pytestmark = pytest.mark.long

WINDOW = 512
FACT = "The capital of France is Paris, a city on the Seine. "
# Longer than the window, so that a layer with one and a layer without one differ.
FRONT = FACT * 45
BEHIND = " is a city on the Seine." + " It has bridges, museums and a tower." * 8


def sees(length, *, is_span, positions, order, window):
    """Return which tokens attend to which, by a loop: context to all context, the span to context and its past."""
    mask = torch.zeros(length, length, dtype=torch.bool)
    for query in range(length):
        for key in range(length):
            near = window is None or abs(positions[query] - positions[key]) <= window
            of_context = not is_span[key]
            past = is_span[query] and is_span[key] and order[key] <= order[query]
            mask[query, key] = near and (of_context or past)
    return mask


def read_with_masks(model, ids, *, keep, **masks):
    """Return the logits `(num_kept, V)` of the stock layers under explicit masks, without a cache."""
    with torch.no_grad():
        full = {kind: mask[None, None] for kind, mask in masks.items()}
        states = model.base_model(input_ids=torch.tensor([ids]), attention_mask=full, use_cache=False)
        return model.lm_head(states.last_hidden_state[0, list(keep)])


def test_it_loads_as_a_plain_model(gemma):
    assert gemma.config._name_or_path == "google/gemma-3-270m" and not hasattr(gemma.config, "quantization_config")
    assert (gemma.magnet_settings.mask_token, len(gemma.tokenizer)) == ("<mask>", 262_144)
    assert gemma.config.sliding_window == WINDOW and gemma.dtype == torch.float32
    assert gemma._weights_source.gguf() is None, "it was converted"
    inputs = gemma.tokenizer("Paris is the capital of", return_tensors="pt")
    output = gemma.generate(**inputs, max_new_tokens=1, do_sample=False)
    assert gemma.tokenizer.decode(output[0, -1]) == " France"


@torch.no_grad()
def test_causal_decoding_with_a_cache_is_one_forward_under_an_explicit_mask(gemma):
    ids = gemma.tokenizer(FRONT)["input_ids"][:560]
    past = torch.arange(len(ids))[:, None] - torch.arange(len(ids))[None]
    masks = {"full_attention": past >= 0, "sliding_attention": (past >= 0) & (past < WINDOW)}
    expected = read_with_masks(gemma, ids, keep=[557, 558, 559], **masks)
    first = gemma(torch.tensor([ids[:-2]]), use_cache=True, logits_to_keep=1)
    second = gemma(torch.tensor([ids[-2:]]), past_key_values=first.past_key_values)
    assert torch.allclose(first.logits[0, -1], expected[0], atol=2e-3)
    assert torch.allclose(second.logits[0], expected[1:], atol=2e-3)


@torch.no_grad()
def test_bidirectional_states_are_those_of_an_explicit_mask(gemma):
    ids = gemma.tokenizer(FRONT)["input_ids"][:560]
    apart = (torch.arange(len(ids))[:, None] - torch.arange(len(ids))[None]).abs()
    keep = [0, 300, 559]
    expected = read_with_masks(gemma, ids, keep=keep, full_attention=apart >= 0, sliding_attention=apart <= WINDOW)
    output = gemma(torch.tensor([ids]), mode="bidirectional", logits_to_keep=torch.tensor(keep))
    assert torch.allclose(output.logits[0], expected, atol=2e-3)


@torch.no_grad()
def test_an_infill_beyond_the_window_is_one_forward_under_an_explicit_mask(gemma):
    output = gemma.infill(
        FRONT + "And", BEHIND, max_new_tokens=3, do_sample=False, heal=None, return_dict_in_generate=True
    )
    fill = output.fills[0][0][0]
    front = gemma.tokenizer(FRONT + "And")["input_ids"]
    behind = gemma.tokenizer(BEHIND, add_special_tokens=False)["input_ids"]
    ids = [*front, *fill.token_ids, *behind]
    assert len(front) > WINDOW
    span = range(len(front), len(front) + len(fill.token_ids))
    is_span = [place in span for place in range(len(ids))]
    place = list(range(len(ids)))
    masks = {
        kind: sees(len(ids), is_span=is_span, positions=place, order=place, window=window)
        for kind, window in (("full_attention", None), ("sliding_attention", WINDOW))
    }
    logits = read_with_masks(gemma, ids, keep=range(span.start - 1, span.stop - 1), **masks)
    logprobs = torch.log_softmax(logits, -1)
    expected = [logprobs[step, token].item() for step, token in enumerate(fill.token_ids)]
    assert fill.logprobs == pytest.approx(expected, abs=2e-3)


def test_it_saves_and_loads_and_embeds_as_sentence_transformers_does(gemma, tmp_path):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    gemma.save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    assert "quantization_config" not in values and values["dtype"] == "float32"
    ids = torch.tensor([gemma.tokenizer(FACT)["input_ids"]])
    again = AutoMagnetForCausalLM.from_pretrained(tmp_path)
    with torch.no_grad():
        for mode in ("causal", "bidirectional"):
            assert torch.equal(again(ids, mode=mode).logits, gemma(ids, mode=mode).logits)
    del again
    texts = [FACT, "A cat."]
    theirs = torch.tensor(sentence_transformers.SentenceTransformer(str(tmp_path), device="cpu").encode(texts))
    ours = torch.tensor(gemma.encode(texts))
    assert torch.cosine_similarity(ours, theirs).min() > 1 - 1e-5
    assert "license: gemma" in (tmp_path / "README.md").read_text()


def test_in_bfloat16_an_embedding_does_not_depend_on_the_batch(gemma):
    model = copy.deepcopy(gemma).to(torch.bfloat16)
    texts = ["A cat.", "Hi", FACT, FACT * 3 + "It rains.", "It has bridges, museums and a tower. " * 12, FRONT[:2400]]
    together = model.encode(texts, convert_to_tensor=True, normalize_embeddings=True, prompt="")
    for text, vector in zip(texts, together, strict=True):
        alone = model.encode(text, convert_to_tensor=True, normalize_embeddings=True, prompt="")
        assert float(alone @ vector) > 0.9999
