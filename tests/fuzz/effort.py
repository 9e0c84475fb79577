"""How long the fuzzers run: `make fuzz TIMES=50` runs 50 times as long as the slow tests; SEED=7 changes the draws."""

from __future__ import annotations

import os

TIMES = int(os.environ.get("CURATE_FUZZ_TIMES", "1"))
SEED = int(os.environ.get("CURATE_FUZZ_SEED", "0"))


def rounds(short: int) -> int:
    """Return the number of rounds, given that of the short form."""
    return short * TIMES


def seeds(short: int) -> range:
    """Return a seed for each round."""
    first = SEED * 1_000_000
    return range(first, first + rounds(short))
