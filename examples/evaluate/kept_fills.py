"""The fills of many systems, kept batch by batch in one file for each, so that a killed run goes on."""

import hashlib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tqdm import tqdm

from examples.evaluate.command_line import check
from examples.evaluate.fill_systems import FillSystem, StoryGap
from trainer.prompted_infilling import SolvedGap
from trainer.whole_files import append_rows, resume_rows


def fill_all(
    systems: Sequence[FillSystem],
    gaps: Sequence[StoryGap],
    examples: Sequence[SolvedGap],
    *,
    folder: Path,
    identities: Mapping[str, Mapping[str, Any]],
    open_model: Callable[[str], Any],
    options: Mapping[str, Any],
) -> dict[str, list[str]]:
    """Fill what is not on disk yet.

    Args:
        systems (`Sequence[FillSystem]`): Who fills.
        gaps (`Sequence[StoryGap]`): The stories.
        examples (`Sequence[SolvedGap]`): Solved ones for the prompts.
        folder (`Path`): Of the files.
        identities (`Mapping[str, Mapping]`): Of each model by its role, see `identify`.
        open_model (`Callable`): From a role to the model; called where fills of its systems are missing, once each.
        options (`Mapping`): `max_new_tokens` and `batch_size`, and whatever else the fills depend on.

    Returns:
        `dict[str, list[str]]`: By system, one fill a story.

    Raises:
        ValueError: files that were begun with other models, stories or options; a prompt that exceeds the context.
    """
    digest = hashlib.sha256(json.dumps([gaps, examples]).encode()).hexdigest()[:16]
    files = {system.name: folder / f"{quote(system.name, safe=' ,')}.jsonl" for system in systems}
    fills: dict[str, list[str]] = {}
    complaints = []
    for system in systems:
        own = system.settings(max_new_tokens=options["max_new_tokens"])
        try:
            rows = resume_rows(
                files[system.name], settings={**options, **own, "model": identities[system.model], "texts": digest}
            )
            fills[system.name] = [row["fill"] for row in rows]
        except ValueError as error:
            complaints.append(str(error))
    check(complaints)
    done = sum(map(len, fills.values()))
    with tqdm(total=len(systems) * len(gaps), initial=done, desc="Filling", unit="fill", file=sys.stderr) as bar:
        for role in identities:
            waiting = [system for system in systems if system.model == role and len(fills[system.name]) < len(gaps)]
            model = open_model(role) if waiting else None
            _check_lengths(model, waiting, gaps, examples, room=options["max_new_tokens"])
            for system in waiting:
                bar.set_postfix_str(system.name)
                _fill_on(system, model, gaps, examples, fills[system.name], files[system.name], options, bar)
    return fills


def _fill_on(
    system: FillSystem,
    model: Any,
    gaps: Sequence[StoryGap],
    examples: Sequence[SolvedGap],
    written: list[str],
    file: Path,
    options: Mapping[str, Any],
    bar: Any,
) -> None:
    """Go on with the fills of one system, to the end."""
    size = options["batch_size"]
    while len(written) < len(gaps):
        # Batches begin at multiples of their size, so that a resumed run writes what a whole one writes.
        first = len(written) // size * size
        fills = system.fill(
            model,
            gaps[first : first + size],
            examples=examples,
            max_new_tokens=options["max_new_tokens"],
            batch_size=size,
        )
        new = fills[len(written) - first :]
        append_rows(file, [{"fill": fill} for fill in new])
        written += new
        bar.update(len(new))


def _check_lengths(
    model: Any, systems: Sequence[FillSystem], gaps: Sequence[StoryGap], examples: Sequence[SolvedGap], *, room: int
) -> None:
    """Refuse prompts that the model cannot read, before anything is written with it."""
    over = {system.name: system.overflow(model, gaps, examples, room=room) for system in systems}
    check(
        [
            f"The longest prompt of {name!r} exceeds the model's context by {tokens} tokens. Lower `--shots`, or name "
            "the others in `--systems`."
            for name, tokens in over.items()
            if tokens
        ]
    )


__all__ = ["fill_all"]
