"""What a plan is made from: the hardware, the data as packed, and the steps over it."""

from __future__ import annotations

from dataclasses import dataclass

from curate.model.sizes import Work
from curate.train.planning.cards import Card


@dataclass(frozen=True)
class Hardware:
    """The hardware of a run: one rank's device, the number of ranks, and the disk.

    `card` is set for a machine that is planned for without being there (`curate.train.planning.machines`).
    """

    kind: str  # cuda or cpu
    name: str
    memory: int  # bytes free on one device
    dtype: str
    rate: float | None  # operations per second in matrix products: measured, or the card's data sheet's; None: unknown
    ranks: int
    disk: int | None  # bytes free where the run is written; None: unknown
    card: Card | None = None


@dataclass(frozen=True)
class Load:
    """The data of a run, as packed."""

    examples: int  # of one epoch
    rows: int  # packed rows of one epoch
    row_tokens: int  # tokens of a packed row, padding included
    work: Work  # of one epoch
    held_out: Work  # of one evaluation
    utilisation: float = 1.0  # share of positions with tokens
    padded_utilisation: float = 1.0  # the same with one example per row
    most_supervised: int = 0  # supervised tokens of one packed row, at most


@dataclass(frozen=True)
class Steps:
    """The optimizer steps of a run over the packed rows of all epochs in sequence; the last step may have fewer."""

    count: int
    rows: int  # packed rows of a step, over all ranks
    examples: float  # of a step, on average
    total_rows: int  # packed rows of the whole run
    epochs: float
