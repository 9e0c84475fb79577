"""Explain what happened to one record: its source, repairs, rejections, twins and pieces."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from curate.dataset.curated_set import CuratedSet, open_set, translate_errors
from curate.display.displayed import Displayed
from curate.errors import SetError
from curate.remote.sets import fetch_set
from curate.schemas.conversation import Edit

if TYPE_CHECKING:
    import polars as pl

RECORDS_SHOWN = 20  # records with the same id; further ones are only counted
EXCERPT = 400  # characters of a rejected record's own bytes
SIMILAR_SEARCHED = 20_000  # ids compared with a mistyped one


@dataclass(frozen=True)
class Rejection:
    """A rejection by a rule: of the whole record, or of one exchange with its first and last message."""

    scope: Literal["record", "exchange"]
    rule: str
    reason: str
    evidence: str | None
    messages: tuple[int, int] | None
    twin: str | None


@dataclass(frozen=True)
class Piece:
    """One row of the set made from the record."""

    id: str
    split: str
    turns: int
    tokens: int
    answer_tokens: int


@dataclass(frozen=True)
class RecordHistory:
    """What happened to one record, or to one of its branches.

    `twins` were rejected as its duplicates, `record` is the start of its text.
    """

    source_file: str
    source_index: int
    branch: int
    source_id: str | None
    kept: bool
    edits: tuple[Edit, ...]
    rejections: tuple[Rejection, ...]
    pieces: tuple[Piece, ...]
    twins: tuple[str, ...]
    record: str | None


@dataclass(frozen=True)
class Explanation(Displayed):
    """The records that an id names: `matches` is their number, `records` has the first of them.

    `sets` describes those that the set was made from.
    """

    query: str
    set_path: str
    matches: int
    records: tuple[RecordHistory, ...]
    sets: tuple[str, ...] = ()


Key = tuple[str, int, int]
KEY = ("source_file", "source_index", "branch")


def explain(record_id: str, set_path: str | Path = "curated") -> Explanation:
    """Explain the records that an id names: the set's id, the dump's own, a piece's, or `file:index`.

    Raises SetError with similar ids if there is no such record.
    """
    curated = open_set(fetch_set(set_path))
    with translate_errors(curated):
        keys = find_records(curated, record_id)
        if keys:
            histories = _histories(curated, keys[:RECORDS_SHOWN])
            sets = tuple(use.describe() for use in curated.manifest.sets)
            return Explanation(record_id, str(curated.path), len(keys), histories, sets)
        raise unknown_id(curated, record_id)


def unknown_id(curated: CuratedSet, record_id: str) -> SetError:
    """Return the error for an id that names no record, with similar ids."""
    similar = _find_similar_ids(curated, record_id)
    hint = f"; similar ids: {', '.join(map(repr, similar))}" if similar else ""
    return SetError(f"no record {record_id!r} in {str(curated.path)!r}{hint} (an id, or FILE:INDEX from 0)")


def find_records(curated: CuratedSet, record_id: str) -> list[Key]:
    """Return the file, index and branch of each record that an id names, in the order of the input."""
    import polars as pl

    has_source_id = pl.col("source_id") == record_id
    piece_like = pl.col("id").str.starts_with(record_id + "_") & pl.col("id").str.contains(r"_\d+$")
    is_piece = piece_like & (pl.col("id").str.len_chars() - pl.col("id").str.extract(r"(_\d+)$").str.len_chars()).eq(
        len(record_id)
    )
    kept = curated.conversations().filter(has_source_id | (pl.col("id") == record_id) | is_piece | _place(record_id))
    rejected = curated.rejected().filter(has_source_id | _place(record_id))
    keys = pl.concat([frame.select(KEY) for frame in (kept, rejected)])
    return list(keys.unique().sort(KEY).collect(engine="streaming").iter_rows())


def is_chat(file: str, index: int, branch: int) -> pl.Expr:
    """Return whether a row is of a record's branch."""
    import polars as pl

    return (pl.col("source_file") == file) & (pl.col("source_index") == index) & (pl.col("branch") == branch)


def _place(record_id: str) -> pl.Expr:
    import polars as pl

    file, colon, index = record_id.rpartition(":")
    if not colon or not (index.isascii() and index.isdigit()) or len(index) > 18:
        return pl.lit(False)
    return (pl.col("source_file") == file) & (pl.col("source_index") == int(index))


