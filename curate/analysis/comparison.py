"""Compare two curated sets: records that only one keeps, settings that differ, and lengths side by side."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import polars as pl

from curate.analysis.set_stats import counts, equal_spans, length_series, lengths, measure_set
from curate.analysis.stats import Stats
from curate.dataset import columns
from curate.dataset.curated_set import CuratedSet, open_set, translate_errors
from curate.dataset.manifest import Manifest, is_dump, not_a_set
from curate.display.displayed import Displayed
from curate.remote.sets import fetch_set
from curate.settings import flatten

LengthSeries = tuple[str, str, str, pl.Series]  # name, title, unit and values of a length
EXAMPLES = 3  # ids listed for each rule
PLACE = list(columns.SOURCE)
MatchedBy = Literal["place", "id"]


@dataclass(frozen=True)
class RuleDifference:
    """Records that one set keeps and the other rejects by this rule: `count`, and a few ids as `examples`."""

    rule: str
    count: int
    examples: tuple[str, ...]


@dataclass(frozen=True)
class Side:
    """What one set keeps and the other does not.

    `records` are kept by this set only: the other set rejected them by one of `rules`, or never read them (`absent`).
    `exchanges` were rejected by the other set from records that both keep.
    """

    records: int
    absent: int
    rules: tuple[RuleDifference, ...]
    exchanges: tuple[RuleDifference, ...]


@dataclass(frozen=True)
class Setting:
    """A setting that differs between the runs of two sets; None for a run without it."""

    name: str
    one: Any
    other: Any


@dataclass(frozen=True)
class PairedBin:
    """A bin of two histograms: the number of values from `low` up to and including `high` in each set."""

    low: int
    high: int
    one: int
    other: int


@dataclass(frozen=True)
class PairedHistogram:
    """Histograms of one measure for both sets, with the same bins."""

    name: str
    title: str
    unit: str
    bins: tuple[PairedBin, ...]


@dataclass(frozen=True)
class Comparison(Displayed):
    """The differences of two sets.

    Records are `matched_by` their place if both sets were made from the same files, else by their ids. `only_one` is
    what the first set keeps and the second does not, `only_other` is the opposite.
    """

    one: Stats
    other: Stats
    matched_by: MatchedBy
    kept_by_both: int
    only_one: Side
    only_other: Side
    settings: tuple[Setting, ...]
    histograms: tuple[PairedHistogram, ...]


def compare_sets(first: CuratedSet, second: CuratedSet) -> Comparison:
    """Compare two open sets; raises SetError if one is damaged."""
    stats = measure_set(first), measure_set(second)
    by: MatchedBy = "place" if _inputs(first) == _inputs(second) else "id"
    mine, theirs = _Rows(first, by), _Rows(second, by)
    with translate_errors(first), translate_errors(second):
        return Comparison(
            *stats,
            matched_by=by,
            kept_by_both=mine.kept.join(theirs.kept, on=mine.key, how="semi").select(pl.len()).collect().item(),
            only_one=_side(mine, theirs),
            only_other=_side(theirs, mine),
            settings=tuple(_settings(first.manifest, second.manifest)),
            histograms=_histograms(first, second),
        )


def open_comparable(path: str | Path) -> CuratedSet:
    """Open a set for comparison; raises SetError for anything else."""
    path = fetch_set(path)
    if is_dump(path):
        raise not_a_set(Path(path))
    return open_set(path)


def _inputs(curated: CuratedSet) -> list[tuple[str, str | None]]:
    return [(file.name, file.sha256) for file in curated.manifest.inputs]


class _Rows:
    """A set's records: `kept`, `rejected` (with rules) and rejected `exchanges`, each with the `key` for matching."""

    def __init__(self, curated: CuratedSet, by: MatchedBy) -> None:
        self.key = PLACE if by == "place" else ["key"]
        rows, rejected = curated.conversations(), curated.rejected()
        if by == "id":  # a record without an id is kept under one derived from its content
            rows = rows.with_columns(key=pl.coalesce("source_id", "id"))
            rejected = rejected.with_columns(key=pl.col("source_id"))
        record_id = pl.coalesce("source_id", pl.format("{}:{}", *PLACE)).alias("id")
        self.kept = rows.filter(pl.col("piece") == 0).select(*self.key, "id").unique(self.key, maintain_order=True)
        is_record = pl.col("scope") == "record"
        self.rejected = rejected.filter(is_record).select(*self.key, "rule").unique(self.key, maintain_order=True)
        first = pl.col("message_range").list.first().alias("first")
        self.exchanges = rejected.filter(~is_record).select(*self.key, first, "rule", record_id)


