"""The set's tables, written from the parts in record order once the whole corpus is decided: the last stretch of a run.

Each table is a job of its own, done by a worker that has no chunk left to clean.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

import polars as pl
from polars.io.plugins import register_io_source

from curate.dataset import columns, curated_set, transaction
from curate.engine import base, local
from curate.pipeline.corpus import DUPLICATES, Decisions
from curate.pipeline.steps import part_file

DECISIONS = "decisions.arrow"  # among the parts
RowsOf = Callable[[Path, int, pl.DataFrame], pl.DataFrame]  # folder of parts, number of one, decisions on it → its rows
NOT_HEAVY = pl.exclude("edits", "edit_names", "messages")


@dataclass
class Counts:
    """What the written tables hold; filled while they are written."""

    kept: int = 0
    pieces: int = 0
    tokens: int = 0
    answer_tokens: int = 0
    eval: int = 0
    rejected: Counter[str] = field(default_factory=Counter)  # records, by rule
    exchanges: Counter[str] = field(default_factory=Counter)
    edits: Counter[str] = field(default_factory=Counter)
    roles: Counter[str] = field(default_factory=Counter)  # messages of all pieces

    def __add__(self, other: Counts) -> Counts:
        return Counts(**{item.name: getattr(self, item.name) + getattr(other, item.name) for item in fields(self)})


def write(
    pool: local.WorkerPool,
    folder: Path,
    parts: Sequence[int],
    decisions: Decisions,
    signals: columns.Schema,
    originals: bool,
    meanwhile: Callable[[], object] = int,
) -> Counts:
    """Write the set's tables from the parts of these numbers, and return what they hold.

    `meanwhile` is called here once a worker has the last table. Raises OSError with one line where a file
    cannot be written.
    """
    decisions.rows.write_ipc(folder / transaction.PARTS / DECISIONS, compression="uncompressed")
    tables: list[tuple[str, columns.Schema]] = [
        (curated_set.CONVERSATIONS, columns.conversations_schema(signals)),
        (curated_set.REJECTED, columns.rejected_schema(signals)),
    ]
    if originals:
        tables.append((curated_set.ORIGINALS, columns.ORIGINAL))
    jobs = [base.Call(_write_table, (folder, name, dict(schema), parts)) for name, schema in tables]
    return sum(pool.map(_then(jobs, meanwhile)), Counts())


def _then(jobs: Iterable[base.Call], last: Callable[[], object]) -> Iterator[base.Call]:
    yield from jobs
    last()


def _write_table(folder: Path, name: str, schema: columns.Schema, parts: Sequence[int]) -> Counts:
    """Write one table, a part in memory at a time."""
    counts = Counts()
    source = folder / transaction.PARTS
    decided = pl.read_ipc(source / DECISIONS)
    of_part = {key[0]: rows for key, rows in decided.partition_by("part", as_dict=True).items()}
    nothing = decided.clear()
    rows_of, tally = TABLES[name]

    def batches(*_: object) -> Iterator[pl.DataFrame]:
        for number in parts:
            rows = rows_of(source, number, of_part.get(number, nothing))
            tally(counts, rows)
            yield rows.select(pl.col(name).cast(dtype) for name, dtype in schema.items())

    transaction.sink(folder / name, register_io_source(batches, schema=dict(schema)))
    return counts


def _read(source: Path, number: int, name: str) -> pl.DataFrame:
    return pl.read_ipc(part_file(source, number, name))


def _no_tally(counts: Counts, rows: pl.DataFrame) -> None:
    """Count nothing."""


def _kept_rows(source: Path, number: int, rows: pl.DataFrame) -> pl.DataFrame:
    standing = rows.filter(pl.col("twin").is_null()).select("row", "id", "cluster", "split", "pieces")
    joined = _read(source, number, "kept").join(standing, on="row", how="inner", maintain_order="left")
    name = pl.col("id") + "_" + pl.col("piece").cast(pl.String)
    return joined.with_columns(id=pl.when(pl.col("pieces") > 1).then(name).otherwise("id"))


def _rejected_rows(source: Path, number: int, rows: pl.DataFrame) -> pl.DataFrame:
    """Return the part's rejects with its duplicates among them, in record order."""
    twins = rows.filter(pl.col("twin").is_not_null()).select("row", "twin", "reason")
    rejected = _read(source, number, "rejected")
    if twins.is_empty():
        return rejected
    originals = _read(source, number, "originals").select("row", "record").join(twins, on="row", how="semi")
    first = _read(source, number, "kept").select(NOT_HEAVY).filter(pl.col("piece") == 0)
    taken = first.join(twins, on="row", how="inner", maintain_order="left").join(originals, on="row", how="left")
    taken = taken.with_columns(
        scope=pl.lit("record"),
        rule=pl.lit(DUPLICATES),
        message_range=pl.lit(None, dtype=pl.List(pl.Int32)),
        evidence=pl.lit(None, dtype=pl.String),
        turns=pl.col("source_turns"),
        characters=pl.col("source_characters"),
    )
    dropped = rejected.filter(~pl.col("source_index").is_in(taken["source_index"].implode()))
    return dropped.merge_sorted(taken.select(rejected.columns).cast(rejected.schema), key="source_index")


def _original_rows(source: Path, number: int, rows: pl.DataFrame) -> pl.DataFrame:
    standing = rows.filter(pl.col("twin").is_null()).select("row")
    found = _read(source, number, "originals").filter("changed")
    return found.join(standing, on="row", how="semi", maintain_order="left")


def _tally_kept(counts: Counts, rows: pl.DataFrame) -> None:
    first = rows.filter(pl.col("piece") == 0)
    counts.kept += first.height
    counts.pieces += rows.height
    counts.tokens += int(rows["tokens"].sum())
    counts.answer_tokens += int(rows["answer_tokens"].sum())
    counts.eval += int((first["split"] == "eval").sum())
    edits = (
        first.select(pl.col("edits").explode().struct.unnest())
        .drop_nulls("rule")
        .group_by("rule")
        .agg(pl.col("count").sum())
    )
    counts.edits.update(dict(edits.iter_rows()))
    roles = rows["messages"].list.explode().struct.field("role").drop_nulls().value_counts()
    counts.roles.update(dict(roles.iter_rows()))


def _tally_rejected(counts: Counts, rows: pl.DataFrame) -> None:
    counts.rejected.update(rows.filter(pl.col("scope") == "record")["rule"].to_list())
    counts.exchanges.update(rows.filter(pl.col("scope") == "exchange")["rule"].to_list())


TABLES: dict[str, tuple[RowsOf, Callable[[Counts, pl.DataFrame], None]]] = {
    curated_set.CONVERSATIONS: (_kept_rows, _tally_kept),
    curated_set.REJECTED: (_rejected_rows, _tally_rejected),
    curated_set.ORIGINALS: (_original_rows, _no_tally),
}
