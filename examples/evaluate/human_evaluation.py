"""Reproduce Table 5, infilling judged by people: fill stories with every system, blind, collect judgments, score.

    python examples/evaluate/human_evaluation.py sample --model base=DIR MAGNET=DIR --output_dir outputs/people
    # people open outputs/people/form.html, and hand back what its button downloads
    python examples/evaluate/human_evaluation.py score --key outputs/people/key.json --answers answers_*.json

`sample` removes a random middle sentence, the second to the fourth, from each of 100 stories, and has every system of
`fill_systems.py` write one in its place: the model named `base` is prompted, `MAGNET` and all others infill.
`form.html` is one file that works offline; every annotator sees all items, in an order of their own. Keep `key.json`
and the folder `fills` from them. The same command resumes an interrupted `sample`. `score` appends to the records of
the table `people`.
"""

import argparse
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from examples.command_line import OneLineParser, add_output_dir, at_least, raise_complaints, require_extra, start
from examples.evaluate.parts import options
from examples.evaluate.parts.annotation_form import make_form, read_answers, read_key, render_form
from examples.evaluate.parts.driver import open_magnet, print_table
from examples.evaluate.parts.fill_systems import BASE, MAGNET, SHOTS, draw_blanks, fill_all, fill_systems
from examples.evaluate.parts.human_scores import (
    CONFIDENCE,
    RESAMPLES,
    answers_by_system,
    overall_agreement,
    score_systems,
)
from examples.evaluate.parts.records import Record, RecordFile, conditions, identify, measured_records
from examples.evaluate.parts.stories import TITLES, read_stories, stories_source
from trainer.files import atomic_write

SMOKE, PAPER = {"limit": 4, "shots": 2}, {"limit": 100, "shots": SHOTS}


def sample(args: argparse.Namespace) -> dict[str, Any]:
    """Draw stories, fill them with every system, and write the form and its key."""
    chosen, identities = _check_sample(args)
    stories = read_stories(args.data, corpus=args.corpus)
    blanks, examples = draw_blanks(stories, number=args.limit, shots=args.shots, seed=args.seed)
    settings = {name: getattr(args, name) for name in ("corpus", "dtype", "batch_size", "preset", "seed")}
    settings["number"] = args.limit
    settings["source"], settings["text"] = stories_source(args.data, corpus=args.corpus)
    systems = {
        system.name: {
            "model": identities[system.model],
            "settings": system.settings(max_new_tokens=args.max_new_tokens),
        }
        for system in chosen
    }
    asked = json.loads(json.dumps({"settings": settings, "systems": systems, "gaps": blanks, "examples": examples}))
    file = args.output / "key.json"
    if file.exists():
        begun = read_key(file)
        if len(begun["annotators"]) != args.annotators or any(begun.get(name) != asked[name] for name in asked):
            raise ValueError(
                f"{str(args.output)!r} holds the form of another run, which people may be answering. Name another "
                "`--output_dir`, or move its form.html and key.json away; fills that can be used again are."
            )
    fills = fill_all(
        chosen,
        blanks,
        examples,
        folder=args.output / "fills",
        identities=identities,
        open_model=lambda role: open_magnet(args.model[role], args),
        options={name: getattr(args, name) for name in ("max_new_tokens", "batch_size", "dtype")},
    )
    shown, key = make_form(blanks, fills, annotators=args.annotators, seed=args.seed)
    key = {**key, **asked, "fills": fills}
    with atomic_write(file) as stream:
        stream.write((json.dumps(key, indent=1, ensure_ascii=False) + "\n").encode())
    with atomic_write(args.output / "form.html") as stream:
        stream.write(render_form(shown).encode())
    print(
        f"\nhuman_evaluation: OK ({args.output / 'form.html'}; {len(blanks)} stories, {len(fills)} systems, "
        f"{len(shown['items'])} items for each of {args.annotators} annotators)"
    )
    return key


