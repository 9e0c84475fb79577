"""Select conversations of a curated set to show: by id, condition, text or rejecting rule, or at random."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from curate.analysis import conversations
from curate.analysis.conversations import ConversationView
from curate.analysis.explanation import find_records, is_chat, unknown_id
from curate.dataset.condition import parse_condition
from curate.dataset.curated_set import CuratedSet, open_set, translate_errors
from curate.dataset.query import ROW, Query, check_text, draw
from curate.display.displayed import Displayed
from curate.display.figures import number, plural
from curate.errors import InputError, did_you_mean
from curate.remote.sets import fetch_set

BATCH_ROWS = 1_000  # of a pass over all of them


@dataclass(frozen=True)
class Selection(Displayed):
    """Conversations of a set, read on access: `kept` and `rejected` are row numbers of the two tables."""

    set: CuratedSet
    kept: Sequence[int]
    rejected: Sequence[int]

    def __len__(self) -> int:
        return len(self.kept) + len(self.rejected)

    def describe_size(self) -> str:
        """Return how many pieces of the set and how many rejects these are, such as `4 pieces`."""
        counts = [(len(self.kept), "piece"), (len(self.rejected), "reject")]
        shown = [f"{number(count)} {plural(count, noun)}" for count, noun in counts if count]
        return " and ".join(shown) or "0 pieces"

    def __iter__(self) -> Iterator[ConversationView]:
        with translate_errors(self.set):
            for batch in self.kept_batches():
                yield from map(conversations.view_kept, batch.iter_rows(named=True))
        for start in range(len(self.kept), len(self), BATCH_ROWS):
            yield from self.read(start, BATCH_ROWS)

    def __getitem__(self, index: int) -> ConversationView:
        count = len(self)
        if not -count <= index < count:
            raise IndexError(f"index {index} of {self.describe_size()}")
        return self.read(index % count, 1)[0]

    def read(self, start: int, count: int) -> list[ConversationView]:
        """Return `count` conversations from index `start`; raises SetError if the set is damaged."""
        with translate_errors(self.set):
            views = conversations.read_kept(self.set, self.kept[start : start + count])
            first = max(0, start - len(self.kept))
            remaining = count - len(views)
            return views + (
                conversations.read_rejected(self.set, self.rejected[first : first + remaining]) if remaining > 0 else []
            )

    def kept_batches(self) -> Iterator[pl.DataFrame]:
        """Yield the rows of conversations.parquet in batches, in one pass over the file if there are many."""
        if 0 < len(self.kept) <= BATCH_ROWS or list(self.kept) != sorted(set(self.kept)):
            for start in range(0, len(self.kept), BATCH_ROWS):
                yield conversations.gather(self.set.conversations(), self.kept[start : start + BATCH_ROWS])
        elif self.kept:
            chosen = pl.Series(self.kept, dtype=pl.UInt32).implode()
            rows = self.set.conversations().with_row_index(ROW).filter(pl.col(ROW).is_in(chosen)).drop(ROW)
            yield from rows.collect_batches(chunk_size=BATCH_ROWS, maintain_order=True)

    def head(self, count: int) -> Selection:
        """Return the first `count` conversations."""
        kept = self.kept[:count]
        return Selection(self.set, kept, self.rejected[: count - len(kept)])


def show(
    ids: str | Sequence[str] = (),
    set_path: str | Path = "curated",
    *,
    where: str | None = None,
    search: str | None = None,
    random: int | None = None,
    seed: int | None = None,
    rejected: str | bool = False,
) -> Selection:
    """Select conversations of a set; all of them without further arguments.

    `ids`: ids in the set, source ids, or `file:index`. `where` is an SQL condition over the columns, `search` a
    text in any message, ignoring case. `random` draws that many of the matches. `rejected` selects rejected records,
    or those of one rule if it is a rule's name. Raises SetError or InputError in one line.
    """
    curated = open_set(fetch_set(set_path))
    names = [ids] if isinstance(ids, str) else list(ids)
    if names and (where or search or random):
        raise InputError("give ids, or a search (where, search, random), not both")
    with translate_errors(curated):
        selection = (
            _select_ids(curated, names, bool(rejected)) if names else _select_matches(curated, where, search, rejected)
        )
    return selection if random is None else _sample(selection, random, seed)


def _select_matches(curated: CuratedSet, where: str | None, search: str | None, rejected: str | bool) -> Selection:
    if not rejected:
        return Selection(curated, Query(where, search).rows(curated.conversations().with_row_index(ROW)), ())
    frame = curated.rejected().with_row_index(ROW)
    condition = parse_condition(where, curated.rejected()) if where is not None else pl.lit(True)
    if isinstance(rejected, str):
        _check_rule(curated, rejected)
        frame = frame.filter(pl.col("rule") == rejected)
    if search:
        condition = condition & _record_contains(search)
    return Selection(curated, (), _rows(frame, condition))


def _check_rule(curated: CuratedSet, rule: str) -> None:
    rules = curated.rejected().select(pl.col("rule").unique()).collect().to_series().drop_nulls().to_list()
    if rule not in rules:
        raise InputError(f"no record was rejected by {rule!r}{did_you_mean(rule, rules)}")


def _record_contains(text: str) -> pl.Expr:
    """Match rejects whose record, reason or evidence contains a text, literally or as escaped in JSON."""
    check_text(text)
    forms = {text, text.lower(), text.upper()}  # escapes of non-ASCII letters differ between upper and lower case
    spellings = {text} | {json.dumps(form, ensure_ascii=escaped)[1:-1] for form in forms for escaped in (True, False)}
    pattern = f"(?i){'|'.join(pl.escape_regex(form) for form in sorted(spellings))}"
    record = pl.col("record").map_batches(_decode, return_dtype=pl.String)
    return pl.any_horizontal(
        column.str.contains(pattern).fill_null(False) for column in (record, pl.col("reason"), pl.col("evidence"))
    )


def _decode(records: pl.Series) -> pl.Series:
    """Return bytes as text; Polars' own cast fails the whole column for one record that is not UTF-8."""
    return pl.Series([record and record.decode("utf-8", "replace") for record in records], dtype=pl.String)


