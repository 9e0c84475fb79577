"""Pieces of a page: text that can neither run nor hide anything, facts, and tables that can be sorted."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

from curate.display.text import safe

OVERHEAD = 100  # bytes about an article

Cell = str | int | float | None


def text(value: object) -> str:
    """Return any value as text for a page: escaped, control characters and direction marks made visible."""
    return escape(safe(str(value)))


def size(shown: str) -> int:
    """Return how many bytes something takes on a page."""
    return len(shown.encode("utf-8", "backslashreplace"))


def number(value: float) -> str:
    """Return a number with its thousands parted."""
    return f"{value:,}" if isinstance(value, int) else f"{value:,.1f}"


def plural(count: int, noun: str) -> str:
    """Return a noun for so many."""
    return noun if count == 1 else f"{noun}s"


def percent(part: float, whole: float) -> str:
    """Return a share in percent."""
    return f"{100 * part / whole if whole else 0:.1f} %"


def facts(pairs: Iterable[tuple[str, str]]) -> str:
    """Return names and what they are; the values are HTML already."""
    rows = "".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in pairs if value)
    return f"<dl>{rows}</dl>"


def table(caption: str, heading: Sequence[str], rows: Iterable[Sequence[Cell]], shown: Sequence[str] = ()) -> str:
    """Return a table; numbers stand to the right and sort by value. `shown` names columns that are shares (0 to 1)."""
    body = "".join(
        f"<tr>{''.join(_cell(cell, name in shown) for cell, name in zip(row, heading, strict=True))}</tr>"
        for row in rows
    )
    if not body:
        return ""
    head = "".join(f'<th scope="col">{text(name)}</th>' for name in heading)
    return (
        f'<div class="wide" tabindex="0" role="region" aria-label="{text(caption)}"><table class="sortable">'
        f"<caption>{text(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _cell(value: Cell, is_share: bool) -> str:
    if isinstance(value, str) or value is None:
        return f"<td>{text(value or '')}</td>"
    shown = f"{100 * value:.1f} %" if is_share else number(value)
    return f'<td class="n" data-v="{value}">{shown}</td>'


def section(name: str, title: str, body: str) -> str:
    """Return a section with its heading, nothing where there is nothing in it."""
    return (
        f'<section id="{name}" aria-labelledby="{name}-h"><h2 id="{name}-h">{title}</h2>{body}</section>'
        if body
        else ""
    )


def chart(kind: str, label: str, rows: int = 0) -> str:
    """Return the place that page.js draws a chart in; `rows` are the bars of one that grows with them."""
    style = f' style="height:{max(rows, 1) * 26 + 24}px"' if rows else ""
    return f'<div class="chart" data-chart="{text(kind)}" role="img" aria-label="{text(label)}"{style}></div>'


def more(summary: str, body: str, unfolded: bool = False) -> str:
    """Return something folded away under a line."""
    return f"<details{' open' * unfolded}><summary>{summary}</summary>{body}</details>" if body else ""


def jumps(parts: Iterable[tuple[str, str, str]]) -> str:
    """Return links to the parts of a page that there are: name, heading and body of each."""
    links = "".join(f'<a href="#{name}">{heading}</a>' for name, heading, body in parts if body)
    return f'<nav aria-label="parts of this page">{links}</nav>'


def fitting(groups: Iterable[tuple[str, Sequence[str]]], room: int) -> str:
    """Return groups of conversations, folded away but for the first, as many as there is room for in bytes."""
    shown = ""
    for title, articles in groups:
        found: list[str] = []
        for article in articles:
            taken = size(article) + OVERHEAD
            if taken < room:
                found.append(article)
                room -= taken
        shown += more(f"{title} <span>{len(found)}</span>", "".join(found), unfolded=not shown)
    return shown


def foot(version: str) -> str:
    """Return the end of a page's body."""
    return f"</main><footer><p>curate {text(version)}</p></footer>"
