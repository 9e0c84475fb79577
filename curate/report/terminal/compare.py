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
    one: float
    other: float

    @property
    def change(self) -> str:
        """The difference in percent of the first set's number."""
        if self.one == self.other:
            return "="
        return f"{100 * (self.other - self.one) / self.one:+,.1f} %" if self.one else "new"


@dataclass(frozen=True)
class SharePair:
    """One name in both sets: its counts and its shares (0 to 1)."""

    name: str
    one: int
    one_share: float
    other: int
    other_share: float

    @property
    def change(self) -> str:
        """The difference of the shares in percentage points."""
        points = 100 * (self.other_share - self.one_share)
        return "=" if abs(points) < 0.05 else f"{points:+.1f}"


def render_comparison(comparison: Comparison) -> RenderableType:
    """Render a comparison."""
    blocks: list[RenderableType | None] = [
        _header(comparison),
        _settings(comparison),
        _side(comparison.only_one, *SIDES),
        _side(comparison.only_other, *SIDES[::-1]),
        _figures("numbers", total_figures(comparison)),
        terminal.SideBySide([_figures(title, rows) for title, rows in length_figures(comparison)]),
        terminal.SideBySide([_parts(title, unit, rows) for title, unit, rows in name_shares(comparison)]),
    ]
    shown = [block for block in blocks if block is not None]
    return Group(*[part for block in shown for part in (block, Text())][:-1])


def total_figures(comparison: Comparison) -> list[NumberPair]:
    """Return totals of records, pieces, tokens and training."""
    one, other = comparison.one, comparison.other
    pairs = {
        "records read": (one.header.read, other.header.read),
        "records kept": (one.header.kept, other.header.kept),
        "pieces": (one.flow.pieces, other.flow.pieces),
        "tokens": (one.header.tokens, other.header.tokens),
        "tokens trained": (one.header.answer_tokens, other.header.answer_tokens),
        "exchanges removed": (one.flow.rejected_exchanges, other.flow.rejected_exchanges),
        "duplicates": (one.duplicates.rejected, other.duplicates.rejected),
        "steps of the default fine-tune": (one.training.steps, other.training.steps),
    }
    return [NumberPair(name, *values) for name, values in pairs.items()]


def length_figures(comparison: Comparison) -> Iterator[tuple[str, list[NumberPair]]]:
    """Yield the title of each histogram that both sets have, with its mean and percentiles."""
    others = {item.name: item for item in comparison.other.histograms}
    for item in comparison.one.histograms:
        other = others.get(item.name)
        if other is None or not (item.count and other.count):
            continue
        rows = [NumberPair("mean", item.mean, other.mean)]
        rows += [NumberPair(name, value, other.percentiles[name]) for name, value in item.percentiles.items()]
        yield item.title, [*rows, NumberPair("longest", item.maximum, other.maximum)]


def name_shares(comparison: Comparison) -> Iterator[tuple[str, str, list[SharePair]]]:
    """Yield the title and unit of each list of names, with the shares in both sets."""
    one, other = comparison.one, comparison.other
    flow = [{step.rule: step.first for step in stats.flow.steps} for stats in (one, other)]
    yield "rejected by", "records", _rows(flow, (one.header.read, other.header.read))
    for title, name in (("languages", "languages"), ("models", "models"), ("train and eval", "splits")):
        shares = [{share.name: share.pieces for share in getattr(stats, name)} for stats in (one, other)]
        yield title, "pieces", _rows(shares, (one.flow.pieces, other.flow.pieces))
    for title, name, unit in (("roles", "roles", "messages"), ("repairs", "edits", "times")):
        counts = [{count.name: count.count for count in getattr(stats, name)} for stats in (one, other)]
        yield title, unit, _rows(counts, (sum(counts[0].values()), sum(counts[1].values())))


