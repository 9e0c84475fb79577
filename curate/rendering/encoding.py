"""Encode rendered text to ids and a loss mask; character offsets locate the supervised tokens.

Each block is tokenized in one call, and control tokens are inserted as ids. A span starts at a boundary: the generation
prompt ends there, so no token may cross it. Where one does (LLaMA-3 has one token for `\\n\\n`, which joins a `\\n`
before an answer and a `\\n` that starts it), the block is tokenized in two parts, so that the prompt's ids remain a
prefix of the training ids. The splitter counts tokens with the same code, so counts and ids cannot differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from curate.rendering.text_batch import Blocks, TextBatch
from curate.tokenization.tokenizer import FlatIds, Tokenizer
from curate.tokenization.word_counts import WordCounter

Counts = NDArray[np.int64]


@dataclass(frozen=True)
class EncodedBatch:
    """Ids and loss mask of many renderings in one array; rendering i is at `offsets[i]:offsets[i + 1]`.

    `ids` and `loss_mask` are [tokens], `offsets` is [renderings + 1].
    """

    ids: NDArray[np.int32]
    loss_mask: NDArray[np.bool_]
    offsets: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each rendering: [renderings]."""
        return np.diff(self.offsets)

    def tokens_of(self, index: int) -> slice:
        """Return where rendering `index` is in `ids` and `loss_mask`."""
        return slice(*self.offsets[index : index + 2].tolist())

    def select(self, indices: Sequence[int]) -> EncodedBatch:
        """Return the renderings at `indices`, of which there is at least one."""
        parts = [self.tokens_of(index) for index in indices]
        offsets = np.zeros(len(indices) + 1, dtype=np.int64)
        np.cumsum([part.stop - part.start for part in parts], out=offsets[1:])
        return EncodedBatch(
            np.concatenate([self.ids[part] for part in parts]),
            np.concatenate([self.loss_mask[part] for part in parts]),
            offsets,
        )


@dataclass(frozen=True)
class _TokenizedText:
    """Ids of all blocks, without control tokens; block i is at `offsets[i]:offsets[i + 1]`.

    `starts` and `stops` are [spans]: each span as token positions in `ids`.
    """

    ids: NDArray[np.uint32]  # [text tokens]
    offsets: NDArray[np.int64]
    starts: NDArray[np.int64]  # [spans]
    stops: NDArray[np.int64]  # [spans]


def encode(batch: TextBatch, tokenizer: Tokenizer) -> EncodedBatch:
    """Return the ids and the loss mask of all renderings.

    Both are [tokens], with control tokens included, in the order of `batch`.
    """
    text = _tokenize(batch, tokenizer)
    supervised = np.array(batch.spans.supervised, dtype=np.bool_)  # [spans]
    # +1 where a supervised span starts and -1 where it stops: the running sum is positive inside. [tokens + 1]
    edges = np.zeros(len(text.ids) + 1, dtype=np.int32)
    np.add.at(edges, text.starts[supervised], 1)
    np.add.at(edges, text.stops[supervised], -1)
    loss_mask = np.cumsum(edges[:-1]) > 0
    controls = batch.controls
    # The text token before which each control token goes; `np.insert` keeps the order of equal positions.
    positions = text.offsets[np.array(controls.block, dtype=np.int64)]
    # Tokens of text and control tokens together; the first offset stays 0.
    offsets = np.zeros(batch.renderings + 1, dtype=np.int64)
    np.cumsum(_sum_renderings(batch, *_count_blocks(batch, text))[:, 0], out=offsets[1:])
    return EncodedBatch(
        np.insert(text.ids.astype(np.int32), positions, np.array(controls.token, dtype=np.int32)),
        np.insert(loss_mask, positions, np.array(controls.supervised, dtype=np.bool_)),
        offsets,
    )


# ---- counting


def count_tokens(batch: TextBatch, tokenizer: Tokenizer) -> Counts:
    """Return the tokens of each rendering, and how many of them are supervised: [renderings, 2]."""
    if tokenizer.word_counter is None:
        return _sum_renderings(batch, *_count_blocks(batch, _tokenize(batch, tokenizer)))
    total, supervised = _count_by_words(batch, tokenizer.word_counter)
    uncounted = np.flatnonzero(total < 0).tolist()  # blocks that must be tokenized after all; few in practice
    if uncounted:
        selected = _select_blocks(batch, uncounted)
        total[uncounted], supervised[uncounted] = _count_blocks(selected, _tokenize(selected, tokenizer))
    return _sum_renderings(batch, total, supervised)


