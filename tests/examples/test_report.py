"""Test the page: it contains the recorded numbers, escapes all text, and is reproducible."""

import base64
import re
from xml.etree import ElementTree

import pytest
from markdown_it import MarkdownIt

from examples.evaluate.report import main
from examples.evaluate.reporting.blocks import Bullets, Details, Grid, Heading, Page, Text
from examples.evaluate.reporting.html_page import render_html
from examples.evaluate.reporting.markdown_page import render_markdown
from examples.evaluate.reporting.tables import MEASURED, QUOTED

from .html_page import ParsedPage
from .report_records import make_record, replicas, whole_study, write

HOSTILE = [
    "<script>alert(1)</script>",
    "\"><img src=x onerror='alert(1)'>",
    "[link](javascript:alert(1)) ![image](http://x)",
    "| cell | `code` *stars* __bold__ ~~gone~~ $x$ &amp; \\",
    "# heading",
    "- item",
    "1. item",
    "2) item",
    "===",
    "    code",
    "line\n\n    code\n> quote\n---",
    "half \ud800 surrogate, \x00 zero, \u202e turned",
]


def markdown(text):
    """Parse a Markdown page with an independent reader."""
    options = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])
    return ParsedPage(options.render(text))


def report(folder, records, *options):
    """Return the page of some records, and its text as Markdown."""
    write(folder / "results", records)
    main(["--results", str(folder / "results"), "--output_dir", str(folder / "page"), *options])
    return ParsedPage((folder / "page/report.html").read_text()), (folder / "page/report.md").read_text()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("study")


@pytest.fixture(scope="module")
def study(folder):
    """Return the page of all handmade records."""
    notes = folder / "notes.md"
    notes.write_text("Ran *by hand*. <script>alert(2)</script>\n")
    return report(folder, whole_study(), "--notes", str(notes))


def test_both_pages_contain_the_recorded_numbers(study):
    page, text = study
    words = next(table for table in page.tables if "chunking accuracy" in table[0])
    rows = {(row[0], row[1]): dict(zip(words[0], row, strict=True)) for row in words[1:]}
    assert rows["MAGNET", MEASURED]["ner accuracy"] == "75.00 ± 0.35 (n = 2)"
    assert rows["MAGNET", MEASURED]["Model"] == "tiny"
    assert rows["base, causal", MEASURED]["ner accuracy"] == "70.00"
    assert rows["MAGNET", QUOTED]["ner accuracy"] == "98.31"
    assert rows["XLNet-Large", QUOTED]["chunking accuracy"] == "79.70"
    assert rows["tiny-bert", MEASURED]["ner accuracy"] == "n/a (1)"
    assert "n/a (1): not available here: no CoNLL-2003 <here>" in page.text
    assert rows["BERT-Large", QUOTED]["pos f1"] == "–"
    assert [row[0] for row in words[1:]][:4] == ["base, causal", "MNTP", "MAGNET", "LLM2Vec recipe"]
    claims = [row[1:] for row in page.tables[0][1:]]
    assert [row[0] for row in claims] == ["holds"] * 4
    assert claims[1][2] == "–" and claims[3][2] == "one training run each"
    # By hand: MAGNET 30.5 against 40 and 300; 0.105 against the recipe's 0.51 and the base's 0.05; 21 against 20.
    assert "ROCStories -23.8 % (-89.8 %), WikiText -23.8 % (-89.8 %)." in claims[1][1]
    assert claims[0][1].endswith("chunking +3.00, ner +3.00, pos +3.00, sts +3.00, clustering +2.00.")
    assert "WikiText rep_sen 0.105 (0.510; 0.050)" in claims[2][1]
    assert claims[3][1] == "MAGNET against its base: MMLU's average -1.00 points, perplexity of WikiText +5.0 %."
    gains = next(table for table in page.tables if table[0][0] == "Row of the paper")
    (found,) = (row for row in gains if row[:3] == ["LLM2Vec", "LLM2Vec recipe", "pos accuracy"])
    assert found[3:] == ["90.53", "82.00 ± 0.35 (n = 2)", "-1.00", "+2.00"]
    assert markdown(text).tables == page.tables


