"""MMLU: the prompts, the figures and the averages are lm-eval's own, also where the questions come from files."""

import gzip
import json
import lzma
import random

import numpy as np
import pytest
import torch
from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer

from examples.evaluate import mmlu
from examples.evaluate.driver import Unit
from examples.evaluate.mmlu_data import GROUPS, load_group, name_questions, read_questions, task_configs, task_manager
from examples.evaluate.records import RecordFile
from modeling_magnet import MagnetLlamaForCausalLM

from ..conftest import REPOSITORY

SHARED = REPOSITORY.parent / "shared" / "data" / "mmlu"
WORDS = "cat mat dog apple bread girl forest lunch sat barked little sentence".split()
SUBJECTS = [subject for group in GROUPS.values() for subject in task_configs(task_manager(), group)]


def make_rows(*, count):
    """Questions of all subjects; `count` says how many a subject has, by its place."""
    draw = random.Random(0)
    return [
        {
            "subject": subject,
            "question": f" {' '.join(draw.choices(WORDS, k=4))}\n" if number else "Who sat?",
            "choices": draw.choices(WORDS, k=4),
            "answer": draw.randrange(4),
        }
        for place, subject in enumerate(SUBJECTS)
        for number in range(count(place))
    ]


def write(file, rows):
    text = "".join(json.dumps(row) + "\n" for row in rows).encode()
    file.write_bytes({".gz": gzip.compress, ".xz": lzma.compress}.get(file.suffix, bytes)(text))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Five examples a subject, and two to five questions: an average has to weigh them."""
    folder = tmp_path_factory.mktemp("mmlu")
    write(folder / "mmlu_dev.jsonl.gz", make_rows(count=lambda place: 5))
    write(folder / "mmlu_test.jsonl.xz", make_rows(count=lambda place: 2 + place % 4))
    return folder


@pytest.fixture(scope="module")
def questions(folder):
    return read_questions(folder)


@pytest.fixture
def saved(tmp_path, tiny_model):
    tiny_model.save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


@pytest.fixture
def hub(monkeypatch, questions):
    """lm-eval's own tasks find these questions where they ask for the Hub's."""

    def load(path, name, **kwargs):
        assert path == "cais/mmlu" and not kwargs
        return questions[name]

    monkeypatch.setattr("datasets.load_dataset", load)


def measure(model, folder, results, *options):
    """The records by unit."""
    arguments = ["--model", str(model), "--data", str(folder), "--results", str(results), "--device", "cpu"]
    return {record.unit: record for record in mmlu.main([*arguments, *options])}


def prompts(task, num_fewshot):
    task.set_config("num_fewshot", num_fewshot)
    task.build_all_requests()
    return [instance.args for instance in task.instances]


# ---- Tasks ----


@pytest.mark.long
def test_tasks_and_prompts_are_lm_evals_own_but_for_the_source(hub, questions):
    theirs = task_manager().load(["mmlu"])
    for name in GROUPS.values():
        ours = load_group(name, questions)
        assert ours.child_names == [task.task_name for task in theirs["groups"][name].get_all_tasks()]
        for task in ours.get_all_tasks():
            other = theirs["tasks"][task.task_name]
            one, two = task.dump_config(), other.dump_config()
            assert "give" in one.pop("custom_dataset")
            one["metadata"].pop("config_source"), two["metadata"].pop("config_source")
            assert one == two
            for num_fewshot in (0, 5):
                assert prompts(task, num_fewshot) == prompts(other, num_fewshot)


def test_a_prompt_is_as_the_authors_of_mmlu_wrote_it(questions):
    group = load_group("mmlu_stem", questions)
    (task,) = (task for task in group.get_all_tasks() if task.task_name == "mmlu_abstract_algebra")
    example, question = questions["abstract_algebra"]["dev"][0], questions["abstract_algebra"]["test"][1]
    prompt = "The following are multiple choice questions (with answers) about abstract algebra.\n\n"
    for row in (example, question):
        prompt += row["question"].strip() + "".join(f"\n{x}. {c}" for x, c in zip("ABCD", row["choices"], strict=True))
        prompt += f"\nAnswer: {'ABCD'[example['answer']]}\n\n" if row is example else "\nAnswer:"
    assert prompts(task, 1)[4:8] == [(prompt, f" {letter}") for letter in "ABCD"]


def test_the_groups_hold_each_subject_once():
    assert len(SUBJECTS) == len(set(SUBJECTS)) == 57
    sizes = [len(task_configs(task_manager(), group)) for group in GROUPS.values()]
    assert sizes == [13, 19, 12, 13]


# ---- Figures ----


def test_all_figures_are_those_of_lm_eval_on_the_stock_model(tmp_path, saved, folder, hub):
    records = measure(saved, folder, tmp_path, "--num_fewshot=1")
    stock = HFLM(pretrained=str(saved), device="cpu", dtype="float32", batch_size=8)
    found = simple_evaluate(model=stock, tasks=["mmlu"], num_fewshot=1, task_manager=task_manager())
    accuracies = set()
    for unit, name in {**GROUPS, "average": "mmlu"}.items():
        theirs, ours = found["groups"][name], records[unit]
        assert ours.metrics["accuracy"] == pytest.approx(100 * theirs["acc,none"], abs=1e-11)
        assert ours.metrics["stderr"] == pytest.approx(100 * theirs["acc_stderr,none"], abs=1e-11)
        assert ours.counts["questions"] == theirs["sample_len"]
        accuracies.add(ours.metrics["accuracy"])
    assert len(accuracies) > 2
    for name, samples in found["samples"].items():
        subject = name.removeprefix("mmlu_")
        (group,) = (record for unit, record in records.items() if f"correct, {subject}" in record.counts)
        assert group.counts[f"correct, {subject}"] == sum(sample["acc"] for sample in samples)


@pytest.mark.long
def test_a_choice_is_the_likeliest_of_four_letters_and_takes_one_row(wiki_7m):
    if not SHARED.is_dir():
        pytest.skip("no questions at ../shared/data/mmlu beside the repository")
    model = MagnetLlamaForCausalLM.from_pretrained(wiki_7m).eval()
    rows = []
    model.model.embed_tokens.register_forward_hook(lambda module, args, output: rows.append(len(args[0])))
    lm = mmlu.CausalLM(model, model.tokenizer, batch_size=4)
    group = load_group("mmlu_other", read_questions(SHARED))
    measured = mmlu.evaluate_group(lm, group, num_fewshot=0, limit=2)
    assert sum(rows) == measured.counts["questions"] == 26

    plain = AutoModelForCausalLM.from_pretrained(wiki_7m).eval()
    tokenizer = AutoTokenizer.from_pretrained(wiki_7m)
    letters = [tokenizer(f" {letter}", add_special_tokens=False).input_ids for letter in "ABCD"]
    assert all(len(letter) == 1 for letter in letters)
    for task in group.get_all_tasks():
        correct = 0
        for number, row in enumerate(task.dataset["test"].select(range(2))):
            instances = [instance for instance in task.instances if instance.doc_id == number]
            prompt = f"{task.config.description}{row['question'].strip()}"
            prompt += "".join(f"\n{x}. {choice}" for x, choice in zip("ABCD", row["choices"], strict=True))
            ids = tokenizer(f"{prompt}\nAnswer:", return_tensors="pt").input_ids
            with torch.no_grad():
                logprobs = plain(ids).logits[0, -1].log_softmax(-1)
            by_hand = [float(logprobs[letter[0]]) for letter in letters]
            np.testing.assert_allclose([instance.resps[0][0] for instance in instances], by_hand, atol=1e-4)
            correct += int(np.argmax(by_hand)) == row["answer"]
        assert measured.counts[f"correct, {task.config.dataset_name}"] == correct


@pytest.mark.long
def test_every_likelihood_on_a_real_model_is_that_of_lm_eval_on_the_stock_one(wiki_7m):
    if not SHARED.is_dir():
        pytest.skip("no questions at ../shared/data/mmlu beside the repository")
    model, questions = MagnetLlamaForCausalLM.from_pretrained(wiki_7m).eval(), read_questions(SHARED)
    assert [sum(len(rows[split]) for rows in questions.values()) for split in ("dev", "test")] == [285, 14042]
    readers = [
        mmlu.CausalLM(model, model.tokenizer, batch_size=4),
        HFLM(pretrained=str(wiki_7m), device="cpu", dtype="float32", batch_size=4),
    ]
    answers = []
    for reader in readers:
        subjects = load_group("mmlu_stem", questions).get_all_tasks()[:4]
        for task in subjects:
            task.set_config("num_fewshot", 2)
            task.build_all_requests(limit=2)
        answers.append(reader.loglikelihood([request for task in subjects for request in task.instances]))
    assert len(answers[0]) == 32 and len(set(answers[0])) > 16
    assert answers[0] == answers[1]


def test_cut_prompts_are_counted(tiny_model, questions):
    group, lm = load_group("mmlu_other", questions), mmlu.CausalLM(tiny_model, tiny_model.tokenizer, batch_size=4)
    measured = mmlu.evaluate_group(lm, group, num_fewshot=3, limit=2)
    asked = [task.instances[4 * number].args[0] for task in group.get_all_tasks() for number in range(2)]
    # The last token of prompt and choice is predicted and not read.
    cut = sum(len(tiny_model.tokenizer(f"{prompt} A").input_ids) - 1 > 256 for prompt in asked)
    assert 0 < cut < len(asked)
    assert (measured.counts["truncated"], measured.counts["questions"]) == (cut, len(asked))
    average = mmlu.average_groups([measured, measured])
    assert (average.counts["truncated"], average.metrics["accuracy"]) == (2 * cut, measured.metrics["accuracy"])


def test_a_limit_holds_for_each_subject_and_one_question_has_no_error(tmp_path, saved, folder):
    records = measure(saved, folder, tmp_path, "--num_fewshot=0", "--limit=1")
    assert [record.counts["questions"] for record in records.values()] == [13, 19, 12, 13, 57]
    assert all(set(record.metrics) == {"accuracy"} for record in records.values())


# ---- Adapters ----


def test_without_its_adapter_the_model_is_the_base_to_the_digit(tmp_path, saved, questions):
    torch.manual_seed(1)
    model = MagnetLlamaForCausalLM.from_pretrained(saved)
    model.add_adapter(LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear", init_lora_weights=False))
    model.eval().save_pretrained(tmp_path / "always on")
    model.set_adapter_modes(["bidirectional", "infill"])
    model.save_pretrained(tmp_path / "adapter")

    def likelihoods(path, reading):
        options = ["--model", str(path), "--device", "cpu", "--preset", "smoke", "--reading", reading]
        lm = mmlu.open_reader(str(path), mmlu.parse_arguments(options)).lm
        group = load_group("mmlu_stem", questions)
        mmlu.evaluate_group(lm, group, num_fewshot=0, limit=2)
        return [request.resps[0][0] for task in group.get_all_tasks() for request in task.instances]

    base = likelihoods(saved, "adapted")
    assert likelihoods(tmp_path / "adapter", "adapter_off") == base
    assert likelihoods(tmp_path / "always on", "adapter_off") == base
    adapted = likelihoods(tmp_path / "adapter", "adapted")
    assert max(abs(one - two) for one, two in zip(adapted, base, strict=True)) > 0.1, "on, though it was stored off"
    np.testing.assert_allclose(likelihoods(tmp_path / "adapter", "stock"), adapted, atol=1e-4)


# ---- Records ----


@pytest.mark.long
def test_what_was_killed_goes_on_at_the_group_it_was_in(tmp_path, saved, folder, monkeypatch):
    whole = measure(saved, folder, tmp_path / "whole", "--preset=smoke")
    evaluated, evaluate_group = [], mmlu.evaluate_group

    def killed(lm, group, **options):
        evaluated.append(group.name)
        if len(evaluated) == 3:
            raise KeyboardInterrupt
        return evaluate_group(lm, group, **options)

    monkeypatch.setattr(mmlu, "evaluate_group", killed)
    with pytest.raises(KeyboardInterrupt):
        measure(saved, folder, tmp_path / "results", "--preset=smoke")
    records = measure(saved, folder, tmp_path / "results", "--preset=smoke")
    assert evaluated == [*list(GROUPS.values())[:3], *list(GROUPS.values())[2:]], "each once, the third begun twice"
    assert {unit: record.metrics for unit, record in records.items()} == {u: r.metrics for u, r in whole.items()}
    assert records["average"].counts == whole["average"].counts

    measure(saved, folder, tmp_path / "results", "--preset=smoke")
    assert len(evaluated) == 5
    assert len(RecordFile(tmp_path / "results", "mmlu").read()) == 5


@pytest.mark.long
def test_an_average_is_not_made_of_groups_in_other_settings(tmp_path, saved, folder):
    measure(saved, folder, tmp_path, "--preset=smoke")
    arguments = ["--model", str(saved), "--preset=smoke", "--limit=1", "--results", str(tmp_path), "--device=cpu"]
    args = mmlu.parse_arguments([*arguments, "--data", str(folder)])
    average: Unit = mmlu.make_units(args, read_questions(folder))[-1]
    with pytest.raises(mmlu.NotAvailableError, match="not measured: humanities, stem, social sciences, other"):
        average.measure(mmlu.open_reader(str(saved), args))


@pytest.mark.long
def test_records_name_the_questions(tmp_path, saved, folder, questions):
    record = measure(saved, folder, tmp_path / "results", "--preset=smoke")["stem"]
    assert record.settings == {
        "reading": "adapted",
        "num_fewshot": 0,
        "limit": 2,
        "batch_size": 8,
        "data": name_questions(questions),
        "dtype": "float32",
        "preset": "smoke",
    }
    write(tmp_path / "mmlu_dev.jsonl", make_rows(count=lambda place: 5))
    write(tmp_path / "mmlu_test.jsonl", make_rows(count=lambda place: 3))
    assert name_questions(read_questions(tmp_path)) != name_questions(questions)
    assert name_questions(None) == "cais/mmlu"


def test_questions_that_cannot_be_had_are_on_record(tmp_path, saved, monkeypatch, capsys):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    arguments = ["--model", str(saved), "--preset=smoke", "--results", str(tmp_path / "results"), "--device=cpu"]
    records = mmlu.main(arguments)
    assert len(records) == 5 and not any(record.metrics for record in records)
    assert "cais/mmlu cannot be had from the Hub" in records[0].unavailable
    assert records[-1].unavailable == "not measured: humanities, stem, social sciences, other"


# ---- Bad input ----


@pytest.mark.parametrize(
    "change",
    [
        {"subject": "cooking"},
        {"choices": ["one", "two", "three"]},
        {"choices": [1, 2, 3, 4]},
        {"choices": "ABCD"},
        {"answer": 4},
        {"answer": "A"},
        {"question": None},
    ],
)
def test_a_line_that_is_not_a_question_is_named(tmp_path, change):
    rows = make_rows(count=lambda place: 5)
    write(tmp_path / "mmlu_dev.jsonl", rows)
    write(tmp_path / "mmlu_test.jsonl.gz", [rows[0], rows[1] | change, *rows[2:]])
    with pytest.raises(ValueError, match=r"Line 2 of .*mmlu_test.jsonl.gz' is"):
        read_questions(tmp_path)
