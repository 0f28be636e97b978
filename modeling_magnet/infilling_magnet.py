"""Fill blanks: `infill`, `infill_blanks`, `fill` and `rewrite`, and the methods that give them to a model.

A call goes through `fill_parts`: it reads the options, chooses lengths if none is given (`fill_best_lengths`), decodes
all spans in rounds of chunks (`fill_texts`), and turns spans into answers.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import count
from numbers import Integral
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase
from transformers.utils.logging import tqdm

from .decoding_magnet import decode
from .encoding_magnet import PROGRESS_FROM_BATCHES, hides_bar
from .options_magnet import InfillOptions
from .sampling_magnet import CharacterRule, TokenChooser, byte_tokens
from .scoring_magnet import score_infill
from .spans_magnet import (
    Fill,
    Healed,
    Healing,
    Span,
    SpanLayout,
    SpanRow,
    fill_ids,
    fill_text,
    lay_out,
    round_up,
    space_to_heal,
    split_at_marks,
    split_at_ranges,
    token_texts,
    trim_overlap,
)
from .stopping_magnet import SpanStream, StopRules
from .tokenization_magnet import check_texts, pad_token_rows, special_ids

Ranges = Sequence[tuple[int, int]]
# Tokens after a span that count for the score of its length.
JOIN_TOKENS = 8


@dataclass
class InfillOutput:
    """What filling returns with `return_dict_in_generate=True`.

    Args:
        fills (`list[list[list[Fill]]]`): Per text and blank the answers, the most probable first, no text twice.
        embeddings (`torch.FloatTensor` of shape `(num_texts, hidden_size)`, *optional*): Embedding of each text *with
            its blanks*, by the model's own pooling, from the same forward that reads the context: an EOS follows the
            text that no context token sees. `encode` shows that EOS to the context, so its vectors differ a little.
            `None` if the tokenizer has no EOS.
        length_scores (`list[list[dict[int, float]]]`, *optional*): Per text and blank the score of each candidate
            length, if several were tried.
    """

    fills: list[list[list[Fill]]]
    embeddings: torch.Tensor | None
    length_scores: list[list[dict[int, float]]] | None = None


@dataclass
class FilledText:
    """A text whose blanks were filled."""

    layout: SpanLayout  # before anything was filled
    spans: list[list[Span]]  # for each blank its answers
    embedding: torch.Tensor | None = None  # (hidden_size,): of the text with its blanks


class InfillingMixin:
    """Methods that fill blanks and score fills."""

    def infill(self, prefix: str | Sequence[str], suffix: str | Sequence[str], **options: Any) -> Any:
        """Write the text between a prefix and a suffix.

        Args:
            prefix (`str` or `list[str]`): Text before the blank; may be empty.
            suffix (`str` or `list[str]`): Text after it, joined without an added space; may be empty.
            options: Those of `InfillOptions`: `max_new_tokens` or `num_tokens`, and `do_sample`, `temperature`,
                `num_return_sequences` and others as `generate` takes them. Without a length `num_tokens="auto"` finds
                one, which costs many times as much as a given one.

        Returns:
            The fill, so that `prefix + fill + suffix` is the text: `str` for strings, a list for lists. With
            `num_return_sequences`, a list of different answers in place of each fill, the most probable first; fewer
            if answers are equal.

        Raises:
            ValueError: no text around the blank, lists of different lengths, a text beyond the context, or an option
                that does not exist or fit.

        Source: Khosla et al. 2025, section 3.3.
        """
        return infill(self, prefix, suffix, **options)

    def infill_blanks(
        self,
        text: str | Sequence[str],
        *,
        blank: str = "[blank]",
        ranges: Ranges | Sequence[Ranges] | None = None,
        **options: Any,
    ) -> Any:
        r"""Fill every blank of a text, all of them in one decoding loop.

        Args:
            text (`str` or `list[str]`): Texts with blanks.
            blank (`str`, defaults to `"[blank]"`): The mark of a blank; after a backslash, `"\[blank]"`, it is text.
            ranges (`list[tuple[int, int]]`, or one such list per text, *optional*): Ranges of characters to replace,
                instead of marks.
            options: As in `infill`.

        Returns:
            For each blank what `infill` returns, in order: a list for a string, a list of lists for a list.

        Raises:
            ValueError: a text without a blank, adjacent blanks, ranges that do not fit, or as in `infill`.
        """
        output = _fill(self, _split_texts(text, blank=blank, ranges=ranges), options)
        return output[0] if isinstance(text, str) and isinstance(output, list) else output

    def fill(
        self,
        text: str | Sequence[str],
        *,
        blank: str = "[blank]",
        ranges: Ranges | Sequence[Ranges] | None = None,
        **options: Any,
    ) -> Any:
        """Return a text with its blanks filled.

        Args:
            text (`str` or `list[str]`): Texts with blanks.
            blank, ranges: As in `infill_blanks`.
            options: As in `infill`.

        Returns:
            The filled text: `str` for a string, a list for a list. With `num_return_sequences` above one, a list of
            different texts in place of each: the first with the most probable answer to each blank, the next with the
            second ones; a blank without a further answer keeps its best.

        Raises:
            ValueError: `return_dict_in_generate`, or as in `infill_blanks`.
        """
        return fill(self, text, blank=blank, ranges=ranges, **options)

    def rewrite(self, text: str, start: int, end: int, **options: Any) -> Any:
        """Replace a selection by a new text, of as many tokens unless a length is given.

        The model does not see the old text; its most likely fill may be the same words.

        Args:
            text (`str`): The text.
            start (`int`): First character of the selection.
            end (`int`): The character after it.
            options: As in `infill`.

        Returns:
            The fill or fills, as `infill` returns them: `text[:start] + fill + text[end:]` is the new text.

        Raises:
            ValueError: a selection that does not fit the text, an empty one without a length, or as in `infill`.
        """
        return rewrite(self, text, start, end, **options)

    def score_infill(
        self,
        prefix: str | Sequence[str],
        fills: Sequence[str] | Sequence[Sequence[str]],
        suffix: str | Sequence[str],
        *,
        heal: Healing | None = "space",
        split_special_tokens: bool = True,
        batch_tokens: int | None = None,
        show_progress_bar: bool | None = None,
    ) -> list[Fill] | list[list[Fill]]:
        """Return the log-probabilities of given fills between a prefix and a suffix.

        They are exactly those of decoding. A fill is scored in a span of its own length. A model that was trained to
        end spans is asked in the next multiple of its spans, as in decoding; the chance that the span ends there does
        not count.

        Args:
            prefix (`str` or `list[str]`): Text before the blank; may be empty.
            fills (`list[str]`, or a list of such lists): The candidates; none may be empty.
            suffix (`str` or `list[str]`): Text after the blank.
            heal (`str`, *optional*, defaults to `"space"`): As in `infill`.
            split_special_tokens (`bool`, defaults to `True`): As in `infill`.
            batch_tokens (`int`, *optional*): Tokens of a forward, padding included; defaults to what suits the device.
            show_progress_bar (`bool`, *optional*): Defaults to showing one over many batches.

        Returns:
            `list[Fill]`, or a list of them for lists, in the order given: `logprob` compares fills of equal length,
            `mean_logprob` fills of different lengths.

        Raises:
            ValueError: lists of different lengths, no fill or an empty one, no text around the blank, or a text beyond
                the context.

        Source: Khosla et al. 2025, section 3.3; the shared row follows from the mask (Figure 2).
        """
        return score_infill(
            self,
            prefix,
            fills,
            suffix,
            heal=heal,
            split_special_tokens=split_special_tokens,
            batch_tokens=batch_tokens,
            show_progress_bar=show_progress_bar,
        )


# --- The public calls as functions of the model.


def infill(model: Any, prefix: str | Sequence[str], suffix: str | Sequence[str], **options: Any) -> Any:
    """Write the text between a prefix and a suffix; see `InfillingMixin.infill`."""
    single = isinstance(prefix, str) and isinstance(suffix, str)
    if not single and (isinstance(prefix, str) or isinstance(suffix, str)):
        raise ValueError(
            f"`prefix` is {type(prefix).__name__} and `suffix` {type(suffix).__name__}. "
            "Pass two strings, or two lists of the same length."
        )
    prefixes = check_texts([prefix] if single else prefix, name="prefix")
    suffixes = check_texts([suffix] if single else suffix, name="suffix")
    if len(prefixes) != len(suffixes):
        raise ValueError(f"{len(prefixes)} prefixes and {len(suffixes)} suffixes were given; expected as many.")
    output = _fill(model, [list(pair) for pair in zip(prefixes, suffixes, strict=True)], options)
    if isinstance(output, InfillOutput):
        return output
    fills = [blanks[0] for blanks in output]
    return fills[0] if single else fills


def fill(
    model: Any,
    text: str | Sequence[str],
    *,
    blank: str = "[blank]",
    ranges: Ranges | Sequence[Ranges] | None = None,
    **options: Any,
) -> Any:
    """Return a text with its blanks filled; see `InfillingMixin.fill`."""
    if options.get("return_dict_in_generate"):
        raise ValueError("`fill` returns text. Call `infill_blanks` for an `InfillOutput`.")
    texts = _split_texts(text, blank=blank, ranges=ranges)
    checked = _read_options(model, {**options, "return_dict_in_generate": True})
    filled: list[Any] = []
    for parts, blanks in zip(texts, fill_parts(model, texts, checked).fills, strict=True):
        number = max(map(len, blanks))
        chosen = [[answers[rank if rank < len(answers) else 0].text for answers in blanks] for rank in range(number)]
        filled.append([parts[0] + "".join(map("".join, zip(own, parts[1:], strict=True))) for own in chosen])
    if checked.num_answers == 1:
        filled = [best for best, *_ in filled]
    return filled[0] if isinstance(text, str) else filled


def rewrite(model: Any, text: str, start: int, end: int, **options: Any) -> Any:
    """Replace a selection by a new text; see `InfillingMixin.rewrite`."""
    (checked,) = check_texts([text], name="text")
    parts = split_at_ranges(checked, [(start, end)], name="`text`")
    if options.get("max_new_tokens") is None and options.get("num_tokens") is None:
        if start == end:
            raise ValueError(f"Nothing is selected at {start}. Say how much to write: `max_new_tokens=`.")
        tokenizer, read = model.tokenizer, {"split_special_tokens": options.get("split_special_tokens", True)}
        heals = options.get("heal", "space") is not None
        space = space_to_heal(tokenizer, parts[0], is_first=True, **read) if heals else ""
        selected = fill_ids(tokenizer, space + checked[start:end], prefix=parts[0], **read)
        options = {**options, "max_new_tokens": max(len(selected), 1)}
    output = _fill(model, [parts], options)
    return output if isinstance(output, InfillOutput) else output[0][0]


def _fill(model: Any, texts: Sequence[Sequence[str]], given: dict[str, Any]) -> InfillOutput | list[list[Any]]:
    """Fill the blanks between the parts of texts; per text and blank a string or several, or an `InfillOutput`."""
    options = _read_options(model, given)
    output = fill_parts(model, texts, options)
    if options.return_dict_in_generate:
        return output
    if options.num_answers == 1:
        return [[best.text for best, *_ in blanks] for blanks in output.fills]
    return [[[one.text for one in answers] for answers in blanks] for blanks in output.fills]


def _read_options(model: Any, given: dict[str, Any]) -> InfillOptions:
    """Check the options of a call."""
    return InfillOptions.of_call(
        given, default_config=model.generation_config, end_of_span=model.magnet_settings.end_of_span
    )


def _split_texts(
    text: str | Sequence[str], *, blank: str, ranges: Ranges | Sequence[Ranges] | None
) -> list[list[str]]:
    """Return the parts of each text around its marks or ranges."""
    single = isinstance(text, str)
    texts = check_texts([text] if single else text, name="text")
    names = ["`text`"] if single else [f"`text[{index}]`" for index in range(len(texts))]
    if ranges is None:
        return [split_at_marks(one, blank, name=name) for one, name in zip(texts, names, strict=True)]
    given: Any = [ranges] if single else ranges
    if not isinstance(given, Sequence):
        raise ValueError(f"`ranges` is {type(ranges).__name__}; expected a list of ranges for each text.")
    if len(given) != len(texts):
        raise ValueError(f"{len(texts)} texts and {len(given)} lists of ranges were given; expected as many.")
    return [split_at_ranges(one, own, name=name) for one, own, name in zip(texts, given, names, strict=True)]


# --- Parts of texts to answers.


def fill_parts(model: Any, texts: Sequence[Sequence[str]], options: InfillOptions) -> InfillOutput:
    """Fill the blanks between the parts of texts, by checked options."""
    length_scores = None
    with model._evaluating():
        if options.num_tokens is None:
            lengths = [
                _span_lengths(options.max_new_tokens, index, parts, num_texts=len(texts))
                for index, parts in enumerate(texts)
            ]
            filled = fill_texts(model, texts, span_lengths=lengths, options=options)
        else:
            filled, length_scores = fill_best_lengths(model, texts, options=options)
    tokenizer = model.tokenizer
    fills = [
        [
            _answers(tokenizer, spans, before=before, after=after, options=options)
            for spans, before, after in zip(one.spans, parts[:-1], parts[1:], strict=True)
        ]
        for one, parts in zip(filled, texts, strict=True)
    ]
    found = [one.embedding for one in filled if one.embedding is not None]
    return InfillOutput(fills, torch.stack(found) if found else None, length_scores)


def _span_lengths(asked: Any, index: int, parts: Sequence[str], *, num_texts: int) -> list[Any]:
    """Return the requested length of each span of a text."""
    num_spans = len(parts) - 1
    if isinstance(asked, Integral) or not isinstance(asked, Sequence) or isinstance(asked, str):
        return [asked] * num_spans
    if len(asked) == num_texts and all(isinstance(own, Sequence) for own in asked):
        asked = asked[index]  # a list for each text
    if len(asked) != num_spans:
        raise ValueError(f"`max_new_tokens` has {len(asked)} numbers; text {index} has {num_spans} blanks.")
    return list(asked)


def _answers(
    tokenizer: PreTrainedTokenizerBase, spans: Sequence[Span], *, before: str, after: str, options: InfillOptions
) -> list[Fill]:
    """Return the different answers to one blank, the most probable first."""
    possible = [span for span in spans if span.is_possible]
    if not possible:
        healed = spans[0].healed
        if healed == Healed():
            raise ValueError("Every token of a fill was barred: the processors or penalties leave none. Relax them.")
        raise ValueError(
            f"No {spans[0].length} tokens begin with {healed.start!r} and end with {healed.end!r}, which token "
            "healing requires. Allow more tokens, or pass another `heal`."
        )
    fills: dict[str, Fill] = {}
    for span in possible:
        text, start = fill_text(tokenizer, span), 0
        if options.trim_overlap:
            start = len(text) - len(trim_overlap(text, before=before, after=""))
            text = trim_overlap(text, before=before, after=after)
        one = Fill(text, span.token_ids, span.logprobs)
        if options.return_dict_in_generate:
            one.tokens = token_texts(tokenizer, span, text, start=start)
        if text not in fills or one.logprob > fills[text].logprob:
            fills[text] = one
    return sorted(fills.values(), key=lambda one: -one.logprob)


# --- Spans of known lengths, in rounds of chunks.


@torch.no_grad()
def fill_texts(
    model: Any, texts: Sequence[Sequence[str]], *, span_lengths: Sequence[Sequence[int]], options: InfillOptions
) -> list[FilledText]:
    """Fill the blanks between the parts of texts with spans of given lengths.

    In the first round all answers of a text are decoded side by side in one row. In later rounds each answer has a row
    of its own, in which what was filled before is context.
    """
    if options.num_answers > model.config.vocab_size:
        raise ValueError(
            f"`num_return_sequences` is {options.num_answers}; a vocabulary of {model.config.vocab_size} tokens "
            "begins at most as many different answers."
        )
    model._probe_attention()
    tokenizer = model.tokenizer
    filled = _lay_out_texts(model, tokenizer, texts, span_lengths, options)
    spans = [span for text in filled for answers in text.spans for span in answers]
    chooser = _chooser(model, tokenizer, spans, options)
    rules = _stop_rules(model, tokenizer, filled, options, parts=texts)
    embeds = bool(options.return_dict_in_generate) and tokenizer.eos_token_id is not None
    rows = [(text, SpanRow(text.layout, [s for answers in text.spans for s in answers])) for text in filled]
    is_first, settled = True, 0  # counted here: a bar that `disable_progress_bar` took away keeps no count
    hide = hides_bar(options.show_progress_bar, -(-len(rows) // options.batch_size), least=PROGRESS_FROM_BATCHES)
    with tqdm(total=sum(span.length for span in spans), desc="Filling", unit="token", disable=hide) as bar:
        while rows:
            by_length = sorted(range(len(rows)), key=lambda index: -rows[index][1].layout.length)
            for start in range(0, len(rows), options.batch_size):
                batch = [rows[index] for index in sorted(by_length[start : start + options.batch_size])]
                with model._adapters_for("infill"):
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
                before, settled = settled, sum(map(_settled, spans))
                bar.update(settled - before)
            rows, is_first = [(text, row) for text in filled for row in _next_rows(text)], False
    return filled


def _lay_out_texts(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[Sequence[str]],
    span_lengths: Sequence[Sequence[int]],
    options: InfillOptions,
) -> list[FilledText]:
    """Lay out all texts, with empty spans numbered in the order of texts, blanks and answers."""
    multiple = _multiple(model, options)
    layouts = [
        lay_out(
            tokenizer,
            parts,
            span_lengths=[round_up(length, multiple) for length in lengths],
            context_length=model.config.max_position_embeddings,
            heal=options.heal,
            split_special_tokens=options.split_special_tokens,
        )
        for parts, lengths in zip(texts, span_lengths, strict=True)
    ]
    for layout in layouts:
        if layout.length > options.max_length:
            raise ValueError(
                f"Text and fills need {layout.length} positions; `max_length` of the generation config is "
                f"{options.max_length}. Shorten the text or the fills, or pass a config with another `max_length`."
            )
    special, numbers = special_ids(tokenizer), count()
    filled = []
    for layout, lengths in zip(layouts, span_lengths, strict=True):
        spans = []
        for blank, length in enumerate(lengths):
            before = [token for token in layout.token_ids[: layout.predictors[blank] + 1] if token not in special]
            shared: dict[str, Any] = {"blank": blank, "before": before, "healed": layout.healed[blank]}
            ranks = range(options.num_answers)
            spans.append([Span(length=int(length), number=next(numbers), rank=rank, **shared) for rank in ranks])
        filled.append(FilledText(layout, spans))
    return filled


def _multiple(model: Any, options: InfillOptions) -> int:
    """Return the number that reserved positions are a multiple of."""
    multiple: int = model.magnet_settings.end_of_span if options.stop_at_end_of_span else 1
    return multiple


def _chooser(
    model: Any, tokenizer: PreTrainedTokenizerBase, spans: Sequence[Span], options: InfillOptions
) -> TokenChooser:
    """Make what chooses the tokens of all spans of a call."""
    barred = _ids_outside_text(model, tokenizer, options)
    in_bytes = byte_tokens(tokenizer, model.config.vocab_size)
    return TokenChooser(
        options.generation_config,
        spans=spans,
        barred_ids=barred,
        pad_token_id=model._pad_token_id(),
        end_of_span_id=tokenizer.eos_token_id if options.stop_at_end_of_span else None,
        processors=options.logits_processor,
        tokenizer=tokenizer,
        characters=CharacterRule(in_bytes, spans=spans, barred_ids=barred) if in_bytes.token_ids else None,
    )


def _stop_rules(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[FilledText],
    options: InfillOptions,
    *,
    parts: Sequence[Sequence[str]],
) -> StopRules | None:
    """Make what ends spans early and streams their tokens, if anything does."""
    stop_strings, criteria = options.stop_strings, options.all_criteria()
    if not (stop_strings or options.stop_at_sentence_end or criteria or options.streamer is not None):
        return None
    in_bytes = byte_tokens(tokenizer, model.config.vocab_size)
    rules = StopRules(tokenizer, in_bytes, stop_strings, options.stop_at_sentence_end, criteria)
    if options.streamer is not None:
        if len(texts) != 1:
            raise ValueError(f"`streamer` takes one text; {len(texts)} were given. Call once for each.")
        rules.stream = SpanStream(
            options.streamer,
            texts[0].layout,
            parts=parts[0],
            spans=[answers[0] for answers in texts[0].spans],
            tokenizer=tokenizer,
            byte_tokens=in_bytes,
            hold_back=rules.reads_text,
            trim=options.trim_overlap,
        )
    return rules


def _ids_outside_text(model: Any, tokenizer: PreTrainedTokenizerBase, options: InfillOptions) -> list[int]:
    """Return the ids that no fill has: EOS, other special tokens, suppressed tokens, and ids without a token."""
    ids = {*special_ids(tokenizer), *(options.generation_config.suppress_tokens or ())}
    for config in (options.generation_config, model.generation_config, model.config):
        eos = getattr(config, "eos_token_id", None)
        ids.update(eos if isinstance(eos, list | tuple) else [] if eos is None else [eos])
    size = model.config.vocab_size
    beyond = range(min(len(tokenizer), size), size)
    tokens = tokenizer.convert_ids_to_tokens(list(beyond))
    ids.update(token_id for token_id, token in zip(beyond, tokens, strict=True) if token is None)
    return sorted(token_id for token_id in ids if 0 <= token_id < size)


def _next_rows(text: FilledText) -> list[SpanRow]:
    """Return a row for each answer whose spans are not all full; what was filled is its context."""
    rows = []
    for spans in zip(*text.spans, strict=True):  # one span of each blank
        growing = [span for span in spans if not span.is_full and span.is_possible]
        if growing:
            # An impossible answer must not be context: the first possible answer to its blank takes its place.
            seen = [
                span if span.is_possible else next((one for one in text.spans[span.blank] if one.is_possible), span)
                for span in spans
            ]
            rows.append(SpanRow(replace(text.layout, filled=[span.token_ids for span in seen]), growing))
    return rows


def _settled(span: Span) -> int:
    """Return how many tokens of a span are decided: all of them once nothing more comes."""
    return len(span.token_ids) if span.is_possible and not span.is_full else span.length


# --- Spans of unknown lengths. The score of a length is the mean log-probability of the fill's tokens, plus that of
# the first tokens after it when the filled text is read from left to right: a fill has to be likely in its place, and
# what follows has to be likely after it. Means, because sums would always prefer the shortest.


def fill_best_lengths(
    model: Any, texts: Sequence[Sequence[str]], *, options: InfillOptions
) -> tuple[list[FilledText], list[list[dict[int, float]]]]:
    """Try every candidate length greedily for all blanks of a text at once, then fill each blank at its best.

    Returns the filled texts, and per text and blank the score of each candidate length.
    """
    candidates = options.candidate_lengths(end_of_span=model.magnet_settings.end_of_span)
    fitting = [_fitting(model, parts, candidates, options) for parts in texts]
    tried = [(parts, length) for parts, lengths in zip(texts, fitting, strict=True) for length in lengths]
    trials = fill_texts(
        model,
        [parts for parts, _ in tried],
        span_lengths=[[length] * (len(parts) - 1) for parts, length in tried],
        options=options.greedy(),
    )
    scores = _length_scores(model, trials, batch_size=options.batch_size)
    tables: list[list[dict[int, float]]] = []
    best: list[FilledText] = []
    first = 0
    for parts, lengths in zip(texts, fitting, strict=True):
        own = range(first, first + len(lengths))
        tables.append(
            [{n: scores[i][blank] for i, n in zip(own, lengths, strict=True)} for blank in range(len(parts) - 1)]
        )
        best.append(trials[max(own, key=lambda index: scores[index][0])])
        first += len(lengths)
    is_final = options.num_answers == 1 and not options.generation_config.do_sample
    if is_final and all(len(table) == 1 for table in tables):
        return best, tables
    chosen = [[max(table, key=table.__getitem__) for table in blanks] for blanks in tables]
    return fill_texts(model, texts, span_lengths=chosen, options=options), tables


def _fitting(model: Any, parts: Sequence[str], candidates: Sequence[int], options: InfillOptions) -> list[int]:
    """Return the candidates that fit the context; if none does, the shortest, for `lay_out` to refuse."""
    num_spans = len(parts) - 1
    layout = lay_out(
        model.tokenizer,
        parts,
        span_lengths=[1] * num_spans,
        context_length=sys.maxsize,
        heal=options.heal,
        split_special_tokens=options.split_special_tokens,
    )
    capacity = min(model.config.max_position_embeddings, options.max_length) - len(layout.token_ids)
    multiple = _multiple(model, options)
    return [one for one in candidates if num_spans * round_up(one, multiple) <= capacity] or [min(candidates)]


@torch.no_grad()
def _length_scores(model: Any, texts: Sequence[FilledText], *, batch_size: int) -> list[list[float]]:
    """Return the score of each blank of texts with one answer to each."""
    scores: list[list[float]] = [[] for _ in texts]
    by_length = sorted(range(len(texts)), key=lambda index: -texts[index].layout.length)
    for start in range(0, len(texts), batch_size):
        batch = by_length[start : start + batch_size]
        joins = _join_logprobs(model, [texts[index] for index in batch])
        for index, of_text in zip(batch, joins, strict=True):
            for (span,), join in zip(texts[index].spans, of_text, strict=True):
                has_text = span.is_possible and len(span.logprobs) > 0
                mean = sum(span.logprobs) / len(span.logprobs) if has_text else -torch.inf
                scores[index].append(mean + join)
    return scores


def _join_logprobs(model: Any, texts: Sequence[FilledText]) -> list[list[float]]:
    """Return the causal mean log-probability of the first tokens after each span; 0 at the end of a text."""
    rows: list[list[int]] = []
    joins: list[list[range]] = []
    for text in texts:
        ids = list(text.layout.parts[0])
        after = []
        for (span,), part in zip(text.spans, text.layout.parts[1:], strict=True):
            ids += span.token_ids
            after.append(range(len(ids), len(ids) + min(JOIN_TOKENS, len(part))))
            ids += part
        rows.append(ids)
        joins.append(after)
    batch = model._to_device(pad_token_rows(rows, pad_token_id=model._pad_token_id()))
    targets = [
        (0, row, place - 1, rows[row][place])
        for row, after in enumerate(joins)
        for places in after
        for place in places
    ]
    remaining = iter(model._target_logprobs(batch, targets, mode="causal"))
    return [[sum(next(remaining) for _ in places) / max(len(places), 1) for places in after] for after in joins]


__all__ = ["JOIN_TOKENS", "InfillOutput", "InfillingMixin"]
