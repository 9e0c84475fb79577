"""The arithmetic of training, checked by hand and against torch's own counter."""

from __future__ import annotations

import torch
from torch.utils.flop_counter import FlopCounterMode

from curate.model.sizes import Linear, Shape, Work, flops, work
from tests.support import tiny_models


def tiny_shape() -> Shape:
    """Return the shape of the tests' small LLaMA, written by hand."""
    linears = (
        Linear("q_proj", 32, 32, 2),
        Linear("k_proj", 32, 16, 2),
        Linear("v_proj", 32, 16, 2),
        Linear("o_proj", 32, 32, 2),
        Linear("gate_proj", 32, 48, 2),
        Linear("up_proj", 32, 48, 2),
        Linear("down_proj", 48, 32, 2),
    )
    return Shape(25_760, 5_120, 5_120, linears, 2, 32, 48, 4, 2, 8, 160, 512)


def test_the_tests_model_has_this_shape() -> None:
    model = tiny_models.model()
    assert sum(parameter.numel() for parameter in model.parameters()) == tiny_shape().parameters


def test_matrices_cost_what_torch_counts_for_them() -> None:
    model, shape = tiny_models.model(), tiny_shape()
    ids = torch.arange(64)[None] % tiny_models.VOCABULARY
    with FlopCounterMode(display=False) as counter:
        model(input_ids=ids, use_cache=False).logits.sum().backward()
    counted = counter.get_flop_counts()["Global"]
    matmuls = sum(number for operation, number in counted.items() if "mm" in str(operation).split(".")[1])
    ours = flops(shape, Work(64, 64, 0), full=True)
    assert abs(matmuls / ours - 1) < 0.02  # torch adds two small products of the rotary positions


def test_frozen_matrices_adapters_and_the_half_of_attention() -> None:
    shape = tiny_shape()
    nothing = Work(10, 0, 0)
    assert flops(shape, nothing, full=False) * 6 == flops(shape, nothing, full=True) * 4
    assert flops(shape, nothing, full=False, adapters=7) - flops(shape, nothing, full=False) == 6 * 7 * 10
    # Two products over half of 10 × 10 pairs forward, twice that backward, 2 operations each: 6 · 10² · size a layer.
    attention = flops(shape, Work(10, 0, 100), full=True) - flops(shape, nothing, full=True)
    assert attention == 6 * 100 * 2 * 4 * 8


def test_the_work_of_packed_documents_is_the_sum_over_documents() -> None:
    assert work([3, 4], 5) == Work(7, 5, 25) == work([3], 2) + work([4], 3)
