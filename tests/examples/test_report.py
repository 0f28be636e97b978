"""The page: its numbers are those of the records, no text breaks out of it, the same records give the same bytes."""

import base64
import html
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
from markdown_it import MarkdownIt

from examples.evaluate.report import main, write_page
from examples.evaluate.reporting.blocks import Bullets, Details, Grid, Heading, Link, Page, Story, Text
from examples.evaluate.reporting.html_page import render_html
from examples.evaluate.reporting.markdown_page import render_markdown
from examples.evaluate.reporting.page import PICTURES
from examples.evaluate.reporting.tables import MEASURED, QUOTED

from .report_records import make_record, whole_study, write

EMPTY = {"meta", "img", "br", "hr"}
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


class Reader(HTMLParser):
    """Tables as lists of cells, all text, all tags; complains of elements that are not closed in order."""

    def __init__(self, page):
        super().__init__(convert_charrefs=True)
        self.tables, self.texts, self.tags, self.open, self.links = [], [], [], [], []
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in EMPTY:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag):
        assert tag in EMPTY or self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)
        if self.open and self.open[-1] in ("td", "th"):
            self.tables[-1][-1][-1] += data


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """The page of all records made by hand."""
    folder = tmp_path_factory.mktemp("study")
    write(folder / "results", whole_study())
    notes = folder / "notes.md"
    notes.write_text("Ran *by hand*. <script>alert(2)</script>\n")
    main(["--results", str(folder / "results"), "--output", str(folder / "page"), "--notes", str(notes)])
    return folder


def markdown_tables(text):
    """Tables of a Markdown page, by a reader of their own."""
    return Reader(MarkdownIt("commonmark").enable("table").render(text)).tables


def test_both_pages_have_the_numbers_of_the_records(study):
    page = Reader((study / "page/report.html").read_text())
    tables = page.tables
    words = next(table for table in tables if "chunking accuracy" in table[0])
    rows = {(row[0], row[1]): dict(zip(words[0], row, strict=True)) for row in words[1:]}
    assert rows["MAGNET", MEASURED]["ner accuracy"] == "75.00 ± 0.35 (n = 2)"
    assert rows["MAGNET", MEASURED]["Model"] == "tiny"
    assert rows["base, causal", MEASURED]["ner accuracy"] == "70.00"
    assert rows["MAGNET", QUOTED]["ner accuracy"] == "98.31"
    assert rows["XLNet-Large", f"{QUOTED}, peer"]["chunking accuracy"] == "79.70"
    assert rows["tiny-bert", f"{MEASURED}, peer"]["ner accuracy"] == "n/a (1)"
    assert "n/a (1): not available here: no CoNLL-2003 <here>" in page.texts
    assert rows["BERT-Large", f"{QUOTED}, peer"]["pos f1"] == "–"
    claims = [row[1:] for row in tables[0][1:]]
    assert [row[0] for row in claims] == ["holds"] * 4
    assert claims[1][2] == "–" and claims[3][2] == "one training run each"
    # By hand: MAGNET 30.5 against 40 and 300; 0.105 against the recipe's 0.51 and the base's 0.05; 21 against 20.
    assert "ROCStories -23.8 % (-89.8 %), WikiText -23.8 % (-89.8 %)." in claims[1][1]
    assert claims[0][1].endswith("chunking +3.00, ner +3.00, pos +3.00, sts +3.00, clustering +2.00.")
    assert "WikiText rep_sen 0.105 (0.510; 0.050)" in claims[2][1]
    assert claims[3][1] == "MAGNET against its base: MMLU's average -1.00 points, perplexity of WikiText +5.0 %."
    gains = next(table for table in tables if table[0][0] == "Row of the paper")
    (found,) = (row for row in gains if row[:3] == ["LLM2Vec", "LLM2Vec recipe", "pos accuracy"])
    assert found[3:] == ["90.53", "82.00 ± 0.35 (n = 2)", "-8.53", "-1.00", "+2.00"]
    assert markdown_tables((study / "page/report.md").read_text()) == tables


def test_gains_in_perplexity_are_shares_of_the_base(study):
    tables = Reader((study / "page/report.html").read_text()).tables
    rows = [row for table in tables if table[0][0] == "Row of the paper" for row in table[1:]]
    # By hand: 4.4186 of 13.9347, 6.5826 of 22.0399 (the paper's own 29.9 %), -1.2 of 6.4; ours 9.5 of 40, -1 of 20.
    kinds = {"30.5": "infilling", "21.0": "text"}
    gains = {
        (kinds[row[4][:4]], row[2]): row[-2:] for row in rows if row[2].endswith("perplexity") and row[0] == "MAGNET"
    }
    assert gains == {
        ("infilling", "ROCStories perplexity"): ["+31.7 %", "+23.8 %"],
        ("infilling", "WikiText perplexity"): ["+29.9 %", "+23.8 %"],
        ("text", "WikiText perplexity"): ["-18.7 %", "-5.0 %"],
    }
    text = (study / "page/report.md").read_text()
    assert text.count("over the base of the same table, in percent of that base") == 2


