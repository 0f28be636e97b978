"""Fill gaps in text: between a prefix and a suffix, at marks or ranges of a text, or in place of a selection."""

from collections.abc import Sequence
from numbers import Integral
from typing import Any

import torch

from .answers_magnet import InfillOutput, answers
from .blanks_magnet import split_at_marks, split_at_ranges
from .gaps_magnet import fill_ids, space_to_heal
from .lengths_magnet import LengthsMixin
from .options_magnet import InfillOptions
from .scoring_magnet import ScoringMixin
from .tokenization_magnet import check_texts

Ranges = Sequence[tuple[int, int]]


class InfillingMixin(LengthsMixin, ScoringMixin):
    """`infill`, `infill_blanks`, `fill`, `rewrite`, and `score_infill`."""

    def infill(self, prefix: str | Sequence[str], suffix: str | Sequence[str], **options: Any) -> Any:
        """Write what stands between a prefix and a suffix.

        Args:
            prefix (`str` or `list[str]`): Text in front of the gap; may be empty.
            suffix (`str` or `list[str]`): Text behind it, joined without an added space; may be empty.
            options: Those of `InfillOptions`, `max_new_tokens` or `num_tokens` among them, and `do_sample`,
                `temperature`, `num_return_sequences` and others as `generate` takes them. Without a length the best
                of `num_tokens="auto"` is taken, which costs many times as much as one length.

        Returns:
            The fill alone, so that `prefix + fill + suffix` is the text: `str` for strings, a list of them for lists.
            With `num_return_sequences`, a list of different answers in the place of each fill, the most probable
            first; fewer where answers came out equal.

        Raises:
            ValueError: no text around the gap, lists of different lengths, a text beyond the context, or an option
                that does not exist or fit.

        Source: Khosla et al. 2025, section 3.3.
        """
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
        output = self._fill_pieces([list(pair) for pair in zip(prefixes, suffixes, strict=True)], options)
        if isinstance(output, InfillOutput):
            return output
        fills = [gaps[0] for gaps in output]
        return fills[0] if single else fills

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
            text (`str` or `list[str]`): Texts with gaps.
            blank (`str`, defaults to `"[blank]"`): The mark of a gap; behind a backslash, `"\[blank]"`, it is text.
            ranges (`list[tuple[int, int]]`, or one such list per text, *optional*): Gaps as ranges of characters
                instead of marks; what stands there is taken out.
            options: As in `infill`.

        Returns:
            Per gap what `infill` gives, in the order of the gaps: a list for a string, a list of lists for a list.

        Raises:
            ValueError: a text without a blank, neighbouring blanks, ranges that do not fit, or as in `infill`.
        """
        output = self._fill_pieces(_split_texts(text, blank=blank, ranges=ranges), options)
        if isinstance(output, InfillOutput):
            return output
        return output[0] if isinstance(text, str) else output

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
            text (`str` or `list[str]`): Texts with gaps.
            blank, ranges: As in `infill_blanks`.
            options: As in `infill`.

        Returns:
            The filled text: `str` for a string, a list of them for a list. With `num_return_sequences` above one, a
            list of different texts in the place of each: the first with the most probable answer to each gap, the
            next with the next ones; a gap that has no further answer keeps its best.

        Raises:
            ValueError: `return_dict_in_generate`, or as in `infill_blanks`.
        """
        if options.get("return_dict_in_generate"):
            raise ValueError("`fill` returns text. Call `infill_blanks` for an `InfillOutput`.")
        pieces = _split_texts(text, blank=blank, ranges=ranges)
        output = self._fill_pieces(pieces, {**options, "return_dict_in_generate": True})
        assert isinstance(output, InfillOutput)
        filled: list[Any] = []
        for parts, gaps in zip(pieces, output.fills, strict=True):
            number = max(map(len, gaps))
            chosen = [[gap[rank if rank < len(gap) else 0].text for gap in gaps] for rank in range(number)]
            texts = [parts[0] + "".join(map("".join, zip(fills, parts[1:], strict=True))) for fills in chosen]
            filled.append(texts)
        if self._infill_options(options).num_answers == 1:
            filled = [best for best, *_ in filled]
        return filled[0] if isinstance(text, str) else filled

    def rewrite(self, text: str, start: int, end: int, **options: Any) -> Any:
        """Write something else in place of a selection, of as many tokens unless told otherwise.

        The model does not see what stood there; its most likely fill may be the very same words.

        Args:
            text (`str`): The text.
            start (`int`): First character of the selection.
            end (`int`): The character behind it.
            options: As in `infill`.

        Returns:
            The fill or fills, as `infill` gives them: `text[:start] + fill + text[end:]` is the new text.

        Raises:
            ValueError: a selection that does not fit the text, an empty one without a length, or as in `infill`.
        """
        (checked,) = check_texts([text], name="text")
        pieces = split_at_ranges(checked, [(start, end)], name="`text`")
        if options.get("max_new_tokens") is None and options.get("num_tokens") is None:
            if start == end:
                raise ValueError(f"Nothing is selected at {start}. Say how much to write: `max_new_tokens=`.")
            heals = options.get("heal", "space") is not None
            read = {"split_special_tokens": options.get("split_special_tokens", True)}
            space = space_to_heal(self.tokenizer, pieces[0], is_first=True, **read) if heals else ""
            selected = fill_ids(self.tokenizer, space + checked[start:end], prefix=pieces[0], **read)
            options = {**options, "max_new_tokens": max(len(selected), 1)}
        output = self._fill_pieces([pieces], options)
        return output if isinstance(output, InfillOutput) else output[0][0]

    def _infill_options(self, given: dict[str, Any]) -> InfillOptions:
        """The options of a call, checked."""
        return InfillOptions.of_call(
            given, default_config=self.generation_config, end_of_span=self.magnet_settings.end_of_span
        )

    def _fill_pieces(self, pieces: Sequence[Sequence[str]], given: dict[str, Any]) -> InfillOutput | list[list[Any]]:
        """Fill the gaps between pieces; per text and gap a string, or several, or everything there is to say."""
        options = self._infill_options(given)
        length_scores = None
        with self._evaluating():
            if options.num_tokens is None:
                lengths = [
                    _gap_lengths(options.max_new_tokens, index, parts, num_texts=len(pieces))
                    for index, parts in enumerate(pieces)
                ]
                texts = self._fill(pieces, gap_lengths=lengths, options=options)
            else:
                texts, length_scores = self._fill_best_length(pieces, options=options)
        fills = [
            [
                answers(
                    self.tokenizer,
                    spans,
                    before=before,
                    after=after,
                    trim=options.trim_overlap,
                    with_tokens=bool(options.return_dict_in_generate),
                )
                for spans, before, after in zip(text.spans, parts[:-1], parts[1:], strict=True)
            ]
            for text, parts in zip(texts, pieces, strict=True)
        ]
        if options.return_dict_in_generate:
            found = [text.embedding for text in texts if text.embedding is not None]
            embeddings = torch.stack(found) if found else None
            return InfillOutput(fills, embeddings, length_scores)
        if options.num_answers == 1:
            return [[best.text for best, *_ in gaps] for gaps in fills]
        return [[[fill.text for fill in gap] for gap in gaps] for gaps in fills]


def _split_texts(
    text: str | Sequence[str], *, blank: str, ranges: Ranges | Sequence[Ranges] | None
) -> list[list[str]]:
    """The pieces of each text around its marks or ranges."""
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


def _gap_lengths(asked: Any, index: int, pieces: Sequence[str], *, num_texts: int) -> list[Any]:
    """The length asked for of each gap of a text."""
    gaps = len(pieces) - 1
    if isinstance(asked, Integral) or not isinstance(asked, Sequence) or isinstance(asked, str):
        return [asked] * gaps
    if len(asked) == num_texts and all(isinstance(own, Sequence) for own in asked):
        asked = asked[index]  # a list for each text
    if len(asked) != gaps:
        raise ValueError(f"`max_new_tokens` has {len(asked)} numbers; text {index} has {gaps} gaps.")
    return list(asked)


__all__ = ["InfillingMixin"]
