"""Tokens that hold parts of characters: which of them may come next, so that a span consists of whole characters.

Vocabularies over bytes have tokens that end inside a character. A state says which bytes may follow: 0 between
characters, others inside one (UTF-8, RFC 3629). Shapes: N spans, V vocabulary, P tokens with parts of characters.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from .spans_magnet import Span

# State -> for each range of bytes, the state behind it. 1, 2 and 3 wait for as many bytes of any value; 4 to 7 bar
# overlong forms, surrogates and what lies beyond Unicode.
_TRANSITIONS: dict[int, list[tuple[int, int, int]]] = {
    0: [
        (0x00, 0x7F, 0),
        (0xC2, 0xDF, 1),
        (0xE0, 0xE0, 4),
        (0xE1, 0xEC, 2),
        (0xED, 0xED, 5),
        (0xEE, 0xEF, 2),
        (0xF0, 0xF0, 6),
        (0xF1, 0xF3, 3),
        (0xF4, 0xF4, 7),
    ],
    1: [(0x80, 0xBF, 0)],
    2: [(0x80, 0xBF, 1)],
    3: [(0x80, 0xBF, 2)],
    4: [(0xA0, 0xBF, 1)],
    5: [(0x80, 0x9F, 1)],
    6: [(0x90, 0xBF, 2)],
    7: [(0x80, 0x8F, 2)],
}
_INVALID = len(_TRANSITIONS)
_PROBE = "你"


@dataclass(frozen=True)
class CharacterParts:
    """The tokens of a vocabulary that hold parts of characters.

    Args:
        token_ids (`tuple[int, ...]`): P tokens, ascending.
        following (`torch.LongTensor` of shape `(9, P)`): By state and token, the next state; 8 is invalid.
    """

    token_ids: tuple[int, ...]
    following: torch.Tensor

    @cached_property
    def _columns(self) -> dict[int, int]:
        return {token_id: column for column, token_id in enumerate(self.token_ids)}

    def count_whole(self, token_ids: Sequence[int]) -> int:
        """Return how many tokens of a span make whole characters, up to the last end of one."""
        state, whole = 0, 0
        for count, token_id in enumerate(token_ids, start=1):
            column = self._columns.get(token_id)
            state = 0 if column is None else int(self.following[state, column])
            state = 0 if state == _INVALID else state
            if state == 0:
                whole = count
        return whole


@lru_cache(maxsize=4)
def character_parts(tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> CharacterParts:
    """Find the tokens that begin or end inside a character.

    The tokenizer's own decoder says how it spells bytes: as `<0xE4>`, as byte-level BPE does, or not at all.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): The tokenizer of the model.
        vocab_size (`int`): Tokens the model gives scores for.
    """
    parts = {token_id: part for token_id, part in sorted(_byte_tokens(tokenizer).items()) if token_id < vocab_size}
    following = torch.full((_INVALID + 1, len(parts)), _INVALID, dtype=torch.long)
    for column, part in enumerate(parts.values()):
        for state in _TRANSITIONS:
            following[state, column] = _after(state, part)
    return CharacterParts(tuple(parts), following)


def _byte_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[int, bytes]:
    """The tokens that are no whole characters, with their bytes."""
    spelt = [f"<0x{byte:02X}>" for byte in _PROBE.encode()]
    if tokenizer.convert_tokens_to_string(spelt) == _PROBE:
        names = {f"<0x{byte:02X}>": bytes([byte]) for byte in range(0x80, 0x100)}
        known: dict[Any, bytes] = {tokenizer.convert_tokens_to_ids(name): part for name, part in names.items()}
        return {token_id: part for token_id, part in known.items() if token_id not in (None, tokenizer.unk_token_id)}
    letters = _byte_letters()
    if tokenizer.convert_tokens_to_string([letters[byte] for byte in _PROBE.encode()]) != _PROBE:
        return {}
    bytes_of = {letter: byte for byte, letter in enumerate(letters)}
    added = tokenizer.added_tokens_decoder  # spelt as they are, and not in letters for bytes
    parts = {}
    for token_id, token in enumerate(tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))):
        if not token or token.isascii() or token_id in added or any(letter not in bytes_of for letter in token):
            continue
        part = bytes(bytes_of[letter] for letter in token)
        if _after(0, part) != 0:
            parts[token_id] = part
    return parts


def _byte_letters() -> list[str]:
    """The letter that byte-level BPE writes for each byte: printable ones stand for themselves."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte) if byte in printable else chr(next(others)) for byte in range(0x100)]


