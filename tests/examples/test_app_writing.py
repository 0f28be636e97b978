"""The app writes token by token until somebody stops it, and shows the masks and weights that the model has."""

import threading

import pytest
import torch

pytest.importorskip("gradio", reason="the app needs gradio, of the extra `demo`")

from examples.demo.attention import attention_weights, read_row, render_masks, render_weights, with_eager_attention
from examples.demo.generate import Runs, render_meters, show_writing, write_on
from modeling_magnet.configuration_magnet import MODES

from .app_answers import check_harmless

TEXT = "Tom fell.[blank] He cried[blank]."


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


@pytest.mark.parametrize("mode", MODES)
def test_the_weights_are_a_heads_own_and_the_shown_mask_is_where_they_are(tiny_model, mode):
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


def test_looking_at_attention_costs_no_second_set_of_weights_and_changes_nothing(tiny_model):
    before = tiny_model.config._attn_implementation
    eager = with_eager_attention(tiny_model)
    assert eager.config._attn_implementation == "eager" != before == tiny_model.config._attn_implementation
    mine = {tensor.data_ptr() for tensor in tiny_model.parameters()}
    assert {tensor.data_ptr() for tensor in eager.parameters()} == mine
