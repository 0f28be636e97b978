"""Models of other sizes: judged by the same rule from their own records, side by side, and never mixed."""

import pytest

from examples.evaluate.report import main

from .report_records import make_record, replicas, whole_study, write
from .test_report import Reader


def worse():
    """Another base: MAGNET fills and knows worse, on fewer texts; some tables were not measured."""
    records = []
    for reading, value in (("left", 40.0), ("infill", 300.0)):
        settings = {"reading": reading, "limit": 7}
        records += replicas("infilling", "base", "WikiText", "perplexity", [value], settings=settings)
    settings = {"reading": "infill", "limit": 7}
    return records + replicas("infilling", "MAGNET", "WikiText", "perplexity", [77.125, 78.0], settings=settings)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sizes")
    write(folder / "own", [one for one in whole_study() if one.table in ("infilling", "mmlu", "perplexity", "words")])
    write(folder / "small", worse())
    main(["--results", str(folder / "own"), "--output", str(folder / "alone")])
    compared = ["--compare", f"small & poor={folder / 'small'}", "--name", "large"]
    main(["--results", str(folder / "own"), "--output", str(folder / "both"), *compared])
    return folder


def read(folder):
    return Reader((folder / "report.html").read_text())


def test_verdicts_and_comparisons_stand_side_by_side(folder):
    tables = read(folder / "both").tables
    (verdicts,) = (table for table in tables if table[0] == ["Claim", "large", "small & poor"])
    assert [row[1:] for row in verdicts[1:]] == [
        ["holds in part", "not measured"],
        ["holds", "holds in part"],
        ["not measured", "not measured"],
        ["holds", "not measured"],
    ]
    heads = ["Comparison", "large", "small & poor", "large, figures", "small & poor, figures"]
    found = [table for table in tables if table[0] == heads]
    assert len(found) == 4
    rows = {row[0]: row[1:] for table in found for row in table[1:]}
    left = rows["WikiText: perplexity against the base from the left"]
    assert left[:2] == ["for", "against"]
    assert "MAGNET 30.5000" in left[2] and "MAGNET 77.5625" in left[3] and "77.5625" not in left[2]
    assert rows["ROCStories: perplexity against the base from the left"][:2] == ["for", "not measured"]
    words = " ".join(read(folder / "both").texts)
    assert "Settings that differ between the models" in words
    assert "infilling, limit (large: not said; small & poor: 7)" in words


def test_no_figure_of_another_model_enters_a_cell(folder):
    """All tables but those of the section are those of the page without the other model."""
    alone = read(folder / "alone").tables
    both = [table for table in read(folder / "both").tables if "small & poor" not in table[0]]
    assert both == alone
    drawn = [sorted((folder / page / "figures").iterdir()) for page in ("alone", "both")]
    assert [one.read_bytes() for one in drawn[0]] == [one.read_bytes() for one in drawn[1]]


def test_a_claim_that_does_not_hold_links_to_the_other_sizes(folder, tmp_path):
    own, small = str(folder / "own"), str(folder / "small")
    main(["--results", small, "--output", str(tmp_path / "page"), "--name", "small", "--compare", f"large={own}"])
    links = [attributes["href"] for tag, attributes in read(tmp_path / "page").tags if tag == "a"]
    assert links.count("#model-size") == 1 + 4  # the contents, and the four claims of which none holds
    links = [a["href"] for tag, a in read(folder / "both").tags if tag == "a"]
    assert links.count("#model-size") == 1 + 2  # infilling and knowledge hold there


def test_settings_of_cells_that_only_one_model_has_do_not_differ(tmp_path):
    write(tmp_path / "a", [make_record("words", "MAGNET", "ner", metrics={"accuracy": 1.0}, settings={"limit": 1})])
    write(tmp_path / "b", [make_record("words", "MAGNET", "pos", metrics={"accuracy": 1.0}, settings={"limit": 2})])
    page, other = str(tmp_path / "page"), f"b={tmp_path / 'b'}"
    main(["--results", str(tmp_path / "a"), "--output", page, "--name", "a", "--compare", other])
    assert "not measured alike" not in (tmp_path / "page/report.md").read_text()
