"""Render a page as Markdown; pictures are files in a folder beside it, all text is escaped."""

import html
import re

from examples.evaluate.reporting.blocks import Block, Bullets, Details, Grid, Heading, Notes, Page, Text, anchor, clean

FIGURES = "figures"
# An underscore inside a word has no effect.
_MARKS = re.compile(r"([\\`*{}\[\]<>#|~&$]|(?<![^\W_])_|_(?![^\W_]))")
# These open a list or underline a heading only at the start of a line.
_STARTS = re.compile(r"^([-+=])")
_NUMBERS = re.compile(r"^(\d+)([.)])")


def render_markdown(page: Page) -> str:
    """Render the page as Markdown."""
    contents = "\n".join(f"- [{_escape(text)}](#{anchor(text)})" for text in page.contents)
    parts = [f"# {_escape(page.title)}", *map(_block, page.opening), contents, *map(_block, page.sections)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _block(block: Block) -> str:
    """Render any block."""
    match block:
        case Heading(level, text):
            # Renderers derive their own anchors from headings; the contents link to these.
            return f'<a id="{anchor(text)}"></a>\n\n{"#" * level} {_escape(text)}'
        case Text(text, is_warning):
            return f"> **Note:** {_escape(text)}" if is_warning else _escape(text)
        case Bullets(head, items):
            return "\n".join([_escape(head), "", *(f"- {_escape(item)}" for item in items)])
        case Grid(heads, rows):
            lines = [[_mark(text) for text in line] for line in [heads, *rows]]
            lines.insert(1, ["---"] * len(heads))
            return "\n".join(f"| {' | '.join(line)} |" for line in lines)
        case Details(head, blocks):
            # The summary is inside HTML; Markdown resumes after an empty line.
            line = html.escape(clean(" ".join(head.split())))
            return "\n\n".join([f"<details>\n<summary>{line}</summary>", *map(_block, blocks), "</details>"])
        case Notes(markdown):
            return clean(markdown).strip()
    return f"![{_escape(block.caption)}]({FIGURES}/{block.name}.svg)\n\n{_escape(block.caption)}"


def _escape(text: str) -> str:
    """Escape text that begins a line."""
    return _NUMBERS.sub(r"\1\\\2", _STARTS.sub(r"\\\1", _mark(text)))


def _mark(text: str) -> str:
    """Join text to one line and escape the characters that have a meaning anywhere."""
    return _MARKS.sub(r"\\\1", clean(" ".join(text.split())))
