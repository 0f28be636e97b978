"""Test that the doctor passes sound models of every kind and family, and reports those it cannot open."""

import pytest

from examples import doctor
from examples.checkup import round_trip

from ..scripts import run_script
from .doctor_runs import FAMILY_NAMES, names_of, rows_of

pytest.importorskip("sentence_transformers", reason="an optional extra: pip install .[eval]")

KINDS = ("plain", "saved", "adapter", "bound", "adapter over plain")
FILE_ROWS = {"remote code", "config.json", "sidecars", "sentence-transformers"}
NUM_ROWS = 23
MERGED, CAUSAL_IS_BASE = round_trip.MERGED, round_trip.BOUND
# Exactly these rows say "not applicable".
SKIPPED = {
    "plain": {MERGED, CAUSAL_IS_BASE, *FILE_ROWS},
    "saved": {MERGED, CAUSAL_IS_BASE},
    "adapter": {CAUSAL_IS_BASE, "remote code", "config.json"},
    "bound": {"stock class", "remote code", "config.json"},
    "adapter over plain": {CAUSAL_IS_BASE, "remote code", "config.json", "sentence-transformers"},
}


# ---- What is sound ----


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_sound_models_pass_every_applicable_row(doctor_models, tmp_path, capsys, family, kind):
    code, rows = rows_of(tmp_path, doctor_models[family] / kind)
    skipped = SKIPPED[kind]
    assert names_of(rows, "fail") == set()
    assert code == 0
    assert names_of(rows, "not applicable") == skipped
    assert len(rows) == NUM_ROWS
    printed = capsys.readouterr()
    assert printed.err == ""
    *table, last = printed.out.splitlines()
    assert [line[6:42].strip() for line in table] == list(rows)
    summary = f"({doctor_models[family] / kind}; {NUM_ROWS - len(skipped)} passed, {len(skipped)} not applicable; "
    assert last.startswith(f"doctor: OK {summary}")


@pytest.mark.parametrize("kind", ["saved", "bound"])
def test_remote_code_is_checked_instead_of_the_package(doctor_models, tmp_path, kind):
    code, rows = rows_of(tmp_path, doctor_models["mistral"] / kind, "--trust_remote_code", "--backends", "sdpa")
    assert (code, names_of(rows, "fail")) == (0, set())
    assert "as MagnetMistralForCausalLM of remote code" in rows["opens"]["detail"]
    assert "leaks, infill, sdpa" in rows and "leaks, infill, eager" not in rows


def test_real_model_passes(wiki_7m, tmp_path):
    code, rows = rows_of(tmp_path, wiki_7m)
    assert (code, names_of(rows, "fail")) == (0, set())


# ---- What cannot be opened, or asked ----


def cut_weights(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def break_code(folder):
    (folder / "modeling_magnet.py").write_text("def half(")


@pytest.mark.parametrize(("breaking", "options"), [(cut_weights, []), (break_code, ["--trust_remote_code"])])
def test_unopenable_model_is_reported_in_one_line(saved, breaking, options):
    breaking(saved)
    code, out, err = run_script(doctor, f"--model={saved}", *options)
    assert (code, out) == (2, "")
    (line,) = err.splitlines()
    assert line.startswith(f"error: {str(saved)!r} cannot be opened: ")


def test_missing_mask_token_is_reported_and_can_be_set(babyllama, tmp_path):
    with pytest.raises(ValueError, match="No mask token.*Here: `--mask_token`"):
        doctor.main([f"--model={babyllama}"])
    code, rows = rows_of(tmp_path, babyllama, "--mask_token", "~", "--backends", "sdpa")
    assert code == 0 and rows["mask token"]["detail"].startswith("'~' (")
