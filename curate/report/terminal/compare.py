"""The terminal report of a comparison, and the rows that it shares with the HTML page."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.text import Text

from curate.analysis.comparison import Comparison, PairedHistogram, RuleDifference, Side
from curate.analysis.stats import Stats
from curate.display import terminal
from curate.display.figures import number, percent, plural, ratio
from curate.display.terminal import NumberTable, Row, safe_line

NAMES_SHOWN = 12  # of a list; JSON has them all
COLUMNS = ("first", "second")
SIDES = ("the first set", "the second set")


@dataclass(frozen=True)
class NumberPair:
    """One number in both sets."""

    name: str
    first: float
    second: float

    @property
    def change(self) -> str:
        """The difference in percent of the first set's number."""
        if self.first == self.second:
            return "="
        return percent(self.second - self.first, self.first, signed=True) if self.first else "new"


@dataclass(frozen=True)
class SharePair:
    """One name in both sets: its counts and its shares (0 to 1)."""

    name: str
    first: int
    first_share: float
    second: int
    second_share: float

    @property
    def change(self) -> str:
        """The difference of the shares in percentage points."""
        points = 100 * (self.second_share - self.first_share)
        return "=" if abs(points) < 0.05 else f"{points:+.1f}"


def render_comparison(comparison: Comparison) -> RenderableType:
    """Render a comparison."""
    blocks: list[RenderableType | None] = [
        _header(comparison),
        _setting_differences(comparison),
        _side(comparison.only_one, *SIDES),
        _side(comparison.only_other, *SIDES[::-1]),
        _numbers("numbers", total_figures(comparison)),
        terminal.SideBySide([_numbers(title, rows) for title, rows in length_figures(comparison)]),
        terminal.SideBySide([_shares(title, unit, rows) for title, unit, rows in name_shares(comparison)]),
    ]
    shown = [block for block in blocks if block is not None]
    return Group(*[part for block in shown for part in (block, Text())][:-1])


def total_figures(comparison: Comparison) -> list[NumberPair]:
    """Return the totals of both sets: records, pieces, tokens and training."""
    first, second = comparison.one, comparison.other
    pairs = {
        "records read": (first.header.read, second.header.read),
        "records kept": (first.header.kept, second.header.kept),
        "pieces": (first.flow.pieces, second.flow.pieces),
        "tokens": (first.header.tokens, second.header.tokens),
        "tokens trained on": (first.header.answer_tokens, second.header.answer_tokens),
        "exchanges removed": (first.flow.rejected_exchanges, second.flow.rejected_exchanges),
        "duplicates": (first.duplicates.rejected, second.duplicates.rejected),
        "steps of the default fine-tune": (first.training.steps, second.training.steps),
    }
    return [NumberPair(name, *values) for name, values in pairs.items()]


def length_figures(comparison: Comparison) -> Iterator[tuple[str, list[NumberPair]]]:
    """Yield the title of each histogram that both sets have, with its mean and percentiles."""
    second_by_name = {histogram.name: histogram for histogram in comparison.other.histograms}
    for first in comparison.one.histograms:
        second = second_by_name.get(first.name)
        if second is None or not (first.count and second.count):
            continue
        rows = [NumberPair("mean", first.mean, second.mean)]
        rows += [NumberPair(name, value, second.percentiles[name]) for name, value in first.percentiles.items()]
        yield first.title, [*rows, NumberPair("longest", first.maximum, second.maximum)]


def name_shares(comparison: Comparison) -> Iterator[tuple[str, str, list[SharePair]]]:
    """Yield the title and unit of each list of names, with the shares in both sets."""
    first, second = both = comparison.one, comparison.other
    flow = [{step.rule: step.first for step in stats.flow.steps} for stats in both]
    yield "rejected by", "records", _share_pairs(flow, (first.header.read, second.header.read))
    for title, name in (("languages", "languages"), ("models", "models"), ("train and eval", "splits")):
        shares = [{share.name: share.pieces for share in getattr(stats, name)} for stats in both]
        yield title, "pieces", _share_pairs(shares, (first.flow.pieces, second.flow.pieces))
    for title, name, unit in (("roles", "roles", "messages"), ("repairs", "edits", "times")):
        counts = [{count.name: count.count for count in getattr(stats, name)} for stats in both]
        yield title, unit, _share_pairs(counts, (sum(counts[0].values()), sum(counts[1].values())))