def _rows(counts: Sequence[dict[str, int]], wholes: tuple[int, int]) -> list[SharePair]:
    one, other = counts
    names = sorted({*one, *other}, key=lambda name: (-max(one.get(name, 0), other.get(name, 0)), name))
    rows = []
    for name in names:
        mine, theirs = one.get(name, 0), other.get(name, 0)
        rows.append(SharePair(name, mine, ratio(mine, wholes[0]), theirs, ratio(theirs, wholes[1])))
    return rows


def format_setting(value: object) -> str:
    """Format a setting as recipes write it."""
    return "–" if value is None else json.dumps(value, ensure_ascii=False)


def describe_side(side: Side, keeper: str, loser: str) -> str:
    """Describe in one line the records that only one set keeps."""
    count = f"{number(side.records)} {plural(side.records, 'record')} kept in {keeper} but not in {loser}"
    return count + (f"; {number(side.absent)} of them were never read there" if side.absent else "")


def describe_matching(comparison: Comparison) -> str:
    """Describe how records are matched, and how many both sets keep."""
    how = "place in the input" if comparison.matched_by == "place" else "id, since the input files differ"
    return f"{number(comparison.kept_by_both)} records kept by both, matched by their {how}"


def _header(comparison: Comparison) -> RenderableType:
    facts = terminal.label_grid()
    for name, stats in zip(COLUMNS, (comparison.one, comparison.other), strict=True):
        terminal.add_row(facts, name, terminal.safe_text(stats.header.path, "bold"))
        terminal.add_row(facts, "", _made(stats))
    terminal.add_row(facts, "both", describe_matching(comparison))
    return facts


def _made(stats: Stats) -> str:
    header = stats.header
    share = percent(header.kept, header.read)
    kept = f"kept {number(header.kept)} of {number(header.read)} records ({share})"
    return f"recipe {safe_line(header.recipe or '')}, {kept}"


def _settings(comparison: Comparison) -> RenderableType | None:
    if not comparison.settings:
        return None
    table = terminal.plain_table()
    for name in ("settings that differ", *COLUMNS):
        table.add_column(name, max_width=60, overflow="fold")
    for setting in comparison.settings:
        table.add_row(
            *(
                terminal.safe_text(safe_line(text))
                for text in (setting.name, format_setting(setting.one), format_setting(setting.other))
            )
        )
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
        Row(terminal.safe_text(one.rule), [number(one.count)], terminal.safe_text(safe_line(", ".join(one.examples))))
        for one in differences
    ]
    return NumberTable(title, [unit], rows, rest="such as", max_name=44)


def _figures(title: str, rows: Sequence[NumberPair]) -> RenderableType:
    shown = [Row(Text(row.name), (number(row.one), number(row.other), row.change)) for row in rows]
    return NumberTable(title, (*COLUMNS, "change"), shown, max_name=36)


def _parts(title: str, unit: str, rows: Sequence[SharePair]) -> RenderableType:
    shown = []
    for row in rows[:NAMES_SHOWN]:
        figures = number(row.one), percent(row.one_share), number(row.other), percent(row.other_share), row.change
        shown.append(Row(terminal.safe_text(row.name), figures))
    table = NumberTable(title, ("first", "share", "second", "share", "points"), shown)
    more = len(rows) - NAMES_SHOWN
    left = Text(f"and {number(more)} more (--json has them all)" if more > 0 else f"in {unit}", "dim")
    return Group(table, left)


def histogram_rows(overlay: PairedHistogram) -> list[tuple[str, int, float, int, float]]:
    """Return one row for each bin: its range, then count and share of each set."""
    whole = [sum(bin.one for bin in overlay.bins), sum(bin.other for bin in overlay.bins)]
    rows = []
    for place, bin in enumerate(overlay.bins):
        last = place == len(overlay.bins) - 1 and bin.high > bin.low
        span = number(bin.low) if bin.low == bin.high else f"{number(bin.low)}–{number(bin.high)}"
        shares = ratio(bin.one, whole[0]), ratio(bin.other, whole[1])
        rows.append((f"≥ {number(bin.low)}" if last else span, bin.one, shares[0], bin.other, shares[1]))
    return rows
