"""What the systems wrote, side by side: one block for each story, all systems under each other."""

from collections.abc import Sequence

from examples.evaluate.records import Record
from examples.reporting.blocks import Bullets, Heading, Story, Text
from examples.reporting.cells import Cells, reading_of

TABLE = "side_by_side"
TITLES = {"infilling": "Gaps filled", "continuation": "Beginnings continued"}
WRITTEN = ("fill", "continuation")


def sample_blocks(cells: Cells, records: Sequence[Record]) -> list[Heading | Text | Bullets | Story]:
    """The section of samples; nothing where there are none.

    Args:
        cells (`Cells`): All records; they name the rows.
        records (`Sequence[Record]`): The newest of each cell, of all tables.
    """
    records = [record for record in records if record.table == TABLE]
    blocks: list[Heading | Text | Bullets | Story] = []
    for unit in sorted({record.unit for record in records}, key=lambda name: (name not in TITLES, name)):
        found = [record for record in records if record.unit == unit]
        blocks.append(Heading(3, TITLES.get(unit, unit)))
        blocks += _stories(cells, found)
        missing = [f"{r.system}: not available here: {r.unavailable}" for r in found if r.unavailable is not None]
        counts = {record.system: sum(_written(one) is None for one in record.samples) for record in found}
        odd = [f"{system}: {count} samples without a text" for system, count in counts.items() if count]
        if missing or odd:
            blocks.append(Bullets("Not shown:", sorted(missing + odd)))
    return blocks


def _stories(cells: Cells, records: Sequence[Record]) -> list[Story]:
    """Samples of the same beginning and end belong together, in the order of their first appearance."""
    writings: dict[tuple[str, str], list[tuple[str, str]]] = {}
    titles: dict[tuple[str, str], str] = {}
    truths: dict[tuple[str, str], str] = {}
    for record in sorted(records, key=lambda one: (one.system, one.replica, one.seed, one.step or 0)):
        alike = [one for one in records if one.system == record.system]
        # Another unit may have been read in another way; only what differs within this one needs to be told.
        name = cells.row_of(record) if len({reading_of(one) for one in alike}) > 1 else record.system
        for key in ("replica", "seed", "step"):
            if len({getattr(one, key) for one in alike}) > 1:
                name += f", {key} {getattr(record, key)}"
        for sample in record.samples:
            text = _written(sample)
            if text is None:
                continue
            place = str(sample.get("prefix", "")), str(sample.get("suffix", ""))
            writings.setdefault(place, []).append((name, text))
            titles.setdefault(place, str(sample.get("title", f"Text {len(titles) + 1}")))
            if sample.get("truth"):
                truths[place] = str(sample["truth"])
    stories = []
    for place, found in writings.items():
        truth = [("what stood there", truths[place])] if place in truths else []
        stories.append(Story(titles[place], *place, [*truth, *found]))
    return stories


def _written(sample: object) -> str | None:
    """What a system wrote, if the sample says so."""
    if not isinstance(sample, dict):
        return None
    return next((str(sample[key]) for key in WRITTEN if isinstance(sample.get(key), str)), None)


__all__ = ["TABLE", "sample_blocks"]
