"""Test the functions of the app's tabs: the library's results, escaping, and invalid requests."""

import threading

import pytest
import torch

pytest.importorskip("gradio", reason="the app needs gradio, of the extra `demo`")

from examples.demo.attention import attention_weights, read_row, render_masks, render_weights, with_eager_attention
from examples.demo.generate import show_stream, stream_continuation
from examples.demo.infill import fill_text, render_filled
from examples.demo.limits import shows_problems
from examples.demo.page import Handlers
from examples.toy.model import describe_model, open_model, quickstart_model
from examples.toy.training import SMOKE
from modeling_magnet.configuration_magnet import MODES

from .html_page import ParsedPage, check_harmless

TEXT = "Tom fell.[blank] He cried[blank]."
HOSTILE = "<script>alert(1)</script> <img src=x onerror='alert(1)'> & \" ' </mark>"


# ---- Infill ----


def test_answers_equal_infill_blanks(tiny_model):
    filled = fill_text(tiny_model, TEXT, length=3, answers=2)
    expected = tiny_model.infill_blanks(TEXT, max_new_tokens=3, num_return_sequences=2)
    assert [[fill["text"] for fill in answers] for answers in filled.fills] == expected
    assert filled.parts == ["Tom fell.", " He cried", "."]
    page = check_harmless(render_filled(filled))
    assert page.count("mark") == 4 and page.count("ol") == 2
    assert page.count("li") == sum(map(len, expected))
    for answers in filled.fills:
        for answer in answers:
            assert f"{answer['logprob']:.2f} nats" in page.text
            assert sum(answer["logprobs"]) == pytest.approx(answer["logprob"], abs=1e-3)


@pytest.mark.parametrize(
    ("text", "length", "answers", "message"),
    [
        ("", 3, 1, "The text is empty"),
        ("x" * 5000 + "[blank]", 3, 1, "has 5,007 characters; this page takes 4,000 at most"),
        ("a[blank]" * 9, 3, 1, "has 9 blanks; this page fills 8 at most"),
        ("[blank]", 3, 1, "There is no text around the blank"),
        (TEXT, 33, 1, "Tokens of a fill is 33; expected a whole number from 1 to 32"),
        (TEXT, "many", 1, "Tokens of a fill is 'many'"),
        (TEXT, 3, 6, "Answers is 6; expected a whole number from 1 to 5"),
        ("word " * 300 + "[blank]", 3, 1, "is 256"),
        ("\ud800[blank]", 3, 1, "surrogate"),
    ],
)
def test_invalid_request_is_reported_in_place(tiny_model, text, length, answers, message):
    shown = shows_problems(Handlers(tiny_model).fill)(text, "set", length, answers)
    page = check_harmless(shown)
    assert message in page.text
    assert page.found[0] == ("p", {"class": "problem", "role": "alert"})


def test_unexpected_errors_are_shown_only_in_the_terminal(capsys):
    def breaks():
        raise RuntimeError("secret of the server")

    shown = shows_problems(breaks)()
    assert "Something went wrong" in shown and "secret" not in shown
    assert "secret of the server" in capsys.readouterr().err


# ---- All of it ----


def test_hostile_text_is_escaped_in_every_tab(tiny_model):
    handlers = Handlers(tiny_model)
    short = "<b>&'\"[blank]</b>"
    pages = [
        shows_problems(handlers.fill)(f"{HOSTILE}[blank] {HOSTILE}", "set", 2, 2),
        shows_problems(handlers.compare)(f"{HOSTILE}\n{HOSTILE} b"),
        shows_problems(handlers.fill)(f"{HOSTILE}", "set", 2, 2),
        shows_problems(handlers.attend)(short, "infill", 1, 1),
        list(
            show_stream(stream_continuation(tiny_model, HOSTILE, new_tokens=4, temperature=0, stop=threading.Event()))
        )[-1][0],
    ]  # fmt: skip
    for page in pages:
        check_harmless(page)
    assert HOSTILE in ParsedPage(pages[0]).text and HOSTILE in ParsedPage(pages[-1]).text


