"""Draw hostile values from a `random.Random`, including those that files and callers really contain."""

import json
import random
from collections.abc import Sequence
from typing import Any

import numpy as np

# Each piece has broken a reader of text. Words are separated by spaces here, the others are listed one by one.
_WORDS = r"""[blank] \[blank] \\[blank] [blank blank] [[blank]] _ ▁ <s> </s> <unk> <pad> <script>alert(1)</script>
</textarea> --> &lt; &#x3c; ' " ` ``` --- # {{x}} {output} ${x} ](javascript:x) ![x](y) &a *a %s %n \ \\ \u0000 ß İ ǆ
!!python/object:os.system ../../etc/x /dev/zero NaN null true 0 -1 1e999 {} [] {"a":1} , ; = ~ $ ^ (a+)+$ w1 a A ﬃ
word 中文 עברית हिन्दी""".split()
PIECES = (
    *("", " ", "  ", "\t", "\n", "\r\n", "\r", "\x0b", "\x0c", "\x1c", "\x85", "\u2028", "\u2029", "\u00a0", "\u3000"),
    *("\x00", "\x01", "\x1b[31m", "\x7f", "\ufeff", "\ufffd", "\ufffe", "\u202e", "\u200b", "\u200d", "\ufe0f"),
    *("\ud800", "\udfff", "\udc80", "\U0010ffff", "e\u0301", "\u0301", "\u0e33", "\u0bbe", "한\u1161"),
    *("👩\u200d👩\u200d👧", "👍🏽", "🇩🇪", "🇩", "🏴\U000e0067\U000e0062\U000e007f"),
    *("1. ", "2) x", "+ ", "\n---\n", "...\n", "- ", ": ", "| a | b |", "<!-- ", '" onload="x', "w2 w3", "the cat"),
    *("She ate the apple for lunch.", 'Dr. No said: "Stop!" He did.', *_WORDS),
)
NAMES = (*"text label anchor positive id a __proto__ self Text ü".split(), "", " ", "text ", "\ud800")
NUMBERS = (
    *(0, 1, 2, 3, 5, 8, 16, 33, 100, 256, -1, -2, 2**31, 2**53 + 1, 2**63, -(2**63) - 1, 10**400, True, False),
    *(0.0, -0.0, 0.5, 1.0, 1.5, -1.5, 1e308, 5e-324, float("nan"), float("inf"), float("-inf")),
    *("0", " 1", "1_0", "٣", "1e3", "0x10", "nan", ""),
)
ODD = (b"bytes", (), {1}, object, 1j, np.zeros((1, 2)), range(3), ..., np.int64(3), np.float32(1.5), np.bool_(True))


def text(draw: random.Random, most: int = 8) -> str:
    """Join odd pieces, random characters, and occasionally a very long word."""
    parts = []
    for _ in range(draw.randrange(most + 1)):
        kind = draw.random()
        if kind < 0.7:
            parts.append(draw.choice(PIECES))
        elif kind < 0.97:
            parts.append(chr(draw.randrange(*((0x20, 0x7F) if kind < 0.85 else (0, 0x110000)))))
        else:
            parts.append(draw.choice(("a", "€", "👍", "ab ", "\\", "\u0301", "\n", "[blank]")) * draw.randint(2, 300))
        parts.append(draw.choice(("", "", " ")))
    return "".join(parts)


def unicode_text(draw: random.Random, most: int = 8) -> str:
    """Draw text without lone surrogates."""
    return text(draw, most).encode("utf-8", "replace").decode("utf-8")


def value(draw: random.Random, depth: int = 2, *, of_json: bool = False) -> Any:
    """Draw any value; with `of_json`, any JSON value."""
    kind = draw.randrange(10 if depth else 6)
    if kind < 2:
        return draw.choice(NUMBERS)
    if kind < 4:
        return text(draw, 3)
    if kind < 6:
        return draw.choice((None, True, []) if of_json or kind == 4 else ODD)
    if kind < 8:
        return [value(draw, depth - 1, of_json=of_json) for _ in range(draw.randrange(4))]
    return {draw.choice(NAMES): value(draw, depth - 1, of_json=of_json) for _ in range(draw.randrange(4))}


def changed(draw: random.Random, values: Any, *, chance: float = 0.3) -> Any:
    """Replace, drop, rename, double or wrap some parts of a JSON value."""
    if draw.random() < chance / 3:
        return draw.choice((value(draw, of_json=True), [values], {"a": values}))
    if isinstance(values, dict):
        kept = {}
        for name, one in values.items():
            fate = draw.random()
            if fate < chance / 4:
                continue
            if fate < chance / 2:
                name = draw.choice((name.upper(), name + " ", f"_{name}", draw.choice(NAMES)))
            kept[name] = value(draw, of_json=True) if fate > 1 - chance / 2 else changed(draw, one, chance=chance / 2)
        return kept
    if isinstance(values, list):
        kept_list = [changed(draw, one, chance=chance / 2) for one in values if draw.random() > chance / 8]
        return kept_list * 2 if draw.random() < chance / 8 else kept_list
    return values


def json_bytes(draw: random.Random, values: Any, *, chance: float = 0.3) -> bytes:
    """Write changed values as JSON, sometimes damaged; most are valid, to get beyond parsing."""
    written = json.dumps(changed(draw, values, chance=chance), ensure_ascii=draw.random() < 0.5)
    raw = written.encode("utf-8", "surrogatepass")
    if draw.random() < 0.75:
        return raw
    depth = draw.choice((10, 990, 1100, 100_000))
    broken = (b"", b"\xef\xbb\xbf" + raw, written.encode("utf-16", "surrogatepass"), b"[" * depth + raw, raw + raw)
    replaced = ((b'"', b'"\\ud800'), (b"1", b"1" * 5000), (b": ", b': NaN, "x": '))
    cut = raw[: draw.randrange(len(raw) + 1)]
    return draw.choice(
        (*broken, *(raw.replace(*one, 1) for one in replaced), cut, draw.randbytes(40), mutated(draw, raw))
    )


def mutated(draw: random.Random, raw: bytes) -> bytes:
    """Flip bits of bytes, truncate, double or overwrite them, or insert others."""
    data = bytearray(raw)
    for _ in range(draw.choice((1, 1, 1, 2, 5))):
        place, kind, length = draw.randrange(len(data) + 1), draw.randrange(5), draw.randint(1, 16)
        if kind == 0 and place < len(data):
            data[place] ^= 1 << draw.randrange(8)
        elif kind == 1:
            del data[place:]
        elif kind == 2:
            del data[place : place + length]
        elif kind == 3:
            data[place:place] = data[place : place + length]
        else:
            odd = draw.choice((b"\x00", b"\n", b"\xc0\x80", b"\xed\xa0\x80", b"\xff\xfe", b'"', b"}", b","))
            data[place : place + draw.randrange(2)] = odd
    return bytes(data)


def some(draw: random.Random, options: Sequence[Any], most: int) -> list[Any]:
    """Draw up to the given number of items with replacement."""
    return [draw.choice(options) for _ in range(draw.randrange(most + 1))]
