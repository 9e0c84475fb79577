"""Parts of a page: escaped text, definition lists, sortable tables, messages, collapsible blocks."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from curate.display.figures import number
from curate.display.text import safe

ROLES = ("system", "user", "assistant", "tool")
OVERHEAD = 100  # bytes of markup around an article
STACKED = 5  # rows of tables with at least this many columns become blocks on a narrow screen

Format = Callable[[float], str]


class Formatted(NamedTuple):
    """A formatted number, and the value to sort it by."""

    text: str
    value: float


Cell = str | int | float | Formatted | None


def escape(value: object) -> str:
    """Return a value as text for a page: escaped, with control characters and direction marks made visible."""
    return html.escape(safe(str(value)))


def byte_size(text: str) -> int:
    """Return the size of a text in bytes of UTF-8."""
    return len(text.encode("utf-8", "backslashreplace"))


def definition_list(pairs: Iterable[tuple[str, str]]) -> str:
    """Return names and values, both HTML, as a definition list; empty values are left out."""
    rows = "".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in pairs if value)
    return f"<dl>{rows}</dl>"


def table(
    caption: str, heading: Sequence[str], rows: Iterable[Sequence[Cell]], formats: Mapping[str, Format] | None = None
) -> str:
    """Return a sortable table, or nothing if there are no rows; `formats` has number formats by column heading."""
    columns = [(formats or {}).get(name, number) for name in heading]
    stacked = len(heading) >= STACKED
    labels = [f' data-label="{escape(name)}"' if stacked else "" for name in heading]
    body = "".join(
        f"<tr>{''.join(_cell(*cell) for cell in zip(row, columns, labels, strict=True))}</tr>" for row in rows
    )
    if not body:
        return ""
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in heading)
    kind = "sortable stacked" if stacked else "sortable"
    return (
        f'<div class="wide" tabindex="0" role="region" aria-label="{escape(caption)}"><table class="{kind}">'
        f"<caption>{escape(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def _cell(value: Cell, write: Format, label: str) -> str:
    if isinstance(value, str) or value is None:
        return f"<td{label}>{escape(value or '')}</td>"
    cell = value if isinstance(value, Formatted) else Formatted(write(value), value)
    return f'<td class="n" data-v="{cell.value}"{label}>{escape(cell.text)}</td>'


def section(name: str, title: str, body: str) -> str:
    """Return a section with its heading, or nothing if its body is empty."""
    return (
        f'<section id="{name}" aria-labelledby="{name}-h"><h2 id="{name}-h">{title}</h2>{body}</section>'
        if body
        else ""
    )


def message_block(role: str, body: str, note: str = "") -> str:
    """Return a message: its role, and its body, which is HTML."""
    shown = f' <span class="note">{escape(note)}</span>' if note else ""
    known = role if role in ROLES else "other"
    return f'<div class="message {known}"><p class="role">{escape(role)}{shown}</p>{body}</div>'


def preformat(body: str) -> str:
    """Return escaped text as typed; the browser detects its direction."""
    return f'<div class="plain" dir="auto">{body}</div>'


def truncate(content: str, limit: int) -> str:
    """Return a text's first `limit` characters and how many follow; all of it if it is at most a tenth longer."""
    excess = len(content) - limit
    return content if excess <= limit // 10 else f"{content[:limit]}\n… {number(excess)} more characters"


def chart(kind: str, label: str, rows: int = 0) -> str:
    """Return the element that page.js draws a chart in; its height grows with `rows`, if given."""
    style = f' style="height:{max(rows, 1) * 26 + 24}px"' if rows else ""
    return f'<div class="chart" data-chart="{escape(kind)}" role="img" aria-label="{escape(label)}"{style}></div>'


def collapsible(summary: str, body: str, is_open: bool = False) -> str:
    """Return a body folded under a summary line, or nothing if the body is empty."""
    return f"<details{' open' * is_open}><summary>{summary}</summary>{body}</details>" if body else ""


def navigation(parts: Iterable[tuple[str, str, str]]) -> str:
    """Return links to the parts of a page (id, heading, body) that are not empty."""
    links = "".join(f'<a href="#{name}">{heading}</a>' for name, heading, body in parts if body)
    return f'<nav aria-label="parts of this page">{links}</nav>'


def collapsible_groups(groups: Iterable[tuple[str, Sequence[str]]], room: int) -> str:
    """Return groups of articles, only the first unfolded; articles that exceed `room` bytes are left out."""
    blocks = ""
    for title, articles in groups:
        kept: list[str] = []
        for article in articles:
            size = byte_size(article) + OVERHEAD
            if size < room:
                kept.append(article)
                room -= size
        blocks += collapsible(f"{title} <span>{len(kept)}</span>", "".join(kept), is_open=not blocks)
    return blocks


def footer(version: str) -> str:
    """Return the end of a page's body: it closes <main>."""
    return f"</main><footer><p>curate {escape(version)}</p></footer>"
