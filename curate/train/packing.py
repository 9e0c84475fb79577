"""Pack examples into rows of one fixed length, best fit first, and turn packed rows into micro-batches of tensors.

Nothing is cropped: an example longer than a packed row is refused. In a row, an example is a document: `documents` has
its number at each position, and `position_ids` begin at 0 in each, so that each is processed as if it were alone.

The packed rows of a step depend only on seed and step number: each epoch has its own order, and the sequence of all
epochs is cut into steps. A resumed run therefore continues with exactly the next rows, on any number of ranks.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Any, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from curate.errors import CurateError
from curate.train.planning.inputs import Steps

IGNORED = -100  # target of a position without loss; the `ignore_index` of cross-entropy
PADDING = -1  # document number of a position that holds no token


class TokenArrays(Protocol):
    """Token ids [tokens] and loss mask [tokens] of many examples; number i is `offsets[i]` to `offsets[i + 1]`."""

    @property
    def ids(self) -> NDArray[np.int32]: ...

    @property
    def loss_mask(self) -> NDArray[np.bool_]: ...

    @property
    def offsets(self) -> NDArray[np.int64]: ...  # [examples + 1]


@dataclass(frozen=True)
class Packing:
    """The examples of each packed row, by index."""

    rows: list[list[int]]
    row_tokens: int
    utilisation: float  # share of positions with tokens
    padded_utilisation: float  # the same with one example per row


def pack(lengths: NDArray[np.int64] | Sequence[int], row_tokens: int) -> Packing:
    """Pack examples of these lengths, in tokens: the longest first, each into the fullest row that has room.

    Deterministic; O(n log n), because only distinct numbers of free tokens are searched. Raises CurateError for an
    example longer than a row, and if there is no example.
    """
    sizes = np.asarray(lengths, dtype=np.int64)
    if not len(sizes):
        raise CurateError("there is no piece to pack into rows")
    if sizes.max() > row_tokens:
        longest = int(sizes.argmax())
        raise CurateError(
            f"piece {longest} has {sizes[longest]:,} tokens, a row {row_tokens:,}; nothing is cropped: "
            f"give --max-tokens {sizes[longest]}, or clean the set with a window of {row_tokens}"
        )
    rows: list[list[int]] = []
    free: list[int] = []  # distinct numbers of free tokens in open rows, ascending
    open_rows: dict[int, list[int]] = {}  # rows by their free tokens; the one opened first is last
    for index in np.argsort(-sizes, kind="stable").tolist():
        size = int(sizes[index])
        fullest = bisect_left(free, size)  # the smallest room that is enough
        if fullest == len(free):
            row, room = len(rows), row_tokens
            rows.append([])
        else:
            room = free[fullest]
            row = open_rows[room].pop()
            if not open_rows[room]:
                free.pop(fullest)
        rows[row].append(index)
        if room > size:  # a full row is closed
            same_room = open_rows.setdefault(room - size, [])
            if not same_room:
                insort(free, room - size)
            same_room.append(row)
    total = int(sizes.sum())
    return Packing(rows, row_tokens, total / (len(rows) * row_tokens), total / (len(sizes) * row_tokens))


def rows_of_sides(rows: Sequence[Sequence[int]], sides: int) -> list[list[int]]:
    """Return packed rows of examples from rows of pieces, each of `sides` examples in a row (two for a pair)."""
    return [[piece * sides + side for piece in row for side in range(sides)] for row in rows]


@dataclass(frozen=True)
class Batch:
    """One micro-batch; each tensor is [micro_batch, row_tokens]."""

    input_ids: Tensor  # int64
    targets: Tensor  # int64, shifted: the id at t + 1, IGNORED if that has no loss or belongs to another document
    position_ids: Tensor  # int64, from 0 in each document
    documents: Tensor  # int32, from 0 in each row; PADDING at the end
    supervised: int  # targets that carry loss

    def to(self, device: torch.device | str) -> Self:
        """Return the batch on a device; the copy does not wait for the device."""
        values = ((field.name, getattr(self, field.name)) for field in fields(self))
        tensors: dict[str, Any] = {name: value for name, value in values if isinstance(value, Tensor)}
        return replace(self, **{name: tensor.to(device, non_blocking=True) for name, tensor in tensors.items()})


@dataclass(frozen=True)
class PackedData:
    """Examples, and the packed rows that contain them."""

    examples: TokenArrays
    rows: Sequence[Sequence[int]]  # examples of each packed row, by index
    row_tokens: int

    def batch(self, rows: Sequence[int], min_rows: int = 0) -> Batch:
        """Return the tensors of some packed rows, given by index, with empty rows appended up to `min_rows`."""
        members = [self.rows[row] for row in rows]
        return batch(self.examples, members + [()] * (min_rows - len(members)), self.row_tokens)

    def lengths(self, rows: Sequence[int]) -> list[int]:
        """Return the tokens of each example in some packed rows."""
        members = np.array([index for row in rows for index in self.rows[row]], dtype=np.int64)
        offsets = self.examples.offsets
        lengths: list[int] = (offsets[members + 1] - offsets[members]).tolist()
        return lengths

    def rows_of_step(self, step: int, steps: Steps, seed: int) -> list[int]:
        """Return the packed rows of a step, counted from 0, over all ranks, by index."""
        start = step * steps.rows  # in the sequence of all epochs
        stop = min(start + steps.rows, steps.total_rows)
        count = len(self.rows)
        return [int(epoch_order(count, position // count, seed)[position % count]) for position in range(start, stop)]


@lru_cache(maxsize=2)  # a step spans two epochs at most, unless the data is smaller than a step
def epoch_order(rows: int, epoch: int, seed: int) -> NDArray[np.int64]:
    """Return an epoch's order of packed rows: a permutation [rows] by Philox, which is the same on every platform."""
    generator = np.random.Generator(np.random.Philox(key=[seed, epoch]))
    return generator.permutation(rows)


