"""Pieces of a terminal's page: bars, blocks side by side, tables, facts, and figures as text."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.measure import Measurement
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from curate.display.text import one_line, safe


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


class Beside:
    """Blocks side by side where the console is wide enough for `least` cells each, else one under another."""

    def __init__(self, blocks: Sequence[RenderableType], least: int = 56) -> None:
        self.blocks = blocks
        self.least = least

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        columns = max(1, min(len(self.blocks), options.max_width // self.least))
        grid = Table.grid(expand=True, padding=(0, 3, 0, 0))
        for _ in range(columns):
            grid.add_column(ratio=1)
        for start in range(0, len(self.blocks), columns):
            if start:
                grid.add_row()
            grid.add_row(*self.blocks[start : start + columns])
        yield grid


def plain(expand: bool = False) -> Table:
    """Return a table without rules, its header dim."""
    return Table(box=None, expand=expand, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")


def facts() -> Table:
    """Return a grid of names and what they are."""
    facts = Table.grid(padding=(0, 2, 0, 0))
    facts.add_column(style="dim", no_wrap=True)
    facts.add_column()
    return facts


def add(facts: Table, name: str, value: RenderableType) -> None:
    """Add a line to a grid of facts."""
    facts.add_row(name, Text(value) if isinstance(value, str) else value)


def text(text: str, style: str = "") -> Text:
    """Return text of a record, a file or a user as it may be printed."""
    return Text(safe(text), style)


def line(text: str) -> str:
    """Return text of a record on one line."""
    return one_line(text, 400)


def number(count: int) -> str:
    """Return a whole number with its thousands parted."""
    return f"{count:,}"


def plural(count: int, noun: str, many: str = "") -> str:
    """Return a noun for so many."""
    return noun if count == 1 else many or f"{noun}s"


def ratio(part: int, whole: int) -> float:
    """Return a share, 0 of nothing."""
    return part / whole if whole else 0.0


def percent(part: int, whole: int) -> str:
    """Return a share in percent."""
    return f"{100 * ratio(part, whole):.1f} %"
