"""Reproduce Table 6 of the paper: accuracy on MMLU in percent, by lm-eval.

    python examples/evaluate/mmlu.py --model base=DIR MAGNET=DIR --data FOLDER
    python examples/evaluate/mmlu.py --model "MAGNET, adapter off=ADAPTER" --reading adapter_off --preset smoke
    lm_eval run --model hf --model_args pretrained=DIR,dtype=float32 --tasks mmlu --num_fewshot 5 --batch_size 8

The last command needs only lm-eval and a saved checkpoint (for an adapter: `pretrained=BASE,peft=ADAPTER`). This
script uses lm-eval's tasks, prompts, scoring and averages, too. The paper does not state how many examples precede a
question; `--preset paper` uses five, because the base's 45.3 is the five-shot figure of the Llama 2 report.

Each group of subjects has its own record, so an interrupted run resumes at the group it was in. Prompts longer than
the model's context lose their beginning; `truncated` counts them.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from datasets import DatasetDict

from examples.command_line import at_least, raise_complaints, require_extra, start
from examples.evaluate.parts.driver import Measurement, NotAvailableError, Unit, open_magnet, run
from examples.evaluate.parts.mmlu_data import (
    EXAMPLES_PER_SUBJECT,
    GROUPS,
    load_group,
    name_questions,
    only_errors,
    read_questions,
)
from examples.evaluate.parts.options import add_batch_size, add_limit, make_parser, model_complaints, parse
from examples.evaluate.parts.records import Record, RecordFile, identify
from modeling_magnet.families_magnet import open_without_weights
from modeling_magnet.sources_magnet import ADAPTER_CONFIG, ModelSource

try:
    from lm_eval import evaluate
    from lm_eval.api.group import Group
    from lm_eval.api.metrics import aggregate_subtask_metrics, mean_stderr, pooled_sample_stderr
    from lm_eval.models.huggingface import HFLM
except ImportError:  # `main` reports the missing extra, so that `--help` works without it
    HFLM = Group = object

TABLE = "mmlu"
READINGS = ("adapted", "adapter_off")
SMOKE = {"num_fewshot": 0, "limit": 2, "batch_size": 8}
PAPER = {"num_fewshot": 5, "limit": None, "batch_size": 8}


class CausalLM(HFLM):
    """Adapt an opened model for lm-eval, and remember the prompts that lm-eval truncates."""

    def __init__(self, model: Any, tokenizer: Any, *, batch_size: int) -> None:
        with only_errors():  # that it received a model and not a path
            super().__init__(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)
        self.cut: set[str] = set()

    def _loglikelihood_tokens(self, requests: Any, *args: Any, **kwargs: Any) -> Any:
        """Count truncated prompts instead of logging each of them, as lm-eval does."""
        for (context, _), context_ids, choice_ids in requests:
            if len(context_ids) + len(choice_ids) > self.max_length + 1:  # the last token is not read
                self.cut.add(context)
        return super()._loglikelihood_tokens(requests, *args, **kwargs)


@dataclass
class OpenedModel:
    """A model for all columns, with the groups that this run has measured."""

    lm: CausalLM
    path: str
    groups: dict[str, Measurement] = field(default_factory=dict)


def open_reader(path: str, args: argparse.Namespace) -> OpenedModel:
    """Open the model in the requested reading."""
    model = open_magnet(path, args)
    if args.reading == "adapter_off":
        model.set_adapter_modes(["bidirectional", "infill"])
    elif model.has_adapter:  # the stored adapter modes may exclude causal
        model.set_adapter_modes(None)
    return OpenedModel(CausalLM(model, model.tokenizer, batch_size=args.batch_size), path)


def evaluate_group(lm: CausalLM, group: Group, *, num_fewshot: int, limit: int | None) -> Measurement:
    """Return the accuracy on the subjects of a group, each weighted by its questions."""
    tasks = {task.task_name: task for task in group.get_all_tasks()}
    for task in tasks.values():
        task.set_config("num_fewshot", num_fewshot)
    with only_errors():
        output: Any = evaluate(lm, {"tasks": tasks, "groups": {group.name: group}}, limit=limit)
    counts = {"questions": 0, "truncated": 0}
    for name, task in tasks.items():
        samples = output["samples"][name]
        subject = task.config.dataset_name
        counts["questions"] += len(samples)
        counts["truncated"] += sum(sample["arguments"][0][0] in lm.cut for sample in samples)
        counts[f"questions, {subject}"] = len(samples)
        counts[f"correct, {subject}"] = sum(round(sample["acc"]) for sample in samples)
    accuracy, stderr = output["groups"][group.name]["acc,none"], output["groups"][group.name]["acc_stderr,none"]
    metrics = {"accuracy": accuracy, "stderr": stderr}  # a single question has no standard error
    return Measurement(metrics={name: 100 * float(x) for name, x in metrics.items() if x != "N/A"}, counts=counts)


def average_groups(groups: Sequence[Measurement | Record]) -> Measurement:
    """Compute lm-eval's average over all subjects, each weighted by its questions, from the counts of the groups."""
    counts: dict[str, int] = {"questions": 0, "truncated": 0}
    sizes, correct = [], []
    for group in groups:
        for name in counts:
            counts[name] += group.counts[name]
        subjects = [name.removeprefix("correct, ") for name in group.counts if name.startswith("correct, ")]
        sizes += [group.counts[f"questions, {subject}"] for subject in subjects]
        correct += [group.counts[f"correct, {subject}"] for subject in subjects]
    accuracies = [right / size for right, size in zip(correct, sizes, strict=True)]
    metrics = {"accuracy": 100 * float(aggregate_subtask_metrics(accuracies, sizes))}
    if min(sizes) > 1:
        stderrs = [mean_stderr([1] * right + [0] * (n - right)) for right, n in zip(correct, sizes, strict=True)]
        metrics["stderr"] = 100 * float(pooled_sample_stderr(stderrs, sizes))
    return Measurement(metrics=metrics, counts=counts)


