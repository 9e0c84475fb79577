"""How texts are worded: how many of their words differ, and how often they use the phrases of models."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

import numpy as np
import numpy.typing as npt

from curate.filters.text.words import Ints, UInt64s, Words, find_words, hash_grams, mix

SAMPLE = 256  # the first words of a text, of which the different ones are counted


@dataclass(frozen=True)
class Wording:
    """By text: its words, the share of different ones among its first `SAMPLE`, and its phrases of models."""

    words: Ints
    different: npt.NDArray[np.float64]
    phrases: Ints


def measure_wording(texts: Sequence[str]) -> Wording:
    """Measure each text by itself."""
    words = find_words(texts)
    owners = words.owners
    first = np.flatnonzero(np.arange(len(owners)) - words.firsts[owners] < SAMPLE)
    keys = mix(words.hashes[first] ^ owners[first].astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15))
    _, places = np.unique(keys, return_index=True)
    different = np.bincount(owners[first][places], minlength=len(texts))
    sampled = np.minimum(np.maximum(words.counts, 1), SAMPLE)
    return Wording(words.counts, different / sampled, _count_phrases(words, owners))


def _count_phrases(words: Words, owners: Ints) -> Ints:
    counts = np.zeros(len(words.counts), np.int64)
    for size, table in _phrases().items():
        grams = hash_grams(words.hashes, size)
        slots = (grams >> np.uint64(48)).astype(np.int64)  # most are in no slot of the table
        places = np.flatnonzero(_slots(size)[slots])
        places = places[np.isin(grams[places], table)]
        whole = owners[places] == owners[places + size - 1]
        counts += np.bincount(owners[places[whole]], minlength=len(counts))
    return counts


def phrases() -> list[str]:
    """Return the words and phrases of models, as in `slop.txt`."""
    lines = resources.files("curate.filters.text").joinpath("slop.txt").read_text("utf-8").splitlines()
    return [line.split("\t")[0] for line in lines if not line.startswith("#")]


@functools.cache
def _phrases() -> dict[int, UInt64s]:
    """Return the sorted hashes of the phrases, by their number of words."""
    words = find_words(phrases())
    by_size: dict[int, list[UInt64s]] = {}
    for first, count in zip(words.firsts.tolist(), words.counts.tolist(), strict=False):
        by_size.setdefault(count, []).append(hash_grams(words.hashes[first : first + count], count))
    return {size: np.sort(np.concatenate(hashes)) for size, hashes in sorted(by_size.items())}


@functools.cache
def _slots(size: int) -> npt.NDArray[np.bool_]:
    """Return which values of their first 16 bits the hashes of phrases of this size have."""
    slots = np.zeros(1 << 16, np.bool_)
    slots[(_phrases()[size] >> np.uint64(48)).astype(np.int64)] = True
    return slots
