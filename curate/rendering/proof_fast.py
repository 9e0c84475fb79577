"""The fast half of the proof: compare the ids of a batch with the expected text of built-in templates.

A rendering is accepted if its ids decode to the expected text byte for byte, the loss mask covers exactly the bytes of
the answers and their stop tokens, and the ids before each answer are those of the generation prompt. Everything else
goes to `curate.rendering.proof`, which says what is wrong. The expected text comes from the template's segments and the
messages (`curate.rendering.expected`), and shares nothing with the code that makes ids and mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from curate.rendering.encoding import EncodedBatch
from curate.rendering.expected import ExpectedText, control_chars, utf8
from curate.tokenization.tokenizer import Tokenizer

DECODED_AT_ONCE = 32  # renderings; few enough that their byte positions fit a CPU cache


def control_bytes(token: int) -> bytes:
    """Return bytes that stand for a control token; UTF-8 never has the byte 0xff."""
    return b"\xff%d\xff" % token


@dataclass(frozen=True)
class ByteTable:
    """The bytes that each id decodes to.

    `token_bytes` has control tokens as `control_bytes`. `flat` joins the bytes of all ids, control tokens as
    `control_chars`: id i is at `starts[i]`, `lengths[i]` bytes long. `controls` are the ids of control tokens.
    `prefixed`: the tokenizer puts a space before every text, which is not part of the text.
    """

    token_bytes: list[bytes]  # [vocabulary]
    flat: NDArray[np.uint8]  # [bytes of the vocabulary + 1]
    starts: NDArray[np.int64]  # [vocabulary]
    lengths: NDArray[np.int64]  # [vocabulary]
    controls: NDArray[np.int64]  # [control tokens]
    prefixed: bool


def byte_table(tokenizer: Tokenizer) -> ByteTable | None:
    """Return the table of a tokenizer, or None where ids cannot be decoded one by one."""
    known = tokenizer.token_bytes
    if known is None or tokenizer.byte_lengths is None:
        return None
    token_bytes, spelled = [*known], [*known]
    controls = sorted(set(tokenizer.control_ids.values()))
    for token in controls:
        token_bytes[token], spelled[token] = control_bytes(token), utf8(control_chars(token))
    lengths = np.fromiter(map(len, spelled), dtype=np.int64, count=len(spelled))
    flat = np.frombuffer(b"".join([*spelled, b"\0"]), dtype=np.uint8)  # one more byte: the last token may have none
    return ByteTable(
        token_bytes,
        flat,
        np.cumsum(lengths) - lengths,
        lengths,
        np.array(controls, dtype=np.int64),
        bool(tokenizer.byte_lengths[1]),
    )


def accept(
    batch: EncodedBatch, expected: Sequence[ExpectedText | None], table: ByteTable, tokenizer: Tokenizer
) -> NDArray[np.bool_]:
    """Return which renderings are proven: [renderings]. One without an expected text is not."""
    owners = np.repeat(np.arange(len(batch)), batch.lengths)  # the rendering of each token
    sizes, texts = _decode(batch, table)  # [tokens] bytes; [renderings] texts
    accepted = np.array(
        [want is not None and want.text == text for want, text in zip(expected, texts, strict=True)], dtype=np.bool_
    )
    starts, stops = supervised_spans(batch)  # [spans], in tokens of the batch
    accepted &= _mask_matches(expected, accepted, owners, sizes, (starts, stops))
    return accepted & _prompts_match(batch, expected, accepted, owners, starts, tokenizer)


def supervised_spans(batch: EncodedBatch) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the start and stop token of each span of supervised tokens; two renderings never share a span."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], batch.loss_mask, [False]]).astype(np.int8)))
    # An answer at the end of one rendering and a supervised first token of the next would look like one span.
    borders = batch.offsets[1:-1]
    borders = borders[(borders > 0) & (borders < len(batch.loss_mask))]
    borders = borders[batch.loss_mask[borders - 1] & batch.loss_mask[borders]]  # where two renderings touch
    return np.sort(np.concatenate([edges[::2], borders])), np.sort(np.concatenate([edges[1::2], borders]))


def starts_block(batch: EncodedBatch, controls: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return which tokens are the first of a block or of a rendering: [tokens]."""
    control = np.isin(batch.ids, controls)
    starts = np.zeros(len(batch.ids), dtype=np.bool_)
    starts[1:] = control[:-1] & ~control[1:]
    starts[batch.offsets[:-1][batch.lengths > 0]] = True
    return starts


