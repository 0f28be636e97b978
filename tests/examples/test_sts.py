"""STS by our own figure, by scipy and by MTEB: the same from the same files, without a network."""

import gzip
import importlib

import numpy as np
import pytest
from datasets import Dataset
from scipy.stats import spearmanr

from examples.evaluate import sts
from examples.evaluate.sentence_readers import MagnetReader
from examples.evaluate.sts import read_sts
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


@pytest.mark.parametrize("reading", ["magnet", "causal", "echo"])
def test_mteb_finds_the_same_and_the_record_says_how_it_was_read(tmp_path, tiny_model, capsys, reading):
    pytest.importorskip("mteb", reason="an optional extra: pip install .[eval]")
    tiny_model.save_pretrained(tmp_path / "model")
    arguments = ["--model", f"tiny={tmp_path / 'model'}", "--data", str(write_files(tmp_path)), "--mteb"]
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


def test_the_figure_is_scipys_of_vectors_made_one_by_one(tmp_path, tiny_model):
    tiny_model.save_pretrained(tmp_path / "model")
    arguments = ["--model", str(tmp_path / "model"), "--data", str(write_files(tmp_path)), "--device", "cpu"]
    (record,) = sts.main([*arguments, "--results", str(tmp_path), "--tasks", "STS12", "--prompt", "Find it"])
    cosines = []
    for one, other, _ in PAIRS:
        left, right = (tiny_model.encode(f"Find it: {text}", prompt="") for text in (one, other))
        cosines.append(float(np.dot(left, right) / np.linalg.norm(left) / np.linalg.norm(right)))
    expected = spearmanr(cosines, [score for _, _, score in PAIRS]).statistic
    assert record.metrics["spearman"] == pytest.approx(100 * expected)


def test_other_pairs_under_the_same_name_are_measured_anew(tmp_path, tiny_model):
    tiny_model.save_pretrained(tmp_path / "model")
    arguments = ["--model", str(tmp_path / "model"), "--data", str(write_files(tmp_path)), "--device", "cpu"]
    arguments += ["--results", str(tmp_path), "--tasks", "STS12"]
    (one,) = sts.main(arguments)
    file = tmp_path / "sts12.test.tsv.gz"
    file.write_bytes(gzip.compress(b"\n".join(gzip.decompress(file.read_bytes()).splitlines()[:-1])))
    sts.sts_pairs.cache_clear()  # as in a process of its own
    (other,) = sts.main(arguments)
    assert (one.counts["pairs"], other.counts["pairs"]) == (5, 4)


def test_sets_that_are_not_there_are_on_record_as_such(tmp_path, tiny_model, capsys):
    tiny_model.save_pretrained(tmp_path / "model")
    arguments = ["--model", f"tiny={tmp_path / 'model'}", "--results", str(tmp_path), "--device", "cpu"]
    here, missing = sts.main([*arguments, "--data", str(write_files(tmp_path)), "--tasks", "STS12", "STS13"])
    assert here.unavailable is None
    assert (missing.unavailable, missing.metrics) == ("the folder of the data has no sts13.test.tsv.gz", {})
    (offline,) = sts.main([*arguments, "--tasks", "STS13"])  # the tests run without a network
    assert offline.unavailable.startswith("mteb/sts13-sts of the Hub: ")
    assert offline.settings["data"] == "mteb/sts13-sts"
    assert "tiny, STS13: not available here: mteb/sts13-sts of the Hub" in capsys.readouterr().out


def test_a_trial_draws_pairs_with_the_seed(tmp_path):
    folder = write_files(tmp_path)
    few = sts.sts_pairs("STS12", folder, 3, 0)
    assert few == sts.sts_pairs("STS12", folder, 3, 0) and len(set(few)) == 3 and set(few) < set(PAIRS)
    assert any(sts.sts_pairs("STS12", folder, 3, seed) != few for seed in range(1, 6))
    assert sts.sts_pairs("STS12", folder, 5, 1) == PAIRS


def test_the_correlation_is_that_of_the_order(tiny_model):
    same = [("The cat sat.", "The cat sat.", 5.0), ("The cat sat.", "It rained.", 1.0)]
    pairs = [sts.StsPair(*pair) for pair in same]
    reader = MagnetReader(tiny_model)
    assert sts.sts_correlation(reader, pairs, prompt="") == pytest.approx(100)
    pairs = [pair._replace(score=-pair.score) for pair in pairs]
    assert sts.sts_correlation(reader, pairs, prompt="") == pytest.approx(-100)


@pytest.mark.long
def test_real_pairs_give_the_same_as_by_the_encoder_that_users_hand_to_mteb(wiki_7m):
    mteb = pytest.importorskip("mteb", reason="an optional extra: pip install .[eval]")
    if not STS_FOLDER.is_dir():
        pytest.skip("no STS files at ../shared/data/sts beside the repository")
    model = MagnetLlamaForCausalLM.from_pretrained(wiki_7m)
    pairs = read_sts("STSBenchmark", folder=STS_FOLDER)[:200]
    prompt = model.magnet_settings.prompts["STS"]
    ours = sts.sts_correlation(MagnetReader(model), pairs, prompt=prompt)
    task = mteb.get_task("STSBenchmark")
    columns = {field: [getattr(pair, field) for pair in pairs] for field in sts.StsPair._fields}
    task.dataset, task.data_loaded = {"default": {"test": Dataset.from_dict(columns)}}, True
    encoder = importlib.import_module("trainer.mteb_encoder").MagnetEncoder(model, pooling="last")
    theirs = mteb.evaluate(encoder, task, cache=None, co2_tracker=False).task_results[0].get_score()
    assert ours == pytest.approx(100 * theirs, abs=1e-3)
    assert 20 < ours < 90
