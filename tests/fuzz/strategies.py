"""Draw hostile values, including those that files and callers really contain, and judge what becomes of them."""

import copy
import json
import linecache
import operator
import os
import traceback
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, reject, settings
from hypothesis import strategies as st

REPOSITORY = Path(__file__).resolve().parents[2]
OWN = tuple(str(REPOSITORY / folder) + os.sep for folder in ("modeling_magnet", "trainer", "examples"))
# Files of transformers whose errors name the argument.
SPEAK_FOR_US = ("logits_process.py", "hf_argparser.py")
MORE = int(os.environ.get("MAGNET_FUZZ", "1"))

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


def fuzz(max_examples):
    """Set the number of inputs of a test: always the same ones, or `MAGNET_FUZZ` times as many others."""
    return settings(
        max_examples=max_examples * MORE,
        derandomize=MORE == 1,
        database=None,
        deadline=timedelta(seconds=10),
        suppress_health_check=list(HealthCheck),
    )


@contextmanager
def clear_errors(names=""):
    """Accept errors that a `raise` of this repository raises, if they contain the given name of a file or argument.

    Errors of a package below it, or of an operator, were meant for somebody else. Hypothesis fails if it finds no
    input that is not refused.
    """
    try:
        yield
    except (ValueError, OSError) as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        is_raised = linecache.getline(last.filename, last.lineno or 0).lstrip().startswith("raise ")
        is_ours = last.filename.startswith(OWN) and is_raised
        if not (is_ours or last.filename.endswith(SPEAK_FOR_US)) or len(str(error)) < 15 or names not in str(error):
            raise
        reject()


def mostly(usual, other):
    """Draw every seventh value from `other`."""
    return st.sampled_from([usual] * 6 + [other]).flatmap(lambda chosen: chosen)


# ---- Values ----

_PIECE = mostly(
    st.sampled_from(PIECES),
    st.text(st.characters(), max_size=3)
    | st.builds(
        operator.mul, st.sampled_from(("a", "€", "👍", "ab ", "\\", "\u0301", "[blank]")), st.integers(2, 300)
    ),
)
any_text = st.lists(_PIECE | st.just(" "), max_size=8).map("".join)
unicode_text = any_text.map(lambda text: text.encode("utf-8", "replace").decode())


def _containers(inner):
    return st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=3)


json_values = st.recursive(st.sampled_from((*NUMBERS, None)) | any_text, _containers, max_leaves=5)
values = st.recursive(st.sampled_from((*NUMBERS, None, *ODD)) | any_text, _containers, max_leaves=5)


def options(good, bad):
    """Draw up to three valid options; often an invalid one, occasionally a value of any kind."""
    fine = [(name, value) for name, choices in good.items() for value in choices]
    wrong = [(name, value) for name, choices in bad.items() for value in choices]
    odd = mostly(st.sampled_from(wrong), st.tuples(st.sampled_from([*good, *bad]), values))
    chosen = st.lists(st.sampled_from(fine), max_size=3)
    return st.one_of(chosen, chosen, st.builds(lambda *parts: [*parts[0], parts[1]], chosen, odd)).map(dict)


# ---- Files ----


def _entries(value):
    """Yield every container in a JSON value with each of its keys."""
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield value, key
        yield from _entries(value[key])


@st.composite
def changed(draw, value, most=3):
    """Remove, rename, replace or wrap some parts of a JSON value."""
    whole = {"": copy.deepcopy(value)}
    for _ in range(draw(st.integers(0, most))):
        if found := list(_entries(whole)):
            owner, key = draw(st.sampled_from(found))
            kind, old = draw(st.sampled_from(("remove", "rename", "replace", "replace", "wrap"))), owner[key]
            if kind in ("remove", "rename") and owner is not whole:
                owner.pop(key)
            if kind == "rename" and isinstance(owner, dict) and owner is not whole:
                owner[draw(st.sampled_from((f"{key} ", f"_{key}", key.upper(), *NAMES)))] = old
            elif kind in ("replace", "wrap"):
                owner[key] = draw(json_values) if kind == "replace" else [old]
    return whole[""]


@st.composite
def damaged(draw, raw):
    """Cut, double or overwrite some bytes."""
    data = bytearray(raw)
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(data)))
        end = draw(st.sampled_from((start, start + 1, start + 16, len(data))))
        odd = (b"\x00", b"\n", b"\xc0\x80", b"\xed\xa0\x80", b"\xff\xfe", b'"', b"}", b",", bytes(data[start:end]) * 2)
        data[start:end] = draw(st.just(b"") | st.sampled_from(odd) | st.binary(max_size=4))
    return bytes(data)


@st.composite
def json_bytes(draw, value, most=3):
    """Write a changed value as JSON; some are damaged, most are valid to get beyond parsing."""
    written = json.dumps(draw(changed(value, most)), ensure_ascii=draw(st.booleans()))
    raw, depth = written.encode("utf-8", "surrogatepass"), draw(st.sampled_from((10, 990, 1100, 100_000)))
    broken = [b"", b"\xef\xbb\xbf" + raw, written.encode("utf-16", "surrogatepass"), b"[" * depth + raw, raw + raw]
    for old, new in ((b'"', b'"\\ud800'), (b"1", b"1" * 5000), (b": ", b': NaN, "x": ')):
        broken.append(raw.replace(old, new, 1))
    return draw(mostly(st.just(raw), st.sampled_from(broken) | damaged(raw)))
