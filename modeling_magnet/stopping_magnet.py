"""When a fill ends before its gap is full: an end-of-span token, the end of a sentence, a string, or a criterion."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerBase
from transformers.generation.stopping_criteria import StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from .gaps_magnet import GappedText, decode_fill
from .sampling_magnet import Choice, TokenChooser
from .spans_magnet import Span

# Closing quotes and brackets belong to the sentence; white space behind tells an end from a decimal point. Scripts
# that set no spaces have full stops of their own.
SENTENCE_END = re.compile(r"""[.!?…]+["'”’»)\]]*(?=\s)|[。！？]+[”’」』）]*""")


class GapStream:
    """Hands the gaps of one text to a streamer one after another, though all of them advance together.

    Each gap is streamed as `generate` streams an output: the text since the last gap as its prompt, token by token,
    then its end. So a `TextIteratorStreamer` is iterated once per gap.

    Args:
        streamer (`BaseStreamer`): As `generate` takes it.
        text (`GappedText`): The text, before anything is filled.
        spans (`Sequence[Span]`): One span for each gap, in order.
        hold_back (`bool`): Keep a token until the next one is known, which may show that it does not belong.
    """

    def __init__(self, streamer: BaseStreamer, text: GappedText, spans: Sequence[Span], *, hold_back: bool) -> None:
        self.streamer = streamer
        self.pieces = text.pieces
        self.spans = spans
        self.hold_back = hold_back
        self.gap = 0
        self.sent: int | None = None  # tokens of the current gap, or none and not even its prompt

    def update(self) -> None:
        """Stream what is new."""
        while self.gap < len(self.spans):
            span = self.spans[self.gap]
            if self.sent is None:
                self.streamer.put(torch.tensor([self.pieces[self.gap]]))
                self.sent = 0
            ready = len(span.token_ids) - (1 if self.hold_back and not span.is_full else 0)
            for token in span.token_ids[self.sent : ready]:
                self.streamer.put(torch.tensor([token]))
            self.sent = max(ready, self.sent)
            if not span.is_full:
                return
            self.streamer.end()
            self.gap, self.sent = self.gap + 1, None


@dataclass
class StopRules:
    """The rules of one call.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): Writes spans as text.
        end_of_span_id (`int`, *optional*): Token that ends a span and is no part of it.
        stop_strings (`Sequence[str]`): A span ends behind the first of these, as the outputs of `generate` do.
        sentence_end (`bool`): A span ends behind its first sentence: at a full stop, question or exclamation mark and
            its closing quotes, in front of white space. An abbreviation counts as an end.
        criteria (`StoppingCriteriaList`, *optional*): As `generate` takes them. Their rows are the spans of a batch,
            see `TokenChooser.left_contexts`.
        stream (`GapStream`, *optional*): Told after every token.
    """

    tokenizer: PreTrainedTokenizerBase
    end_of_span_id: int | None = None
    stop_strings: Sequence[str] = ()
    sentence_end: bool = False
    criteria: StoppingCriteriaList | None = None
    stream: GapStream | None = None

    @property
    def reads_text(self) -> bool:
        """Whether a span can end at a place in its text."""
        return bool(self.stop_strings) or self.sentence_end

    @property
    def reads_tokens(self) -> bool:
        """Whether tokens have to be looked at as they come."""
        return self.reads_text or self.end_of_span_id is not None or bool(self.criteria) or self.stream is not None

    def after_step(self, spans: Sequence[Span], choice: Choice, *, chooser: TokenChooser) -> None:
        """Give each span its token, and end those that a rule ends; spans that are full stay as they are."""
        growing = [not span.is_full for span in spans]
        for span, token, logprob, grows in zip(
            spans, choice.tokens.tolist(), choice.logprobs.tolist(), growing, strict=True
        ):
            if not grows:
                continue
            if token == self.end_of_span_id:
                span.has_ended = True
                continue
            span.token_ids.append(token)
            span.logprobs.append(logprob)
            if self.reads_text:
                self._end_in_text(span)
        if self.criteria:
            ended = self.criteria(chooser.left_contexts(spans).to(choice.tokens.device), choice.scores)  # type: ignore[arg-type]
            ended = torch.as_tensor(ended).expand(len(spans)).tolist()
            for span, grows, ends in zip(spans, growing, ended, strict=True):
                span.has_ended |= grows and ends
        if self.stream is not None:
            self.stream.update()

    def _end_in_text(self, span: Span) -> None:
        """End a span at the first place in its text where a rule does; tokens behind it are dropped."""
        text = decode_fill(self.tokenizer, span.before, span.token_ids)
        own = len(span.seam.start)  # what was taken from the context ends nothing
        ends = [text.index(stop, own) + len(stop) for stop in self.stop_strings if stop in text[own:]]
        if self.sentence_end and (match := SENTENCE_END.search(text, own)):
            ends.append(match.end())
        if not ends:
            return
        span.has_ended, span.text_length = True, min(ends)
        kept = len(span.token_ids)
        while kept > 1 and len(decode_fill(self.tokenizer, span.before, span.token_ids[: kept - 1])) >= min(ends):
            kept -= 1
        del span.token_ids[kept:], span.logprobs[kept:]


__all__ = ["GapStream", "StopRules"]
