"""Group vectors around the best ones, and choose what exceeds a cap."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float16] | NDArray[np.float32]

BLOCK = 1000  # vectors that are compared with all leaders at once


def find_leaders(vectors: Vectors, threshold: float) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return each vector's leader and its cosine with it; a leader is its own.

    Vectors are unit ones, from the best to the worst; [vectors, width]. One that is unlike every leader before it
    becomes a leader, so each is compared itself with the one that it follows. Time grows with vectors times leaders.
    """
    leader = np.arange(len(vectors))
    cosine = np.ones(len(vectors))
    leaders = np.empty(0, np.int64)
    for start in range(0, len(vectors), BLOCK):
        block = np.arange(start, min(start + BLOCK, len(vectors)))
        nearest, figures = _nearest(vectors, block, leaders)
        follows = figures >= threshold
        leader[block[follows]], cosine[block[follows]] = nearest[follows], figures[follows]
        rest = block[~follows]
        inside = vectors[rest].astype(np.float32) @ vectors[rest].astype(np.float32).T
        free = np.ones(len(rest), bool)
        for place in range(len(rest)):
            if not free[place]:
                continue
            like = free & (inside[place] >= threshold)
            like[: place + 1] = False
            leader[rest[like]], cosine[rest[like]] = rest[place], inside[place][like]
            free &= ~like
        leaders = np.concatenate([leaders, rest[free]])
    return leader, np.minimum(cosine, 1.0)


def _nearest(
    vectors: Vectors, block: NDArray[np.int64], leaders: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return the nearest leader of each vector of a block, and the cosine with it."""
    best = np.full(len(block), -2.0, np.float32)
    nearest = block.copy()
    own = vectors[block].astype(np.float32)
    for start in range(0, len(leaders), BLOCK):
        some = leaders[start : start + BLOCK]
        figures = own @ vectors[some].astype(np.float32).T
        place = figures.argmax(axis=1)
        value = figures[np.arange(len(block)), place]
        better = value > best
        best[better], nearest[better] = value[better], some[place[better]]
    return nearest, best


def beyond_cap(groups: Sequence[int], order: Iterable[int], most: int) -> list[tuple[int, int]]:
    """Return the rows that exceed `most` of their group, each with the group's best row; `order` is from the best."""
    sizes: Counter[int] = Counter()
    best: dict[int, int] = {}
    found = []
    for row in order:
        group = groups[row]
        best.setdefault(group, row)
        sizes[group] += 1
        if sizes[group] > most:
            found.append((row, best[group]))
    return found
