"""MMLU as lm-eval defines it, with the questions of the Hub or of files on disk.

Descriptions, templates, choice of the examples and groups are read from the installed lm-eval; from here comes at most
where the questions are.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value

from examples.files import data_file, whole_text
from trainer.whole_files import parse_json

if TYPE_CHECKING:  # of the extra `eval`; imported where it is used
    from lm_eval.api.group import Group
    from lm_eval.tasks import TaskManager

# The columns of the paper's table, by lm-eval's names.
GROUPS = {
    "humanities": "mmlu_humanities",
    "stem": "mmlu_stem",
    "social sciences": "mmlu_social_sciences",
    "other": "mmlu_other",
}
HUB_ID = "cais/mmlu"
EXAMPLES_PER_SUBJECT = 5
FILE_NAMES = {"dev": "mmlu_dev.jsonl", "test": "mmlu_test.jsonl"}
LETTERS = ["A", "B", "C", "D"]

_SUFFIXES = ("", ".gz", ".xz")
_FEATURES = Features(
    {
        "question": Value("string"),
        "subject": Value("string"),
        "choices": List(Value("string")),
        "answer": ClassLabel(names=LETTERS),
    }
)


def task_manager() -> TaskManager:
    """Return lm-eval's index of its own MMLU tasks only, which is read at once."""
    import lm_eval.tasks
    from lm_eval.tasks import TaskManager

    folder = Path(lm_eval.tasks.__file__).parent / "mmlu" / "default"
    return TaskManager(include_path=folder, include_defaults=False)


def task_configs(manager: TaskManager, group: str) -> dict[str, dict[str, Any]]:
    """Return lm-eval's configurations of a group's tasks."""
    index = manager.task_index
    tasks = [task for tag in index[group].cfg["task"] for task in sorted(index[tag].tags)]
    return {index[task].cfg["dataset_name"]: index[task].cfg for task in tasks}


@contextmanager
def only_errors() -> Iterator[None]:
    """Keep lm-eval from telling of each task that it was given what it was given."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def load_group(group: str, questions: dict[str, DatasetDict] | None) -> Group:
    """Return a group of subjects, ready to be evaluated."""
    from lm_eval.api.group import Group

    manager = task_manager()
    loaded = Group.from_config(manager.task_index[group].cfg)
    for subject, config in task_configs(manager, group).items():
        source = {} if questions is None else {"custom_dataset": _giver(questions[subject])}
        with only_errors():
            (task,) = manager.load({**config, **source})["tasks"].values()
        loaded.add(task)
    return loaded


def read_questions(folder: Path) -> dict[str, DatasetDict]:
    """Read examples and questions from the files of a folder."""
    manager = task_manager()
    subjects = [subject for group in GROUPS.values() for subject in task_configs(manager, group)]
    files = {split: _find(folder, name) for split, name in FILE_NAMES.items()}
    rows: dict[str, dict[str, list[dict[str, Any]]]] = {subject: {} for subject in subjects}
    for split, file in files.items():
        for number, row in _read(file):
            reason = _complaint(row, subjects)
            if reason is not None:
                raise ValueError(f"Line {number} of {str(file)!r} {reason}. Correct it.")
            rows[row["subject"]].setdefault(split, []).append({name: row[name] for name in _FEATURES})
        missing = [subject for subject in subjects if split not in rows[subject]]
        if missing:
            raise ValueError(
                f"{str(file)!r} has no question of {missing[:3]} ({len(missing)} of {len(subjects)} subjects are "
                "missing). A group's figure is that of all its subjects; put them there."
            )
        few = [subject for subject in subjects if len(rows[subject][split]) < EXAMPLES_PER_SUBJECT]
        if split == "dev" and few:
            raise ValueError(
                f"{str(file)!r} has fewer than {EXAMPLES_PER_SUBJECT} examples of {few[:3]}; expected that many of "
                "each subject. Put them there."
            )
    return {
        subject: DatasetDict({split: Dataset.from_list(found, features=_FEATURES) for split, found in splits.items()})
        for subject, splits in rows.items()
    }


def name_questions(questions: dict[str, DatasetDict] | None) -> str:
    """Return what tells other questions apart, for the settings of a record: the Hub id, or a digest of all rows."""
    if questions is None:
        return HUB_ID
    digest = hashlib.sha256()
    for subject in sorted(questions):
        for split in FILE_NAMES:
            digest.update(json.dumps([subject, split, questions[subject][split].to_list()]).encode())
    return digest.hexdigest()[:16]


def _giver(rows: DatasetDict) -> Callable[..., DatasetDict]:
    """Return what lm-eval calls, with the task's metadata, in place of loading from the Hub."""

    def give(**metadata: Any) -> DatasetDict:
        return rows

    return give


def _find(folder: Path, name: str) -> Path:
    """Return a file of a folder or one of its sub-folders, compressed or not."""
    for suffix in _SUFFIXES:
        file = data_file(folder, f"{name}{suffix}")
        if file.is_file():
            return file
    raise ValueError(f"{str(folder)!r} has no {name}, plain, .gz or .xz. Put it there.")


def _read(file: Path) -> Iterator[tuple[int, Any]]:
    """Yield the lines of a file as JSON, numbered from 1; `None` where one is none."""
    with whole_text(file) as stream:
        for number, line in enumerate(stream, start=1):
            try:
                yield number, parse_json(line)
            except ValueError:
                yield number, None


def _complaint(row: Any, subjects: list[str]) -> str | None:
    """Return what is wrong with a row, if anything."""
    if not isinstance(row, dict) or not set(_FEATURES) <= set(row):
        return f"is not a JSON object with {', '.join(_FEATURES)}"
    if row["subject"] not in subjects:
        return f"has the subject {row['subject']!r}, which is not one of lm-eval's {len(subjects)}"
    choices = row["choices"]
    if not isinstance(choices, list) or [type(choice) for choice in choices] != [str] * len(LETTERS):
        return f"has the choices {choices!r:.80}; expected {len(LETTERS)} strings"
    if type(row["answer"]) is not int or row["answer"] not in range(len(LETTERS)):
        return f"has the answer {row['answer']!r}; expected an index from 0 to {len(LETTERS) - 1}"
    if not isinstance(row["question"], str):
        return f"has the question {row['question']!r:.80}; expected a string"
    return None


__all__ = [
    "EXAMPLES_PER_SUBJECT", "GROUPS", "load_group", "name_questions", "only_errors", "read_questions",
    "task_configs", "task_manager",
]  # fmt: skip
