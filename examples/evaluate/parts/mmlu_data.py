"""Load MMLU as lm-eval defines it, with questions from the Hub or from files on disk.

Descriptions, templates, choice of the examples and groups are read from the installed lm-eval; this module replaces
only the source of the questions.
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

from examples.files import data_file, open_text
from trainer.files import parse_json

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
    """Return lm-eval's index restricted to its MMLU tasks, which loads fast."""
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
    """Silence lm-eval's warnings that a model or data set was passed as an object."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def load_group(group: str, questions: dict[str, DatasetDict] | None) -> Group:
    """Load a group of subjects for evaluation."""
    from lm_eval.api.group import Group

    manager = task_manager()
    loaded = Group.from_config(manager.task_index[group].cfg)
    for subject, config in task_configs(manager, group).items():
        source = {} if questions is None else {"custom_dataset": _loader_of(questions[subject])}
        with only_errors():
            (task,) = manager.load({**config, **source})["tasks"].values()
        loaded.add(task)
    return loaded


def read_questions(folder: Path) -> dict[str, DatasetDict]:
    """Read examples and questions of all subjects from the files of a folder."""
    manager = task_manager()
    subjects = [subject for group in GROUPS.values() for subject in task_configs(manager, group)]
    rows: dict[str, dict[str, list[dict[str, Any]]]] = {subject: {} for subject in subjects}
    for split, name in FILE_NAMES.items():
        file = _find(folder, name)
        with open_text(file) as stream:
            for number, line in enumerate(stream, start=1):
                row = _question(line)
                if row is None or row["subject"] not in rows:
                    raise ValueError(
                        f"Line {number} of {str(file)!r} is {line!r:.80}; expected JSON with a subject of lm-eval's "
                        f"{len(subjects)}, a question, {len(LETTERS)} choices and the index of the answer. Correct it."
                    )
                rows[row["subject"]].setdefault(split, []).append(row)
        least = EXAMPLES_PER_SUBJECT if split == "dev" else 1
        few = [subject for subject in subjects if len(rows[subject].get(split, [])) < least]
        if few:
            raise ValueError(
                f"{str(file)!r} has too few questions of {few[:3]} ({len(few)} of {len(subjects)} subjects); expected "
                f"at least {least} of each, since a group's figure is that of all its subjects. Put them there."
            )
    return {
        subject: DatasetDict({split: Dataset.from_list(rows, features=_FEATURES) for split, rows in splits.items()})
        for subject, splits in rows.items()
    }


def _question(line: str) -> dict[str, Any] | None:
    """Return the columns of a question, or `None` if the line is invalid."""
    try:
        values = parse_json(line)
        row = {name: values[name] for name in _FEATURES}
        has_texts = all(isinstance(text, str) for text in (row["question"], row["subject"], *row["choices"]))
        is_whole = has_texts and isinstance(row["choices"], list) and len(row["choices"]) == len(LETTERS)
        return row if is_whole and type(row["answer"]) is int and 0 <= row["answer"] < len(LETTERS) else None
    except (ValueError, KeyError, TypeError):
        return None


def name_questions(questions: dict[str, DatasetDict] | None) -> str:
    """Identify the questions in the settings of a record: the Hub id, or a digest of all rows."""
    if questions is None:
        return HUB_ID
    digest = hashlib.sha256()
    for subject in sorted(questions):
        for split in FILE_NAMES:
            digest.update(json.dumps([subject, split, questions[subject][split].to_list()]).encode())
    return digest.hexdigest()[:16]


def _loader_of(rows: DatasetDict) -> Callable[..., DatasetDict]:
    """Return the function that lm-eval calls with the task's metadata to load the questions."""

    def load(**metadata: Any) -> DatasetDict:
        return rows

    return load


def _find(folder: Path, name: str) -> Path:
    """Find a file in a folder or one of its subfolders, compressed or not."""
    for suffix in _SUFFIXES:
        file = data_file(folder, f"{name}{suffix}")
        if file.is_file():
            return file
    raise ValueError(f"{str(folder)!r} has no {name}, plain, .gz or .xz. Put it there.")
