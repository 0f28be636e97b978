"""Write small files in the formats that the drivers read, and provide common arguments."""

import csv
import gzip
import lzma
from pathlib import Path

PARAGRAPH = "The cat sat on the mat , and the dog barked at the cat . She ate the bread @-@ like apple ."


def write_rocstories(folder: Path, *, number: int = 8) -> None:
    """Write lower-cased, tokenized stories, as the corpus is distributed."""
    file = folder / "rocstories_dev.titlesepkeysepstory.txt.gz"
    with gzip.open(file, "wt", encoding="utf-8") as lines:
        for n in range(number):
            story = [
                f"tom {n} was sad .",
                "he did n't eat .",
                f"the cat saw dog {n} , too .",
                "they ran .",
                "he 's home .",
            ]
            lines.write(f"a title  <EOT> tom\t# <EOL>  </s> {' </s> '.join(story)}\n")


def write_story_cloze(folder: Path, *, number: int = 6) -> None:
    """Write the columns of the Spring 2016 validation set."""
    names = [f"InputSentence{k}" for k in range(1, 5)]
    names += ["RandomFifthSentenceQuiz1", "RandomFifthSentenceQuiz2", "AnswerRightEnding"]
    with gzip.open(folder / "storycloze_spring2016_val.csv.gz", "wt", newline="", encoding="utf-8") as lines:
        writer = csv.writer(lines)
        writer.writerow(names)
        for n in range(number):
            first = [f"Tom {n} was sad, and cold.", "He ran.", f"He saw dog {n}.", "They played."]
            writer.writerow([*first, "He was happy.", "He cried.", 1 + n % 2])


def write_wikitext(folder: Path, *, number: int = 12) -> None:
    """Write tokenized headings and paragraphs."""
    lines = [" \n", " = The cat = \n", " \n"]
    for n in range(number):
        lines += [f" {PARAGRAPH} Number {n} is <unk> . \n", " \n", " = = More of it = = \n", " \n"][: 1 + 3 * (n % 2)]
    with lzma.open(folder / "wiki.valid.tokens.xz", "wt", encoding="utf-8") as stream:
        stream.writelines(lines)


def write_all(folder: Path) -> Path:
    """Write a data folder with subfolders."""
    for name in ("stories", "wikitext2"):
        (folder / name).mkdir(parents=True)
    write_rocstories(folder / "stories")
    write_story_cloze(folder / "stories")
    write_wikitext(folder / "wikitext2")
    return folder
