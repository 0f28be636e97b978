"""Test that broken files and masks fail in the corresponding row."""

import json

import pytest
import torch
from transformers import AutoTokenizer

import modeling_magnet.masking_magnet
from examples.checkup import leaks
from modeling_magnet import AutoMagnetForCausalLM, MagnetLlamaForCausalLM
from modeling_magnet.attention_magnet import DEFAULT_ATTENTION

from .doctor_runs import edit_json, edit_weights, names_of, rows_of

pytest.importorskip("sentence_transformers", reason="an optional extra: pip install .[eval]")


# ---- Files that are broken ----


def edit_code(folder):
    with (folder / "masking_magnet.py").open("a") as file:
        file.write("# changed\n")
    (folder / "old_magnet.py").write_text("")
    (folder / "words_magnet.py").unlink()


def enlarge_tokenizer(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["one more", "and more"])
    tokenizer.save_pretrained(folder)


def add_nan(weights):
    weights["model.layers.0.mlp.up_proj.weight"][0, 0] = float("nan")


def add_tensor(weights):
    weights["model.layers.7.mlp.up_proj.weight"] = torch.zeros(2)


def remove_tokenizer(folder):
    for file in folder.glob("tokenizer*"):
        file.unlink()


NEED_TOKENIZER = {"tokenizer", "encode, batch invariance", "infill, batch invariance", "sentence-transformers"}


def config_edit(**changes):
    return lambda folder: edit_json(folder / "config.json", **changes)


def settings_edit(**changes):
    def edit(folder):
        settings = json.loads((folder / "config.json").read_text())["magnet"]
        edit_json(folder / "config.json", magnet={**settings, **changes})

    return edit


def remove_prompts(folder):
    (folder / "config_sentence_transformers.json").unlink()


def change_pooling(folder):
    edit_json(folder / "1_Pooling" / "config.json", pooling_mode="mean")


CODE, ST = "remote code", "sentence-transformers"
CHANGED_CODE = "different: masking_magnet.py; missing: words_magnet.py; extra: old_magnet.py. Save the model anew"
OTHER_MAP = "auto_map is {'AutoModel': 'x.Y'} instead of {'AutoModel': 'modeling_magnet.MagnetLlamaForCausalLM'"
NO_ID = "its id is not one of the 300 that the model embeds"


@pytest.mark.parametrize(
    "breaking, row, others, detail",
    [
        (edit_code, CODE, (), CHANGED_CODE),
        (config_edit(is_causal=None), "config.json", {ST}, "is_causal is missing (True)"),
        (config_edit(auto_map={"AutoModel": "x.Y"}), "config.json", (), OTHER_MAP),
        (settings_edit(mask_token_id=70), "mask token", (), "the tokenizer has "),
        (settings_edit(mask_token_id=300), "mask token", (), NO_ID),
        (settings_edit(mask_token="</s>", mask_token_id=2), "mask token", (), "it is the unknown, BOS or EOS token"),
        (change_pooling, "sidecars", {ST}, "different: 1_Pooling/config.json"),
        (remove_prompts, "sidecars", {ST}, "missing: config_sentence_transformers.json"),
        (enlarge_tokenizer, "tokenizer", NEED_TOKENIZER, "302 tokens of 300 that the model embeds"),
        (remove_tokenizer, "tokenizer", {*NEED_TOKENIZER, "sidecars", "saved and loaded"}, "none at "),
        (lambda folder: edit_weights(folder, add_tensor), "weights fit the class", (), "0 missing, 1 unexpected; "),
    ],
)
def test_broken_files_fail_only_their_row(saved, tmp_path, capsys, breaking, row, others, detail):
    breaking(saved)
    code, rows = rows_of(tmp_path, saved, "--backends", "sdpa")
    failed = {row, *others}
    assert (code, names_of(rows, "fail")) == (1, failed)
    assert detail in rows[row]["detail"]
    printed = capsys.readouterr()
    assert printed.err == ""
    *table, last = printed.out.splitlines()
    assert {line[6:42].strip() for line in table if line.startswith("FAIL ")} == failed
    assert last.startswith(f"doctor: {len(failed)} FAILED (")


