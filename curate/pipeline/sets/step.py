"""The step that makes parts of a set's rows: records whose outcome is known are copied, others are cleaned again."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import polars as pl

from curate.dataset import columns
from curate.dataset.condition import parse_condition
from curate.errors import SetError
from curate.filters import verdicts
from curate.ingest.decode import Chunk
from curate.ingest.text.spans import RecordSpan
from curate.pipeline.frames import part_file
from curate.pipeline.near import parts as near_parts
from curate.pipeline.recipe import InputSettings, Recipe
from curate.pipeline.sets import stored
from curate.pipeline.sets.changes import DROPPED_BY_USER, KEPT_BY_USER, WHERE, measured_columns, score_columns
from curate.pipeline.sets.rejects import INDEX, OUTCOME, SHOWN, Judge
from curate.pipeline.sets.stored import CHAT, OF_SET, RECORD, Slice, StoredSet
from curate.pipeline.steps import Cleaner, CleanerFactory, Part
from curate.pipeline.tables.rows import add_edit

NOT_AS_PARSED = ("media_removed", "fold_system", "train_joined")  # edits after which messages have other hashes
OWN_RECORD = b'"piece":null'  # in the bytes of a record that curate wrote
VERDICT = {"row": pl.UInt32(), **OUTCOME}
PLACE = pl.format("{}:{}", *RECORD).alias("place")
IS_PIECE = pl.col("id").str.ends_with(pl.format("_{}", "piece")) & (pl.len().over("row") > 1)
BASE_ID = pl.when(IS_PIECE).then(pl.col("id").str.replace(r"_\d+$", "")).otherwise("id")
NAMES = [pl.col("id"), BASE_ID.alias("base"), pl.col("source_id"), PLACE]  # of a kept piece
Tables = dict[str, pl.DataFrame]


@dataclass(frozen=True)
class Asked:
    """What a user asked for beside a recipe: conversations to drop and to keep, by name, and a condition."""

    drop: frozenset[str] = frozenset()
    keep: frozenset[str] = frozenset()
    where: str | None = None


@dataclass(frozen=True)
class Source:
    """A set to read: the recipe that it was made with, the new one, and what was asked.

    `exact`: each conversation must be as `clean` would make it, or the run fails. `keeps_split`: the set's own train
    and eval hold, before those of sets with a higher number.
    """

    stored: StoredSet
    old: Recipe
    new: Recipe
    asked: Asked = Asked()
    exact: bool = True
    keeps_split: bool = False


@dataclass(frozen=True)
class SetPart(Part):
    """A part made of a set's rows: names that were `found`, and why records that were to be kept are not."""

    found: frozenset[str] = frozenset()
    refused: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class RecordTask:
    """Rows of a part whose records must be in its table of originals: those that are rejected or changed."""

    number: int
    rows: tuple[int, ...]


@dataclass(frozen=True)
class SetFactory:
    """Builds the step in each worker: small and picklable."""

    sources: Sequence[Source]
    parts: Path

    def __call__(self) -> SetCleaner:
        return SetCleaner(self)


class SetCleaner:
    """The step that `curate.engine` runs: makes parts of slices of sets; any other task is a `Cleaner`'s."""

    def __init__(self, factory: SetFactory) -> None:
        self.slicers = [_Slicer(source, number, factory.parts) for number, source in enumerate(factory.sources)]

    def __call__(self, task: Any) -> Any:
        """Make a part of a slice, put records into a part's originals, or what `Cleaner` does."""
        if isinstance(task, Slice):
            return self.slicers[task.set].make_part(task)
        if isinstance(task, RecordTask):
            return self._write_records(task)
        return self.slicers[0].cleaner(task)

    def _write_records(self, task: RecordTask) -> None:
        cleaner = self.slicers[0].cleaner
        kept, originals = (
            pl.read_ipc(part_file(cleaner.parts, task.number, name).read_bytes()) for name in ("kept", "originals")
        )
        tables = {"kept": kept, "originals": originals}
        _fill_records(tables, pl.Series(task.rows, dtype=pl.UInt32))
        cleaner.write(task.number, {"originals": tables["originals"]})


