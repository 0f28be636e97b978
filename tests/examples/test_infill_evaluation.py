"""The evaluations of infilling on tiny stories and texts: gaps, judges, tests and tables."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from examples.evaluate import broken_words, gap_lengths, long_gaps, story_cloze
from examples.evaluate.held_out_gaps import (
    CONTINUATION_TOKENS,
    HeldOutGap,
    continuation_perplexity,
    draw_gaps,
    word_overlap,
)
from examples.evaluate.records import RecordFile
from examples.evaluate.stories import read_story_cloze
from modeling_magnet import MagnetLlamaForCausalLM
from modeling_magnet.spans_magnet import continuation_ids
from trainer.metrics import repetition_n
from trainer.prompted_infilling import PromptedInfiller

from .evaluation_files import write_story_cloze, write_wikitext

STORY = (
    "Once upon a time, there was a little girl named Lily. She loved to play with her toys in the park. One day, she "
    "saw a big dog and they were happy to run in the sun. Her mom said that it was time to go home and eat some food. "
)


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    file = tmp_path_factory.mktemp("texts") / "texts.jsonl"
    file.write_text("".join(json.dumps({"text": STORY * 6 + f"The number is {n}."}) + "\n" for n in range(30)))
    return str(file)


@pytest.fixture(scope="module")
def tokenizer(stories260k):
    return AutoTokenizer.from_pretrained(stories260k)


def test_gaps_join_to_the_text_and_have_their_lengths(texts, tokenizer):
    lengths = [3, 8, 5, 12]
    gaps = draw_gaps(texts, tokenizer, lengths=lengths, prefix_tokens=20, suffix_tokens=40, seed=3)
    whole = STORY * 6
    for gap, length in zip(gaps, lengths, strict=True):
        assert gap.length == len(continuation_ids(tokenizer, gap.truth)) == length
        assert gap.truth.startswith(" ")
        assert gap.suffix.startswith(" ")
        assert (gap.prefix + gap.truth + gap.suffix)[:60] in whole
    assert gaps == draw_gaps(texts, tokenizer, lengths=lengths, prefix_tokens=20, suffix_tokens=40, seed=3)
    with pytest.raises(ValueError, match="has 30 texts that are long enough; 31 gaps"):
        draw_gaps(texts, tokenizer, lengths=[3] * 31, prefix_tokens=20, suffix_tokens=40, seed=3)


def test_the_judge_reads_on_behind_prefix_and_fill(stories260k, tokenizer):
    model = MagnetLlamaForCausalLM.from_pretrained(stories260k)
    gap = HeldOutGap("Once upon a time, there was", " a little girl", " named Lily. She loved to play.", 3)
    value = continuation_perplexity(model, tokenizer, [gap], [" a big dog"])
    front = tokenizer(gap.prefix + " a big dog")["input_ids"]
    ids = tokenizer(gap.prefix + " a big dog" + gap.suffix)["input_ids"]
    assert len(ids) - len(front) <= CONTINUATION_TOKENS
    with torch.no_grad():
        logprobs = torch.log_softmax(model(torch.tensor([ids])).logits[0], -1)
    own = [logprobs[place - 1, ids[place]].item() for place in range(len(front), len(ids))]
    assert value == pytest.approx(np.exp(-np.mean(own)), rel=1e-4)


@pytest.mark.parametrize(
    ("fill", "truth", "expected"),
    [("a b", "a b", 1.0), ("a a", "a b", 0.5), ("c", "a b", 0.0), ("", "a", 0.0), ("The Cat", "the cat", 1.0)],
)
def test_shared_words(fill, truth, expected):
    assert word_overlap(fill, truth) == pytest.approx(expected)


def test_the_rank_of_the_true_length():
    own = list(gap_lengths.CANDIDATES)
    table = np.zeros((2, len(own)))
    table[0, own.index(8)] = 1.0  # found
    table[1, own.index(12)], table[1, own.index(48)] = 1.0, 2.0  # second, and far off
    report = gap_lengths.rank_report(table, [8, 12])
    assert report == {"mean_rank": 1.5, "first": 0.5, "within_4": 0.5, "mean_error": 18.0, "mean_chosen": 28.0}


def test_mcnemar_counts_where_two_systems_differ():
    one, other = np.array([1, 1, 1, 0, 0], bool), np.array([0, 0, 1, 1, 0], bool)
    assert story_cloze.mcnemar(one, other) == {"only_first": 2, "only_second": 1, "p": 1.0}
    assert story_cloze.mcnemar(np.ones(10, bool), np.zeros(10, bool))["p"] == pytest.approx(2 / 2**10)
    assert story_cloze.mcnemar(one, one)["p"] == 1.0


@pytest.fixture(scope="module")
def stories(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stories")
    write_story_cloze(folder)
    return folder / "storycloze_spring2016_val.csv.gz"


def test_choices_have_the_right_candidate_first_and_a_foreign_wrong_one(stories):
    read = read_story_cloze(stories)
    assert read[0] == (
        ["Tom 0 was sad, and cold.", "He ran.", "He saw dog 0.", "They played."],
        "He was happy.",
        "He cried.",
    )
    assert read[1][1:] == ("He cried.", "He was happy.")
    tasks = story_cloze.make_choices(read, seed=0)
    assert tasks["fifth sentence"][0].prefix == "Tom 0 was sad, and cold. He ran. He saw dog 0. They played."
    assert tasks["fifth sentence"][0].suffix == ""
    wrong = set()
    for n, choice in enumerate(tasks["third sentence"]):
        assert choice.prefix == f"Tom {n} was sad, and cold. He ran."
        assert choice.suffix == " They played. " + read[n][1]
        assert choice.candidates[0] == f" He saw dog {n}."
        assert choice.candidates[1] != choice.candidates[0]
        wrong.add(choice.candidates[1])
    assert len(wrong) == len(read), "each story lends its sentence once"


@pytest.mark.parametrize("limit", [6])
def test_story_cloze_runs_and_its_accuracy_is_that_of_the_scores(stories260k, stories, tmp_path, limit, capsys):
    file = tmp_path / "cloze.json"
    report = story_cloze.main(
        ["--magnet", str(stories260k), "--base", str(stories260k), "--stories", str(stories), "--output", str(file)]
    )
    assert "story_cloze: OK (6 stories)" in capsys.readouterr().out
    written = json.loads(file.read_text())
    assert written["tasks"] == report["tasks"]
    model = MagnetLlamaForCausalLM.from_pretrained(stories260k)
    choices = story_cloze.make_choices(read_story_cloze(stories), seed=0)["third sentence"]
    hits = 0
    for choice in choices:
        right, wrong = model.score_infill(choice.prefix, choice.candidates, choice.suffix)
        hits += right.logprob > wrong.logprob
    accuracy = report["tasks"]["third sentence"]["in all"]["accuracy"]
    assert accuracy["magnet, infilling"]["share"] == pytest.approx(hits / limit)
    assert accuracy["base, infilling"] == accuracy["magnet, infilling"]  # here they are one model
    low, high = accuracy["magnet, infilling"]["interval"]
    assert 0 <= low <= hits / limit <= high <= 1
    assert (
        "magnet, infilling, another story's suffix" not in report["tasks"]["fifth sentence"]["per token"]["accuracy"]
    )


@pytest.mark.long
def test_gap_lengths_runs_with_all_its_systems(stories260k, texts, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gap_lengths, "CANDIDATES", (4, 8, 12))
    taught = MagnetLlamaForCausalLM.from_pretrained(stories260k)
    taught.config.magnet["end_of_span"] = 8
    taught.save_pretrained(tmp_path / "taught")
    model = str(stories260k)
    report = gap_lengths.main(
        ["--magnet", model, "--end_of_span", str(tmp_path / "taught"), "--exact", model, "--judge", model]
        + ["--texts", texts, "--number", "6", "--output", str(tmp_path / "lengths.json")]
    )
    assert "gap_lengths: OK (6 gaps)" in capsys.readouterr().out
    fills = report["fills"]
    assert fills["what stood there"]["word_f1"] == 1.0
    assert fills["what stood there"]["length_error"] == 0.0
    assert fills["true length"] == fills["control, true length"]
    assert fills["nothing"]["mean_length"] == 0.0
    assert set(report["ranks"]) >= {"fill, mean", "join, mean", "fill + join, means (used)", "a guess"}
    written = json.loads((tmp_path / "lengths.json").read_text())
    assert written["models"]["end_of_span"] == "taught"


def test_broken_words_lose_letters_from_their_middle(stories260k, texts, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(broken_words, "CONTEXT_CHARACTERS", 80)
    whole = STORY * 6
    broken = broken_words.break_words([whole] * 20, number=20, seed=1)
    for one in broken:
        assert one.prefix + one.missing + one.suffix in whole
        word = one.spelt(one.missing)
        assert len(word) >= 6
        assert f" {word}" in whole
        left = one.prefix.rpartition(" ")[2]
        assert len(left) >= 2
        assert len(word) - len(left) - len(one.missing) >= 2
    with pytest.raises(ValueError, match="0 of 1 texts have a word to break; 2 were asked for"):
        broken_words.break_words(["short"], number=2, seed=1)
    report = broken_words.main(
        ["--magnet", str(stories260k), "--texts", texts, "--number", "4", "--output", str(tmp_path / "words.json")]
    )
    assert "broken_words: OK (4 words)" in capsys.readouterr().out
    assert set(report["heal"]) == {"None", "token"}
    assert all(0 <= row["right"] <= row["spells_a_word"] <= 1 for row in report["heal"].values())


@pytest.fixture
def short_context(monkeypatch):
    monkeypatch.setattr(long_gaps, "PREFIX_TOKENS", 40)
    monkeypatch.setattr(long_gaps, "SUFFIX_TOKENS", 40)


def test_long_gaps_are_filled_at_once_and_in_chunks(stories260k, texts, tmp_path, short_context, tokenizer, capsys):
    options = ["--judge", str(stories260k), "--texts", texts, "--number", "3", "--gap_tokens", "16"]
    records = long_gaps.main(
        ["--model", f"m={stories260k}", *options, "--chunks", "16", "8", "--results", str(tmp_path), "--device", "cpu"]
    )
    assert "long_fills: OK (1 models, 8 cells each" in capsys.readouterr().out
    by_unit = {record.unit: record for record in records}
    filled = {f"{name}, {kind}" for name in ("at once", "chunks of 8") for kind in ("greedy", "sampled")}
    judged = {"judge, left to right, greedy", "judge, left to right, sampled"}
    assert set(by_unit) == filled | judged | {"what stood there", "nothing"}
    assert set(by_unit["nothing"].metrics) == {"continuation_perplexity", "rep_4"}
    assert all(record.metrics["continuation_perplexity"] > 1 for record in records)
    assert all(record.settings["judge"]["name"] == "stories260K" for record in records)
    assert len(RecordFile(tmp_path, "long_fills").read()) == 8

    model = MagnetLlamaForCausalLM.from_pretrained(stories260k)
    gaps = draw_gaps(texts, tokenizer, lengths=[16] * 3, prefix_tokens=40, suffix_tokens=40, seed=0)
    prefixes, suffixes = [gap.prefix for gap in gaps], [gap.suffix for gap in gaps]
    for name, chunk in (("at once", 16), ("chunks of 8", 8)):
        fills = model.infill(prefixes, suffixes, max_new_tokens=16, chunk_size=chunk)
        record = by_unit[f"{name}, greedy"]
        assert [sample["fill"] for sample in record.samples] == fills
        expected = continuation_perplexity(model, tokenizer, gaps, fills)
        assert record.metrics["continuation_perplexity"] == pytest.approx(expected)
        assert record.metrics["rep_4"] == repetition_n(fills)
        logprobs = [
            value
            for one in PromptedInfiller(model, tokenizer).score_infill(prefixes, [[fill] for fill in fills], suffixes)
            for value in one[0].logprobs
        ]
        assert record.metrics["fill_perplexity"] == pytest.approx(np.exp(-np.mean(logprobs)))
    for name in ("at once", "chunks of 8", "judge, left to right"):
        greedy, sampled = by_unit[f"{name}, greedy"], by_unit[f"{name}, sampled"]
        assert (greedy.settings["sampling"], sampled.settings["sampling"]["do_sample"]) == ({}, True)
        assert greedy.samples != sampled.samples
    assert [sample["truth"] for sample in by_unit["what stood there"].samples] == [gap.truth for gap in gaps]


def test_long_gaps_of_wikitext(wiki_7m, tmp_path, short_context):
    write_wikitext(tmp_path, number=200)
    options = ["--judge", str(wiki_7m), "--data", str(tmp_path), "--number", "2", "--gap_tokens", "8", "--chunks", "8"]
    records = long_gaps.main(
        ["--model", f"m={wiki_7m}", *options, "--kinds", "greedy", "--results", str(tmp_path), "--device", "cpu"]
    )
    assert [record.unit for record in records][-1] == "at once, greedy"
    (texts,) = {record.settings["texts"] for record in records}
    assert texts == "wiki.valid.tokens.xz, detokenised, <unk> replaced by 'unknown'"
    assert all("\n" not in sample["prefix"] for record in records for sample in record.samples)


def test_long_gaps_tell_all_that_cannot_work(stories260k, tmp_path):
    options = ["--model", f"m={stories260k}", "--judge", "no/where", "--data", str(tmp_path), "--number", "0"]
    with pytest.raises(ValueError, match="The arguments cannot be used") as raised:
        long_gaps.main([*options, "--gap_tokens", "300", "--chunks", "0", "400"])
    for complaint in (
        "`--number` is 0",
        r"`--chunks` has [0, 400]; expected 1 to 300",
        "m reads 512 tokens, but a gap and its text take 621",
        "the judge: ",
        "has no wiki.valid.tokens.xz",
    ):
        assert complaint in str(raised.value)