def test_the_top_says_what_was_studied_and_what_is_missing(study):
    text = (study / "page/report.md").read_text()
    # MAGNET, the recipe and MNTP in two trainings each; bases, peers and prompts were not trained.
    top = text[: text.index("- [The four claims](#the-four-claims)")]
    assert "Studied: tiny. 6 trainings, " in top
    missing = [line for line in top.splitlines() if line.startswith("- ")]
    assert missing == [
        "- Table 3, clustering: no Biorxiv v_measure, Medrxiv v_measure",
        "- Table 5, people: nothing was measured",
        "- Table 6, mmlu: no humanities accuracy, stem accuracy, social sciences accuracy, other accuracy",
    ]
    assert top.index("| Claim |") < top.index("Missing:") < 2500


def test_all_that_was_asked_for_is_on_the_page(study):
    reader = Reader((study / "page/report.html").read_text())
    text = " ".join(reader.texts)
    for said in (
        "may differ in size",
        "No people were asked.",
        "Ran ",
        "torch 2.13",
        "device cpu",
        "2026-11-21T12:00:00",
        "cells on record",
    ):
        assert said in text
    seconds = 2 * len(whole_study())
    assert f"The cells shown took {seconds:,} seconds" in text
    ids = [attributes["id"] for _, attributes in reader.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = [attributes["href"] for tag, attributes in reader.tags if tag == "a"]
    assert links and {link.removeprefix("#") for link in links} <= set(ids)


def test_nothing_runs_and_nothing_comes_from_elsewhere(study):
    page = (study / "page/report.html").read_text()
    reader = Reader(page)
    assert {tag for tag, _ in reader.tags} & {"script", "link", "iframe", "object", "svg"} == set()
    assert not any(name.startswith("on") for _, attributes in reader.tags for name in attributes)
    sources = [attributes["src"] for tag, attributes in reader.tags if tag == "img"]
    assert sources and all(source.startswith("data:image/svg+xml;base64,") for source in sources)
    assert "<script>alert('x')</script>" in "".join(reader.texts)
    assert "He won </article>." in "".join(reader.texts)
    for source in sources:
        ElementTree.fromstring(base64.b64decode(source.partition(",")[2]))
    shown = Reader(MarkdownIt("commonmark").enable("table").render((study / "page/report.md").read_text()))
    assert all(tag != "a" or not str(a.get("href", "")).startswith("javascript") for tag, a in shown.tags)


def test_figures_are_files_beside_the_markdown(study):
    text = (study / "page/report.md").read_text()
    linked = set(re.findall(r"\]\((figures/[a-z0-9_]+\.svg)\)", text))
    there = {str(path.relative_to(study / "page")) for path in (study / "page/figures").iterdir()}
    assert (
        linked
        == there
        == {
            f"figures/{name}.svg"
            for name in (
                "words_bars",
                "sts_bars",
                "infilling_bars",
                "infilling_steps",
                "repetition_steps",
                "mntp_mtp_steps",
            )
        }
    )


def test_the_same_records_give_the_same_bytes(study):
    again = study / "again"
    main(["--results", str(study / "results"), "--output", str(again), "--notes", str(study / "notes.md")])
    files = sorted(path.relative_to(again) for path in again.rglob("*") if path.is_file())
    assert len(files) == 8
    for file in files:
        assert (again / file).read_bytes() == (study / "page" / file).read_bytes(), file


@pytest.mark.parametrize("text", HOSTILE)
def test_no_text_means_anything_on_a_page(text):
    def page_of(said):
        folded = Details(said, [Bullets(said, [said])])
        story = Story(said, said, said, [(said, said)])
        return Page(said, [Heading(2, said), Text(said), Link(said, said), folded, Grid([said], [[said]]), story])

    page, plain = page_of(text), Reader(render_html(page_of("t")))
    shown = Reader(render_html(page))
    assert [tag for tag, _ in shown.tags] == [tag for tag, _ in plain.tags]
    rendered = (
        MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).render(render_markdown(page))
    )
    tags = {tag for tag, _ in Reader(rendered).tags}
    assert tags <= {
        "h1",
        "h2",
        "h4",
        "ul",
        "li",
        "a",
        "p",
        "table",
        "thead",
        "tbody",
        "tr",
        "th",
        "td",
        "blockquote",
        "br",
        "details",
        "summary",
    }
    said = " ".join("".join(Reader(rendered).texts).split())
    wanted = " ".join(text.encode("utf-8", "replace").decode().replace("\x00", "\ufffd").split())
    if "\ud800" not in text:
        assert wanted in said
    (render_html(page) + render_markdown(page)).encode()


