"""What stands behind the app's tabs: the library's own answers, everything escaped, and no request that breaks it."""

import argparse
import json
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser

import numpy as np
import pytest
import torch

pytest.importorskip("gradio", reason="the app needs gradio, of the extra `demo`")

from examples import app
from examples.demo import model as demo_model
from examples.demo.attention import attention_weights, read_row, render_masks, render_weights, with_eager_attention
from examples.demo.encode import compare_sentences, compare_words, nearest_words, render_likeness
from examples.demo.generate import Runs, render_meters, show_writing, write_on
from examples.demo.infill import fill_from_left, fill_text, render_filled
from examples.demo.limits import shows_problems
from examples.demo.model import describe_model, open_model, quickstart_model
from examples.demo.page import Handlers, build_page, launch_options
from examples.plots import allowed_attention
from examples.quickstart_models import SMOKE
from modeling_magnet.masking_magnet import MODES

TEXT = "Tom fell.[blank] He cried[blank]."
HOSTILE = "<script>alert(1)</script> <img src=x onerror='alert(1)'> & \" ' </mark>"


class Page(HTMLParser):
    """Elements and text of a piece of HTML; checks that what is opened is closed."""

    def __init__(self, page):
        super().__init__(convert_charrefs=True)
        self.open, self.found, self.text = [], [], ""
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))
        if tag != "br":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def count(self, tag):
        return sum(found == tag for found, _ in self.found)


def check_harmless(page):
    """No element or attribute that a text brought in."""
    parsed = Page(page)
    assert {tag for tag, _ in parsed.found} <= {
        *("p", "span", "div", "section", "h2", "h3", "ol", "li", "mark", "br", "button", "label", "meter", "output"),
        *("table", "caption", "thead", "tbody", "tr", "th", "td"),
    }
    assert not any(name.startswith("on") or name in ("src", "href") for _, own in parsed.found for name in own)
    return parsed


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
        ("[blank]", 3, 1, "There is no text around the gap"),
        ("a[blank][blank]b", 3, 1, "Nothing stands between"),
        (TEXT, 33, 1, "Tokens of a fill is 33; expected a whole number from 1 to 32"),
        (TEXT, "many", 1, "Tokens of a fill is 'many'"),
        (TEXT, float("nan"), 1, "Tokens of a fill is nan"),
        (TEXT, 3, 6, "Answers is 6; expected a whole number from 1 to 5"),
        ("word " * 300 + "[blank]", 3, 1, "the model has 256. Shorten the text"),
        ("\ud800[blank]", 3, 1, "has a lone surrogate"),
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


def test_a_words_nearest_usages_are_in_other_lines_and_most_like_it(tiny_model):
    likeness = compare_words(tiny_model, "the cat sat\nthe cat\na dog ran")
    assert [likeness.text_of(word) for word in likeness.words] == "the cat sat the cat a dog ran".split()
    vectors = [tiny_model.encode_words(line).vectors for line in likeness.lines]
    near = nearest_words(likeness, 1)
    everything = np.concatenate(vectors)
    everything /= np.linalg.norm(everything, axis=1, keepdims=True)
    assert near == sorted(range(3, 8), key=lambda other: -(everything @ everything[1])[other])[:3]
    page = check_harmless(render_likeness(likeness))
    words = [own for tag, own in page.found if tag == "button"]
    assert len(words) == 8 and words[1]["data-near"] == " ".join(map(str, near))
    assert f"“{likeness.text_of(likeness.words[near[0]])}” in line" in words[1]["data-told"]


@pytest.mark.parametrize(
    ("text", "level", "told"),
    [
        ("", "sentences", "The list of lines is empty"),
        ("one line", "sentences", "There are 1 lines of text; write 2 to 12"),
        ("\n".join("abcdefghijklm"), "sentences", "There are 13 lines"),
        ("a b c " * 60 + "\nb", "words", "have 181 words; this page compares 150 at most"),
        ("a\n\udfff", "words", "has a lone surrogate"),
    ],
)
def test_what_cannot_be_compared_is_told_in_place(tiny_model, text, level, told):
    assert told in check_harmless(shows_problems(Handlers(tiny_model).compare)(text, level)).text


# ---- Generate ----


def test_it_writes_token_by_token_what_generate_writes(tiny_model):
    states = list(write_on(tiny_model, "Tom fell", new_tokens=12, temperature=0, stop=threading.Event()))
    ids = tiny_model.tokenizer("Tom fell", return_tensors="pt", return_token_type_ids=False)
    output = tiny_model.generate(**ids, max_new_tokens=12, do_sample=False)[0, ids["input_ids"].shape[1] :]
    assert [state.tokens for state in states[:-1]] == list(range(1, len(output) + 1))
    whole = tiny_model.tokenizer.decode(output, skip_special_tokens=True).rstrip("\ufffd")
    assert states[-1].text == whole
    assert {state.state for state in states[:-1]} == {"writing"}
    assert states[-1].state in ("finished", "ended by the model")


