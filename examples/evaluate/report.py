"""Write one report of all recorded tables and figures, beside the numbers of the paper.

    python examples/evaluate/report.py --results outputs/results --output_dir outputs/report
    python examples/evaluate/report.py --results outputs/results --output_dir outputs/report --notes notes.md
    python examples/evaluate/report.py --results outputs/7m/results --name 7M --compare 28M=outputs/28m/results

Writes `report.md`, `report.html`, which needs nothing beside it, and `figures/`. Nothing is measured here; the same
records give the same bytes. The four claims are answered by a rule that the page states. `--compare` names the same
study on other base models: the claims are judged on each, side by side, and no figure of theirs enters a table.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from examples.command_line import OneLineParser, add_output_dir, check, need, start
from examples.evaluate.reporting.blocks import Page
from examples.evaluate.reporting.cells import Results, read_results
from examples.evaluate.reporting.html_page import render_html
from examples.evaluate.reporting.markdown_page import FIGURES, render_markdown
from examples.evaluate.reporting.page import PICTURES, THIS_MODEL, TITLE, base_name, build_page
from examples.evaluate.reporting.paper_values import read_paper_values
from examples.evaluate.reporting.plots import Picture
from trainer.whole_files import whole_file


def main(arguments: list[str] | None = None) -> Page:
    """Read the records, write the page."""
    parser = OneLineParser(description=__doc__)
    parser.add_argument("--results", type=Path, default=Path("outputs/results"), help="folder of the records")
    add_output_dir(parser, default=Path("outputs/report"), help="folder of the page")
    parser.add_argument("--title", default=TITLE, help="heading of the page")
    parser.add_argument("--notes", type=Path, help="Markdown file that goes behind the claims")
    parser.add_argument("--name", help="what the page calls the model that was studied; by default what its base is")
    parser.add_argument(
        "--compare", nargs="+", default=[], metavar="NAME=DIR", help="records of the study on other base models"
    )
    args = parser.parse_args(arguments)
    need("eval", "matplotlib", "scipy")
    complaints: list[str] = []
    if args.notes is not None and not args.notes.is_file():
        complaints.append(f"`--notes` {str(args.notes)!r} is not a file. Name a Markdown file, or leave it out.")
    if args.output.exists() and not args.output.is_dir():
        complaints.append(f"`--output_dir` {str(args.output)!r} is a file. Name a folder.")
    results = _read(args.results, "--results", complaints)
    name = args.name or (results and base_name(results.records)) or THIS_MODEL
    compared = _compared(args.compare, name, args.results, complaints)
    check(complaints)
    assert results is not None  # else there was a complaint
    notes = args.notes.read_text(encoding="utf-8") if args.notes is not None else None
    page = build_page(results, read_paper_values(), title=args.title, notes=notes, name=name, compared=compared)
    write_page(page, args.output)
    tables = len({record.table for record in results.records})
    print(f"report: OK ({len(results.records)} cells of {tables} tables; {args.output / 'report.html'})")
    return page


def _read(folder: Path, option: str, complaints: list[str]) -> Results | None:
    """Return the records of a folder, or one more complaint."""
    try:
        return read_results(folder, option)
    except ValueError as error:
        complaints.append(str(error))
        return None


def _compared(items: Sequence[str], name: str, own: Path, complaints: list[str]) -> dict[str, Results]:
    """Return the records of the other models by their names; what cannot be used is added to the complaints."""
    found: dict[str, Results] = {}
    folders = {own.resolve()}
    for item in items:
        other, _, path = (part.strip() for part in item.partition("="))
        if not (other and path):
            complaints.append(f"`--compare` has {item!r}; expected NAME=DIR, such as 28M=outputs/28m/results.")
            continue
        if other == name or other in found:
            complaints.append(
                f"`--compare` has {other!r}, which another model is called. Give each a name of its own."
            )
        if Path(path).resolve() in folders:
            complaints.append(f"`--compare` has {path!r}, which is there already. Name each folder once.")
        folders.add(Path(path).resolve())
        results = _read(Path(path), "--compare", complaints)
        if results is not None:
            found[other] = results
    return found


def write_page(page: Page, folder: Path) -> None:
    """Write figures and both pages, each whole or not at all; the pages last, when all they show is there.

    Figures of an earlier page that this one does not have are removed; what the report never writes stays.
    """
    files = {folder / FIGURES / f"{one.name}.svg": one.svg for one in page.blocks if isinstance(one, Picture)}
    files[folder / "report.md"] = render_markdown(page).encode()
    files[folder / "report.html"] = render_html(page).encode()
    (folder / FIGURES).mkdir(parents=True, exist_ok=True)
    for path, content in files.items():
        with whole_file(path) as file:
            file.write(content)
    for name in PICTURES:
        path = folder / FIGURES / f"{name}.svg"
        if path not in files:
            path.unlink(missing_ok=True)


if __name__ == "__main__":
    start(main)
