"""Propose pairs of similar sets: MinHash signatures in 20 bands of 5 rows (Broder 1997; Indyk and Motwani 1998).

Two sets with the Jaccard figure s share at least one band with probability 1 - (1 - s^5)^20: 0.9996 at 0.8, 0.47 at
0.5, 0.05 at 0.3. A signature comes from one permutation (Li, Owen and Zhang 2012): the range of hashes is divided into
100 bins, each with its lowest value. An empty bin takes the value of a bin chosen by hash, the same for all sets
(Shrivastava 2017).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from curate.filters.minhash.shingles import HIGH, Shingles, Values
from curate.filters.minhash.words import mix

BANDS = 20
ROWS = 5
BINS = BANDS * ROWS
ATTEMPTS = 24  # bins to look in for the value of an empty one; afterwards the next one that has a value

Signatures = NDArray[np.uint64]


def band_hashes(sets: Shingles) -> Values:
    """Return [sets, BANDS]; sets that share a hash in one column are candidates. An empty set has hashes of zeros."""
    signatures, known = _lowest(sets)
    _fill(signatures, known)
    factors = mix(np.arange(1, ROWS + 1, dtype=np.uint64))
    rows = signatures.reshape(len(signatures), ROWS, BANDS)  # a band's bins are far apart
    sums = (mix(rows + np.uint64(1)) * factors[:, None] | np.uint64(1)).sum(axis=1, dtype=np.uint64)
    bands: Values = (mix(sums) >> HIGH).astype(np.uint32)
    return bands


def _lowest(sets: Shingles) -> tuple[Signatures, NDArray[np.bool_]]:
    """Return the lowest value of each bin, [sets, BINS], and which bins have one."""
    bins = (sets.values.astype(np.uint64) * np.uint64(BINS) >> HIGH).astype(np.int64)
    cell = sets.owners() * BINS + bins
    first = np.flatnonzero(np.diff(cell, prepend=-1))  # values are sorted, so the first of a bin is its lowest
    signatures = np.zeros(len(sets.sizes) * BINS, np.uint64)
    known = np.zeros(len(signatures), bool)
    signatures[cell[first]] = sets.values[first]
    known[cell[first]] = True
    return signatures.reshape(-1, BINS), known.reshape(-1, BINS)


def _fill(signatures: Signatures, known: NDArray[np.bool_]) -> None:
    """Give each empty bin the value of another one, in place."""
    empty = ~known & known.any(axis=1, keepdims=True)
    row, column = np.nonzero(empty)
    for attempt in range(ATTEMPTS + BINS):
        if not len(row):
            return
        donor = _donors(attempt)[column] if attempt < ATTEMPTS else (column + attempt - ATTEMPTS + 1) % BINS
        found = known[row, donor]
        signatures[row[found], column[found]] = signatures[row[found], donor[found]]
        row, column = row[~found], column[~found]


def _donors(attempt: int) -> NDArray[np.int64]:
    """Return the bin in which each bin looks for a value at this attempt, [BINS]."""
    seeds = np.arange(BINS, dtype=np.uint64) + np.uint64((attempt + 1) * BINS)
    donors: NDArray[np.int64] = (mix(seeds) % np.uint64(BINS)).astype(np.int64)
    return donors
