"""Test Story Cloze and the third sentence: choices, accuracies by hand, and tests between systems."""

import pytest

from examples.evaluate import story_cloze
from examples.evaluate.parts.stories import read_story_cloze
from modeling_magnet import MagnetLlamaForCausalLM

from .evaluation_files import write_story_cloze


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stories")
    write_story_cloze(folder)
    return folder


@pytest.fixture(scope="module")
def stories(folder):
    return read_story_cloze(folder / "storycloze_spring2016_val.csv.gz")


def test_choices_put_the_right_candidate_first(stories):
    fifth, third = (story_cloze.make_choices(stories, task=task, seed=0) for task in story_cloze.READINGS)
    assert fifth[1] == (
        "Tom 1 was sad, and cold. He ran. He saw dog 1. They played.",
        [" He cried.", " He was happy."],
        "",
    )
    for n, choice in enumerate(third):
        assert choice.prefix == f"Tom {n} was sad, and cold. He ran."
        assert choice.suffix == " They played. " + stories[n].right
        assert choice.candidates[0] == f" He saw dog {n}." != choice.candidates[1]
    assert len({choice.candidates[1] for choice in third}) == len(stories), "each story lends its sentence once"


def test_accuracies_are_computed_from_scores(stories260k, folder, stories, tmp_path, capsys):
    models = [f"MAGNET={stories260k}", f"base={stories260k}"]
    records = story_cloze.main(
        ["--model", *models, "--data", str(folder), "--results", str(tmp_path), "--device", "cpu"]
    )
    cells = {(record.system, record.unit): record for record in records}
    assert len(cells) == 2 * 6
    model = MagnetLlamaForCausalLM.from_pretrained(stories260k)
    hits = []
    for choice in story_cloze.make_choices(stories, task="third sentence", seed=0):
        right, wrong = model.score_infill(choice.prefix, choice.candidates, choice.suffix)
        hits.append(right.logprob > wrong.logprob)
    found = cells["MAGNET", "third sentence, infilling"]
    assert found.metrics["accuracy"] == pytest.approx(100 * sum(hits) / 6)
    assert found.samples == [{"hits": "".join(str(int(hit)) for hit in hits)}]
    assert found.metrics["interval_low"] <= found.metrics["accuracy"] <= found.metrics["interval_high"]
    assert found.metrics == cells["base", "third sentence, infilling"].metrics  # both systems are the same model here
    printed = capsys.readouterr().out
    assert printed.count("p = ") == 11 - 1  # every other cell of the same task
    same = "MAGNET, third sentence, infilling, against base, third sentence, infilling: only the first 0, "
    assert f"{same}only the second 0, p = 1" in printed
