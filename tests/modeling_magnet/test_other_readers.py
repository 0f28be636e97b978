"""Test tools without support for MAGNET on a checkpoint: lm-eval and PEFT.

The stock classes and sentence-transformers are tested in test_loading_matrix.
"""

import numpy as np
import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from peft import AutoPeftModelForCausalLM

from modeling_magnet import MagnetLlamaForCausalLM
from tests.adapters import add_lora

CONTINUATIONS = [("Once upon a time there was a little", " girl"), ("The cat sat on the", " mat.")]


def by_hand(model, context, continuation):
    """Return the log-probability of a continuation, token by token."""
    prefix = model.tokenizer(context).input_ids
    ids = prefix + model.tokenizer(continuation, add_special_tokens=False).input_ids
    with torch.no_grad():
        logprobs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    return sum(float(logprobs[place - 1, ids[place]]) for place in range(len(prefix), len(ids)))


@pytest.mark.parametrize("remote", [False, True], ids=["stock", "remote code"])
def test_lm_eval_gives_the_likelihoods_of_the_model(wiki_7m, tmp_path, remote):
    model = MagnetLlamaForCausalLM.from_pretrained(wiki_7m)
    model.save_pretrained(tmp_path / "saved")
    reader = HFLM(
        pretrained=str(tmp_path / "saved"), device="cpu", dtype="float32", batch_size=2, trust_remote_code=remote
    )
    assert type(reader.model).__module__.startswith("transformers_modules." if remote else "transformers.models.")
    requests = [Instance("loglikelihood", {}, pair, number) for number, pair in enumerate(CONTINUATIONS)]
    given = [loglikelihood for loglikelihood, _ in reader.loglikelihood(requests, disable_tqdm=True)]
    np.testing.assert_allclose(given, [by_hand(model, *pair) for pair in CONTINUATIONS], atol=1e-4)


def test_peft_alone_opens_an_adapter(checkpoint, tmp_path):
    model = add_lora(MagnetLlamaForCausalLM.from_pretrained(checkpoint))
    model.save_pretrained(tmp_path / "adapter")
    ids = torch.tensor([[1, 40, 41, 42]])
    with torch.no_grad():
        stock = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter").eval()
        assert torch.equal(stock(input_ids=ids).logits, model(ids).logits)
        ours = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter", trust_remote_code=True).eval()
        np.testing.assert_array_equal(ours.encode(["The cat."]), model.encode(["The cat."]))
