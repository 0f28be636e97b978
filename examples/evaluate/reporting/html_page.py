"""A page of the report as one HTML file without anything outside it; all text is escaped, nothing is run."""

import base64
import html
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

STYLE = """
:root { color-scheme: light dark; }
body { font: 1rem/1.6 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
h2 { border-top: 1px solid #8888; padding-top: 1rem; margin-top: 2.5rem; }
p, li { overflow-wrap: anywhere; max-width: 46rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 0.9rem; }
th, td { padding: 0.3rem 0.7rem; text-align: left; vertical-align: top; border-bottom: 1px solid #8884; }
th, td { min-width: 8rem; max-width: 28rem; }
.measured td, .quoted td, th { white-space: nowrap; min-width: 4rem; }
td:first-child { position: sticky; left: 0; background: Canvas; }
.quoted { font-style: italic; opacity: 0.8; }
.warning { border-left: 0.3rem solid #d55e00; padding-left: 0.7rem; }
.verdict { border: 1px solid; border-radius: 0.3em; padding: 0.1em 0.5em; white-space: nowrap; }
article { border-top: 1px solid #8888; padding: 0.5rem 0; }
.notes { white-space: pre-wrap; }
summary { cursor: pointer; }
article p { white-space: pre-wrap; unicode-bidi: isolate; margin: 0.4rem 0; }
mark { border-radius: 0.2em; color: inherit; background: color-mix(in srgb, #56b4e9 35%, transparent); }
figure { margin: 1rem 0; }
img { max-width: 100%; height: auto; background: white; border-radius: 0.3rem; }
small, figcaption { opacity: 0.8; }
"""


def render_html(page: Page) -> str:
    """Return one page, light or dark, wide or narrow."""
    title = _escape(page.title)
    listed = "".join(f'<li><a href="#{anchor(text)}">{_escape(text)}</a></li>' for text in page.sections)
    contents = [f'<nav aria-label="Contents"><ul>{listed}</ul></nav>'] if listed else []
    blocks = [_block(block) for block in page.blocks]
    body = "\n".join([*blocks[: page.opening], *contents, *blocks[page.opening :]])
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
            listed = "".join(f"<li>{_escape(item)}</li>" for item in items)
            return f"<p>{_escape(head)}</p><ul>{listed}</ul>"
        case Grid(heads, rows, kinds):
            return _grid(heads, rows, kinds)
        case Details(head, blocks):
            folded = "\n".join(_block(one) for one in blocks)
            return f"<details><summary>{_escape(head)}</summary>\n{folded}\n</details>"
        case Link(text, section):
            return f'<p><a href="#{anchor(section)}">{_escape(text)}</a></p>'
        case Answer(question, verdict):
            return f'<p>{_escape(question)} <strong class="verdict">{_escape(verdict)}</strong></p>'
        case Story():
            return _story(block)
        case Notes(markdown):
            return f'<p class="notes">{_escape(markdown.strip())}</p>'
    data = base64.b64encode(block.svg).decode()
    return (
        f'<figure><img src="data:image/svg+xml;base64,{data}" alt="{_escape(block.alternative)}">'
        f"<figcaption>{_escape(block.caption)}</figcaption></figure>"
    )


def _grid(heads: Sequence[str], rows: Sequence[Sequence[str]], kinds: Sequence[str]) -> str:
    """Return a table that scrolls by itself where the page is too narrow."""
    head = "".join(f'<th scope="col">{_escape(text)}</th>' for text in heads)
    lines = []
    for row, kind in zip(rows, kinds or [""] * len(rows), strict=True):
        cells = "".join(f"<td>{_escape(text)}</td>" for text in row)
        lines.append(f'<tr class="{_escape(kind)}">{cells}</tr>' if kind else f"<tr>{cells}</tr>")
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="Table"><table><thead><tr>{head}</tr></thead>\n'
        f"<tbody>{chr(10).join(lines)}</tbody></table></div>"
    )


def _story(story: Story) -> str:
    """Return all systems under each other, what they wrote marked in its place."""
    parts = []
    for system, text in story.writings:
        before, written, behind = map(_escape, story.around(text))
        place = f"{before}<mark>{written}</mark>{behind}"
        parts.append(f"<small>{_escape(system)}</small><p>{place}</p>")
    return f"<article><h4>{_escape(story.title)}</h4>{''.join(parts)}</article>"


def _escape(text: str) -> str:
    """Escape text for elements and attributes alike."""
    return html.escape(clean(text))


__all__ = ["render_html"]