def writers():
    return [thread for thread in threading.enumerate() if thread.name == "writer"]


def test_stopping_ends_it_soon_and_leaving_ends_it_too(tiny_model):
    stop = threading.Event()
    running = write_on(tiny_model, "Tom fell", new_tokens=200, temperature=1.5, stop=stop)
    next(running)
    stop.set()
    last = list(running)[-1]
    assert last.state == "stopped" and last.tokens < 200
    shown = show_writing(write_on(tiny_model, "Tom", new_tokens=200, temperature=1.5, stop=threading.Event()))
    next(shown)
    assert writers()
    shown.close()
    assert not writers()


def test_a_visitor_stops_their_own_writing_alone():
    runs = Runs()
    one, other = runs.begin("one"), runs.begin("other")
    runs.stop("one")
    runs.stop("nobody")
    assert one.is_set() and not other.is_set()
    again = runs.begin("other")
    assert other.is_set() and not again.is_set()


def test_a_full_context_ends_it(tiny_model):
    (*_, last) = write_on(tiny_model, "a" * 250, new_tokens=50, temperature=0.5, stop=threading.Event())
    assert last.tokens <= 6 and last.state in ("stopped: the model's context is full", "ended by the model")


@pytest.mark.parametrize(
    ("prompt", "tokens", "temperature", "told"),
    [
        (" ", 5, 0, "The prompt is empty"),
        ("word " * 300, 5, 0, "which leaves none to write"),
        ("a", 0, 0, "New tokens is 0"),
        ("a", 201, 0, "New tokens is 201; expected a whole number from 1 to 200"),
        ("a", 5, 3, "Temperature is 3; expected a number from 0 to 2"),
        ("a", 5, float("nan"), "Temperature is nan"),
        ("a", 5, None, "Temperature is None"),
    ],
)
def test_what_cannot_be_written_is_told_in_place(tiny_model, prompt, tokens, temperature, told):
    states = write_on(tiny_model, prompt, new_tokens=tokens, temperature=temperature, stop=threading.Event())
    ((text, meters),) = show_writing(states)
    assert told in check_harmless(text).text and meters == ""
    assert not writers()


def test_what_breaks_while_writing_reaches_the_visitor_as_words(tiny_model, capsys):
    tiny_model.model.layers[0] = None
    states = write_on(tiny_model, "a", new_tokens=3, temperature=0, stop=threading.Event())
    ((text, _),) = show_writing(states)
    assert "Something went wrong on the server" in text
    assert "Traceback" in capsys.readouterr().err


def test_the_meters_show_the_metrics():
    from examples.demo.generate import Written

    page = check_harmless(render_meters(Written("x", "a b a b a b. It rained. It rained.", 9)))
    values = [float(own["value"]) for tag, own in page.found if tag == "meter"]
    assert page.text.startswith("9 tokens") and "Rep-4" in page.text
    assert values[0] == pytest.approx(3 / 9, abs=1e-3) and values[3] == pytest.approx(1 / 3, abs=1e-3)


# ---- Attention ----


def test_the_masks_are_those_that_the_model_hands_to_its_layers(tiny_model):
    row = read_row(tiny_model, TEXT)
    assert row.segments.count(1) == row.segments.count(2) == 3
    page = check_harmless(render_masks(row))
    cells = [own.get("class") for tag, own in page.found if tag == "td"]
    shown = torch.tensor([cell is not None for cell in cells]).reshape(3, len(row.names), len(row.names))
    for mode, mask in zip(MODES, shown, strict=True):
        assert torch.equal(mask, allowed_attention(tiny_model, row.segments_in(mode))), mode


@pytest.mark.parametrize("mode", MODES)
def test_the_weights_are_a_heads_own_and_obey_the_mask(tiny_model, mode):
    row = read_row(tiny_model, TEXT)
    eager = with_eager_attention(tiny_model)
    weights = attention_weights(eager, row, mode=mode, layer=2, head=3)
    assert torch.allclose(weights.sum(-1), torch.ones(len(row.names)), atol=1e-5)
    allowed = allowed_attention(tiny_model, row.segments_in(mode))
    assert (weights[~allowed] == 0).all() and (weights[allowed] > 0).all()
    assert not torch.equal(weights, attention_weights(eager, row, mode=mode, layer=2, head=4))
    page = check_harmless(render_weights(row, weights, caption="c"))
    assert page.count("td") == len(row.names) ** 2


