"""Compare clustering with scikit-learn, and test how files that replace MTEB's sets are drawn and named."""

import gzip
import json
import lzma

import numpy as np
import pytest

from examples.evaluate import clustering
from examples.evaluate.clustering import read_file, subsets_of
from modeling_magnet.configuration_magnet import PAPER_PROMPTS

TOPICS = {
    "animals": ["The cat sat down.", "A dog barked at it.", "The cat and the dog.", "Dogs and a cat."],
    "food": ["She ate the apple.", "Bread was for lunch.", "An apple and bread.", "The lunch was bread."],
    "places": ["The forest was far.", "On the mat it lay.", "There was a forest.", "In the far forest."],
}
ROWS = [(text, topic) for topic, texts in TOPICS.items() for text in texts]


@pytest.fixture
def folder(tmp_path):
    """Write both files with minimal contents."""
    lines = [json.dumps({"id": "1", "label": topic, "subject": f"Re: {text}", "text": "-"}) for text, topic in ROWS]
    lines += [json.dumps({"id": "2", "label": "food", "subject": subject}) for subject in ("RE: re: ham", "x" * 121)]
    (tmp_path / "20news_bydate_train.jsonl.xz").write_bytes(lzma.compress("\n".join(lines).encode()))
    titles = "".join(f'10.1/2\t{topic}\t"{text}\n' for text, topic in ROWS)
    (tmp_path / "biorxiv_title_subject.tsv.gz").write_bytes(gzip.compress(f"doi\tsubject\ttitle\n{titles}".encode()))
    return tmp_path


def test_v_measure_equals_scikit_learn(tmp_path, folder, tiny_model, checkpoint):
    pytest.importorskip("mteb", reason="an optional extra: pip install .[eval]")
    cluster, metrics = (pytest.importorskip(f"sklearn.{name}") for name in ("cluster", "metrics"))
    arguments = ["--model", f"tiny={checkpoint}", "--data", str(folder), "--results", str(tmp_path)]
    arguments += ["--device", "cpu", "--subsets", "3", "--subset_size", "9", "--seed", "5"]
    records = {record.unit: record for record in clustering.main(arguments)}
    for name in ("TwentyNewsgroupsClustering", "BiorxivClusteringS2S"):
        scores = []
        for texts, labels in subsets_of(name, folder=folder, subsets=3, size=9, seed=5):
            # One batch, as in the driver: single texts round differently, and a text may change clusters.
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


def test_newsgroup_subjects_are_read_like_mteb(folder):
    assert read_file("TwentyNewsgroupsClustering", folder) == ROWS  # no `Re:`, nothing short, nothing long
    assert [row.text for row in read_file("BiorxivClusteringS2S", folder)] == [f'"{text}' for text, _ in ROWS]


def test_hub_is_read_at_the_revision_of_mteb(tmp_path, checkpoint):
    mteb = pytest.importorskip("mteb", reason="an optional extra: pip install .[eval]")
    for name, source in clustering.CLUSTERING_SETS.items():
        assert mteb.get_task(name).metadata.dataset == {"path": source.hub_id, "revision": source.revision}
    arguments = ["--model", str(checkpoint), "--results", str(tmp_path), "--device", "cpu"]
    (record,) = clustering.main([*arguments, "--tasks", "MedrxivClusteringP2P"])  # the tests have no network
    assert record.unavailable.startswith("mteb/medrxiv-clustering-p2p of the Hub: ")
    assert record.settings["data"] == "mteb/medrxiv-clustering-p2p@e7a26af"