def _share_pairs(counts: Sequence[dict[str, int]], totals: tuple[int, int]) -> list[SharePair]:
    first, second = counts
    pairs = []
    for name in sorted({*first, *second}):
        count, second_count = first.get(name, 0), second.get(name, 0)
        pairs.append(SharePair(name, count, ratio(count, totals[0]), second_count, ratio(second_count, totals[1])))
    return sorted(pairs, key=lambda pair: -max(pair.first, pair.second))


def format_setting(value: object) -> str:
    """Format a setting as recipes write it."""
    return "–" if value is None else json.dumps(value, ensure_ascii=False)


def describe_side(side: Side, keeper: str, loser: str) -> str:
    """Describe in one line the records that only one set keeps."""
    count = f"{number(side.records)} {plural(side.records, 'record')} kept in {keeper} but not in {loser}"
    return count + (f"; {number(side.absent)} of them were not read there" if side.absent else "")


def describe_matching(comparison: Comparison) -> str:
    """Describe how records are matched, and how many both sets keep."""
    key = "position in the input" if comparison.matched_by == "place" else "id, since the input files differ"
    return f"{number(comparison.kept_by_both)} records kept by both, matched by their {key}"


def _header(comparison: Comparison) -> RenderableType:
    facts = terminal.label_grid()
    for name, stats in zip(COLUMNS, (comparison.one, comparison.other), strict=True):
        terminal.add_row(facts, name, terminal.safe_text(stats.header.path, "bold"))
        terminal.add_row(facts, "", _describe_set(stats))
    terminal.add_row(facts, "both", describe_matching(comparison))
    return facts


def _describe_set(stats: Stats) -> str:
    header = stats.header
    share = percent(header.kept, header.read)
    kept = f"kept {number(header.kept)} of {number(header.read)} records ({share})"
    return f"recipe {safe_line(header.recipe or '')}, {kept}"


def _setting_differences(comparison: Comparison) -> RenderableType | None:
    if not comparison.settings:
        return None
    table = terminal.plain_table()
    for name in ("settings that differ", *COLUMNS):
        table.add_column(name, max_width=60, overflow="fold")
    for setting in comparison.settings:
        texts = setting.name, format_setting(setting.one), format_setting(setting.other)
        table.add_row(*(terminal.safe_text(safe_line(text)) for text in texts))
    return table


def _side(side: Side, keeper: str, loser: str) -> RenderableType | None:
    if not side.records and not side.exchanges:
        return None
    shown: list[RenderableType] = [Text(describe_side(side, keeper, loser), "bold")]
    if side.rules:
        shown.append(_rule_differences(f"rejected in {loser} by", "records", side.rules))
    if side.exchanges:
        shown.append(_rule_differences(f"removed in {loser}, record kept in both", "exchanges", side.exchanges))
    return Group(*shown)


def _rule_differences(title: str, unit: str, differences: Sequence[RuleDifference]) -> RenderableType:
    rows = [
        Row(
            terminal.safe_text(difference.rule),
            [number(difference.count)],
            terminal.safe_text(safe_line(", ".join(difference.examples))),
        )
        for difference in differences
    ]
    return NumberTable(title, [unit], rows, last="such as", max_name=44)


def _numbers(title: str, rows: Sequence[NumberPair]) -> RenderableType:
    shown = [Row(Text(row.name), (number(row.first), number(row.second), row.change)) for row in rows]
    return NumberTable(title, (*COLUMNS, "change"), shown, max_name=36)


def _shares(title: str, unit: str, rows: Sequence[SharePair]) -> RenderableType:
    shown = []
    for row in rows[:NAMES_SHOWN]:
        figures = number(row.first), percent(row.first_share), number(row.second), percent(row.second_share), row.change
        shown.append(Row(terminal.safe_text(row.name), figures))
    table = NumberTable(title, ("first", "share", "second", "share", "points"), shown)
    more = len(rows) - NAMES_SHOWN
    note = Text(f"and {number(more)} more (--json has them all)" if more > 0 else f"in {unit}", "dim")
    return Group(table, note)


def histogram_rows(overlay: PairedHistogram) -> list[tuple[str, int, float, int, float]]:
    """Return one row for each bin: its range, then count and share of each set."""
    totals = [sum(bin.one for bin in overlay.bins), sum(bin.other for bin in overlay.bins)]
    rows = []
    for index, bin in enumerate(overlay.bins):
        is_open_ended = index == len(overlay.bins) - 1 and bin.high > bin.low
        label = number(bin.low) if bin.low == bin.high else f"{number(bin.low)}–{number(bin.high)}"
        shares = ratio(bin.one, totals[0]), ratio(bin.other, totals[1])
        rows.append((f"≥ {number(bin.low)}" if is_open_ended else label, bin.one, shares[0], bin.other, shares[1]))
    return rows
