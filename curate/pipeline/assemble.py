"""Write the set's tables from the parts, in record order, after the decisions over the whole corpus.

The largest table is written in this process, by as many threads as there are cores: a worker has one. Each of the
others is a job for a worker that has no more chunks to clean.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from threading import Event
from typing import TypeVar

import numpy as np
import polars as pl
from polars.io.plugins import register_io_source

from curate.dataset import columns, curated_set, transaction
from curate.dataset import manifest as manifests
from curate.engine import base
from curate.errors import BalanceError
from curate.ingest.damaged_records import DAMAGED_STREAM
from curate.pipeline.corpus import Decisions
from curate.pipeline.frames import count_turn_keys, read_final
from curate.pipeline.sets.earlier import CONTINUES
from curate.pipeline.steps import MaskTask
from curate.pipeline.whole import rest
from curate.pipeline.whole.rest import Rest
from curate.schemas.conversation import EXCERPT

DECISIONS = "decisions.arrow"  # in the folder of parts
T = TypeVar("T")
ReadRows = Callable[[Path, int, pl.DataFrame], pl.DataFrame]  # folder of parts, part number, its decisions → rows
NOTHING = pl.lit("")
EDITS = {"doubt": DAMAGED_STREAM, "continues": CONTINUES}  # of kept conversations, by column of the decisions
LIGHT_COLUMNS = pl.exclude("edits", "edit_names", "messages")


@dataclass
class Counts:
    """Counts over the tables, updated while they are written."""

    kept: int = 0
    pieces: int = 0
    tokens: int = 0
    answer_tokens: int = 0
    eval: int = 0
    rejected: Counter[str] = field(default_factory=Counter)  # records, by rule
    exchanges: Counter[str] = field(default_factory=Counter)
    edits: Counter[str] = field(default_factory=Counter)
    roles: Counter[str] = field(default_factory=Counter)  # messages of all pieces
    turn_keys: Counter[str] = field(default_factory=Counter)  # keys in these messages' `extra`

    def __add__(self, other: Counts) -> Counts:
        return Counts(**{item.name: getattr(self, item.name) + getattr(other, item.name) for item in fields(self)})

    def check_balance(self, records: int, what: str) -> None:
        """Raise BalanceError if one of the records is neither kept nor rejected; `what` says which these are."""
        rejected = self.rejected.total()
        if records != self.kept + rejected:
            raise BalanceError(
                f"{records} {what}, but {self.kept} kept and {rejected} rejected; "
                "this is a bug in curate, please report it; nothing was written"
            )

    def facts(self, records: int, branches: int, rules: dict[str, manifests.RuleCount]) -> manifests.Counts:
        """Return the counts of the manifest, with those that the tables do not have."""
        return manifests.Counts(
            read=records,
            kept=self.kept,
            rejected=self.rejected.total(),
            rejected_exchanges=self.exchanges.total(),
            pieces=self.pieces,
            branches=branches,
            eval=self.eval,
            tokens=self.tokens,
            answer_tokens=self.answer_tokens,
            rules=rules,
            exchanges=dict(sorted(self.exchanges.items())),
            edits=dict(sorted(self.edits.items())),
            roles=dict(sorted(self.roles.items())),
            turn_keys=dict(sorted(self.turn_keys.items())),
        )


@dataclass(frozen=True)
class SetTables:
    """What to write: the folder of the unfinished set, a user's signals, originals or not.

    `parts`: the number of each part in order, and what is added to the index of its records. They are in `source`.
    """

    folder: Path
    source: Path
    parts: Mapping[int, int]
    signals: columns.Schema
    originals: bool
    firsts: Mapping[int, int] | None = None  # the place of each part's first conversation in `rest.STATES`


def write_tables(pool: base.Pool, target: SetTables, decisions: Decisions, meanwhile: Callable[[], object]) -> Counts:
    """Write the set's tables and return their counts.

    `meanwhile` runs in this process once all tables are being written. Raises OSError with a one-line message if a file
    cannot be written.
    """
    target = write_decisions(target, decisions)
    tables: list[tuple[str, columns.Schema]] = [(curated_set.REJECTED, columns.rejected_schema(target.signals))]
    if target.originals:
        tables.append((curated_set.ORIGINALS, columns.ORIGINAL))
    jobs = [base.Call(_write_table, (target, name, dict(schema))) for name, schema in tables]
    load = MaskTask(())  # a worker loads the tokenizer for the page, if none of its tasks has needed one
    stop = Event()
    with ThreadPoolExecutor(1) as thread:  # the main thread waits for signals, which Polars would not notice
        schema = columns.conversations_schema(target.signals)
        kept = thread.submit(_write_table, target, curated_set.CONVERSATIONS, schema, stop)
        try:
            results = list(pool.map(_call_after([load, *jobs], meanwhile)))
            return sum((each for each in results if isinstance(each, Counts)), kept.result())
        finally:
            stop.set()


def _call_after(jobs: Iterable[T], callback: Callable[[], object]) -> Iterator[T]:
    yield from jobs
    callback()


def _write_table(target: SetTables, name: str, schema: columns.Schema, stop: Event | None = None) -> Counts:
    """Write one table, with one part in memory at a time; none is read after `stop`."""
    counts = Counts()
    read_decisions = decisions_reader(target)
    read_rows, tally = TABLES[name]

    def batches(*_: object) -> Iterator[pl.DataFrame]:
        for number, first in target.parts.items():
            if stop is not None and stop.is_set():
                return
            rows = read_rows(target.source, number, read_decisions(number))
            rows = rows.with_columns(pl.col("source_index") + first)
            tally(counts, rows)
            yield rows.select(pl.col(name).cast(dtype) for name, dtype in schema.items())

    transaction.sink(target.folder / name, register_io_source(batches, schema=dict(schema)))
    return counts


def write_decisions(target: SetTables, decisions: Decisions) -> SetTables:
    """Write the decisions to files; return what to write, with where these are."""
    rows_by_part = decisions.rows.sort("part", maintain_order=True)
    rows_by_part.write_ipc(target.source / DECISIONS, compression="uncompressed")
    if decisions.rest is None:
        return target
    np.save(target.source / rest.STATES, decisions.rest.states)
    return replace(target, firsts=decisions.rest.firsts)


def decisions_reader(target: SetTables) -> Callable[[int], pl.DataFrame]:
    """Return a function that reads the decisions on a part's conversations, which are in files."""
    decisions = pl.read_ipc(target.source / DECISIONS)
    numbers = decisions["part"].to_numpy()  # ascending, so that those of a part are a slice of the mapped file
    others = None
    if target.firsts is not None:
        others = Rest(np.load(target.source / rest.STATES, mmap_mode="r"), target.firsts)

    def read(number: int) -> pl.DataFrame:
        start, end = np.searchsorted(numbers, [number, number + 1]).tolist()
        own = decisions.slice(start, end - start)
        return own if others is None else pl.concat([own, others.read(target.source, number)], how="diagonal")

    return read


