"""Score examples with a model: the log-probability of what each trains, without gradients."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

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


def token_losses(
    module: nn.Module, attention: ChosenKernel, packed: PackedData, world: World, *, micro_batch: int
) -> Iterator[tuple[list[int], Tensor]]:
    """Yield the examples of each of this rank's micro-batches, by index, with the losses of their supervised tokens.

    The losses are in the same order: by row, by example in the row, by position; fp64 [supervised], on the CPU.
    Collective: every rank must take all of them, within `evaluating`. `module` is a CausalLoss, alone, in DDP or
    sharded.
    """
    # A rank without rows runs an empty one, because each forward pass of a sharded model is collective. On CUDA every
    # batch has the same shape, so that nothing is compiled again.
    min_rows = micro_batch if world.device.type == "cuda" else 1
    for rows in distributed.shares(range(len(packed.rows)), micro_batch, world):
        batch = PackedData.batch(packed, rows, min_rows).to(world.device)
        # Not through DDP's own forward, which would broadcast buffers.
        losses = distributed.inner(module)(batch, attention, per_token=True)
        yield [index for row in rows for index in packed.rows[row]], losses.double().cpu()


def log_probabilities(
    module: nn.Module, attention: ChosenKernel, packed: PackedData, world: World, *, micro_batch: int = 1
) -> NDArray[np.float64]:
    """Return the log-probability of the supervised tokens of each example [examples], 0 for one that is in no row.

    The same on every rank. Collective: every rank must call this. `module` is as in `token_losses`.
    """
    examples = packed.examples
    assert isinstance(examples, Examples)
    counts = examples.supervised_targets
    sums = np.zeros(len(counts))
    with evaluating(module):
        for indices, losses in token_losses(module, attention, packed, world, micro_batch=micro_batch):
            members = np.array(indices, dtype=np.int64)
            owners = np.repeat(members, counts[members])
            sums -= np.bincount(owners, weights=losses.numpy(), minlength=len(sums))
    return np.array(distributed.total(sums.tolist(), world))