# ---- The model ----


def test_model_is_built_once_and_a_killed_build_is_ignored(tmp_path, capfd):
    folder = tmp_path / "quickstart"
    (folder / "magnet").mkdir(parents=True)
    (folder / "magnet" / "model.safetensors").write_bytes(b"half")  # left by a killed build
    checkpoint = quickstart_model(folder, budget=SMOKE)
    output = capfd.readouterr().out
    assert "It is built once" in output and "3/3 MAGNET" in output and "is ready" in output
    assert [path.name for path in folder.iterdir()] == ["magnet"]
    written = (checkpoint / "model.safetensors").stat().st_mtime_ns
    model = open_model(None, default_folder=folder)
    assert capfd.readouterr().out == "" and not model.training
    assert (checkpoint / "model.safetensors").stat().st_mtime_ns == written
    assert len(model.infill("Nora stopped at the market.", " She was proud.", max_new_tokens=2)) > 0
    assert describe_model(model, named=str(checkpoint)).startswith("magnet, 0.1 million parameters")


# ---- Generate ----


def test_streamed_tokens_equal_generate(tiny_model):
    states = list(stream_continuation(tiny_model, "Tom fell", new_tokens=12, temperature=0, stop=threading.Event()))
    ids = tiny_model.tokenizer("Tom fell", return_tensors="pt", return_token_type_ids=False)
    output = tiny_model.generate(**ids, max_new_tokens=12, do_sample=False)[0, ids["input_ids"].shape[1] :]
    assert [state.tokens for state in states[:-1]] == list(range(1, len(output) + 1))
    whole = tiny_model.tokenizer.decode(output, skip_special_tokens=True).rstrip("\ufffd")
    assert states[-1].text == whole
    assert {state.state for state in states[:-1]} == {"writing"}
    assert states[-1].state in ("finished", "ended by the model")


def writers():
    return [thread for thread in threading.enumerate() if thread.name == "writer"]


def test_stop_and_disconnect_end_generation(tiny_model):
    stop = threading.Event()
    running = stream_continuation(tiny_model, "Tom fell", new_tokens=200, temperature=1.5, stop=stop)
    next(running)
    stop.set()
    last = list(running)[-1]
    assert last.state == "stopped" and last.tokens < 200
    shown = show_stream(
        stream_continuation(tiny_model, "Tom", new_tokens=200, temperature=1.5, stop=threading.Event())
    )
    next(shown)
    assert writers()
    shown.close()
    assert not writers()


def test_errors_while_writing_are_shown_to_the_visitor(tiny_model, capsys):
    tiny_model.model.layers[0] = None
    states = stream_continuation(tiny_model, "a", new_tokens=3, temperature=0, stop=threading.Event())
    ((text, _),) = show_stream(states)
    assert "Something went wrong on the server" in text
    assert "Traceback" in capsys.readouterr().err


# ---- Attention ----


@pytest.mark.parametrize("mode", MODES)
def test_shown_weights_and_mask_agree_with_the_attention_head(tiny_model, mode):
    row = read_row(tiny_model, TEXT)
    assert row.segments.count(1) == row.segments.count(2) == 3
    eager = with_eager_attention(tiny_model)
    weights = attention_weights(eager, row, mode=mode, layer=2, head=3)
    assert torch.allclose(weights.sum(-1), torch.ones(len(row.names)), atol=1e-5)
    assert not torch.equal(weights, attention_weights(eager, row, mode=mode, layer=2, head=4))
    page = check_harmless(render_weights(row, weights, caption="c"))
    assert page.count("td") == len(row.names) ** 2
    page = check_harmless(render_masks(row))
    cells = [own.get("class") for tag, own in page.found if tag == "td"]
    shown = torch.tensor([cell is not None for cell in cells]).reshape(3, *weights.shape)
    assert torch.equal(shown[MODES.index(mode)], weights > 0)
