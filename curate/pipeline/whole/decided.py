"""The decisions on groups of conversations, in files until the split is known, and afterwards by their part."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import polars as pl

from curate import files
from curate.dataset import columns
from curate.pipeline.whole.spill import Shuffle

BLOCK = 100_000  # conversations, about, whose decisions are in one file
Finish = Callable[[pl.DataFrame, pl.DataFrame], pl.DataFrame]


class DecidedGroups:
    """Decisions on groups, with the known conversations of each, in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._count = 0

    def add(self, rows: pl.DataFrame, known: pl.DataFrame) -> None:
        """Add the decisions on a group."""
        rows.write_ipc(self._path(self._count, "decided-rows"))
        known.write_ipc(self._path(self._count, "decided-known"))
        self._count += 1

    def clusters(self) -> Iterator[pl.Series]:
        """Yield the clusters of each group's kept conversations."""
        for number in range(self._count):
            rows = pl.scan_ipc(self._path(number, "decided-rows"))
            kept = rows.filter(pl.col("rule").is_null()).select(pl.col("cluster").cast(pl.String))
            yield kept.collect()["cluster"]

    def by_part(self, firsts: Mapping[int, int], finish: Finish, further: pl.DataFrame) -> list[pl.LazyFrame]:
        """Return the decisions in ascending order of parts, a part in one frame; `finish` completes those of a group.

        `firsts` has the place of each part's first conversation, `further` more decisions. Each group is removed.
        """
        parts = np.array(sorted(firsts), np.int64)
        bins = np.array([firsts[part] for part in parts.tolist()], np.int64) // BLOCK
        shuffle = Shuffle(self._folder, "by-part", int(bins.max(initial=0)) + 1)

        def write(rows: pl.DataFrame) -> None:
            rows = _decisions(rows).sort("part", maintain_order=True)
            shuffle.write(rows, bins[np.searchsorted(parts, rows["part"].to_numpy())])

        for number in range(self._count):
            paths = [self._path(number, name) for name in ("decided-rows", "decided-known")]
            write(finish(*(pl.scan_ipc(path).collect() for path in paths)))
            for path in paths:
                files.remove(path, path.parent)
        write(further)
        frames = list(self._gather(shuffle, np.unique(bins).tolist()))
        shuffle.remove()
        return frames

    def _gather(self, shuffle: Shuffle, numbers: Sequence[int]) -> Iterator[pl.LazyFrame]:
        for number in numbers:
            path = self._folder / f"decided-{number:06d}.arrow"
            rows = pl.concat([_decisions(pl.DataFrame()), *shuffle.read(number)])
            rows.sort("part", maintain_order=True).write_ipc(path)
            yield pl.scan_ipc(path)

    def _path(self, number: int, name: str) -> Path:
        return self._folder / f"{name}-{number:06d}.arrow"


def _decisions(rows: pl.DataFrame) -> pl.DataFrame:
    """Return the rows with the columns of decisions; null where they have none."""
    every = pl.concat([pl.DataFrame(schema=columns.DECISION), rows], how="diagonal_relaxed")
    return every.select(pl.col(name).cast(dtype) for name, dtype in columns.DECISION.items())
