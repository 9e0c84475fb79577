"""Choose which of similar sets to keep: the best ones, and drop a set only by its own figure to a kept one.

Sets are visited from the best to the worst. Each is compared with the kept ones that share a band with it; it is
dropped if one of them is similar enough, and kept otherwise. So no chain of pairs drops a set that is unlike every kept
one, and the result does not depend on the order in which sets were read.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Iterator
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


def match(bands: NDArray[np.uint32], order: NDArray[np.int64], compare: Compare, threshold: float) -> list[list[Pair]]:
    """Return, for each set that is similar to a kept one, its pairs: the most similar first, of equal ones the best.

    `bands` is [sets, bands], `order` has the sets from the best to the worst; those that are alone in all bands are not
    compared. The first pair's twin is the one to keep instead.
    """
    buckets, count = _buckets(bands)
    order = order[(buckets[order] >= 0).any(axis=1)]
    rows = order.tolist()
    kept = _Kept(count)
    dropped: list[list[Pair]] = []
    for place, row in enumerate(rows):
        own = buckets[row][buckets[row] >= 0].tolist()
        candidates = [rows[best] for best in kept.most_shared(own)]
        figures = compare(row, candidates) if candidates else []
        pairs = [Pair(row, twin, figure) for twin, figure in zip(candidates, figures, strict=True)]
        pairs = [pair for pair in pairs if pair.jaccard >= threshold]
        if pairs:
            dropped.append(sorted(pairs, key=lambda pair: -pair.jaccard))
        else:
            kept.add(place, own)
    return dropped


class _Kept:
    """The places of the kept sets in each bucket, as linked lists in flat arrays: a million buckets take 5 MB."""

    def __init__(self, buckets: int) -> None:
        self._newest = array("i", [-1]) * buckets  # the entry that was added last
        self._sizes = array("B", [0]) * buckets
        self._places = array("i")  # of each entry
        self._earlier = array("i")  # the entry before it in its bucket

    def add(self, place: int, buckets: list[int]) -> None:
        """Add a set to buckets that are not full."""
        for bucket in buckets:
            if self._sizes[bucket] < MAX_KEPT:
                self._sizes[bucket] += 1
                self._places.append(place)
                self._earlier.append(self._newest[bucket])
                self._newest[bucket] = len(self._places) - 1

    def most_shared(self, buckets: list[int]) -> list[int]:
        """Return the places in these buckets, those in most of them first, of equal ones the best."""
        shared = Counter(place for bucket in buckets for place in self._in_bucket(bucket))
        return sorted(shared, key=lambda place: (-shared[place], place))[:MAX_COMPARED]

    def _in_bucket(self, bucket: int) -> Iterator[int]:
        entry = self._newest[bucket]
        while entry >= 0:
            yield self._places[entry]
            entry = self._earlier[entry]


def _buckets(bands: NDArray[np.uint32]) -> tuple[NDArray[np.int32], int]:
    """Return the number of each set's bucket in each band, [sets, bands], and how many buckets there are.

    It is -1 where the set is alone in its bucket.
    """
    buckets = np.full(bands.shape, -1, np.int32)
    used = 0
    for band in range(bands.shape[1]):
        _, inverse, sizes = np.unique(bands[:, band], return_inverse=True, return_counts=True)
        numbers = np.where(sizes > 1, np.cumsum(sizes > 1) - 1 + used, -1)
        buckets[:, band] = numbers[inverse]
        used += int(np.count_nonzero(sizes > 1))
    return buckets, used