def _decode(batch: EncodedBatch, table: ByteTable) -> tuple[NDArray[np.int64], list[bytes]]:
    """Return the bytes that each token decodes to, in number, and each rendering decoded."""
    starts = table.starts[batch.ids]  # [tokens], where each token's bytes are in `flat`
    sizes = table.lengths[batch.ids]  # [tokens]
    if table.prefixed:
        first = np.flatnonzero(starts_block(batch, table.controls) & (table.flat[starts] == ord(" ")) & (sizes > 0))
        starts[first] += 1
        sizes[first] -= 1
    ends = np.zeros(len(sizes) + 1, dtype=np.int64)  # bytes before each token
    np.cumsum(sizes, out=ends[1:])
    texts: list[bytes] = []
    for index in range(0, len(batch), DECODED_AT_ONCE):
        cuts = batch.offsets[index : index + DECODED_AT_ONCE + 1]
        part = slice(*cuts[[0, -1]].tolist())
        places = np.repeat(starts[part] - ends[part], sizes[part])  # for each byte, where it is in `flat`
        places += np.arange(ends[part.start], ends[part.stop])
        text = table.flat[places].tobytes()
        texts += [text[start:stop] for start, stop in pairwise((ends[cuts] - ends[part.start]).tolist())]
    return sizes, texts


def _mask_matches(
    expected: Sequence[ExpectedText | None],
    candidates: NDArray[np.bool_],
    owners: NDArray[np.int64],
    sizes: NDArray[np.int64],
    spans: tuple[NDArray[np.int64], NDArray[np.int64]],
) -> NDArray[np.bool_]:
    """Return the candidates whose loss mask covers exactly the bytes to be supervised."""
    bytes_before = np.zeros(len(sizes) + 1, dtype=np.int64)  # of each token, in the batch
    np.cumsum(sizes, out=bytes_before[1:])
    first_tokens = np.searchsorted(owners, np.arange(len(expected)))  # [renderings]
    counts = np.bincount(owners[spans[0]], minlength=len(expected))
    matches = candidates.copy()
    ranges: list[tuple[int, int]] = []
    for index in np.flatnonzero(candidates).tolist():
        want = expected[index]
        matches[index] = want is not None and len(want.supervised) == counts[index]
        if want is not None and matches[index]:
            ranges += want.supervised
    compared = matches[owners[spans[0]]]  # [spans]; others have no entry in `ranges`
    owner = owners[spans[0]][compared]  # [compared spans]
    starts, stops = (bytes_before[edge[compared]] - bytes_before[first_tokens[owner]] for edge in spans)
    wanted = np.array(ranges, dtype=np.int64).reshape(-1, 2)  # [compared spans, 2]
    matches[owner[(starts != wanted[:, 0]) | (stops != wanted[:, 1])]] = False
    return matches


def _prompts_match(
    batch: EncodedBatch,
    expected: Sequence[ExpectedText | None],
    candidates: NDArray[np.bool_],
    owners: NDArray[np.int64],
    starts: NDArray[np.int64],
    tokenizer: Tokenizer,
) -> NDArray[np.bool_]:
    """Return the candidates in which the ids before each answer are those of its prompt, tokenized alone."""
    counts = np.bincount(owners[starts], minlength=len(expected))
    matches = candidates.copy()
    texts: list[str] = []
    for index in np.flatnonzero(candidates).tolist():
        want = expected[index]
        matches[index] = want is not None and len(want.prompts) == counts[index]
        if want is not None and matches[index]:
            texts += want.prompts
    answers = starts[matches[owners[starts]]]  # first token of each answer, in the order of `texts`
    ids, offsets = tokenizer.encode(texts)  # of all prompts in one call
    sizes = np.diff(offsets)  # [answers], tokens of each prompt
    answer = np.repeat(np.arange(len(answers)), sizes)  # for each prompt token
    # Where each prompt token must be in the batch: a prompt ends where its answer starts. [prompt tokens]
    places = answers[answer] - sizes[answer] + np.arange(len(ids)) - offsets[answer]
    wrong = (places < batch.offsets[owners[answers[answer]]]) | (batch.ids[np.maximum(places, 0)] != ids)
    matches[owners[answers[answer[wrong]]]] = False
    return matches