def test_page_runs_no_script_and_loads_nothing_external(study):
    page, text = study
    assert {tag for tag, _ in page.found} & {"script", "link", "iframe", "object", "svg"} == set()
    assert not any(name.startswith("on") for _, attributes in page.found for name in attributes)
    sources = [attributes["src"] for tag, attributes in page.found if tag == "img"]
    assert len(sources) == 6 and all(source.startswith("data:image/svg+xml;base64,") for source in sources)
    for source in sources:
        ElementTree.fromstring(base64.b64decode(source.partition(",")[2]))
    for part in ("MAGNET: <script>alert('x')</script>", "He won </article>.", "Ran *by hand*. <script>"):
        assert part in page.text
    assert "Ran *by hand*. <script>" in text  # notes are copied as Markdown


def test_figures_are_saved_beside_markdown(study, folder):
    linked = set(re.findall(r"\]\((figures/[a-z0-9_]+\.svg)\)", study[1]))
    assert linked == {str(path.relative_to(folder / "page")) for path in (folder / "page/figures").iterdir()}


@pytest.mark.parametrize("text", HOSTILE)
def test_text_is_escaped_on_both_pages(text):
    def page_of(part):
        blocks = [Text(part), Bullets(part, [part]), Grid([part], [[part]])]
        return Page(part, [Heading(2, part), *blocks], [Heading(2, f"x{part}"), Details(part, blocks)])

    page = page_of(text)
    plain, shown = ParsedPage(render_html(page_of("t"))), ParsedPage(render_html(page))
    assert [tag for tag, _ in shown.found] == [tag for tag, _ in plain.found]
    rendered, plain = markdown(render_markdown(page)), markdown(render_markdown(page_of("t")))
    assert {tag for tag, _ in rendered.found} == {tag for tag, _ in plain.found}
    words = " ".join(rendered.text.split())
    if "\ud800" not in text:
        assert " ".join(text.split()) in words
    (render_html(page) + render_markdown(page)).encode()


def test_tables_outside_the_paper_have_a_row_per_unit(tmp_path, capsys):
    made = {
        ("riddles", "MAGNET", "hard"): {"solved": 0.5},
        ("long_fills", "base", "at once"): {"a": 1.0},
        ("long_fills", "MAGNET", "at once"): {"a": 2.0, "b": 3.0},
        ("long_fills", "MAGNET", "chunks"): {"b": 4.0},
    }
    page, text = report(tmp_path, [make_record(*cell, metrics=metrics) for cell, metrics in made.items()])
    assert capsys.readouterr().out.splitlines()[-1].startswith("report: OK (4 cells of 2 tables")
    long, riddles = (table for table in page.tables if "Measured on" in table[0])
    assert long == [
        ["System", "Model", "Measured on", "a", "b"],
        ["base", "tiny", "at once", "1.0000", "–"],
        ["MAGNET", "tiny", "at once", "2.0000", "3.0000"],
        ["MAGNET", "tiny", "chunks", "–", "4.0000"],
    ]
    assert riddles[1:] == [["MAGNET", "tiny", "hard", "0.5000"]]
    assert text.count("Nothing of this table was measured here.") == 9


def test_other_models_are_judged_side_by_side_and_enter_no_table(folder, study, tmp_path):
    other = []
    for system, reading, values in (
        ("base", "left", [40.0]),
        ("base", "infill", [300.0]),
        ("MAGNET", "infill", [77, 78]),
    ):
        other += replicas("infilling", system, "WikiText", "perplexity", values, settings={"reading": reading})
    write(tmp_path / "small", other)
    options = ["--compare", f"small & poor={tmp_path / 'small'}", "--name", "large"]
    page, _ = report(tmp_path, whole_study(), *options)
    verdicts, comparisons = (table for table in page.tables if "small & poor" in table[0])
    assert [row[1:] for row in verdicts[1:]] == [
        ["holds", "not measured"], ["holds", "holds in part"], ["holds", "not measured"], ["holds", "not measured"]
    ]  # fmt: skip
    outcomes = {row[1]: row[2:] for row in comparisons}
    assert outcomes["WikiText: perplexity against the base from the left"] == ["for", "against"]
    assert outcomes["ROCStories: perplexity against the base from the left"] == ["for", "not measured"]
    assert [table for table in page.tables if "small & poor" not in table[0]] == study[0].tables
    with pytest.raises(ValueError, match="`--compare`"):
        report(tmp_path, [], "--compare", f"none={tmp_path / 'nowhere'}")