class _Slicer:
    """Makes the parts of one set."""

    def __init__(self, source: Source, number: int, parts: Path) -> None:
        self.source = source
        self.number = number
        self.cleaner = Cleaner(CleanerFactory(source.new, parts))
        self.unfiltered = copy.copy(self.cleaner)  # for records that the user keeps
        self.unfiltered.verdicts = verdicts.Filters({})
        self.judge = Judge(source.old, source.new)
        self.filters = verdicts.Filters(self.judge.changed)
        self.measured = measured_columns(source.new)
        self.scored = score_columns(source.new)

    def make_part(self, task: Slice) -> SetPart:
        """Write the part of a slice."""
        read = {name: stored.read_rows(self.source.stored, task, name) for name in stored.TABLES}
        kept, rejected, originals = (read[name] for name in stored.TABLES)
        kept = stored.with_rows(kept)
        rejected = rejected.with_row_index(INDEX)
        self.cleaner.scores = self.unfiltered.scores = self._known_scores(kept, rejected)
        wanted = self._find_wanted(kept, rejected)
        again, outcomes = self.judge.judge(rejected)
        again = pl.concat([again, wanted.filter("named").select(RECORD), self._find_changed(kept, rejected)]).unique()
        again = self._with_bytes(again, rejected, originals)
        same, lost = (rows.join(again, on=RECORD, how="anti", maintain_order="left") for rows in (kept, rejected))
        parts = [self._copy(same, lost, originals, outcomes, wanted), *self._clean(again, wanted)]
        batch = _concatenate(parts)
        old = kept.select("row", *CHAT, "piece", *OF_SET)
        batch.tables["kept"] = batch.tables["kept"].join(
            old.drop("row"), on=[*CHAT, "piece"], how="left", maintain_order="left"
        )
        verdict = pl.concat([batch.verdict, self._apply_asked(batch.tables["kept"], wanted)])
        verdict = verdict.unique("row", keep="first", maintain_order=True)
        records = stored.number_records([kept, rejected], self.source.stored, task)
        found, refused = self._find_named(batch.tables, rejected, wanted)
        tables = {name: _in_order(table, records) for name, table in batch.tables.items()}
        _fill_records(tables, verdict["row"])
        tables["kept"] = tables["kept"].drop(OF_SET)
        self.cleaner.write(task.number, tables)
        if batch.texts is not None:
            rows = 1 + max(batch.summary["row"], default=-1)
            near_parts.write_texts(self.cleaner.parts, task.number, batch.texts, rows)
        summary = self._finish_summary(batch.summary, records, old, wanted, verdict)
        path = part_file(self.cleaner.parts, task.number, "summary")
        summary.write_ipc(path)
        records_read = tables["rejected"].filter(pl.col("scope") == "record")["rule"]
        return SetPart(
            task.number,
            read=records_read.len() + tables["kept"]["row"].n_unique(),
            rejected=Counter(records_read.to_list()),
            alone=Counter(),
            summary=pl.scan_ipc(path),
            seconds={},
            verdicts=verdict,
            found=found,
            refused=refused,
        )

    def _known_scores(self, kept: pl.DataFrame, rejected: pl.DataFrame) -> pl.DataFrame | None:
        """Return what a model has measured of each conversation, for those that are cleaned again."""
        if not self.scored:
            return None
        rows = [kept, rejected.filter(pl.col("scope") == "record")]
        known = pl.concat([each.select(*CHAT, *self.scored) for each in rows])
        return known.filter(pl.any_horizontal(pl.col(self.scored).is_not_null())).unique(CHAT, keep="first")

    def _find_wanted(self, kept: pl.DataFrame, rejected: pl.DataFrame) -> pl.DataFrame:
        """Return the chats that the user keeps, with the rule and reason they were rejected with; `named`: just now."""
        edit = pl.col("edits").list.eval(pl.element().filter(pl.element().struct.field("rule") == KEPT_BY_USER))
        before = kept.filter(pl.col("edit_names").list.contains(KEPT_BY_USER) & (pl.col("piece") == 0)).select(
            *CHAT,
            rule=edit.list.first().struct.field("before"),
            reason=edit.list.first().struct.field("after"),
            named=pl.lit(False),
        )
        names = list(self.source.asked.keep)
        named = rejected.filter((pl.col("scope") == "record") & _is_named(names, ["source_id", PLACE]))
        return pl.concat([before, named.select(*CHAT, "rule", "reason", named=pl.lit(True))]).unique(CHAT)

    def _find_changed(self, kept: pl.DataFrame, rejected: pl.DataFrame) -> pl.DataFrame:
        """Return the kept records whose messages are not those that filters and hashes see in `clean`."""
        lost = kept.join(rejected, on=RECORD, how="semi")
        odd = pl.col("edit_names").list.eval(pl.element().is_in(NOT_AS_PARSED)).list.any()
        if self.source.new.tokens.overlong == "cut":
            odd = odd | ~pl.col("messages").list.last().struct.field("stop")
        return pl.concat([lost.select(RECORD), kept.filter(odd).select(RECORD)]).unique()

    def _with_bytes(self, again: pl.DataFrame, rejected: pl.DataFrame, originals: pl.DataFrame) -> pl.DataFrame:
        """Add the bytes of each record; those without any are left out, or an error."""
        known = pl.concat([rejected.select(*RECORD, "record"), originals.select(*RECORD, "record")]).drop_nulls(
            "record"
        )
        joined = again.join(known.unique(RECORD, keep="first", maintain_order=True), on=RECORD, how="left")
        missing = joined.filter(pl.col("record").is_null())
        if missing.height and self.source.exact:
            place = ":".join(map(str, missing.select(RECORD).row(0)))
            raise SetError(
                f"{str(self.source.stored.folder)!r} lacks the original bytes of {place}, which it changed; it was "
                "written with --no-originals, so clean the dump again"
            )
        return joined.drop_nulls("record").sort(RECORD)

    def _copy(
        self,
        kept: pl.DataFrame,
        rejected: pl.DataFrame,
        originals: pl.DataFrame,
        outcomes: pl.DataFrame,
        wanted: pl.DataFrame,
    ) -> _Batch:
        """Return the rows that need not be cleaned again, with the verdicts of the filters that have changed."""
        conversations = stored.join_pieces(kept)
        rejected = rejected.update(outcomes, on=INDEX, include_nulls=True).with_columns(
            pl.lit(None, pl.UInt32).alias(name) for name in ("row", "number", "kept_row")
        )
        bytes_of = originals.select(*RECORD, "record")
        changed = conversations.select("row", *RECORD).join(bytes_of, on=RECORD, how="left", maintain_order="left")
        tables = {
            "kept": stored.kept_table(kept, conversations).drop(*OF_SET, "pieces"),
            "originals": changed.with_columns(changed=pl.col("record").is_not_null()),
            "rejected": rejected.select(*columns.PART_REJECT, *self.measured),
        }
        filtered = conversations.join(wanted, on=CHAT, how="anti", maintain_order="left")
        verdict = pl.DataFrame(schema=VERDICT)
        if self.judge.changed and filtered.height:
            outcome = self.filters.apply(stored.with_texts(filtered)).select(SHOWN)
            verdict = filtered.select("row").hstack(outcome).filter(pl.col("rule").is_not_null())
        cleaner = self.cleaner
        messages = stored.explode(conversations)
        texts = near_parts.compared_texts(messages, conversations, cleaner.near, cleaner.caps_prompts)
        summary = stored.summarise(conversations, messages).hstack(conversations.select(cleaner.groups))
        return _Batch(tables, summary, verdict, texts)

    def _clean(self, again: pl.DataFrame, wanted: pl.DataFrame) -> list[_Batch]:
        """Clean records again from their bytes."""
        named = again.join(wanted, on=RECORD, how="semi", maintain_order="left")
        others = again.join(wanted, on=RECORD, how="anti", maintain_order="left")
        own = pl.col("record").bin.contains(OWN_RECORD)
        batches = [
            self._clean_records(others.filter(~own), self.cleaner),
            self._clean_records(others.filter(own), _read_any(self.cleaner)),
            self._clean_records(named.filter(~own), self.unfiltered),
            self._clean_records(named.filter(own), _read_any(self.unfiltered)),
        ]
        for batch in batches[2:]:
            if batch is not None:
                batch.tables["kept"] = _note_kept(batch.tables["kept"], wanted)
        return [batch for batch in batches if batch is not None]

    def _clean_records(self, records: pl.DataFrame, cleaner: Cleaner) -> _Batch | None:
        if records.is_empty():
            return None
        chunks = [
            Chunk(file, index, 1, 0, raw, (RecordSpan(0, len(raw), 1, "record"),))
            for file, index, raw in records.rows()
        ]
        cleaned = cleaner.clean_chunks(0, chunks)
        return _Batch(cleaned.tables, cleaned.summary, pl.DataFrame(schema=VERDICT), cleaned.texts)

    def _apply_asked(self, kept: pl.DataFrame, wanted: pl.DataFrame) -> pl.DataFrame:
        """Return the verdicts on what the user drops, and on what the condition does not select."""
        asked = self.source.asked
        rows = kept.filter(_is_named(list(asked.drop), NAMES)).select("row").unique(maintain_order=True)
        verdicts_ = [_verdict(rows, DROPPED_BY_USER, "named by --drop")]
        if asked.where is not None:
            whole = _whole_conversations(kept).join(wanted, on=CHAT, how="anti", maintain_order="left")
            condition = parse_condition(asked.where, whole.lazy())
            selected = whole.filter(~condition.fill_null(False)).select("row")
            verdicts_.append(_verdict(selected, WHERE, f"not selected by {asked.where}"))
        return pl.concat(verdicts_)

    def _find_named(
        self, tables: Tables, rejected: pl.DataFrame, wanted: pl.DataFrame
    ) -> tuple[frozenset[str], dict[str, str]]:
        """Return which of the user's names were found, and the rule that rejects one that was to be kept."""
        asked = self.source.asked
        named = [*asked.drop, *asked.keep]
        if not named:
            return frozenset(), {}
        candidates = pl.concat(
            [tables["kept"].select(NAMES), rejected.select(NAMES[2:])],
            how="diagonal",
        )
        found = {value for column in candidates.iter_columns() for value in column.unique()} & set(named)
        left = tables["rejected"].filter(pl.col("scope") == "record").join(wanted.filter("named"), on=CHAT, how="semi")
        refused = {
            name: row["rule"]
            for row in left.select("rule", "source_id", PLACE).iter_rows(named=True)
            for name in (row["source_id"], row["place"])
            if name in asked.keep
        }
        return frozenset(found), refused

    def _finish_summary(
        self,
        summary: pl.DataFrame,
        records: pl.DataFrame,
        old: pl.DataFrame,
        wanted: pl.DataFrame,
        verdict: pl.DataFrame,
    ) -> pl.DataFrame:
        """Return the summary in record order, with the set's own split and what the user keeps."""
        gone = pl.col("row").is_in(verdict["row"].implode())
        summary = (
            _in_order(summary, records).with_columns(pieces=pl.when(gone).then(0).otherwise("pieces")).drop("number")
        )
        if wanted.height:
            protected = wanted.select(*CHAT, protected=pl.lit(True))
            summary = summary.join(protected, on=CHAT, how="left", maintain_order="left")
        if self.source.keeps_split:
            first = old.with_columns(id=BASE_ID).filter(pl.col("piece") == 0)
            splits = first.select(*CHAT, earlier_split="split", earlier_id="id")
            summary = summary.join(splits, on=CHAT, how="left", maintain_order="left").with_columns(
                set=pl.lit(self.number, pl.UInt32)
            )
        return summary


