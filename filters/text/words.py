"""The words of many texts at once, as arrays of hashes, found in their bytes without decoding them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

UInt64s = npt.NDArray[np.uint64]
Ints = npt.NDArray[np.int64]

LONGEST = 48  # bytes of a word; a longer one counts as several
PART = 16  # bytes of each
SEPARATOR, LETTER, SINGLE = 0, 1, 2
EXCERPT = 600  # bytes
_PAD = 32  # zero bytes after the last text


def _class_of(byte: int) -> int:
    """Return the class of a byte: of no word, of a word, or the first of a letter that is a word by itself."""
    if 0xE3 <= byte < 0xEA or byte == 0xF0:  # kana, Han; rare Han and emoji
        return SINGLE
    return LETTER if byte >= 0x80 or chr(byte).isalnum() else SEPARATOR


CLASSES = bytes(map(_class_of, range(256)))
PUNCTUATION = ((0xE3, 0x80), (0xEF, 0xBC))  # 、。 and ，！: the first two of three bytes
SYMBOLS = 0xE2  # “ … → ─: the first of three bytes
MASKS = np.array([(1 << 8 * count) - 1 for count in range(9)], np.uint64)
_FIRST, _SECOND, _MIX = (np.uint64(odd) for odd in (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0xFF51AFD7ED558CCD))


@dataclass(frozen=True)
class Words:
    """Words of texts in order: the hash of each in lower case, its bytes `starts` to `stops`, and its text.

    `data` holds all texts; `firsts` has the number of the first word of each text, and at the end that of all words.
    """

    data: bytes
    hashes: UInt64s
    starts: Ints
    stops: Ints
    firsts: Ints

    @property
    def counts(self) -> Ints:
        """The number of words of each text."""
        return np.diff(self.firsts)

    @property
    def owners(self) -> Ints:
        """The text of each word."""
        return np.repeat(np.arange(len(self.firsts) - 1), self.counts)

    def passage(self, first: int, last: int) -> str:
        """Return the text from a word to another, at most `EXCERPT` bytes."""
        start = self.starts[first]
        return self.data[start : min(self.stops[last], start + EXCERPT)].decode("utf-8", "ignore")


def find_words(texts: Sequence[str]) -> Words:
    """Return the words of the texts: runs of letters and digits, and single Han and kana."""
    encoded = [text.encode("utf-8", "replace") for text in texts]
    data = b"\0".join(encoded) + bytes(_PAD)
    lengths = np.fromiter(map(len, encoded), np.int64, len(encoded))
    ends = np.cumsum(lengths + 1)
    starts, stops = _bounds(data)
    hashes = _hash(np.frombuffer(data.lower(), np.uint8), starts, stops)
    firsts = np.concatenate([[0], np.searchsorted(starts, ends)]).astype(np.int64)
    return Words(data, hashes, starts, stops, firsts)


def _bounds(data: bytes) -> tuple[Ints, Ints]:
    """Return where words start and stop, in bytes."""
    array, classes = np.frombuffer(data, np.uint8), np.frombuffer(bytearray(data.translate(CLASSES)), np.uint8)
    _clear(array, classes)
    inside = classes != SEPARATOR
    begins = inside.copy()
    begins[1:] &= ~inside[:-1] | (classes[1:] == SINGLE)
    ends = inside[:-1] & (~inside[1:] | begins[1:])
    return _divide(*_without_numbers(array, np.flatnonzero(begins), np.flatnonzero(ends) + 1))


def _clear(array: npt.NDArray[np.uint8], classes: npt.NDArray[np.uint8]) -> None:
    """Mark the bytes of punctuation beyond ASCII as separators."""
    places = [np.flatnonzero(array == SYMBOLS)]
    for first, second in PUNCTUATION:
        found = np.flatnonzero(array == first)
        places.append(found[array[found + 1] == second])
    for offset in range(3):
        classes[np.concatenate(places) + offset] = SEPARATOR


def _without_numbers(array: npt.NDArray[np.uint8], starts: Ints, stops: Ints) -> tuple[Ints, Ints]:
    """Leave out the numbers of lists: words at the start of a line, of one or two digits, with a dot or bracket."""
    first, after = array[starts], array[stops]
    numbers = (stops - starts < 3) & (first >= 48) & (first <= 57) & ((after == 46) | (after == 41))
    numbers &= (starts == 0) | np.isin(array[starts - 1], (0, 10))
    return starts[~numbers], stops[~numbers]


def _divide(starts: Ints, stops: Ints) -> tuple[Ints, Ints]:
    """Divide words that are too long, so that a loop within one is found."""
    lengths = stops - starts
    if lengths.max(initial=0) <= LONGEST:
        return starts, stops
    counts = np.where(lengths > LONGEST, (lengths + PART - 1) // PART, 1)
    offsets = (np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)) * PART
    divided = np.repeat(starts, counts) + offsets
    last = np.repeat(stops, counts)
    return divided, np.where(np.repeat(counts, counts) > 1, np.minimum(last, divided + PART), last)


def _hash(lower: npt.NDArray[np.uint8], starts: Ints, stops: Ints) -> UInt64s:
    """Return a hash of each word: of its length, its first 16 bytes, and the last 8 of a longer one."""
    eights = np.ndarray(len(lower) - 7, np.uint64, lower, strides=(1,))  # the eight bytes from each place
    lengths = stops - starts
    low = eights[starts] & MASKS[np.minimum(lengths, 8)]
    high = lengths.astype(np.uint64)
    long = np.flatnonzero(lengths > 8)
    high[long] += (eights[starts[long] + 8] & MASKS[np.minimum(lengths[long] - 8, 8)]) * _FIRST
    long = np.flatnonzero(lengths > 16)
    high[long] ^= eights[stops[long] - 8] * _SECOND
    return mix(low * _FIRST ^ high * _SECOND)


def mix(values: UInt64s) -> UInt64s:
    """Spread the bits of hashes (the finalizer of MurmurHash3)."""
    values = (values ^ (values >> np.uint64(33))) * _MIX
    return values ^ (values >> np.uint64(29))


def hash_grams(hashes: UInt64s, size: int) -> UInt64s:
    """Return a hash of each `size` words in a row, wherever texts begin and end."""
    count = max(0, len(hashes) - size + 1)
    grams = np.zeros(count, np.uint64)
    for offset in range(size):
        grams = grams * _FIRST + hashes[offset : offset + count]
    return mix(grams)
