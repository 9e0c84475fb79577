"""Two curated sets side by side: what one keeps and the other rejects, and how their numbers differ."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import polars as pl

from curate.analysis.measure_set import counts, equal_spans, lengths, measure_set, measured
from curate.analysis.stats import Stats
from curate.dataset import columns
from curate.dataset.curated_set import CuratedSet, is_dump, open_set, readable
from curate.dataset.manifest import Manifest
from curate.display.displayed import Displayed
from curate.errors import SetError

Measured = tuple[str, str, str, pl.Series]  # name, title, unit and values of a length
EXAMPLES = 3  # ids of a crossing
PLACE = list(columns.SOURCE)
MatchedBy = Literal["place", "id"]


@dataclass(frozen=True)
class Crossing:
    """What one set keeps and the other rejects by this rule: `count`, and the ids of some `examples`."""

    rule: str
    count: int
    examples: tuple[str, ...]


@dataclass(frozen=True)
class Side:
    """What one set keeps and the other does not.

    `records` are kept here alone: rejected there by one of `rules`, or `absent`, never read there. `exchanges` were
    lost there from records that both keep.
    """

    records: int
    absent: int
    rules: tuple[Crossing, ...]
    exchanges: tuple[Crossing, ...]


@dataclass(frozen=True)
class Setting:
    """A setting in which the runs that made two sets differ; null where one has no such setting."""

    name: str
    one: Any
    other: Any


@dataclass(frozen=True)
class Pair:
    """How many values of each set lie from `low` up to and including `high`."""

    low: int
    high: int
    one: int
    other: int


@dataclass(frozen=True)
class Overlay:
    """How one measure is spread over both sets, in the same bins."""

    name: str
    title: str
    unit: str
    bins: tuple[Pair, ...]


@dataclass(frozen=True)
class Comparison(Displayed):
    """Two sets side by side.

    Records are `matched_by` their place where both were made from the same files, else by their ids. `only_one` is
    what the first keeps and the other does not, `only_other` the opposite.
    """

    one: Stats
    other: Stats
    matched_by: MatchedBy
    kept_by_both: int
    only_one: Side
    only_other: Side
    settings: tuple[Setting, ...]
    histograms: tuple[Overlay, ...]


def compare_sets(first: CuratedSet, second: CuratedSet) -> Comparison:
    """Compare two open sets; raises SetError where one is damaged."""
    stats = measure_set(first), measure_set(second)
    by: MatchedBy = "place" if _inputs(first) == _inputs(second) else "id"
    mine, theirs = _Rows(first, by), _Rows(second, by)
    with readable(first), readable(second):
        return Comparison(
            *stats,
            matched_by=by,
            kept_by_both=mine.kept.join(theirs.kept, on=mine.key, how="semi").select(pl.len()).collect().item(),
            only_one=_side(mine, theirs),
            only_other=_side(theirs, mine),
            settings=tuple(_settings(first.manifest, second.manifest)),
            histograms=_overlays(first, second),
        )


def open_comparable(path: str | Path) -> CuratedSet:
    """Open a set that is to be compared; raises SetError for anything else."""
    if is_dump(path):
        raise SetError(f"{str(path)!r} is not a curated set, and only sets are compared; make one: curate clean {path}")
    return open_set(path)


def _inputs(curated: CuratedSet) -> list[tuple[str, str | None]]:
    return [(file.name, file.sha256) for file in curated.manifest.inputs]


class _Rows:
    """A set's records: `kept`, `lost` (with their rule) and lost `exchanges`, each with the `key` it is matched by."""

    def __init__(self, curated: CuratedSet, by: MatchedBy) -> None:
        self.key = PLACE if by == "place" else ["key"]
        rows, rejected = curated.conversations(), curated.rejected()
        if by == "id":  # a record without an id of its own is kept under one of its content
            rows = rows.with_columns(key=pl.coalesce("source_id", "id"))
            rejected = rejected.with_columns(key=pl.col("source_id"))
        named = pl.coalesce("source_id", pl.format("{}:{}", *PLACE)).alias("id")
        self.kept = rows.filter(pl.col("piece") == 0).select(*self.key, "id").unique(self.key, maintain_order=True)
        whole = pl.col("scope") == "record"
        self.lost = rejected.filter(whole).select(*self.key, "rule").unique(self.key, maintain_order=True)
        first = pl.col("message_range").list.first().alias("first")
        self.exchanges = rejected.filter(~whole).select(*self.key, first, "rule", named)


def _side(mine: _Rows, theirs: _Rows) -> Side:
    key = mine.key
    alone = mine.kept.join(theirs.kept, on=key, how="anti", maintain_order="left")
    taken = _crossings(alone.join(theirs.lost, on=key, how="left", maintain_order="left"))
    both = theirs.exchanges.join(mine.kept, on=key, how="semi").join(theirs.kept, on=key, how="semi")
    lost = both.join(mine.exchanges, on=[*key, "first"], how="anti", maintain_order="left")
    absent = sum(count for rule, count, _ in taken if rule is None)
    rules = tuple(Crossing(rule, count, tuple(ids)) for rule, count, ids in taken if rule is not None)
    exchanges = tuple(Crossing(rule, count, tuple(ids)) for rule, count, ids in _crossings(lost) if rule is not None)
    return Side(absent + sum(one.count for one in rules), absent, rules, exchanges)


def _crossings(rows: pl.LazyFrame) -> list[tuple[str | None, int, list[str]]]:
    found = rows.group_by("rule", maintain_order=True).agg(count=pl.len(), examples=pl.col("id").head(EXAMPLES))
    return found.sort(["count", "rule"], descending=[True, False]).collect().rows()


def _settings(one: Manifest, other: Manifest) -> Iterator[Setting]:
    """Yield the settings that differ, in the order of their names."""
    mine, theirs = (dict(_made(manifest)) for manifest in (one, other))
    for name in sorted({*mine, *theirs}):
        if mine.get(name) != theirs.get(name):
            yield Setting(name, mine.get(name), theirs.get(name))


def _made(manifest: Manifest) -> Iterator[tuple[str, Any]]:
    """Yield what a set was made with: its recipe's settings, the tokenizer's file and the version."""
    yield from _flat({name: value for name, value in manifest.recipe.items() if name not in ("name", "summary")})
    yield "recipe", manifest.recipe_name
    yield "tokens.tokenizer.sha256", manifest.tokenizer.hash
    yield "version", manifest.version


def _flat(values: Mapping[str, Any], under: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{under}{name}.")
        else:
            yield f"{under}{name}", value


def _overlays(one: CuratedSet, other: CuratedSet) -> tuple[Overlay, ...]:
    sizes = [lengths(curated.conversations()) for curated in (one, other)]
    apart = any(len(whole) != pieces.height for pieces, whole in sizes)
    mine, theirs = (measured(*found, "pieces", apart) for found in sizes)
    return tuple(map(_overlay, mine, theirs))


def _overlay(one: Measured, other: Measured) -> Overlay:
    name, title, unit, values = one
    both = pl.concat([values, other[3]]).drop_nulls()
    if both.is_empty():
        return Overlay(name, title, unit, ())
    p99 = int(both.quantile(0.99, "nearest") or 0)
    spans = equal_spans(int(both.min()), p99, int(both.max()))  # type: ignore[arg-type]
    mine, theirs = (counts(each.drop_nulls(), spans) for each in (values, other[3]))
    bins = [Pair(low, high, *counts) for (low, high), *counts in zip(spans, mine, theirs, strict=True)]
    return Overlay(name, title, unit, tuple(bins))
