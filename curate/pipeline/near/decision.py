"""Decide which conversations are near duplicates, over the whole corpus; memory grows by about 200 bytes for each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Protocol

import numpy as np
import polars as pl
from numpy.typing import NDArray

from curate.engine import base
from curate.filters import duplicates
from curate.filters.minhash import signatures, templates
from curate.filters.minhash.matches import Pair
from curate.filters.minhash.shingles import Shingles, Values, is_in, jaccard
from curate.filters.registry import Settings
from curate.pipeline.near import parts as near_parts
from curate.pipeline.train_marks import WORTH

SAMPLE_BYTES = 128 << 20  # of the sets in which common shingles are counted
DESCRIBED = 500  # pairs that one task describes
LARGE = 0.01  # share of all conversations that is named in a warning
MIN_LARGE = 50  # conversations
TWINS: dict[str, pl.DataType] = {
    "order": pl.UInt32(),
    "twin": pl.UInt32(),
    "figure": pl.Float64(),
    "evidence": pl.String(),
}


@dataclass(frozen=True)
class Twins:
    """What a rule drops among conversations that are numbered by their `order`.

    `rows` (`TWINS`) has those to drop, with the twin to keep and how similar it is. `edges`, [pairs, 2], has those to
    hold out together.
    """

    rows: pl.DataFrame
    edges: NDArray[np.int64]
    alone: int  # conversations that would be dropped if this were the only rule
    warnings: tuple[str, ...]


class Finder(Protocol):
    """Finds what a corpus rule drops, of what the rules before it keep."""

    name: str

    def find(self, rows: pl.DataFrame, alone: pl.DataFrame) -> Twins:
        """Find what to drop among `rows`, and count what would be dropped among `alone`: what this rule sees alone."""


class NearDuplicates:
    """Finds the near duplicates of a run whose workers have written each part's shingles."""

    name = duplicates.NEAR

    def __init__(self, pool: base.Pool, folder: Path, settings: Settings) -> None:
        self._pool = pool
        self._folder = folder
        self._settings = settings
        self._of = str(settings["of"])

    def find(self, rows: pl.DataFrame, alone: pl.DataFrame) -> Twins:
        """Find the near duplicates among `rows`, and count those among `alone`: what this rule would see by itself.

        Both have part, row, chain and marks, in record order; `rows` has `order`.
        """
        if rows.is_empty() and alone.is_empty():
            return Twins(pl.DataFrame(schema=TWINS), np.empty((0, 2), np.int64), 0, ())
        numbers = sorted({*rows["part"], *alone["part"]})
        self._store = near_parts.Store(self._folder, numbers)
        self._first = dict(zip(numbers, self._store.firsts.tolist(), strict=True))
        self._common = self._find_common(rows)
        np.save(self._folder / near_parts.COMMON, self._common)
        self._compute_bands(numbers)
        found = self._match(rows)
        drops = self._settings["action"] == "drop"
        alone_count = self._count_alone(rows, alone, len(found)) if drops else 0
        del self._bands
        order = rows["order"].to_numpy().astype(np.int64)
        edges = np.array([(pair.row, pair.twin) for pairs in found for pair in pairs], np.int64).reshape(-1, 2)
        described = self._describe(rows, [pairs[0] for pairs in found]) if drops else []
        twins = pl.DataFrame(
            [(order[pair.row], order[pair.twin], pair.jaccard, text) for pair, text, _ in described],
            schema=TWINS,
            orient="row",
        )
        return Twins(twins, order[edges], alone_count, tuple(self._warnings(rows, described)))

    def _numbers(self, rows: pl.DataFrame) -> NDArray[np.int64]:
        """Return the number of each row's conversation among those of all parts."""
        firsts = rows["part"].replace_strict(list(self._first), list(self._first.values()), return_dtype=pl.Int64)
        numbers: NDArray[np.int64] = firsts.to_numpy() + rows["row"].to_numpy().astype(np.int64)
        return numbers

    def _compute_bands(self, numbers: Sequence[int]) -> None:
        """Compute the bands of all parts in the workers, and which conversations are mostly a template's."""
        size = len(self._store.sizes)
        self._bands = np.zeros((size, signatures.BANDS), np.uint32)
        self._templated = np.zeros(size, bool)
        calls = (base.Call(near_parts.band_part, (self._folder, number)) for number in numbers)
        for number, (bands, templated) in zip(numbers, self._pool.map(calls), strict=True):
            place = slice(self._first[number], self._first[number] + len(bands))
            self._bands[place], self._templated[place] = bands, templated

    def _count_alone(self, rows: pl.DataFrame, alone: pl.DataFrame, found: int) -> int:
        """Return how many of the conversations in `alone` are dropped; `found` of `rows` are."""
        same = rows.height == alone.height and rows.select("part", "row").equals(alone.select("part", "row"))
        return found if same else len(self._match(alone))

    def _find_common(self, rows: pl.DataFrame) -> Values:
        """Return the shingles that many conversations share, from a sample by their contents' hashes."""
        distinct = rows.select("part", "row", last=pl.col("chain").list.last()).unique("last").sort("last")
        numbers = self._numbers(distinct)
        numbers = numbers[self._store.sizes[numbers] > 0]
        sample = numbers[: templates.SAMPLE]
        total = np.cumsum(self._store.sizes[sample]) * np.dtype(np.uint32).itemsize
        sample = np.sort(sample[: max(1, int(np.searchsorted(total, SAMPLE_BYTES)))])
        sets = [self._store.read(number) for number in sample.tolist()]
        values = np.concatenate([*sets, np.empty(0, np.uint32)])
        found = Shingles(values, self._store.sizes[sample])
        return templates.find_common(found, len(numbers), float(str(self._settings["common"])))

    def _match(self, rows: pl.DataFrame) -> list[list[Pair]]:
        """Return the pairs of each near duplicate among the rows, by their places."""
        numbers = self._numbers(rows)
        sizes = self._store.sizes[numbers]
        threshold = float(str(self._settings["threshold"]))

        def compare(row: int, others: list[int]) -> list[float]:
            return [self._figure(int(numbers[row]), int(numbers[other]), threshold) for other in others]

        candidates = duplicates.Candidates(self._bands[numbers], _from_best(rows, sizes), compare)
        return duplicates.near_duplicates(candidates, **self._settings)  # type: ignore[arg-type]  # checked

    def _figure(self, first: int, second: int, threshold: float) -> float:
        """Return the Jaccard figure of two conversations; 0 if it is below the threshold, for their own texts too."""
        smaller, larger = sorted((int(self._store.sizes[first]), int(self._store.sizes[second])))
        if smaller < threshold * larger:
            return 0.0
        sets = self._store.read(first), self._store.read(second)
        figure = jaccard(*sets)
        if figure < threshold or not (self._templated[first] or self._templated[second]):
            return figure
        own = [values[~is_in(values, self._common)] for values in sets]
        return figure if not (len(own[0]) or len(own[1])) or jaccard(*own) >= threshold else 0.0

    def _describe(self, rows: pl.DataFrame, pairs: Sequence[Pair]) -> list[tuple[Pair, str, str]]:
        """Return each pair with its evidence and the longest passage that both share."""
        places = rows.select("part", "row").rows()
        ordered = iter(sorted(pairs, key=lambda pair: places[pair.row][0]))
        groups = [*iter(lambda: list(islice(ordered, DESCRIBED)), [])]
        calls = (
            base.Call(
                near_parts.describe,
                (self._folder, self._of, [(*places[pair.row], *places[pair.twin]) for pair in group]),
            )
            for group in groups
        )
        return [
            (pair, *texts)
            for group, described in zip(groups, self._pool.map(calls), strict=True)
            for pair, texts in zip(group, described, strict=True)
        ]

    def _warnings(self, rows: pl.DataFrame, described: Sequence[tuple[Pair, str, str]]) -> Iterator[str]:
        """Yield a warning for each cluster that is a large share of the set, and for a template of many."""
        large = max(LARGE * rows.height, MIN_LARGE)
        sizes = Counter(pair.twin for pair, _, _ in described)
        passages = {pair.twin: passage for pair, _, passage in described}
        names = rows.select(pl.format("{}:{}", "source_file", "source_index"))
        for twin, size in sorted(sizes.items(), key=lambda item: -item[1]):
            if size > large:
                yield (
                    f"{duplicates.NEAR}: {size:,} of {rows.height:,} conversations are nearly the same as "
                    f"{names.item(twin, 0)}, which is kept; they share “{passages[twin][: near_parts.EXCERPT]}”"
                )
        numbers = self._numbers(rows)
        templated = np.flatnonzero(self._templated[numbers])
        if len(templated) > large:
            first = rows[templated].select("part", "row", last=pl.col("chain").list.last()).sort("last")
            part, row = first.row(0)[:2]
            passage = near_parts.common_passage(self._folder, part, row, self._of)
            yield (
                f"{duplicates.NEAR}: {len(templated):,} of {rows.height:,} conversations are mostly text that "
                f"many share, such as “{passage}”; only those are dropped whose other text is nearly the same too"
            )


def _from_best(rows: pl.DataFrame, sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the places of the rows that have words, from the best conversation to the worst.

    The best trains the most answers, then has the most different words, then the most messages; of equal ones, the
    hash of the content decides, so the order of records never does.
    """
    ranked = rows.select(size=pl.Series(sizes), **WORTH).with_row_index("place")
    ranked = ranked.filter(pl.col("size") > 0)
    ranked = ranked.sort("untrained", "size", "messages", "last", "place", descending=[False, True, True, False, False])
    return ranked["place"].to_numpy().astype(np.int64)