def _check_sample(args: argparse.Namespace) -> tuple[list[Any], dict[str, dict[str, str | None]]]:
    """Return the selected systems and the identities of their models, after checking the arguments."""
    more = [name for name in args.model if name not in (BASE, MAGNET)]
    systems = [system for system in fill_systems(shots=args.shots, more=more) if system.model in args.model]
    names = [system.name for system in systems]
    complaints = []
    if len(set(names)) < len(names):
        complaints.append("`--model` has the name of a row of the table. Give the model another name.")
    if unknown := sorted(set(args.systems or names) - set(names)):
        complaints.append(f"`--systems` has {unknown}; expected some of {names}.")
    chosen = [system for system in systems if system.name in (args.systems or names)]
    models = {system.model: args.model[system.model] for system in chosen}
    complaints += options.model_complaints(models, identify)
    raise_complaints(complaints)
    identities = {role: identify(path) for role, path in models.items()}
    return chosen, identities


def score(args: argparse.Namespace) -> list[Record]:
    """Check the answers, print the table, and append missing records."""
    require_extra("eval", "scipy", "sklearn")
    key = read_key(args.key)
    answers = read_answers(key, args.answers)
    given = json.dumps({name: answers[name] for name in sorted(answers)}, sort_keys=True)
    file = RecordFile(args.results, "people")
    on_record = measured_records(file.read())
    settings, stories = key["settings"], key["settings"]["number"]
    records = []
    for system, metrics in score_systems(answers_by_system(key, answers), seed=args.seed).items():
        record = Record(
            table="people",
            system=system,
            unit=TITLES[settings["corpus"]],
            settings={
                **settings,
                **key["systems"][system]["settings"],
                "form": key["form"],
                "answers": hashlib.sha256(given.encode()).hexdigest()[:16],
                "interval": f"{CONFIDENCE:.0%}, percentile bootstrap over stories, {RESAMPLES} resamples",
            },
            model=key["systems"][system]["model"],
            seed=args.seed,
            metrics=metrics,
            counts={"stories": stories, "annotators": len(answers)},
            samples=[
                {"prefix": prefix, "fill": fill, "suffix": suffix}
                for (prefix, _, suffix), fill in zip(key["gaps"][:3], key["fills"][system][:3], strict=True)
            ],
            **conditions("cpu"),
        )
        if record.measurement_key not in on_record:
            file.append(record)
        records.append(on_record.get(record.measurement_key, record))
    print_table(records)
    kappa = overall_agreement(key, answers)
    print(f"\nCohen's kappa over all items, mean over pairs of annotators: {'-' if kappa is None else f'{kappa:.3f}'}")
    print(f"mcnemar_p: against {MAGNET}; a story counts where more than half of the annotators accept its fill")
    print(f"human_evaluation: OK ({stories} stories, {len(answers)} annotators; {file.path})")
    return records


def main(arguments: list[str] | None = None) -> list[Record]:
    """Run either command; `sample` writes no records."""
    parser = OneLineParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    sampling = commands.add_parser("sample", help="fill stories, and write the form and its key")
    options.add_measuring(sampling, smoke=SMOKE, paper=PAPER)
    sampling.add_argument("--systems", nargs="+", help="rows of the table to be judged; defaults to all")
    sampling.add_argument("--corpus", default="rocstories", choices=["rocstories", "story_cloze"], help="the stories")
    options.add_limit(sampling, "stories")
    sampling.add_argument("--shots", type=at_least(0), help="solved examples in the prompts that take some")
    options.add_max_new_tokens(sampling, "fill", default=32)
    options.add_batch_size(sampling, "stories filled together")
    sampling.add_argument("--annotators", type=at_least(), default=2, help="people who will judge")
    add_output_dir(sampling, required=True, help="folder to write, or to go on with")
    scoring = commands.add_parser("score", help="check answers, and append their figures to the records")
    scoring.add_argument("--key", type=Path, required=True, help="key.json of the form")
    scoring.add_argument("--answers", type=Path, nargs="+", required=True, help="files that annotators downloaded")
    options.add_results(scoring)
    options.add_seed(scoring)
    args = parser.parse_args(arguments)
    if args.command == "score":
        return score(args)
    sample(options.checked(args))
    return []


if __name__ == "__main__":
    start(main)
