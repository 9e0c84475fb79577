"""What texts say again: the share of their words, and passages several times in a row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from curate.filters.text.words import Ints, UInt64s, Words, find_words, hash_grams

LOOP = 32  # words of the shortest loop
OWNER = np.uint64(0x9E3779B97F4A7C15)
GRAM = 8  # words in a row that count as a passage, if the same text said them before


@dataclass(frozen=True)
class Repeats:
    """By text: its words, the share of them in passages that it said before, and how often it says one at most.

    `times` is how often its longest loop says a passage in a row (1: there is no loop), and `passages` that passage.
    """

    words: Ints
    shares: npt.NDArray[np.float64]
    most: Ints
    times: Ints
    passages: Sequence[str]


def find_repeats(texts: Sequence[str]) -> Repeats:
    """Measure each text by itself."""
    words = find_words(texts)
    distances, most = _distances(words)
    covered = np.append(np.cumsum(_covered(distances > 0)), 0)  # of the words up to each; at the end, of none
    totals = np.diff(covered[words.firsts - 1])
    times, passages = _loops(words, distances)
    return Repeats(words.counts, totals / np.maximum(words.counts, 1), most, times, passages)


def _distances(words: Words) -> tuple[Ints, Ints]:
    """Return how many words before each one the passage that begins there was last said, and most times, by text.

    A distance of 0: the text did not say it before. Each passage is counted once in a loop.
    """
    owners = words.owners
    distances, most = np.zeros(len(owners), np.int64), np.ones(len(words.counts), np.int64)
    grams = hash_grams(words.hashes, GRAM)
    places = np.flatnonzero(owners[: len(grams)] == owners[len(owners) - len(grams) :])  # within one text
    keys = grams[places] + owners[places].astype(np.uint64) * OWNER
    chosen = _twice(keys)
    places, keys = places[chosen], keys[chosen]
    order = np.argsort(keys, kind="stable")
    same = keys[order][1:] == keys[order][:-1]
    later, earlier = places[order][1:][same], places[order][:-1][same]
    distances[later] = later - earlier
    counts = _run_lengths(same)
    np.maximum.at(most, owners[places[order][1:]], counts + 1)
    return distances, most


def _run_lengths(same: npt.NDArray[np.bool_]) -> Ints:
    """Return how many of `same` in a row, up to each, are true."""
    totals = np.cumsum(same)
    return totals - np.maximum.accumulate(np.where(same, 0, totals))


def _twice(keys: UInt64s) -> npt.NDArray[np.bool_]:
    """Return which keys may occur twice: all that do, and some others. Faster than sorting all keys."""
    bits = max(8, len(keys).bit_length() + 1)
    slots = (keys >> np.uint64(64 - bits)).astype(np.int64)
    last = np.empty(1 << bits, np.int32)
    places = np.arange(len(keys), dtype=np.int32)
    last[slots] = places
    shared = np.zeros(1 << bits, np.bool_)
    shared[slots[last[slots] != places]] = True
    return shared[slots]


def _covered(begins: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """Return 1 for each word of a passage that begins at one of these, else 0."""
    if not len(begins):
        return np.zeros(0, np.int64)
    deltas = np.zeros(len(begins) + GRAM, np.int64)
    places = np.flatnonzero(begins)
    np.add.at(deltas, places, 1)
    np.add.at(deltas, places + GRAM, -1)
    return (np.cumsum(deltas)[: len(begins)] > 0).astype(np.int64)


def _loops(words: Words, distances: Ints) -> tuple[Ints, list[str]]:
    """Return how often each text says a passage in a row, at most, and the passage; a loop has `LOOP` words or more.

    For a text without a loop, the passage is the longest that it said before.
    """
    count = len(words.firsts) - 1
    times, lengths, passages = [1] * count, [0] * count, [""] * count
    places = np.flatnonzero(distances)
    # a run: at each word, the passage was last said the same number of words before
    breaks = (np.diff(places) != 1) | (np.diff(distances[places]) != 0)
    begins = places[np.append(True, breaks)[: len(places)]]
    ends = places[np.append(breaks, True)[: len(places)]]
    owners = np.searchsorted(words.firsts, begins, side="right") - 1
    runs = (values.tolist() for values in (owners, begins, ends, distances[begins]))
    for owner, begin, end, period in zip(*runs, strict=True):
        length = end - begin + GRAM
        repeated = (length + period) // period if length + period >= LOOP else 1
        if (repeated if repeated > 2 else 1, length) > (times[owner], lengths[owner]):
            times[owner], lengths[owner] = repeated if repeated > 2 else 1, length
            passages[owner] = words.passage(begin, begin + min(period, length) - 1)
    return np.array(times), passages
