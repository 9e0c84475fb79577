"""Parts of a terminal report: bars, columns of blocks, tables of numbers, label grids."""

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
MIN_NAME, MIN_LAST = 16, 6  # minimum width in cells: of the names, and of the last column (bars or examples)


class Bar:
    """A bar as long as `share` (0 to 1) of the available width, in ASCII if the output has no Unicode."""

    def __init__(self, share: float, style: str = "cyan") -> None:
        self.share = min(max(share, 0.0), 1.0)
        self.style = style

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        eighths = round(self.share * options.max_width * 8)
        if self.share and not eighths:
            eighths = 1
        full, remainder = divmod(eighths, 8)
        if options.ascii_only:
            text = "#" * (full + (remainder >= 4 or (not full and remainder > 0)))
        else:
            text = "█" * full + " ▏▎▍▌▋▊▉"[remainder].strip()
        yield Segment(text, console.get_style(self.style))

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(min(6, options.max_width), options.max_width)


@dataclass(frozen=True)
class Row:
    """A row of a `NumberTable`; `last` is its cell in the last column."""

    name: Text
    numbers: Sequence[str | Text]
    last: RenderableType = ""


class NumberTable:
    """A table of names and numbers: on a narrow console names are cut and headings wrap, but numbers stay whole.

    `title` is the heading of the names, which take at most `max_name` cells; None omits the column. `last` is the
    heading of the last column, which has bars or examples and takes the remaining width; None omits it. If the console
    is too narrow for the numbers, the table is wider than the console.
    """

    def __init__(
        self,
        title: str | None,
        headings: Sequence[str],
        rows: Sequence[Row],
        *,
        last: str | None = None,
        max_name: int = 28,
    ) -> None:
        self.title = title
        self.headings = headings
        self.rows = rows
        self.last = last
        self.max_name = max_name

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        names, figures, last = self._widths(options.max_width)
        table = plain_table()
        if self.title is not None:
            table.add_column(self.title, width=names)
        for heading, width in zip(self.headings, figures, strict=True):
            table.add_column(heading, width=width, justify="right")
        if self.last is not None:
            table.add_column(self.last, width=last)
        for row in self.rows:
            name = [_fit(row.name, names)] if self.title is not None else []
            tail = [_fit(row.last, last)] if self.last is not None else []
            table.add_row(*name, *row.numbers, *tail)
        yield from console.render(table, options.update(width=max(options.max_width, self._min_width)))

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        full = options.max_width if self.last is not None else self._total(*self._widths(options.max_width))
        return Measurement(self._min_width, max(self._min_width, full))

    @property
    def _min_width(self) -> int:
        return self._total(min(MIN_NAME, self._full_name), self._figures(wrapped=True), MIN_LAST)

    @property
    def _full_name(self) -> int:
        return min(self.max_name, max([cells(self.title or ""), *(row.name.cell_len for row in self.rows)]))

    def _widths(self, room: int) -> tuple[int, list[int], int]:
        """Return the widths of the name column, of each number column, and of the last column."""
        min_name = min(MIN_NAME, self._full_name)
        figures = self._figures(wrapped=False)
        if self._total(min_name, figures, MIN_LAST) > room:
            figures = self._figures(wrapped=True)
        names = max(min_name, min(self._full_name, room - self._total(0, figures, MIN_LAST)))
        return names, figures, max(MIN_LAST, room - self._total(names, figures, 0))

    def _figures(self, wrapped: bool) -> list[int]:
        widths = []
        for index, heading in enumerate(self.headings):
            lines = heading.split() if wrapped else [heading]
            texts = [*lines, *(str(row.numbers[index]) for row in self.rows)]
            widths.append(max(map(cells, texts)))
        return widths

    def _total(self, names: int, figures: Sequence[int], last: int) -> int:
        columns = [names] * (self.title is not None) + [*figures] + [last] * (self.last is not None)
        return sum(columns) + GAP * (len(columns) - 1)


def _fit(cell: RenderableType, width: int) -> RenderableType:
    return Text(one_line(cell.plain, width), cell.style) if isinstance(cell, Text) else cell


class SideBySide:
    """Blocks in columns: as many columns as fit, each of at least `min_width` cells and as wide as its numbers."""

    def __init__(self, blocks: Sequence[RenderableType], min_width: int = 56) -> None:
        self.blocks = blocks
        self.min_width = min_width

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        needed = [Measurement.get(console, options, block).minimum + 3 for block in self.blocks]
        columns = max(1, min(len(self.blocks), options.max_width // max([self.min_width, *needed])))
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
    """Return a table without borders, with a dim header."""
    return Table(box=None, expand=expand, pad_edge=False, padding=(0, GAP, 0, 0), header_style="dim")


def label_grid() -> Table:
    """Return a grid of labels and values."""
    grid = Table.grid(padding=(0, 2, 0, 0))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column()
    return grid


def add_row(grid: Table, label: str, value: RenderableType) -> None:
    """Add a line to a label grid."""
    grid.add_row(label, Text(value) if isinstance(value, str) else value)


def safe_text(text: str, style: str = "") -> Text:
    """Return untrusted text with control characters made visible."""
    return Text(safe(text), style)


def safe_line(text: str) -> str:
    """Return untrusted text on one line of at most 400 cells."""
    return one_line(text, 400)