@dataclass(frozen=True)
class _Batch:
    """Tables of a part with their summary, and the verdicts on kept rows; rows are numbered within the batch."""

    tables: Tables
    summary: pl.DataFrame
    verdict: pl.DataFrame
    texts: pl.DataFrame | None


def _concatenate(batches: Sequence[_Batch]) -> _Batch:
    """Return one batch, in which each conversation has a row number of its own."""
    tables: dict[str, list[pl.DataFrame]] = {"kept": [], "originals": [], "rejected": []}
    summaries, verdict, texts, offset = [], [], [], 0
    for batch in batches:
        for name, rows in batch.tables.items():
            tables[name].append(_shift_rows(rows, offset))
        summaries.append(_shift_rows(batch.summary, offset))
        verdict.append(_shift_rows(batch.verdict, offset))
        if batch.texts is not None:
            texts.append(_shift_rows(batch.texts, offset))
        offset += 1 + max(batch.summary["row"], default=0)
    together = {name: pl.concat(rows, how="diagonal") for name, rows in tables.items()}
    return _Batch(together, pl.concat(summaries), pl.concat(verdict), pl.concat(texts) if texts else None)


def _shift_rows(rows: pl.DataFrame, offset: int) -> pl.DataFrame:
    """Return a table of a batch with its row numbers raised by the rows of the batches before it."""
    numbers = [column for column in ("row", "kept_row") if column in rows.columns]
    return rows.with_columns((pl.col(column) + offset).cast(pl.UInt32) for column in numbers)


