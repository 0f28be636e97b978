"""A model as MTEB sees it: which instruction a task gets, and what stands in the record."""

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


def test_a_clustering_task_runs_and_its_record_tells_the_conditions(tiny_model, tmp_path):
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


def test_the_name_comes_from_where_the_model_was(tiny_model, tmp_path):
    tiny_model.config._name_or_path = str(tmp_path / "runs" / "mine")
    assert MagnetEncoder(tiny_model).mteb_model_meta.name == "runs/mine"
    tiny_model.config._name_or_path = ""
    assert MagnetEncoder(tiny_model).mteb_model_meta.name == "local/magnet"
