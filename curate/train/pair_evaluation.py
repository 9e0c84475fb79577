"""Evaluation on held-out pairs: loss, accuracy and margin against the reference, overall and by group."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from curate.model.attention.selection import ChosenKernel
from curate.train.config import ObjectiveSettings
from curate.train.distributed import World
from curate.train.evaluation import LEAST_LENGTH, UNKNOWN, HeldOut, band, band_name
from curate.train.objectives import dpo
from curate.train.objectives.dpo import Comparison
from curate.train.objectives.scoring import log_probabilities
from curate.train.run.records import EvalLoss, Slice


def losses(
    module: nn.Module,
    attention: ChosenKernel,
    held_out: HeldOut,
    reference: NDArray[np.float64],
    settings: ObjectiveSettings,
    world: World,
    *,
    micro_batch: int = 1,
) -> EvalLoss:
    """Return how a model tells held-out pairs apart, the same on every rank. Collective: every rank must call this.

    `reference` has the log-probability of each held-out example [examples].
    """
    examples, pieces = held_out.examples, held_out.pieces
    scores = log_probabilities(module, attention, held_out.packed, world, micro_batch=micro_batch)
    sides = np.stack([pieces * 2, pieces * 2 + 1], axis=1).flatten()  # of the pieces that are evaluated
    tokens = examples.supervised_targets[sides]
    ours, theirs, counts = (torch.from_numpy(array) for array in (scores[sides], reference[sides], tokens))
    compared = dpo.compare(ours, theirs, counts, settings)
    supervised = tokens.reshape(-1, 2).sum(axis=1)

    def group_by(key: Callable[[int], Hashable]) -> tuple[Slice, ...]:
        groups: dict[Any, list[int]] = {}
        for pair, piece in enumerate(pieces.tolist()):
            groups.setdefault(key(piece), []).append(pair)
        slices = [(name, _slice(name, compared, supervised, members)) for name, members in groups.items()]
        return tuple(group for _, group in sorted(slices, key=lambda pair: pair[0]))

    return EvalLoss(
        overall=_slice("all", compared, supervised, list(range(len(pieces)))),
        by_exchanges=group_by(lambda piece: band(int(examples.exchanges[piece * 2]))),
        by_language=group_by(lambda piece: examples.languages[piece * 2] or UNKNOWN),
        by_length=group_by(lambda piece: band(int(examples.piece_lengths[piece]), LEAST_LENGTH)),
    )


def _slice(name: Any, compared: Comparison, supervised: NDArray[np.int64], pairs: list[int]) -> Slice:
    """Return the mean loss, accuracy and margin of some pairs, given by index."""
    loss, margins = float(compared.loss[pairs].mean()), compared.margin[pairs]
    return Slice(
        band_name(name),
        loss if np.isfinite(loss) else None,
        int(supervised[pairs].sum()),
        len(pairs),
        accuracy=float((margins > 0).double().mean()),
        margin=float(margins.mean()),
    )
