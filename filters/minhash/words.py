"""Divide texts into words, and hash each word, with NumPy over many texts at once.

A word is a run of letters, marks, digits and underscores, without regard to case and to Unicode's compatible forms.
Scripts that put no spaces between words (Chinese, Japanese, Thai …), and Korean, which puts them loosely, count by
letter. Punctuation and white space do not count.
"""

from __future__ import annotations

import functools
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

GROUP = 1 << 16  # characters of texts that are hashed at once: their arrays fit the cache
BLOCK = 1 << 20  # characters of one text that are hashed at once, at most; a word between two blocks counts as two
LAST = 0x323AF  # the last code point with a letter; those above are tags and private ones
POINTS = 0x110000
BY_LETTER = (  # first and last code points of scripts that count by letter
    (0x0E00, 0x0FFF),  # Thai, Lao, Tibetan
    (0x1000, 0x109F),  # Myanmar
    (0x1100, 0x11FF),  # Hangul
    (0x1780, 0x17FF),  # Khmer
    (0x2E80, 0x2FDF),
    (0x3005, 0x3007),
    (0x3021, 0x30FF),  # kana
    (0x3130, 0x318F),
    (0x31F0, 0x31FF),
    (0x3400, 0x9FFF),  # Han
    (0xA960, 0xA97F),
    (0xAC00, 0xD7FF),
    (0xF900, 0xFAFF),
    (0x20000, LAST),
)
LETTER = 2  # the kind of a character that is a word by itself; 1: part of a word, 0: neither
BASE = 0x9E3779B97F4A7C15 | 1  # of the polynomial hash modulo 2^64; odd, so that it has an inverse
MULTIPLIERS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)  # of splitmix64 (Steele et al. 2014)

Hashes = NDArray[np.uint64]
Places = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Words:
    """The words of several texts in a row: their hashes, and where they start and stop in all texts joined."""

    hashes: Hashes
    starts: Places
    stops: Places


def compose(text: str) -> str:
    """Return a text in Unicode's composed form, in which words are found."""
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def find_words(text: str) -> Words:
    """Return the words of a text of any length."""
    blocks = [text[start : start + BLOCK] for start in range(0, len(text), BLOCK)]
    found = [_find(block) for block in blocks] or [_find("")]
    shifts = range(0, len(text) + 1, BLOCK)
    return Words(
        np.concatenate([words.hashes for words in found]),
        np.concatenate([words.starts + shift for words, shift in zip(found, shifts, strict=False)]),
        np.concatenate([words.stops + shift for words, shift in zip(found, shifts, strict=False)]),
    )


def count_words(texts: Sequence[str]) -> tuple[Hashes, Places]:
    """Return the hashes of the words of all texts in a row, and the number of words of each text."""
    hashes: list[Hashes] = []
    counts: list[Places] = []
    for group in _groups(texts):
        words = find_words("\n".join(group))
        stops = np.cumsum([len(text) + 1 for text in group])
        hashes.append(words.hashes)
        counts.append(np.diff(np.searchsorted(words.starts, stops), prepend=0))
    return np.concatenate(hashes or [np.empty(0, np.uint64)]), np.concatenate(counts or [np.empty(0, np.int64)])


def _groups(texts: Sequence[str]) -> list[list[str]]:
    """Return the texts in groups of at most `GROUP` characters; a larger text is a group of its own."""
    groups: list[list[str]] = []
    size = GROUP
    for text in texts:
        if size + len(text) + 1 > GROUP:
            groups.append([])
            size = 0
        groups[-1].append(text)
        size += len(text) + 1
    return groups


def _find(text: str) -> Words:
    """Return the words of a text of one block at most."""
    points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.intp)
    folded, kinds = _tables()
    inside = np.zeros(len(points) + 2, np.uint8)
    kinds.take(points, out=inside[1:-1], mode="clip")  # `clip` is faster than `raise`; no point is out of bounds
    letters = inside == LETTER
    new = inside[1:] != inside[:-1]  # between two characters
    if letters.any():
        new |= letters[1:] | letters[:-1]
    part = inside[1:-1] > 0
    starts = np.flatnonzero(new[:-1] & part)
    stops = np.flatnonzero(new[1:] & part) + 1
    powers, inverses = _powers()
    values = folded.take(points, mode="clip")
    values *= powers[: len(points)]
    sums = np.zeros(len(points) + 1, np.uint64)
    np.cumsum(values, out=sums[1:])
    return Words(mix((sums[stops] - sums[starts]) * inverses[starts]), starts, stops)


def mix(values: Hashes) -> Hashes:
    """Spread every bit of 64-bit values over all bits, in place (splitmix64's finalizer)."""
    for shift, multiplier in zip((30, 27), MULTIPLIERS, strict=True):
        values ^= values >> np.uint64(shift)
        values *= np.uint64(multiplier)
    values ^= values >> np.uint64(31)
    return values


@functools.cache
def _powers() -> tuple[Hashes, Hashes]:
    """Return the powers of `BASE` and of its inverse modulo 2^64, [BLOCK + 1] each."""
    inverse = pow(BASE, -1, 1 << 64)
    pairs = []
    for base in (BASE, inverse):
        factors = np.full(BLOCK + 1, base, np.uint64)
        factors[0] = 1
        pairs.append(np.multiply.accumulate(factors))
    return pairs[0], pairs[1]


@functools.cache
def _tables() -> tuple[Hashes, NDArray[np.uint8]]:
    """Return the folded form and the kind of each code point, [POINTS]."""
    folded = np.arange(POINTS, dtype=np.uint64)
    kinds = np.zeros(POINTS, np.uint8)
    for point in range(LAST + 1):
        character = chr(point)
        category = unicodedata.category(character)
        if category[0] in "LMN" or character == "_":
            kinds[point] = 1
            form = unicodedata.normalize("NFKC", character).lower()
            folded[point] = ord(form) if len(form) == 1 else point
    for first, last in BY_LETTER:
        kinds[first : last + 1] *= LETTER
    return folded, kinds
