"""Render accessible HTML tables of numbers: each cell has its number and a shade."""

import html
from collections.abc import Sequence


def shade(value: float, *, minimum: float, maximum: float) -> int:
    """Return the shade of a cell in percent.

    Example:
        >>> shade(0.75, minimum=0.5, maximum=1.0), shade(0.3, minimum=0.5, maximum=1.0)
        (50, 0)
    """
    if maximum <= minimum:
        return 100 if value >= maximum else 0
    return round(100 * min(max((value - minimum) / (maximum - minimum), 0.0), 1.0))


def render_heatmap(
    values: Sequence[Sequence[float]],
    *,
    caption: str,
    rows: Sequence[str],
    columns: Sequence[str],
    corner: str,
    minimum: float,
    maximum: float,
    digits: int = 2,
) -> str:
    """Render a table with a caption and headings that scrolls sideways on a narrow page."""
    head = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in columns)
    body = ""
    for name, row in zip(rows, values, strict=True):
        cells = "".join(
            f'<td style="--shade:{shade(value, minimum=minimum, maximum=maximum)}%">{value:.{digits}f}</td>'
            for value in row
        )
        body += f'<tr><th scope="row">{html.escape(name)}</th>{cells}</tr>'
    return _table("heat", caption=caption, corner=html.escape(corner), head=head, body=body)


def render_grid(
    allowed: Sequence[Sequence[bool]], *, caption: str, names: Sequence[str], segments: Sequence[int]
) -> str:
    """Render an attention mask: a cell is filled if the row's token attends to the column's."""
    kinds = ["span" if segment else "context" for segment in segments]
    head = "".join(
        f'<th scope="col" class="{kind}"><span>{html.escape(name)}</span></th>'
        for name, kind in zip(names, kinds, strict=True)
    )
    body = ""
    for name, own, row in zip(names, kinds, allowed, strict=True):
        cells = "".join(
            f'<td class="{kind}"><span class="unseen">yes</span></td>'
            if cell
            else '<td><span class="unseen">no</span></td>'
            for cell, kind in zip(row, kinds, strict=True)
        )
        body += f'<tr><th scope="row" class="{own}">{html.escape(name)}</th>{cells}</tr>'
    return _table("mask", caption=caption, corner='<span class="unseen">token</span>', head=head, body=body)


def _table(kind: str, *, caption: str, corner: str, head: str, body: str) -> str:
    """Return a table with a caption that scrolls sideways on a narrow page."""
    title = html.escape(caption, quote=True)
    return (
        f'<div class="wide" tabindex="0" role="region" aria-label="{title}"><table class="{kind}">'
        f'<caption><span>{title}</span></caption><thead><tr><th scope="col">{corner}</th>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )
