"""Limits on groups of a large corpus, such as files: conversations are ranked in files, by ranges of a coarse key."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import polars as pl

from curate import files
from curate.filters.caps import Limits, rank
from curate.pipeline.whole.spill import Shuffle

RANGE = 100_000  # conversations that are ranked at a time, about
SAMPLED = 64  # of so many conversations one is in the sample that ranges are chosen by
UNTRAINED, CHARACTERS, MESSAGES = (1 << 7) - 1, (1 << 24) - 1, (1 << 8) - 1  # from which on the coarse key is one


class Ranking:
    """Finds what exceeds limits among conversations that are added in any order, each with the number of a bin."""

    def __init__(self, folder: Path, name: str, limits: Mapping[str, int]) -> None:
        self._folder = folder
        self._name = name
        self._limits = Limits(limits)
        self._files: list[Path] = []
        self._sample = [np.empty(0, np.uint64)]
        self._count = 0
        self._bins = 0
        self._dropped = Shuffle(folder, f"{name}-dropped", 0)

    def add(self, rows: pl.DataFrame, number: int) -> None:
        """Add conversations, as for `caps.cap`, to a bin, in which their `row` identifies them."""
        path = self._folder / f"{self._name}-{len(self._files):06d}.arrow"
        rows = rows.select(sorted(rows.columns)).with_columns(bin=pl.lit(number, pl.UInt32), coarse=_coarse())
        rows.write_ipc(path)
        self._files.append(path)
        self._sample.append(rows["coarse"].gather_every(SAMPLED).to_numpy())
        self._count += rows.height
        self._bins = max(self._bins, number + 1)

    def find(self) -> int:
        """Find what exceeds a limit, and return how many do."""
        found = 0
        self._dropped = Shuffle(self._folder, f"{self._name}-dropped", self._bins)
        ranges = self._count // RANGE + 1
        sample = np.sort(np.concatenate(self._sample))
        edges = sample[np.arange(1, ranges) * len(sample) // ranges] if len(sample) else sample
        shuffle = Shuffle(self._folder, f"{self._name}-ranges", ranges)
        for path in self._files:
            rows = pl.scan_ipc(path).collect()
            shuffle.write(rows, np.searchsorted(edges, rows["coarse"].to_numpy(), side="right"))
            files.remove(path, path.parent)
        for number in range(ranges):
            if own := [*shuffle.read(number)]:
                dropped = self._limits.drop(rank(pl.concat(own, how="vertical_relaxed")))
                self._dropped.write(dropped, dropped["bin"].to_numpy())
                found += dropped.height
        shuffle.remove()
        return found

    def capped(self, number: int) -> pl.DataFrame:
        """Return those of a bin that exceed a limit (`caps.CAPPED`)."""
        return self._limits.describe([*self._dropped.read(number)])


def _coarse() -> pl.Expr:
    """Return a number that sorts conversations as `caps.rank` does; several may have the same one.

    From the upper bits on: protected, untrained, characters, messages, and the upper bits of the content's hash. All
    bits below one that is at its limit are the same.
    """
    untrained = pl.min_horizontal(pl.col("untrained").cast(pl.UInt64), UNTRAINED)
    characters = CHARACTERS - pl.min_horizontal(pl.col("characters").fill_null(CHARACTERS), CHARACTERS).cast(pl.UInt64)
    messages = MESSAGES - pl.min_horizontal(pl.col("messages"), MESSAGES).cast(pl.UInt64)
    last = pl.when(messages > 0).then(pl.col("last") // (1 << 40)).otherwise(0)
    below = pl.when(characters > 0).then(messages * (1 << 24) + last).otherwise(0)
    below = pl.when(untrained < UNTRAINED).then(characters * (1 << 32) + below).otherwise(0)
    first = pl.col("protected").not_().cast(pl.UInt64)
    return (first * (1 << 63) + untrained * (1 << 56) + below).cast(pl.UInt64)
