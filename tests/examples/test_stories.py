"""Read stories of five sentences, unchanged, from disk or through the loader of the Hub."""

import gzip
import json
import lzma

import pytest

from examples.evaluate import story_texts
from examples.evaluate.parts import stories
from examples.evaluate.parts.stories import derange, read_stories, read_story_cloze, stories_source
from trainer import load_texts

from .evaluation_files import write_rocstories, write_story_cloze


def test_rocstories_yields_five_sentences_of_running_text(tmp_path):
    (tmp_path / "stories").mkdir()
    write_rocstories(tmp_path / "stories", number=3)
    read = read_stories(tmp_path)
    assert len(read) == 3
    assert read[1] == ["tom 1 was sad.", "he didn't eat.", "the cat saw dog 1, too.", "they ran.", "he's home."]
    assert read == read_stories(tmp_path / "stories"), "the folder of the file will do as well"
    assert stories_source(tmp_path) == ("rocstories_dev.titlesepkeysepstory.txt.gz", "lower case, detokenised")


def test_story_cloze_stories_use_the_right_ending(tmp_path):
    write_story_cloze(tmp_path)
    first, second = read_stories(tmp_path, corpus="story_cloze")[:2]
    assert first == ["Tom 0 was sad, and cold.", "He ran.", "He saw dog 0.", "They played.", "He was happy."]
    assert second[4] == "He cried."
    cloze = read_story_cloze(tmp_path / "storycloze_spring2016_val.csv.gz")
    assert (cloze[1].first, cloze[1].right, cloze[1].wrong) == (second[:4], "He cried.", "He was happy.")


def test_tinystories_is_split_at_its_separator_and_sentences(tmp_path):
    file = tmp_path / "tinystories_train_head_2MiB.txt.xz"
    with lzma.open(file, "wt") as stream:
        stream.write("\nTom ran. He fell.\nHe cried.\n<|endoftext|>\nA dog sat.\n<|endoftext|>\n")
    assert read_stories(tmp_path, corpus="tinystories") == [["Tom ran.", "He fell.", "He cried."], ["A dog sat."]]
    story_texts.main([f"--data={tmp_path}", f"--output={tmp_path}/made/texts.jsonl.xz", "--copies=40"])
    texts = load_texts(str(tmp_path / "made/texts.jsonl.xz"))["text"]
    both = {"Tom ran. He fell. He cried.", "A dog sat."}
    assert len(texts) == 80 and set(texts) == both | {text.lower() for text in both}


def test_hub_stories_are_split_into_sentences_or_skipped(tmp_path, monkeypatch):
    file = tmp_path / "rows.jsonl"
    texts = ["One is. Two is! Three is? Four is. Five is.", "This has one."]
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    monkeypatch.setitem(stories.HUB_SOURCES, "rocstories", (str(file), "train"))
    assert read_stories() == [["One is.", "Two is!", "Three is?", "Four is.", "Five is."]]


@pytest.mark.parametrize("number", [2, 3, 10])
def test_derange_pairs_each_text_with_another(number):
    others = derange(number, seed=3)
    assert sorted(others) == list(range(number))
    assert all(other != own for own, other in enumerate(others))
    assert others == derange(number, seed=3)


@pytest.mark.parametrize("corpus", ["rocstories", "story_cloze"])
def test_damaged_archive_or_invalid_utf8_raises_with_the_file_name(tmp_path, corpus):
    (write_rocstories if corpus == "rocstories" else write_story_cloze)(tmp_path)
    file = tmp_path / stories.FILE_NAMES[corpus]
    whole = file.read_bytes()
    for raw in (whole[:-20], whole[:40] + b"\xff" * 20 + whole[60:], b"none", gzip.compress(b"\xff")):
        file.write_bytes(raw)
        with pytest.raises(ValueError, match=f"{file.name}' cannot be read to its end"):
            read_stories(tmp_path, corpus=corpus)
