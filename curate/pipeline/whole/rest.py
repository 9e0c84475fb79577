"""The decisions on conversations that share nothing with any other: one byte each, the rest is read from the parts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from curate.pipeline.frames import part_file
from curate.pipeline.holdout import cluster_name
from curate.pipeline.whole.lone import BLOCK, Lone
from curate.pipeline.whole.names import with_plain
from curate.pipeline.whole.spill import Keys

ELSEWHERE, TRAIN, EVAL = range(3)  # rejected or decided with others; kept in either split
STATES = "rest.npy"  # in the folder of parts
COLUMNS = ("row", "pieces", "source_id", "prompt", "chain")


@dataclass(frozen=True)
class Rest:
    """`states`, [conversations], uint8, in the order of the parts; `firsts` has the place of each part's first."""

    states: NDArray[np.uint8]
    firsts: Mapping[int, int]

    @classmethod
    def of(cls, lone: Lone, held_out: Callable[[Keys], NDArray[np.bool_]]) -> Rest:
        """Return the decisions; `held_out` says of the prompts of kept ones which go to eval."""
        states = np.zeros(len(lone.kept), np.uint8)
        start = 0
        for prompts in lone.prompts():
            own = states[start : start + BLOCK]
            own[lone.kept[start : start + BLOCK]] = np.where(held_out(prompts), EVAL, TRAIN)
            start += BLOCK
        if lone.earlier is not None:  # its own split holds
            np.copyto(states, lone.earlier, where=lone.kept & (lone.earlier > 0))
        return cls(states, lone.firsts)

    def read(self, folder: Path, number: int) -> pl.DataFrame:
        """Return the decisions on a part's conversations: row, pieces, id, cluster and split."""
        rows = pl.read_ipc(part_file(folder, number, "summary"), columns=list(COLUMNS))
        first = self.firsts[number]
        rows = rows.with_columns(state=pl.Series(self.states[first : first + rows.height]))
        rows = with_plain(rows.filter(pl.col("state") != ELSEWHERE))
        names = pl.Series([cluster_name(prompt) for prompt in rows["prompt"]], dtype=pl.String)
        split = pl.when(pl.col("state") == EVAL).then(pl.lit("eval")).otherwise(pl.lit("train"))
        return rows.select("row", "pieces", id="plain", cluster=names, split=split)
