"""Test that the app streams tokens until it is stopped, and shows the model's masks and attention weights."""

import threading

import pytest
import torch

pytest.importorskip("gradio", reason="the app needs gradio, of the extra `demo`")

from examples.demo.attention import attention_weights, read_row, render_masks, render_weights, with_eager_attention
from examples.demo.generate import show_writing, write_on
from modeling_magnet.configuration_magnet import MODES

from .html_page import check_harmless

TEXT = "Tom fell.[blank] He cried[blank]."


# ---- Generate ----


def test_streamed_tokens_equal_generate(tiny_model):
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


def test_stop_and_disconnect_end_generation(tiny_model):
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


def test_errors_while_writing_are_shown_to_the_visitor(tiny_model, capsys):
    tiny_model.model.layers[0] = None
    states = write_on(tiny_model, "a", new_tokens=3, temperature=0, stop=threading.Event())
    ((text, _),) = show_writing(states)
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
