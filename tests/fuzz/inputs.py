"""Hostile values, all drawn from a `random.Random`: what nobody would type, and what files and callers do hold."""

import json
import random
from collections.abc import Sequence
from typing import Any

import numpy as np

# Each on its own has broken some reader of text once.
PIECES = (
    *("", " ", "  ", "\t", "\n", "\r\n", "\r", "\x0b", "\x0c", "\x1c", "\x85", "\u2028", "\u2029", "\u00a0", "\u3000"),
    *("\x00", "\x01", "\x1b[31m", "\x7f", "\ufeff", "\ufffd", "\ufffe", "\u202e", "\u200b", "\u200d", "\ufe0f"),
    *("\ud800", "\udfff", "\udc80", "\U0010ffff", "e\u0301", "\u0301", "\u0e33", "\u0bbe", "ﬃ", "ß", "İ", "ǆ"),
    *(
        "👩\u200d👩\u200d👧",
        "👍🏽",
        "🇩🇪",
        "🇩",
        "🏴\U000e0067\U000e0062\U000e007f",
        "한\u1161",
        "中文",
        "עברית",
        "हिन्दी",
    ),
    *(
        "[blank]",
        "\\[blank]",
        "\\\\[blank]",
        "[blank",
        "blank]",
        "[[blank]]",
        "_",
        "▁",
        "<s>",
        "</s>",
        "<unk>",
        "<pad>",
    ),
    *(
        "<script>alert(1)</script>",
        "<!-- ",
        "-->",
        "</textarea>",
        "&lt;",
        "&#x3c;",
        '" onload="x',
        "'",
        '"',
        "`",
        "```",
    ),
    *(
        "1. ",
        "2) x",
        "+ ",
        "---",
        "\n---\n",
        "...\n",
        "- ",
        ": ",
        "#",
        "| a | b |",
        "](javascript:x)",
        "![x](y)",
        "{{x}}",
        "{output}",
        "${x}",
    ),
    *("!!python/object:os.system", "&a", "*a", "%s", "%n", "\\", "\\\\", "\\u0000", "../../etc/x", "/dev/zero", "NUL"),
    *("NaN", "null", "true", "0", "-1", "1e999", "{}", "[]", '{"a":1}', ",", ";", "=", "~", "$", "^", "(a+)+$"),
    *("the cat", "She ate the apple for lunch.", 'Dr. No said: "Stop!" He did.', "w1", "w2 w3", "a", "A", "word"),
)
NAMES = (
    "text",
    "label",
    "anchor",
    "positive",
    "id",
    "a",
    "",
    " ",
    "text ",
    "Text",
    "__proto__",
    "self",
    "\ud800",
    "ü",
)


def text(draw: random.Random, most: int = 8) -> str:
    """A text of odd pieces, characters from anywhere, and now and then a very long word."""
    parts = []
    for _ in range(draw.randrange(most + 1)):
        kind = draw.random()
        if kind < 0.7:
            parts.append(draw.choice(PIECES))
        elif kind < 0.85:
            parts.append(chr(draw.randrange(0x20, 0x7F)) * draw.randint(1, 3))
        elif kind < 0.97:
            parts.append(chr(draw.randrange(0x110000)))
        else:
            parts.append(draw.choice(("a", "€", "👍", "ab ", "\\", "\u0301", "\n", "[blank]")) * draw.randint(2, 300))
        if draw.random() < 0.3:
            parts.append(" ")
    return "".join(parts)


def unicode_text(draw: random.Random, most: int = 8) -> str:
    """The same without halves of surrogate pairs."""
    return text(draw, most).encode("utf-8", "replace").decode("utf-8")


def number(draw: random.Random) -> Any:
    """A number, or what may be taken for one."""
    return draw.choice(
        (
            *(0, 1, 2, 3, 4, 5, 7, 8, 16, 31, 32, 33, 64, 100, 255, 256, 1000, -1, -2, -100),
            *(2**31 - 1, 2**31, 2**32, 2**53 + 1, 2**63 - 1, 2**63, -(2**63) - 1, 10**30, 10**400, True, False),
            *(0.0, -0.0, 0.5, 1.0, 1.5, -1.5, 1e308, 5e-324, float("nan"), float("inf"), float("-inf"), 1e16),
            *("0", "1", " 1", "1_0", "٣", "1e3", "0x10", "nan", "", np.int64(3), np.float32(1.5), np.bool_(True), 1j),
        )
    )


