"""What only the whole corpus can tell: duplicates, unique ids, train or eval; then the set written from its parts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl
from polars.io.plugins import register_io_source

from curate import curated
from curate.batch import Part, part_file
from curate.filters import duplicates
from curate.recipe import Recipe
from curate.rows import SUMMARY

DUPLICATES = "exact_duplicates"
KINDS = {
    "exact": "the same as",
    "prefix": "the beginning of",
    "first_exchange": "the same first exchange as",
    "id": "the same id as",
}
SOURCE_ROWS = ["part", "row"]  # the key of a conversation among the parts


@dataclass(frozen=True)
class Decisions:
    """One row a conversation that survived its filters, in record order.

    `rows`: part, row, pieces, id (unique; a piece adds its number), cluster, split, twin (text or null), reason.
    `would_take`: how many conversations the duplicate rule would have taken alone.
    """

    rows: pl.DataFrame
    would_take: int


def decide(parts: Sequence[Part], recipe: Recipe) -> Decisions:
    """Find duplicates, give ids and assign train or eval, from the parts' summaries."""
    summaries = [part.summary.with_columns(part=pl.lit(part.number, pl.UInt32)) for part in parts]
    everything = pl.concat(summaries) if summaries else pl.DataFrame(schema={**SUMMARY, "part": pl.UInt32})
    alive = everything.filter(pl.col("pieces") > 0).with_row_index("order")
    settings = recipe.filters.get(DUPLICATES)
    would_take = 0
    twins = pl.DataFrame(schema={"order": pl.UInt32, "twin": pl.UInt32, "kind": pl.String})
    if settings is not None:
        twins = _twins(alive, settings)
        would_take = _twins(everything.with_row_index("order"), settings).height
    rows = alive.join(twins, on="order", how="left", maintain_order="left")
    rows = _with_ids(rows)
    rows = _with_split(rows, recipe)
    return Decisions(
        _with_twin_names(rows).select(*SOURCE_ROWS, "pieces", "id", "cluster", "split", "twin", "reason"), would_take
    )


def _twins(rows: pl.DataFrame, settings: Mapping[str, object]) -> pl.DataFrame:
    """Return order, twin (the order of the one that stays) and kind, for the rows that are duplicates."""
    frame = rows.select(pl.col("order").alias("row"), "chain", "cluster", "source_id")
    found = duplicates.exact_duplicates(frame, **settings)  # type: ignore[arg-type]  # checked by the registry
    return found.filter(pl.col("twin").is_not_null()).select(
        pl.col("row").cast(pl.UInt32).alias("order"), pl.col("twin").cast(pl.UInt32), "kind"
    )


def _with_ids(rows: pl.DataFrame) -> pl.DataFrame:
    """Give each kept conversation an id that no other, and no piece of another, has.

    The first in record order keeps the plain id; a later one of other content gets `~` and eight
    hex digits of its content's hash, and a number where even that is taken.
    """
    digest = pl.col("chain").list.last().map_elements(lambda h: f"{h:016x}", return_dtype=pl.String)
    rows = rows.with_columns(digest=digest).with_columns(
        plain=pl.col("source_id").fill_null("c-" + pl.col("digest").str.slice(0, 12))
    )
    kept = pl.col("twin").is_null()
    rows = rows.with_columns(id=pl.when(kept).then("plain"))
    for attempt in range(1, rows.height + 2):
        clashing = _clashing(rows)
        if clashing.is_empty():
            break
        suffix = "~" + pl.col("digest").str.slice(0, 8)
        if attempt > 1:
            suffix = suffix + pl.lit(f"-{attempt}")
        rows = rows.with_columns(
            id=pl.when(pl.col("order").is_in(clashing.implode())).then(pl.col("plain") + suffix).otherwise("id")
        )
    return rows


def _clashing(rows: pl.DataFrame) -> pl.Series:
    """Return the order of the conversations one of whose final ids an earlier one has."""
    names = (
        rows.filter(pl.col("id").is_not_null())
        .select("order", "id", piece=pl.int_ranges("pieces"), many=pl.col("pieces") > 1)
        .explode("piece")
        .with_columns(name=pl.when("many").then(pl.col("id") + "_" + pl.col("piece").cast(pl.String)).otherwise("id"))
    )
    return names.filter(~pl.col("name").is_first_distinct())["order"].unique()


def _with_split(rows: pl.DataFrame, recipe: Recipe) -> pl.DataFrame:
    kept = rows.filter(pl.col("twin").is_null())
    settings = recipe.eval
    assigned = duplicates.assign_split(kept["cluster"].to_list(), settings.fraction, settings.minimum, settings.seed)
    split = kept.select("order", split=pl.Series(assigned, dtype=pl.String))
    return rows.join(split, on="order", how="left", maintain_order="left")


