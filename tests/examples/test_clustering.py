"""Clustering: MTEB's figure is scikit-learn's by a plain loop; files that replace its sets are drawn and named."""

import argparse
import gzip
import json
import lzma
import random

import numpy as np
import pytest

from examples.evaluate import clustering
from examples.evaluate.clustering import describe_texts, read_file, subsets_of
from examples.evaluate.sentence_readers import MagnetReader
from modeling_magnet.tokenization_magnet import PAPER_PROMPTS

TOPICS = {
    "animals": ["The cat sat down.", "A dog barked at it.", "The cat and the dog.", "Dogs and a cat."],
    "food": ["She ate the apple.", "Bread was for lunch.", "An apple and bread.", "The lunch was bread."],
    "places": ["The forest was far.", "On the mat it lay.", "There was a forest.", "In the far forest."],
}
ROWS = [(text, topic) for topic, texts in TOPICS.items() for text in texts]


@pytest.fixture
def folder(tmp_path):
    """Both files, as small as can be."""
    lines = [json.dumps({"id": "1", "label": topic, "subject": f"Re: {text}", "text": "-"}) for text, topic in ROWS]
    lines += [json.dumps({"id": "2", "label": "food", "subject": subject}) for subject in ("RE: re: ham", "x" * 121)]
    (tmp_path / "20news_bydate_train.jsonl.xz").write_bytes(lzma.compress("\n".join(lines).encode()))
    titles = "".join(f'10.1/2\t{topic}\t"{text}\n' for text, topic in ROWS)
    (tmp_path / "biorxiv_title_subject.tsv.gz").write_bytes(gzip.compress(f"doi\tsubject\ttitle\n{titles}".encode()))
    return tmp_path


def test_the_figure_is_scikit_learns_by_a_plain_loop(tmp_path, folder, tiny_model):
    pytest.importorskip("mteb", reason="an optional extra: pip install .[eval]")
    cluster, metrics = (pytest.importorskip(f"sklearn.{name}") for name in ("cluster", "metrics"))
    tiny_model.save_pretrained(tmp_path / "model")
    arguments = ["--model", f"tiny={tmp_path / 'model'}", "--data", str(folder), "--results", str(tmp_path)]
    arguments += ["--device", "cpu", "--subsets", "3", "--subset_size", "9", "--seed", "5"]
    records = {record.unit: record for record in clustering.main(arguments)}
    for name in ("TwentyNewsgroupsClustering", "BiorxivClusteringS2S"):
        scores = []
        for texts, labels in subsets_of(name, folder=folder, subsets=3, size=9, seed=5):
            # In one batch, as the driver does: one text at a time rounds differently, and a text may change clusters.
            vectors = tiny_model.encode(texts, prompt=PAPER_PROMPTS[name])
            means = cluster.MiniBatchKMeans(len(set(labels)), batch_size=500, n_init="auto", random_state=42)
            scores.append(metrics.v_measure_score(labels, means.fit(vectors).labels_))
        found = records[name]
        assert len(set(scores)) > 1
        assert found.metrics["v_measure"] == pytest.approx(100 * np.mean(scores), abs=1e-6)
        assert found.metrics["v_measure_std"] == pytest.approx(100 * np.std(scores), abs=1e-6)
        assert found.counts == {"subsets": 3, "texts": 27, "topics": 3}
        assert found.settings["data"].startswith("stand-in: ")
        assert (found.settings["subsets"], found.settings["subset_size"]) == (3, 9)
        assert (found.settings["prompt"], found.settings["reading"]) == (PAPER_PROMPTS[name], "magnet")
    for name in ("BiorxivClusteringP2P", "MedrxivClusteringP2P", "MedrxivClusteringS2S"):
        assert records[name].unavailable.startswith("no file replaces this set")


def test_topics_that_lie_apart_score_full(tiny_model):
    """By hand: three texts, each four times, are three clusters."""
    pytest.importorskip("mteb", reason="an optional extra: pip install .[eval]")
    subset = clustering.Subset([texts[0] for texts in TOPICS.values()] * 4, list(TOPICS) * 4)
    found = clustering.v_measure_by_mteb(MagnetReader(tiny_model), "TwentyNewsgroupsClustering", [subset], prompt="")
    assert found == pytest.approx((100, 0))


def test_the_seed_of_k_means_is_mtebs_own(tiny_model):
    """Texts without topics: where the clusters begin decides the figure."""
    pytest.importorskip("mteb", reason="an optional extra: pip install .[eval]")
    cluster, metrics = (pytest.importorskip(f"sklearn.{name}") for name in ("cluster", "metrics"))
    draw = random.Random(0)
    texts = [" ".join(draw.choices("cat dog sat mat apple bread girl forest".split(), k=5)) for _ in range(80)]
    labels = [draw.choice("abcdefgh") for _ in texts]
    vectors, scores = MagnetReader(tiny_model).encode(texts), []
    for seed in (42, 0, 1):
        means = cluster.MiniBatchKMeans(8, batch_size=500, n_init="auto", random_state=seed).fit(vectors)
        scores.append(100 * metrics.v_measure_score(labels, means.labels_))
    assert len(set(scores)) == 3
    subset = clustering.Subset(texts, labels)
    found = clustering.v_measure_by_mteb(MagnetReader(tiny_model), "TwentyNewsgroupsClustering", [subset], prompt="")
    assert found[0] == pytest.approx(scores[0])


def test_subjects_are_read_as_mteb_has_them(folder):
    assert read_file("TwentyNewsgroupsClustering", folder) == ROWS  # no `Re:`, nothing short, nothing long
    assert [row.text for row in read_file("BiorxivClusteringS2S", folder)] == [f'"{text}' for text, _ in ROWS]


def test_subsets_are_drawn_with_the_seed(folder):
    name = "TwentyNewsgroupsClustering"
    first, second = subsets_of(name, folder=folder, subsets=2, size=8, seed=1)
    assert [first, second] == subsets_of(name, folder=folder, subsets=2, size=8, seed=1)
    assert first != second and first != subsets_of(name, folder=folder, subsets=1, size=8, seed=2)[0]
    assert len(set(first.texts)) == 8 and set(zip(*first, strict=True)) < set(ROWS)
    assert len(subsets_of(name, folder=folder)) == 10
    args = argparse.Namespace(data=folder, subsets=None, subset_size=None)
    settings = describe_texts(name, args)
    assert (settings["subsets"], settings["subset_size"]) == (10, 6000)
    (folder / "20news_bydate_train.jsonl.xz").write_bytes(b"others")
    assert describe_texts(name, args)["files"] != settings["files"]


def test_without_a_folder_the_hub_is_asked_at_mtebs_revision(tmp_path, tiny_model):
    mteb = pytest.importorskip("mteb", reason="an optional extra: pip install .[eval]")
    for name, source in clustering.CLUSTERING_SETS.items():
        assert mteb.get_task(name).metadata.dataset == {"path": source.hub_id, "revision": source.revision}
    tiny_model.save_pretrained(tmp_path / "model")
    arguments = ["--model", str(tmp_path / "model"), "--results", str(tmp_path), "--device", "cpu"]
    (record,) = clustering.main([*arguments, "--tasks", "MedrxivClusteringP2P"])  # the tests have no network
    assert record.unavailable.startswith("mteb/medrxiv-clustering-p2p of the Hub: ")
    assert record.settings["data"] == "mteb/medrxiv-clustering-p2p@e7a26af"
