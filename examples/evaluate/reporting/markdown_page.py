"""A page of the report as Markdown; pictures are files in a folder beside it, all text is escaped."""

import html
import re
from collections.abc import Sequence

from examples.evaluate.reporting.blocks import (
    Answer,
    Block,
    Bullets,
    Details,
    Grid,
    Heading,
    Link,
    Notes,
    Page,
    Story,
    Text,
    anchor,
    clean,
)

FIGURES = "figures"
# An underscore inside a word means nothing.
_MARKS = re.compile(r"([\\`*{}\[\]<>#|~&$]|(?<![^\W_])_|_(?![^\W_]))")
# Only at the start of a line do these open something: code, a list, the line under a heading, a numbered list.
_CODE = re.compile(r"^[ \t]{4,}", flags=re.MULTILINE)
_STARTS = re.compile(r"^( *)([-+=])", flags=re.MULTILINE)
_NUMBERS = re.compile(r"^( *\d+)([.)])", flags=re.MULTILINE)


def render_markdown(page: Page) -> str:
    """Return one page."""
    contents = "\n".join(f"- [{_escape(text)}](#{anchor(text)})" for text in page.sections)
    blocks = [_block(block) for block in page.blocks]
    parts = [f"# {_escape(page.title)}", *blocks[: page.opening], contents, *blocks[page.opening :]]
    return "\n\n".join(part for part in parts if part) + "\n"


def _block(block: Block) -> str:
    """Render any block."""
    match block:
        case Heading(level, text):
            # Readers make their own names of headings; these are the ones the contents link to.
            return f'<a id="{anchor(text)}"></a>\n\n{"#" * level} {_escape(text)}'
        case Text(text, is_warning):
            return f"> **Note:** {_escape(text)}" if is_warning else _escape(text)
        case Bullets(head, items):
            return "\n".join([_escape(head), "", *(f"- {_escape(item)}" for item in items)])
        case Grid(heads, rows):
            return _grid(heads, rows)
        case Details(head, blocks):
            # The line is inside HTML, what is below an empty line is Markdown again.
            line = html.escape(clean(" ".join(head.split())))
            folded = [_block(one) for one in blocks]
            return "\n\n".join([f"<details>\n<summary>{line}</summary>", *folded, "</details>"])
        case Link(text, section):
            return f"[{_escape(text)}](#{anchor(section)})"
        case Answer(question, verdict):
            return f"{_escape(question)} **{_escape(verdict)}**"
        case Story():
            return _story(block)
        case Notes(markdown):
            return clean(markdown).strip()
    return f"![{_escape(block.alternative)}]({FIGURES}/{block.name}.svg)\n\n{_escape(block.caption)}"


def _grid(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table."""
    lines = [[_mark(" ".join(text.split())) for text in line] for line in [heads, *rows]]
    lines.insert(1, ["---"] * len(heads))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _story(story: Story) -> str:
    """Return all systems under each other, what they wrote between guillemets."""
    parts = [f"#### {_escape(story.title)}"]
    for system, text in story.writings:
        told = _escape("".join(story.around(f"«{text}»")), keep_lines=True)
        parts.append(f"{_escape(system)}:\n\n" + "\n".join(f"> {line}".rstrip() for line in told.split("\n")))
    return "\n\n".join(parts)


def _escape(text: str, *, keep_lines: bool = False) -> str:
    """Escape text; lines are kept where there is room for them."""
    text = _mark(text if keep_lines else " ".join(text.split()))
    text = _NUMBERS.sub(r"\1\\\2", _STARTS.sub(r"\1\\\2", _CODE.sub("   ", text)))
    return re.sub(r"(?<=[^\n])\n(?=[^\n])", "\\\\\n", text) if keep_lines else text


def _mark(text: str) -> str:
    """Escape the marks that mean something anywhere."""
    return _MARKS.sub(r"\\\1", clean(text))


__all__ = ["FIGURES", "render_markdown"]
