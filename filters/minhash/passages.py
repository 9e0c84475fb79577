"""Show how two texts are alike: the longest passage that both have, and the words that only one has."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from curate.filters.minhash.shingles import WIDTH, sequence
from curate.filters.minhash.words import Words, compose, find_words

SHOWN = 400  # characters of a result, at most


@dataclass(frozen=True, slots=True)
class Likeness:
    """The longest shared passage of two texts, and the words that only the first, and only the second, has."""

    passage: str
    first: str
    second: str


def compare(first: str, second: str) -> Likeness:
    """Compare two texts; a word counts as shared if it is in a run of five words that both texts have."""
    texts = compose(first), compose(second)
    words = find_words(texts[0]), find_words(texts[1])
    runs = sequence(words[0]), sequence(words[1])
    return Likeness(
        _longest(texts[0], words[0], runs[0], runs[1]),
        _others(texts[0], words[0], np.isin(runs[0], runs[1])),
        _others(texts[1], words[1], np.isin(runs[1], runs[0])),
    )


def longest_common(text: str, common: NDArray[np.uint32]) -> str:
    """Return the longest passage of a text of which all shingles are in `common`."""
    text = compose(text)
    words = find_words(text)
    inside = np.isin(sequence(words), common)
    return _passage(text, words, *_longest_run(inside, np.zeros(len(inside), np.int64)))


def _longest(text: str, words: Words, own: NDArray[np.uint64], other: NDArray[np.uint64]) -> str:
    """Return the longest passage that follows the other text word by word, from where it occurs there first."""
    unique, places = np.unique(other, return_index=True)
    if not len(unique) or not len(own):
        return ""
    found = np.minimum(np.searchsorted(unique, own), len(unique) - 1)
    shift = places[found] - np.arange(len(own))
    return _passage(text, words, *_longest_run(unique[found] == own, shift))


def _longest_run(inside: NDArray[np.bool_], label: NDArray[np.int64]) -> tuple[int, int]:
    """Return the start and stop of the longest run of places that are inside and have one label."""
    breaks = np.flatnonzero((np.diff(inside.astype(np.int8)) != 0) | (np.diff(label) != 0)) + 1
    starts = np.concatenate([[0], breaks])
    lengths = np.diff(np.concatenate([starts, [len(inside)]])) * inside[starts] if len(inside) else np.zeros(1, int)
    best = int(np.argmax(lengths))
    return int(starts[best]), int(starts[best] + lengths[best])


def _passage(text: str, words: Words, start: int, stop: int) -> str:
    """Return the text of the shingles from `start` to `stop`, without line breaks."""
    if stop <= start:
        return ""
    last = min(stop + WIDTH - 1, len(words.stops)) - 1
    begin, end = int(words.starts[start]), int(words.stops[last])
    return " ".join(text[begin : min(end, begin + SHOWN)].split())


def _others(text: str, words: Words, shared: NDArray[np.bool_]) -> str:
    """Return the words that are in no shared shingle, up to `SHOWN` characters."""
    ends = np.zeros(len(words.starts) + 1, np.int64)
    starts = np.flatnonzero(shared)
    np.add.at(ends, starts, 1)
    np.add.at(ends, np.minimum(starts + WIDTH, len(words.starts)), -1)
    others = np.flatnonzero(np.cumsum(ends)[:-1] == 0)[:SHOWN]
    runs = np.split(others, np.flatnonzero(np.diff(others) > 1) + 1) if len(others) else []
    passages = (text[words.starts[run[0]] : words.stops[run[-1]]] for run in runs)
    return " … ".join(" ".join(passage.split()) for passage in passages)[:SHOWN]
