"""Define the blocks of a page, before they are rendered as Markdown or HTML."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

# Lone surrogates cannot be written; control characters and direction marks could disguise the text of a page.
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


@dataclass(frozen=True)
class Heading:
    """A heading; those of level 2 are listed in the table of contents."""

    level: int
    text: str


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str
    is_warning: bool = False


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
class Details:
    """Blocks that are folded below a line until a reader opens it."""

    head: str
    blocks: Sequence[Text | Bullets | Grid]


@dataclass(frozen=True)
class Notes:
    """Markdown of the people who ran the study; the HTML page shows its source."""

    markdown: str


@dataclass(frozen=True)
class Picture:
    """A figure as SVG."""

    name: str
    caption: str
    svg: bytes


Block = Heading | Text | Bullets | Grid | Details | Notes | Picture


@dataclass(frozen=True)
class Page:
    """A page: a title, the blocks of the first screen, and the sections after the table of contents."""

    title: str
    opening: Sequence[Block]
    sections: Sequence[Block]

    @property
    def contents(self) -> list[str]:
        """Return the headings of the table of contents."""
        return [block.text for block in self.sections if isinstance(block, Heading) and block.level == 2]

    @property
    def pictures(self) -> list[Picture]:
        """Return all figures."""
        return [block for block in self.sections if isinstance(block, Picture)]


def clean(text: str) -> str:
    """Replace characters that must not appear on a page."""
    return _UNSAFE.sub("\ufffd", text.replace("\r\n", "\n").replace("\r", "\n"))


def anchor(text: str) -> str:
    """Return the link target of a section.

    Example:
        >>> anchor("Sentence level: clustering (Table 3)")
        'sentence-level-clustering-table-3'
    """
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
