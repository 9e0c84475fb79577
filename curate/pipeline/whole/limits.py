"""Limits of `cap` on files, models and languages in a large corpus, which hold for all of its groups together."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import polars as pl

from curate.dataset import columns
from curate.filters import caps
from curate.filters.registry import Settings
from curate.pipeline.holdout import cluster_name
from curate.pipeline.steps import Part
from curate.pipeline.train_marks import WORTH
from curate.pipeline.whole import lone as lone_rows
from curate.pipeline.whole.lone import Lone, Members
from curate.pipeline.whole.ranking import Ranking

BLOCK = 1 << 20  # lone conversations in one bin
MEASURED = ("source_id", "source_file", "chain", "marks", "pieces", "alone", *columns.GROUP_SUMMARY)


class WideLimits:
    """Finds what exceeds the limits of `cap`: in each group by its cluster, and in all groups by what is left."""

    def __init__(self, folder: Path, name: str, limits: Settings, lone: Lone) -> None:
        self._folder = folder
        self._name = name
        self._cluster = int(str(limits["cluster"]))
        self._first = len(lone.rows) // BLOCK + 1  # bin of a group; those before are for lone conversations
        rest = {group: int(str(limit)) for group, limit in limits.items() if group != "cluster"}
        self._ranking = Ranking(folder, name, rest)
        self._over = 0

    def add_group(self, candidates: pl.DataFrame, number: int) -> None:
        """Add the conversations of a group, numbered by their `row`."""
        over = pl.DataFrame(schema=caps.CAPPED)
        if self._cluster:
            over = caps.cap(candidates, cluster=self._cluster)
        over.write_ipc(self._path(number))
        self._over += over.height
        left = candidates.filter(~pl.col("row").is_in(over["row"].implode()))
        self._ranking.add(left, self._first + number)

    def add_lone(self, candidates: pl.DataFrame) -> None:
        """Add conversations that share nothing; their `row` is their place among all."""
        blocks = candidates.with_columns(block=pl.col("row") // BLOCK)
        for (number,), rows in blocks.partition_by("block", as_dict=True, include_key=False).items():
            self._ranking.add(rows, number)

    def find(self) -> int:
        """Find what exceeds a limit, and return how many do."""
        return self._over + self._ranking.find()

    def of_group(self, number: int) -> pl.DataFrame:
        """Return those of a group that exceed a limit (`caps.CAPPED`)."""
        over = pl.scan_ipc(self._path(number)).collect()
        return pl.concat([over, self._ranking.capped(self._first + number)])

    def of_lone(self, block: int) -> pl.DataFrame:
        """Return those lone conversations of a block of places that exceed a limit."""
        return self._ranking.capped(block)

    def _path(self, number: int) -> Path:
        return self._folder / f"{self._name}-cluster-{number:06d}.arrow"


def add_lone(parts: Sequence[Part], lone: Lone, every: WideLimits, sole: WideLimits) -> None:
    """Add the lone conversations to what is limited, and to what the limits would see by themselves."""
    for rows in lone_rows.read_placed(parts, Members(lone.rows, lone.firsts), [pl.col(*MEASURED, r"^protected$")]):
        protected = pl.col("protected").fill_null(False) if "protected" in rows.columns else pl.lit(False)
        rows = rows.with_columns(row="place", protected=protected)
        wanted = ["protected", "source_id", "source_file", *columns.GROUP_SUMMARY, "row"]
        for limits, condition in ((every, pl.col("pieces") > 0), (sole, pl.col("alone"))):
            limits.add_lone(rows.filter(condition).select(*wanted, cluster=pl.lit(None, pl.String), **WORTH))


def without_capped(lone: Lone, limits: WideLimits) -> Lone:
    """Return the lone conversations, of which those over a limit are not kept."""
    kept = lone.kept.copy()
    for block in range(len(kept) // BLOCK + 1):
        kept[limits.of_lone(block)["row"].to_numpy()] = False
    return replace(lone, kept=kept)


def read_capped(parts: Sequence[Part], before: Lone, after: Lone, limits: WideLimits) -> Iterator[pl.DataFrame]:
    """Yield the decisions on lone conversations over a limit, which were kept before: without rule."""
    over = Members(before.kept & ~after.kept, before.firsts)
    load = functools.lru_cache(maxsize=2)(limits.of_lone)
    for rows in lone_rows.read_placed(parts, over, [pl.col("row", "pieces", "prompt")]):
        blocks = (rows["place"] // BLOCK).unique().sort()
        capped = pl.concat([load(block) for block in blocks] or [load(0).clear()])
        named = [cluster_name(prompt) for prompt in rows["prompt"]]
        rows = rows.with_columns(cluster=pl.Series(named, dtype=pl.String))
        yield rows.join(capped.rename({"row": "place"}), on="place", how="left", maintain_order="left")
