"""4-bit matrices on a CPU: correct for every shape, with or without AVX-512, in training and inference.

Two paths of bitsandbytes (0.50) need care. N rows and K columns are a layer's outputs and inputs; every 64 weights, in
row order, share one scale.

- Dequantisation with AVX-512 takes `row * (K // 64)` for the first scale of a row. Where K is a multiple of 16 but not
  of 64, rows get the scales of others.
- With AVX512-BF16 the first forward in eval mode repacks the weight. That fails unless 32 divides N and 64 divides K,
  rounds scales and inputs to bf16, and lasts: a weight that is trained on afterwards passes no gradient to its input.
"""

from __future__ import annotations

import copy
import logging
import math
from typing import Any

import torch
from torch import Tensor, nn

_VECTOR = 16  # columns that AVX-512 dequantises at once; a K that it does not divide takes the scalar path
_HALF = 32  # half a block of 64, and the smallest that bitsandbytes allows
_PACK_ROWS, _PACK_COLUMNS = 32, 64  # of which N and K must be multiples for repacking


def adapt_for_cpu(model: Any, *, inference: bool = False) -> None:
    """Keep a model's 4-bit matrices off the paths of bitsandbytes that are wrong for them on a CPU.

    With `inference`, bf16 matrices of a suitable size may still be repacked: decoding is about 20 times as fast, and as
    accurate. The model must then be neither trained nor dequantised.
    """
    for name, module in linear_layers(model):
        state = module.weight.quant_state
        columns = state.shape[1]
        if columns % _VECTOR == 0 and columns % state.blocksize:
            if columns % _HALF:
                model.set_submodule(name, to_linear(module, model.dtype))
                continue
            _halve_blocks(state)
        if not (inference and _packs(module)):
            module.support_avx512bf16_for_cpu = False  # read by Linear4bit.forward


def linear_layers(model: nn.Module) -> list[tuple[str, Any]]:
    """Return a model's 4-bit layers by name."""
    import bitsandbytes as bnb

    return [(name, module) for name, module in model.named_modules() if isinstance(module, bnb.nn.Linear4bit)]


def to_linear(module: Any, dtype: torch.dtype) -> nn.Linear:
    """Return a plain layer in `dtype` with the values of a 4-bit one, which must not be repacked."""
    with torch.device("meta"):
        linear = nn.Linear(module.in_features, module.out_features, bias=module.bias is not None)
    linear.weight = nn.Parameter(dequantise(module.weight).to(dtype), requires_grad=False)
    linear.bias = module.bias
    return linear


def dequantise(weight: Any) -> Tensor:
    """Return the values of a 4-bit matrix, [N, K]."""
    from bitsandbytes.functional import dequantize_4bit

    flat = copy.copy(weight.quant_state)
    flat.shape = torch.Size((1, math.prod(flat.shape)))  # one row, whose first scale is right on every path
    values: Tensor = dequantize_4bit(weight.data, flat)
    return values.view(weight.quant_state.shape)


def _packs(module: Any) -> bool:
    rows, columns = module.weight.quant_state.shape
    fits = rows % _PACK_ROWS == 0 and columns % _PACK_COLUMNS == 0
    return fits and bool(module.compute_dtype == torch.bfloat16)


def _halve_blocks(state: Any) -> None:
    """Halve the blocks of a quantised matrix, so that blocks end where rows end; its values do not change."""
    from bitsandbytes.functional import dequantize_blockwise

    scales = state.absmax
    if state.nested:  # scales in 8 bits have scales of their own, one for every 256, so they cannot be repeated
        scales = dequantize_blockwise(scales, state.state2) + state.offset
        state.nested, state.state2, state.offset = False, None, None
    halves = scales.repeat_interleave(state.blocksize // _HALF)
    state.absmax = halves[: math.prod(state.shape) // _HALF]  # the last block may have been shorter
    state.blocksize = _HALF


def _is_relevant(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith("Failed to load CPU gemm_4bit_forward")


# peft imports bitsandbytes for every adapter. With AVX512-BF16 that looks for a faster kernel in the optional package
# `kernels`, and logs a warning where it is absent; bitsandbytes then uses its own kernel.
logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(_is_relevant)
