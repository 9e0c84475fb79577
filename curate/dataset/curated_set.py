"""A curated set on disk: its files and columns, read lazily, written whole or not at all.

A set is a folder of `conversations.parquet`, `rejected.parquet`, `originals.parquet` (optional), `manifest.json` and
`report.html`. It is written to `.NAME.partial` and swapped in by one rename (an exchange of two names if there is an
earlier set), so a reader sees either the earlier set or the new one. Files that curate did not write are never
deleted: a user's own files in the folder move to the new set.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from curate.dataset import columns, manifest
from curate.dataset.manifest import Manifest
from curate.display.displayed import Displayed
from curate.errors import SetError

CONVERSATIONS, REJECTED, ORIGINALS = manifest.CONVERSATIONS, manifest.REJECTED, manifest.ORIGINALS
NEEDED = (  # in every version
    *("id", "source_id", "piece", "messages", "tokens", "turns", "characters", "model", "split", *columns.SOURCE),
    *("prompt_tokens", "answer_tokens", "edits", "edit_names", "language"),
)
NEEDED_OF_REJECTS = tuple(name for name in columns.REJECT if name != "branch")
FILLED = ("id", "piece", "tokens", "turns", "characters", "split", "prompt_tokens", "answer_tokens", *columns.SOURCE)
FILLED_OF_REJECTS = ("scope", "rule", "reason", *columns.SOURCE)  # every row has a value in each of these
MESSAGE_FIELDS = ("role", "content")
MANIFEST, REPORT, FILES = manifest.MANIFEST, manifest.REPORT, manifest.FILES


@dataclass(frozen=True)
class CuratedSet(Displayed):
    """A set on disk: its folder and manifest. The tables are scanned lazily."""

    path: Path
    manifest: Manifest

    def conversations(self) -> pl.LazyFrame:
        return _with_branch(pl.scan_parquet(self.path / CONVERSATIONS))

    def rejected(self) -> pl.LazyFrame:
        return _with_branch(pl.scan_parquet(self.path / REJECTED))

    def originals(self) -> pl.LazyFrame | None:
        """Return the original bytes of changed records, or None if the set was written without them."""
        file = self.path / ORIGINALS
        return pl.scan_parquet(file) if file.exists() else None


def _with_branch(frame: pl.LazyFrame) -> pl.LazyFrame:
    """Add the branch that a table of an earlier version lacks: a record had one conversation."""
    return frame if "branch" in frame.collect_schema() else frame.with_columns(branch=pl.lit(0, pl.Int32))


def open_set(path: str | Path = "curated") -> CuratedSet:
    """Open a curated set; raises SetError that says what is wrong with it or its tables, and what to type."""
    curated = CuratedSet(*manifest.read(path))
    _check_columns(curated, CONVERSATIONS, columns.conversations_schema({}), NEEDED, FILLED)
    _check_columns(curated, REJECTED, columns.rejected_schema({}), NEEDED_OF_REJECTS, FILLED_OF_REJECTS)
    return curated


def _check_columns(
    curated: CuratedSet, table: str, known: columns.Schema, needed: Sequence[str], filled: Sequence[str]
) -> None:
    """Raise SetError for a table without a column that every version writes, with one of another type, or with gaps."""
    with translate_errors(curated):
        schema = pl.read_parquet_schema(curated.path / table)
    for name in needed:
        if name not in schema:
            raise SetError(f"{str(curated.path)!r} lacks a column ({name!r} of {table}); run curate clean again")
    for name, kind in schema.items():
        if name in known and not _is_of_type(kind, known[name]):
            problem = f"the column {name!r} of {table} has the wrong type, {kind}"
            raise SetError(f"{str(curated.path)!r} is damaged ({problem}); run curate clean again")
    with translate_errors(curated):
        gaps = pl.scan_parquet(curated.path / table).select(pl.col(filled).null_count()).collect().row(0, named=True)
    for name, count in gaps.items():
        if count:
            problem = f"{count:,} of the rows of {table} have no {name!r}"
            raise SetError(f"{str(curated.path)!r} is damaged ({problem}); run curate clean again")


def _is_of_type(kind: Any, known: Any) -> bool:
    """Return whether a column has the known type; earlier versions had fewer fields, and integers of other sizes."""
    if isinstance(kind, pl.List) and isinstance(known, pl.List):
        return _is_of_type(kind.inner, known.inner)
    if isinstance(kind, pl.Struct) and isinstance(known, pl.Struct):
        fields = {field.name: field.dtype for field in kind.fields}
        needed = set(MESSAGE_FIELDS) & {field.name for field in known.fields}
        same = all(_is_of_type(fields[field.name], field.dtype) for field in known.fields if field.name in fields)
        return needed <= fields.keys() and same
    return bool(kind == known or (kind.is_integer() and known.is_integer()))


@contextmanager
def translate_errors(curated: CuratedSet) -> Iterator[None]:
    """Raise errors of reading a damaged set as a SetError that says what to do."""
    again = "run curate clean again"
    try:
        yield
    except pl.exceptions.ColumnNotFoundError as error:
        column = str(error).splitlines()[0]
        raise SetError(f"{str(curated.path)!r} lacks a column ({column}): another version wrote it; {again}") from error
    except (OSError, pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        detail = (str(error).splitlines() or [type(error).__name__])[0]
        raise SetError(f"{str(curated.path)!r} is damaged ({detail}); {again}") from error
