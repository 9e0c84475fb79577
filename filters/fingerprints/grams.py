"""Texts to hashes of eight words in a row (8-grams), many texts at once.

A word is a run of letters and digits, compared without case, accents and width; punctuation and emoji only separate
words. A letter of a script that is written without spaces (Chinese, Japanese, Thai, …) is a word of its own. So
"Janet’s ducks" and "JANET'S  DUCKS" have the same words.

Letters are UTF-16 units. Each has a fixed random value v(c), and the hash of the letters i to j of a block is

    sum of v(c[k]) * P^(k - i) for k = i … j, modulo 2^64, then mixed

which two entries of one cumulative sum give for any i and j (Karp and Rabin, 1987). A word's first letter has another
value than the same letter inside a word, so "ab c" and "a bc" differ.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from curate.filters.minhash.words import mix

GRAM = 8  # words: the length of Tülu 3 and ConTAM (arXiv 2411.15124, 2411.03923)
HASH_BITS = 48  # of a hash that is kept
BLOCK = 1 << 17  # characters that are hashed at once, so that the arrays fit the processor's cache
OVERLAP = 1 << 11  # characters that slices of a long text share: eight words are seldom longer

SEPARATOR, LETTER, WORD, IGNORED = range(4)  # kinds of UTF-16 units; WORD: a letter that is a word of its own
# Scripts without spaces between words: Thai and Lao, Myanmar, Khmer, kana, Han.
UNSPACED = ((0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x3040, 0x30FF), (0x3400, 0x9FFF), (0xF900, 0xFAFF))
LIGATURE = re.compile("[ßẞ\ufb00-\ufb06]")
MULTIPLIER = 0x9E3779B97F4A7C15  # 2^64 / golden ratio; odd, so it has an inverse
END = "\n".encode("utf-16-le")  # between two texts
FIRST = np.uint64(0xD1B54A32D192ED03)  # added to the value of a word's first letter

Hashes = NDArray[np.uint64]
Indices = NDArray[np.int64]
Selection = Callable[[Hashes], Indices]


@dataclass(frozen=True)
class Grams:
    """8-grams in the order of their texts: the hash, the number of the text, and where in it the words lie.

    A text of fewer words has one entry, for all of it. `start` and `stop` count UTF-16 units of the folded text.
    """

    hashes: Hashes
    texts: Indices
    start: Indices
    stop: Indices


def fold(text: str) -> str:
    """Return a text as it is hashed: letters and their accents joined (NFC), ligatures as separate letters."""
    return text if text.isascii() else LIGATURE.sub(_spell, unicodedata.normalize("NFC", text))


def _spell(ligature: re.Match[str]) -> str:
    return unicodedata.normalize("NFKC", ligature[0]).casefold()


def excerpt(text: str, start: int, stop: int) -> str:
    """Return the part of a text between two positions of `Grams`."""
    return _encode(fold(text))[2 * start : 2 * stop].decode("utf-16-le", "replace")


def hash_grams(texts: Sequence[str], select: Selection | None = None) -> Grams:
    """Return the 8-grams of the texts; none crosses from one text to the next.

    `select` returns the indices of the hashes to keep. A text longer than `BLOCK` is cut into slices that overlap, so
    some of its grams occur twice, and those of more than `OVERLAP` characters may be missing.
    """
    parts = [_gram_block(block, select) for block in _blocks(texts)]
    if not parts:
        nothing = np.empty(0, np.int64)
        return Grams(np.empty(0, np.uint64), nothing, nothing, nothing)
    return Grams(*(np.concatenate([getattr(part, name) for part in parts]) for name in Grams.__annotations__))


def count_words(text: str) -> int:
    """Return the number of words of a text of at most `BLOCK` characters."""
    return len(_Words(_encode(fold(text))))


class _Slice(NamedTuple):  # quick to make: there is one for each message
    """A stretch of a text in UTF-16: the number of the text, and the position in it where the stretch begins."""

    number: int
    data: bytes
    start: int = 0
    whole: bool = True


def _slices(number: int, text: str) -> Iterator[_Slice]:
    start = 0
    for first in range(0, len(text), BLOCK - OVERLAP):
        yield _Slice(number, _encode(text[first : first + BLOCK]), start, whole=False)
        start += len(_encode(text[first : first + BLOCK - OVERLAP])) // 2


def _blocks(texts: Sequence[str]) -> Iterator[list[_Slice]]:
    """Put slices together, so that the fixed cost of each operation is paid once for many."""
    block: list[_Slice] = []
    size = 0
    for number, text in enumerate(map(fold, texts)):
        for part in (_Slice(number, _encode(text)),) if len(text) <= BLOCK else _slices(number, text):
            if block and size + len(part.data) > 2 * BLOCK:
                yield block
                block, size = [], 0
            block.append(part)
            size += len(part.data) + len(END)
    if block:
        yield block


def _gram_block(block: Sequence[_Slice], select: Selection | None) -> Grams:
    words = _Words(END.join(part.data for part in block))
    sizes = np.array([len(part.data) + len(END) for part in block]) // 2
    bases = np.cumsum(sizes) - sizes
    firsts = np.append(np.searchsorted(words.start, bases), len(words))  # each slice's first word
    whole = np.array([part.whole for part in block])
    parts = [_select(words, firsts, GRAM, None, select)]
    counts = np.where(whole, np.diff(firsts), 0)
    parts += [_select(words, firsts, size, counts, select) for size in range(1, GRAM) if (counts == size).any()]
    hashes, slices, start, stop = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    shift = (np.array([part.start for part in block]) - bases)[slices]
    return Grams(hashes, np.array([part.number for part in block])[slices], start + shift, stop + shift)


def _select(
    words: _Words, firsts: Indices, size: int, counts: Indices | None, select: Selection | None
) -> tuple[Hashes, Indices, Indices, Indices]:
    """Return hash, slice, start and stop of the grams of one size that do not cross from one slice to the next.

    With `counts`, only those that are a whole slice.
    """
    at = np.arange(max(0, len(words) - size + 1)) if counts is None else firsts[:-1][counts == size]
    hashes = words.hash(size, None if counts is None else at)
    if select is not None:
        chosen = select(hashes)
        hashes, at = hashes[chosen], at[chosen]
    slices = np.searchsorted(firsts, at, "right") - 1
    inside = at + size <= firsts[slices + 1]
    hashes, at, slices = hashes[inside], at[inside], slices[inside]
    return hashes, slices, words.start[at], words.stop[at + size - 1]


class _Words:
    """The words of a text in UTF-16, of at most twice `BLOCK` units; `start` and `stop` are their positions in it."""

    def __init__(self, data: bytes) -> None:
        units = np.frombuffer(data, "<u2")
        kinds, values = _units()
        kind = kinds.take(units, mode="wrap")  # without a check of the indices, which all exist
        if has_ignored := bool((kind == IGNORED).any()):
            kept = np.flatnonzero(kind != IGNORED)
            units, kind = units[kept], kind[kept]
        letters = np.flatnonzero(kind)
        alone = kind[letters] == WORD
        first = np.ones(len(letters), bool)
        np.not_equal(letters[1:], letters[:-1] + 1, out=first[1:])
        if alone.any():
            first |= alone
            first[1:] |= alone[:-1]
        self._bounds = np.append(np.flatnonzero(first), len(letters))  # of each word in `sums`
        self._sums = _sum(values.take(units[letters], mode="wrap"), self._bounds[:-1])
        self.start = letters[self._bounds[:-1]]
        self.stop = letters[self._bounds[1:] - 1] + 1
        if has_ignored:
            self.start, self.stop = kept[self.start], kept[self.stop - 1] + 1

    def __len__(self) -> int:
        return len(self._bounds) - 1

    def hash(self, size: int, words: Indices | None = None) -> Hashes:
        """Return the hash of each `size` words in a row, or only of those that begin with one of `words`."""
        if words is not None:
            at, end = self._bounds[words], self._bounds[words + size]
        else:
            at, end = self._bounds[:-size], self._bounds[size:]
        hashes: Hashes = (self._sums[end] - self._sums[at]) * _powers(True)[at]
        hashes ^= hashes >> np.uint64(32)  # the low bits of a sum depend on the low bits of its terms only
        hashes *= np.uint64(MULTIPLIER)
        return hashes >> np.uint64(64 - HASH_BITS)


def _sum(values: Hashes, firsts: Indices) -> Hashes:
    """Return the cumulative sum of the letters' values times powers, from 0."""
    values[firsts] += FIRST
    values *= _powers(False)[: len(values)]
    sums = np.zeros(len(values) + 1, np.uint64)
    np.cumsum(values, out=sums[1:])
    return sums


