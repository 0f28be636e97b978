"""Table 5: infilling judged by people. Stories are filled by every system, blinded, judged in a browser and scored.

    python examples/evaluate/human_evaluation.py sample --base DIR --magnet DIR --output_dir outputs/people
    # people open outputs/people/form.html, and hand back what its button downloads
    python examples/evaluate/human_evaluation.py score --key outputs/people/key.json --answers answers_*.json

`sample` takes a random middle sentence, the second to the fourth, out of each of 100 stories, and has every system of
`fill_systems.py` write one in its place. `form.html` is one file that works offline; every annotator sees all items,
in an order of their own. Keep `key.json` and the folder `fills` from them. The same command resumes an
interrupted `sample`. `score` appends to the records of the table `people`.
"""

import argparse
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from examples.command_line import (
    OneLineParser,
    add_data,
    add_device,
    add_dtype,
    add_output_dir,
    at_least,
    check,
    choose_device,
    need,
    start,
)
from examples.evaluate.annotation_form import make_form, read_answers, read_key, render_form
from examples.evaluate.driver import open_magnet, print_table
from examples.evaluate.fill_systems import BASE, MAGNET, SHOTS, draw_gaps, fill_all, fill_systems
from examples.evaluate.human_scores import CONFIDENCE, RESAMPLES, answers_by_system, overall_agreement, score_systems
from examples.evaluate.records import Record, RecordFile, answered, conditions, identify
from examples.evaluate.stories import TITLES, read_stories, stories_source
from examples.models import offline_where_unreachable
from trainer.whole_files import whole_file

