"""Compare conversations with the fingerprints of benchmarks.

A text of a benchmark is covered by those of its words that lie in an 8-gram that it shares with the conversation (Tülu
3, arXiv 2411.15124). A gram that the benchmark has k times counts 1 / k^3, and nothing if k exceeds `MAX_OCCURRENCES`,
so that items with the same beginning are not taken for each other (allenai/decon weighs by rarity too). A word counts
as much as the rarest shared gram that it lies in, and

    coverage = weights of the words in shared grams / weights of all words of the text.

Beside it, `LONG_RUN` words in a row or the whole text must be shared: the longest passage tells best what a model gains
(ConTAM, arXiv 2411.03923), and a short question may begin as many others do. A text of fewer than eight words is
covered only by a message of exactly its words.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from curate.filters.fingerprints.fingerprint import Fingerprint, count_grams
from curate.filters.fingerprints.grams import GRAM, HASH_BITS, Grams, Hashes, Indices, hash_grams

MAX_OCCURRENCES = 20  # of a gram in a benchmark; it also bounds the work for each gram of a conversation
TABLE_BITS = 23  # hashes are looked up in a table of this many bytes first
MIN_COVERAGE = 0.25  # what is covered less is not measured
LONG_RUN = 13  # words: the length of GPT-3's grams (arXiv 2005.14165, appendix C)

Weights = NDArray[np.float64]


@dataclass(frozen=True)
class Match:
    """A text of a benchmark that a group of texts covers; `run`: the most words in a row that it covers.

    The longest passage that both have lies in text `source` from `start` to `stop`, as positions of `grams.excerpt`.
    """

    group: int
    text: int  # its number in the index
    coverage: float
    run: int
    source: int
    start: int
    stop: int


@dataclass(frozen=True)
class _Shared:
    """8-grams that a group of texts shares with a text of a benchmark, sorted by pair of group and text."""

    groups: Indices
    texts: Indices
    positions: Indices  # in the benchmark's text
    weights: Weights
    grams: Indices  # indices of `Grams`

    def select(self, rows: NDArray[np.bool_] | Indices) -> _Shared:
        return _Shared(self.groups[rows], self.texts[rows], self.positions[rows], self.weights[rows], self.grams[rows])

    def pair_starts(self) -> Indices:
        """Return the first row of each pair."""
        changes = (np.diff(self.groups) != 0) | (np.diff(self.texts) != 0)
        return np.append(0, np.flatnonzero(changes) + 1) if len(self.groups) else np.empty(0, np.int64)


class Index:
    """The grams of benchmarks, to look up those of conversations."""

    def __init__(self, fingerprints: Sequence[Fingerprint]) -> None:
        self.names = [f"{each.benchmark}:{name}" for each in fingerprints for name in each.ids]
        self.texts = [text for each in fingerprints for text in (each.texts or [""] * len(each.ids))]
        self.words: Indices = np.concatenate([each.words for each in fingerprints])
        weights = np.concatenate([_weigh(each.hashes) for each in fingerprints])
        hashes = np.concatenate([each.hashes for each in fingerprints])
        counts = count_grams(self.words)
        texts = np.repeat(np.arange(len(counts)), counts)
        positions = np.arange(len(hashes)) - np.repeat(np.cumsum(counts) - counts, counts)
        self._totals, _ = _measure(self.words, texts, positions, weights)
        used = np.flatnonzero(weights)
        order = used[np.argsort(hashes[used], kind="stable")]
        self._texts, self._positions, self._weights = texts[order], positions[order], weights[order]
        self._known, first = np.unique(hashes[order], return_index=True)
        self._first = np.append(first, len(order))  # of each known hash in the three arrays above
        self._table = np.zeros(1 << TABLE_BITS, np.bool_)
        self._table[_slots(self._known)] = True

    def match(self, texts: Sequence[str], groups: Indices) -> list[Match]:
        """Return what each group of texts covers by at least `MIN_COVERAGE` and a long run, the most covered first."""
        grams = hash_grams(texts, self._select)
        shared = self._share(grams, groups)
        starts = shared.pair_starts()
        if not len(starts):
            return []
        words = self.words[shared.texts[starts]]
        sizes = np.diff(np.append(starts, len(shared.texts)))
        pairs = np.repeat(np.arange(len(starts)), sizes)
        sums, runs = _measure(words, pairs, shared.positions, shared.weights)
        coverage = sums / self._totals[shared.texts[starts]]
        found = np.flatnonzero((coverage >= MIN_COVERAGE) & ((runs >= LONG_RUN) | (coverage >= 1)))
        matches = [
            Match(
                int(shared.groups[starts[pair]]),
                int(shared.texts[starts[pair]]),
                float(coverage[pair]),
                int(runs[pair]),
                *_passage(grams, shared.grams[starts[pair] : starts[pair] + sizes[pair]]),
            )
            for pair in found
        ]
        return sorted(matches, key=lambda match: (match.group, -match.coverage, -match.run, match.text))

    def _select(self, hashes: Hashes) -> Indices:
        """Return the indices of hashes that are known."""
        maybe = np.flatnonzero(self._table.take(_slots(hashes), mode="wrap"))
        chosen = hashes[maybe]
        places = np.searchsorted(self._known, chosen)
        selected: Indices = maybe[self._known.take(places, mode="clip") == chosen]
        return selected

    def _share(self, grams: Grams, groups: Indices) -> _Shared:
        """Return the grams shared by pairs of group and text that share enough of them to matter, each once."""
        known = np.searchsorted(self._known, grams.hashes)
        _, once = np.unique(groups[grams.texts] * (len(self._known) + 1) + known, return_index=True)
        known = known[once]
        counts = self._first[known + 1] - self._first[known]
        rows = np.repeat(np.arange(len(known)), counts)
        slots = np.arange(len(rows)) + np.repeat(self._first[known] - (np.cumsum(counts) - counts), counts)
        found = grams.texts[once][rows]
        shared = _Shared(groups[found], self._texts[slots], self._positions[slots], self._weights[slots], once[rows])
        shared = shared.select(np.lexsort((shared.positions, shared.texts, shared.groups)))
        starts = shared.pair_starts()
        sizes = np.diff(np.append(starts, len(shared.texts)))
        most = GRAM * sizes  # words that are covered at most
        return shared.select(np.repeat(most >= MIN_COVERAGE * self._totals[shared.texts[starts]], sizes))


def _slots(hashes: Hashes) -> Indices:
    return (hashes >> np.uint64(HASH_BITS - TABLE_BITS)).astype(np.int64)


def _weigh(hashes: Hashes) -> Weights:
    """Return the weight of each gram of a benchmark, by how often it has that gram."""
    _, inverse, counts = np.unique(hashes, return_inverse=True, return_counts=True)
    weights: Weights = np.where(counts > MAX_OCCURRENCES, 0.0, 1.0 / counts**3)[inverse]
    return weights


def _measure(words: Indices, owners: Indices, positions: Indices, weights: Weights) -> tuple[Weights, Indices]:
    """Return, for texts of these numbers of words, the weights that grams give to their words, and the longest run.

    `owners` is the text of each gram, `positions` its first word. A run is of words with a weight.
    """
    sizes = np.maximum(words, GRAM)  # a short text is one gram
    firsts = np.cumsum(sizes) - sizes
    heaviest = np.zeros(int(sizes.sum()))
    heaviest[firsts[owners] + positions] = weights
    for shift in (1, 2, 4):  # a gram also covers the seven words that follow; the last seven of a text begin none
        heaviest[shift:] = np.maximum(heaviest[shift:], heaviest[:-shift])
    places = np.arange(len(heaviest))
    gaps = np.where(heaviest > 0, -1, places)
    gaps[firsts] = np.maximum(gaps[firsts], firsts - 1)
    runs = np.maximum.reduceat(places - np.maximum.accumulate(gaps), firsts)
    return np.add.reduceat(heaviest, firsts), np.minimum(runs, words)


def _passage(grams: Grams, chosen: Indices) -> tuple[int, int, int]:
    """Return text, start and stop of the longest passage that these grams make together."""
    best = (0, 0, 0)
    source = start = stop = -1
    for row in np.lexsort((grams.start[chosen], grams.texts[chosen])):
        at = int(chosen[row])
        text, first, last = int(grams.texts[at]), int(grams.start[at]), int(grams.stop[at])
        if text != source or first > stop:
            source, start, stop = text, first, last
        stop = max(stop, last)
        best = max(best, (stop - start, -source, -start))
    return -best[1], -best[2], -best[2] + best[0]
