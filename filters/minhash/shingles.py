"""Reduce texts to sets of shingles: the hashes of all runs of five words (Broder 1997), 32 bits each.

Of two sets of 1,000 shingles, the chance that one pair of different shingles has the same hash is 0.02 %
(1,000 * 1,000 / 2^32), so a Jaccard figure of two sets of hashes is that of the texts but for less than 0.001.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from curate.filters.minhash.words import Hashes, Places, Words, count_words, mix

WIDTH = 5  # words of a shingle; a shorter text has one shingle, of all its words
FACTORS = mix(np.arange(1, WIDTH + 1, dtype=np.uint64)) | np.uint64(1)  # unrelated, so that the order of words counts
HIGH = np.uint64(32)

Values = NDArray[np.uint32]


@dataclass(frozen=True, slots=True)
class Shingles:
    """The sets of several texts: all values in a row, sorted and unique within each text, and the sets' sizes."""

    values: Values
    sizes: Places

    def owners(self) -> Places:
        """Return the number of the text of each value."""
        return np.repeat(np.arange(len(self.sizes)), self.sizes)

    def select(self, mask: NDArray[np.bool_]) -> Shingles:
        """Return the sets without the values where `mask` is false."""
        sizes = np.bincount(self.owners()[mask], minlength=len(self.sizes))
        return Shingles(self.values[mask], sizes.astype(np.int64))


def shingle(texts: Sequence[str]) -> Shingles:
    """Return the shingles of each text; a text without words has none. Texts are composed (`words.compose`)."""
    hashes, counts = count_words(texts)
    every = _all_shingles(hashes)
    first = np.cumsum(counts) - counts
    place = np.arange(len(hashes)) - np.repeat(first, counts)
    last = np.repeat(np.maximum(counts - WIDTH, 0), counts)  # the place of each text's last shingle
    every = _with_short(every, hashes, first, counts)
    owners = np.repeat(np.arange(len(counts), dtype=np.uint64), counts)
    keys = np.sort((owners << HIGH | every)[place <= last])
    keys = keys[np.flatnonzero(np.diff(keys, prepend=keys[:1] + np.uint64(1)))]  # as np.unique, which is slower
    sizes = np.bincount((keys >> HIGH).astype(np.int64), minlength=len(counts))
    return Shingles(keys.astype(np.uint32), sizes.astype(np.int64))


def _all_shingles(hashes: Hashes) -> Hashes:
    """Return the hash of each word with the four that follow it, without regard to where texts end."""
    sums = hashes * FACTORS[0]
    for place in range(1, WIDTH):
        sums[:-place] += hashes[place:] * FACTORS[place]
    return mix(sums) >> HIGH


def _with_short(every: Hashes, hashes: Hashes, first: Places, counts: Places) -> Hashes:
    """Put the hash of all words at the first word of each text that has fewer than five."""
    short = np.flatnonzero((counts > 0) & (counts < WIDTH))
    sums = np.zeros(len(short), np.uint64)
    for place in range(WIDTH - 1):
        known = counts[short] > place
        sums[known] += hashes[first[short][known] + place] * FACTORS[place]
    every[first[short]] = mix(sums) >> HIGH
    return every


def sequence(words: Words) -> Hashes:
    """Return the shingles of one text in their order, with repetitions; [words - 4], or [1] of a shorter text."""
    hashes = words.hashes
    if len(hashes) >= WIDTH:
        return _all_shingles(hashes)[: len(hashes) - WIDTH + 1]
    return _with_short(hashes.copy(), hashes, np.array([0]), np.array([len(hashes)]))[:1]


def is_in(values: Values, known: Values) -> NDArray[np.bool_]:
    """Return which values are known ones; these are sorted."""
    if not len(known):
        return np.zeros(len(values), bool)
    place = np.searchsorted(known, values)
    place[place == len(known)] = 0
    found: NDArray[np.bool_] = known[place] == values
    return found


def jaccard(first: Values, second: Values) -> float:
    """Return the share of the shingles of two texts that both have; sorted and unique."""
    if not len(first) or not len(second):
        return 0.0
    small, large = sorted((first, second), key=len)
    shared = int(np.count_nonzero(is_in(small, large)))
    return shared / (len(first) + len(second) - shared)
