"""Count the tokens of LLaMA-1 and 2's vocabularies word by word, which is exact because no token crosses a space.

Spaces become `▁`. A token has `▁` only at its front (`▁word`) or is a run of `▁`; none contains a line break. So no
merge crosses the position before a run of spaces, or either side of a line break. A text is a sequence of **words**: a
run of spaces with what follows up to the next space or line break, or one line break. The counts of its words add up
exactly to its own. Words are repeated often: those of up to 24 bytes, 99 % of them, are looked up by their bytes, for a
block of texts at a time. `has_additive_words` checks a vocabulary for these properties.
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

SPACE, LINE_BREAK = 32, 10
META_SPACE = "▁"  # stands for a space in tokens
MAX_WORD_BYTES = 24  # of a word in the table
SLOT_BITS = 18  # each half of the table has 2 ** 18 slots: 524,288 words in all, 15 MB
WORDS_PER_TEXT = 256  # new words are encoded as texts of this many lines
BLOCK_CHARACTERS = 1 << 19  # of text counted at a time
_CROSSES_WORDS = re.compile(f"[^{META_SPACE}\0]{META_SPACE}|[ \n]")
_MULTIPLIERS = np.array(
    [
        [0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x94D049BB133111EB],
        [0xD6E8FEB86659FD93, 0xA0761D6478BD642F, 0xE7037ED1A0B428DB],
    ],
    np.uint64,
)
_SHIFT = np.uint64(64 - SLOT_BITS)
_MASKS = [
    np.array([256 ** min(max(size - first, 0), 8) - 1 for size in range(MAX_WORD_BYTES + 1)], np.uint64)
    for first in range(0, MAX_WORD_BYTES, 8)
]  # for a word's bytes, eight at a time, by its length


def has_additive_words(document: str) -> bool:
    """Return whether, with this tokenizer.json, the counts of words add up to the counts of texts."""
    parsed = json.loads(document)
    model, added = parsed["model"], parsed.get("added_tokens") or []
    steps = (parsed.get("normalizer") or {}).get("normalizers", [])
    if [step["type"] for step in steps] != ["Prepend", "Replace"] or parsed.get("pre_tokenizer") is not None:
        return False
    if model.get("type") != "BPE" or not model.get("byte_fallback") or not all(token["special"] for token in added):
        return False
    vocab: dict[str, int] = model["vocab"]
    complete = META_SPACE in vocab and all(
        f"<0x{byte:02X}>" in vocab for byte in range(256)
    )  # no text has unknown tokens
    return complete and not _CROSSES_WORDS.search("\0".join(vocab))


class WordCounter:
    """Counts tokens with a table of words, filled as they occur. `encode` is the tokenizer's own method."""

    def __init__(self, encode: Encode) -> None:
        self._encode = encode
        self._line_break_id = int(encode(["\n"])[0][-1])  # no other token contains a line break
        self._table = np.zeros(
            (2 << SLOT_BITS, MAX_WORD_BYTES // 8 + 1), np.uint64
        )  # a word's bytes, its count (0: a free slot)
        line_break = [np.array([key], np.uint64) for key in (LINE_BREAK, *[0] * (MAX_WORD_BYTES // 8 - 1))]
        self._store(line_break, np.ones(1, np.int64))

    def count(self, texts: Sequence[str], cuts: Sequence[int]) -> tuple[Counts, Counts]:
        """Return the tokens of each text, and those before its cut, a position in characters: both [texts].

        -1 means that words do not give the count: for a text with a literal `▁` or a zero byte, a cut within a word,
        and all texts of a block that contains a lone surrogate.
        """
        parts = [self._count_block(texts[block], cuts[block]) for block in _blocks(texts)]
        total, before = zip(*parts, strict=True) if parts else ((), ())
        empty = np.zeros(0, np.int64)
        return np.concatenate([empty, *total]), np.concatenate([empty, *before])

    def _count_block(self, texts: Sequence[str], cuts: Sequence[int]) -> tuple[Counts, Counts]:
        unsupported = [i for i, text in enumerate(texts) if META_SPACE in text or "\0" in text]
        if unsupported:
            texts, cuts = list(texts), list(cuts)
            for i in unsupported:
                texts[i], cuts[i] = "", 0
        try:
            total, before = self._sum_words(texts, cuts)
        except UnicodeEncodeError:  # a lone surrogate
            return np.full(len(texts), -1), np.full(len(texts), -1)
        total[unsupported] = before[unsupported] = -1
        return total, before

    def _sum_words(self, texts: Sequence[str], cuts: Sequence[int]) -> tuple[Counts, Counts]:
        """Return the same for texts without a literal `▁` or a zero byte."""
        joined = " " + " ".join(texts)  # the space before each text is the `▁` that the tokenizer puts there
        sizes, byte_cuts = (list(map(len, texts)), cuts) if joined.isascii() else _in_bytes(texts, cuts)
        data = joined.encode() + bytes(MAX_WORD_BYTES)
        # Where each text ends and begins in `data`, in bytes, with its space: [texts].
        ends = np.cumsum(np.array(sizes, np.int64) + 1)
        begins = ends - sizes - 1
        starts = _word_starts(np.frombuffer(data, np.uint8, len(data) - MAX_WORD_BYTES), begins)
        sums = np.zeros(len(starts) + 1, np.int64)  # of the words before each word
        np.cumsum(self._word_counts(data, starts), out=sums[1:])
        first = np.searchsorted(starts, begins)  # each text's first word
        total = sums[np.append(first[1:], len(starts))] - sums[first]
        positions = begins + byte_cuts + (np.array(byte_cuts) > 0)  # a cut at the start of a text is before its `▁` too
        word = np.searchsorted(starts, positions)
        at_word = (positions == ends) | (np.append(starts, -1)[word] == positions)
        before = np.where(at_word, sums[word] - sums[first], -1)
        empty = ends == begins + 1  # the tokenizer puts no `▁` before an empty text
        total[empty] = before[empty] = 0
        return total, before

    def _word_counts(self, data: bytes, starts: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the count of each word; words that are not in the table are encoded, and stored there."""
        sizes = np.diff(starts, append=len(data) - MAX_WORD_BYTES)
        keys = _keys(data, starts, np.minimum(sizes, MAX_WORD_BYTES))
        counts = self._look_up(keys, 0)
        missing = np.flatnonzero(counts == 0)
        counts[missing] = self._look_up([key[missing] for key in keys], 1)
        counts[sizes > MAX_WORD_BYTES] = 0
        unknown = counts == 0
        if unknown.any():
            counts[unknown] = self._encode_words(data, unknown, sizes)
            new = np.flatnonzero(unknown & (sizes <= MAX_WORD_BYTES))
            self._store([key[new] for key in keys], counts[new])
        return counts

    def _look_up(self, keys: Keys, choice: int) -> NDArray[np.int64]:
        """Return the counts of the words found in the first (0) or second (1) of their slots, 0 for the others."""
        rows = np.take(self._table, _slot(keys, choice), axis=0)
        same = rows[:, 0] == keys[0]
        for column, key in enumerate(keys[1:], 1):
            same &= rows[:, column] == key
        counts: NDArray[np.int64] = rows[:, -1].view(np.int64) * same
        return counts

    def _store(self, keys: Keys, counts: NDArray[np.int64]) -> None:
        """Store words in the first of their two slots if it is free, else in the second, replacing its word."""
        slots = _slot(keys, 0)
        slots = np.where(self._table[slots, -1] == 0, slots, _slot(keys, 1))
        slots, rows = np.unique(slots, return_index=True)  # the first of several words for the same slot
        self._table[slots] = np.stack([*keys, counts.astype(np.uint64)], axis=1)[rows]

    def _encode_words(self, data: bytes, unknown: NDArray[np.bool_], sizes: NDArray[np.int64]) -> NDArray[np.int64]:
        """Count words with the tokenizer, as lines of texts of `WORDS_PER_TEXT` lines."""
        text = np.frombuffer(data, np.uint8, len(data) - MAX_WORD_BYTES)[np.repeat(unknown, sizes)]
        ends = np.cumsum(sizes[unknown])
        lines = np.insert(text, ends, LINE_BREAK).tobytes().split(b"\n")[:-1]
        texts = [b"\n".join((b"", *lines[i : i + WORDS_PER_TEXT], b"")) for i in range(0, len(lines), WORDS_PER_TEXT)]
        ids, _ = self._encode([text.decode() for text in texts])
        between = np.diff(np.flatnonzero(ids == self._line_break_id)) - 1
        counts: NDArray[np.int64] = np.delete(between, np.arange(WORDS_PER_TEXT, len(between), WORDS_PER_TEXT + 1))
        return counts


def _blocks(texts: Sequence[str]) -> Iterator[slice]:
    """Yield slices of the texts, each of about `BLOCK_CHARACTERS` characters."""
    start = size = 0
    for stop, text in enumerate(texts, 1):
        size += len(text)
        if size >= BLOCK_CHARACTERS:
            yield slice(start, stop)
            start, size = stop, 0
    if start < len(texts):
        yield slice(start, len(texts))


def _in_bytes(texts: Sequence[str], cuts: Sequence[int]) -> tuple[list[int], list[int]]:
    """Return the size of each text and the position of its cut, in bytes."""
    sizes, byte_cuts = [], []
    for text, cut in zip(texts, cuts, strict=True):
        if text.isascii():
            sizes.append(len(text))
            byte_cuts.append(cut)
        else:
            byte_cuts.append(len(text[:cut].encode()))
            sizes.append(byte_cuts[-1] + len(text[cut:].encode()))
    return sizes, byte_cuts


def _word_starts(text: NDArray[np.uint8], begins: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return where words start: at runs of spaces, on both sides of line breaks, and where texts begin."""
    spaces, breaks = text == SPACE, text == LINE_BREAK
    is_start = breaks.copy()
    is_start[1:] |= breaks[:-1]
    is_start |= spaces
    is_start[1:] &= ~(spaces[1:] & spaces[:-1])
    is_start[begins] = True
    return np.flatnonzero(is_start)


def _keys(data: bytes, starts: NDArray[np.int64], sizes: NDArray[np.int64]) -> Keys:
    """Return the bytes of each word, eight at a time, with zeros after its end; few have more than eight."""
    eight_bytes = np.ndarray((len(data) - 7,), np.uint64, data, strides=(1,))  # from each position on
    keys = [eight_bytes[starts] & _MASKS[0][sizes]]
    longer = np.arange(len(starts))
    for part, mask in enumerate(_MASKS[1:], 1):
        longer = longer[sizes[longer] > 8 * part]
        key = np.zeros(len(starts), np.uint64)
        key[longer] = eight_bytes[starts[longer] + 8 * part] & mask[sizes[longer]]
        keys.append(key)
    return keys


def _slot(keys: Keys, choice: int) -> NDArray[np.int64]:
    """Return the slot of each word in the first half of the table (`choice` 0) or the second (1)."""
    slots = keys[0] * _MULTIPLIERS[choice][0]
    for key, multiplier in zip(keys[1:], _MULTIPLIERS[choice][1:], strict=True):
        slots ^= key * multiplier
    rows: NDArray[np.int64] = (slots >> _SHIFT).astype(np.int64) + (choice << SLOT_BITS)
    return rows
