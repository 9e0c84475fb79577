"""Counts the tokens of LLaMA-1 and 2's vocabularies word by word, since no piece of theirs reaches over a space.

Spaces become `▁`, and a piece has `▁` only at its front (`▁word`) or is a run of them; none holds a line break. So no
merge crosses the place before a run of spaces, or either side of a line break: a text is **words** (a run of spaces
with what follows up to the next space or line break, or one line break) whose counts add up, exactly. Words come again
and again: those of up to 24 bytes, 99 % of them, are looked up by their own bytes, a block of texts at a time.
`fits` says for which vocabularies this holds, and the tests hold the sums against the reference libraries.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.int64]
Keys = list[NDArray[np.uint64]]
Encode = Callable[[Sequence[str]], tuple[NDArray[np.uint32], NDArray[np.int64]]]

SPACE, BREAK = 32, 10
META = "▁"  # what a space is written as in the pieces
WIDTH = 24  # bytes of a word that is looked up
SLOTS = 18  # bits of the size of each half of the table: 524,288 words in all, 15 MB
TOGETHER = 256  # new words that are counted as one text
BLOCK = 1 << 19  # characters of text at a time
_REACHES_OVER = re.compile(f"[^{META}\0]{META}|[ \n]")
_MULTIPLIERS = np.array(
    [
        [0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x94D049BB133111EB],
        [0xD6E8FEB86659FD93, 0xA0761D6478BD642F, 0xE7037ED1A0B428DB],
    ],
    np.uint64,
)
_SHIFT = np.uint64(64 - SLOTS)
_MASKS = [
    np.array([256 ** min(max(size - first, 0), 8) - 1 for size in range(WIDTH + 1)], np.uint64)
    for first in range(0, WIDTH, 8)
]  # of a word's bytes, eight by eight, by its length


def fits(document: str) -> bool:
    """Tell whether a tokenizer.json has a vocabulary whose counts are those of its words, added up."""
    parsed = json.loads(document)
    model, added = parsed["model"], parsed.get("added_tokens") or []
    steps = (parsed.get("normalizer") or {}).get("normalizers", [])
    if [step["type"] for step in steps] != ["Prepend", "Replace"] or parsed.get("pre_tokenizer") is not None:
        return False
    if model.get("type") != "BPE" or not model.get("byte_fallback") or not all(token["special"] for token in added):
        return False
    vocab: dict[str, int] = model["vocab"]
    whole = META in vocab and all(f"<0x{byte:02X}>" in vocab for byte in range(256))  # nothing is unknown
    return whole and not _REACHES_OVER.search("\0".join(vocab))


class Words:
    """A table of words and their counts, filled as they are met; `count` is the tokenizer's own way."""

    def __init__(self, encode: Encode) -> None:
        self._encode = encode
        self._break = int(encode(["\n"])[0][-1])  # the id of a line break, which is no part of any other
        self._table = np.zeros((2 << SLOTS, WIDTH // 8 + 1), np.uint64)  # a word's bytes, its count (0: a free slot)
        one_break = [np.array([key], np.uint64) for key in (BREAK, *[0] * (WIDTH // 8 - 1))]
        self._keep(one_break, np.ones(1, np.int64))

    def totals(self, texts: Sequence[str], cuts: Sequence[int]) -> tuple[Counts, Counts]:
        """Return the tokens of each text, and those before its cut, a place in characters.

        -1 stands for what words do not tell: a text with a literal `▁` or a zero byte, a cut within a word, and a
        block of texts of which one has a lone surrogate.
        """
        parts = [self._told(texts[block], cuts[block]) for block in _blocks(texts)]
        total, before = zip(*parts, strict=True) if parts else ((), ())
        nothing = np.zeros(0, np.int64)
        return np.concatenate([nothing, *total]), np.concatenate([nothing, *before])

    def _told(self, texts: Sequence[str], cuts: Sequence[int]) -> tuple[Counts, Counts]:
        untold = [i for i, text in enumerate(texts) if META in text or "\0" in text]
        if untold:
            texts, cuts = list(texts), list(cuts)
            for i in untold:
                texts[i], cuts[i] = "", 0
        try:
            total, before = self._block(texts, cuts)
        except UnicodeEncodeError:
            return np.full(len(texts), -1), np.full(len(texts), -1)
        total[untold] = before[untold] = -1
        return total, before

    def _block(self, texts: Sequence[str], cuts: Sequence[int]) -> tuple[Counts, Counts]:
        joined = " " + " ".join(texts)  # the space before each text is the `▁` that is put before it
        sizes, places = (list(map(len, texts)), cuts) if joined.isascii() else _in_bytes(texts, cuts)
        data = joined.encode() + bytes(WIDTH)
        ends = np.cumsum(np.array(sizes, np.int64) + 1)
        begins = ends - sizes - 1
        starts = _starts(np.frombuffer(data, np.uint8, len(data) - WIDTH), begins)
        summed = np.zeros(len(starts) + 1, np.int64)
        np.cumsum(self._of_words(data, starts), out=summed[1:])
        first = np.searchsorted(starts, begins)
        total = summed[np.append(first[1:], len(starts))] - summed[first]
        at = begins + places + (np.array(places) > 0)  # a cut before all of a text is before its `▁` too
        word = np.searchsorted(starts, at)
        before = np.where((at == ends) | (np.append(starts, -1)[word] == at), summed[word] - summed[first], -1)
        empty = ends == begins + 1
        total[empty] = before[empty] = 0
        return total, before

    def _of_words(self, data: bytes, starts: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the count of each word; what the table lacks is counted and put there."""
        sizes = np.diff(starts, append=len(data) - WIDTH)
        held = np.minimum(sizes, WIDTH)
        eight = np.ndarray((len(data) - 7,), np.uint64, data, strides=(1,))  # the bytes from each place on
        keys = [eight[starts + 8 * part] & mask[held] for part, mask in enumerate(_MASKS)]
        counts = self._known(keys, 0)
        missing = np.flatnonzero(counts == 0)
        counts[missing] = self._known([key[missing] for key in keys], 1)
        counts[sizes > WIDTH] = 0
        unknown = counts == 0
        if unknown.any():
            counts[unknown] = self._counted(data, unknown, sizes)
            new = np.flatnonzero(unknown & (sizes <= WIDTH))
            self._keep([key[new] for key in keys], counts[new])
        return counts

    def _known(self, keys: Keys, choice: int) -> NDArray[np.int64]:
        """Return the counts of the words that stand in one of their two slots, 0 for the others."""
        rows = np.take(self._table, _slot(keys, choice), axis=0)
        same = rows[:, 0] == keys[0]
        for column, key in enumerate(keys[1:], 1):
            same &= rows[:, column] == key
        counts: NDArray[np.int64] = rows[:, -1].view(np.int64) * same
        return counts

    def _keep(self, keys: Keys, counts: NDArray[np.int64]) -> None:
        """Put words into the first of their two slots if it is free, else into the second whatever stands there."""
        slots = _slot(keys, 0)
        slots = np.where(self._table[slots, -1] == 0, slots, _slot(keys, 1))
        slots, one = np.unique(slots, return_index=True)  # of several words for one slot the first
        self._table[slots] = np.stack([*keys, counts.astype(np.uint64)], axis=1)[one]

    def _counted(self, data: bytes, unknown: NDArray[np.bool_], sizes: NDArray[np.int64]) -> NDArray[np.int64]:
        """Count words with the tokenizer, as the lines of texts of `TOGETHER` lines."""
        text = np.frombuffer(data, np.uint8, len(data) - WIDTH)[np.repeat(unknown, sizes)]
        ends = np.cumsum(sizes[unknown])
        lines = np.insert(text, ends, BREAK).tobytes().split(b"\n")[:-1]
        texts = [b"\n".join((b"", *lines[i : i + TOGETHER], b"")) for i in range(0, len(lines), TOGETHER)]
        ids, _ = self._encode([text.decode() for text in texts])
        between = np.diff(np.flatnonzero(ids == self._break)) - 1
        found: NDArray[np.int64] = np.delete(between, np.arange(TOGETHER, len(between), TOGETHER + 1))
        return found


def _blocks(texts: Sequence[str]) -> Iterator[slice]:
    """Yield the texts in blocks of `BLOCK` characters or little more."""
    start = size = 0
    for stop, text in enumerate(texts, 1):
        size += len(text)
        if size >= BLOCK:
            yield slice(start, stop)
            start, size = stop, 0
    if start < len(texts):
        yield slice(start, len(texts))


def _in_bytes(texts: Sequence[str], cuts: Sequence[int]) -> tuple[list[int], list[int]]:
    """Return the size of each text and the place of its cut in bytes."""
    sizes, places = [], []
    for text, cut in zip(texts, cuts, strict=True):
        if text.isascii():
            sizes.append(len(text))
            places.append(cut)
        else:
            places.append(len(text[:cut].encode()))
            sizes.append(places[-1] + len(text[cut:].encode()))
    return sizes, places


def _starts(text: NDArray[np.uint8], begins: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return where words start: at runs of spaces, on both sides of line breaks, and at the beginning of texts."""
    spaces, breaks = text == SPACE, text == BREAK
    found = breaks.copy()
    found[1:] |= breaks[:-1]
    found |= spaces
    found[1:] &= ~(spaces[1:] & spaces[:-1])
    found[begins] = True
    return np.flatnonzero(found)


def _slot(keys: Keys, choice: int) -> NDArray[np.int64]:
    """Return the slot of each word in the first half of the table, or in the second."""
    slots = keys[0] * _MULTIPLIERS[choice][0]
    for key, multiplier in zip(keys[1:], _MULTIPLIERS[choice][1:], strict=True):
        slots ^= key * multiplier
    found: NDArray[np.int64] = (slots >> _SHIFT).astype(np.int64) + (choice << SLOTS)
    return found
