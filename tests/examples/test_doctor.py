"""The doctor passes what is sound, whatever kind and family, and says in a line what it cannot open."""

import json
from pathlib import Path

import pytest

from examples import doctor
from examples.checkup import round_trip

from ..hub_client import run_client
from ..hub_server import HubServer
from ..scripts import run_script
from .doctor_runs import FAMILY_NAMES, names_of, rows_of

pytest.importorskip("sentence_transformers", reason="an optional extra: pip install .[eval]")

KINDS = ("plain", "saved", "adapter", "bound", "adapter over plain")
FILE_ROWS = {"settings schema", "remote code", "config.json", "sidecars", "sentence-transformers"}
MERGED, CAUSAL_IS_BASE = round_trip.MERGED, round_trip.BOUND
# The rows that say "not applicable", and no others.
SKIPPED = {
    "plain": {MERGED, CAUSAL_IS_BASE, *FILE_ROWS},
    "saved": {MERGED, CAUSAL_IS_BASE},
    "adapter": {CAUSAL_IS_BASE, "remote code", "config.json"},
    "bound": {"stock class, keys", "stock class, causal logits", "remote code", "config.json"},
    "adapter over plain": {CAUSAL_IS_BASE, "remote code", "config.json", "sentence-transformers"},
}


# ---- What is sound ----


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_what_is_sound_passes_in_every_row_that_applies(doctor_models, tmp_path, capsys, family, kind):
    code, rows = rows_of(tmp_path, doctor_models[family] / kind)
    skipped = SKIPPED[kind]
    assert names_of(rows, "fail") == set()
    assert code == 0
    assert names_of(rows, "not applicable") == skipped
    assert len(rows) == 39
    printed = capsys.readouterr()
    assert printed.err == ""
    *table, last = printed.out.splitlines()
    assert [line[6:42].strip() for line in table] == list(rows)
    told = f"({doctor_models[family] / kind}; {39 - len(skipped)} passed, {len(skipped)} not applicable; "
    assert last.startswith(f"doctor: OK {told}")


@pytest.mark.parametrize("kind", ["saved", "bound"])
def test_remote_code_is_examined_in_place_of_the_package(doctor_models, tmp_path, kind):
    code, rows = rows_of(tmp_path, doctor_models["mistral"] / kind, "--trust_remote_code", "--backends", "sdpa")
    assert (code, names_of(rows, "fail")) == (0, set())
    assert "as MagnetMistralForCausalLM of remote code" in rows["opens"]["detail"]
    assert "leaks, infill, sdpa" in rows and "leaks, infill, eager" not in rows


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_has_limits_of_its_own(doctor_models, tmp_path, dtype):
    code, rows = rows_of(tmp_path, doctor_models["llama"] / "bound", "--dtype", dtype)
    assert (code, names_of(rows, "fail")) == (0, set())
    assert dtype in rows["opens"]["detail"]
    assert rows["infill, batch invariance"]["outcome"] == "not applicable"
    assert "(limit 0.999)" in rows["encode, batch invariance"]["detail"]


def test_the_results_name_no_folder_of_this_machine_beside_the_findings(doctor_models, tmp_path):
    rows_of(tmp_path, doctor_models["llama"] / "plain", "--backends", "eager")
    results = json.loads((tmp_path / "doctor.json").read_text())
    assert results["models"] == {"model": "plain"} and results["kind"] == "plain decoder"
    assert results["counts"] == {"pass": 28, "not applicable": 7}
    assert results["arguments"]["backends"] == ["eager"] and "model" not in results["arguments"]
    assert not list(tmp_path.glob("*.unfinished"))


def examine_on_the_hub(folder):
    """A sound commit and one whose code was edited, each by its name."""
    from huggingface_hub import HfApi

    api, name, results = HfApi(), "owner/model", {}
    api.create_repo(name)
    api.upload_folder(repo_id=name, folder_path=folder)
    api.create_tag(name, tag="v1")
    api.upload_file(repo_id=name, path_or_fileobj=b"", path_in_repo="old_magnet.py")
    for revision in ("v1", "main"):
        code, rows = rows_of(Path(folder).parent, name, "--revision", revision, "--backends", "sdpa")
        results[revision] = [code, sorted(names_of(rows, "fail")), rows["remote code"]["detail"]]
        results["files are whole"] = rows["files are whole"]["outcome"]
    return results


@pytest.mark.nightly
def test_a_repository_of_the_hub_is_examined_at_its_revision(saved, tmp_path):
    with HubServer({"hf_owner": "owner"}) as hub:
        results = run_client(examine_on_the_hub, str(saved), hub=hub, home=tmp_path / "home", token="hf_owner")
    code, failed, detail = results["v1"]
    assert (code, failed) == (0, []) and detail.endswith(" files, the installed package's")
    code, failed, detail = results["main"]
    assert (code, failed) == (1, ["remote code"]) and detail.startswith("extra: old_magnet.py. Save the model anew")
    assert results["files are whole"] == "not applicable"


def test_a_real_model_of_millions_of_parameters_passes(wiki_7m, tmp_path):
    code, rows = rows_of(tmp_path, wiki_7m)
    assert (code, names_of(rows, "fail")) == (0, set())


# ---- What cannot be opened, or asked ----


def test_what_cannot_be_opened_is_told_in_one_line(saved, tmp_path):
    weights = saved / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    code, out, err = run_script(doctor, str(saved))
    assert (code, out) == (2, "")
    (line,) = err.splitlines()
    assert line.startswith(f"error: {str(saved)!r} cannot be opened: ") and "model.safetensors" in line


def test_a_vocabulary_without_a_mask_token_is_told_and_one_may_be_named(babyllama, tmp_path, capsys):
    assert doctor.main([str(babyllama)]) == 2
    error = capsys.readouterr().err
    assert "No mask token: none of ['_'" in error and error.endswith("with `mask_token=`. Here: `--mask_token`.\n")
    code, rows = rows_of(tmp_path, babyllama, "--mask_token", "~", "--backends", "sdpa")
    assert code == 0 and rows["mask token"]["detail"].startswith("'~' (")
    assert rows["Unicode there and back"]["outcome"] == "not applicable"


@pytest.mark.parametrize("code", ["def half(", "raise KeyError('no')"])
def test_remote_code_that_does_not_run_is_a_model_that_cannot_be_opened(saved, capsys, code):
    (saved / "modeling_magnet.py").write_text(code)
    assert doctor.main([str(saved), "--trust_remote_code"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "cannot be opened: " in line
