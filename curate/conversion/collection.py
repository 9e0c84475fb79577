"""The conversations of a set or a dump, read when needed: as dataclasses, as a Polars frame, or for datasets."""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import polars as pl

from curate.conversion.output import Split, Tally
from curate.conversion.readers import scan_table, translate_errors
from curate.conversion.selection import NothingSelected, Selected, read_selected, select_rows
from curate.conversion.writers import table_row
from curate.dataset import columns
from curate.dataset.query import ROW, Query
from curate.display.displayed import Displayed
from curate.errors import InputError, MissingExtra
from curate.schemas.conversation import Conversation


@dataclass(frozen=True)
class Conversations(Displayed):
    """The conversations that a query selects from a set or a file; every pass reads them again.

    After a pass, `left_out` counts the records that could not be read, by rule, and `warnings` has the messages.
    """

    path: str
    query: Query
    keep: tuple[str, ...] = ()
    left_out: Counter[str] = field(default_factory=Counter, compare=False)
    warnings: list[str] = field(default_factory=list, compare=False)

    def __iter__(self) -> Iterator[Conversation]:
        return (entry.conversation for _, entry in self._read())

    def _read(self) -> Iterator[Selected]:
        tally = Tally()
        self.warnings.clear()
        try:
            yield from read_selected(self.path, self.query, tally, self.warnings, self.keep)
        except NothingSelected:
            pass
        finally:
            self.left_out.clear()
            self.left_out.update(tally.left_out)

    def __len__(self) -> int:
        frame = self._select()
        if frame is None:
            return sum(1 for _ in self._read())
        with translate_errors(self.path):
            return int(frame.select(pl.len()).collect().item())

    def __bool__(self) -> bool:
        return next(iter(self), None) is not None

    def filter(
        self, where: str | None = None, *, split: Split | None = None, search: str | None = None
    ) -> Conversations:
        """Return those that also match a condition, are of a split, or contain a text; see `curate.read`."""
        if search and self.query.search:
            raise InputError("the conversations are already searched for a text; filter by another condition")
        if self.query.sample is not None:
            raise InputError("the conversations are a sample; filter them first, then draw")
        conditions = [each for each in (self.query.where, where) if each is not None]
        joined = " and ".join(f"({each})" for each in conditions) if len(conditions) > 1 else None
        query = replace(
            self.query,
            where=joined or next(iter(conditions), None),
            split=split or self.query.split,
            search=search or self.query.search,
        )
        return Conversations(self.path, query, self.keep)

    def to_polars(self) -> pl.DataFrame:
        """Return a frame: of a set all columns, of a dump those of `curate convert --to parquet`."""
        frame = self._select()
        if frame is not None:
            with translate_errors(self.path):
                return frame.collect(engine="streaming")
        rows = [table_row(entry) for _, entry in self._read()]
        return pl.DataFrame(rows, schema=columns.CONVERTED)

    def to_hf(self) -> Any:
        """Return a `datasets.Dataset` with the same columns; raises MissingExtra without the library."""
        try:
            library = importlib.import_module("datasets")
        except ModuleNotFoundError:
            raise MissingExtra("reading conversations as a dataset of Hugging Face", "train") from None
        return library.Dataset.from_polars(self.to_polars())

    def _select(self) -> pl.LazyFrame | None:
        """Return the selected rows of a table; None for a dump."""
        table = scan_table(self.path)
        if table is None:
            return None
        with translate_errors(self.path):
            try:
                return select_rows(self.path, table[0], self.query, Tally(), self.warnings).drop(ROW)
            except NothingSelected:
                return table[0].clear()
