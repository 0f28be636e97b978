"""What stands behind the app's tabs: the library's own answers, everything escaped, and no request that breaks it."""

import json
import re
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

pytest.importorskip("gradio", reason="the app needs gradio, of the extra `demo`")

from examples import app
from examples.demo.encode import compare_sentences, render_likeness
from examples.demo.generate import show_writing, write_on
from examples.demo.infill import fill_from_left, fill_text, render_filled
from examples.demo.limits import shows_problems
from examples.demo.page import Handlers, build_page, launch_options
from examples.toy.model import describe_model, open_model, quickstart_model
from examples.toy.training import SMOKE

from ..scripts import run_script
from .app_answers import Page, check_harmless

TEXT = "Tom fell.[blank] He cried[blank]."
HOSTILE = "<script>alert(1)</script> <img src=x onerror='alert(1)'> & \" ' </mark>"


# ---- Infill ----


def test_the_answers_are_those_of_infill_blanks(tiny_model):
    filled = fill_text(tiny_model, TEXT, length=3, answers=2)
    expected = tiny_model.infill_blanks(TEXT, max_new_tokens=3, num_return_sequences=2)
    assert [[fill["text"] for fill in answers] for answers in filled.fills] == expected
    assert filled.pieces == ["Tom fell.", " He cried", "."]
    page = check_harmless(render_filled(filled))
    assert page.count("mark") == 4 and page.count("ol") == 2
    assert page.count("li") == sum(map(len, expected))
    for answers in filled.fills:
        for answer in answers:
            assert f"{answer['logprob']:.2f} nats" in page.text
            assert sum(answer["logprobs"]) == pytest.approx(answer["logprob"], abs=1e-3)


def test_the_length_is_found_where_none_is_given(tiny_model):
    filled = fill_text(tiny_model, TEXT, length=None, answers=1)
    (expected,) = tiny_model.infill_blanks([TEXT], num_tokens="auto")
    assert [answers[0]["text"] for answers in filled.fills] == expected


def scores(model, prompt, written):
    """Log-probabilities of tokens behind a prompt, by one plain forward."""
    with torch.no_grad():
        logits = model(torch.cat([prompt, written[None]], dim=1)).logits[:, prompt.shape[1] - 1 : -1]
    return logits.log_softmax(-1).gather(-1, written[None, :, None])[..., 0].tolist()


def test_from_the_left_is_the_causal_continuation_of_as_many_tokens(tiny_model):
    before, between = fill_from_left(tiny_model, ["Tom fell.", " He cried", "."], [3, 2])
    ids = tiny_model.tokenizer("Tom fell.", return_tensors="pt", return_token_type_ids=False)
    output = tiny_model.generate(**ids, max_new_tokens=3, min_new_tokens=3, do_sample=False)
    written = output[0, ids["input_ids"].shape[1] :]
    assert before["text"] == tiny_model.tokenizer.decode(written, skip_special_tokens=True)
    (scored,) = scores(tiny_model, ids["input_ids"], written)
    assert before["logprobs"] == pytest.approx(scored, abs=1e-3)
    assert len(between["logprobs"]) == 2
    # What stands behind the blanks is not seen.
    other = fill_from_left(tiny_model, ["Tom fell.", " He cried", " and ran away."], [3, 2])
    assert other == [before, between]


@pytest.mark.parametrize(
    ("text", "length", "answers", "told"),
    [
        ("", 3, 1, "The text is empty"),
        (None, 3, 1, "The text is empty"),
        ("no gap", 3, 1, "has no blank '[blank]'"),
        ("x" * 5000 + "[blank]", 3, 1, "has 5,007 characters; this page takes 4,000 at most"),
        ("a[blank]" * 9, 3, 1, "has 9 blanks; this page fills 8 at most"),
        ("[blank]", 3, 1, "There is no text around the blank"),
        ("a[blank][blank]b", 3, 1, "between two blanks"),
        (TEXT, 33, 1, "Tokens of a fill is 33; expected a whole number from 1 to 32"),
        (TEXT, "many", 1, "Tokens of a fill is 'many'"),
        (TEXT, float("nan"), 1, "Tokens of a fill is nan"),
        (TEXT, 3, 6, "Answers is 6; expected a whole number from 1 to 5"),
        ("word " * 300 + "[blank]", 3, 1, "is 256. Shorten them"),
        ("\ud800[blank]", 3, 1, "surrogate"),
    ],
)
def test_what_cannot_be_filled_is_told_in_place(tiny_model, text, length, answers, told):
    shown = shows_problems(Handlers(tiny_model).fill)(text, "set", length, answers)
    page = check_harmless(shown)
    assert told in page.text
    assert page.found[0] == ("p", {"class": "problem", "role": "alert"})