def _sum_renderings(batch: TextBatch, total: Counts, supervised: Counts) -> Counts:
    """Add up the blocks and control tokens of each rendering: [renderings, 2] from two arrays [blocks]."""
    sums = np.zeros((batch.renderings, 2), dtype=np.int64)
    np.add.at(sums, batch.blocks.rendering, np.stack([total, supervised], axis=1))
    controls = np.ones((len(batch.controls), 2), dtype=np.int64)
    controls[:, 1] = batch.controls.supervised
    np.add.at(sums, batch.controls.rendering, controls)
    return sums


def _count_blocks(batch: TextBatch, text: _TokenizedText) -> tuple[Counts, Counts]:
    """Return the tokens of each block, and how many of them are supervised: both [blocks]."""
    supervised = np.zeros(len(batch.blocks), dtype=np.int64)
    lengths = np.where(np.array(batch.spans.supervised, dtype=np.bool_), text.stops - text.starts, 0)
    np.add.at(supervised, batch.spans.block, lengths)
    return np.diff(text.offsets), supervised


def _count_by_words(batch: TextBatch, word_counter: WordCounter) -> tuple[Counts, Counts]:
    """Return what `_count_blocks` does, from a table of words; the total is -1 for a block that words cannot count.

    That is a block with several spans, with text after its span, or whose span starts inside a word. No token crosses
    the end of a word, so in a block that can be counted no token crosses the start of the span either.
    """
    texts = batch.blocks.text
    starts = [0] * len(texts)  # a block without a span has its boundary at 0
    supervised = np.zeros(len(texts), dtype=np.bool_)
    countable = np.ones(len(texts), dtype=np.bool_)
    previous = -1  # block of the previous span
    for block, start, stop, counts in batch.spans.rows():
        starts[block], supervised[block] = start, counts
        countable[block] = block != previous and stop == len(texts[block])
        previous = block
    total, before = word_counter.count(texts, starts)  # [blocks]; `before`: tokens before the span
    countable &= (total >= 0) & (before >= 0)
    return np.where(countable, total, -1), np.where(supervised, total - before, 0)


def _select_blocks(batch: TextBatch, blocks: Sequence[int]) -> TextBatch:
    """Return the given blocks with their spans, without control tokens."""
    new_index = {block: index for index, block in enumerate(blocks)}
    chosen = [i for i, block in enumerate(batch.spans.block) if block in new_index]  # indices of spans
    return TextBatch(
        Blocks([batch.blocks.text[block] for block in blocks]),
        spans=batch.spans.select(chosen, [new_index[batch.spans.block[i]] for i in chosen]),
    )


# ---- spans as token positions


def _tokenize(batch: TextBatch, tokenizer: Tokenizer) -> _TokenizedText:
    """Tokenize the blocks and locate the spans; a block where a token crosses a boundary is tokenized in parts."""
    flat = tokenizer.encode_blocks(batch.blocks.text)
    spans = batch.spans
    blocks = np.array(spans.block, dtype=np.int64)  # [spans]
    # Positions within the block, made absolute at the end: replaced blocks change the offsets.
    starts, stops, located = _locate_by_bytes(batch, tokenizer, flat, blocks)
    spans_of: dict[int, list[int]] = {block: [] for block in sorted(set(blocks[~located].tolist()))}
    if not spans_of:
        return _TokenizedText(*flat, flat[1][blocks] + starts, flat[1][blocks] + stops)
    for span, block in enumerate(spans.block):
        if block in spans_of:
            spans_of[block].append(span)
    replaced: dict[int, list[int]] = {}  # ids by block
    for block, indices in spans_of.items():
        boundaries = sorted({boundary for i in indices for boundary in (spans.start[i], spans.stop[i])})
        block_ids = flat[0][flat[1][block] : flat[1][block + 1]].tolist()
        # `tokens`: the token position of each boundary, by its position in characters
        replaced[block], tokens = _tokenize_in_parts(tokenizer, batch.blocks.text[block], boundaries, block_ids)
        for i in indices:
            starts[i], stops[i] = tokens[spans.start[i]], tokens[spans.stop[i]]
    flat = _replace_blocks(flat, replaced)
    return _TokenizedText(*flat, flat[1][blocks] + starts, flat[1][blocks] + stops)


