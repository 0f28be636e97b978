"""Compare our STS figure with scipy and MTEB on the same files, without a network."""

import gzip

import numpy as np
import pytest
from scipy.stats import spearmanr

from examples.evaluate import sts
from examples.evaluate.sts import read_sts

PAIRS = [
    ("The cat sat.", "A cat was sitting.", 4.5),
    ('He said "no" to it.', "She went home.", 0.5),
    ("The dog barked.", "A dog barked, loudly.", 4.0),
    ("A man is here.", "The bread was for lunch.", 0.0),
    ("The apple is red.", "An apple was on the mat.", 2.0),
]


def write_files(folder):
    """Write the three kinds of files: named columns in any order, other names, no header."""
    tsv = "".join(f"news\t{score}\t{one}\t{two}\n" for one, two, score in PAIRS)
    sick = "".join(f"{n}\t{one}\t{two}\t{score}\tNEUTRAL\n" for n, (one, two, score) in enumerate(PAIRS))
    csv = "".join('"{}","{}",{}\n'.format(one.replace('"', '""'), two, score) for one, two, score in PAIRS)
    for name, text in {
        "sts12.test.tsv.gz": "genre\tscore\tsentence1\tsentence2\n" + tsv,
        "sick.test.tsv.gz": "pair_ID\tsentence_A\tsentence_B\trelatedness_score\tentailment_judgment\n" + sick,
        "stsb.test.csv.gz": csv,
    }.items():
        (folder / name).write_bytes(gzip.compress(text.encode()))
    return folder


@pytest.mark.parametrize("name", ["STS12", "SICK-R", "STSBenchmark"])
def test_every_file_format_is_read(tmp_path, name):
    assert read_sts(name, folder=write_files(tmp_path)) == PAIRS


@pytest.mark.parametrize("reading", ["magnet", "causal", "echo"])
def test_mteb_gives_the_same_figure_and_the_record_names_the_reading(tmp_path, checkpoint, capsys, reading):
    pytest.importorskip("mteb", reason="an optional extra: pip install .[eval]")
    arguments = ["--model", f"tiny={checkpoint}", "--data", str(write_files(tmp_path)), "--mteb"]
    arguments += ["--results", str(tmp_path / "results"), "--device", "cpu", "--reading", reading]
    records = sts.main([*arguments, "--tasks", "STS12", "SICK-R", "--pooling", "mean"])
    for record in records:
        assert record.metrics["spearman"] == pytest.approx(record.metrics["spearman_mteb"], abs=1e-3)
        assert record.counts == {"pairs": 5}
    assert capsys.readouterr().out.splitlines()[-1].startswith("sts: OK (1 models, 2 cells each")
    settings = records[0].settings
    assert (settings["reading"], settings["pooling"], settings["dtype"]) == (reading, "mean", "float32")
    assert settings["prompt"] == "Retrieve semantically similar text: "
    assert ("template" in settings) == (reading == "echo")
    assert (settings["data"], settings["limit"], settings["mteb"]) == ("sts12.test.tsv.gz", None, True)


@pytest.mark.parametrize("options", [[], pytest.param(["--compile"], marks=pytest.mark.long)])
def test_correlation_equals_scipy_on_single_vectors(tmp_path, tiny_model, checkpoint, options):
    arguments = [*options, "--model", str(checkpoint), "--data", str(write_files(tmp_path)), "--device", "cpu"]
    (record,) = sts.main([*arguments, "--results", str(tmp_path), "--tasks", "STS12", "--prompt", "Find it"])
    cosines = []
    for one, other, _ in PAIRS:
        left, right = (tiny_model.encode(f"Find it: {text}", prompt="") for text in (one, other))
        cosines.append(float(np.dot(left, right) / np.linalg.norm(left) / np.linalg.norm(right)))
    expected = spearmanr(cosines, [score for _, _, score in PAIRS]).statistic
    assert record.metrics["spearman"] == pytest.approx(100 * expected)
    assert record.settings.get("compile", False) == bool(options)


def test_missing_sets_are_recorded_as_unavailable(tmp_path, checkpoint, capsys):
    arguments = ["--model", f"tiny={checkpoint}", "--results", str(tmp_path), "--device", "cpu"]
    here, missing = sts.main([*arguments, "--data", str(write_files(tmp_path)), "--tasks", "STS12", "STS13"])
    assert here.unavailable is None
    assert (missing.unavailable, missing.metrics) == ("the folder of the data has no sts13.test.tsv.gz", {})
    (offline,) = sts.main([*arguments, "--tasks", "STS13"])  # the tests run without a network
    assert offline.unavailable.startswith("mteb/sts13-sts of the Hub: ")
    assert offline.settings["data"] == "mteb/sts13-sts"
    assert "tiny, STS13: not available here: mteb/sts13-sts of the Hub" in capsys.readouterr().out