def test_non_finite_weights_fail_without_stopping_the_run(saved, tmp_path):
    edit_weights(saved, add_nan)
    code, rows = rows_of(tmp_path, saved, "--backends", "sdpa")
    assert code == 1 and len(rows) == 19
    assert rows["weights are numbers"]["detail"] == (
        "1 tensors with NaN or infinity, such as model.layers.0.mlp.up_proj.weight"
    )
    assert "states of causal mode are not finite numbers" in rows["leaks, causal, sdpa"]["detail"]
    assert rows["sidecars"]["outcome"] == "pass"


# ---- Masks that are broken ----


class Changed(MagnetLlamaForCausalLM):
    """Represent a class whose mask differs in one mode."""

    @staticmethod
    def change(mode, arguments):
        """Return the arguments that replace those of the library's method; `None` for no mask."""
        return arguments

    def _prepare_4d_causal_attention_mask(self, attention_mask, *args, mode="causal", **kwargs):
        asked = self.change(mode, {"attention_mask": attention_mask, "mode": mode, **kwargs})
        return (
            None
            if asked is None
            else super()._prepare_4d_causal_attention_mask(asked.pop("attention_mask"), *args, **asked)
        )


def no_mask_in_bidirectional_mode(mode, arguments):
    return None if mode == "bidirectional" else arguments


def spans_are_context(mode, arguments):
    segments = arguments.get("segment_ids")
    return arguments if segments is None else {**arguments, "segment_ids": torch.zeros_like(segments)}


def spans_are_one(mode, arguments):
    segments = arguments.get("segment_ids")
    return arguments if segments is None else {**arguments, "segment_ids": segments.clamp(max=1)}


def padding_is_seen(mode, arguments):
    return {**arguments, "attention_mask": None} if mode == "infill" else arguments


@pytest.mark.parametrize("backend", ["eager", "sdpa"])
@pytest.mark.parametrize(
    "change, row, detail",
    [
        (no_mask_in_bidirectional_mode, "leaks, bidirectional", "token 23 does not move positions 0-22, which must"),
        (spans_are_context, "leaks, infill", "token 7 moves positions 0-6, 10-23, which must not see it, by"),
        (spans_are_one, "leaks, infill", "token 7 moves positions 15-17, which must not see it, by"),
        (padding_is_seen, "padding", "other ids in them move real states by"),
    ],
)
def test_broken_mask_is_found(doctor_models, monkeypatch, backend, change, row, detail):
    monkeypatch.setattr(Changed, "change", staticmethod(change))
    model = Changed.from_pretrained(doctor_models["llama"] / "plain").eval()
    rows = [*(leaks.leak_findings(model, mode, backend)[0] for mode in ("causal", "bidirectional", "infill"))]
    rows += leaks.padding_findings(model, backend)
    failed = {finding.name: finding.detail for finding in rows if finding.outcome == "fail"}
    assert detail in failed[f"{row}, {backend}"]
    if change is not no_mask_in_bidirectional_mode:  # which also omits the padding
        assert set(failed) == {f"{row}, {backend}"}
    assert model.config._attn_implementation == DEFAULT_ATTENTION


def test_expected_reach_includes_attention_windows(doctor_models, monkeypatch):
    model = AutoMagnetForCausalLM.from_pretrained(doctor_models["mistral"] / "plain").eval()
    assert leaks.leak_findings(model, "bidirectional", "sdpa")[0].outcome == "pass"
    monkeypatch.setattr(modeling_magnet.masking_magnet, "layer_windows", lambda config: {"": None})
    (found,) = leaks.leak_findings(model, "bidirectional", "sdpa")
    # Three layers with the same window reach 12 positions.
    assert "token 1 moves positions 14-23, which must not see it" in found.detail