def test_what_nobody_foresaw_stays_in_the_terminal(capsys):
    def breaks():
        raise RuntimeError("secret of the server")

    shown = shows_problems(breaks)()
    assert "Something went wrong" in shown and "secret" not in shown
    assert "secret of the server" in capsys.readouterr().err


# ---- Encode ----


def test_cosines_are_those_of_encode_and_every_cell_has_its_number(tiny_model):
    lines = ["The cat sat.", "A cat was there.", "Stocks fell."]
    likeness = compare_sentences(tiny_model, "\n\n".join(lines) + "\n ")
    vectors = tiny_model.encode(lines, normalize_embeddings=True)
    assert np.abs(likeness.cosines - vectors @ vectors.T).max() < 1e-6
    page = check_harmless(render_likeness(likeness))
    assert page.count("td") == 9 and page.count("th") == 7 and page.count("caption") == 1
    for value in likeness.cosines.ravel():
        assert f"{value:.2f}" in page.text


# ---- All of it ----


def test_hostile_text_stays_text_in_every_tab(tiny_model):
    handlers = Handlers(tiny_model)
    short = "<b>&'\"[blank]</b>"
    pages = [
        shows_problems(handlers.fill)(f"{HOSTILE}[blank] {HOSTILE}", "set", 2, 2),
        shows_problems(handlers.compare)(f"{HOSTILE}\n{HOSTILE} b"),
        shows_problems(handlers.fill)(f"{HOSTILE}", "set", 2, 2),
        shows_problems(handlers.attend)(short, "infill", 1, 1),
        list(
            show_writing(write_on(tiny_model, HOSTILE, new_tokens=4, temperature=0, stop=threading.Event()))
        )[-1][0],
    ]  # fmt: skip
    for page in pages:
        check_harmless(page)
    assert HOSTILE in Page(pages[0]).text and HOSTILE in Page(pages[-1]).text


def test_visitors_at_once_get_their_own_answers(tiny_model):
    handlers = Handlers(tiny_model)
    texts = [f"Tom saw {n} dogs[blank] and {n} cats." for n in range(6)]
    alone = [handlers.fill(text, "set", 4, 2) for text in texts]
    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(lambda text: handlers.fill(text, "set", 4, 2), texts * 2))
        attention = pool.submit(handlers.attend, "a[blank] b", "infill", 1, 1)
        assert attention.result() == handlers.attend("a[blank] b", "infill", 1, 1)
    assert together == alone * 2 and len(set(alone)) == len(alone)


def test_the_page_asks_nobody_else_and_has_a_limit_on_its_queue(tiny_model):
    page = build_page(tiny_model, described="<b>a model</b>")
    assert page.analytics_enabled is False
    config = json.dumps(page.get_config_file())
    assert "<b>a model</b>" not in config
    assert page._queue.max_size == 64 and page._queue.default_concurrency_limit == 4
    options = launch_options()
    assert not re.search(r"https?:|url\(|@import", options["css"] + options["head"])
    assert "http" not in str(options["theme"]._stylesheets)


# ---- The model ----


def test_a_model_is_built_once_and_a_killed_build_is_no_model(tmp_path, capfd):
    folder = tmp_path / "quickstart"
    (folder / "magnet").mkdir(parents=True)
    (folder / "magnet" / "model.safetensors").write_bytes(b"half")  # of a build that was killed
    checkpoint = quickstart_model(folder, budget=SMOKE)
    told = capfd.readouterr().out
    assert "It is built once" in told and "3/3 MAGNET" in told and "is ready" in told
    assert [path.name for path in folder.iterdir()] == ["magnet"]
    written = (checkpoint / "model.safetensors").stat().st_mtime_ns
    model = open_model(None, default_folder=folder)
    assert capfd.readouterr().out == "" and not model.training
    assert (checkpoint / "model.safetensors").stat().st_mtime_ns == written
    assert len(model.infill("Nora stopped at the market.", " She was proud.", max_new_tokens=2)) > 0
    assert describe_model(model, named=str(checkpoint)).startswith("magnet, 0.1 million parameters")


@pytest.mark.parametrize("what", ["nothing", "empty folder", "no tokenizer"])
def test_what_cannot_be_opened_is_told_in_one_line(tmp_path, tiny_model, what):
    folder = tmp_path / "model"
    if what == "empty folder":
        folder.mkdir()
    if what == "no tokenizer":
        tiny_model.save_pretrained(folder)
        (folder / "tokenizer.json").unlink()
        (folder / "tokenizer_config.json").unlink(missing_ok=True)
    code, out, err = run_script(app, "--model", str(folder))
    assert (code, out) == (2, "")
    assert re.match(r"error: .*model", err) and len(err.splitlines()) == 1