def test_looking_at_attention_costs_no_second_set_of_weights_and_changes_nothing(tiny_model):
    before = tiny_model.config._attn_implementation
    eager = with_eager_attention(tiny_model)
    assert eager.config._attn_implementation == "eager" != before == tiny_model.config._attn_implementation
    mine = {tensor.data_ptr() for tensor in tiny_model.parameters()}
    assert {tensor.data_ptr() for tensor in eager.parameters()} == mine


@pytest.mark.parametrize(
    ("text", "mode", "layer", "head", "told"),
    [
        ("", "infill", 1, 1, "The text is empty"),
        ("a" * 60, "infill", 1, 1, "a table shows 40 at most"),
        (TEXT, "sideways", 1, 1, "Mode is 'sideways'; expected one of causal, bidirectional, infill"),
        (TEXT, "causal", 4, 1, "Layer is 4; expected a whole number from 1 to 3"),
        (TEXT, "causal", 1, 0, "Head is 0; expected a whole number from 1 to 4"),
    ],
)
def test_what_cannot_be_looked_at_is_told_in_place(tiny_model, text, mode, layer, head, told):
    assert told in check_harmless(shows_problems(Handlers(tiny_model).attend)(text, mode, layer, head)).text


# ---- All of it ----


def test_hostile_text_stays_text_in_every_tab(tiny_model):
    handlers = Handlers(tiny_model)
    short = "<b>&'\"[blank]</b>"
    pages = [
        shows_problems(handlers.fill)(f"{HOSTILE}[blank] {HOSTILE}", "set", 2, 2),
        *(shows_problems(handlers.compare)(f"{HOSTILE}\n{HOSTILE} b", level) for level in ("sentences", "words")),
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
    (folder / "building" / "magnet").mkdir(parents=True)
    (folder / "building" / "magnet" / "config.json").write_text("{}")  # of a build that was killed
    (folder / "magnet").mkdir()
    (folder / "magnet" / "model.safetensors").write_bytes(b"half")
    checkpoint = quickstart_model(folder, budget=SMOKE)
    told = capfd.readouterr().out
    assert "It is built once" in told and "4/6 MAGNET" in told and "is ready" in told
    assert not (folder / "building").exists()
    written = (checkpoint / "model.safetensors").stat().st_mtime_ns
    model = open_model(None, default_folder=folder)
    assert capfd.readouterr().out == "" and not model.training
    assert (checkpoint / "model.safetensors").stat().st_mtime_ns == written
    assert len(model.infill("Nora stopped at the market.", " She was proud.", max_new_tokens=2)) > 0
    assert describe_model(model, named=str(checkpoint)).startswith("magnet, 0.1 million parameters")


def test_a_second_builder_waits_for_the_first(tmp_path, monkeypatch, capsys):
    folder = tmp_path / "quickstart"
    folder.mkdir()
    built = []
    with ThreadPoolExecutor(1) as pool, demo_model._alone_in(folder):
        waiting = pool.submit(quickstart_model, folder, budget=SMOKE)
        while "waiting for it" not in capsys.readouterr().out:
            assert not waiting.done()
            time.sleep(0.02)
        (folder / "magnet").mkdir()
        (folder / "magnet" / "config.json").write_text("{}")
        built.append(waiting)
    assert built[0].result() == folder / "magnet"
    assert sorted(path.name for path in folder.iterdir()) == ["building.lock", "magnet"]


@pytest.mark.parametrize("what", ["nothing", "empty folder", "no tokenizer"])
def test_what_cannot_be_opened_is_told_in_one_line(tmp_path, tiny_model, what):
    folder = tmp_path / "model"
    if what == "empty folder":
        folder.mkdir()
    if what == "no tokenizer":
        tiny_model.save_pretrained(folder)
        (folder / "tokenizer.json").unlink()
        (folder / "tokenizer_config.json").unlink(missing_ok=True)
    with pytest.raises(SystemExit, match=r"^error: .*model"):
        app.main(["--model", str(folder)])


def test_options_are_read(monkeypatch):
    monkeypatch.setenv("GRADIO_SERVER_NAME", "0.0.0.0")  # as on a Space
    assert app.parse_arguments(["--model", "m"]) == argparse.Namespace(
        model="m", port=7860, host="0.0.0.0", share="no"
    )
    with pytest.raises(SystemExit):
        app.parse_arguments(["--port", "0"])


def test_help_needs_no_model(capsys):
    with pytest.raises(SystemExit, match="^0$"):
        app.main(["--help"])
    assert "--model" in capsys.readouterr().out