CORPORA = ("rocstories", "story_cloze")
PRESETS: dict[str, dict[str, int]] = {"smoke": {"number": 4, "shots": 2}, "paper": {"number": 100, "shots": SHOTS}}


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Return the command line, with what a preset says."""
    parser = OneLineParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    sample = commands.add_parser("sample", help="fill stories, and write the form and its key")
    sample.add_argument("--base", required=True, help="the model that goes on from the prefix and is prompted")
    sample.add_argument("--magnet", required=True, help="the model that infills")
    sample.add_argument("--more", nargs="+", default=[], metavar="NAME=MODEL", help="further models that infill")
    sample.add_argument("--systems", nargs="+", help="rows of the table to have judged, all if left out")
    add_data(sample)
    sample.add_argument("--corpus", default="rocstories", choices=CORPORA, help="where the stories are from")
    sample.add_argument("--number", type=at_least(), help="stories")
    sample.add_argument("--shots", type=at_least(0), help="solved examples in front of the prompts that take some")
    sample.add_argument("--max_new_tokens", type=at_least(), default=32, help="tokens of a fill at most")
    sample.add_argument("--batch_size", type=at_least(), default=16, help="stories filled together")
    sample.add_argument("--annotators", type=at_least(), default=2, help="people who will judge")
    sample.add_argument("--preset", default="paper", choices=list(PRESETS), help="sizes: of a trial, or in full")
    add_dtype(sample)
    add_device(sample)
    add_output_dir(sample, required=True, help="folder to write, or to go on with")
    score = commands.add_parser("score", help="check answers, and append their figures to the records")
    score.add_argument("--key", type=Path, required=True, help="key.json of the form")
    score.add_argument("--answers", type=Path, nargs="+", required=True, help="what the annotators downloaded")
    score.add_argument("--results", type=Path, default=Path("outputs/results"), help="folder of the records")
    for command in (sample, score):
        command.add_argument("--seed", type=at_least(0), default=0, help="of all draws")
    args = parser.parse_args(arguments)
    if args.command == "sample":
        for name, value in PRESETS[args.preset].items():
            if getattr(args, name) is None:
                setattr(args, name, value)
        _check_sample(args)
    return args


def _check_sample(args: argparse.Namespace) -> None:
    """Refuse what cannot be; leaves models by name in `models`, their identities, and the systems that were chosen."""
    complaints = []
    args.device = choose_device(args.device)
    if args.data is not None and not args.data.is_dir():
        complaints.append(f"`--data` {str(args.data)!r} is not a folder. Name one, or leave it out for the Hub.")
    if args.output.exists() and not args.output.is_dir():
        complaints.append(f"`--output_dir` {str(args.output)!r} is a file. Name a folder.")
    args.models = {BASE: args.base, MAGNET: args.magnet}
    taken = {system.name for system in fill_systems(shots=args.shots)} | {BASE}
    for item in args.more:
        name, _, path = item.partition("=")
        if not (name and path) or name in taken:
            complaints.append(f"`--more` has {item!r}; expected NAME=MODEL with a name that no other system has.")
        taken.add(name)
        args.models[name] = path
    systems = fill_systems(shots=args.shots, more=list(args.models)[2:])
    names = [system.name for system in systems]
    if unknown := sorted(set(args.systems or names) - set(names)):
        complaints.append(f"`--systems` has {unknown}; expected some of {names}.")
    args.systems = [system for system in systems if system.name in (args.systems or names)]
    args.identities = {}
    for role in dict.fromkeys(system.model for system in args.systems):
        try:
            args.identities[role] = identify(args.models[role])
        except ValueError as error:
            complaints.append(str(error))
    check(complaints)


def sample(args: argparse.Namespace) -> dict[str, Any]:
    """Draw stories, fill them by every system, and write the form and its key."""
    if args.data is None:
        offline_where_unreachable()
    stories = read_stories(args.data, corpus=args.corpus)
    gaps, examples = draw_gaps(stories, number=args.number, shots=args.shots, seed=args.seed)
    settings = {name: getattr(args, name) for name in ("corpus", "number", "dtype", "batch_size", "preset", "seed")}
    settings["source"], settings["text"] = stories_source(args.data, corpus=args.corpus)
    systems = {
        system.name: {
            "model": args.identities[system.model],
            "settings": system.settings(max_new_tokens=args.max_new_tokens),
        }
        for system in args.systems
    }
    asked = json.loads(json.dumps({"settings": settings, "systems": systems, "gaps": gaps, "examples": examples}))
    file = args.output / "key.json"
    if file.exists():
        begun = read_key(file)
        if len(begun["annotators"]) != args.annotators or any(begun.get(name) != asked[name] for name in asked):
            raise ValueError(
                f"{str(args.output)!r} holds the form of another run, which people may be answering. Name another "
                "`--output_dir`, or move its form.html and key.json away; fills that can be used again are."
            )
    fills = fill_all(
        args.systems,
        gaps,
        examples,
        folder=args.output / "fills",
        identities=args.identities,
        open_model=lambda role: open_magnet(args.models[role], args),
        options={name: getattr(args, name) for name in ("max_new_tokens", "batch_size", "dtype")},
    )
    shown, key = make_form(gaps, fills, annotators=args.annotators, seed=args.seed)
    key = {**key, **asked, "fills": fills}
    with whole_file(file) as stream:
        stream.write((json.dumps(key, indent=1, ensure_ascii=False) + "\n").encode())
    with whole_file(args.output / "form.html") as stream:
        stream.write(render_form(shown).encode())
    print(
        f"\nhuman_evaluation: OK ({args.output / 'form.html'}; {len(gaps)} stories, {len(fills)} systems, "
        f"{len(shown['items'])} items for each of {args.annotators} annotators)"
    )
    return key


def score(args: argparse.Namespace) -> list[Record]:
    """Check the answers, print the table, and append what is not on record yet."""
    need("eval", "scipy", "sklearn")
    key = read_key(args.key)
    answers = read_answers(key, args.answers)
    given = json.dumps({name: answers[name] for name in sorted(answers)}, sort_keys=True)
    file = RecordFile(args.results, "people")
    on_record = answered(file.read())
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
        if record.question not in on_record:
            file.append(record)
        records.append(on_record.get(record.question, record))
    print_table(records)
    kappa = overall_agreement(key, answers)
    kind = {1: "one annotator, no agreement", 2: "Cohen's kappa over all items"}
    print(f"\n{kind.get(len(answers), 'Cohen kappa over all items, mean over pairs')}", end="")
    print("" if len(answers) == 1 else ": without a meaning here" if kappa is None else f": {kappa:.3f}")
    print(
        f"mcnemar_p: against {MAGNET}; a story counts where more than half of the annotators find its fill appropriate"
    )
    print(f"human_evaluation: OK ({stories} stories, {len(answers)} annotators; {file.path})")
    return records


def main(arguments: list[str] | None = None) -> list[Record]:
    """Run either command; `sample` makes no records."""
    args = parse(arguments)
    if args.command == "score":
        return score(args)
    sample(args)
    return []


if __name__ == "__main__":
    start(main)
