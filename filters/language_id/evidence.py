"""What texts say about their language: letter groups and scripts of windows over the whole text, which add up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from curate.filters.language_id import detector, scripts
from curate.filters.language_id.prose import prose

WINDOWS = 4  # of a long text, evenly spaced, so that its language is not only that of its start
WINDOW = 150  # characters
POSITIONS = 128  # of a text at which letter groups are read; 240 are no more accurate
SIDE_POSITIONS = 80  # of each of two sides
SURE = 0.98  # posterior from which a window has a language of its own


@dataclass(frozen=True)
class Evidence:
    """What each text says: by language, by script, and by windows that are surely in one language."""

    means: NDArray[np.float64]  # (texts, languages) mean score of a letter group
    groups: NDArray[np.float64]  # (texts,) independent letter groups: fewer where there is much code
    counts: NDArray[np.int64]  # (texts, kinds) letters, by `scripts.KINDS`
    votes: NDArray[np.float64]  # (texts, languages) share of windows that are surely in a language, times the weight

    @property
    def weights(self) -> NDArray[np.int64]:
        """Return how much text there is, in letters: one of Chinese, Japanese or Korean counts as two."""
        return scripts.weights(self.counts)

    def take(self, keep: NDArray[np.bool_]) -> Evidence:
        """Return the evidence without that of the texts that are not to be kept, which then have none."""
        values = (getattr(self, field.name) for field in fields(self))
        return Evidence(*(value * keep.reshape(-1, *[1] * (value.ndim - 1)) for value in values))

    def __add__(self, other: Evidence) -> Evidence:
        """Return the evidence of pairs of texts, each weighted by its letters."""
        own, others = self.weights[:, None], other.weights[:, None]
        means = (self.means * own + other.means * others) / np.maximum(1, own + others)
        sums = (getattr(self, name) + getattr(other, name) for name in ("groups", "counts", "votes"))
        return Evidence(means, *sums)


def gather_sides(prompts: Sequence[str], answers: Sequence[str]) -> tuple[Evidence, Evidence]:
    """Return the evidence of both sides of conversations: less of each where neither is empty."""
    both = np.array([bool(prompt and answer) for prompt, answer in zip(prompts, answers, strict=True)], bool)
    positions = np.where(both, SIDE_POSITIONS, POSITIONS)
    return gather(prompts, positions), gather(answers, positions)


def gather(texts: Sequence[str], positions: NDArray[np.int64] | int = POSITIONS) -> Evidence:
    """Return the evidence of texts without code blocks; code within lines is left out here.

    Letter groups are read at `positions` of each text.
    """
    windows, sizes = _windows(texts)
    cleaned = pl.select(prose(pl.lit(pl.Series(windows, dtype=pl.String)))).to_series().to_list()
    scores, groups, counts = detector.score(cleaned, np.repeat(positions // sizes, sizes))
    share = np.array([(1 + len(text)) / (1 + len(window)) for window, text in zip(windows, cleaned, strict=True)])
    independent = np.minimum(groups, detector.INDEPENDENT) * share  # words among code are names, and tell little
    totals = [_sums(values, sizes) for values in (scores, groups, counts, independent)]
    whole = _scale(totals[2], texts)
    votes = _votes(scores, groups, counts, independent, sizes) * scripts.weights(whole)[:, None]
    return Evidence(totals[0] / np.maximum(1, totals[1])[:, None], totals[3], whole, votes)


def _sums(values: NDArray[Any], sizes: NDArray[np.int64]) -> NDArray[Any]:
    """Return the sum of each text's windows."""
    summed: NDArray[Any] = np.add.reduceat(values, np.cumsum(sizes) - sizes) if len(sizes) else values
    return summed


def _windows(texts: Sequence[str]) -> tuple[list[str], NDArray[np.int64]]:
    """Return all windows, in order, and the number of each text's: a short text is one window."""
    windows: list[str] = []
    sizes = np.ones(len(texts), np.int64)
    for number, text in enumerate(texts):
        if len(text) <= WINDOWS * WINDOW:
            windows.append(text)
        else:
            step = (len(text) - WINDOW) // (WINDOWS - 1)
            windows += [text[start : start + WINDOW] for start in range(0, WINDOWS * step, step)]
            sizes[number] = WINDOWS
    return windows, sizes


def _scale(counts: NDArray[np.int64], texts: Sequence[str]) -> NDArray[np.int64]:
    """Return the letters of whole texts from those of their windows: Latin ones in proportion, others counted."""
    counts = counts.copy()
    for number, text in enumerate(texts):
        if len(text) > WINDOWS * WINDOW:
            latin = counts[number, scripts.LATIN] * len(text) // (WINDOWS * WINDOW)
            if not text.isascii():
                counts[number] = scripts.count(text)
            counts[number, scripts.LATIN] = latin
    return counts


def _votes(
    scores: NDArray[np.int64],
    groups: NDArray[np.int64],
    counts: NDArray[np.int64],
    independent: NDArray[np.float64],
    sizes: NDArray[np.int64],
) -> NDArray[np.float64]:
    """Return the share of the letters of each text's windows that are surely in each language, (texts, languages)."""
    means = scores / np.maximum(1, groups)[:, None]
    scripts.settle(counts, means)
    best, confidence = detector.posterior(means, independent)
    owner = np.repeat(np.arange(len(sizes)), sizes)
    letters = scripts.weights(counts)
    shares = letters / np.maximum(1, _sums(letters, sizes))[owner]
    sure = confidence >= SURE
    votes: NDArray[np.float64] = np.zeros((len(sizes), scores.shape[1]))
    np.add.at(votes, (owner[sure], best[sure]), shares[sure])
    return votes
