"""In causal mode the model is a stock Llama, bit for bit, on real weights."""

import pytest
import torch
from transformers import AutoConfig, AutoTokenizer, LlamaForCausalLM

from modeling_magnet import MagnetLlamaForCausalLM

PROMPTS = ["Once upon a time, there was", "The history of the city begins in the early years of", "A"]


@pytest.fixture(scope="module", params=["sdpa", "eager"])
def twins(real_llama, request):
    """Load the same weights in our class and in the stock one."""
    arguments = {"attn_implementation": request.param}
    ours = MagnetLlamaForCausalLM.from_pretrained(real_llama, **arguments)
    return ours, LlamaForCausalLM.from_pretrained(real_llama, **arguments)


def batch_of(tokenizer, *, padding_side):
    """Return the prompts as one padded batch, or the longest alone."""
    tokenizer.pad_token = tokenizer.eos_token
    texts = PROMPTS[1:2] if padding_side is None else PROMPTS
    return tokenizer(texts, return_tensors="pt", padding=True, padding_side=padding_side or "right").data


@pytest.mark.parametrize("padding_side", [None, "left", "right"])
@torch.no_grad()
def test_logits_loss_and_states_are_bit_identical(twins, padding_side):
    ours, stock = twins
    batch = batch_of(ours.tokenizer, padding_side=padding_side)
    arguments = {**batch, "labels": batch["input_ids"], "output_hidden_states": True}
    expected = stock(**arguments)
    for mode in ({}, {"mode": "causal"}):
        output = ours(**arguments, **mode)
        assert torch.equal(output.logits, expected.logits)
        assert torch.equal(output.loss, expected.loss)
        assert all(map(torch.equal, output.hidden_states, expected.hidden_states))
        assert torch.equal(output.last_hidden_state, expected.hidden_states[-1])


@torch.no_grad()
def test_the_tuple_form_begins_as_the_parents(twins):
    ours, stock = twins
    batch = batch_of(ours.tokenizer, padding_side="left")
    output = ours(**batch, labels=batch["input_ids"], return_dict=False)
    expected = stock(**batch, labels=batch["input_ids"], return_dict=False)
    assert torch.equal(output[0], expected[0]) and torch.equal(output[1], expected[1])
    assert type(output[2]) is type(expected[2])
    assert output[3].shape == (*batch["input_ids"].shape, ours.config.hidden_size)


@torch.no_grad()
def test_cached_steps_are_bit_identical(twins):
    ours, stock = twins
    batch = batch_of(ours.tokenizer, padding_side="left")
    steps = []
    for model in (ours, stock):
        first = model(batch["input_ids"][:, :4], attention_mask=batch["attention_mask"][:, :4], use_cache=True)
        steps.append(
            model(
                batch["input_ids"][:, 4:],
                attention_mask=batch["attention_mask"],
                past_key_values=first.past_key_values,
                logits_to_keep=2,
            ).logits
        )
    assert steps[0].shape[1] == 2
    assert torch.equal(*steps)


@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("padding_side", [None, "left"])
def test_greedy_generation_is_identical(twins, padding_side, use_cache):
    ours, stock = twins
    batch = batch_of(ours.tokenizer, padding_side=padding_side)
    arguments = {"max_new_tokens": 24, "do_sample": False, "use_cache": use_cache, "pad_token_id": 2}
    arguments |= {"output_scores": True, "return_dict_in_generate": True}
    output, expected = (model.generate(**batch, **arguments) for model in (ours, stock))
    assert torch.equal(output.sequences, expected.sequences)
    assert all(map(torch.equal, output.scores, expected.scores))


def test_a_model_opened_as_an_encoder_still_generates_causally(real_llama):
    config = AutoConfig.from_pretrained(real_llama)
    config.is_causal = False
    encoder = MagnetLlamaForCausalLM.from_pretrained(real_llama, config=config)
    stock = LlamaForCausalLM.from_pretrained(real_llama)
    batch = batch_of(AutoTokenizer.from_pretrained(real_llama), padding_side="left")
    arguments = {"max_new_tokens": 16, "do_sample": False, "pad_token_id": 2}
    assert torch.equal(encoder.generate(**batch, **arguments), stock.generate(**batch, **arguments))
    with torch.no_grad():
        assert encoder(**batch).logits is None, "an encoder's forward spends nothing on logits"
        states = encoder(**batch).last_hidden_state
        assert torch.equal(states, encoder(**batch, mode="bidirectional").last_hidden_state)
        # An explicit mode is that mode, whatever the config says.
        assert torch.equal(encoder(**batch, mode="causal").logits, stock(**batch).logits)