def _in_order(rows: pl.DataFrame, records: pl.DataFrame) -> pl.DataFrame:
    """Return rows in record order, with the `number` of their record in the slice."""
    numbered = rows.drop("number", strict=False).join(records, on=RECORD, how="left", maintain_order="left")
    return numbered.sort("number", *(["branch"] if "branch" in rows.columns else ["row"]), maintain_order=True)


def _read_any(cleaner: Cleaner) -> Cleaner:
    """Return the cleaner for records that curate wrote, whatever format and columns the dump has."""
    other = copy.copy(cleaner)
    other.options = replace(InputSettings().read_options(), ratings=cleaner.options.ratings)
    return other


def _note_kept(kept: pl.DataFrame, wanted: pl.DataFrame) -> pl.DataFrame:
    """Add the edit that says that the user keeps a conversation, and what rejected it."""
    noted = kept.join(wanted.select(*CHAT, "rule", "reason"), on=CHAT, how="left", maintain_order="left")
    edited = add_edit(noted, KEPT_BY_USER, before=pl.col("rule"), after=pl.col("reason"))
    return edited.drop("rule", "reason")


def _is_named(names: Sequence[str], by: Sequence[str | pl.Expr]) -> pl.Expr:
    columns_ = [pl.col(name) if isinstance(name, str) else name for name in by]
    return pl.any_horizontal(column.is_in(names).fill_null(False) for column in columns_) if names else pl.lit(False)


