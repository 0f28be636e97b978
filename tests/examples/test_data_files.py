"""One folder is `--data` for all drivers: each finds its files in it or in a sub-folder of it."""

import gzip
import lzma

import pytest

from examples.evaluate import conll, infilling_perplexity, mmlu_data, sts, wikitext
from examples.evaluate.clustering import read_file
from examples.evaluate.driver import NotAvailableError
from examples.evaluate.stories import read_stories
from examples.files import data_file

from ..conftest import REPOSITORY
from .evaluation_files import write_rocstories

SHARED = REPOSITORY.parent / "shared" / "data"


def test_a_file_is_found_in_a_folder_and_in_its_sub_folders(tmp_path):
    assert data_file(tmp_path, "a.gz") == tmp_path / "a.gz"
    for folder in ("two", "one"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.gz").write_bytes(b"")
    assert data_file(tmp_path, "a.gz") == tmp_path / "one" / "a.gz", "the first by name"
    assert data_file(tmp_path / "two", "a.gz") == tmp_path / "two" / "a.gz"
    (tmp_path / "a.gz").write_bytes(b"")
    assert data_file(tmp_path, "a.gz") == tmp_path / "a.gz"


def test_readers_of_all_drivers_take_the_root_and_the_sub_folder(tmp_path):
    for name, content in (
        ("sts/sts12.test.tsv.gz", b"genre\tscore\tsentence1\tsentence2\nx\t4.5\ta b\tc d\n"),
        ("conll/eng.testa.gz", b"EU NNP I-NP I-ORG\n\n"),
    ):
        file = tmp_path / name
        file.parent.mkdir()
        file.write_bytes(gzip.compress(content))
    (tmp_path / "news").mkdir()
    line = b'{"label": "x", "subject": "a subject of some length", "text": "-"}\n'
    (tmp_path / "news" / "20news_bydate_train.jsonl.xz").write_bytes(lzma.compress(line))
    for sub in ("", "sts"):
        assert sts.read_sts("STS12", folder=tmp_path / sub) == [("a b", "c d", 4.5)]
    for sub in ("", "conll"):
        assert conll.read_conll("testa", folder=tmp_path / sub)[0].words == ["EU"]
    for sub in ("", "news"):
        assert read_file("TwentyNewsgroupsClustering", tmp_path / sub)[0].label == "x"
    with pytest.raises(NotAvailableError, match=r"has no sts13\.test"):
        sts.read_sts("STS13", folder=tmp_path)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the data of the evaluations are not here")
def test_the_shared_folder_serves_every_driver():
    assert len(sts.read_sts("STS12", folder=SHARED)) > 1000
    assert conll.missing_files(SHARED) == []
    assert len(read_stories(SHARED)) > 1000
    assert wikitext.wikitext_source(SHARED) == wikitext.FILE_NAME
    assert mmlu_data._find(SHARED, "mmlu_dev.jsonl").is_file()
    assert len(read_file("TwentyNewsgroupsClustering", SHARED)) > 1000


def test_only_the_files_of_what_was_asked_for_must_be_there(tmp_path, tiny_model, capsys):
    tiny_model.save_pretrained(tmp_path / "model")
    (tmp_path / "data" / "stories").mkdir(parents=True)
    write_rocstories(tmp_path / "data" / "stories")
    arguments = ["--model", str(tmp_path / "model"), "--data", str(tmp_path / "data"), "--results", str(tmp_path)]
    arguments += ["--device", "cpu", "--preset", "smoke", "--limit", "2", "--max_length", "100"]
    (record,) = infilling_perplexity.main([*arguments, "--units", "ROCStories"])
    assert record.metrics["perplexity"] > 1 and "infilling: OK" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"WikiText: .* has no wiki\.valid\.tokens\.xz"):
        infilling_perplexity.main(arguments)
