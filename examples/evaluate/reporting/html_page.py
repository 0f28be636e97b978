"""Render a page as one HTML file that loads and runs nothing; all text is escaped."""

import base64
import html

from examples.evaluate.reporting.blocks import Block, Bullets, Details, Grid, Heading, Notes, Page, Text, anchor, clean

STYLE = """
:root { color-scheme: light dark; }
body { font: 1rem/1.6 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
h2 { border-top: 1px solid #8888; padding-top: 1rem; margin-top: 2.5rem; }
p, li { overflow-wrap: anywhere; max-width: 46rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 0.9rem; }
th, td { padding: 0.3rem 0.7rem; text-align: left; vertical-align: top; border-bottom: 1px solid #8884; }
td:first-child { position: sticky; left: 0; background: Canvas; }
.quoted { font-style: italic; opacity: 0.8; }
.warning { border-left: 0.3rem solid #d55e00; padding-left: 0.7rem; }
.notes { white-space: pre-wrap; }
summary { cursor: pointer; }
img { max-width: 100%; height: auto; background: white; }
"""


def render_html(page: Page) -> str:
    """Render the page as HTML."""
    title = _escape(page.title)
    items = "".join(f'<li><a href="#{anchor(text)}">{_escape(text)}</a></li>' for text in page.contents)
    contents = [f'<nav aria-label="Contents"><ul>{items}</ul></nav>'] if items else []
    body = "\n".join([*map(_block, page.opening), *contents, *map(_block, page.sections)])
    return (
        "<!DOCTYPE html>\n"
        '<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{STYLE}</style></head>\n"
        f"<body><h1>{title}</h1>\n<main>\n{body}\n</main></body></html>\n"
    )


def _block(block: Block) -> str:
    """Render any block."""
    match block:
        case Heading(level, text):
            return f'<h{level} id="{anchor(text)}">{_escape(text)}</h{level}>'
        case Text(text, is_warning):
            return f'<p class="warning">{_escape(text)}</p>' if is_warning else f"<p>{_escape(text)}</p>"
        case Bullets(head, items):
            return f"<p>{_escape(head)}</p><ul>{''.join(f'<li>{_escape(item)}</li>' for item in items)}</ul>"
        case Grid():
            return _grid(block)
        case Details(head, blocks):
            folded = "\n".join(map(_block, blocks))
            return f"<details><summary>{_escape(head)}</summary>\n{folded}\n</details>"
        case Notes(markdown):
            return f'<p class="notes">{_escape(markdown.strip())}</p>'
    data = base64.b64encode(block.svg).decode()
    caption = _escape(block.caption)
    return (
        f'<figure><img src="data:image/svg+xml;base64,{data}" alt="{caption}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _grid(grid: Grid) -> str:
    """Render a table that scrolls on its own if the page is too narrow."""
    head = "".join(f'<th scope="col">{_escape(text)}</th>' for text in grid.heads)
    lines = []
    for row, is_quoted in zip(grid.rows, grid.quoted or [False] * len(grid.rows), strict=True):
        cells = "".join(f"<td>{_escape(text)}</td>" for text in row)
        lines.append(f'<tr class="quoted">{cells}</tr>' if is_quoted else f"<tr>{cells}</tr>")
    body = "\n".join(lines)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="Table"><table><thead><tr>{head}</tr></thead>\n'
        f"<tbody>{body}</tbody></table></div>"
    )


def _escape(text: str) -> str:
    """Escape text for elements and attributes alike."""
    return html.escape(clean(text))