def _select_ids(curated: CuratedSet, names: Sequence[str], rejected: bool) -> Selection:
    """Return the rows that the ids name: a piece by its own id, else all pieces of a record, else its rejections."""
    kept: list[int] = []
    rejected_rows: list[int] = []
    kept_rows, lost_rows = (frame.with_row_index(ROW) for frame in (curated.conversations(), curated.rejected()))
    for name in names:
        pieces = [] if rejected else _rows(kept_rows, pl.col("id") == name)
        keys = [] if pieces else find_records(curated, name)
        if not pieces and not keys:
            raise unknown_id(curated, name)
        is_record = pl.any_horizontal(
            pl.lit(False),
            *(is_chat(*key) for key in keys),
        )
        rows = pieces or (_rows(kept_rows, is_record) if not rejected else [])
        kept += rows
        if not rows:
            rejected_rows += _rows(lost_rows, is_record)
    if rejected and not rejected_rows:
        raise InputError(f"no part of {', '.join(map(repr, names))} was rejected; leave out --rejected")
    return Selection(curated, tuple(dict.fromkeys(kept)), tuple(dict.fromkeys(rejected_rows)))


def _rows(frame: pl.LazyFrame, condition: pl.Expr) -> list[int]:
    return frame.filter(condition).select(ROW).collect(engine="streaming").to_series().sort().to_list()


def _sample(selection: Selection, count: int, seed: int | None) -> Selection:
    """Draw `count` conversations without replacement; the same for the same seed."""
    drawn = draw(len(selection), count, seed)
    kept_count = len(selection.kept)
    kept = tuple(selection.kept[index] for index in drawn if index < kept_count)
    return Selection(
        selection.set, kept, tuple(selection.rejected[index - kept_count] for index in drawn if index >= kept_count)
    )
