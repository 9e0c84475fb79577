"""The page of a comparison of two curated sets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import starmap
from pathlib import Path
from typing import Any

from curate.analysis import conversations
from curate.analysis.comparison import Comparison, RuleDifference, Side
from curate.analysis.conversations import ConversationView
from curate.analysis.selection import show
from curate.analysis.stats import Stats
from curate.dataset.curated_set import CuratedSet
from curate.display import html_page
from curate.display.figures import number, percent, ratio
from curate.display.html import (
    Cell,
    Formatted,
    chart,
    collapsible,
    collapsible_groups,
    definition_list,
    escape,
    footer,
    navigation,
    section,
    table,
)
from curate.report.html import conversation
from curate.report.terminal.compare import (
    COLUMNS,
    SIDES,
    NumberPair,
    SharePair,
    describe_matching,
    describe_side,
    format_setting,
    histogram_rows,
    length_figures,
    name_shares,
    total_figures,
)

BARS = 10  # names in a chart; its table lists the first `ROWS`
ROWS = 200
RULES = 12  # rules of each set with sample conversations


def render(comparison: Comparison, sets: tuple[CuratedSet, CuratedSet]) -> str:
    """Return the page."""
    names = [Path(stats.header.path).resolve().name for stats in (comparison.one, comparison.other)]
    title = " and ".join(names)
    shown = [
        ("differences", "Records kept in one set only", _rule_differences(comparison)),
        ("settings", "Settings that differ", _setting_differences(comparison)),
        ("numbers", "Numbers", _numbers("records, pieces and tokens", total_figures(comparison))),
        ("lengths", "Lengths", f'<div class="grid">{"".join(_lengths(comparison))}</div>'),
        ("names", "Rules, languages, models, roles, repairs", f'<div class="grid">{"".join(_names(comparison))}</div>'),
    ]
    room = html_page.bytes_left("".join(body for *_, body in shown))
    shown.append(("samples", "Conversations", collapsible_groups(_samples(comparison, sets), room)))
    body = _head(title, comparison) + navigation(shown) + "</header><main>" + "".join(starmap(section, shown))
    return html_page.document(title, body + footer(comparison.one.header.version), _data(comparison))


def _head(title: str, comparison: Comparison) -> str:
    sets = definition_list(
        (name, _describe_set(stats)) for name, stats in zip(COLUMNS, (comparison.one, comparison.other), strict=True)
    )
    return f'<header><h1>{escape(title)}</h1>{sets}<p class="note">{escape(describe_matching(comparison))}</p>'


def _describe_set(stats: Stats) -> str:
    header = stats.header
    kept = f"kept {number(header.kept)} of {number(header.read)} records"
    return f"<b>{escape(header.path)}</b>, recipe {escape(header.recipe)}, {kept}"


def _rule_differences(comparison: Comparison) -> str:
    shown = ""
    for side, keeper, loser in ((comparison.only_one, *SIDES), (comparison.only_other, *SIDES[::-1])):
        tables = _rules(f"rejected in {loser} by", "records", side.rules)
        tables += _rules(f"removed in {loser}, record kept in both", "exchanges", side.exchanges)
        shown += f"<h3>{escape(describe_side(side, keeper, loser))}</h3>{tables}"
    return shown


def _rules(title: str, unit: str, differences: Sequence[RuleDifference]) -> str:
    rows: list[Sequence[Cell]] = [
        (difference.rule, difference.count, ", ".join(difference.examples)) for difference in differences
    ]
    return table(title, ("rule", unit, "such as"), rows)


def _setting_differences(comparison: Comparison) -> str:
    rows = [
        (setting.name, format_setting(setting.one), format_setting(setting.other)) for setting in comparison.settings
    ]
    return table("settings that differ", ("setting", *COLUMNS), rows)


def _numbers(title: str, pairs: Sequence[NumberPair]) -> str:
    rows: list[Sequence[Cell]] = [(pair.name, pair.first, pair.second, _change(pair)) for pair in pairs]
    return table(title, ("number", *COLUMNS, "change"), rows)


def _change(pair: NumberPair) -> Formatted:
    return Formatted(pair.change, ratio(pair.second - pair.first, pair.first))


def _lengths(comparison: Comparison) -> Iterator[str]:
    figures = dict(length_figures(comparison))
    for overlay in comparison.histograms:
        if not overlay.bins:
            continue
        shares = (f"{name}, share" for name in COLUMNS)
        heading = (overlay.title, *(name for pair in zip(COLUMNS, shares, strict=True) for name in pair))
        bins = table(
            overlay.title,
            heading,
            histogram_rows(overlay),
            {name: percent for name in heading if name.endswith("share")},
        )
        label = f"{overlay.title} in both sets, as shares of each; the tables have the numbers"
        drawn = chart(f"overlay:{overlay.name}", label) + collapsible("as a table", bins)
        if overlay.title in figures:
            drawn += _numbers(f"{overlay.title}: mean and percentiles", figures[overlay.title])
        yield f"<figure><figcaption>{escape(overlay.title)}</figcaption>{drawn}</figure>"


def _names(comparison: Comparison) -> Iterator[str]:
    for title, unit, rows in name_shares(comparison):
        if not rows:
            continue
        heading = ("name", "first", "first, share", "second", "second, share", "points")
        cells: list[Sequence[Cell]] = [
            (row.name, row.first, row.first_share, row.second, row.second_share, _points(row)) for row in rows[:ROWS]
        ]
        numbers = table(
            f"{title}, in {unit}", heading, cells, dict.fromkeys(("first, share", "second, share"), percent)
        )
        label = f"{title} in both sets, as shares of each; the table has the numbers"
        drawn = chart(f"pairs:{title}", label, 2 * min(len(rows), BARS))
        yield f"<figure><figcaption>{escape(title)}</figcaption>{drawn}{collapsible('as a table', numbers)}</figure>"


def _points(row: SharePair) -> Formatted:
    return Formatted(row.change, row.second_share - row.first_share)


def _data(comparison: Comparison) -> dict[str, Any]:
    return {
        "overlays": {overlay.name: histogram_rows(overlay) for overlay in comparison.histograms},
        "pairs": {title: list(map(_pair, rows[:BARS])) for title, _, rows in name_shares(comparison)},
    }


def _pair(row: SharePair) -> tuple[str, int, float, int, float]:
    return row.name, row.first, row.first_share, row.second, row.second_share


def _samples(comparison: Comparison, sets: tuple[CuratedSet, CuratedSet]) -> Iterator[tuple[str, list[str]]]:
    """Yield conversations that only one set keeps, with the reason why the other rejected them."""
    for side, (keeper, loser), (keeping, rejecting) in (
        (comparison.only_one, SIDES, sets),
        (comparison.only_other, SIDES[::-1], sets[::-1]),
    ):
        for title, articles in _samples_by_rule(side, keeping, rejecting):
            yield f"Kept in {keeper}, {title} in {loser}", articles


def _samples_by_rule(side: Side, keeping: CuratedSet, rejecting: CuratedSet) -> Iterator[tuple[str, list[str]]]:
    for difference in side.rules[:RULES]:
        kept = show(difference.examples, keeping.path)
        yield (
            f"rejected by {escape(difference.rule)}",
            [conversation.render_conversation(_with_rejection(view, rejecting, difference.rule)) for view in kept],
        )


def _with_rejection(view: ConversationView, rejecting: CuratedSet, rule: str) -> ConversationView:
    """Return a conversation with its rejection in the other set, if its record has the same key there."""
    rejections = conversations.find_rejections(rejecting, view)
    return replace(view, rejected=next((rejection for rejection in rejections if rejection.rule == rule), None))
