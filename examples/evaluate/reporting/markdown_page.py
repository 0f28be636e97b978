"""Render a page as Markdown for GitHub; charts are files in a folder beside it, all text is escaped."""

import html
import re

from examples.evaluate.reporting.blocks import Block, Bullets, Card, Details, Grid, Notes, Page, Picture, Text, clean

FIGURES = "figures"
MARKS = {"holds": "🟢", "holds in part": "🟡", "does not hold": "🔴", "not measured": "⚪"}
# An underscore inside a word has no effect.
_MARKS = re.compile(r"([\\`*{}\[\]<>#|~&$]|(?<![^\W_])_|_(?![^\W_]))")
# These open a list or underline a heading only at the start of a line.
_STARTS = re.compile(r"^([-+=])")
_NUMBERS = re.compile(r"^(\d+)([.)])")


def render_markdown(page: Page) -> str:
    """Render the page as Markdown."""
    return "\n\n".join([f"# {_escape(page.title)}", *filter(None, map(_block, page.blocks))]) + "\n"


def _block(block: Block) -> str:
    """Render any block."""
    match block:
        case Text(text, is_heading):
            return f"### {_escape(text)}" if is_heading else _escape(text)
        case Bullets(head, items):
            return "\n".join([_escape(head), "", *(f"- {_escape(item)}" for item in items)])
        case Grid(heads, rows):
            lines = [[_mark(text) for text in line] for line in [heads, *rows]]
            lines.insert(1, ["---"] * len(heads))
            return "\n".join(f"| {' | '.join(line)} |" for line in lines)
        case Details(head, finding, blocks):
            # The summary is inside HTML; Markdown resumes after an empty line.
            texts = [html.escape(clean(" ".join(text.split()))) for text in (head, finding)]
            summary = f"<details>\n<summary><b>{texts[0]}</b> {texts[1]}</summary>"
            return "\n\n".join([summary, *map(_block, blocks), "</details>"])
        case Notes(markdown):
            return clean(markdown).strip()
        case Picture(name, caption, _):
            return f"![{_escape(caption or name)}]({FIGURES}/{name}.svg)"
        case Card(statement, verdict, text, note, picture):
            head = f"## {MARKS.get(verdict, '⚪')} {_escape(verdict)}: {_escape(statement)}"
            return "\n\n".join([head, _escape(f"{text} {note}"), *([_block(picture)] if picture else [])])


def _escape(text: str) -> str:
    """Escape text that begins a line."""
    return _NUMBERS.sub(r"\1\\\2", _STARTS.sub(r"\\\1", _mark(text)))


def _mark(text: str) -> str:
    """Join text to one line and escape the characters that have a meaning anywhere."""
    return _MARKS.sub(r"\\\1", clean(" ".join(text.split())))
