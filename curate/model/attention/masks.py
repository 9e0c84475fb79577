"""Which token of a packed row may see which: its own document's, up to itself.

The rule is written three times, once for each kind of kernel: as a boolean matrix (SDPA), as FlexAttention's block
mask, and as the cumulative lengths that variable-length kernels take. `documents` is [rows, tokens], one number a
document, padding -1. Padding sees itself alone, as one more document, so that no query is left without a key: a
softmax over nothing would be NaN.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

Rule = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]  # (row, head, query, key) → seen

BLOCK = 128  # tokens on each side of a block of FlexAttention's mask: its kernels' own default
_PADDING = torch.iinfo(torch.int32).max  # after every document, so that a row's numbers never fall


def dense(documents: Tensor, window: int | None = None) -> Tensor:
    """Return the mask as booleans [rows, 1, tokens, tokens], true where the query (row) sees the key (column)."""
    same = documents[:, :, None] == documents[:, None, :]
    distance = _distance(documents.shape[1], documents.device)
    near = distance >= 0 if window is None else (distance >= 0) & (distance < window)
    return (same & near).unsqueeze(1)


def _distance(length: int, device: torch.device) -> Tensor:
    """How far each key (column) lies before each query (row)."""
    places = torch.arange(length, device=device)
    return places[:, None] - places[None, :]


def blocks(documents: Tensor, window: int | None = None) -> BlockMask:
    """Return the mask as FlexAttention's block mask, found from each block's first and last document.

    No [tokens, tokens] matrix is made: 16 blocks of 128 tokens tell all there is to know of a row of 2,048, and the
    token-wise rule is asked only in blocks where documents meet or the diagonal passes.
    """
    from torch.nn.attention.flex_attention import BlockMask

    length = documents.shape[1]
    row = torch.where(documents < 0, _PADDING, documents).to(torch.int32)
    row = torch.nn.functional.pad(row, (0, -length % BLOCK), value=_PADDING)
    some, whole = _block_map(row, window)

    def allowed(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (query >= key) & (row[batch, query] == row[batch, key])

    rule = allowed if window is None else _within(allowed, window)
    parts = (*_ordered(some & ~whole), *_ordered(whole))
    return BlockMask.from_kv_blocks(*parts, BLOCK_SIZE=BLOCK, mask_mod=rule, seq_lengths=(length, length))


def _within(allowed: Rule, window: int) -> Rule:
    def near(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return allowed(batch, head, query, key) & (query - key < window)

    return near


def _block_map(row: Tensor, window: int | None) -> tuple[Tensor, Tensor]:
    """Return which blocks [rows, queries, keys] may hold a seen key, and in which every key is seen by every query."""
    count = row.shape[1] // BLOCK
    first, last = row.view(-1, count, BLOCK).aminmax(dim=2)
    steps = _distance(count, row.device)
    some = (steps >= 0) & (last[:, None, :] >= first[:, :, None]) & (first[:, None, :] <= last[:, :, None])
    one = (first == last)[:, None, :] & (first == last)[:, :, None] & (first[:, None, :] == first[:, :, None])
    whole = (steps > 0) & one
    if window is not None:  # distances within a pair of blocks: (steps - 1) * BLOCK + 1 … (steps + 1) * BLOCK - 1
        some = some & ((steps - 1) * BLOCK + 1 < window)
        whole = whole & ((steps + 1) * BLOCK - 1 < window)
    return some, whole


def _ordered(found: Tensor) -> tuple[Tensor, Tensor]:
    """Return how many key blocks each query block has [rows, 1, blocks], and which, those it has first."""
    counts = found.sum(dim=-1, dtype=torch.int32)
    order = found.to(torch.int8).argsort(dim=-1, descending=True, stable=True).to(torch.int32)
    return counts.unsqueeze(1), order.unsqueeze(1)


@dataclass(frozen=True)
class Lengths:
    """Documents as stretches of the rows laid end to end: `cuts` [documents + 1] int32, `longest` an upper bound."""

    cuts: Tensor
    longest: int


def lengths(documents: Tensor, room: int = 64) -> Lengths:
    """Return where documents start in the rows laid end to end, as variable-length kernels want it.

    The cuts are padded with empty documents to a multiple of `room`, and the longest is taken to be a whole row:
    shapes and numbers that stay the same from batch to batch, so that nothing is compiled again.
    """
    rows, length = documents.shape
    starts = torch.ones_like(documents, dtype=torch.bool)
    starts[:, 1:] = documents[:, 1:] != documents[:, :-1]
    found = starts.flatten().nonzero().flatten()
    short = -(len(found) + 1) % room
    cuts = torch.nn.functional.pad(found, (0, short + 1), value=rows * length)
    return Lengths(cuts.to(torch.int32), length)
