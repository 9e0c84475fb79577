"""Which rows a step takes: each epoch's rows in an order of its own, and the place in them a matter of the step alone.

Nothing is remembered from one step to the next, so a run that is resumed goes on with exactly the rows that come next,
whatever number of ranks shares them.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from curate.train.plan import Steps


@lru_cache(maxsize=2)
def epoch_order(rows: int, epoch: int, seed: int) -> NDArray[np.int64]:
    """Return an epoch's order of rows: drawn from seed and epoch, by a generator that is the same everywhere."""
    generator = np.random.Generator(np.random.Philox(key=[seed, epoch]))
    return generator.permutation(rows)


def rows_of(step: int, steps: Steps, rows: int, seed: int) -> list[int]:
    """Return the rows of a step, counted from 0, out of `rows` in all: epochs laid end to end, cut into steps."""
    start = step * steps.rows
    stop = min(start + steps.rows, steps.total_rows)
    return [int(epoch_order(rows, place // rows, seed)[place % rows]) for place in range(start, stop)]
