"""Render a page as one HTML file that loads and runs nothing, or as Markdown for GitHub; all text is escaped."""

import html
import re
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from examples.evaluate.reporting.blocks import Block, Bullets, Card, Details, Grid, Notes, Page, Picture, Text, clean
from examples.evaluate.reporting.charts import STYLE as CHART_STYLE

FIGURES = "figures"
STYLE = CHART_STYLE + Path(__file__).with_name("page.css").read_text(encoding="utf-8")
# The class of a card, and its mark where there are no styles.
TONES = {
    "holds": ("holds", "🟢"),
    "holds in part": ("part", "🟡"),
    "does not hold": ("fails", "🔴"),
    "not measured": ("unknown", "⚪"),
}
# An underscore inside a word has no effect.
_MARKS = re.compile(r"([\\`*{}\[\]<>#|~&$]|(?<![^\W_])_|_(?![^\W_]))")
# These open a list or underline a heading only at the start of a line.
_STARTS = re.compile(r"^([-+=])")
_NUMBERS = re.compile(r"^(\d+)([.)])")


def render_html(page: Page) -> str:
    """Render the page as HTML."""
    title = _escape(page.title)
    return (
        "<!DOCTYPE html>\n"
        '<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{STYLE}</style></head>\n"
        f"<body><h1>{title}</h1>\n<main>\n{_html_blocks(page.blocks)}\n</main></body></html>\n"
    )


def _html_blocks(blocks: Sequence[Block]) -> str:
    """Render blocks; neighboring cards or charts share a grid."""
    parts = []
    for kind, group in groupby(blocks, type):
        inner = "\n".join(map(_html, group))
        name = {Card: "cards", Picture: "charts"}.get(kind)
        parts.append(f'<div class="{name}">\n{inner}\n</div>' if name else inner)
    return "\n".join(parts)


def _html(block: Block) -> str:
    """Render any block."""
    match block:
        case Text(text, is_heading):
            return f"<h3>{_escape(text)}</h3>" if is_heading else f"<p>{_escape(text)}</p>"
        case Bullets(head, items):
            return f"<p>{_escape(head)}</p><ul>{''.join(f'<li>{_escape(item)}</li>' for item in items)}</ul>"
        case Grid():
            return _grid(block)
        case Details(head, finding, blocks):
            line = f'<b>{_escape(head)}</b> <span class="muted">{_escape(finding)}</span>'
            return f"<details><summary>{line}</summary>\n{_html_blocks(blocks)}\n</details>"
        case Notes(markdown):
            return f'<div class="notes">{render_notes(markdown)}</div>'
        case Picture(_, caption, svg):
            return f"<figure>{svg}<figcaption>{_escape(caption)}</figcaption></figure>"
    return (
        f'<section class="card {TONES[block.verdict][0]}">'
        f'<p><span class="badge">{_escape(block.verdict)}</span> <span class="muted">{_escape(block.note)}</span></p>'
        f"<h2>{_escape(block.statement)}</h2><p>{_escape(block.text)}</p>"
        f"{_html(block.picture) if block.picture else ''}</section>"
    )


def _grid(grid: Grid) -> str:
    """Render a table that scrolls on its own if the page is too narrow."""
    head = "".join(f'<th scope="col">{_escape(text)}</th>' for text in grid.heads)
    lines = []
    for row, is_quoted in zip(grid.rows, grid.quoted or [False] * len(grid.rows), strict=True):
        cells = "".join(f"<td>{_escape(text)}</td>" for text in row)
        lines.append(f'<tr class="quoted">{cells}</tr>' if is_quoted else f"<tr>{cells}</tr>")
    body = "\n".join(lines)
    kind = ' class="figures"' if grid.quoted else ""
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="Table"><table{kind}>'
        f"<thead><tr>{head}</tr></thead>\n"
        f"<tbody>{body}</tbody></table></div>"
    )


def render_notes(markdown: str) -> str:
    """Render Markdown: raw HTML is shown as text, links lead to the web or into the page, and nothing is loaded."""
    from markdown_it import MarkdownIt  # needs the extra `eval`

    parser = MarkdownIt("commonmark", {"html": False}).enable("table").disable("image")
    # A relative link would lead to a file that is not beside the page.
    setattr(parser, "validateLink", lambda url: url.startswith(("http://", "https://", "#")))  # noqa: B010
    tokens = parser.parse(clean(markdown))
    for token in tokens:
        if token.type in ("heading_open", "heading_close"):  # below the headings of the page
            token.tag = f"h{min(6, 2 + int(token.tag[1]))}"
    return str(parser.renderer.render(tokens, parser.options, {}))


def _escape(text: str) -> str:
    """Escape text for elements and attributes alike."""
    return html.escape(clean(text))


def render_markdown(page: Page) -> str:
    """Render the page as Markdown."""
    return "\n\n".join([f"# {_start(page.title)}", *filter(None, map(_markdown, page.blocks))]) + "\n"


def _markdown(block: Block) -> str:
    """Render any block."""
    match block:
        case Text(text, is_heading):
            return f"### {_start(text)}" if is_heading else _start(text)
        case Bullets(head, items):
            return "\n".join([_start(head), "", *(f"- {_start(item)}" for item in items)])
        case Grid(heads, rows):
            lines = [[_mark(text) for text in line] for line in [heads, *rows]]
            lines.insert(1, ["---"] * len(heads))
            return "\n".join(f"| {' | '.join(line)} |" for line in lines)
        case Details(head, finding, blocks):
            # The summary is inside HTML; Markdown resumes after an empty line.
            texts = [html.escape(clean(" ".join(text.split()))) for text in (head, finding)]
            summary = f"<details>\n<summary><b>{texts[0]}</b> {texts[1]}</summary>"
            return "\n\n".join([summary, *map(_markdown, blocks), "</details>"])
        case Notes(markdown):
            return clean(markdown).strip()
        case Picture(name, caption, _):
            return f"![{_start(caption or name)}]({FIGURES}/{name}.svg)"
        case Card(statement, verdict, text, note, picture):
            head = f"## {TONES[verdict][1]} {_start(verdict)}: {_start(statement)}"
            return "\n\n".join([head, _start(f"{text} {note}"), *([_markdown(picture)] if picture else [])])


def _start(text: str) -> str:
    """Escape text that begins a line."""
    return _NUMBERS.sub(r"\1\\\2", _STARTS.sub(r"\\\1", _mark(text)))


def _mark(text: str) -> str:
    """Join text to one line and escape the characters that have a meaning anywhere."""
    return _MARKS.sub(r"\\\1", clean(" ".join(text.split())))
