"""Test that memory of logits and masks stays bounded with a large vocabulary."""

import copy
from types import SimpleNamespace

import pytest
import torch
from transformers import LlamaConfig

from modeling_magnet import MagnetLlamaForCausalLM, sampling_magnet
from modeling_magnet.families_magnet import MagnetGemma3ForCausalLM
from modeling_magnet.masking_magnet import StepMasks, attention_pattern, layer_masks, limit_to_window
from tests.modeling_magnet.test_families_magnet import make_config

from ..peak_bytes import MIB, PeakBytes

V = 2**15  # a row of scores takes an eighth of a MiB in float32


@pytest.fixture(scope="module")
def wide(tiny_config, tiny_tokenizer):
    torch.manual_seed(0)
    config = LlamaConfig(**{**tiny_config.to_dict(), "vocab_size": V, "num_hidden_layers": 1, "hidden_size": 8})
    model = MagnetLlamaForCausalLM(config).eval()
    model.tokenizer = copy.deepcopy(tiny_tokenizer)
    return model


def peak(call):
    """Return the peak memory in MiB of the tensors that a call creates."""
    with PeakBytes() as counted:
        call()
    return counted.most / MIB


def test_scores_of_fills_take_the_memory_of_a_chunk(wide):
    fill, rows = " the old dog ran" * 12, 12
    labels = rows * len(wide.score_infill("a", [fill], " cat")[0].token_ids)
    assert labels * V * 4 / MIB > 150, "logits of all labels in float32"
    held = peak(lambda: wide.score_infill(["a"] * rows, [[fill]] * rows, [" cat"] * rows))
    assert held < 60, "logits and their logarithms for 128 positions at a time"


def test_the_trial_of_lengths_takes_the_memory_of_a_chunk(wide):
    texts = ["the old dog [blank] and a cat sat on the old dog"] * 90
    held = peak(lambda: wide.infill_blanks(texts, num_tokens=[1, 2], do_sample=False, batch_size=180))
    assert held < 80, "180 trials, with 8 labels behind each: 180 MiB of logits"


@pytest.mark.parametrize("knobs", [{}, {"top_p": 0.9}, {"top_k": 0, "top_p": 0.5}, {"top_k": 0}])
def test_samples_take_one_copy_of_a_bounded_number_of_spans(wide, knobs, monkeypatch):
    monkeypatch.setattr(sampling_magnet, "_CPU_SCORES", 16 * V)
    monkeypatch.setattr(sampling_magnet, "_CPU_DRAWN", 2 * V)
    texts = ["the old dog [blank] and a cat"] * 8
    options = {"do_sample": True, "num_return_sequences": 10, "max_new_tokens": 1, **knobs}
    held = peak(lambda: wide.infill_blanks(texts, **options))
    assert held < 8.5, "logits and scores of 16 of the 80 spans take 4 MiB, draws of two at a time 3; of all spans 20"


@pytest.mark.parametrize("do_sample", [False, True])
@pytest.mark.parametrize(
    "options", [{"num_return_sequences": 3}, {"repetition_penalty": 1.2}, {"heal": "token"}, {"top_p": 0.8}]
)
def test_groups_of_spans_are_chosen_for_as_all_at_once(tiny_model, options, do_sample, monkeypatch):
    texts = ["the old dog [blank] and a cat [blank] sat", "a [blank] dog ran"] * 3
    options = {"max_new_tokens": 4, "do_sample": do_sample, "return_dict_in_generate": True, **options}
    torch.manual_seed(0)
    expected = tiny_model.infill_blanks(texts, **options)
    monkeypatch.setattr(sampling_magnet, "_CPU_SCORES", 2 * tiny_model.config.vocab_size)
    torch.manual_seed(0)
    found = tiny_model.infill_blanks(texts, **options)
    for own, other in zip(found.fills, expected.fills, strict=True):
        for answers, others in zip(own, other, strict=True):
            assert [fill.token_ids for fill in answers] == [fill.token_ids for fill in others]
            for fill, reference in zip(answers, others, strict=True):
                assert fill.logprobs == pytest.approx(reference.logprobs, abs=1e-4)


@pytest.mark.parametrize(("implementation", "dtype"), [("sdpa", torch.float32), ("eager", torch.float32),
                                                       ("eager", torch.bfloat16)])  # fmt: skip
def test_masks_take_at_most_twice_their_own_bytes(implementation, dtype):
    segments = torch.zeros(4, 700, dtype=torch.long)
    segments[:, 300:350] = 1
    positions = torch.arange(700).repeat(4, 1)

    def make():
        return layer_masks(
            SimpleNamespace(_attn_implementation=implementation),
            attention_pattern(segments, query_length=700, attention_mask=torch.ones(4, 700)),
            windows={"full_attention": None, "sliding_attention": 100},
            query_positions=positions,
            key_positions=positions,
            dtype=dtype,
        )

    own = sum(mask.nbytes for mask in make().values())
    assert peak(make) * MIB <= 2 * own


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_windows_are_those_of_the_distances(dtype):
    generator = torch.Generator().manual_seed(0)
    queries, keys = (torch.randint(0, 40, (3, size), generator=generator, dtype=dtype) for size in (7, 11))
    allowed = torch.rand(3, 1, 7, 11, generator=generator) < 0.8
    for window in (1, 5, 100):
        near = (queries[:, :, None] - keys[:, None, :]).abs() <= window
        for rows in (slice(None), slice(0, 1)):  # positions of each row, or the same for all
            found = limit_to_window(allowed, query_positions=queries[rows], key_positions=keys[rows], window=window)
            assert torch.equal(found, allowed & near[rows][:, None])


@pytest.mark.parametrize(("window", "renderings"), [(4, 4), (200, 1)])
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_windows_that_reach_all_are_rendered_once(tiny_tokenizer, window, renderings, implementation, monkeypatch):
    config = make_config("gemma3_text")
    config.sliding_window = window
    torch.manual_seed(0)
    model = MagnetGemma3ForCausalLM(config).eval()
    model.set_attn_implementation(implementation)
    model.tokenizer = tiny_tokenizer
    rendered, render = [], StepMasks._render

    def record(masks, *args):
        rendered.append(masks.windows)
        return render(masks, *args)

    monkeypatch.setattr(StepMasks, "_render", record)
    model.infill_blanks("the old dog ran [blank] and the cat sat", max_new_tokens=5)
    assert len(rendered) == renderings, "the first of five tokens comes from the context"
    assert (max(filter(None, rendered[0].values()), default=None) == window) == (renderings > 1)
