"""Guard against templates: shingles that many texts share say nothing about what a text is about.

Two chats with one long tool schema in their prompts are similar by the words that they share, whatever they are about.
So a set that is mostly common shingles is compared by its others, too: it is a near duplicate only if these are similar
as well.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from curate.filters.minhash.shingles import Shingles, Values, is_in

SAMPLE = 20_000  # texts in which common shingles are counted
MIN_TEXTS = 50  # that share a shingle which is common
TEMPLATED = 0.5  # share of common shingles above which a set is compared by its others


def find_common(sets: Shingles, texts: int, share: float) -> Values:
    """Return the shingles, sorted, that are in more than a `share` of the texts, from a sample of them in `sets`."""
    if not share or not len(sets.sizes):
        return np.empty(0, np.uint32)
    values, counts = _count(np.sort(sets.values))
    sampled = len(sets.sizes)
    common: Values = values[(counts > share * sampled) & (counts * texts >= MIN_TEXTS * sampled)]
    return common


def _count(values: Values) -> tuple[Values, NDArray[np.int64]]:
    """Return sorted values without repetitions, and how often each occurs."""
    first = np.flatnonzero(np.concatenate([[True], values[1:] != values[:-1]]))[: len(values)]
    return values[first], np.diff(first, append=len(values))


def find_templated(sets: Shingles, common: Values) -> NDArray[np.bool_]:
    """Return which sets are mostly common shingles."""
    counts = np.bincount(sets.owners()[is_in(sets.values, common)], minlength=len(sets.sizes))
    templated: NDArray[np.bool_] = counts > TEMPLATED * sets.sizes
    return templated


def proposing(sets: Shingles, common: Values, templated: NDArray[np.bool_]) -> Shingles:
    """Return the sets that propose pairs: of a templated one only its uncommon shingles, unless it has no other."""
    uncommon = ~is_in(sets.values, common)
    owners = sets.owners()
    has_uncommon = np.bincount(owners[uncommon], minlength=len(sets.sizes)) > 0
    return sets.select(uncommon | ~(templated & has_uncommon)[owners])
