"""Test the vectors, reports and refusals of `examples/encode_corpus.py`."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from examples.encode_corpus import main
from modeling_magnet import MagnetLlamaForCausalLM

from .tiny_corpus import make_texts, write_jsonl

CHUNK_SIZE = 16


@pytest.fixture
def options(tmp_path, checkpoint) -> list[str]:
    """Return the options of every run: 40 texts in three chunks; later options override these."""
    texts = write_jsonl(tmp_path / "texts.jsonl", make_texts(40))
    return [
        f"--model_name_or_path={checkpoint}",
        f"--texts={texts}",
        f"--output={tmp_path / 'out.npy'}",
        f"--chunk_size={CHUNK_SIZE}",
    ]


def encode_in_chunks(checkpoint: Path, texts: list[str], *, dtype=torch.float32, **options) -> np.ndarray:
    """Return the result of `encode` for each chunk."""
    loaded = MagnetLlamaForCausalLM.from_pretrained(checkpoint, dtype=dtype)
    starts = range(0, len(texts), CHUNK_SIZE)
    return np.concatenate([loaded.encode(texts[start : start + CHUNK_SIZE], **options) for start in starts])


# ---- What a run writes ----


def test_rows_equal_encode(tmp_path, options, checkpoint, capsys):
    report = main(options)
    assert capsys.readouterr().out.splitlines()[-1].startswith(f"encode_corpus: OK ({tmp_path / 'out.npy'}; 40 rows;")
    vectors = np.load(tmp_path / "out.npy", mmap_mode="r")
    assert (vectors.shape, vectors.dtype) == ((40, 32), np.float32)
    assert np.array_equal(vectors, encode_in_chunks(checkpoint, make_texts(40)))
    alone = MagnetLlamaForCausalLM.from_pretrained(checkpoint)
    for row, text in enumerate(make_texts(40)):
        np.testing.assert_allclose(vectors[row], alone.encode(text), atol=1e-5)

    assert report == json.loads((tmp_path / "out.npy.json").read_text())
    assert (report["rows"], report["rows_encoded"], report["corrupt_rows"], report["corrupt"]) == (40, 40, 0, [])
    assert (report["prompt"], report["pooling"]) == ("Given the sentence, find its representation: ", "last")
    assert report["rows_per_second"] == pytest.approx(40 / report["seconds"])
    assert report["versions"]["torch"] == torch.__version__
    assert report["arguments"]["threads"] == torch.get_num_threads()
    assert {path.name for path in tmp_path.iterdir()} == {"tiny", "texts.jsonl", "out.npy", "out.npy.json"}


def test_parquet_contains_row_numbers_ids_and_vectors(tmp_path, options):
    main(options)
    main([*options, f"--output={tmp_path / 'out.parquet'}", "--id_column=key"])
    table = pq.read_table(tmp_path / "out.parquet")
    assert table.schema.types == [pa.int64(), pa.string(), pa.list_(pa.float32(), 32)]
    assert table["row"].to_pylist() == list(range(40))
    assert table["id"].to_pylist() == [str(key) for key in range(100, 140)]
    vectors = np.array(table["embedding"].to_pylist(), dtype=np.float32)
    assert np.array_equal(vectors, np.load(tmp_path / "out.npy"))

    main([*options, f"--output={tmp_path / 'half.parquet'}", "--output_dtype=float16", "--limit=20"])
    half = pq.read_table(tmp_path / "half.parquet")
    assert half.column_names == ["row", "embedding"] and half.num_rows == 20
    assert np.array_equal(np.array(half["embedding"].to_pylist()), vectors[:20].astype(np.float16))


@pytest.mark.parametrize(
    ("flags", "same", "dtype"),
    [
        (["--prompt="], {"prompt": ""}, "float32"),
        (["--prompt_name=STS"], {"prompt_name": "STS"}, "float32"),
        (["--prompt=Find", "--pooling=mean"], {"prompt": "Find", "pooling": "mean"}, "float32"),
        (
            ["--normalize_embeddings", "--truncate_dim=5", "--output_dtype=float16"],
            {"normalize_embeddings": True, "truncate_dim": 5},
            "float16",
        ),
        (["--max_length=30", "--batch_tokens=64"], {"max_length": 30, "batch_tokens": 64}, "float32"),
        (["--dtype=bfloat16", "--attn_implementation=eager"], {"dtype": torch.bfloat16}, "float32"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_options_match_encode(tmp_path, options, checkpoint, flags, same, dtype):
    main([*options, *flags])
    vectors = np.load(tmp_path / "out.npy")
    assert vectors.dtype == dtype
    expected = encode_in_chunks(checkpoint, make_texts(40), **same).astype(dtype)
    if "--dtype=bfloat16" in flags:  # another back-end
        np.testing.assert_allclose(vectors, expected, atol=0.1)
    else:
        assert np.array_equal(vectors, expected)


# ---- Rows that cannot be read ----


def test_corrupt_row_keeps_its_place_and_is_reported(tmp_path, options, checkpoint, capsys):
    texts = make_texts(40)
    file = write_jsonl(tmp_path / "texts.jsonl", texts)
    lines = file.read_text().splitlines()
    broken = [0, 5, *range(14, 34), 39]  # the whole second chunk among them
    for row in broken:
        lines[row] = "{broken"
    file.write_text("\n".join(lines) + "\n")
    report = main([*options, f"--output={tmp_path / 'out.parquet'}", "--id_column=key"])

    table = pq.read_table(tmp_path / "out.parquet")
    vectors = np.array(table["embedding"].to_pylist(), dtype=np.float32)
    assert np.flatnonzero(np.isnan(vectors).all(1)).tolist() == broken
    assert np.flatnonzero(np.isnan(vectors).any(1)).tolist() == broken
    alone = MagnetLlamaForCausalLM.from_pretrained(checkpoint)
    for row in set(range(40)) - set(broken):
        np.testing.assert_allclose(vectors[row], alone.encode(texts[row]), atol=1e-5)
    assert [row for row, key in enumerate(table["id"].to_pylist()) if key is None] == broken

    assert report["corrupt_rows"] == len(broken) == 23
    assert [complaint["row"] for complaint in report["corrupt"]] == broken
    assert report["corrupt"][1]["line"] == 6 and report["corrupt"][1]["file"] == str(file)
    output = capsys.readouterr().err
    assert f"Row 5 ({file}, line 6): not JSON" in output
    assert output.count("not JSON") == 20
    assert "23 of 40 rows could not be encoded" in output


def test_vector_outside_its_dtype_is_reported_as_corrupt(tmp_path, options, checkpoint):
    loaded = MagnetLlamaForCausalLM.from_pretrained(checkpoint)
    loaded.model.norm.weight.data *= 1e6
    loaded.save_pretrained(checkpoint)
    report = main([*options, "--output_dtype=float16", "--limit=20"])
    assert np.isnan(np.load(tmp_path / "out.npy")).all()
    assert report["corrupt_rows"] == 20
    assert (report["corrupt"][3]["row"], report["corrupt"][3]["reason"]) == (3, "the vector is not finite in float16")


# ---- What is refused, before the weights are read or anything is written ----


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--output=out.txt"], "`--output` is 'out.txt'.*.npy or .parquet"),
        (["--id_column=key"], "`--id_column` is 'key'"),
        (["--texts=nowhere.jsonl"], "`texts` is 'nowhere.jsonl'"),
        (["--model_name_or_path=./nowhere"], "./nowhere.*no model can be read"),
        (["--prompt=a", "--prompt_name=STS"], "Choose one"),
        (["--prompt=" + "a long prompt " * 99], "leaves no room for a token of text and EOS"),
        (["--truncate_dim=33"], "`--truncate_dim` is 33; this model has 32"),
        (["--max_length=257"], "`--max_length` is 257; this model has 256"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_invalid_arguments_are_refused_before_weights_are_read(tmp_path, options, checkpoint, changes, message):
    (checkpoint / "model.safetensors").write_bytes(b"not read")
    with pytest.raises(ValueError, match=f"(?s){message}"):
        main([*options, *changes])
    assert {path.name for path in tmp_path.iterdir()} == {"tiny", "texts.jsonl"}


@pytest.mark.parametrize("name", ["out.npy", "out.npy.json"])
@pytest.mark.parametrize("has_folder", [False, True])
def test_existing_output_is_never_overwritten(tmp_path, options, name, has_folder):
    (tmp_path / name).write_text("precious")
    if has_folder:
        (tmp_path / "out.npy.parts").mkdir()
    with pytest.raises(ValueError, match=f"`--output` would replace .*{name}"):
        main(options)
    assert (tmp_path / name).read_text() == "precious"
