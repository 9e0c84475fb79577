"""The sizes of a model, and the floating-point operations of training it.

`shape_from_config` in `curate/model/loader.py` computes the sizes without weights. The plan, MFU and the benchmarks use
them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Linear:
    """The matrices of one name and size in a model's layers."""

    name: str  # last part, such as q_proj
    inputs: int
    outputs: int
    count: int  # of such matrices, usually one in each layer

    @property
    def parameters(self) -> int:
        """The weights of all these matrices."""
        return self.inputs * self.outputs * self.count


@dataclass(frozen=True)
class Shape:
    """The sizes of a causal language model."""

    parameters: int  # each tensor counted once
    embeddings: int  # parameters: vocabulary × hidden
    head: int  # parameters: vocabulary × hidden, 0 where the head is the embedding matrix (tied)
    linears: tuple[Linear, ...]  # of the layers, without the head
    layers: int
    hidden: int
    intermediate: int  # width of the feed-forward
    heads: int  # of queries
    kv_heads: int  # of keys and values
    head_size: int
    vocabulary: int  # rows of the embedding
    positions: int  # the longest sequence that the model supports, in tokens

    @property
    def matrices(self) -> int:
        """The weights of the layers' matrices, without the head."""
        return sum(linear.parameters for linear in self.linears)

    @property
    def tied(self) -> bool:
        """Whether the head shares the embedding matrix."""
        return self.head == 0


@dataclass(frozen=True)
class Work:
    """The amount of training, as far as its cost depends on the data."""

    tokens: int
    supervised: int  # tokens
    squares: int  # sum of the squared lengths of documents, for attention

    def __add__(self, other: Work) -> Work:
        return Work(self.tokens + other.tokens, self.supervised + other.supervised, self.squares + other.squares)


def work(lengths: Iterable[int], supervised: int) -> Work:
    """Return the work of documents with these lengths in tokens."""
    sizes = [int(length) for length in lengths]
    return Work(sum(sizes), supervised, sum(size * size for size in sizes))


def flops(shape: Shape, work: Work, *, full: bool, adapters: int = 0) -> float:
    """Return the floating-point operations of forward and backward in matrix products.

    A weight costs 6 for each token, or 4 where it is frozen and gets no gradient; each of the `adapters` weights costs
    6. The head counts supervised positions only, attention the causal half of its matrix. Recomputation of activations
    is not counted.
    """
    per_weight = 6 if full else 4  # 2 forward, 2 for the gradient of the input, 2 for that of the weight
    matrices = per_weight * shape.matrices * work.tokens
    matrices += per_weight * shape.vocabulary * shape.hidden * work.supervised
    # Two products (scores, values) of 2 operations each, 3 times for forward and backward, half of them masked.
    attention = 6 * work.squares * shape.layers * shape.heads * shape.head_size
    return float(matrices + attention + 6 * adapters * work.tokens)
