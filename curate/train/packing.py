"""Conversations into rows of one fixed length, best fit first, and rows into the tensors of a micro-batch.

Nothing is cropped: what is longer than a row is refused. Documents of one row are told apart by `documents`,
and `position_ids` begin at 0 for each, so that a packed conversation is read as if it stood alone.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from curate.errors import CurateError

IGNORED = -100  # the target of a position that is not trained on, as cross-entropy has it
PADDING = -1  # the document of a position that holds none


class Conversations(Protocol):
    """Ids and loss masks of many conversations: number i has `offsets[i]` to `offsets[i + 1]`."""

    @property
    def ids(self) -> NDArray[np.int32]: ...

    @property
    def mask(self) -> NDArray[np.bool_]: ...

    @property
    def offsets(self) -> NDArray[np.int64]: ...


@dataclass(frozen=True)
class Packing:
    """Which conversations stand in each row, and the share of all positions that holds tokens.

    `padded_utilisation`: that share if each conversation had a row of its own.
    """

    rows: list[list[int]]
    row_tokens: int
    utilisation: float
    padded_utilisation: float


def pack(lengths: NDArray[np.int64] | Sequence[int], row_tokens: int) -> Packing:
    """Put conversations into rows: the longest first, each into the fullest row that still holds it.

    O(n log n), and the same rows for the same lengths. Raises CurateError for one longer than a row, and for none.
    """
    sizes = np.asarray(lengths, dtype=np.int64)
    if not len(sizes):
        raise CurateError("there is no conversation to pack into rows")
    if sizes.max() > row_tokens:
        longest = int(sizes.argmax())
        raise CurateError(
            f"conversation {longest} has {sizes[longest]:,} tokens, a row {row_tokens:,}; nothing is cropped: "
            f"give --max-tokens {sizes[longest]}, or split the set at {row_tokens}"
        )
    rows: list[list[int]] = []
    free: list[int] = []  # what is free in open rows, each figure once, ascending
    open_rows: dict[int, list[int]] = {}  # rows by what is free in them; the one opened first is last
    for index in np.argsort(-sizes, kind="stable").tolist():
        size = int(sizes[index])
        at = bisect_left(free, size)
        if at == len(free):
            row, left = len(rows), row_tokens
            rows.append([])
        else:
            left = free[at]
            row = open_rows[left].pop()
            if not open_rows[left]:
                free.pop(at)
        rows[row].append(index)
        if left > size:
            waiting = open_rows.setdefault(left - size, [])
            if not waiting:
                insort(free, left - size)
            waiting.append(row)
    total = int(sizes.sum())
    return Packing(rows, row_tokens, total / (len(rows) * row_tokens), total / (len(sizes) * row_tokens))


@dataclass(frozen=True)
class Batch:
    """One micro-batch, each [rows, tokens].

    `targets` are shifted already: that of position t is the id at t + 1, IGNORED where it is not trained on or is
    another document's. `position_ids` begin at 0 in each document. `documents` (int32) counts each row's from 0;
    padding is PADDING. `supervised`: how many targets count.
    """

    input_ids: Tensor
    targets: Tensor
    position_ids: Tensor
    documents: Tensor
    supervised: int

    def to(self, device: torch.device | str) -> Batch:
        """Return the batch on a device."""
        return Batch(
            self.input_ids.to(device, non_blocking=True),
            self.targets.to(device, non_blocking=True),
            self.position_ids.to(device, non_blocking=True),
            self.documents.to(device, non_blocking=True),
            self.supervised,
        )


def batch(examples: Conversations, rows: Sequence[Sequence[int]], row_tokens: int, pad_id: int = 0) -> Batch:
    """Return the tensors of some rows of a packing."""
    shape = (len(rows), row_tokens)
    ids = np.full(shape, pad_id, dtype=np.int64)
    targets = np.full(shape, IGNORED, dtype=np.int64)
    positions = np.zeros(shape, dtype=np.int64)
    documents = np.full(shape, PADDING, dtype=np.int32)
    for row, members in enumerate(rows):
        at = 0
        for number, index in enumerate(members):
            begin, end = examples.offsets[index : index + 2].tolist()
            stop = at + end - begin
            if stop > row_tokens:
                raise CurateError(f"conversation {index} does not fit its row of {row_tokens:,} tokens")
            own = examples.ids[begin:end]
            ids[row, at:stop] = own
            targets[row, at : stop - 1] = np.where(examples.mask[begin + 1 : end], own[1:], IGNORED)
            positions[row, at:stop] = np.arange(end - begin)
            documents[row, at:stop] = number
            at = stop
    supervised = int((targets != IGNORED).sum())
    tensors = [torch.from_numpy(array) for array in (ids, targets, positions, documents)]
    return Batch(tensors[0], tensors[1], tensors[2], tensors[3], supervised)


def unpacked(examples: Conversations, indices: Sequence[int], pad_id: int = 0) -> Batch:
    """Return one conversation a row, padded to the longest."""
    longest = max((int(examples.offsets[i + 1] - examples.offsets[i]) for i in indices), default=0)
    return batch(examples, [[index] for index in indices], longest, pad_id)
