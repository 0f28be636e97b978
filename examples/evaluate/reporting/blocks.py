"""Define the blocks of a page, before they are rendered as Markdown or HTML."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

# Lone surrogates cannot be written; control characters and direction marks could disguise the text of a page.
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


@dataclass(frozen=True)
class Text:
    """A paragraph, or a heading inside a folded section."""

    text: str
    is_heading: bool = False


@dataclass(frozen=True)
class Bullets:
    """A list below a line of its own."""

    head: str
    items: Sequence[str]


@dataclass(frozen=True)
class Grid:
    """A table; quoted rows look different from measured ones."""

    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    quoted: Sequence[bool] = ()


@dataclass(frozen=True)
class Picture:
    """A chart as an SVG element that takes its colors from the page."""

    name: str
    caption: str
    svg: str


@dataclass(frozen=True)
class Card:
    """A claim with its verdict, one sentence and one chart."""

    statement: str
    verdict: str
    text: str
    note: str
    picture: Picture | None


@dataclass(frozen=True)
class Notes:
    """Markdown of the people who ran the study."""

    markdown: str


@dataclass(frozen=True)
class Details:
    """Blocks that are folded below a name and a finding until a reader opens them."""

    head: str
    finding: str
    blocks: Sequence["Block"]


Block = Text | Bullets | Grid | Picture | Card | Notes | Details


@dataclass(frozen=True)
class Page:
    """A page: a title, and its blocks."""

    title: str
    blocks: Sequence[Block]


def pictures(blocks: Sequence[Block]) -> Iterator[Picture]:
    """Yield all charts."""
    for block in blocks:
        match block:
            case Picture():
                yield block
            case Details():
                yield from pictures(block.blocks)
            case Card(picture=Picture() as picture):
                yield picture


def clean(text: str) -> str:
    """Replace characters that must not appear on a page."""
    return _UNSAFE.sub("\ufffd", text.replace("\r\n", "\n").replace("\r", "\n"))
