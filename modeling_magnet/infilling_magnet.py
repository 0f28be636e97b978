"""Fill blanks: `infill`, `infill_blanks`, `fill` and `rewrite`, which are also methods of a model.

Each call goes through `infill_parts`, which chooses lengths if the call sets none (`fill_best_lengths`), decodes all
spans in rounds of chunks (`fill_spans`), and converts the spans to answers.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase
from transformers.utils.logging import tqdm

from .adapters_magnet import adapters_for
from .batching_magnet import PROGRESS_FROM_BATCHES, evaluating, is_progress_hidden, pad_token_id, probe_attention
from .configuration_magnet import MagnetSettings
from .decoding_magnet import SpanStream, StopRules, decode
from .infill_options_magnet import InfillOptions
from .sampling_magnet import CharacterRule, TokenChooser
from .scoring_magnet import length_scores
from .spans_magnet import (
    Fill,
    FilledText,
    Healed,
    Span,
    SpanLayout,
    SpanRow,
    fill_ids,
    fill_text,
    lay_out,
    round_up,
    split_at_marks,
    split_at_ranges,
    token_texts,
    trim_overlap,
)
from .spelling_magnet import byte_tokens
from .tokenization_magnet import check_pairs, check_texts, check_whole_number, special_ids

CharacterRanges = Sequence[tuple[int, int]]


# --- The public calls.


@dataclass
class InfillOutput:
    """Output of the infilling methods with `return_dict_in_generate=True`.

    Args:
        fills (`list[list[list[Fill]]]`): For each text and blank, the distinct answers, the most probable first.
        embeddings (`torch.FloatTensor` of shape `(num_texts, hidden_size)`, *optional*): Embedding of each text *with
            its blanks*, pooled as the model is set up, from the forward pass that reads the context. An EOS follows
            the text, but context tokens do not see it; in `encode` they do, so its vectors differ slightly. `None` if
            the tokenizer has no EOS.
        length_scores (`list[list[dict[int, float]]]`, *optional*): For each text and blank, the score of each
            candidate length, if several were tried.
    """

    fills: list[list[list[Fill]]]
    embeddings: torch.Tensor | None
    length_scores: list[list[dict[int, float]]] | None = None


def infill(model: Any, prefix: str | Sequence[str], suffix: str | Sequence[str], **options: Any) -> Any:
    """Generate the text between a prefix and a suffix.

    Args:
        prefix (`str` or `list[str]`): Text before the blank; may be empty.
        suffix (`str` or `list[str]`): Text after the blank, joined without an added space; may be empty.
        options: Options of `InfillOptions`: `max_new_tokens` or `num_tokens`, and others such as `do_sample`,
            `temperature` and `num_return_sequences`, as in `generate`. Without a length, `num_tokens="auto"` finds
            one, which costs many times as much as a fixed length.

    Returns:
        The fill, so that `prefix + fill + suffix` is the whole text: `str` for strings, a list for lists. With
        `num_return_sequences`, each fill is replaced by a list of distinct answers, the most probable first; the list
        is shorter if answers are equal.

    Raises:
        ValueError: If there is no text around the blank, the lists differ in length, a text exceeds the context, or an
            option is invalid.

    Source: Khosla et al. 2025, section 3.3.
    """
    single, prefixes, suffixes = check_pairs(prefix, suffix)
    output = _fill_and_format(model, [list(pair) for pair in zip(prefixes, suffixes, strict=True)], options)
    if isinstance(output, InfillOutput):
        return output
    fills = [blanks[0] for blanks in output]
    return fills[0] if single else fills


def infill_blanks(
    model: Any,
    text: str | Sequence[str],
    *,
    blank: str = "[blank]",
    ranges: CharacterRanges | Sequence[CharacterRanges] | None = None,
    **options: Any,
) -> Any:
    r"""Fill every blank of a text in one decoding loop.

    Args:
        text (`str` or `list[str]`): Texts with blanks.
        blank (`str`, defaults to `"[blank]"`): The mark of a blank. `"\[blank]"` is text.
        ranges (`list[tuple[int, int]]`, or one such list per text, *optional*): Character ranges to replace, instead
            of marks.
        options: As in `infill`.

    Returns:
        For each blank, in order, the same as `infill`: a list for a string, a list of lists for a list.

    Raises:
        ValueError: If a text has no blank or adjacent blanks, if ranges are invalid, or as in `infill`.
    """
    output = _fill_and_format(model, _split_texts(text, blank=blank, ranges=ranges), options)
    return output[0] if isinstance(text, str) and isinstance(output, list) else output


def fill(
    model: Any,
    text: str | Sequence[str],
    *,
    blank: str = "[blank]",
    ranges: CharacterRanges | Sequence[CharacterRanges] | None = None,
    **options: Any,
) -> Any:
    """Return a text with its blanks filled.

    Args:
        text (`str` or `list[str]`): Texts with blanks.
        blank, ranges: As in `infill_blanks`.
        options: As in `infill`.

    Returns:
        The filled text: `str` for a string, a list for a list. With `num_return_sequences` above one, a list of
        distinct texts for each: the first has the most probable answer to each blank, the second the second most
        probable, and so on; a blank with fewer answers repeats its best.

    Raises:
        ValueError: If `return_dict_in_generate` is set, or as in `infill_blanks`.
    """
    if options.get("return_dict_in_generate"):
        raise ValueError("`return_dict_in_generate` is set, but `fill` returns text. Call `infill_blanks`.")
    texts = _split_texts(text, blank=blank, ranges=ranges)
    checked = InfillOptions.from_arguments(model, options)
    filled: list[Any] = []
    for parts, blanks in zip(texts, infill_parts(model, texts, checked).fills, strict=True):
        variants = []
        for rank in range(max(map(len, blanks))):
            chosen = [answers[rank if rank < len(answers) else 0].text for answers in blanks]
            variants.append(parts[0] + "".join(map("".join, zip(chosen, parts[1:], strict=True))))
        filled.append(variants)
    if checked.generation_config.num_return_sequences == 1:
        filled = [best for best, *_ in filled]
    return filled[0] if isinstance(text, str) else filled


def rewrite(model: Any, text: str, start: int, end: int, **options: Any) -> Any:
    """Replace a selection with newly generated text.

    By default the fill has as many tokens as the selection. The model does not see the selected text; its most likely
    fill may be the same words.

    Args:
        text (`str`): The text.
        start (`int`): Index of the first character of the selection.
        end (`int`): Index of the character after the selection.
        options: As in `infill`.

    Returns:
        The fill or fills, as in `infill`: `text[:start] + fill + text[end:]` is the new text.

    Raises:
        ValueError: If the selection is outside the text or is empty and no length is set, or as in `infill`.
    """
    (text,) = check_texts([text], name="text")
    parts = split_at_ranges(text, [(start, end)], name="`text`")
    if options.get("max_new_tokens") is None and options.get("num_tokens") is None:
        if start == end:
            raise ValueError(f"The selection is empty (start == end == {start}). Pass `max_new_tokens`.")
        reading: dict[str, Any] = {"split_special_tokens": options.get("split_special_tokens", True)}
        heal = options.get("heal", InfillOptions.heal)
        layout = lay_out(model.tokenizer, parts, span_lengths=[1], context_length=sys.maxsize, heal=heal, **reading)
        whole = layout.healed[0].start + text[start:end] + layout.healed[0].end
        selected = fill_ids(model.tokenizer, whole, prefix=parts[0], **reading)
        options = {**options, "max_new_tokens": max(len(selected), 1)}
    output = _fill_and_format(model, [parts], options)
    return output if isinstance(output, InfillOutput) else output[0][0]


def _split_texts(
    text: str | Sequence[str], *, blank: str, ranges: CharacterRanges | Sequence[CharacterRanges] | None
) -> list[list[str]]:
    """Return the parts of each text around its marks or ranges."""
    single = isinstance(text, str)
    texts = check_texts([text] if single else text, name="text")
    names = ["`text`"] if single else [f"`text[{index}]`" for index in range(len(texts))]
    if ranges is None:
        return [split_at_marks(string, blank, name=name) for string, name in zip(texts, names, strict=True)]
    of_texts: Any = [ranges] if single else ranges
    if len(of_texts) != len(texts):
        raise ValueError(f"`ranges` has {len(of_texts)} lists for {len(texts)} texts. Pass one list per text.")
    triples = zip(texts, of_texts, names, strict=True)
    return [split_at_ranges(string, ranges_of_text, name=name) for string, ranges_of_text, name in triples]


# --- From the parts of texts to answers.


@dataclass(frozen=True)
class _InfillCall:
    """State shared by one infilling call."""

    model: Any
    tokenizer: PreTrainedTokenizerBase
    options: InfillOptions
    special_ids: frozenset[int]
    pad_token_id: int
    end_of_span: int  # reserved positions are a multiple of this; 0 if the model does not end fills
    max_positions: int  # limit for a text with its fills

    @classmethod
    def from_options(cls, model: Any, options: InfillOptions) -> "_InfillCall":
        padding, tokenizer = pad_token_id(model), model.tokenizer
        end_of_span = MagnetSettings.from_config(model.config).end_of_span if options.stop_at_end_of_span else 0
        max_positions = model.config.max_position_embeddings
        if options.generation_config.max_length is not None:
            max_positions = min(max_positions, options.generation_config.max_length)
        return cls(model, tokenizer, options, special_ids(tokenizer), padding, end_of_span, max_positions)

    def lay_out(self, parts: Sequence[str], lengths: Sequence[int], *, max_positions: int) -> SpanLayout:
        """Lay out a text with positions reserved for spans of the given lengths."""
        return lay_out(
            self.tokenizer,
            parts,
            span_lengths=[round_up(length, self.end_of_span or 1) for length in lengths],
            context_length=max_positions,
            heal=self.options.heal,
            split_special_tokens=self.options.split_special_tokens,
        )


@torch.no_grad()
def infill_parts(model: Any, texts: Sequence[Sequence[str]], options: InfillOptions) -> InfillOutput:
    """Fill the blanks between the parts of texts with checked options."""
    num_texts, length_scores = len(texts), None
    # Lengths are checked before the model is read or run.
    lengths = [
        _span_lengths(options.max_new_tokens, index, parts, num_texts=num_texts)
        for index, parts in enumerate(texts if options.num_tokens is None else [])
    ]
    with evaluating(model):
        probe_attention(model)
        call = _InfillCall.from_options(model, options)
        if options.num_tokens is None:
            filled = fill_spans(call, texts, span_lengths=lengths)
        else:
            filled, length_scores = fill_best_lengths(call, texts)
    fills = []
    for text, parts in zip(filled, texts, strict=True):
        around = zip(text.spans, parts[:-1], parts[1:], strict=True)
        fills.append([_answers(call, spans, before=before, after=after) for spans, before, after in around])
    embeddings = [text.embedding for text in filled if text.embedding is not None]
    return InfillOutput(fills, torch.stack(embeddings) if embeddings else None, length_scores)


def _fill_and_format(
    model: Any, texts: Sequence[Sequence[str]], arguments: dict[str, Any]
) -> InfillOutput | list[list[Any]]:
    """Fill the blanks between the parts of texts; return an `InfillOutput`, or strings for each text and blank."""
    options = InfillOptions.from_arguments(model, arguments)
    output = infill_parts(model, texts, options)
    if options.return_dict_in_generate:
        return output
    if options.generation_config.num_return_sequences == 1:
        return [[best.text for best, *_ in blanks] for blanks in output.fills]
    return [[[answer.text for answer in answers] for answers in blanks] for blanks in output.fills]


def _span_lengths(lengths: Any, index: int, parts: Sequence[str], *, num_texts: int) -> list[int]:
    """Return the length of each span of text number `index` from `max_new_tokens` of the call."""
    num_spans = len(parts) - 1
    if isinstance(lengths, list | tuple):
        if len(lengths) == num_texts and all(isinstance(of_text, list | tuple) for of_text in lengths):
            lengths = lengths[index]  # one list per text
        if len(lengths) != num_spans:
            raise ValueError(f"`max_new_tokens` has {len(lengths)} numbers; text {index} has {num_spans} blanks.")
    lengths = list(lengths) if isinstance(lengths, list | tuple) else [lengths] * num_spans
    for length in lengths:
        check_whole_number(length, name="max_new_tokens", minimum=1)
    return lengths


def _answers(call: _InfillCall, spans: Sequence[Span], *, before: str, after: str) -> list[Fill]:
    """Return the distinct answers to one blank, the most probable first."""
    tokenizer, options = call.tokenizer, call.options
    possible = [span for span in spans if span.is_possible]
    if not possible:
        healed = spans[0].healed
        if healed == Healed():
            raise ValueError("The logits processors or penalties exclude every token of a fill. Relax them.")
        raise ValueError(
            f"No {spans[0].length} tokens begin with {healed.start!r} and end with {healed.end!r}, as token healing "
            "requires. Allow more tokens, or pass another `heal`."
        )
    fills: dict[str, Fill] = {}
    for span in possible:
        text, start = fill_text(tokenizer, span), 0
        if options.trim_overlap:
            start = len(text) - len(trim_overlap(text, before=before, after=""))
            text = trim_overlap(text, before=before, after=after)
        answer = Fill(text, span.token_ids, span.logprobs)
        if options.return_dict_in_generate:
            answer.tokens = token_texts(tokenizer, span, text, start=start)
        if text not in fills or answer.logprob > fills[text].logprob:
            fills[text] = answer
    return sorted(fills.values(), key=lambda answer: -answer.logprob)


# --- Spans of known lengths, in rounds of chunks.


def fill_spans(
    call: _InfillCall, texts: Sequence[Sequence[str]], *, span_lengths: Sequence[Sequence[int]]
) -> list[FilledText]:
    """Fill the blanks between the parts of texts with spans of given lengths.

    The first round decodes all answers of a text side by side in one row. In later rounds, each answer has its own
    row, because its earlier chunks become context that the other answers must not see.
    """
    model, options = call.model, call.options
    filled = _lay_out_texts(call, texts, span_lengths)
    spans = [span for text in filled for answers in text.spans for span in answers]
    chooser, rules = _chooser(call, spans), _stop_rules(call, filled, texts)
    embeds = bool(options.return_dict_in_generate) and call.tokenizer.eos_token_id is not None
    rows = [(text, SpanRow(text.layout, [s for answers in text.spans for s in answers])) for text in filled]
    is_first, num_settled = True, 0  # not read from the bar, because a disabled bar does not count
    num_batches = -(-len(rows) // options.batch_size)
    is_hidden = is_progress_hidden(options.show_progress_bar, num_batches, minimum=PROGRESS_FROM_BATCHES)
    bar = tqdm(total=sum(span.length for span in spans), desc="Filling", unit="token", disable=is_hidden)
    with bar, adapters_for(model, "infill"):  # around the loop, because the head may also have an adapter
        while rows:
            by_length = sorted(range(len(rows)), key=lambda index: -rows[index][1].layout.length)
            for start in range(0, len(rows), options.batch_size):
                batch = [rows[index] for index in sorted(by_length[start : start + options.batch_size])]
                embeddings = decode(
                    model,
                    [row for _, row in batch],
                    chooser=chooser,
                    rules=rules,
                    max_steps=options.chunk_size,
                    embed=is_first and embeds,
                )
                if embeddings is not None:
                    for (text, _), embedding in zip(batch, embeddings, strict=True):
                        text.embedding = embedding
                previous, num_settled = num_settled, sum(map(_count_settled, spans))
                bar.update(num_settled - previous)
            rows, is_first = [(text, row) for text in filled for row in _next_rows(text)], False
    return filled


def _lay_out_texts(
    call: _InfillCall, texts: Sequence[Sequence[str]], span_lengths: Sequence[Sequence[int]]
) -> list[FilledText]:
    """Lay out all texts, with empty spans numbered by text, blank and answer."""
    config, vocab_size = call.options.generation_config, call.model.config.vocab_size
    num_answers: int = config.num_return_sequences
    if num_answers > vocab_size:
        raise ValueError(f"`num_return_sequences` is {num_answers}, but only {vocab_size} tokens can begin an answer.")
    min_length, numbers, filled = config.min_new_tokens or 0, count(), []
    for parts, lengths in zip(texts, span_lengths, strict=True):
        if min(lengths) < min_length:
            raise ValueError(f"`min_new_tokens` is {min_length}, more than the length of a fill ({min(lengths)}).")
        layout, spans = call.lay_out(parts, lengths, max_positions=call.max_positions), []
        for blank, length in enumerate(lengths):
            before = layout.token_ids[: layout.predictors[blank] + 1]
            before = [token for token in before if token not in call.special_ids]
            shared: dict[str, Any] = {"blank": blank, "before": before, "healed": layout.healed[blank]}
            ranks = range(num_answers)
            spans.append([Span(length=int(length), number=next(numbers), rank=rank, **shared) for rank in ranks])
        filled.append(FilledText(layout, spans))
    return filled


def _chooser(call: _InfillCall, spans: Sequence[Span]) -> TokenChooser:
    """Create the chooser that selects the tokens of all spans of a call."""
    excluded = _ids_outside_text(call)
    known_bytes = byte_tokens(call.tokenizer, call.model.config.vocab_size)
    return TokenChooser(
        call.options.generation_config,
        spans=spans,
        excluded_ids=excluded,
        pad_token_id=call.pad_token_id,
        end_of_span_id=call.tokenizer.eos_token_id if call.options.stop_at_end_of_span else None,
        processors=call.options.logits_processor,
        tokenizer=call.tokenizer,
        characters=CharacterRule(known_bytes, spans=spans, excluded_ids=excluded) if known_bytes.token_ids else None,
    )


def _stop_rules(call: _InfillCall, filled: Sequence[FilledText], texts: Sequence[Sequence[str]]) -> StopRules | None:
    """Create the rules that end spans early and stream their tokens; return `None` if the call has none."""
    options, streamer = call.options, call.options.streamer
    stop_strings, criteria = options.stop_strings, options.all_criteria()
    if not (stop_strings or options.stop_at_sentence_end or criteria or streamer is not None):
        return None
    known_bytes, stream = byte_tokens(call.tokenizer, call.model.config.vocab_size), None
    if streamer is not None:
        if len(texts) != 1:
            raise ValueError(f"`streamer` supports one text, but {len(texts)} were passed. Make one call per text.")
        spans = [answers[0] for answers in filled[0].spans]
        stream = SpanStream(streamer, call.tokenizer, known_bytes, filled[0].layout.parts, texts[0], spans)
    return StopRules(call.tokenizer, known_bytes, stop_strings, options.stop_at_sentence_end, criteria, stream)


def _ids_outside_text(call: _InfillCall) -> list[int]:
    """Return the ids excluded from fills: EOS, other special tokens, suppressed tokens, and ids without a token."""
    ids = {*call.special_ids, *(call.options.generation_config.suppress_tokens or ())}
    for config in (call.options.generation_config, call.model.generation_config, call.model.config):
        eos = getattr(config, "eos_token_id", None)
        ids.update(eos if isinstance(eos, list | tuple) else [] if eos is None else [eos])
    size = call.model.config.vocab_size
    beyond = range(min(len(call.tokenizer), size), size)
    tokens = call.tokenizer.convert_ids_to_tokens(list(beyond))
    ids.update(token_id for token_id, token in zip(beyond, tokens, strict=True) if token is None)
    return sorted(token_id for token_id in ids if 0 <= token_id < size)


def _next_rows(text: FilledText) -> list[SpanRow]:
    """Return a row for each answer that is still incomplete; its decoded tokens become context."""
    rows = []
    for spans in zip(*text.spans, strict=True):  # one span of each blank
        growing = [span for span in spans if not span.is_full and span.is_possible]
        if growing:
            # An impossible answer must not be context: use the first possible answer to the same blank instead.
            context = [
                next((answer for answer in (span, *text.spans[span.blank]) if answer.is_possible), span)
                for span in spans
            ]
            rows.append(SpanRow(replace(text.layout, filled=[span.token_ids for span in context]), growing))
    return rows


def _count_settled(span: Span) -> int:
    """Count the decided tokens of a span: all of its length once no further token will be added."""
    return len(span.token_ids) if span.is_possible and not span.is_full else span.length


# --- Spans of unknown lengths.


def fill_best_lengths(
    call: _InfillCall, texts: Sequence[Sequence[str]]
) -> tuple[list[FilledText], list[list[dict[int, float]]]]:
    """Try each candidate length greedily for all blanks of a text at once, then fill each blank at its best length.

    Returns:
        The filled texts, and for each text and blank the score of each candidate length.
    """
    options = call.options
    candidates = [_fitting_lengths(call, parts) for parts in texts]
    pairs = [(parts, length) for parts, lengths in zip(texts, candidates, strict=True) for length in lengths]
    trials = fill_spans(
        replace(call, options=options.greedy()),
        [parts for parts, _ in pairs],
        span_lengths=[[length] * (len(parts) - 1) for parts, length in pairs],
    )
    scored = iter(zip(trials, length_scores(call.model, trials, batch_size=options.batch_size), strict=True))
    tables: list[list[dict[int, float]]] = []
    best: list[FilledText] = []
    for lengths in candidates:
        of_text = [next(scored) for _ in lengths]  # a trial and its scores for each length
        blanks = zip(*(scores for _, scores in of_text), strict=True)
        tables.append([dict(zip(lengths, scores, strict=True)) for scores in blanks])
        best.append(max(of_text, key=lambda trial: trial[1][0])[0])
    # A trial has one length for all blanks of a text, so it is only final if each text has one blank.
    config = options.generation_config
    is_final = config.num_return_sequences == 1 and not config.do_sample
    if is_final and all(len(table) == 1 for table in tables):
        return best, tables
    chosen = [[max(table, key=table.__getitem__) for table in blanks] for blanks in tables]
    return fill_spans(call, texts, span_lengths=chosen), tables


def _fitting_lengths(call: _InfillCall, parts: Sequence[str]) -> list[int]:
    """Return the candidate lengths that fit the context; if none does, the shortest, which then raises an error."""
    candidates, num_spans = call.options.candidate_lengths(end_of_span=call.end_of_span), len(parts) - 1
    layout = call.lay_out(parts, [1] * num_spans, max_positions=sys.maxsize)
    capacity = call.max_positions - len(layout.token_ids)
    multiple = call.end_of_span or 1
    fitting = [length for length in candidates if num_spans * round_up(length, multiple) <= capacity]
    return fitting or [min(candidates)]