def make_units(args: argparse.Namespace, questions: dict[str, DatasetDict] | None) -> list[Unit]:
    """Return the columns: four groups of subjects, and their average."""
    settings = {
        "reading": args.reading,
        "num_fewshot": args.num_fewshot,
        "limit": args.limit,
        "batch_size": args.batch_size,
        "data": name_questions(questions),
    }

    def measure_group(name: str, opened: OpenedModel) -> Measurement:
        try:
            group = load_group(GROUPS[name], questions)
        except (OSError, ValueError) as error:  # the latter if only some subjects were downloaded before
            if questions is not None:
                raise
            raise NotAvailableError(f"{settings['data']} cannot be read from the Hub ({error})") from error
        opened.groups[name] = evaluate_group(opened.lm, group, num_fewshot=args.num_fewshot, limit=args.limit)
        return opened.groups[name]

    def measure_average(opened: OpenedModel) -> Measurement:
        groups = {name: opened.groups.get(name) or _on_record(args, opened.path, name, settings) for name in GROUPS}
        missing = [name for name, group in groups.items() if group is None]
        if missing:
            raise NotAvailableError(f"not measured: {', '.join(missing)}")
        return average_groups([group for group in groups.values() if group is not None])

    groups = [Unit(name, settings, partial(measure_group, name)) for name in GROUPS]
    return [*groups, Unit("average", settings, measure_average)]


def _on_record(args: argparse.Namespace, path: str, unit: str, settings: dict[str, Any]) -> Record | None:
    """Return a group that an earlier run has measured with the same weights and settings."""
    identity = identify(path)
    settings = {**settings, "dtype": args.dtype, "preset": args.preset}
    for record in reversed(RecordFile(args.results, TABLE).read()):
        if (record.unit, record.model, record.settings) == (unit, identity, settings) and record.metrics:
            return record
    return None


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = make_parser(__doc__, smoke=SMOKE, paper=PAPER)
    parser.add_argument("--reading", default="adapted", choices=READINGS, help="adapter on or off")
    parser.add_argument("--num_fewshot", type=at_least(0, EXAMPLES_PER_SUBJECT), help="examples before a question")
    add_limit(parser, "first questions of each subject; all if left out")
    add_batch_size(parser, "prompts of one forward", default=None)
    return parse(parser, arguments)


def _check_model(path: str, args: argparse.Namespace) -> None:
    """Refuse a model that does not support the reading."""
    open_without_weights(path)
    if args.reading == "adapter_off" and ModelSource(path, {}).file(ADAPTER_CONFIG) is None:
        raise ValueError(f"{path!r} has no adapter that could be off. Pass `--reading adapted`.")


def main(arguments: list[str] | None = None) -> list[Record]:
    """Measure the named models."""
    args = parse_arguments(arguments)
    require_extra("eval", "lm_eval.models.huggingface")
    complaints, questions = model_complaints(args.model, lambda path: _check_model(path, args)), None
    if args.data is not None:
        try:
            questions = read_questions(args.data)
        except ValueError as error:
            complaints.append(f"`--data`: {error}")
    raise_complaints(complaints)
    return run(TABLE, args, make_units(args, questions), open_model=open_reader)


if __name__ == "__main__":
    start(main)
