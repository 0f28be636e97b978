"""Render a page as one HTML file that loads and runs nothing, or as the HTML that GitHub shows of a Markdown file."""

import html
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

from examples.evaluate.reporting.blocks import Block, Bullets, Card, Details, Grid, Notes, Page, Picture, Text, clean
from examples.evaluate.reporting.charts import STYLE as CHART_STYLE

FIGURES = "figures"
STYLE = CHART_STYLE + Path(__file__).with_name("page.css").read_text(encoding="utf-8")
MARKS = {"holds": "🟢", "holds in part": "🟡", "does not hold": "🔴", "not measured": "⚪"}


def render_html(page: Page) -> str:
    """Render the page as one file."""
    title = _escape(page.title)
    return (
        "<!DOCTYPE html>\n"
        '<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{STYLE}</style></head>\n"
        f"<body><h1>{title}</h1>\n<main>\n{_render(page.blocks, is_file=True)}\n</main></body></html>\n"
    )


def render_markdown(page: Page) -> str:
    """Render the page for GitHub, which keeps no styles; charts are files in a folder beside it."""
    return f"<h1>{_escape(page.title)}</h1>\n\n{_render(page.blocks, is_file=False)}\n"


def _render(blocks: Sequence[Block], *, is_file: bool) -> str:
    """Render blocks; neighboring cards or charts share a grid."""
    parts = []
    for kind, group in groupby(blocks, type):
        inner = "\n".join(_block(block, is_file) for block in group)
        name = {Card: "cards", Picture: "charts"}.get(kind)
        parts.append(f'<div class="{name}">\n{inner}\n</div>' if name else inner)
    return "\n".join(parts)


def _block(block: Block, is_file: bool) -> str:
    """Render any block, as lines none of which is empty: Markdown would begin again after it."""
    match block:
        case Text(text, is_heading):
            return f"<h3>{_escape(text)}</h3>" if is_heading else f"<p>{_escape(text)}</p>"
        case Bullets(head, items):
            return f"<p>{_escape(head)}</p>\n<ul>{''.join(f'<li>{_escape(item)}</li>' for item in items)}</ul>"
        case Grid():
            return _grid(block)
        case Details(head, finding, blocks):
            line = f'<b>{_escape(head)}</b> <span class="muted">{_escape(finding)}</span>'
            return f"<details><summary>{line}</summary>\n{_render(blocks, is_file=is_file)}\n</details>"
        case Notes(markdown):
            return (
                f'<div class="notes">{render_notes(markdown)}</div>' if is_file else f"\n{clean(markdown).strip()}\n"
            )
        case Picture(name, caption, svg):
            chart = svg if is_file else f'<img src="{FIGURES}/{name}.svg" alt="{_escape(caption or name)}">'
            return f"<figure>{chart}<figcaption>{_escape(caption)}</figcaption></figure>"
    kind, mark = block.verdict.replace(" ", "-"), "" if is_file else f"{MARKS[block.verdict]} "
    return (
        f'<div class="card {kind}">\n<p>{mark}<b class="badge">{_escape(block.verdict)}</b> '
        f'<span class="muted">{_escape(block.note)}</span></p>\n'
        f"<h2>{_escape(block.statement)}</h2>\n<p>{_escape(block.text)}</p>\n"
        f"{_block(block.picture, is_file) if block.picture else ''}</div>"
    )


def _grid(grid: Grid) -> str:
    """Render a table that scrolls on its own if the page is too narrow."""
    head = "".join(f'<th scope="col">{_escape(text)}</th>' for text in grid.heads)
    lines = []
    for row, is_quoted in zip(grid.rows, grid.quoted or [False] * len(grid.rows), strict=True):
        cells = "".join(f"<td>{_escape(text)}</td>" for text in row)
        lines.append(f'<tr class="quoted">{cells}</tr>' if is_quoted else f"<tr>{cells}</tr>")
    kind, body = ' class="figures"' if grid.quoted else "", "\n".join(lines)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="Table"><table{kind}>\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>"
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
    """Join text to one line and escape it for elements and attributes alike."""
    return html.escape(clean(" ".join(text.split())))
