"""8-bit optimizer moments: an fp32 scale for each block of a row, and an 8-bit code for each element.

A code is an index into 256 values from dynamic tree quantisation (arXiv 2110.02861, as in bitsandbytes): dense near the
scale, and down to a ten-millionth of it. There are two differences from bitsandbytes. Blocks are parts of rows rather
than of the flat tensor: FSDP2 shards whole rows, so a shard has whole blocks, and states load at any number of ranks.
And the values of the second moment leave out 0: a small moment is rounded up instead, because the update divides by its
square root.
"""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor

MAX_BLOCK = 256  # elements that share a scale
MIN_BLOCK = 32  # elements; with fewer, the scales take more than an eighth of a byte for each element
MIN_ELEMENTS = 4096  # smaller tensors stay in fp32, as in bitsandbytes
_DECADES = 7  # powers of ten from the smallest value to the scale


def block_size(shape: torch.Size) -> int:
    """Return how many elements of a row share a scale: the largest power of two up to 256 that divides the row."""
    return math.gcd(shape[-1], MAX_BLOCK)


def is_supported(part: Tensor, shape: torch.Size) -> bool:
    """Return whether a parameter gets 8-bit states; `shape` is that of all ranks, `part` is this rank's."""
    return len(shape) >= 2 and shape.numel() >= MIN_ELEMENTS and block_size(shape) >= MIN_BLOCK and part.is_contiguous()


def zeros(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return a zero moment for a weight [rows, columns]: codes of its shape, and fp32 scales [rows, blocks]."""
    blocks = (*weight.shape[:-1], weight.shape[-1] // block_size(weight.shape))
    # Code 0 is not the value 0, but a scale of 0 makes every value 0.
    codes = torch.zeros(weight.shape, dtype=torch.uint8, device=weight.device)
    return codes, torch.zeros(blocks, dtype=torch.float32, device=weight.device)


def dequantise(codes: Tensor, scale: Tensor, values: Tensor) -> Tensor:
    """Return the fp32 moment of codes [blocks, block size] and scales [blocks, 1]; `values` is a map."""
    return values[codes.int()] * scale


def quantise(moment: Tensor, codes: Tensor, scale: Tensor, values: Tensor) -> None:
    """Write the code of each element's nearest value to `codes`, and each block's largest magnitude to `scale`."""
    largest = moment.abs().amax(dim=1, keepdim=True)  # [blocks, 1]
    edges = (values[1:] + values[:-1]) / 2  # halfway between neighbours
    scaled = moment / largest.clamp_min(torch.finfo(torch.float32).tiny)  # no division by 0 in a block of zeros
    codes.copy_(torch.bucketize(scaled, edges, out_int32=True))
    scale.copy_(largest)


@cache
def signed_map(device: torch.device) -> Tensor:
    """Return the values of the first moment [256], ascending, from about -0.993 to 1."""
    positive = _tree(fractions=1)
    return torch.tensor(sorted([*positive, *(-value for value in positive), 0.0, 1.0]), device=device)


@cache
def unsigned_map(device: torch.device) -> Tensor:
    """Return the values of the second moment [255], ascending, from about 3e-7 to 1."""
    return torch.tensor(sorted([*_tree(fractions=2), 1.0]), device=device)


def _tree(fractions: int) -> list[float]:
    """Return the positive values below 1: `fractions` in the lowest decade, twice as many in each next one."""
    values = []
    for decade in range(_DECADES):
        count = fractions << decade
        width = 0.9 / count  # evenly spaced from 0.1 to 1 times the decade
        values += [10.0 ** (decade - _DECADES + 1) * (0.1 + width * (index + 0.5)) for index in range(count)]
    return values