def _histories(curated: CuratedSet, keys: list[Key]) -> tuple[RecordHistory, ...]:
    kept = _rows(
        curated.conversations(),
        keys,
        ["id", "piece", "source_id", "split", "turns", "tokens", "answer_tokens", "edits"],
    )
    rejected = _rows(
        curated.rejected(),
        keys,
        ["source_id", "scope", "rule", "reason", "evidence", "message_range", "twin", "record"],
    )
    return tuple(_history(curated, key, kept.get(key, []), rejected.get(key, [])) for key in keys)


def _rows(frame: pl.LazyFrame, keys: list[Key], columns: list[str]) -> dict[Key, list[dict[str, Any]]]:
    """Return the rows of these records by key, in the order of the table."""
    import polars as pl

    files, indices = {key[0] for key in keys}, {key[1] for key in keys}
    near = pl.col("source_file").is_in(list(files)) & pl.col("source_index").is_in(list(indices))
    rows: dict[Key, list[dict[str, Any]]] = {}
    for row in frame.filter(near).select(*KEY, *columns).collect().iter_rows(named=True):
        rows.setdefault((row["source_file"], row["source_index"], row["branch"]), []).append(row)
    return rows


def _history(
    curated: CuratedSet, key: Key, kept: list[dict[str, Any]], rejected: list[dict[str, Any]]
) -> RecordHistory:
    rejected_row = next((row for row in rejected if row["scope"] == "record"), None)
    return RecordHistory(
        source_file=key[0],
        source_index=key[1],
        branch=key[2],
        source_id=next((row["source_id"] for row in [*kept, *rejected]), None),
        kept=bool(kept),
        edits=tuple({tuple(edit.values()): Edit(**edit) for row in kept for edit in row["edits"] or []}.values()),
        rejections=tuple(rejection(row) for row in rejected),
        pieces=tuple(Piece(row["id"], row["split"], row["turns"], row["tokens"], row["answer_tokens"]) for row in kept),
        twins=_twins(curated, kept),
        record=_excerpt(rejected_row["record"]) if rejected_row else None,
    )


def rejection(row: Mapping[str, Any]) -> Rejection:
    """Return the rejection that a row of rejected.parquet describes."""
    messages = (row["message_range"][0], row["message_range"][1] - 1) if row["message_range"] else None
    return Rejection(row["scope"], row["rule"], row["reason"], row["evidence"], messages, row["twin"])


def _twins(curated: CuratedSet, kept: list[dict[str, Any]]) -> tuple[str, ...]:
    """Return the ids, or places, of the records that were rejected as duplicates of this one."""
    import polars as pl

    if not kept:
        return ()
    names = {row["id"] for row in kept} | {_base(row) for row in kept}
    place = pl.concat_str("source_file", pl.lit(":"), "source_index")
    rows = curated.rejected().filter(pl.col("twin").is_in(list(names)))
    ids = rows.select(pl.coalesce("source_id", place)).head(RECORDS_SHOWN).collect()
    return tuple(ids.to_series())


def _base(row: Mapping[str, Any]) -> str:
    """Return the conversation's id: a piece's without its number."""
    return str(row["id"]).removesuffix(f"_{row['piece']}")


def _excerpt(record: bytes | None) -> str:
    """Return the start of a record's bytes as text; bytes that are not UTF-8 are escaped."""
    return (record or b"")[: 4 * EXCERPT].decode("utf-8", "backslashreplace")[:EXCERPT]


def _find_similar_ids(curated: CuratedSet, record_id: str) -> list[str]:
    import polars as pl

    source_ids = curated.rejected().select(pl.col("source_id").alias("id"))
    ids = pl.concat([curated.conversations().select("id"), source_ids]).drop_nulls()
    candidates = (
        ids.filter(pl.col("id").str.starts_with(record_id[:2])).head(SIMILAR_SEARCHED).collect(engine="streaming")
    )
    if candidates.is_empty():
        candidates = ids.head(SIMILAR_SEARCHED).collect(engine="streaming")
    return difflib.get_close_matches(record_id, candidates.to_series().unique(maintain_order=True), n=3, cutoff=0.6)
