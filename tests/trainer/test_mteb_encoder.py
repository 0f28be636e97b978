"""The MTEB wrapper: the instruction of each task and the recorded settings."""

import json

import numpy as np
import pytest
from datasets import Dataset

mteb = pytest.importorskip("mteb", reason="an optional extra: pip install .[eval]")
PromptType = pytest.importorskip("mteb.types").PromptType
MagnetEncoder = pytest.importorskip("trainer.mteb_encoder").MagnetEncoder


def metadata(name):
    return mteb.get_task(name).metadata


def test_each_task_of_the_paper_gets_its_instruction(tiny_model):
    encoder = MagnetEncoder(tiny_model)
    for name in ("STS12", "STSBenchmark", "SICK-R"):
        assert encoder.prompt_of(metadata(name)) == "Retrieve semantically similar text: "
    assert encoder.prompt_of(metadata("TwentyNewsgroupsClustering")).startswith("Identify the topic or theme")
    assert encoder.prompt_of(metadata("MedrxivClusteringS2S")).endswith("based on the titles: ")
    default = tiny_model.magnet_settings.prompts["sentence"]
    assert encoder.prompt_of(metadata("Banking77Classification")) == default
    tiny_model.config.magnet["prompts"].update({"query": "Find: ", "STS12": "Own: "})
    encoder = MagnetEncoder(tiny_model)
    assert encoder.prompt_of(metadata("NFCorpus"), PromptType.query) == "Find: "
    assert encoder.prompt_of(metadata("NFCorpus"), PromptType.document) == default
    assert encoder.prompt_of(metadata("STS12")) == "Own: "


def test_a_model_without_default_prompt_has_none_for_other_tasks(tiny_model):
    tiny_model.config.magnet["default_prompt_name"] = None
    assert MagnetEncoder(tiny_model).prompt_of(metadata("Banking77Classification")) == ""


def test_clustering_task_runs_and_records_the_settings(tiny_model, tmp_path):
    topics = {"cat": ["The cat sat.", "A cat slept."], "stock": ["Stocks fell.", "The market rose."]}
    sentences = [text for texts in topics.values() for text in texts] * 4
    labels = [label for label, texts in topics.items() for _ in texts] * 4
    task = mteb.get_task("TwentyNewsgroupsClustering")
    task.dataset = {"default": {"test": Dataset.from_dict({"sentences": [sentences], "labels": [labels]})}}
    task.data_loaded = True
    encoder = MagnetEncoder(tiny_model, name="someone/tiny", revision="abc", pooling="mean")
    cache = mteb.ResultCache(cache_path=tmp_path)
    result = mteb.evaluate(encoder, task, cache=cache, co2_tracker=False)
    assert 0 <= result.task_results[0].get_score() <= 1
    (record,) = tmp_path.rglob("model_meta.json")
    written = json.loads(record.read_text())
    assert (written["name"], written["revision"]) == ("someone/tiny", "abc")
    conditions = written["experiment_kwargs"]
    assert conditions["pooling"] == "mean" and conditions["dtype"] == "float32"
    assert conditions["prompts"]["TwentyNewsgroupsClustering"] == encoder.prompt_of(task.metadata)


@pytest.fixture
def task():
    pairs = {
        "sentence1": ["The cat sat.", "The dog barked.", "A man is here.", "The apple is red."],
        "sentence2": ["A cat was sitting.", "A dog barked.", "The bread was for lunch.", "An apple was on the mat."],
        "score": [4.5, 4.0, 0.0, 2.0],
    }
    task = mteb.get_task("STSBenchmark")
    task.dataset, task.data_loaded = {"default": {"test": Dataset.from_dict(pairs)}}, True
    return task


def test_revision_names_the_weights(tiny_model):
    def revision(**options):
        return MagnetEncoder(tiny_model, **options).mteb_model_meta.revision

    first = revision()
    assert first.startswith("local-") and revision() == first and revision(revision="mine") == "mine"
    tiny_model.model.norm.weight.data[0] += 0.5
    second = revision()
    assert second != first
    tiny_model.config._commit_hash = "abc"
    assert revision() == second.replace("local", "abc")
    tiny_model.bfloat16()
    assert revision() != second.replace("local", "abc")


def test_options_that_mteb_does_not_record_raise(tiny_model, task):
    encoder = MagnetEncoder(tiny_model)
    for options in ({"pooling": "mean"}, {"prompt": "X: "}, {"truncate_dim": 8, "normalize_embeddings": True}):
        with pytest.raises(ValueError, match=r"`encode_kwargs` .*batch_size.*MagnetEncoder\("):
            mteb.evaluate(encoder, task, cache=None, co2_tracker=False, encode_kwargs=options)


@pytest.mark.parametrize(
    ("given", "asked", "rows"),
    [({}, {"batch_size": 32}, None), ({}, {"batch_size": 16}, 16), ({"batch_size": 8}, {"batch_size": 32}, 8)],
)
def test_default_batch_size_of_mteb_is_ignored(tiny_model, monkeypatch, given, asked, rows):
    encoder = MagnetEncoder(tiny_model, **given)
    seen, encode = [], tiny_model.encode
    monkeypatch.setattr(tiny_model, "encode", lambda *a, **kw: seen.append(kw.get("batch_size")) or encode(*a, **kw))
    encoder.encode([{"text": ["A cat."]}], task_metadata=metadata("STS12"), hf_split="", hf_subset="", **asked)
    assert seen == [rows]


def test_vectors_are_those_of_encode(tiny_model):
    encoder = MagnetEncoder(tiny_model, pooling="mean")
    texts = ["The cat sat.", "A dog barked."]
    vectors = encoder.encode(
        [{"text": texts[:1]}, {"text": texts[1:]}],
        task_metadata=metadata("STS12"),
        hf_split="test",
        hf_subset="default",
        batch_size=1,
    )
    expected = tiny_model.encode(texts, prompt_name="STS", pooling="mean")
    np.testing.assert_allclose(vectors, expected, atol=1e-5)


def test_name_comes_from_the_path_of_the_model(tiny_model, tmp_path):
    tiny_model.config._name_or_path = str(tmp_path / "runs" / "mine")
    assert MagnetEncoder(tiny_model).mteb_model_meta.name == "runs/mine"
    tiny_model.config._name_or_path = ""
    assert MagnetEncoder(tiny_model).mteb_model_meta.name == "local/magnet"
