"""The lengths of a run's examples, and what they come to as packed rows."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from curate.errors import CurateError
from curate.model.sizes import Work
from curate.train import packing
from curate.train.config import TrainConfig
from curate.train.examples import TrainingData
from curate.train.planning.inputs import Load

PACKED = 100_000  # examples to pack for an estimate; the share of padding differs by less than 0.1 % from that of all


@dataclass(frozen=True)
class Lengths:
    """The tokens of each example, and how many of them are supervised; `sides` examples are one piece."""

    train: NDArray[np.int64]  # [examples]
    supervised: NDArray[np.int64]  # [examples]
    held_out: NDArray[np.int64]  # [held-out examples]
    sides: int = 1

    @property
    def pieces(self) -> NDArray[np.int64]:
        """Tokens of each piece [pieces], over its sides."""
        tokens: NDArray[np.int64] = self.train.reshape(-1, self.sides).sum(axis=1)
        return tokens


def of_data(dataset: TrainingData) -> Lengths:
    """Return the lengths of examples that are rendered."""
    trained = dataset.train
    return Lengths(trained.lengths, trained.supervised_targets, dataset.eval.lengths, trained.sides)


def pack(config: TrainConfig, lengths: Lengths, window: int) -> tuple[list[list[int]], Load]:
    """Return the examples of each packed row, by index, and the load for the plan.

    A row has `data.row_tokens` positions, by default the window, or as many as the longest pair; without packing, one
    piece, padded to the longest. Raises CurateError if `data.row_tokens` is too short for a pair.
    """
    sides, pieces = lengths.sides, lengths.pieces
    row_tokens = _row_tokens(config, lengths, window)
    packed = packing.pack(pieces, row_tokens)
    members = packed.rows if config.data.packing else [[index] for index in range(len(pieces))]
    rows = packing.rows_of_sides(members, sides)
    # An estimate: evaluation takes as many pieces, evenly spread.
    held_out = lengths.held_out[: config.eval.limit * sides or None]
    load = Load(
        examples=len(pieces),
        rows=len(rows),
        row_tokens=row_tokens,
        work=_work(lengths.train, int(lengths.supervised.sum())),
        held_out=_work(held_out, int(held_out.sum())),
        utilisation=packed.utilisation if config.data.packing else packed.padded_utilisation,
        padded_utilisation=packed.padded_utilisation,
        most_supervised=_most_supervised(rows, lengths.supervised),
    )
    return rows, load


def _row_tokens(config: TrainConfig, lengths: Lengths, window: int) -> int:
    """Return the length of a packed row; raises CurateError if `data.row_tokens` is too short for a pair."""
    longest, chosen = int(lengths.pieces.max()), config.data.row_tokens
    if not config.data.packing:
        return longest
    if lengths.sides == 1:
        return chosen or window
    if chosen and chosen < longest:
        raise CurateError(
            f"data.row_tokens = {chosen} is too short for the longest pair: its sides have {longest:,} tokens; type "
            f"--setting data.row_tokens={longest}, or leave it out"
        )
    return chosen or max(window, longest)


def estimate_load(config: TrainConfig, lengths: Lengths, window: int) -> Load:
    """Return the load for the plan, of at most PACKED examples that stand for all: packing a million takes seconds."""
    count = len(lengths.train)
    chosen = np.random.default_rng(0).choice(count, min(count, PACKED), replace=False)
    some = replace(lengths, train=lengths.train[chosen], supervised=lengths.supervised[chosen])
    rows, load = pack(config, some, window)
    return replace(
        load,
        examples=count,
        rows=round(len(rows) * count / len(chosen)),
        work=_work(lengths.train, int(lengths.supervised.sum())),
    )


def _work(lengths: NDArray[np.int64], supervised: int) -> Work:
    return Work(int(lengths.sum()), supervised, int((lengths * lengths).sum()))


def _most_supervised(rows: list[list[int]], supervised: NDArray[np.int64]) -> int:
    """Return the supervised tokens of the row with most of them: its loss takes most memory."""
    row_of = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
    members = np.fromiter((index for row in rows for index in row), np.int64, len(row_of))
    return int(np.bincount(row_of, weights=supervised[members]).max())
