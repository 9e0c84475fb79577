"""The rows of the set's tables, by part: how they are read, counted beforehand, and counted once they are written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path

import polars as pl

from curate.dataset import curated_set
from curate.dataset import manifest as manifests
from curate.errors import BalanceError
from curate.ingest.damaged_records import DAMAGED_STREAM
from curate.pipeline.frames import count_turn_keys, read_final
from curate.pipeline.sets.earlier import CONTINUES
from curate.schemas.conversation import EXCERPT

ReadRows = Callable[[Path, int, pl.DataFrame], pl.DataFrame]  # folder of parts, part number, its decisions → rows
CountRows = Callable[[Path, int, pl.DataFrame], int]  # the number of these, without reading them
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


def _no_tally(counts: Counts, rows: pl.DataFrame) -> None:
    """Count nothing."""


def _kept_rows(source: Path, number: int, rows: pl.DataFrame) -> pl.DataFrame:
    kept = rows.filter(pl.col("rule").is_null()).select("row", "id", "cluster", "split", "pieces", "doubt", "continues")
    pieces = read_final(source, number, "kept")
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
    rejected = read_final(source, number, "rejected")
    if decided.is_empty():
        return rejected
    originals = read_final(source, number, "originals").select("row", "record").join(decided, on="row", how="semi")
    first = read_final(source, number, "kept").select(LIGHT_COLUMNS).filter(pl.col("piece") == 0)
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
    changed = read_final(source, number, "originals").filter("changed")
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


def _count_kept(source: Path, number: int, rows: pl.DataFrame) -> int:
    return int(rows.filter(pl.col("rule").is_null())["pieces"].sum())


def _count_rejected(source: Path, number: int, rows: pl.DataFrame) -> int:
    return read_final(source, number, "rejected").height + int(rows["rule"].is_not_null().sum())


def _count_originals(source: Path, number: int, rows: pl.DataFrame) -> int:
    kept = rows.filter(pl.col("rule").is_null())["row"]
    changed = read_final(source, number, "originals").select("row", "number", "changed").filter("changed")
    return changed.filter(pl.col("row").is_in(kept.implode()))["number"].n_unique()


@dataclass(frozen=True)
class SetTable:
    """How the rows of one table are read from a part, and counted before and after."""

    read: ReadRows
    count_rows: CountRows
    tally: Callable[[Counts, pl.DataFrame], None]


TABLES = {
    curated_set.CONVERSATIONS: SetTable(_kept_rows, _count_kept, _tally_kept),
    curated_set.REJECTED: SetTable(_rejected_rows, _count_rejected, _tally_rejected),
    curated_set.ORIGINALS: SetTable(_original_rows, _count_originals, _no_tally),
}