def _read(source: Path, number: int, name: str) -> pl.DataFrame:
    return read_final(source, number, name)


def _no_tally(counts: Counts, rows: pl.DataFrame) -> None:
    """Count nothing."""


def _kept_rows(source: Path, number: int, rows: pl.DataFrame) -> pl.DataFrame:
    kept = rows.filter(pl.col("rule").is_null()).select("row", "id", "cluster", "split", "pieces", "doubt", "continues")
    pieces = _read(source, number, "kept")
    decided = pieces.select("row").join(kept, on="row", how="left", maintain_order="left")  # without the heavy columns
    joined = pieces.hstack(decided.drop("row"))
    joined = joined if decided["id"].null_count() == 0 else joined.filter(pl.col("id").is_not_null())
    name = pl.col("id") + "_" + pl.col("piece").cast(pl.String)
    joined = joined.with_columns(id=pl.when(pl.col("pieces") > 1).then(name).otherwise("id"))
    for column, rule in EDITS.items():
        joined = joined if kept[column].is_null().all() else add_edit(joined, rule, after=pl.col(column))
    return joined


def add_edit(rows: pl.DataFrame, rule: str, *, after: pl.Expr, before: pl.Expr = NOTHING) -> pl.DataFrame:
    """Add an edit where `after` is not null: to the first piece, before all others, and by name to each."""
    edit = pl.struct(
        rule=pl.lit(rule),
        message=pl.lit(None, dtype=pl.Int32),
        count=pl.lit(1, dtype=pl.Int32),
        before=before.str.slice(0, EXCERPT),
        after=after.str.slice(0, EXCERPT),
    )
    edited = after.is_not_null()
    return rows.with_columns(
        edits=pl.when(edited & (pl.col("piece") == 0)).then(pl.concat_list(edit, "edits")).otherwise("edits"),
        edit_names=pl.when(edited).then(pl.concat_list("edit_names", pl.lit(rule)).list.sort()).otherwise("edit_names"),
    )


