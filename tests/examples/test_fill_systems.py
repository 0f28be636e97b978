"""Test the systems of Table 5: their prompts, their visible context, and their single sentence."""

import pytest

from examples.evaluate.parts.fill_systems import FillSystem, draw_blanks, fill_systems, first_sentence
from examples.evaluate.parts.prompted_infilling import PromptedInfiller

STORIES = [[f"Story {n} {word}." for word in ("begins", "goes on", "turns", "slows", "ends")] for n in range(12)]


@pytest.fixture
def long_model(tiny_model):
    """Return the tiny model with enough positions for prompts."""
    tiny_model.config.max_position_embeddings = 2048
    return tiny_model


def test_systems_depend_on_the_number_of_examples():
    assert [system.shots for system in fill_systems(shots=2)] == [0] * 5 + [2] * 3 + [0]
    assert fill_systems(shots=2)[5].name == "two-shot, blank"
    assert len(fill_systems(shots=0)) == 6
    assert fill_systems(more=["other"])[-1] == FillSystem("other", "other", None, 0)


def test_middle_sentence_is_removed_and_examples_use_other_stories():
    blanks, examples = draw_blanks(STORIES, number=7, shots=5, seed=0)
    assert (blanks, examples) == draw_blanks(STORIES, number=7, shots=5, seed=0)
    assert blanks != draw_blanks(STORIES, number=7, shots=5, seed=1)[0]
    whole = [f"{one[0]} {one[1]}{one[2]}" for one in (*blanks, *examples)]
    assert sorted(whole) == sorted(" ".join(story) for story in STORIES)  # all of them, each once
    places = set()
    for seed in range(20):
        for blank in draw_blanks(STORIES, number=12, shots=0, seed=seed)[0]:
            (story,) = [story for story in STORIES if blank.prefix.startswith(story[0])]
            places.add(story.index(blank.truth))
    assert places == {1, 2, 3}
    with pytest.raises(ValueError, match="12 different stories; 10.*5 solved"):
        draw_blanks(STORIES + STORIES, number=10, shots=5, seed=0)


def test_fill_is_reduced_to_its_first_sentence():
    assert first_sentence("\nHe fell. He rose.") == "He fell."
    assert first_sentence(' "Why?" she asked.') == '"Why?"'
    assert first_sentence(" It is 3.5  degrees\nand") == "It is 3.5 degrees"
    assert first_sentence(" \n") == ""


def test_fills_equal_direct_model_calls(long_model):
    blanks, examples = draw_blanks(STORIES, number=3, shots=2, seed=0)
    prefixes, suffixes = [blank.prefix for blank in blanks], [blank.suffix for blank in blanks]
    options = {"max_new_tokens": 6, "do_sample": False}
    for system in fill_systems(shots=2):
        written = system.fill(long_model, blanks, examples=examples, max_new_tokens=6, batch_size=2)
        if system.name == "MAGNET":
            expected = long_model.infill(prefixes, suffixes, stop_at_sentence_end=True, **options)
        else:
            asked = PromptedInfiller(
                long_model, long_model.tokenizer, family=system.family, examples=examples if system.shots else []
            )
            expected = asked.infill(prefixes, suffixes, **options)
        assert written == [first_sentence(text) for text in expected], system.name
        assert system.settings(max_new_tokens=6)["max_new_tokens"] == 6


@pytest.mark.long
def test_only_the_unidirectional_system_ignores_the_suffix(long_model):
    blanks, examples = draw_blanks(STORIES, number=6, shots=2, seed=0)
    others = [blank._replace(suffix=" Quite another end, of cats and dogs.") for blank in blanks]
    for system in fill_systems(shots=2):

        def fills(given, solved, system=system):
            return system.fill(long_model, given, examples=solved, max_new_tokens=8, batch_size=6)

        own = fills(blanks, examples)
        assert (fills(others, examples) == own) == (system.name == "unidirectional"), system.name
        assert (fills(blanks, examples[::-1]) == own) == (system.shots == 0), system.name
