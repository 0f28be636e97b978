"""End a fill early (after a sentence, a string, or by a criterion), and stream tokens as they are chosen."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerBase
from transformers.generation.stopping_criteria import StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer, TextStreamer

from .sampling_magnet import ByteTokens, Choice, TokenChooser
from .spans_magnet import Span, SpanLayout, decode_fill, fill_text, trim_overlap

# Closing quotes and brackets belong to the sentence; the white space after it tells an end from a decimal point.
# Scripts without spaces have full stops of their own.
SENTENCE_END = re.compile(r"""[.!?…]+["'”’»)\]]*(?=\s)|[。！？]+[”’」』）]*""")


@dataclass
class SpanStream:
    """Hands the spans of one text to a streamer one after another, though all of them advance together.

    Each span is streamed as `generate` streams an output: the text since the last span as its prompt, its tokens, its
    end. A `TextStreamer`, or a class derived from it that keeps its `put`, is given the text of the fill instead,
    character for character.
    """

    streamer: BaseStreamer
    layout: SpanLayout  # of the text before anything is filled
    parts: Sequence[str]  # the text around the blanks
    spans: Sequence[Span]  # one for each blank, in order
    tokenizer: PreTrainedTokenizerBase
    byte_tokens: ByteTokens  # these wait for the rest of their character
    hold_back: bool  # keep a token until the next one is known, which may show that it does not belong
    trim: bool  # whether overlaps are trimmed, which needs the complete fill
    blank: int = 0
    sent: int | None = None  # tokens or characters of the current span; `None` before its prompt

    def update(self) -> None:
        """Stream what is new."""
        while self.blank < len(self.spans):
            span = self.spans[self.blank]
            if isinstance(self.streamer, TextStreamer) and takes_text(self.streamer):
                self._send_text(span, self.streamer)
            else:
                self._send_tokens(span)
            if not span.is_full:
                return
            self.streamer.end()
            self.blank, self.sent = self.blank + 1, None

    def _send_tokens(self, span: Span) -> None:
        """Put the prompt of a span, then its tokens one by one."""
        if self.sent is None:
            self.streamer.put(torch.tensor([self.layout.parts[self.blank]]))
            self.sent = 0
        ready = self.byte_tokens.count_whole(span.token_ids) - (1 if self.hold_back and not span.is_full else 0)
        for token in span.token_ids[self.sent : ready]:
            self.streamer.put(torch.tensor([token]))
        self.sent = max(ready, self.sent)

    def _send_text(self, span: Span, streamer: TextStreamer) -> None:
        """Hand over the prompt of a span, then the characters of its fill that no later token can change."""
        if self.sent is None:
            if not streamer.skip_prompt:
                streamer.on_finalized_text(self.parts[self.blank])
            self.sent = 0
        is_whole = self.byte_tokens.count_whole(span.token_ids) == len(span.token_ids)
        if not span.is_full and (self.trim or not is_whole):
            return
        text = fill_text(self.tokenizer, span)
        if self.trim:
            text = trim_overlap(text, before=self.parts[self.blank], after=self.parts[self.blank + 1])
        if new := text[self.sent :]:
            streamer.on_finalized_text(new)
            self.sent = len(text)


def takes_text(streamer: BaseStreamer) -> bool:
    """Return whether a streamer only shows text, so that it may be given text instead of tokens."""
    return isinstance(streamer, TextStreamer) and type(streamer).put is TextStreamer.put


@dataclass
class StopRules:
    """The rules of one call."""

    tokenizer: PreTrainedTokenizerBase
    byte_tokens: ByteTokens  # no criterion ends a span inside a character
    stop_strings: Sequence[str]  # a span ends after the first of these, as the outputs of `generate` do
    sentence_end: bool  # a span ends after its first sentence; an abbreviation counts as one
    criteria: StoppingCriteriaList | None  # their rows are the spans of a batch, see `TokenChooser.left_contexts`
    stream: SpanStream | None = None

    @property
    def reads_text(self) -> bool:
        """Whether a span can end at a place in its text."""
        return bool(self.stop_strings) or self.sentence_end

    def after_step(
        self, spans: Sequence[Span], grown: Sequence[Span], choice: Choice, *, chooser: TokenChooser
    ) -> None:
        """End spans of a batch, of which some have `grown` in this step, and stream what is new."""
        if self.reads_text:
            for span in grown:
                self._end_in_text(span)
        if self.criteria:
            ended = self.criteria(chooser.left_contexts(spans).to(choice.tokens.device), choice.scores)
            ended = torch.as_tensor(ended).expand(len(spans)).tolist()
            growing = {span.number for span in grown if not span.has_ended}
            for span, ends in zip(spans, ended, strict=True):
                if ends and span.number in growing:
                    span.has_ended = True
                    whole = self.byte_tokens.count_whole(span.token_ids)
                    del span.token_ids[whole:], span.logprobs[whole:]
        if self.stream is not None:
            self.stream.update()

    def _end_in_text(self, span: Span) -> None:
        """End a span at the first place in its text where a rule does; drop the tokens after it."""
        text = decode_fill(self.tokenizer, span.before, span.token_ids)
        own = len(span.healed.start)  # text of the context ends nothing
        ends = [text.index(stop, own) + len(stop) for stop in self.stop_strings if stop in text[own:]]
        if self.sentence_end and (match := SENTENCE_END.search(text, own)):
            ends.append(match.end())
        if not ends:
            return
        span.has_ended, span.text_length = True, min(ends)
        kept = len(span.token_ids)
        while kept > 1:
            shorter = decode_fill(self.tokenizer, span.before, span.token_ids[: kept - 1])
            if shorter[: min(ends)] != text[: min(ends)]:
                break
            kept -= 1
        del span.token_ids[kept:], span.logprobs[kept:]


__all__ = ["SpanStream", "StopRules", "takes_text"]
