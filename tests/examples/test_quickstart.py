"""Run the quickstart on its smallest budget, and test its questions against explicit counts."""

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from examples.demo.infill import fill_text
from examples.quickstart import TEXT, verdict
from examples.toy.exam import Exam
from examples.toy.language import CONSEQUENCES, MISSING, THINGS, read_rows, write_corpus
from examples.toy.model import open_model, quickstart_model
from examples.toy.table import COLUMNS
from examples.toy.training import SMOKE, Budget, prepare, train_magnet

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "quickstart.py"


@pytest.fixture(scope="module")
def exam(tmp_path_factory) -> Exam:
    budget = Budget(stories=300, pairs=200, tests=8)
    return prepare(tmp_path_factory.mktemp("corpus"), budget=budget, seed=0).exam


@pytest.fixture(scope="module")
def llama(exam) -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=len(exam.tokenizer), initializer_range=0.5, **sizes)
    return LlamaForCausalLM(config).eval()


# ---- From end to end ----


@pytest.fixture(scope="module")
def smoke_run(tmp_path_factory) -> tuple[subprocess.CompletedProcess, Path]:
    """Run the command of the README's first line outside the repository."""
    folder = tmp_path_factory.mktemp("quickstart")
    process = subprocess.run(
        [sys.executable, str(SCRIPT), "--smoke", "--output_dir", "run", "--seed", "3"],
        cwd=folder,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    return process, folder / "run"


def test_table_asks_every_applicable_question(smoke_run) -> None:
    process, folder = smoke_run
    assert process.stdout.splitlines()[-1].startswith("quickstart: OK (MAGNET ")
    figures = json.loads((folder / "figures.json").read_text())
    for row, cells in figures.items():
        least, most = (1, math.inf) if row.startswith("perplexity") else (0, 1)
        assert set(cells) <= set(COLUMNS) and all(least <= value <= most for value in cells.values()), row
    assert figures["hidden fact, from both sides"]["chance"] == 1 / len(THINGS)
    span = "perplexity of the span, from"
    assert figures[f"{span} the left"]["best possible"] == pytest.approx((6 * 16) ** (1 / 8))
    assert figures[f"{span} both sides"]["best possible"] == pytest.approx(6 ** (1 / 8))
    table = (folder / "table.md").read_text().strip()
    assert table in process.stdout
    lines = [line for line in table.splitlines() if line.startswith("|")]
    assert len(lines) == len(figures) + 2 > 2 and len({len(line) for line in lines}) == 1


def test_quickstart_saves_plots_and_a_stock_checkpoint(smoke_run) -> None:
    _, folder = smoke_run
    for name in ("masks.png", "curves.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")
    assert type(AutoModelForCausalLM.from_pretrained(folder / "magnet")) is LlamaForCausalLM


def test_train_magnet_equals_the_quickstart_model(smoke_run, tmp_path) -> None:
    """Check that training no control does not change the result."""
    alone = train_magnet(tmp_path, budget=SMOKE, seed=3)
    of_the_quickstart = smoke_run[1] / "magnet" / "model.safetensors"
    assert (alone / "model.safetensors").read_bytes() == of_the_quickstart.read_bytes()


def test_full_run_below_90_percent_fails() -> None:
    assert verdict(0.9, smoke=False, seconds=99.4) == ("quickstart: OK (MAGNET 90 %; 99 s)", 0)
    assert verdict(0.89, smoke=False, seconds=1)[1] == 1 and verdict(0.0, smoke=True, seconds=1)[1] == 0


# ---- The tokenizer ----


def test_missing_sentences_have_equal_token_counts(exam) -> None:
    for thing in THINGS:
        for sentence in MISSING:
            ids = exam.tokenizer(" " + sentence.format(thing=thing), add_special_tokens=False)["input_ids"]
            assert len(exam.tokenizer(" " + thing, add_special_tokens=False)["input_ids"]) == 1
            assert len(sentence.split()) == 7 and sentence.endswith(".")
            assert exam.tokenizer.decode(ids) == " " + sentence.format(thing=thing)


# ---- The questions ----


def test_causal_span_perplexity_equals_an_explicit_loop(exam, llama) -> None:
    losses = []
    for story in exam.stories:
        ids = exam.tokenizer(story.prefix + story.missing)["input_ids"]
        start = len(exam.tokenizer(story.prefix)["input_ids"])
        log_probs = llama(torch.tensor([ids])).logits[0].log_softmax(-1)
        losses += [-log_probs[position - 1, ids[position]].item() for position in range(start, len(ids))]
    assert exam.missing_perplexity(llama) == pytest.approx(torch.tensor(losses).double().mean().exp().item(), rel=1e-4)


def test_scored_facts_equal_whole_text_scores(exam, llama) -> None:
    hits = 0
    for story in exam.stories:
        scores = {}
        for thing in THINGS:
            text = story.prefix + story.missing.replace(story.answer, thing) + story.suffix
            ids = torch.tensor([exam.tokenizer(text)["input_ids"]])
            scores[thing] = llama(ids, labels=ids).loss.item() * (ids.shape[1] - 1)
        hits += min(scores, key=scores.__getitem__) == story.answer
    assert exam.scored_facts(llama) == hits / len(exam.stories)


# ---- The table and the masks ----


def test_final_command_uses_the_language_of_the_corpus(tmp_path):
    paths = write_corpus(tmp_path, seed=0, stories=8000, pairs=10, tests=8)
    texts = [row["text"] for row in read_rows(paths["stories_train"])]
    words = {word for text in texts for word in re.findall(r"\w+", text)}
    assert set(re.findall(r"\w+", TEXT.replace("[blank]", ""))) <= words
    # Whole sentences of the corpus, with a consequence of only one thing.
    sentences = {sentence for text in texts for sentence in re.split(r"(?<=\.) ", text)}
    opening, middle, following = re.split(r"(?<=\.) ", TEXT)
    assert {opening, middle.replace("[blank]", "raincoat"), following} <= sentences
    assert [thing for thing, consequence in CONSEQUENCES.items() if following in consequence] == ["raincoat"]


@pytest.mark.nightly  # trains the quickstart's model: three minutes
def test_final_command_prints_the_right_fill(tmp_path):
    model = open_model(str(quickstart_model(tmp_path)), device="cpu")
    filled = fill_text(model, TEXT, length=None, answers=1)
    assert filled.fills[0][0]["text"].strip() == "raincoat"
