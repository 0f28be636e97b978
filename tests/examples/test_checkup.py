"""Test that each check of the doctor can fail."""

import numpy as np
import torch

import modeling_magnet.publishing.merging
from examples.checkup import findings, invariance, round_trip
from modeling_magnet import AutoMagnetForCausalLM, MagnetLlamaForCausalLM
from modeling_magnet.sources_magnet import ModelSource

from .doctor_runs import BOUND, edit_weights


class Careless:
    """Encode and infill with results that depend on the batch."""

    def __init__(self, dtype=torch.float32, error=2e-5):
        self.dtype, self.error = dtype, error

    def encode(self, texts, **_):
        if isinstance(texts, str):
            return np.array([1.0, self.error])
        return np.array([[1.0, 0.0]] * len(texts))

    def infill(self, prefix, suffix, **_):
        return "alone" if isinstance(prefix, str) else ["together"] * len(prefix)


def test_batch_dependence_is_found():
    (found,) = invariance.encode_findings(Careless())
    assert found.outcome == "fail" and "differ by 2.0e-05 (limit 1e-05)" in found.detail
    assert invariance.encode_findings(Careless(error=5e-6))[0].outcome == "pass"
    assert invariance.encode_findings(Careless(torch.bfloat16, error=0.02))[0].outcome == "pass"
    assert invariance.encode_findings(Careless(torch.bfloat16, error=0.1))[0].outcome == "fail"
    (found,) = invariance.infill_findings(Careless())
    assert found.outcome == "fail" and "'alone' and 'together'" in found.detail


def test_lossy_save_is_found(doctor_models, tmp_path, monkeypatch):
    model = AutoMagnetForCausalLM.from_pretrained(doctor_models["llama"] / "saved").eval()
    save = model.save_pretrained

    def round_one(weights):
        name = "model.layers.1.self_attn.q_proj.weight"
        weights[name] = weights[name].bfloat16().float()

    def lossy(folder, **kwargs):
        save(folder, **kwargs)
        edit_weights(folder, round_one)

    monkeypatch.setattr(model, "save_pretrained", lossy)
    failed = {row.name for row in round_trip.round_trip_findings(model, tmp_path) if row.outcome == "fail"}
    assert failed == {"saved and loaded", "stock class"}


def test_wrong_merge_is_found(doctor_models, tmp_path, monkeypatch):
    model = AutoMagnetForCausalLM.from_pretrained(doctor_models["llama"] / "bound").eval()
    assert round_trip.merge_findings(model, tmp_path / "first")[0].outcome == "pass"
    merged = modeling_magnet.publishing.merging.merged_weights

    def forgetful(model):
        base = MagnetLlamaForCausalLM.from_pretrained(doctor_models["llama"] / "saved").state_dict()
        return {**merged(model), "model.layers.2.mlp.down_proj.weight": base["model.layers.2.mlp.down_proj.weight"]}

    monkeypatch.setattr(modeling_magnet.publishing.merging, "merged_weights", forgetful)
    (found,) = round_trip.merge_findings(model, tmp_path / "second")
    assert found.outcome == "fail" and "(limit 0.001)" in found.detail
    assert model.config.magnet["adapter_modes"] == BOUND


def test_bound_adapter_that_changes_the_base_is_found(doctor_models, saved):
    def move(weights):
        weights["model.norm.weight"] += 1e-6

    model = AutoMagnetForCausalLM.from_pretrained(doctor_models["llama"] / "bound").eval()
    assert round_trip.adapter_mode_findings(model, ModelSource(str(saved), {}))[0].outcome == "pass"
    edit_weights(saved, move)
    assert round_trip.adapter_mode_findings(model, ModelSource(str(saved), {}))[0].outcome == "fail"


def test_failing_check_becomes_a_failed_row_after_earlier_findings():
    def check():
        yield findings.judged("first", True, "fine")
        raise RuntimeError("a log\n" + "of many words " * 100)

    first, second = findings.examine("the check", check)
    assert (first.name, first.outcome) == ("first", "pass")
    assert (second.name, second.outcome) == ("the check", "fail")
    assert second.detail.startswith("RuntimeError: a log of many words") and len(second.detail) < 450