def small(draw: random.Random) -> int:
    """A whole number that is often right."""
    return draw.choice((0, 1, 1, 2, 2, 3, 4, 5, 6, 8, 12, 16, 33, -1))


def value(draw: random.Random, depth: int = 2, *, of_json: bool = False) -> Any:
    """Anything; with `of_json` what JSON can say."""
    kind = draw.randrange(10 if depth else 6)
    if kind < 2:
        given = number(draw)
        return (
            given
            if not of_json or isinstance(given, (int, float, str)) and type(given).__module__ == "builtins"
            else 3
        )
    if kind < 4:
        return text(draw, 3)
    if kind == 4:
        return draw.choice((None, True, False))
    if kind == 5:
        return [] if of_json else draw.choice((b"bytes", (), {1}, object, 1j, np.zeros((1, 2)), range(3), Ellipsis))
    if kind < 8:
        return [value(draw, depth - 1, of_json=of_json) for _ in range(draw.randrange(4))]
    return {draw.choice(NAMES): value(draw, depth - 1, of_json=of_json) for _ in range(draw.randrange(4))}


def changed(draw: random.Random, values: Any, *, chance: float = 0.3) -> Any:
    """A value with some of its parts replaced, dropped, doubled or wrapped."""
    if draw.random() < chance / 3:
        return draw.choice((lambda: value(draw, of_json=True), lambda: [values], lambda: {"a": values}))()
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


def json_bytes(draw: random.Random, values: Any) -> bytes:
    """A JSON file of these values, or what is left of one: most are whole, so that readers get beyond the reading."""
    written = json.dumps(values, ensure_ascii=draw.random() < 0.5, indent=draw.choice((None, 2)))
    raw = written.encode("utf-8", "surrogatepass")
    if draw.random() < 0.75:
        return raw
    return draw.choice(
        (
            lambda: b"",
            lambda: b"\xef\xbb\xbf" + raw,
            lambda: written.encode("utf-16", "surrogatepass"),
            lambda: b"[" * draw.choice((10, 990, 1100, 100_000)) + raw,
            lambda: b'{"a":' * draw.choice((10, 990, 1100, 50_000)) + b"1" + b"}" * 10,
            lambda: raw.replace(b'"', b'"\\ud800', 1),
            lambda: raw.replace(b"1", b"1" * 5000, 1),
            lambda: raw.replace(b": ", b': NaN, "x": ', 1),
            lambda: raw[:-1] + b"," + raw[1:],
            lambda: raw + raw,
            lambda: raw[: draw.randrange(len(raw) + 1)],
            lambda: bytes(draw.randrange(256) for _ in range(draw.randrange(64))),
            lambda: mutated(draw, raw),
        )
    )()


def mutated(draw: random.Random, raw: bytes) -> bytes:
    """Bytes with flipped bits, cut, doubled, overwritten or put in."""
    data = bytearray(raw)
    for _ in range(draw.choice((1, 1, 1, 2, 5))):
        place, kind = draw.randrange(len(data) + 1), draw.randrange(6)
        if kind == 0 and place < len(data):
            data[place] ^= 1 << draw.randrange(8)
        elif kind == 1 and place < len(data):
            data[place] = draw.choice((0, 0xFF, 0x80, 0x7F, 0x20, 0x22, draw.randrange(256)))
        elif kind == 2:
            del data[place:]
        elif kind == 3:
            del data[place : place + draw.randint(1, 16)]
        elif kind == 4:
            data[place:place] = data[place : place + draw.randint(1, 16)]
        else:
            data[place:place] = draw.choice(
                (b"\x00", b"\n", b"\xc0\x80", b"\xed\xa0\x80", b"\xff\xfe", b'"', b"}", b",")
            )
    return bytes(data)


def some(draw: random.Random, options: Sequence[Any], most: int) -> list[Any]:
    """Up to so many of these, with repetitions."""
    return [draw.choice(options) for _ in range(draw.randrange(most + 1))]


__all__ = [
    "NAMES",
    "PIECES",
    "changed",
    "json_bytes",
    "mutated",
    "number",
    "small",
    "some",
    "text",
    "unicode_text",
    "value",
]
