"""Detect the language of texts: weights of letter groups, summed by language in one gather."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from curate.filters.language_id import profiles, scripts

PACK = 12  # letter groups whose weights sum within 16 bits: 12 * 256 * ln(1 + 1 / alpha) = 30,425
POSITIONS_PER_PACK = PACK // 3  # three groups (one, two and three letters) end at a position
INDEPENDENT = 30  # letter groups overlap: they count as at most this many independent ones (see `language`)
BLOCK = 256  # texts per step, so that the arrays stay in the processor's cache


def score(
    texts: Sequence[str], positions: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return each text's summed weights, (texts, languages), known letter groups, and letters by kind, (texts, kinds).

    Letter groups are read at up to `positions` places of each text.
    """
    blocks = [
        _score_block(texts[start : start + BLOCK], positions[start : start + BLOCK], profiles.load())
        for start in range(0, len(texts), BLOCK)
    ]
    if not blocks:
        empty: NDArray[np.int64] = np.zeros((0, len(profiles.codes())), np.int64)
        return empty, np.zeros(0, np.int64), np.zeros((0, len(scripts.KINDS)), np.int64)
    scores, groups, counts = zip(*blocks, strict=True)
    return np.concatenate(scores), np.concatenate(groups), np.concatenate(counts)


def posterior(means: NDArray[np.float64], groups: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the best language of each text, as a column, and its posterior, 0 for a text without letter groups.

    `means` are the mean scores of letter groups, (texts, languages). The Chinese codes are one language.
    """
    chinese = [profiles.codes().index(code) for code in scripts.CHINESE]
    weight = np.minimum(groups, INDEPENDENT) / profiles.STEPS
    best = means.argmax(axis=1)
    likelihoods = np.exp((means - means.max(axis=1, keepdims=True)) * weight[:, None])
    own = np.where(np.isin(best, chinese), likelihoods[:, chinese].sum(axis=1), 1.0)
    return best, np.where(groups > 0, own / likelihoods.sum(axis=1), 0)


def _score_block(
    texts: Sequence[str], positions: NDArray[np.int64], table: profiles.Profiles
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return what `score` does, for a few texts."""
    letters, sizes, kinds = _letters(texts, table)
    counts = np.minimum(sizes, positions)
    rows = table.rows(_groups(letters, _sample_positions(sizes, counts), table))  # (positions, 3)
    zero_row = np.int32(len(table.weights) - 1)
    packs = -(-counts // POSITIONS_PER_PACK)  # of each text, rounded up
    first = np.cumsum(packs) - packs
    padded = np.full((int(packs.sum()) * POSITIONS_PER_PACK, 3), zero_row)  # every text starts at a pack
    padded[np.arange(len(rows)) + np.repeat(first * POSITIONS_PER_PACK - (np.cumsum(counts) - counts), counts)] = rows
    known = (padded != zero_row).reshape(-1, PACK).sum(axis=1)
    scores = np.zeros((len(texts), table.weights.shape[1]), np.int64)
    groups = np.zeros(len(texts), np.int64)
    nonempty = packs > 0
    if nonempty.any():
        scores[nonempty] = np.add.reduceat(_sum_packs(padded, table), first[nonempty], axis=0, dtype=np.int64)
        groups[nonempty] = np.add.reduceat(known, first[nonempty])
    return scores, groups, kinds


def _sum_packs(rows: NDArray[np.int32], table: profiles.Profiles) -> NDArray[np.int16]:
    """Return the sum of weights of each `PACK` letter groups, (packs, languages).

    In 16 bits and without gathering all weights at once, this is five times as fast.
    """
    columns = np.ascontiguousarray(rows.reshape(-1, PACK).T)
    total: NDArray[np.int16] = np.take(table.weights, columns[0], axis=0)
    for column in columns[1:]:
        total += np.take(table.weights, column, axis=0)
    return total


def _letters(
    texts: Sequence[str], table: profiles.Profiles
) -> tuple[NDArray[np.uint16], NDArray[np.int64], NDArray[np.int64]]:
    """Return the folded letters of all texts, concatenated with runs of spaces as one, and each text's length.

    The third are the numbers of characters of each kind, (texts, kinds).
    """
    sizes = np.fromiter((len(text) + 1 for text in texts), np.int64, len(texts))
    wide = np.frombuffer(("\0".join(texts) + "\0").encode("utf-32-le", "replace"), np.uint32)
    codes = np.where(wide < 0x10000, wide, profiles.SPACE).astype(np.uint16)
    kinds = scripts.count_all(codes, sizes)
    flags = table.flags[codes]
    latin = _per_text(flags & profiles.LATIN, sizes)
    non_latin = _per_text(flags & profiles.OTHER_SCRIPT, sizes) // profiles.OTHER_SCRIPT
    mostly_non_latin = latin * 2 < non_latin  # langdetect then ignores Latin words
    if mostly_non_latin.any():
        keep = ~(np.repeat(mostly_non_latin, sizes) & (flags & profiles.LATIN > 0))
        codes, sizes = codes[keep], _per_text(keep, sizes)
    letters = table.letters[codes]
    space = letters == profiles.SPACE
    single = ~space
    single[1:] |= ~space[:-1]
    return letters[single], _per_text(single, sizes), kinds


def _per_text(values: NDArray[np.integer[Any]] | NDArray[np.bool_], sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the sum of each text's values; `reduceat` is safe since no text is empty: a space ends each."""
    summed: NDArray[np.int64] = np.add.reduceat(values, np.cumsum(sizes) - sizes, dtype=np.int64)
    return summed


def _sample_positions(sizes: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return positions in the concatenated letters: `counts` per text, evenly spaced over its `sizes` letters."""
    nth = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    start = np.repeat(np.cumsum(sizes) - sizes, counts)
    positions: NDArray[np.int64] = start + nth * np.repeat(sizes, counts) // np.repeat(counts, counts)
    return positions


def _groups(letters: NDArray[np.uint16], positions: NDArray[np.int64], table: profiles.Profiles) -> NDArray[np.uint64]:
    """Return (positions, 3) keys: the last one, two and three letters at each position, 0 where langdetect skips."""
    padded = np.concatenate([np.full(2, profiles.SPACE, np.uint16), letters])
    last, second, third = padded[positions + 2], padded[positions + 1], padded[positions]
    ends, breaks = last == profiles.SPACE, second == profiles.SPACE
    upper = table.flags & profiles.UPPER > 0
    capitals = upper[last] & upper[second]  # langdetect skips words in capitals
    keys = np.empty((len(positions), 3), np.uint64)
    keys[:, 0] = last
    keys[:, 1] = keys[:, 0] | second.astype(np.uint64) << np.uint64(16)
    keys[:, 2] = keys[:, 1] | third.astype(np.uint64) << np.uint64(32)
    keys[capitals | ends, 0] = 0
    keys[capitals | (ends & breaks), 1] = 0
    keys[capitals | breaks, 2] = 0
    return keys
