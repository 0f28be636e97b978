"""Which tokens are special, and that no fill has one."""

import copy

import pytest
import torch
from transformers.generation.logits_process import LogitsProcessorList

from modeling_magnet.tokenization_magnet import special_ids
from tests.space_run_tokenizer import NAMED, RESERVED


def test_every_added_token_that_is_flagged_is_special(space_run_model):
    tokenizer = space_run_model.tokenizer
    assert special_ids(tokenizer) == set(tokenizer.convert_tokens_to_ids([*NAMED, *RESERVED]))
    assert len(tokenizer.all_special_ids) == len(NAMED), "transformers names only these"


def test_a_token_that_is_added_later_counts(tiny_tokenizer):
    tokenizer = copy.deepcopy(tiny_tokenizer)
    before = special_ids(tokenizer)
    tokenizer.add_tokens(["<later>"], special_tokens=True)
    tokenizer.add_tokens(["plainly"])
    assert special_ids(tokenizer) == before | {tokenizer.convert_tokens_to_ids("<later>")}
    assert special_ids(tiny_tokenizer) == before


@pytest.mark.parametrize("options", [{}, {"do_sample": True}, {"num_return_sequences": 4}, {"heal": "token"}])
def test_a_processor_cannot_lift_a_special_token_into_a_fill(space_run_model, options):
    special = sorted(special_ids(space_run_model.tokenizer))

    def lift(input_ids, scores):
        scores = scores.clone()
        scores[:, special] += 100.0
        return scores

    output = space_run_model.infill(
        "She ate", " for lunch.", max_new_tokens=3, logits_processor=LogitsProcessorList([lift]),
        return_dict_in_generate=True, **options
    )  # fmt: skip
    for fill in output.fills[0][0]:
        assert not {*fill.token_ids} & {*special}


def test_rows_of_the_matrix_without_a_token_are_no_answer(space_run_model):
    size = len(space_run_model.tokenizer)
    space_run_model.resize_token_embeddings(size + 8)

    def lift(module, inputs, output):
        return torch.cat([output[..., :size], output[..., size:] + 100.0], dim=-1)

    space_run_model.lm_head.register_forward_hook(lift)
    output = space_run_model.infill("She ate", " lunch.", max_new_tokens=4, return_dict_in_generate=True)
    assert max(output.fills[0][0][0].token_ids) < size
