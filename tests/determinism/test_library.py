"""Repeat calls in one process after other calls, and check that the caller's random state does not change."""

import json
import random
from unittest import mock

import numpy as np
import pytest
import torch

from modeling_magnet import AutoMagnetForCausalLM
from trainer import LoraArguments, apply_lora

from .. import golden
from ..trainer.tiny import tiny_args, tiny_model, tiny_pairs, tiny_rows, tiny_trainer


def states():
    """Return the states of the global generators."""
    kind, keys, place, *rest = np.random.get_state()
    return torch.get_rng_state().tolist(), random.getstate(), (kind, keys.tolist(), place, *rest)


def test_same_seed_gives_same_result_twice_in_a_process():
    found = []
    for _ in range(2):
        values = [*golden.infill_values(golden.tiny_model("llama")), *golden.training_values("llama", lora=True)]
        found.append({name: golden.digest(value) for name, value in values})
        torch.manual_seed(1)
        random.seed(1)
        torch.rand(3)
    assert found[0] == found[1] and len(found[0]) > 9


CALLS = {
    "encode": lambda model, folder: model.encode(["The cat sat.", "She ate."]),
    "encode_words": lambda model, folder: model.encode_words("The cat sat."),
    "encode_tokens": lambda model, folder: model.encode_tokens("The cat sat."),
    "infill": lambda model, folder: model.infill("The cat", " sat.", max_new_tokens=3, num_return_sequences=2),
    "infill_blanks": lambda model, folder: model.infill_blanks("The [blank] sat.", num_tokens="auto"),
    "rewrite": lambda model, folder: model.rewrite("The cat sat.", 4, 7),
    "score_infill": lambda model, folder: model.score_infill("The", [" cat", " dog"], " sat."),
    "save_pretrained": lambda model, folder: model.save_pretrained(folder / "saved"),
    "from_pretrained": lambda model, folder: AutoMagnetForCausalLM.from_pretrained(folder / "saved"),
}


@pytest.mark.parametrize("name", CALLS)
def test_deterministic_calls_do_not_touch_global_generators(tiny_model, tmp_path, name):
    tiny_model.save_pretrained(tmp_path / "saved")
    before = states()
    CALLS[name](tiny_model, tmp_path)
    assert states() == before


def test_sampling_draws_one_number_per_span_from_the_global_generator(tiny_model):
    texts = ["The [blank] sat on [blank].", "She [blank]."]
    after = []
    for calls in ([texts], [[text] for text in texts]):
        torch.manual_seed(3)
        fills = [fill for call in calls for fill in tiny_model.infill_blanks(call, max_new_tokens=3, do_sample=True)]
        after.append((fills, torch.get_rng_state().tolist()))
    assert after[0] == after[1]
    torch.manual_seed(3)
    torch.randint(2**62, (3,))
    assert torch.get_rng_state().tolist() == after[0][1]


def test_adapter_config_in_a_checkpoint_lists_layers_in_order(tmp_path):
    model = apply_lora(tiny_model(), LoraArguments(lora_r=2))
    names = model.peft_config["default"].target_modules
    trainer = tiny_trainer(tiny_args(tmp_path), model=model)
    trainer.save_model(str(tmp_path / "saved"))
    config = type(model.peft_config["default"]).from_pretrained(str(tmp_path / "saved"))
    written = json.loads((tmp_path / "saved" / "adapter_config.json").read_text())["target_modules"]
    assert written == sorted(names) and len(written) == 14
    assert model.peft_config["default"].target_modules is names, "the model's own stays a set"
    assert config.target_modules == names


@mock.patch.dict("os.environ")
def test_full_determinism_supports_training_encoding_and_infilling(tmp_path, tiny_model):
    losses = []
    more = {"contrastive_mini_batch_tokens": 60, "contrastive_recompute": True, "bf16": True}
    for full in (False, True):
        args = tiny_args(tmp_path, full_determinism=full, loss_phases=["1:1,0,1", "1:1,9,1"], **more)
        trainer = tiny_trainer(args, eval_dataset=tiny_rows(5, seed=3), eval_pair_dataset=tiny_pairs(8))
        assert torch.are_deterministic_algorithms_enabled() is full
        trainer.train()
        losses.append([log.get("loss") for log in trainer.state.log_history] + [trainer.evaluate()["eval_loss"]])
    assert losses[0] == losses[1], "on a CPU it changes nothing"
    try:
        for call in CALLS.values():
            call(tiny_model, tmp_path)
        assert tiny_model.infill("The cat", " sat.", max_new_tokens=3, do_sample=True)
    finally:
        torch.use_deterministic_algorithms(False)