def _after(state: int, part: bytes) -> int:
    """The state behind some bytes."""
    for byte in part:
        state = next((to for low, high, to in _TRANSITIONS.get(state, []) if low <= byte <= high), _INVALID)
    return state


class CharacterRule:
    """Keeps the spans of a call on whole characters.

    A token that begins a character is allowed only where the rest of it fits into the span, and inside a character
    only what goes on with it. All states stay on the device of the scores: nothing is read back.

    Args:
        parts (`CharacterParts`): Of the vocabulary.
        spans (`Sequence[Span]`): All spans of the call, numbered by `Span.stream`.
        barred_ids (`Sequence[int]`): Tokens that never come, so that no character can be completed by them.
    """

    def __init__(self, parts: CharacterParts, *, spans: Sequence[Span], barred_ids: Sequence[int]) -> None:
        barred = {*barred_ids}
        usable = torch.tensor([token_id not in barred for token_id in parts.token_ids], dtype=torch.bool)
        self.token_ids = torch.tensor(parts.token_ids, dtype=torch.long)
        self.following = parts.following
        # By state, the fewest tokens that complete a character.
        fewest = torch.full((_INVALID + 1,), 255, dtype=torch.long)
        fewest[0] = 0
        for _ in range(3):
            to_go = fewest[self.following[1:_INVALID, usable]]  # (7, P)
            if to_go.shape[1]:
                fewest[1:_INVALID] = torch.minimum(fewest[1:_INVALID], 1 + to_go.min(dim=1).values)
        self.to_go = fewest[self.following]  # (9, P)
        self.states = torch.zeros(len(spans), dtype=torch.long)
        # The last token that may complete a character: where a seam is healed, one more spells its end.
        self.last = torch.zeros(len(spans), dtype=torch.long)
        for span in spans:
            self.last[span.stream] = span.gap_length - (2 if span.seam.end else 1)
        self._index: tuple[list[int], torch.Tensor] | None = None  # of the spans that were asked for last

    def bar(self, scores: torch.Tensor, spans: Sequence[Span], *, indices: Sequence[int]) -> None:
        """Set the scores `(N, V)` of tokens that break a character to minus infinity, in place."""
        self._move_to(scores.device)
        streams = self._streams(spans)
        states = self.states[streams]
        same = len({*indices}) == 1
        index = indices[0] if same else torch.tensor(indices, device=scores.device)
        left = (self.last[streams] - index).clamp(min=0)
        breaks = self.to_go[states] > left[:, None]  # (N, P)
        of_parts = scores[:, self.token_ids].masked_fill(breaks, -torch.inf)
        scores.masked_fill_((states != 0)[:, None], -torch.inf)
        scores[:, self.token_ids] = of_parts

    def advance(self, tokens: torch.Tensor, spans: Sequence[Span]) -> None:
        """Remember the tokens `(N,)` that the spans were given."""
        streams = self._streams(spans)
        column = torch.searchsorted(self.token_ids, tokens).clamp(max=len(self.token_ids) - 1)
        following = self.following[self.states[streams], column]
        is_part = self.token_ids[column] == tokens
        self.states[streams] = torch.where(is_part & (following != _INVALID), following, 0)

    def are_whole(self, spans: Sequence[Span]) -> list[bool]:
        """Return whether each span is between characters; reads from the device."""
        return [state == 0 for state in self.states[self._streams(spans)].tolist()]

    def _streams(self, spans: Sequence[Span]) -> torch.Tensor:
        """The numbers of spans on the device, kept as long as the same ones are asked for."""
        numbers = [span.stream for span in spans]
        if self._index is None or self._index[0] != numbers:
            self._index = numbers, torch.tensor(numbers, device=self.states.device)
        return self._index[1]

    def _move_to(self, device: torch.device) -> None:
        if self.states.device != device:
            self.states, self.following = self.states.to(device), self.following.to(device)
            self.token_ids, self.to_go = self.token_ids.to(device), self.to_go.to(device)
            self.last, self._index = self.last.to(device), None


__all__ = ["CharacterParts", "CharacterRule", "character_parts"]
