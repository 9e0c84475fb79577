"""Score examples with a model: the log-probability of what each trains, without gradients."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from curate.model.attention.selection import ChosenKernel
from curate.train import distributed
from curate.train.distributed import World
from curate.train.examples import Examples
from curate.train.packing import PackedData


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Turn dropout and gradients off within the block.

    Unlike in `sampling.eval_mode`, layers stay compiled, because shapes are those of training.
    """
    training = module.training
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        module.train(training)


def log_probabilities(
    module: nn.Module, attention: ChosenKernel, packed: PackedData, world: World, *, micro_batch: int = 1
) -> NDArray[np.float64]:
    """Return the log-probability of the supervised tokens of each example [examples], 0 for one that is in no row.

    The same on every rank. Collective: every rank must call this. `module` is a CausalLoss, alone, in DDP or sharded.
    """
    examples = packed.examples
    assert isinstance(examples, Examples)
    counts = examples.supervised_targets
    sums = np.zeros(len(counts))
    # A rank without rows runs an empty one, because each forward pass of a sharded model is collective. On CUDA every
    # batch has the same shape, so that nothing is compiled again.
    min_rows = micro_batch if world.device.type == "cuda" else 1
    with evaluating(module):
        for rows in distributed.shares(range(len(packed.rows)), micro_batch, world):
            batch = PackedData.batch(packed, rows, min_rows).to(world.device)
            # Not through DDP's own forward, which would broadcast buffers.
            losses = distributed.inner(module)(batch, attention, per_token=True)  # [supervised], fp32
            # In the same order: by row, by example in the row, by position.
            members = np.array([index for row in rows for index in packed.rows[row]], dtype=np.int64)
            owners = np.repeat(members, counts[members])
            sums -= np.bincount(owners, weights=losses.double().cpu().numpy(), minlength=len(sums))
    return np.array(distributed.total(sums.tolist(), world))
