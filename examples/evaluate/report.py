"""All tables and figures of the paper that are on record, in one page: what was measured here beside what it prints.

    python examples/evaluate/report.py --results outputs/results --output outputs/report
    python examples/evaluate/report.py --results outputs/results --output outputs/report --notes notes.md

Writes `report.md`, `report.html`, which needs nothing beside it, and `figures/`. Nothing is measured here; the same
records give the same bytes. The four claims are answered by a rule that the page states.
"""

import argparse
import sys
from pathlib import Path

# A script finds its own folder alone.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from examples.corpus.writing import whole_file
from examples.evaluate.driver import check, start
from examples.reporting.blocks import Page
from examples.reporting.cells import read_results
from examples.reporting.html_page import render_html
from examples.reporting.markdown_page import FIGURES, render_markdown
from examples.reporting.page import TITLE, build_page
from examples.reporting.paper_values import read_paper_values
from examples.reporting.plots import Picture


def main(arguments: list[str] | None = None) -> Page:
    """Read the records, write the page.

    Raises:
        ValueError: arguments or records that cannot be used.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=Path("outputs/results"), help="folder of the records")
    parser.add_argument("--output", type=Path, default=Path("outputs/report"), help="folder of the page")
    parser.add_argument("--title", default=TITLE, help="heading of the page")
    parser.add_argument("--notes", type=Path, help="Markdown file that goes behind the claims")
    args = parser.parse_args(arguments)
    complaints = []
    if args.notes is not None and not args.notes.is_file():
        complaints.append(f"`--notes` {str(args.notes)!r} is no file. Name a Markdown file, or leave it out.")
    if args.output.exists() and not args.output.is_dir():
        complaints.append(f"`--output` {str(args.output)!r} is a file. Name a folder.")
    check(complaints)
    notes = args.notes.read_text(encoding="utf-8") if args.notes is not None else None
    results = read_results(args.results)
    page = build_page(results, read_paper_values(), title=args.title, notes=notes)
    write_page(page, args.output)
    tables = len({record.table for record in results.records})
    print(f"report: OK ({len(results.records)} cells of {tables} tables; {args.output / 'report.html'})")
    return page


def write_page(page: Page, folder: Path) -> None:
    """Write figures and both pages, each whole or not at all; the pages last, when all they show is there.

    Args:
        page (`Page`): What to write.
        folder (`Path`): Made where it is not there.
    """
    files = {folder / FIGURES / f"{one.name}.svg": one.svg for one in page.blocks if isinstance(one, Picture)}
    files[folder / "report.md"] = render_markdown(page).encode()
    files[folder / "report.html"] = render_html(page).encode()
    (folder / FIGURES).mkdir(parents=True, exist_ok=True)
    for path, content in files.items():
        with whole_file(path) as file:
            file.write(content)


if __name__ == "__main__":
    start(main)
