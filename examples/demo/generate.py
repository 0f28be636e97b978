"""Implement the Generate tab: stream a continuation with measures of repetition until the visitor stops it."""

import html
import threading
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from queue import Queue
from typing import Any

import torch
from transformers import StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from examples.demo.limits import LIMITS, checked_number, checked_text, problem, render_error
from modeling_magnet.spans_magnet import decode_fill
from modeling_magnet.tokenization_magnet import bos_ids, context_length, special_ids, text_ids
from trainer.metrics import repetition_n, repetition_sentences


@dataclass(frozen=True)
class Progress:
    """What has been written so far."""

    prompt: str
    text: str
    tokens: int
    state: str = "writing"


class _TokenQueue(BaseStreamer):
    """Stream the ids of new tokens; the prompt, which comes first, is skipped."""

    def __init__(self, queue: Queue[Any]) -> None:
        self.queue = queue
        self.is_prompt = True

    def put(self, value: torch.Tensor) -> None:
        if not self.is_prompt:
            self.queue.put(value.reshape(-1).tolist())
        self.is_prompt = False

    def end(self) -> None:
        self.queue.put(None)


class _Stopped(StoppingCriteria):
    """Stop all rows when the event is set."""

    def __init__(self, stop: threading.Event) -> None:
        self.stop = stop

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **kwargs: Any) -> torch.BoolTensor:
        return torch.full((len(input_ids),), self.stop.is_set(), device=input_ids.device)  # type: ignore[return-value]


def stream_continuation(
    model: Any, prompt: object, *, new_tokens: object, temperature: object, stop: threading.Event
) -> Generator[Progress, None, None]:
    """Continue a prompt from left to right; closing the iterator stops the model."""
    given = checked_text(prompt, what="The prompt")
    number = checked_number(new_tokens, what="New tokens", minimum=1, maximum=LIMITS.new_tokens)
    if isinstance(temperature, bool) or not isinstance(temperature, int | float) or not 0 <= temperature <= 2:
        raise ValueError(f"Temperature is {temperature!r}; expected a number from 0 to 2.")
    tokenizer = model.tokenizer
    row = bos_ids(tokenizer) + text_ids(tokenizer, given)
    capacity = context_length(model.config, tokenizer) - len(row)
    if capacity < 1:
        raise ValueError(
            f"The prompt has {len(row)} tokens; the model reads {len(row) + capacity}, which leaves none to write. "
            "Shorten it."
        )
    queue: Queue[Any] = Queue()
    choice = {"do_sample": True, "temperature": float(temperature)} if temperature else {"do_sample": False}
    writer = threading.Thread(
        target=_write, args=(model, row, min(number, capacity), choice, queue, stop), name="writer", daemon=True
    )
    ids: list[int] = []
    writer.start()
    try:
        while True:
            new = queue.get()
            if isinstance(new, BaseException):
                raise new
            if new is None:
                break
            ids += new
            yield Progress(given, _text(tokenizer, row, ids), len(ids))
            if stop.is_set():  # tokens generated after a stop are not shown
                break
        if stop.is_set():
            state = "stopped"
        elif ids and ids[-1] == tokenizer.eos_token_id:
            state = "ended by the model"
        elif len(ids) == capacity < number:
            state = "stopped: the model's context is full"
        else:
            state = "finished"
        yield Progress(given, _text(tokenizer, row, ids), len(ids), state)
    finally:
        stop.set()
        writer.join()


def _write(
    model: Any, row: list[int], number: int, choice: dict[str, Any], queue: Queue[Any], stop: threading.Event
) -> None:
    """Run `generate` and pass its errors to the reading thread."""
    input_ids = torch.tensor([row], device=model.device)
    pad = model.tokenizer.eos_token_id if model.tokenizer.pad_token_id is None else model.tokenizer.pad_token_id
    try:
        model.generate(
            input_ids=input_ids,
            attention_mask=torch.ones_like(input_ids),
            max_new_tokens=number,
            pad_token_id=pad,
            streamer=_TokenQueue(queue),
            stopping_criteria=StoppingCriteriaList([_Stopped(stop)]),
            **choice,
        )
    except Exception as error:  # raised again by the reader
        queue.put(error)


def _text(tokenizer: Any, row: Sequence[int], ids: Sequence[int]) -> str:
    """Decode the new tokens without an incomplete character at the end."""
    special = special_ids(tokenizer)
    before, new = ([token for token in part if token not in special] for part in (row, ids))
    return decode_fill(tokenizer, before, new).rstrip("\ufffd")


class Runs:
    """Track the running continuation of each visitor, which only this visitor can stop."""

    def __init__(self) -> None:
        self._stops: dict[str, threading.Event] = {}
        self._lock = threading.Lock()

    def begin(self, visitor: str) -> threading.Event:
        """Stop the visitor's earlier run and return the event that stops the new one."""
        with self._lock:
            if visitor in self._stops:
                self._stops[visitor].set()
            self._stops[visitor] = threading.Event()
            return self._stops[visitor]

    def stop(self, visitor: str) -> None:
        """Stop a visitor's run if there is one."""
        with self._lock:
            stop = self._stops.pop(visitor, None)
        if stop is not None:
            stop.set()


def show_stream(states: Generator[Progress, None, None]) -> Iterator[tuple[str, str]]:
    """Yield text and measures as they grow; an error replaces the text."""
    last = ""
    try:
        with closing(states):  # stops the model if the visitor leaves
            for progress in states:
                last = render_text(progress)
                yield last, render_meters(progress)
    except Exception as error:
        yield last + render_error(problem(error)), ""


def render_text(progress: Progress) -> str:
    """Render prompt and continuation."""
    state = "" if progress.state == "writing" else f'<p class="note" role="status">{progress.state}</p>'
    return f'<p class="text">{html.escape(progress.prompt)}<mark>{html.escape(progress.text)}</mark></p>{state}'


def render_meters(progress: Progress) -> str:
    """Render how much of the continuation repeats itself."""
    shares = {f"Rep-{n}": repetition_n(progress.text, n=n) for n in (2, 3, 4)}
    shares["Rep-Sen"] = repetition_sentences(progress.text)
    items = "".join(
        f'<label>{name} <meter min="0" max="1" low="0.2" high="0.5" optimum="0" value="{share:.3f}"></meter> '
        f"<output>{share:.1%}</output></label>"
        for name, share in shares.items()
    )
    return f'<div class="meters"><span>{progress.tokens} tokens</span>{items}</div>'
