"""Find the text that each token of a vocabulary spells, and the bytes of tokens that begin or end inside a character.

Everything here depends on the tokenizer alone and is computed once for each vocabulary.

Shapes: V vocabulary, P tokens that begin or end inside a character.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from .tokenization_magnet import special_ids

# --- Bytes: in byte-level vocabularies, a token may begin or end inside a character.

# For each state, ranges of bytes with the next state (UTF-8, RFC 3629). State 0 is between characters; 1, 2 and 3
# expect that many continuation bytes; 4 to 7 exclude overlong forms, surrogates and code points beyond Unicode.
_TRANSITIONS: dict[int, list[tuple[int, int, int]]] = {
    0: [(0x00, 0x7F, 0), (0xC2, 0xDF, 1), (0xE0, 0xE0, 4), (0xE1, 0xEC, 2), (0xED, 0xED, 5), (0xEE, 0xEF, 2),
        (0xF0, 0xF0, 6), (0xF1, 0xF3, 3), (0xF4, 0xF4, 7)],
    1: [(0x80, 0xBF, 0)],
    2: [(0x80, 0xBF, 1)],
    3: [(0x80, 0xBF, 2)],
    4: [(0xA0, 0xBF, 1)],
    5: [(0x80, 0x9F, 1)],
    6: [(0x90, 0xBF, 2)],
    7: [(0x80, 0x8F, 2)],
}  # fmt: skip
INVALID_STATE = len(_TRANSITIONS)
_PROBE = "你"


@dataclass(frozen=True)
class ByteTokens:
    """The tokens of a vocabulary that begin or end inside a character."""

    token_ids: tuple[int, ...]  # P, ascending
    following: torch.Tensor  # (9, P): the next state for each state and token; 8 is invalid

    @cached_property
    def _columns(self) -> dict[int, int]:
        return {token_id: column for column, token_id in enumerate(self.token_ids)}

    def count_whole(self, token_ids: Sequence[int]) -> int:
        """Count the leading tokens of a span that form whole characters."""
        state, whole = 0, 0
        for count, token_id in enumerate(token_ids, start=1):
            column = self._columns.get(token_id)
            state = 0 if column is None else int(self.following[state, column])
            state = 0 if state == INVALID_STATE else state
            if state == 0:
                whole = count
        return whole


@lru_cache(maxsize=4)
def byte_tokens(tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> ByteTokens:
    """Find the tokens below `vocab_size` that begin or end inside a character."""
    known = {token_id: part for token_id, part in sorted(_read_bytes(tokenizer).items()) if token_id < vocab_size}
    following = torch.full((INVALID_STATE + 1, len(known)), INVALID_STATE, dtype=torch.long)
    for column, part in enumerate(known.values()):
        for state in _TRANSITIONS:
            following[state, column] = _next_state(state, part)
    return ByteTokens(tuple(known), following)


def _read_bytes(tokenizer: PreTrainedTokenizerBase) -> dict[int, bytes]:
    """Return the bytes of each token that does not consist of whole characters.

    Decoding a probe shows how the tokenizer spells bytes: as `<0xE4>`, as byte-level BPE does, or not at all.
    """
    spelled = [f"<0x{byte:02X}>" for byte in _PROBE.encode()]
    if tokenizer.convert_tokens_to_string(spelled) == _PROBE:
        names = {f"<0x{byte:02X}>": bytes([byte]) for byte in range(0x80, 0x100)}
        known: dict[Any, bytes] = {tokenizer.convert_tokens_to_ids(name): part for name, part in names.items()}
        return {token_id: part for token_id, part in known.items() if token_id not in (None, tokenizer.unk_token_id)}
    # Byte-level BPE maps each byte to a letter: printable bytes to themselves, the others to letters from U+0100 on.
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    letters = [chr(byte) if byte in printable else chr(next(others)) for byte in range(0x100)]
    if tokenizer.convert_tokens_to_string([letters[byte] for byte in _PROBE.encode()]) != _PROBE:
        return {}
    bytes_of = {letter: byte for byte, letter in enumerate(letters)}
    added = tokenizer.added_tokens_decoder  # added tokens are stored as text, not as letters for bytes
    partial = {}
    for token_id, token in enumerate(tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))):
        if not token or token.isascii() or token_id in added or any(letter not in bytes_of for letter in token):
            continue
        part = bytes(bytes_of[letter] for letter in token)
        if _next_state(0, part) != 0:
            partial[token_id] = part
    return partial


def _next_state(state: int, part: bytes) -> int:
    """Return the state after reading bytes from a state."""
    for byte in part:
        state = next((to for low, high, to in _TRANSITIONS.get(state, []) if low <= byte <= high), INVALID_STATE)
    return state


# --- Text.


class Vocabulary(NamedTuple):
    """The text that each token adds to a text before it; special tokens add nothing."""

    texts: tuple[str, ...]
    known: frozenset[str]
    by_first: dict[str, list[int]]  # the tokens whose text begins with a given character
    by_last: dict[str, list[int]]  # the tokens whose text ends with a given character


# Keys are the tokenizer and two sizes: its number of tokens, which grows as tokens are added, and the model's.
_VOCABULARIES: WeakKeyDictionary[PreTrainedTokenizerBase, dict[tuple[int, int], Vocabulary]] = WeakKeyDictionary()
_READING = threading.Lock()


def read_vocabulary(tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> Vocabulary:
    """Read the texts of all tokens, once for each tokenizer even if several threads ask for them."""
    with _READING:
        of_tokenizer = _VOCABULARIES.setdefault(tokenizer, {})
        key = (len(tokenizer), vocab_size)
        if key not in of_tokenizer:
            tokens = range(min(vocab_size, len(tokenizer)))
            anchor = tokenizer("a", add_special_tokens=False)["input_ids"]
            special = special_ids(tokenizer)
            first = len(tokenizer.decode(anchor, clean_up_tokenization_spaces=False))
            decoded = _decode_rows(tokenizer, [[*anchor, token] for token in tokens])
            texts = ["" if token in special else text[first:] for token, text in zip(tokens, decoded, strict=True)]
            by_first: dict[str, list[int]] = {}
            by_last: dict[str, list[int]] = {}
            for token, text in enumerate(texts):
                if text:
                    by_first.setdefault(text[0], []).append(token)
                    by_last.setdefault(text[-1], []).append(token)
            texts += [""] * (vocab_size - len(tokens))
            of_tokenizer[key] = Vocabulary(tuple(texts), frozenset(texts) - {""}, by_first, by_last)
        return of_tokenizer[key]


@lru_cache(maxsize=256)  # each takes a byte per token
def fitting_tokens(
    tokenizer: PreTrainedTokenizerBase,
    vocab_size: int,
    num_tokens: int,
    *,
    rest: str,
    end: str,
    is_last: bool,
    may_go_on: bool,
) -> torch.Tensor:
    """Return a mask `(V,)` of the tokens that spell `rest`, or a beginning of it that one more token can complete.

    The last token must complete `rest` and end with `end`. This keeps greedy decoding out of dead ends. The argument
    `num_tokens`, the length of the tokenizer, is a key of the cache, because tokens can be added.
    """
    vocabulary = read_vocabulary(tokenizer, vocab_size)
    candidates = vocabulary.by_first.get(rest[0], []) if rest else vocabulary.by_last.get(end[-1], [])

    def fits(text: str) -> bool:
        if not text or (is_last and not end and text == rest == " "):
            return False  # only the healed space: the fill would be empty
        if is_last:
            return text.startswith(rest) and text.endswith(end) and len(text) >= len(rest) + len(end)
        return text.startswith(rest) or (may_go_on and rest.startswith(text) and rest[len(text) :] in vocabulary.known)

    fitting = torch.zeros(vocab_size, dtype=torch.bool)
    fitting[[token for token in candidates if fits(vocabulary.texts[token])]] = True
    return fitting


def _decode_rows(tokenizer: PreTrainedTokenizerBase, rows: list[list[int]]) -> list[str]:
    """Decode many rows, with one call of the Rust backend if the class does not override `decode`."""
    fast, kind = PreTrainedTokenizerFast, type(tokenizer)
    if isinstance(tokenizer, fast) and (kind.decode, kind._decode) == (fast.decode, fast._decode):
        texts: list[str] = tokenizer.backend_tokenizer.decode_batch(rows, skip_special_tokens=False)
        return texts
    return list(tokenizer.batch_decode(rows, clean_up_tokenization_spaces=False))
