"""Pieces of a page: text that can neither run nor hide anything, facts, and tables that can be sorted."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from curate.display.figures import number
from curate.display.text import safe

ROLES = ("system", "user", "assistant", "tool")
OVERHEAD = 100  # bytes about an article

STACKED = 5  # columns from which a table's rows are laid out as blocks on a narrow screen

Format = Callable[[float], str]


class Formatted(NamedTuple):
    """A figure that is written already, and the value it sorts by."""

    text: str
    value: float


Cell = str | int | float | Formatted | None


def escape(value: object) -> str:
    """Return any value as text for a page: escaped, control characters and direction marks made visible."""
    return html.escape(safe(str(value)))


def byte_size(shown: str) -> int:
    """Return how many bytes something takes on a page."""
    return len(shown.encode("utf-8", "backslashreplace"))


def definition_list(pairs: Iterable[tuple[str, str]]) -> str:
    """Return names and what they are; the values are HTML already."""
    rows = "".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in pairs if value)
    return f"<dl>{rows}</dl>"


def table(
    caption: str, heading: Sequence[str], rows: Iterable[Sequence[Cell]], formats: Mapping[str, Format] | None = None
) -> str:
    """Return a table; numbers are aligned to the right, sort by value, and are written by their column's `formats`."""
    written = [(formats or {}).get(name, number) for name in heading]
    stacked = len(heading) >= STACKED
    labels = [f' data-label="{escape(name)}"' if stacked else "" for name in heading]
    body = "".join(
        f"<tr>{''.join(_cell(*cell) for cell in zip(row, written, labels, strict=True))}</tr>" for row in rows
    )
    if not body:
        return ""
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in heading)
    kind = "sortable stacked" if stacked else "sortable"
    return (
        f'<div class="wide" tabindex="0" role="region" aria-label="{escape(caption)}"><table class="{kind}">'
        f"<caption>{escape(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _cell(value: Cell, written: Format, label: str) -> str:
    if isinstance(value, str) or value is None:
        return f"<td{label}>{escape(value or '')}</td>"
    found = value if isinstance(value, Formatted) else Formatted(written(value), value)
    return f'<td class="n" data-v="{found.value}"{label}>{escape(found.text)}</td>'


def section(name: str, title: str, body: str) -> str:
    """Return a section with its heading, nothing where there is nothing in it."""
    return (
        f'<section id="{name}" aria-labelledby="{name}-h"><h2 id="{name}-h">{title}</h2>{body}</section>'
        if body
        else ""
    )


def message_block(role: str, body: str, note: str = "") -> str:
    """Return a message: the name of its role, and its body, which is HTML already."""
    shown = f' <span class="note">{escape(note)}</span>' if note else ""
    known = role if role in ROLES else "other"
    return f'<div class="turn {known}"><p class="role">{escape(role)}{shown}</p>{body}</div>'


def preformatted(shown: str) -> str:
    """Return text, escaped already, as it was typed; its direction is told from its letters."""
    return f'<div class="plain" dir="auto">{shown}</div>'


def truncate(content: str, most: int) -> str:
    """Return a text's first `most` characters and how many more there are, or all of it where few are left."""
    left = len(content) - most
    return content if left <= most // 10 else f"{content[:most]}\n… {number(left)} more characters"


def chart(kind: str, label: str, rows: int = 0) -> str:
    """Return the place that page.js draws a chart in; `rows` are the bars of one that grows with them."""
    style = f' style="height:{max(rows, 1) * 26 + 24}px"' if rows else ""
    return f'<div class="chart" data-chart="{escape(kind)}" role="img" aria-label="{escape(label)}"{style}></div>'


def collapsible(summary: str, body: str, unfolded: bool = False) -> str:
    """Return something folded away under a line."""
    return f"<details{' open' * unfolded}><summary>{summary}</summary>{body}</details>" if body else ""


def navigation(parts: Iterable[tuple[str, str, str]]) -> str:
    """Return links to the parts of a page that there are: name, heading and body of each."""
    links = "".join(f'<a href="#{name}">{heading}</a>' for name, heading, body in parts if body)
    return f'<nav aria-label="parts of this page">{links}</nav>'


def collapsible_groups(groups: Iterable[tuple[str, Sequence[str]]], room: int) -> str:
    """Return groups of conversations, folded away but for the first, as many as there is room for in bytes."""
    shown = ""
    for title, articles in groups:
        found: list[str] = []
        for article in articles:
            taken = byte_size(article) + OVERHEAD
            if taken < room:
                found.append(article)
                room -= taken
        shown += collapsible(f"{title} <span>{len(found)}</span>", "".join(found), unfolded=not shown)
    return shown


def footer(version: str) -> str:
    """Return the end of a page's body."""
    return f"</main><footer><p>curate {escape(version)}</p></footer>"