def _rejected_rows(source: Path, number: int, rows: pl.DataFrame) -> pl.DataFrame:
    """Return the part's rejects, and those of the decisions over the whole corpus, in record order."""
    decided = rows.filter(pl.col("rule").is_not_null()).select("row", "rule", "twin", "reason", "evidence")
    rejected = _read(source, number, "rejected")
    if decided.is_empty():
        return rejected
    originals = _read(source, number, "originals").select("row", "record").join(decided, on="row", how="semi")
    first = _read(source, number, "kept").select(LIGHT_COLUMNS).filter(pl.col("piece") == 0)
    dropped = first.join(decided, on="row", how="inner", maintain_order="left").join(originals, on="row", how="left")
    dropped = dropped.with_columns(
        scope=pl.lit("record"),
        message_range=pl.lit(None, dtype=pl.List(pl.Int32)),
        turns=pl.col("source_turns"),
        characters=pl.col("source_characters"),
        kept_row=pl.lit(None),
    )
    is_dropped = pl.col("kept_row").is_in(decided["row"].implode())  # the record's bytes are in its own row, the first
    rejects = rejected.with_columns(pl.when(~is_dropped.fill_null(False)).then(pl.col("record", "kept_row")))
    rows = pl.concat([dropped.select(rejected.columns).cast(rejected.schema), rejects])
    return rows.sort("number", "branch", maintain_order=True)


def _original_rows(source: Path, number: int, rows: pl.DataFrame) -> pl.DataFrame:
    kept = rows.filter(pl.col("rule").is_null()).select("row")
    changed = _read(source, number, "originals").filter("changed")
    changed = changed.join(kept, on="row", how="semi", maintain_order="left")
    return changed.unique("number", keep="first", maintain_order=True)  # once for all branches of a record


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
    messages = rows["messages"].list.explode().struct
    roles = messages.field("role").drop_nulls().value_counts()
    counts.roles.update(dict(roles.iter_rows()))
    counts.turn_keys.update(count_turn_keys(messages.field("extra")))


def _tally_rejected(counts: Counts, rows: pl.DataFrame) -> None:
    counts.rejected.update(rows.filter(pl.col("scope") == "record")["rule"].to_list())
    counts.exchanges.update(rows.filter(pl.col("kept_row").is_not_null())["rule"].to_list())


TABLES: dict[str, tuple[ReadRows, Callable[[Counts, pl.DataFrame], None]]] = {
    curated_set.CONVERSATIONS: (_kept_rows, _tally_kept),
    curated_set.REJECTED: (_rejected_rows, _tally_rejected),
    curated_set.ORIGINALS: (_original_rows, _no_tally),
}
