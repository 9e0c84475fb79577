"""A model's sizes without its weights: parameters by part, and the arithmetic that a token costs.

`curate.model.load.shape` reads one from a configuration. Plan, MFU and benchmarks reckon with it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Linear:
    """A matrix of the model's layers by the last part of its name: `inputs` to `outputs`, `count` of them in all."""

    name: str
    inputs: int
    outputs: int
    count: int

    @property
    def parameters(self) -> int:
        """Weights of all of them."""
        return self.inputs * self.outputs * self.count


@dataclass(frozen=True)
class Shape:
    """A causal model: `parameters` counts each tensor once, `linears` are the matrices of its layers.

    `head` is vocabulary × hidden where it is a matrix of its own, 0 where it is the embedding's (tied).
    `positions` is the longest text that the model was made for.
    """

    parameters: int
    embeddings: int
    head: int
    linears: tuple[Linear, ...]
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_size: int
    vocabulary: int
    positions: int

    @property
    def matrices(self) -> int:
        """Weights of the layers' matrices, without the head."""
        return sum(linear.parameters for linear in self.linears)

    @property
    def tied(self) -> bool:
        """Whether the head is the embedding's matrix."""
        return self.head == 0


@dataclass(frozen=True)
class Work:
    """What some training reads: `tokens`, how many of them `supervised`, and summed `squares` of documents' lengths."""

    tokens: int
    supervised: int
    squares: int

    def __add__(self, other: Work) -> Work:
        return Work(self.tokens + other.tokens, self.supervised + other.supervised, self.squares + other.squares)


def work(lengths: Iterable[int], supervised: int) -> Work:
    """Return the work of documents of these lengths (tokens)."""
    sizes = [int(length) for length in lengths]
    return Work(sum(sizes), supervised, sum(size * size for size in sizes))


def flops(shape: Shape, work: Work, *, full: bool, adapters: int = 0) -> float:
    """Return the floating-point operations of forward and backward, strictly counted.

    Matrices alone: 6 per weight and token, 4 where the weight is frozen (its own gradient is not made) and 6 for each
    of `adapters` weights; the head at supervised positions; causal attention once, its masked half left out;
    recomputation left out.
    """
    each = 6 if full else 4
    matrices = each * shape.matrices * work.tokens + each * shape.vocabulary * shape.hidden * work.supervised
    attention = 6 * work.squares * shape.layers * shape.heads * shape.head_size
    return float(matrices + attention + 6 * adapters * work.tokens)