def batch(examples: TokenArrays, rows: Sequence[Sequence[int]], row_tokens: int, pad_id: int = 0) -> Batch:
    """Return the tensors of packed rows, each given as the indices of its examples.

    `pad_id` fills positions without a token; they have no loss. Raises CurateError if a row is too short.
    """
    shape = (len(rows), row_tokens)
    ids = np.full(shape, pad_id, dtype=np.int64)
    targets = np.full(shape, IGNORED, dtype=np.int64)
    positions = np.zeros(shape, dtype=np.int64)
    documents = np.full(shape, PADDING, dtype=np.int32)
    for row, members in enumerate(rows):
        start = 0
        for number, index in enumerate(members):
            begin, end = examples.offsets[index : index + 2].tolist()
            stop = start + end - begin
            if stop > row_tokens:
                raise CurateError(f"piece {index} does not fit its row of {row_tokens:,} tokens")
            tokens = examples.ids[begin:end]
            ids[row, start:stop] = tokens
            # Shifted by one: an example's last position has no target, and its first token is none.
            targets[row, start : stop - 1] = np.where(examples.loss_mask[begin + 1 : end], tokens[1:], IGNORED)
            positions[row, start:stop] = np.arange(end - begin)
            documents[row, start:stop] = number
            start = stop
    supervised = int((targets != IGNORED).sum())
    tensors = [torch.from_numpy(array) for array in (ids, targets, positions, documents)]
    return Batch(tensors[0], tensors[1], tensors[2], tensors[3], supervised)


def pad(examples: TokenArrays, indices: Sequence[int], pad_id: int = 0) -> Batch:
    """Return a batch with one example per row, padded to the longest."""
    longest = max((int(examples.offsets[i + 1] - examples.offsets[i]) for i in indices), default=0)
    return batch(examples, [[index] for index in indices], longest, pad_id)