def _side(mine: _Rows, theirs: _Rows) -> Side:
    key = mine.key
    only_mine = mine.kept.join(theirs.kept, on=key, how="anti", maintain_order="left")
    differences = _rule_differences(only_mine.join(theirs.rejected, on=key, how="left", maintain_order="left"))
    kept_by_both = theirs.exchanges.join(mine.kept, on=key, how="semi").join(theirs.kept, on=key, how="semi")
    only_theirs = kept_by_both.join(mine.exchanges, on=[*key, "first"], how="anti", maintain_order="left")
    absent = sum(count for rule, count, _ in differences if rule is None)
    rules = tuple(RuleDifference(rule, count, tuple(ids)) for rule, count, ids in differences if rule is not None)
    exchanges = tuple(
        RuleDifference(rule, count, tuple(ids))
        for rule, count, ids in _rule_differences(only_theirs)
        if rule is not None
    )
    return Side(absent + sum(rule.count for rule in rules), absent, rules, exchanges)


def _rule_differences(rows: pl.LazyFrame) -> list[tuple[str | None, int, list[str]]]:
    counts = rows.group_by("rule", maintain_order=True).agg(count=pl.len(), examples=pl.col("id").head(EXAMPLES))
    return counts.sort(["count", "rule"], descending=[True, False]).collect().rows()


def _settings(first: Manifest, second: Manifest) -> Iterator[Setting]:
    """Yield the settings that differ, in the order of their names."""
    mine, theirs = (dict(_flat_settings(manifest)) for manifest in (first, second))
    for name in sorted({*mine, *theirs}):
        if mine.get(name) != theirs.get(name):
            yield Setting(name, mine.get(name), theirs.get(name))


def _flat_settings(manifest: Manifest) -> Iterator[tuple[str, Any]]:
    """Yield what a set was made with: its recipe's settings, the tokenizer's hash and curate's version."""
    yield from flatten({name: value for name, value in manifest.recipe.items() if name not in ("name", "summary")})
    yield "recipe", manifest.recipe_name
    yield "tokens.tokenizer.sha256", manifest.tokenizer.hash
    yield "version", manifest.version


def _histograms(first: CuratedSet, second: CuratedSet) -> tuple[PairedHistogram, ...]:
    sizes = [lengths(curated.conversations()) for curated in (first, second)]
    was_split = any(len(conversations) != pieces.height for pieces, conversations in sizes)
    mine, theirs = (length_series(*tables, "pieces", was_split) for tables in sizes)
    return tuple(map(_histogram, mine, theirs))


def _histogram(first: LengthSeries, second: LengthSeries) -> PairedHistogram:
    name, title, unit, values = first
    pooled = pl.concat([values, second[3]]).drop_nulls()
    if pooled.is_empty():
        return PairedHistogram(name, title, unit, ())
    p99 = int(pooled.quantile(0.99, "nearest") or 0)
    spans = equal_spans(int(pooled.min()), p99, int(pooled.max()))  # type: ignore[arg-type]
    mine, theirs = (counts(series.drop_nulls(), spans) for series in (values, second[3]))
    bins = [PairedBin(low, high, *counts) for (low, high), *counts in zip(spans, mine, theirs, strict=True)]
    return PairedHistogram(name, title, unit, tuple(bins))
