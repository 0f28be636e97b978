"""Write one page with all recorded tables and figures, beside the numbers of the paper.

    python examples/evaluate/report.py --results outputs/results --output_dir outputs/report
    python examples/evaluate/report.py --results outputs/results --output_dir outputs/report --notes notes.md
    python examples/evaluate/report.py --results outputs/7m/results --name 7M --compare 28M=outputs/28m/results

Writes `report.md`, `report.html`, which needs no other file, and `figures/`. Nothing is measured here; the same
records give the same bytes. The four claims come first, judged by a rule that the page states; tables are folded.
`--compare` names the same study on other base models: the claims are judged on each, side by side, and no figure of
theirs enters a table. `--short` leaves out the tables.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from examples.command_line import OneLineParser, add_output_dir, named_items, raise_complaints, require_extra, start
from examples.evaluate.parts.options import add_results
from examples.evaluate.reporting.blocks import Page, pictures
from examples.evaluate.reporting.cells import Results, read_results
from examples.evaluate.reporting.charts import as_file
from examples.evaluate.reporting.page import TITLE, build_page
from examples.evaluate.reporting.paper_values import read_paper_values
from examples.evaluate.reporting.render import FIGURES, render_html, render_markdown
from trainer.files import atomic_write


def main(arguments: list[str] | None = None) -> Page:
    """Read the records and write the page."""
    parser = OneLineParser(description=__doc__)
    add_results(parser)
    add_output_dir(parser, default=Path("outputs/report"), help="folder of the page")
    parser.add_argument("--title", default=TITLE, help="heading of the page")
    parser.add_argument("--notes", type=Path, help="Markdown file, rendered below the claims")
    parser.add_argument("--name", help="the model that was studied; by default the name of its base")
    parser.add_argument(
        "--compare", nargs="+", default=[], metavar="NAME=DIR", help="records of the study on other base models"
    )
    parser.add_argument("--short", action="store_true", help="only the claims, the notes and the conditions")
    args = parser.parse_args(arguments)
    require_extra("eval", "markdown_it", "scipy")
    folders, complaints = named_items(args.compare, option="--compare")
    studies: dict[str, Results] = {}
    for option, name, folder in [("--results", "", args.results), *(("--compare", *item) for item in folders.items())]:
        try:
            studies[name] = read_results(Path(folder), option)
        except ValueError as error:
            complaints.append(str(error))
    raise_complaints(complaints)
    results = studies.pop("")
    notes = args.notes.read_text(encoding="utf-8") if args.notes is not None else None
    options = {"title": args.title, "notes": notes, "name": args.name, "is_short": args.short}
    page = build_page(results, read_paper_values(), compared=studies, **options)
    write_page(page, args.output)
    tables = len({record.table for record in results.records})
    print(f"report: OK ({len(results.records)} cells of {tables} tables; {args.output / 'report.html'})")
    return page


def write_page(page: Page, folder: Path) -> None:
    """Write figures and both pages atomically; the pages last, when all files that they show exist."""
    files = {folder / FIGURES / f"{picture.name}.svg": as_file(picture.svg) for picture in pictures(page.blocks)}
    files[folder / "report.md"] = render_markdown(page).encode()
    files[folder / "report.html"] = render_html(page).encode()
    (folder / FIGURES).mkdir(parents=True, exist_ok=True)
    for path, content in files.items():
        with atomic_write(path) as file:
            file.write(content)


if __name__ == "__main__":
    start(main)