def _locate_by_bytes(
    batch: TextBatch, tokenizer: Tokenizer, flat: FlatIds, blocks: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
    """Return each span's first token and the one after its last, within its block, and whether they are known.

    All three are [spans]. The running sum of the bytes that a block's ids represent says where in the text each token
    starts. A span is unknown if no token starts at its boundary, or if the sum is not the length of the text (it holds
    a literal `▁` or an unknown token). A lone surrogate counts as the replacement character: three bytes.
    """
    spans, texts = batch.spans, batch.blocks.text
    starts, stops = np.array(spans.start, dtype=np.int64), np.array(spans.stop, dtype=np.int64)
    table = tokenizer.byte_lengths
    if table is None or not len(blocks):
        return starts, stops, np.zeros(len(blocks), dtype=np.bool_)
    ids, offsets = flat
    ends = np.zeros(len(ids) + 1, dtype=np.int64)  # bytes before each token of the batch
    np.cumsum(table[0][ids], out=ends[1:])
    sizes = np.array([len(texts[block]) for block in spans.block], dtype=np.int64)  # in bytes, [spans]
    for i in [i for i, block in enumerate(spans.block) if not texts[block].isascii()]:
        text = texts[spans.block[i]]
        starts[i] = _size(text[: spans.start[i]])
        stops[i] = starts[i] + _size(text[spans.start[i] : spans.stop[i]])
        sizes[i] = stops[i] + _size(text[spans.stop[i] :])
    first = offsets[blocks]
    begin, prefix = ends[first], table[1]  # some tokenizers put a space (`prefix` bytes) before every text
    located = ends[offsets[blocks + 1]] - begin == sizes + prefix
    tokens = []
    # A boundary at 0 is before the prefix: a span that starts a block includes it.
    for places in (starts, stops):
        targets = begin + np.where(places > 0, places + prefix, 0)
        nearest = np.minimum(np.searchsorted(ends, targets), len(ids))
        located &= ends[nearest] == targets
        tokens.append(nearest - first)
    return tokens[0], tokens[1], located


def _size(text: str) -> int:
    """Return the length of a text in bytes of UTF-8."""
    return len(text.encode("utf-8", "surrogatepass"))


def _tokenize_in_parts(
    tokenizer: Tokenizer, text: str, boundaries: Sequence[int], uncut: list[int]
) -> tuple[list[int], dict[int, int]]:
    """Return a block's ids with no token across a boundary, and the token position of each boundary.

    The text is cut only where a token crosses, so that everything else keeps the ids of one call (`uncut`).
    """
    cuts: set[int] = set()
    # A cut changes the ids of both parts, so other boundaries are checked again; each round adds a cut, so it ends.
    while True:
        edges = [0, *sorted(cuts), len(text)]
        parts = [_tokenize_part(tokenizer, text, *edge) for edge in pairwise(edges)] if cuts else [uncut]
        ids = [token for part in parts for token in part]
        positions, crossed = _locate(tokenizer, text, boundaries, edges, parts)
        if not crossed:
            return ids, positions
        cuts |= crossed


def _locate(
    tokenizer: Tokenizer, text: str, boundaries: Sequence[int], edges: Sequence[int], parts: Sequence[list[int]]
) -> tuple[dict[int, int], set[int]]:
    """Return the token position of each boundary, and the boundaries that a token crosses.

    Part k is the ids of `text[edges[k]:edges[k + 1]]`.
    """
    positions: dict[int, int] = {}
    crossed: set[int] = set()
    done = 0  # tokens of earlier parts
    for (start, stop), part in zip(pairwise(edges), parts, strict=True):
        for boundary in boundaries:
            if start < boundary < stop:
                # No token crosses if the text up to the boundary, tokenized alone, gives the part's first ids.
                before = _tokenize_part(tokenizer, text, start, boundary)
                if part[: len(before)] != before:
                    crossed.add(boundary)
                positions[boundary] = done + len(before)
            elif boundary in (start, stop):
                positions[boundary] = done + (len(part) if boundary == stop else 0)
        done += len(part)
    return positions, crossed


def _tokenize_part(tokenizer: Tokenizer, text: str, start: int, stop: int) -> list[int]:
    # A tokenizer may put a space before a text: right at the start of a block, wrong within it.
    encode_text = tokenizer.encode_blocks if start == 0 else tokenizer.encode_continuation
    return [int(token) for token in encode_text([text[start:stop]])[0]]


def _replace_blocks(flat: FlatIds, blocks: dict[int, list[int]]) -> FlatIds:
    """Return ids and offsets with the ids of the given blocks replaced."""
    ids, offsets = flat  # [text tokens], [blocks + 1]
    lengths = np.diff(offsets)  # tokens of each block
    parts: list[NDArray[np.uint32]] = []
    done = 0
    for block, replacement in sorted(blocks.items()):
        parts += [ids[done : offsets[block]], np.array(replacement, dtype=np.uint32)]
        done = int(offsets[block + 1])
        lengths[block] = len(replacement)
    moved = np.zeros_like(offsets)
    np.cumsum(lengths, out=moved[1:])
    return np.concatenate([*parts, ids[done:]]), moved
