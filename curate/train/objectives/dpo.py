"""Direct preference optimisation (arXiv 2305.18290): the chosen answer becomes likelier than the rejected one.

For each pair, z = beta · ((log π(c) - log π₀(c)) - (log π(r) - log π₀(r))) and the loss is -log σ(z): π are the
probabilities that the model gives to the chosen answer c and the rejected one r, π₀ those of the reference, which is
the model as it was before the first step. At first the loss is therefore ln 2.

Both sides of a pair are documents of one packed row, next to each other, so a micro-batch has whole pairs. The loss of
a pair depends on the sums over all tokens of its sides. The head's logits are therefore computed twice in a forward
pass, a chunk at a time: once for these sums, without gradients, and once for the gradients, in which each token's loss
weighs as much as the derivative of the pair's loss by its side's log-probability.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from curate.model.attention.selection import ChosenKernel
from curate.train.config import ObjectiveSettings
from curate.train.objectives.loss import CausalLoss, PackedBatch
from curate.train.objectives.objective import Objective, StepSummary
from curate.train.packing import IGNORED, Batch, PackedData
from curate.train.run.records import PAIR_METRICS

# ---- the data


@dataclass(frozen=True)
class PairBatch(Batch):
    """A micro-batch of pairs. Its sides are numbered in order of rows: chosen, rejected, chosen, rejected …"""

    sides: Tensor  # int64 [supervised], the side that each supervised token belongs to; ascending
    tokens: Tensor  # int64 [sides], supervised tokens
    reference: Tensor  # fp64 [sides], log-probability under the reference

    @property
    def pairs(self) -> int:
        """The number of pairs."""
        return len(self.tokens) // 2


@dataclass(frozen=True)
class PairData(PackedData):
    """Packed rows of pairs, with the log-probability of each example under the reference."""

    reference: NDArray[np.float64]  # [examples]

    def batch(self, rows: Sequence[int], min_rows: int = 0) -> PairBatch:
        """Return the tensors of some packed rows, given by index, with empty rows appended up to `min_rows`."""
        batch = super().batch(rows, min_rows)
        members = [index for row in rows for index in self.rows[row]]
        firsts = np.cumsum([0, *(len(self.rows[row]) for row in rows)])[:-1]  # number of each row's first side
        supervised = batch.targets != IGNORED
        offsets = torch.zeros(len(supervised), 1, dtype=torch.int64)  # [rows, 1]; appended rows have no token
        offsets[: len(firsts), 0] = torch.from_numpy(firsts)
        sides = (batch.documents + offsets)[supervised]
        tokens = torch.bincount(sides, minlength=len(members))
        reference = torch.from_numpy(self.reference[members])
        return PairBatch(**vars(batch), sides=sides, tokens=tokens, reference=reference)


# ---- the loss


@dataclass(frozen=True)
class Comparison:
    """How a model and the reference tell the answers of pairs apart; each tensor is [pairs]."""

    loss: Tensor
    chosen: Tensor  # reward: beta times how much likelier than under the reference, in nats
    rejected: Tensor

    @property
    def margin(self) -> Tensor:
        """How much larger the reward of the chosen answer is."""
        return self.chosen - self.rejected


def compare(log_probs: Tensor, reference: Tensor, tokens: Tensor, settings: ObjectiveSettings) -> Comparison:
    """Return rewards and loss of pairs, from the log-probabilities and the supervised tokens of their sides [sides].

    `length_normalised` divides log-probabilities by tokens, as in Tülu 3 (arXiv 2411.15124). `label_smoothing` is the
    share of pairs that are taken to be the wrong way round (cDPO). `sft_weight` adds the chosen answer's loss per token
    (arXiv 2404.19733).
    """
    ratios = log_probs - reference
    rewards = settings.beta * (ratios / tokens if settings.length_normalised else ratios)
    chosen, rejected = rewards[0::2], rewards[1::2]
    smoothing, margin = settings.label_smoothing, chosen - rejected
    loss = -(1 - smoothing) * logsigmoid(margin) - smoothing * logsigmoid(-margin)
    if settings.sft_weight:
        loss = loss - settings.sft_weight * (log_probs / tokens)[0::2]
    return Comparison(loss, chosen, rejected)


class PairLoss(CausalLoss):
    """A causal model with the loss of pairs; `forward` takes a PairBatch."""

    def __init__(self, model: nn.Module, settings: ObjectiveSettings, *, chunk: int = 0) -> None:
        super().__init__(model, chunk=chunk)
        self.settings = settings

    def forward(self, batch: PackedBatch, attention: ChosenKernel, *, per_token: bool = False) -> Tensor:
        """Return a micro-batch's sums, fp64: the loss of its pairs, then what `Dpo.summarise` reads, without gradients.

        With `per_token`, return the loss of each supervised token instead, for any batch.
        """
        if per_token or not isinstance(batch, PairBatch):
            return super().forward(batch, attention, per_token=per_token)
        hidden = self.body(batch, attention)
        losses = self.token_losses(hidden.detach(), batch).double()  # [supervised]
        # Sums of thousands of numbers, in fp64 and in order, so that they are the same each time.
        negative = torch.segment_reduce(losses, "sum", lengths=batch.tokens, unsafe=True)  # [sides]
        with torch.enable_grad():
            log_probs = (-negative).requires_grad_()
            compared = compare(log_probs, batch.reference, batch.tokens, self.settings)
            loss = compared.loss.sum()
            (slopes,) = torch.autograd.grad(loss, log_probs)
        weights = -slopes.index_select(0, batch.sides).float()  # of the losses, which are negative log-probabilities
        surrogate = self.summed_loss(hidden, batch, weights)  # has the gradient of `loss`, but another value
        minimised = loss.detach() + (surrogate - surrogate.detach())
        return torch.stack([minimised, *_sums(compared, negative, batch.tokens)])


def _sums(compared: Comparison, negative: Tensor, tokens: Tensor) -> list[Tensor]:
    """Return sums over pairs: accuracy and rewards, then losses and tokens of each side."""
    values = [(compared.margin > 0).double(), compared.chosen, compared.rejected]
    values += [part[side::2].double() for part in (negative, tokens) for side in (0, 1)]
    return [value.detach().sum() for value in values]


@dataclass(frozen=True)
class Dpo(Objective):
    """The mean loss of the pairs of a step."""

    settings: ObjectiveSettings

    def module(self, model: nn.Module) -> CausalLoss:
        """Return a causal model with the loss of pairs."""
        return PairLoss(model, self.settings)

    def count(self, batch: object) -> int:
        """Return the pairs of a PairBatch."""
        assert isinstance(batch, PairBatch)
        return batch.pairs

    def summarise(self, sums: Sequence[float], count: int) -> StepSummary:
        """Return the loss per pair, and PAIR_METRICS: means over pairs, and the loss per token of each side."""
        pairs = max(count, 1)
        loss, accuracy, chosen, rejected = (value / pairs for value in sums[:4])
        losses, tokens = sums[4:6], sums[6:8]
        per_token = [side / max(size, 1) for side, size in zip(losses, tokens, strict=True)]
        values = (accuracy, chosen - rejected, chosen, rejected, *per_token)
        return StepSummary(loss, int(sum(tokens)), dict(zip(PAIR_METRICS, values, strict=True)))
