"""An optimizer's moments in 8 bits: each block of a row has an fp32 scale, each element one of 256 values of it.

The values are those of the dynamic tree (arXiv 2110.02861, as bitsandbytes has them): dense near the scale, and down to
a ten-millionth of it. Blocks lie within rows, unlike bitsandbytes', which run over the flat tensor: so FSDP2's shards,
which are whole rows, hold whole blocks, and states load at any number of ranks. And the second moment has no 0: one
that is small is taken for a little more than it is, since division by 0 would make the step of such a weight huge.
"""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor

BLOCK = 256  # elements at most that share a scale
LEAST_BLOCK = 32  # of smaller ones the scales weigh too much
LEAST = 4096  # elements; smaller tensors stay in fp32, as with bitsandbytes
_DECADES = 7


def block(shape: torch.Size) -> int:
    """Return how many elements of a row share a scale: all rows hold whole blocks."""
    return math.gcd(shape[-1], BLOCK)


def suits(part: Tensor, shape: torch.Size) -> bool:
    """Tell whether a parameter of this shape, of which `part` is here, gets 8-bit states."""
    return len(shape) >= 2 and shape.numel() >= LEAST and block(shape) >= LEAST_BLOCK and part.is_contiguous()


def zeros(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return a moment that is 0, for a weight: codes of its shape, and a scale for each block of its rows."""
    blocks = (*weight.shape[:-1], weight.shape[-1] // block(weight.shape))
    codes = torch.zeros(weight.shape, dtype=torch.uint8, device=weight.device)
    return codes, torch.zeros(blocks, dtype=torch.float32, device=weight.device)


def read(codes: Tensor, scale: Tensor, values: Tensor) -> Tensor:
    """Return what codes [blocks, block] stand for, with scales [blocks, 1]."""
    return values[codes.int()] * scale


def write(moment: Tensor, codes: Tensor, scale: Tensor, values: Tensor) -> None:
    """Put each element's nearest value into `codes`, each block's largest into `scale`."""
    largest = moment.abs().amax(dim=1, keepdim=True)
    edges = (values[1:] + values[:-1]) / 2
    shares = moment / largest.clamp_min(torch.finfo(torch.float32).tiny)
    codes.copy_(torch.bucketize(shares, edges, out_int32=True))
    scale.copy_(largest)


@cache
def signed_map(place: torch.device) -> Tensor:
    """Return the values of the first moment, ascending, from about -0.993 to 1."""
    positive = _tree(fractions=1)
    return torch.tensor(sorted([*positive, *(-value for value in positive), 0.0, 1.0]), device=place)


@cache
def unsigned_map(place: torch.device) -> Tensor:
    """Return the values of the second moment, ascending, from about 3e-7 to 1."""
    return torch.tensor(sorted([*_tree(fractions=2), 1.0]), device=place)


def _tree(fractions: int) -> list[float]:
    """Return values of seven decades: `fractions` in the lowest, and twice as many in each as in the one below it."""
    found = []
    for decade in range(_DECADES):
        count = fractions << decade
        width = 0.9 / count
        found += [10.0 ** (decade - _DECADES + 1) * (0.1 + width * (place + 0.5)) for place in range(count)]
    return found