def test_unknown_tables_are_told_and_shown(tmp_path, capsys):
    write(tmp_path / "results", [make_record("riddles", "MAGNET", "hard", metrics={"solved": 0.5})])
    main(["--results", str(tmp_path / "results"), "--output", str(tmp_path / "page"), "--title", "A <trial>"])
    assert capsys.readouterr().out.splitlines()[-1].startswith("report: OK (1 cells of 1 tables")
    reader = Reader((tmp_path / "page/report.html").read_text())
    assert "riddles: 1 cells, shown above as they are" in reader.texts and "A <trial>" in reader.texts
    assert any(text.startswith("Studied: this model. 1 training, 1 cells") for text in reader.texts)
    assert any(["hard solved"] == table[0][3:] and table[1][3] == "0.5000" for table in reader.tables)
    assert reader.texts.count("Nothing of this table was measured here.") == 8


def test_a_table_that_the_paper_does_not_have_has_a_row_for_each_unit(tmp_path):
    made = {
        ("base", "at once"): {"a": 1.0},
        ("MAGNET", "at once"): {"a": 2.0, "b": 3.0},
        ("MAGNET", "chunks"): {"b": 4.0},
    }
    write(tmp_path, [make_record("long_fills", s, unit, metrics=metrics) for (s, unit), metrics in made.items()])
    main(["--results", str(tmp_path), "--output", str(tmp_path / "page")])
    (table,) = (t for t in markdown_tables((tmp_path / "page/report.md").read_text()) if "Measured on" in t[0])
    assert table[0] == ["System", "Origin", "Model", "Measured on", "a", "b"]
    cells = {(row[0], row[3]): row[4:] for row in table[1:]}
    assert cells[("MAGNET", "at once")] == ["2.0000", "3.0000"] and cells[("base", "at once")] == ["1.0000", "–"]
    assert cells[("MAGNET", "chunks")] == ["–", "4.0000"] and ("base", "chunks") not in cells


def test_a_table_of_people_takes_the_place_of_the_line(tmp_path):
    metrics = {"appropriate": 61.0, "interval_low": 51.0, "interval_high": 70.0, "kappa": 0.6}
    write(tmp_path, [make_record("people", "MAGNET", "ROCStories", metrics=metrics)])
    main(["--results", str(tmp_path), "--output", str(tmp_path / "page")])
    reader = Reader((tmp_path / "page/report.html").read_text())
    assert "No people were asked." not in reader.texts
    (people,) = (table for table in reader.tables if "ROCStories appropriate" in table[0])
    assert people[1][3] == "61.00" and people[0][3:] == [
        f"ROCStories {metric}" for metric in ("appropriate", "interval_high", "interval_low", "kappa")
    ]


def test_presets_that_are_not_the_papers_are_told(tmp_path):
    smoke = {"preset": "smoke"}
    write(tmp_path, [make_record("words", "MAGNET", "ner", metrics={"accuracy": 50.0}, settings=smoke)])
    write(tmp_path, [make_record("sts", "MAGNET", "STS12", metrics={"spearman": 50.0})])
    main(["--results", str(tmp_path), "--output", str(tmp_path / "page")])
    assert "Mixed presets (paper: sts; smoke: words)" in html.unescape((tmp_path / "page/report.html").read_text())


def test_a_page_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    write_page(Page("old", [Text("first")]), tmp_path / "page")
    before = (tmp_path / "page/report.html").read_bytes()
    monkeypatch.setattr("os.fsync", lambda file: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="report.md"):
        write_page(Page("new", [Text("second")]), tmp_path / "page")
    assert (tmp_path / "page/report.html").read_bytes() == before
    assert not list((tmp_path / "page").glob("*.unfinished"))


def test_a_figure_that_is_no_longer_drawn_is_removed_and_others_stay(study, tmp_path):
    (tmp_path / "page/figures").mkdir(parents=True)
    for name in ("sts_bars.svg", "my_own.svg"):
        (tmp_path / "page/figures" / name).write_text("old")
    write(tmp_path / "results", [record for record in whole_study() if record.table == "words"])
    main(["--results", str(tmp_path / "results"), "--output", str(tmp_path / "page")])
    assert {path.name for path in (tmp_path / "page/figures").iterdir()} == {"words_bars.svg", "my_own.svg"}
    drawn = {path.stem for path in (study / "page/figures").iterdir()}
    assert drawn == set(PICTURES)


def test_notes_are_markdown_on_one_page_and_text_on_the_other(study):
    assert "Ran *by hand*. <script>" in (study / "page/report.md").read_text()
    assert "Ran *by hand*. &lt;script&gt;" in (study / "page/report.html").read_text()