def _with_twin_names(rows: pl.DataFrame) -> pl.DataFrame:
    """Replace the twin's order by its id, and say in `reason` where it stands."""
    twin = rows.select(
        pl.col("order").alias("twin"),
        pl.col("id").alias("twin_id"),
        pl.format("{}:{}", "source_file", "source_index").alias("place"),
    )
    named = rows.join(twin, on="twin", how="left", maintain_order="left")
    words = pl.col("kind").replace_strict(KINDS, default="a duplicate of")
    return named.with_columns(
        reason=pl.when(pl.col("twin").is_not_null()).then(pl.format("{} {} ({})", words, "twin_id", "place")),
        twin=pl.col("twin_id"),
    )


@dataclass
class Counts:
    """What the written files hold; filled while they are written."""

    kept: int = 0
    pieces: int = 0
    tokens: int = 0
    answer_tokens: int = 0
    eval: int = 0
    rejected: Counter[str] = field(default_factory=Counter)  # records, by rule
    exchanges: Counter[str] = field(default_factory=Counter)
    edits: Counter[str] = field(default_factory=Counter)
    roles: Counter[str] = field(default_factory=Counter)  # messages of all pieces


def write(folder: Path, parts: Sequence[Part], decisions: Decisions, recipe: Recipe, signals: curated.Schema) -> Counts:
    """Write the set's parquet files from the parts, in record order, a part in memory at a time."""
    counts = Counts()
    source = folder / curated.PARTS
    of_part = {key[0]: rows for key, rows in decisions.rows.partition_by("part", as_dict=True).items()}
    nothing = decisions.rows.clear()

    def table(schema: curated.Schema, rows_of: Callable[[Path, int, pl.DataFrame], pl.DataFrame]) -> pl.LazyFrame:
        def batches(*_: object) -> Iterator[pl.DataFrame]:
            for part in parts:
                rows = rows_of(source, part.number, of_part.get(part.number, nothing))
                yield rows.select(pl.col(name).cast(dtype) for name, dtype in schema.items())

        return register_io_source(batches, schema=dict(schema))

    def kept(source: Path, number: int, rows: pl.DataFrame) -> pl.DataFrame:
        return _tally_kept(counts, _kept_rows(source, number, rows))

    def rejected(source: Path, number: int, rows: pl.DataFrame) -> pl.DataFrame:
        return _tally_rejected(counts, _rejected_rows(source, number, rows))

    tables = {
        folder / curated.CONVERSATIONS: table(curated.conversations_schema(signals), kept),
        folder / curated.REJECTED: table(curated.rejected_schema(signals), rejected),
    }
    if recipe.output.originals:
        tables[folder / curated.ORIGINALS] = table(curated.ORIGINALS_SCHEMA, _original_rows)
    curated.sink(tables)
    return counts


def _read(source: Path, number: int, name: str) -> pl.DataFrame:
    return pl.read_ipc(part_file(source, number, name))


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
    originals = _read(source, number, "originals").select("row", "record")
    first = _read(source, number, "kept").filter(pl.col("piece") == 0)
    taken = (
        first.select(pl.exclude("edits", "edit_names", "messages"))
        .join(twins, on="row", how="inner", maintain_order="left")
        .join(originals, on="row", how="left", maintain_order="left")
    )
    taken = taken.with_columns(
        scope=pl.lit("record"),
        rule=pl.lit(DUPLICATES),
        message_range=pl.lit(None, dtype=pl.List(pl.Int32)),
        evidence=pl.lit(None, dtype=pl.String),
        turns=pl.col("source_turns"),
        characters=pl.col("source_characters"),
    )
    dropped = rejected.filter(~pl.col("source_index").is_in(taken["source_index"].implode()))
    both = pl.concat([dropped, taken.select(rejected.columns).cast(rejected.schema)])
    return both.sort("source_index", maintain_order=True)


def _original_rows(source: Path, number: int, rows: pl.DataFrame) -> pl.DataFrame:
    standing = rows.filter(pl.col("twin").is_null()).select("row")
    found = _read(source, number, "originals").filter("changed")
    return found.join(standing, on="row", how="semi", maintain_order="left")


def _tally_kept(counts: Counts, rows: pl.DataFrame) -> pl.DataFrame:
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
    return rows


def _tally_rejected(counts: Counts, rows: pl.DataFrame) -> pl.DataFrame:
    counts.rejected.update(rows.filter(pl.col("scope") == "record")["rule"].to_list())
    counts.exchanges.update(rows.filter(pl.col("scope") == "exchange")["rule"].to_list())
    return rows