def _encode(text: str) -> bytes:
    return text.encode("utf-16-le", "surrogatepass")


@functools.cache
def _powers(inverse: bool) -> Hashes:
    """Return the powers of the multiplier, or of its inverse, from 0."""
    base = pow(MULTIPLIER, -1, 1 << 64) if inverse else MULTIPLIER
    factors = np.full(2 * BLOCK + 1, base, np.uint64)
    factors[0] = 1
    return np.multiply.accumulate(factors)


@functools.cache
def _units() -> tuple[NDArray[np.uint8], Hashes]:
    """Return the kind and the value of each UTF-16 unit; surrogates separate words."""
    kinds = np.zeros(1 << 16, np.uint8)
    folded = np.zeros(1 << 16, np.uint64)
    for code in range(1 << 16):
        letter = chr(code)
        category = unicodedata.category(letter)
        if category[0] in "LNM":
            kinds[code] = WORD if any(first <= code <= last for first, last in UNSPACED) else LETTER
            folded[code] = ord(_fold_letter(letter))
        elif category == "Cf":
            kinds[code] = IGNORED  # soft hyphens, joiners, marks of direction
    for code in (*range(0x0300, 0x0370), *range(0xFE00, 0xFE10)):  # accents that are not joined, variation selectors
        kinds[code] = IGNORED
    return kinds, _scatter(folded)


def _fold_letter(letter: str) -> str:
    """Return a letter in lower case, half width and without accents, if that is one letter."""
    plain = unicodedata.normalize("NFKC", letter).lower()
    base = unicodedata.normalize("NFD", plain)
    if len(base) > 1 and all("\u0300" <= mark <= "\u036f" for mark in base[1:]):
        plain = base[0]
    return plain if len(plain) == 1 else letter


def _scatter(numbers: Hashes) -> Hashes:
    """Return a random value for each number (splitmix64; Steele and others, 2014)."""
    return mix((numbers + np.uint64(1)) * np.uint64(MULTIPLIER))