def _verdict(rows: pl.DataFrame, rule: str, reason: str) -> pl.DataFrame:
    values = {"rule": rule, "reason": reason, "evidence": None}
    return rows.select(
        pl.col("row").cast(pl.UInt32), *(pl.lit(value, pl.String).alias(key) for key, value in values.items())
    )


def _whole_conversations(kept: pl.DataFrame) -> pl.DataFrame:
    """Return one row for each conversation, with the tokens of all its pieces."""
    sums = kept.group_by("row", maintain_order=True).agg(pl.col("tokens", "prompt_tokens", "answer_tokens").sum())
    first = kept.filter(pl.col("piece") == 0).drop("tokens", "prompt_tokens", "answer_tokens", "turns", "characters")
    whole = first.rename({"source_turns": "turns", "source_characters": "characters"}).with_columns(id=BASE_ID)
    return whole.join(sums, on="row", maintain_order="left")


def _fill_records(tables: Tables, rows: pl.Series) -> None:
    """Put the records of these rows, in curate's own form, where their bytes in the dump are not known; in place."""
    originals = tables["originals"]
    empty = originals.filter(pl.col("record").is_null() & pl.col("row").is_in(rows.implode()))
    if empty.is_empty():
        return
    pieces = tables["kept"].join(empty, on="row", how="semi", maintain_order="left").with_columns(id=pl.lit(""))
    conversations = stored.join_pieces(pieces)
    records = pl.DataFrame(
        {
            "row": conversations["row"],
            "record": [stored.encode_record(row) for row in conversations.iter_rows(named=True)],
        },
        schema={"row": pl.UInt32, "record": pl.Binary},
    )
    tables["originals"] = originals.update(records, on="row")
