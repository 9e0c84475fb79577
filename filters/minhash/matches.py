"""Choose which of similar sets to keep: the best ones, and drop a set only by its own figure to a kept one.

Sets are visited from the best to the worst. Each is compared with the kept ones that share a band with it; it is
dropped if one of them is similar enough, and kept otherwise. So no chain of pairs drops a set that is unlike every kept
one, and the result does not depend on the order in which sets were read.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MAX_KEPT = 64  # sets of one band that later ones are compared with
MAX_COMPARED = 128  # kept sets that one set is compared with: those that share the most bands

Compare = Callable[[int, list[int]], list[float]]  # a set and some kept ones → their Jaccard figures


@dataclass(frozen=True, slots=True)
class Pair:
    """A set and a kept one that it is similar to, with their Jaccard figure."""

    row: int
    twin: int
    jaccard: float


def match(bands: NDArray[np.uint32], order: Iterable[int], compare: Compare, threshold: float) -> list[list[Pair]]:
    """Return, for each set that is similar to a kept one, its pairs: the most similar first, of equal ones the best.

    `bands` is [sets, bands], `order` has the sets from the best to the worst; those with fewer bands in common are not
    compared. The first pair's twin is the one to keep instead.
    """
    buckets = _buckets(bands)
    kept: defaultdict[int, list[int]] = defaultdict(list)
    dropped: list[list[Pair]] = []
    for row in order:
        own = buckets[row][buckets[row] >= 0].tolist()
        if not own:
            continue
        candidates = _most_shared(kept, own)
        figures = compare(row, candidates) if candidates else []
        pairs = [Pair(row, twin, figure) for twin, figure in zip(candidates, figures, strict=True)]
        pairs = [pair for pair in pairs if pair.jaccard >= threshold]
        if pairs:
            dropped.append(sorted(pairs, key=lambda pair: -pair.jaccard))
            continue
        for bucket in own:
            if len(kept[bucket]) < MAX_KEPT:
                kept[bucket].append(row)
    return dropped


def _most_shared(kept: defaultdict[int, list[int]], buckets: list[int]) -> list[int]:
    """Return the kept sets in these buckets, those in most of them first, of equal ones the best."""
    shared = Counter(row for bucket in buckets if bucket in kept for row in kept[bucket])
    return [row for row, _ in shared.most_common(MAX_COMPARED)]


def _buckets(bands: NDArray[np.uint32]) -> NDArray[np.int64]:
    """Return the number of each set's bucket in each band, [sets, bands]; -1 where the set is alone in it."""
    buckets = np.full(bands.shape, -1, np.int64)
    used = 0
    for band in range(bands.shape[1]):
        _, inverse, sizes = np.unique(bands[:, band], return_inverse=True, return_counts=True)
        numbers = np.where(sizes > 1, np.cumsum(sizes > 1) - 1 + used, -1)
        buckets[:, band] = numbers[inverse]
        used += int(np.count_nonzero(sizes > 1))
    return buckets
