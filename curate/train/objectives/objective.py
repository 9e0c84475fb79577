"""What all objectives have in common: how a step's sums over micro-batches and ranks become its loss and metrics."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import nn

from curate.train.objectives.loss import CausalLoss, PackedBatch


@dataclass(frozen=True)
class StepSummary:
    """What a step's sums say."""

    loss: float  # per supervised token, or per pair
    supervised: int  # tokens
    metrics: Mapping[str, float] = field(default_factory=dict)  # more of `metrics.jsonl`


class Objective(ABC):
    """What a step minimises: a loss that is summed over micro-batches and ranks and divided once by a count."""

    @abstractmethod
    def module(self, model: nn.Module) -> CausalLoss:
        """Return a causal model with its loss.

        Its forward pass returns a micro-batch's sums [sums], or only one []: the first is minimised, the others have no
        gradient.
        """

    @abstractmethod
    def count(self, batch: PackedBatch) -> int:
        """Return what the summed loss of a micro-batch is divided by."""

    @abstractmethod
    def summarise(self, sums: Sequence[float], count: int) -> StepSummary:
        """Return what the sums of a whole step say; `count` is over all micro-batches and ranks."""
