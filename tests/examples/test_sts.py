"""STS by our own driver and by MTEB: the same figures from the same files, without a network."""

import gzip
import json
import subprocess
import sys

import pytest
import torch

from examples.evaluate import sts
from examples.evaluate.sts_data import read_sts
from modeling_magnet import MagnetLlamaForCausalLM

from ..conftest import REPOSITORY

STS_FOLDER = REPOSITORY.parent / "shared" / "data" / "sts"
PAIRS = [
    ("The cat sat.", "A cat was sitting.", 4.5),
    ('He said "no" to it.', "She went home.", 0.5),
    ("The dog barked.", "A dog barked, loudly.", 4.0),
    ("A man is here.", "The bread was for lunch.", 0.0),
    ("The apple is red.", "An apple was on the mat.", 2.0),
]


def write_files(folder):
    """The three kinds of files: named columns in any order, other names, no header."""
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
def test_every_kind_of_file_is_read(tmp_path, name):
    assert read_sts(name, folder=write_files(tmp_path)) == PAIRS


def test_both_drivers_find_the_same(tmp_path, tiny_model, capsys):
    pytest.importorskip("mteb", reason="an optional extra: pip install .[eval]")
    tiny_model.save_pretrained(tmp_path / "model")
    arguments = ["--models", f"tiny={tmp_path / 'model'}", "--data", str(write_files(tmp_path)), "--mteb"]
    for pooling in ("last", "mean"):
        results = sts.main(
            [*arguments, "--tasks", "STS12", "SICK-R", "--pooling", pooling, "--output", str(tmp_path / "out.json")]
        )
        scores = results["tiny"]["scores"]
        assert scores["ours"] == pytest.approx(scores["mteb"], abs=1e-4)
    assert capsys.readouterr().out.splitlines()[-1] == "sts: OK (STS12, SICK-R)"
    written = json.loads((tmp_path / "out.json").read_text())["tiny"]
    assert written["device"] == ("cuda" if torch.cuda.is_available() else "cpu")
    assert written["prompt"] == "Retrieve semantically similar text: "
    assert (written["pooling"], written["dtype"], written["pairs"]) == ("mean", "float32", {"STS12": 5, "SICK-R": 5})


def test_all_arguments_that_cannot_be_used_are_told_at_once_before_weights_are_read(tmp_path, tiny_model, capsys):
    tiny_model.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").write_bytes(b"not read")
    model, data = str(tmp_path / "model"), str(write_files(tmp_path))
    arguments = ["--models", model, f"a={model}", f"a={model}", "b=./nowhere", "=", "--data", data]
    arguments += ["--tasks", "STS12", "STS13", "--pooling", "foo", "--device", "warp"]
    arguments += ["--output", str(tmp_path / "missing" / "out.json")]
    with pytest.raises(ValueError, match="The arguments cannot be used") as raised:
        sts.main(arguments)
    for complaint in (
        f"`--models` has {model!r}; expected NAME=MODEL, such as magnet={model}.",
        "two models named 'a'",
        "`--models` b: './nowhere' is no directory here",
        "`--models` has '='; expected NAME=MODEL, such as magnet=DIR.",
        "`--pooling` is 'foo'; pass one of ['last', 'mean', 'weighted_mean']",
        "`--device` is 'warp', which cannot be used",
        "has no sts13.test.tsv.gz, of STS13",
        "out.json'; name a file in a folder that exists",
    ):
        assert complaint in str(raised.value)
    assert str(raised.value).count("\n- ") == 8
    with pytest.raises(ValueError, match="leaves no room for a token of text"):
        sts.main(["--models", f"a={model}", "--data", data, "--tasks", "STS12", "--prompt", "long " * 300])


def test_what_is_refused_is_told_without_a_traceback(tmp_path):
    command = [sys.executable, sts.__file__, "--models", f"a={tmp_path}", "--pooling", "foo"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert "error: The arguments cannot be used:\n- `--models` a: " in done.stderr and "Traceback" not in done.stderr


def test_the_correlation_is_that_of_the_order(tiny_model):
    same = [("The cat sat.", "The cat sat.", 5.0), ("The cat sat.", "It rained.", 1.0)]
    pairs = [sts.StsPair(*pair) for pair in same]
    assert sts.sts_correlation(tiny_model, pairs) == pytest.approx(100)
    assert sts.sts_correlation(tiny_model, [pair._replace(score=-pair.score) for pair in pairs]) == pytest.approx(-100)


@pytest.mark.slow
def test_real_pairs_give_the_same_by_both_drivers(wiki_7m):
    pytest.importorskip("mteb", reason="an optional extra: pip install .[eval]")
    if not STS_FOLDER.is_dir():
        pytest.skip("no STS files at ../shared/data/sts beside the repository")
    model = MagnetLlamaForCausalLM.from_pretrained(wiki_7m)
    pairs = read_sts("STSBenchmark", folder=STS_FOLDER)[:300]
    ours = sts.sts_correlation(model, pairs, prompt=model.magnet_settings.prompts["STS"])
    theirs = sts.sts_correlation_by_mteb(model, "STSBenchmark", pairs, pooling="last")
    assert ours == pytest.approx(theirs, abs=1e-4)
    assert 20 < ours < 90


def test_what_cannot_be_read_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"No set is named 'STS99'"):
        read_sts("STS99", folder=tmp_path)
    with pytest.raises(ValueError, match=r"has no sts12\.test\.tsv\.gz, where STS12"):
        read_sts("STS12", folder=tmp_path)
    write_files(tmp_path)
    (tmp_path / "stsb.test.csv.gz").write_bytes(gzip.compress(b"a,b,1\nc,d\n"))
    with pytest.raises(ValueError, match=r"Line 2 of .*stsb\.test\.csv\.gz.*\['c', 'd'\]"):
        read_sts("STSBenchmark", folder=tmp_path)
