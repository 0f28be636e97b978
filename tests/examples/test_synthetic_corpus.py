"""Test the quickstart's corpus: only the end of a story reveals its fact, and pairs share no wording."""

import random
import re
from collections import Counter, defaultdict

import pytest

from examples.toy.language import THINGS, Story, draw_pair, draw_story, read_rows, write_corpus


@pytest.fixture(scope="module")
def stories() -> list[Story]:
    generator = random.Random(1)
    return [draw_story(generator) for _ in range(4000)]


def test_story_names_its_thing_only_in_the_missing_sentence(stories: list[Story]) -> None:
    for story in stories:
        assert [thing for thing in THINGS if thing in story.missing] == [story.answer]
        assert not [thing for thing in THINGS if thing in story.prefix + story.suffix]


@pytest.mark.parametrize("part", ["opening", "gap"])
def test_opening_and_wording_do_not_reveal_the_thing(stories: list[Story], part: str) -> None:
    """Check on fresh stories that guessing the most common thing after each frame is no better than chance."""
    seen: dict[str, Counter[str]] = defaultdict(Counter)

    def frame(story: Story) -> str:
        return story.prefix if part == "opening" else story.missing.replace(story.answer, "*")

    for story in stories[:3000]:
        seen[frame(story)][story.answer] += 1
    known = [story for story in stories[3000:] if frame(story) in seen]
    hits = sum(seen[frame(story)].most_common(1)[0][0] == story.answer for story in known)
    assert len(known) > 200
    assert hits / len(known) < 2.5 / len(THINGS)


def test_paraphrases_share_only_the_name_and_function_words() -> None:
    generator = random.Random(2)
    small = {"a", "at", "the", "in", "on", "of", "for", "with", "to", "that", "day", "days"}
    for _ in range(500):
        anchor, positive = (set(re.findall(r"\w+", side.lower())) for side in draw_pair(generator))
        assert len(anchor & positive - small) == 1


def test_training_excludes_test_stories_and_facts(tmp_path) -> None:
    paths = write_corpus(tmp_path, seed=0, stories=2000, pairs=2000, tests=200)
    rows = {name: read_rows(path) for name, path in paths.items()}
    assert {name: len(found) for name, found in rows.items()} == {
        "stories_test": 200,
        "stories_train": 1800,
        "pairs_test": 200,
        "pairs_train": 1800,
    }
    stories = [{row["text"] for row in rows[f"stories_{part}"]} for part in ("train", "test")]
    assert not stories[0] & stories[1]
    facts = [
        {frozenset(re.findall(r"\w+", row["anchor"].lower())) for row in rows[f"pairs_{part}"]}
        for part in ("train", "test")
    ]
    assert not facts[0] & facts[1]
    assert sum(map(len, facts)) == 2000
