"""Compare prompts, figures and averages of MMLU with lm-eval, also for questions from files."""

import gzip
import json
import lzma
import random

import pytest
from lm_eval import simple_evaluate
from lm_eval.models.huggingface import HFLM

from examples.evaluate import mmlu
from examples.evaluate.parts.mmlu_data import GROUPS, load_group, read_questions, task_configs, task_manager
from modeling_magnet import MagnetLlamaForCausalLM
from tests.adapters import add_lora

WORDS = "cat mat dog apple bread girl forest lunch sat barked little sentence".split()
SUBJECTS = [subject for group in GROUPS.values() for subject in task_configs(task_manager(), group)]


def make_rows(*, count):
    """Return questions of all subjects; `count` gives the number per subject by its index."""
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
    """Write five examples per subject and two to five questions, so that averages need weights."""
    folder = tmp_path_factory.mktemp("mmlu")
    write(folder / "mmlu_dev.jsonl.gz", make_rows(count=lambda place: 5))
    write(folder / "mmlu_test.jsonl.xz", make_rows(count=lambda place: 2 + place % 4))
    return folder


@pytest.fixture(scope="module")
def questions(folder):
    return read_questions(folder)


@pytest.fixture
def hub(monkeypatch, questions):
    """Provide these questions to lm-eval's own tasks in place of the Hub."""

    def load(path, name, **kwargs):
        assert path == "cais/mmlu" and not kwargs
        return questions[name]

    monkeypatch.setattr("datasets.load_dataset", load)


def measure(model, folder, results, *options):
    """Return the records by unit."""
    arguments = ["--model", str(model), "--data", str(folder), "--results", str(results), "--device", "cpu"]
    return {record.unit: record for record in mmlu.main([*arguments, *options])}


# ---- Figures ----


def test_figures_equal_lm_eval_on_the_stock_model(tmp_path, checkpoint, folder, hub):
    records = measure(checkpoint, folder, tmp_path, "--num_fewshot=1")
    stock = HFLM(pretrained=str(checkpoint), device="cpu", dtype="float32", batch_size=8)
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


# ---- Adapters ----


def test_disabled_adapter_scores_like_the_base(tmp_path, checkpoint, questions):
    model = add_lora(MagnetLlamaForCausalLM.from_pretrained(checkpoint))
    model.save_pretrained(tmp_path / "always on")
    model.set_adapter_modes(["bidirectional", "infill"])
    model.save_pretrained(tmp_path / "adapter")

    def likelihoods(path, reading):
        options = ["--model", str(path), "--device", "cpu", "--preset", "smoke", "--reading", reading]
        lm = mmlu.open_reader(str(path), mmlu.parse_arguments(options)).lm
        group = load_group("mmlu_stem", questions)
        mmlu.evaluate_group(lm, group, num_fewshot=0, limit=2)
        return [request.resps[0][0] for task in group.get_all_tasks() for request in task.instances]

    base = likelihoods(checkpoint, "adapted")
    assert likelihoods(tmp_path / "adapter", "adapter_off") == base
    assert likelihoods(tmp_path / "always on", "adapter_off") == base
    adapted = likelihoods(tmp_path / "adapter", "adapted")
    assert max(abs(one - two) for one, two in zip(adapted, base, strict=True)) > 0.1, "on, though it was stored off"


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
def test_malformed_question_line_raises(tmp_path, change):
    rows = make_rows(count=lambda place: 5)
    write(tmp_path / "mmlu_dev.jsonl", rows)
    write(tmp_path / "mmlu_test.jsonl.gz", [rows[0], rows[1] | change, *rows[2:]])
    with pytest.raises(ValueError, match=r"Line 2 of .*mmlu_test.jsonl.gz' is"):
        read_questions(tmp_path)
