"""What earlier sets decide on new conversations: those that are known, and the split of their clusters."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import polars as pl

from curate.dataset import columns
from curate.pipeline import clusters

KNOWN = "known"
CONTINUES = "continues"
Known = Sequence[pl.LazyFrame]  # summaries of known conversations


def find_known(rows: pl.DataFrame, known: pl.DataFrame) -> pl.DataFrame:
    """Return part, row, twin and `kind` of the rows that are the same as a known conversation, or the beginning of one.

    `known` has chain and `earlier_id`; of several, the twin is the longest, then the first.
    """
    last = rows.select("part", "row", size=pl.col("chain").list.len(), last=pl.col("chain").list.last())
    named = known.select("chain", twin="earlier_id", length=pl.col("chain").list.len())
    chains = (
        named.lazy().explode("chain").join(last.lazy().select("last"), left_on="chain", right_on="last", how="semi")
    )
    longest = chains.sort("length", descending=True, maintain_order=True).unique("chain", keep="first").collect()
    found = last.join(longest, left_on="last", right_on="chain", maintain_order="left")
    kind = pl.when(pl.col("size") == pl.col("length")).then(pl.lit("exact")).otherwise(pl.lit("prefix"))
    return found.select("part", "row", "twin", kind=kind)


def find_continued(rows: pl.DataFrame, known: pl.DataFrame) -> pl.DataFrame:
    """Return part and row of the rows that a known conversation begins, with the id of the longest that does."""
    if known.is_empty():
        return rows.clear().select("part", "row", continues=pl.lit(None, pl.String))
    last = known.select(last=pl.col("chain").list.last(), continues="earlier_id").unique("last", keep="first")
    chains = rows.lazy().select("part", "row", "chain").explode("chain").with_row_index("place")
    found = chains.join(last.lazy(), left_on="chain", right_on="last").sort("place", descending=True)
    return found.unique(["part", "row"], keep="first").select("part", "row", "continues").collect()


def add_clusters(rows: pl.DataFrame, known: pl.DataFrame, edges: clusters.Edges) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Add `cluster` to the rows and to the known conversations, which may join theirs."""
    names = ("prompt", "chat", "source_id", "source_file", "source_index", "branch")
    every = pl.concat([rows.select(names), known.with_columns(chat=pl.lit(None, pl.String)).select(names)])
    found = clusters.cluster_names(every, edges)
    return rows.with_columns(cluster=found[: rows.height]), known.with_columns(cluster=found[rows.height :])


def keep_splits(rows: pl.DataFrame, known: pl.DataFrame) -> pl.DataFrame:
    """Return the rows with the `split` that earlier sets give their clusters, and the cluster's name for each split.

    In a cluster, the set with the lowest number decides, and its own conversations keep their split. Where that has
    both splits, all others are held out: nothing that goes with its eval is trained on.
    """
    names = ["cluster", "set", "earlier_split"]
    fixed = pl.concat([rows.select(names), known.select(names)], how="vertical_relaxed").drop_nulls("earlier_split")
    if fixed.is_empty():
        return rows
    leading = fixed.filter(pl.col("set") == pl.col("set").min().over("cluster"))
    leads = leading.group_by("cluster").agg(
        lead=pl.col("set").first(), held_out=(pl.col("earlier_split") == "eval").any()
    )
    own = pl.when(pl.col("set") == pl.col("lead")).then("earlier_split")
    of_cluster = pl.when(pl.col("held_out")).then(pl.lit("eval")).when(~pl.col("held_out")).then(pl.lit("train"))
    rows = rows.join(leads, on="cluster", how="left", maintain_order="left")
    rows = rows.with_columns(split=pl.when(pl.col("split").is_not_null()).then(pl.coalesce(own, of_cluster, "split")))
    mixed = pl.col("split").drop_nulls().n_unique().over("cluster") > 1
    lowest = pl.col("prompt").min().over("cluster", "split")
    apart = rows.select(pl.when(mixed).then(lowest)).to_series()
    named = pl.Series([None if prompt is None else f"{prompt:016x}" for prompt in apart], dtype=pl.String)
    return rows.with_columns(cluster=pl.coalesce(named, "cluster")).drop("lead", "held_out")


def no_known() -> pl.DataFrame:
    """Return the summary of no known conversation."""
    return pl.DataFrame(schema={**columns.PART_SUMMARY, **columns.SET_SUMMARY})


def read(known: Known) -> Iterator[pl.DataFrame]:
    """Yield the summaries of known conversations, those of one frame at a time."""
    for rows in known:
        yield pl.concat([no_known(), rows.collect()], how="diagonal")


def collect(known: Known) -> pl.DataFrame:
    """Return the summaries of all known conversations."""
    return pl.concat([no_known(), *read(known)], how="diagonal")
