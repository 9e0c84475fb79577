"""Which items of benchmarks a set's conversations hold, from the columns of the signal `benchmark_overlap`."""

from __future__ import annotations

import polars as pl

from curate.analysis.stats import BenchmarkItem

NAMED = r"(?:^|, )(.+? \(\d\.\d\d\))"  # an item with its coverage
ITEMS, PASSAGE, TEXT = (f"contamination_{name}" for name in ("items", "passage", "text"))
SHOWN = 1000  # items; less frequent ones are not listed


def benchmark_items(kept: pl.LazyFrame, rejected: pl.LazyFrame) -> tuple[BenchmarkItem, ...]:
    """Return the items, those that most conversations hold first; none if the set was not compared with benchmarks."""
    tables = [
        table.filter(where, pl.col(ITEMS).is_not_null()).select(ITEMS, PASSAGE, TEXT, kept=pl.lit(is_kept))
        for table, where, is_kept in (
            (kept, pl.col("piece") == 0, True),
            (rejected, pl.col("scope") == "record", False),
        )
        if ITEMS in table.collect_schema()
    ]
    if not tables:
        return ()
    named = pl.concat(tables).with_columns(item=pl.col(ITEMS).str.extract_all(NAMED).list.eval(_strip(pl.element())))
    best = pl.col("item") == pl.col("first")  # the passage is that of the item that is covered most
    items = (
        named.with_columns(first=pl.col("item").list.first())
        .explode("item")
        .with_columns(pl.when(best).then(PASSAGE), pl.when(best).then(TEXT))
        .group_by(name=pl.col("item").str.extract(r"^(.*) \("))
        .agg(
            kept=pl.col("kept").sum(),
            rejected=pl.col("kept").not_().sum(),
            coverage=pl.col("item").str.extract(r"\((\S+)\)$").cast(pl.Float64).max(),
            passage=pl.col(PASSAGE).drop_nulls().min(),
            text=pl.col(TEXT).drop_nulls().min(),
        )
        .sort(pl.col("kept") + pl.col("rejected"), "name", descending=[True, False])
        .head(SHOWN)
    )
    return tuple(BenchmarkItem(**row) for row in items.collect().iter_rows(named=True))


def _strip(item: pl.Expr) -> pl.Expr:
    return item.str.strip_prefix(", ")
