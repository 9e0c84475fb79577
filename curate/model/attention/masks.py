"""Attention masks of packed rows: a token sees the tokens of its own document, up to itself.

The rule exists in three forms, one for each kind of kernel: a boolean matrix (SDPA), FlexAttention's block mask, and
the cumulative lengths of variable-length kernels. `documents` is [rows, tokens] int32, a number for each document, -1
for padding. Padding sees only itself, as one more document, because a query without any key gives NaN in softmax.
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
_CU_SEQLENS_MULTIPLE = 64  # entries; as many documents as most micro-batches have
_PADDING = torch.iinfo(torch.int32).max  # greater than any document, so that the numbers of a row ascend


def dense(documents: Tensor, window: int | None = None) -> Tensor:
    """Return the mask as booleans [rows, 1, tokens, tokens], true where the query (row) sees the key (column)."""
    same = documents[:, :, None] == documents[:, None, :]
    distance = _distance(documents.shape[1], documents.device)
    near = distance >= 0 if window is None else (distance >= 0) & (distance < window)
    return (same & near).unsqueeze(1)


def _distance(length: int, device: torch.device) -> Tensor:
    """Return how many places each key (column) is before each query (row): [length, length], negative after it."""
    places = torch.arange(length, device=device)
    return places[:, None] - places[None, :]


def blocks(documents: Tensor, window: int | None = None) -> BlockMask:
    """Return FlexAttention's block mask, computed from the first and last document of each block.

    No [tokens, tokens] matrix is built: 16 blocks of 128 tokens describe a row of 2,048, and the token-wise rule is
    evaluated only in blocks where documents meet or the diagonal passes.
    """
    from torch.nn.attention.flex_attention import BlockMask

    length = documents.shape[1]
    row = torch.where(documents < 0, _PADDING, documents).to(torch.int32)
    row = torch.nn.functional.pad(row, (0, -length % BLOCK), value=_PADDING)
    any_visible, all_visible = _block_map(row, window)

    def is_visible(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (query >= key) & (row[batch, query] == row[batch, key])

    rule = is_visible if window is None else _within(is_visible, window)
    parts = (*_order_blocks(any_visible & ~all_visible), *_order_blocks(all_visible))
    return BlockMask.from_kv_blocks(*parts, BLOCK_SIZE=BLOCK, mask_mod=rule, seq_lengths=(length, length))


def _within(is_visible: Rule, window: int) -> Rule:
    def near(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return is_visible(batch, head, query, key) & (query - key < window)

    return near


def _block_map(row: Tensor, window: int | None) -> tuple[Tensor, Tensor]:
    """Return in which blocks a query may see a key, and in which every query sees every key.

    Both are [rows, query blocks, key blocks].
    """
    count = row.shape[1] // BLOCK
    # The numbers of a row ascend, so the first and last document of a block bound all of it. [rows, blocks]
    first, last = row.view(-1, count, BLOCK).aminmax(dim=2)
    steps = _distance(count, row.device)
    any_visible = (steps >= 0) & (last[:, None, :] >= first[:, :, None]) & (first[:, None, :] <= last[:, :, None])
    same = (first == last)[:, None, :] & (first == last)[:, :, None] & (first[:, None, :] == first[:, :, None])
    all_visible = (steps > 0) & same
    if window is not None:  # distances within a pair of blocks: (steps - 1) * BLOCK + 1 … (steps + 1) * BLOCK - 1
        any_visible = any_visible & ((steps - 1) * BLOCK + 1 < window)
        all_visible = all_visible & ((steps + 1) * BLOCK - 1 < window)
    return any_visible, all_visible


def _order_blocks(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """Return how many key blocks each query block has, [rows, 1, blocks], and their indices, [rows, 1, blocks, blocks].

    FlexAttention reads as many indices of a query block as its count says; the others have no meaning.
    """
    counts = blocks.sum(dim=-1, dtype=torch.int32)
    order = blocks.to(torch.int8).argsort(dim=-1, descending=True, stable=True).to(torch.int32)
    return counts.unsqueeze(1), order.unsqueeze(1)


@dataclass(frozen=True)
class Lengths:
    """Documents as cumulative lengths over packed rows laid end to end, as variable-length kernels take them."""

    cu_seqlens: Tensor  # [documents + 1] int32, in tokens; begins with 0, ends with rows * tokens
    max_seqlen: int  # tokens; an upper bound


def lengths(documents: Tensor, window: int | None = None) -> Lengths:
    """Return where documents [rows, tokens] start in the rows laid end to end; the kernels apply `window` themselves.

    `cu_seqlens` is padded with empty documents to a multiple of 64, and `max_seqlen` is the length of a row. So shapes
    and numbers stay the same from batch to batch, and nothing is compiled again.
    """
    rows, length = documents.shape
    starts = torch.ones_like(documents, dtype=torch.bool)
    starts[:, 1:] = documents[:, 1:] != documents[:, :-1]
    first_tokens = starts.flatten().nonzero().flatten()
    padding = -(len(first_tokens) + 1) % _CU_SEQLENS_MULTIPLE
    cu_seqlens = torch.nn.functional.pad(first_tokens, (0, padding + 1), value=rows * length)
    return Lengths(cu_seqlens.to(torch.int32), max_seqlen=length)
