"""When a fill ends before its gap is full: an end-of-span token, the end of a sentence, a string, or a criterion."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerBase
from transformers.generation.stopping_criteria import StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer, TextStreamer

from .answers_magnet import fill_text
from .characters_magnet import CharacterParts
from .gaps_magnet import GappedText, decode_fill
from .sampling_magnet import Choice, TokenChooser
from .seams_magnet import trim_overlap
from .spans_magnet import Span

# Closing quotes and brackets belong to the sentence; white space behind tells an end from a decimal point. Scripts
# that set no spaces have full stops of their own.
SENTENCE_END = re.compile(r"""[.!?…]+["'”’»)\]]*(?=\s)|[。！？]+[”’」』）]*""")


class GapStream:
    """Hands the gaps of one text to a streamer one after another, though all of them advance together.

    Each gap is streamed as `generate` streams an output: the text since the last gap as its prompt, what is written,
    then its end. So a `TextIteratorStreamer` is iterated once per gap. A `TextStreamer`, or a class derived from it
    that keeps its `put`, is given the text of the fill, character for character; any other streamer is given tokens.

    Args:
        streamer (`BaseStreamer`): As `generate` takes it.
        text (`GappedText`): The text, before anything is filled.
        pieces (`Sequence[str]`): The text around the gaps.
        spans (`Sequence[Span]`): One span for each gap, in order.
        tokenizer (`PreTrainedTokenizerBase`): Writes spans as text.
        parts (`CharacterParts`): Tokens that begin or end inside a character; those wait for the rest of it.
        hold_back (`bool`): Keep a token until the next one is known, which may show that it does not belong.
        trim (`bool`): Whether overlaps are trimmed from a fill. They are known only once it is complete.
    """

    def __init__(
        self,
        streamer: BaseStreamer,
        text: GappedText,
        *,
        pieces: Sequence[str],
        spans: Sequence[Span],
        tokenizer: PreTrainedTokenizerBase,
        parts: CharacterParts,
        hold_back: bool,
        trim: bool,
    ) -> None:
        self.streamer = streamer
        self.text, self.pieces = text, pieces
        self.spans = spans
        self.tokenizer, self.parts = tokenizer, parts
        self.hold_back, self.trim = hold_back, trim
        self.gap = 0
        self.sent: int | None = None  # tokens or characters of the current gap, or none and not even its prompt

    def update(self) -> None:
        """Stream what is new."""
        while self.gap < len(self.spans):
            span = self.spans[self.gap]
            if isinstance(self.streamer, TextStreamer) and takes_text(self.streamer):
                self._send_text(span, self.streamer)
            else:
                self._send_tokens(span)
            if not span.is_full:
                return
            self.streamer.end()
            self.gap, self.sent = self.gap + 1, None

    def _send_tokens(self, span: Span) -> None:
        """Put the prompt of a gap, then its tokens one by one."""
        if self.sent is None:
            self.streamer.put(torch.tensor([self.text.pieces[self.gap]]))
            self.sent = 0
        ready = self.parts.count_whole(span.token_ids) - (1 if self.hold_back and not span.is_full else 0)
        for token in span.token_ids[self.sent : ready]:
            self.streamer.put(torch.tensor([token]))
        self.sent = max(ready, self.sent)

    def _send_text(self, span: Span, streamer: TextStreamer) -> None:
        """Hand over the prompt of a gap, then the characters of its fill that no later token can change."""
        if self.sent is None:
            if not streamer.skip_prompt:
                streamer.on_finalized_text(self.pieces[self.gap])
            self.sent = 0
        if self.trim and not span.is_full:
            return
        text = fill_text(self.tokenizer, span)
        if self.trim:
            text = trim_overlap(text, before=self.pieces[self.gap], after=self.pieces[self.gap + 1])
        if not span.is_full and self.parts.count_whole(span.token_ids) < len(span.token_ids):
            return
        if new := text[self.sent :]:
            streamer.on_finalized_text(new)
            self.sent = len(text)


def takes_text(streamer: BaseStreamer) -> bool:
    """Return whether a streamer only shows text, so that it may be given text instead of tokens."""
    return isinstance(streamer, TextStreamer) and type(streamer).put is TextStreamer.put


@dataclass
class StopRules:
    """The rules of one call.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): Writes spans as text.
        parts (`CharacterParts`): Tokens that begin or end inside a character; no criterion ends a span there.
        end_of_span_id (`int`, *optional*): Token that ends a span and is no part of it.
        stop_strings (`Sequence[str]`): A span ends behind the first of these, as the outputs of `generate` do.
        sentence_end (`bool`): A span ends behind its first sentence: at a full stop, question or exclamation mark and
            its closing quotes, in front of white space. An abbreviation counts as an end.
        criteria (`StoppingCriteriaList`, *optional*): As `generate` takes them. Their rows are the spans of a batch,
            see `TokenChooser.left_contexts`.
        stream (`GapStream`, *optional*): Told after every token.
    """

    tokenizer: PreTrainedTokenizerBase
    parts: CharacterParts
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
            ended = self.criteria(chooser.left_contexts(spans).to(choice.tokens.device), choice.scores)
            ended = torch.as_tensor(ended).expand(len(spans)).tolist()
            for span, grows, ends in zip(spans, growing, ended, strict=True):
                if grows and ends and not span.has_ended:
                    span.has_ended = True
                    whole = self.parts.count_whole(span.token_ids)
                    del span.token_ids[whole:], span.logprobs[whole:]
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
        while kept > 1:
            shorter = decode_fill(self.tokenizer, span.before, span.token_ids[: kept - 1])
            if shorter[: min(ends)] != text[: min(ends)]:
                break
            kept -= 1
        del span.token_ids[kept:], span.logprobs[kept:]


__all__ = ["GapStream", "StopRules", "takes_text"]
