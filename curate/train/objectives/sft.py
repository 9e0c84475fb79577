"""Supervised fine-tuning: the cross-entropy of each supervised token, all of the same weight."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from curate.train.objectives.loss import CausalLoss, PackedBatch
from curate.train.objectives.objective import Objective, StepSummary


class Sft(Objective):
    """The mean loss of the supervised tokens of a step."""

    def module(self, model: nn.Module) -> CausalLoss:
        """Return a causal model with the sum of its token losses."""
        return CausalLoss(model)

    def count(self, batch: PackedBatch) -> int:
        """Return the supervised tokens."""
        return batch.supervised

    def summarise(self, sums: Sequence[float], count: int) -> StepSummary:
        """Return the loss per supervised token."""
        return StepSummary(sums[0] / max(count, 1), count)
