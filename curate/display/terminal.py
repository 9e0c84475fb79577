"""Parts of a terminal report: bars, blocks side by side, tables of figures, facts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.measure import Measurement
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from curate.display.text import cells, one_line, safe

GAP = 2  # cells between the columns of a table
LEAST_NAME, LEAST_REST = 16, 6  # cells that a table of figures leaves to names, and to bars or examples


class Bar:
    """A bar of `share` (0 to 1) of the width that is left to it; ASCII where the output can do no more."""

    def __init__(self, share: float, style: str = "cyan") -> None:
        self.share = min(max(share, 0.0), 1.0)
        self.style = style

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        eighths = round(self.share * options.max_width * 8)
        if self.share and not eighths:
            eighths = 1
        full, rest = divmod(eighths, 8)
        if options.ascii_only:
            text = "#" * (full + (rest >= 4 or (not full and rest > 0)))
        else:
            text = "█" * full + " ▏▎▍▌▋▊▉"[rest].strip()
        yield Segment(text, console.get_style(self.style))

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(min(6, options.max_width), options.max_width)


@dataclass(frozen=True)
class Row:
    """A row of a `NumberTable`; `rest` fills what the figures leave of the width."""

    name: Text
    figures: Sequence[str | Text]
    rest: RenderableType = ""


class NumberTable:
    """A table of names and figures: where it is narrow, names are cut and headings wrap, but no figure is cut.

    `title` heads the names, which take `most_name` cells at most; None leaves them out. A `rest` heads the last
    column, of bars or examples. On a console too narrow for the figures the table is wider than the console.
    """

    def __init__(
        self,
        title: str | None,
        headings: Sequence[str],
        rows: Sequence[Row],
        *,
        rest: str | None = None,
        most_name: int = 28,
    ) -> None:
        self.title = title
        self.headings = headings
        self.rows = rows
        self.rest = rest
        self.most_name = most_name

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        names, figures, rest = self._widths(options.max_width)
        table = plain_table()
        if self.title is not None:
            table.add_column(self.title, width=names)
        for heading, width in zip(self.headings, figures, strict=True):
            table.add_column(heading, width=width, justify="right")
        if self.rest is not None:
            table.add_column(self.rest, width=rest)
        for row in self.rows:
            name = [_fitted(row.name, names)] if self.title is not None else []
            tail = [_fitted(row.rest, rest)] if self.rest is not None else []
            table.add_row(*name, *row.figures, *tail)
        yield from console.render(table, options.update(width=max(options.max_width, self._least)))

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        full = options.max_width if self.rest is not None else self._total(*self._widths(options.max_width))
        return Measurement(self._least, max(self._least, full))

    @property
    def _least(self) -> int:
        return self._total(min(LEAST_NAME, self._full_name), self._figures(wrapped=True), LEAST_REST)

    @property
    def _full_name(self) -> int:
        return min(self.most_name, max([cells(self.title or ""), *(row.name.cell_len for row in self.rows)]))

    def _widths(self, room: int) -> tuple[int, list[int], int]:
        """Return the widths of the names, of each column of figures, and of the rest."""
        least = min(LEAST_NAME, self._full_name)
        figures = self._figures(wrapped=False)
        if self._total(least, figures, LEAST_REST) > room:
            figures = self._figures(wrapped=True)
        names = max(least, min(self._full_name, room - self._total(0, figures, LEAST_REST)))
        return names, figures, max(LEAST_REST, room - self._total(names, figures, 0))

    def _figures(self, wrapped: bool) -> list[int]:
        widths = []
        for place, heading in enumerate(self.headings):
            words = heading.split() if wrapped else [heading]
            shown = [*words, *(str(row.figures[place]) for row in self.rows)]
            widths.append(max(map(cells, shown)))
        return widths

    def _total(self, names: int, figures: Sequence[int], rest: int) -> int:
        columns = [names] * (self.title is not None) + [*figures] + [rest] * (self.rest is not None)
        return sum(columns) + GAP * (len(columns) - 1)


def _fitted(cell: RenderableType, width: int) -> RenderableType:
    return Text(one_line(cell.plain, width), cell.style) if isinstance(cell, Text) else cell


class SideBySide:
    """Blocks side by side where each has `least` cells and the width that its figures need, else in one column."""

    def __init__(self, blocks: Sequence[RenderableType], least: int = 56) -> None:
        self.blocks = blocks
        self.least = least

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        needed = [Measurement.get(console, options, block).minimum + 3 for block in self.blocks]
        columns = max(1, min(len(self.blocks), options.max_width // max([self.least, *needed])))
        if columns == 1:
            yield Group(*[part for block in self.blocks for part in (block, Text())][:-1])
            return
        grid = Table.grid(expand=True, padding=(0, 3, 0, 0))
        for _ in range(columns):
            grid.add_column(ratio=1)
        for start in range(0, len(self.blocks), columns):
            if start:
                grid.add_row()
            grid.add_row(*self.blocks[start : start + columns])
        yield grid


def plain_table(expand: bool = False) -> Table:
    """Return a table without rules, its header dim."""
    return Table(box=None, expand=expand, pad_edge=False, padding=(0, GAP, 0, 0), header_style="dim")


def label_grid() -> Table:
    """Return a grid of names and what they are."""
    facts = Table.grid(padding=(0, 2, 0, 0))
    facts.add_column(style="dim", no_wrap=True)
    facts.add_column()
    return facts


def add_row(facts: Table, name: str, value: RenderableType) -> None:
    """Add a line to a grid of facts."""
    facts.add_row(name, Text(value) if isinstance(value, str) else value)


def safe_text(text: str, style: str = "") -> Text:
    """Return text of a record, a file or a user as it may be printed."""
    return Text(safe(text), style)


def safe_line(text: str) -> str:
    """Return text of a record on one line."""
    return one_line(text, 400)
