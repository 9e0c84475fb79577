"""Units of work: prepared conversations, cut so that each takes a few forward passes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import polars as pl

from curate.scoring.documents import Document, concatenate
from curate.scoring.reader import Reader

PASSES = 16  # forward passes of a unit, about; after each unit, the journal has its results

Result = Any  # of a conversation, as JSON values


@dataclass(frozen=True)
class Prepared:
    """One conversation of the set: its number of `rows`, and the documents that are read of it.

    `detail` is what its measure needs to make a result of the scores; `unscored` counts answers without one, by reason.
    """

    rows: int
    documents: Sequence[Document]
    detail: Any
    unscored: Counter[str] = field(default_factory=Counter)

    @property
    def tokens(self) -> int:
        """The tokens of all documents."""
        return sum(len(document.ids) for document in self.documents)


class Measure(Protocol):
    """What is measured: scores of prepared conversations, and the columns of their results."""

    @property
    def name(self) -> str:
        """The signal's name."""

    def score(self, reader: Reader, prepared: Sequence[Prepared], /) -> list[Result]:
        """Return the result of each conversation."""

    def count_unscored(self, result: Result, /) -> Counter[str]:
        """Count what was read without a result, by reason."""

    def columns(self, results: Sequence[Result], /) -> pl.DataFrame:
        """Return the signal's columns, one row for each conversation."""


@dataclass(frozen=True)
class Unit:
    """Conversations that are scored together, and the hash of what is read of them."""

    prepared: Sequence[Prepared]
    key: str


def cut_units(batches: Iterable[Sequence[Prepared]], budget: int) -> Iterator[Unit]:
    """Yield units of about PASSES times `budget` tokens, those of a forward pass."""
    for batch in batches:
        unit: list[Prepared] = []
        tokens = 0
        for prepared in batch:
            unit.append(prepared)
            tokens += prepared.tokens
            if tokens >= PASSES * budget:
                yield _unit(unit)
                unit, tokens = [], 0
        if unit:
            yield _unit(unit)


def _unit(prepared: Sequence[Prepared]) -> Unit:
    key = concatenate([document for item in prepared for document in item.documents]).digest()
    return Unit(prepared, f"{len(prepared)}-{key}")
