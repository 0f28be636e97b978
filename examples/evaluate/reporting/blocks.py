"""The blocks of a report, before they are rendered as Markdown or HTML."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from examples.evaluate.reporting.plots import Picture

# Lone surrogates cannot be written; control characters and marks that turn text around must not reach a page.
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


@dataclass(frozen=True)
class Heading:
    """Level 2 opens a section and is listed in the table of contents."""

    level: int
    text: str


@dataclass(frozen=True)
class Text:
    """A paragraph; a warning is marked."""

    text: str
    is_warning: bool = False


@dataclass(frozen=True)
class Bullets:
    """A list under a line of its own."""

    head: str
    items: Sequence[str]


@dataclass(frozen=True)
class Grid:
    """A table: heads, rows of as many cells, and of each row a kind that tells its look."""

    heads: Sequence[str]
    rows: Sequence[Sequence[str]]
    kinds: Sequence[str] = ()


@dataclass(frozen=True)
class Details:
    """What is folded under a line until a reader opens it."""

    head: str
    blocks: Sequence[Text | Bullets | Grid]


@dataclass(frozen=True)
class Link:
    """A line that leads to a section of the page, by its heading."""

    text: str
    section: str


@dataclass(frozen=True)
class Answer:
    """A question with its verdict."""

    question: str
    verdict: str


@dataclass(frozen=True)
class Story:
    """One beginning and end, and what each system wrote between or after them."""

    title: str
    prefix: str
    suffix: str
    writings: Sequence[tuple[str, str]]

    def around(self, text: str) -> tuple[str, str, str]:
        """Return beginning, text and end, with spaces between them where they have none."""
        before = f"{self.prefix} " if self.prefix and not self.prefix[-1].isspace() else self.prefix
        behind = f" {self.suffix}" if self.suffix and not self.suffix[0].isspace() else self.suffix
        return before, text.strip(), behind


@dataclass(frozen=True)
class Notes:
    """Markdown of those who ran it; a page that is not Markdown shows it as it was written."""

    markdown: str


Block = Heading | Text | Bullets | Grid | Details | Link | Answer | Story | Notes | Picture


@dataclass(frozen=True)
class Page:
    """A title and what is below it."""

    title: str
    blocks: Sequence[Block]

    @property
    def sections(self) -> list[str]:
        """The headings of its table of contents."""
        return [block.text for block in self.blocks if isinstance(block, Heading) and block.level == 2]

    @property
    def opening(self) -> int:
        """How many blocks come before the first section; the table of contents follows them."""
        places = [place for place, block in enumerate(self.blocks) if isinstance(block, Heading) and block.level == 2]
        return places[0] if places else len(self.blocks)


def clean(text: str) -> str:
    """Replace characters that must not reach a page."""
    return _UNSAFE.sub("\ufffd", text.replace("\r\n", "\n").replace("\r", "\n"))


def anchor(text: str) -> str:
    """Return the name of a section in links.

    Example:
        >>> anchor("Sentence level: clustering (Table 3)")
        'sentence-level-clustering-table-3'
    """
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


__all__ = [
    "Answer", "Block", "Bullets", "Details", "Grid", "Heading", "Link", "Notes", "Page", "Story", "Text",
    "anchor", "clean",
]  # fmt: skip
