"""Read the conversations that a query selects: from tables with Polars, from dumps as the records stream through."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from itertools import compress, islice
from pathlib import Path

import polars as pl

from curate.conversion.output import Tally
from curate.conversion.readers import InputRecord, read_dump, read_entry, read_table, scan_table, translate_errors
from curate.conversion.writers import Entry, encode
from curate.dataset import columns
from curate.dataset.condition import is_row_by_row, parse_condition
from curate.dataset.query import ROW, TEXT_FIELDS, Query, name_columns, sample_key
from curate.display.figures import number, plural
from curate.errors import InputError, RecordError
from curate.ingest.damaged_records import DamagedRecords

BATCH_RECORDS = 1_000  # of a dump, compared with a condition at once
MAX_NAMES = 5  # in a warning
DUMP: columns.Types = {  # the columns that are known without cleaning
    **{name: columns.CONVERSATION[name] for name in ("id", "source_id", "piece", "split", "model", "metadata")},
    **{name: columns.CONVERSATION[name] for name in ("turns", "characters", "edit_names")},
    **columns.SOURCE,
}
Selected = tuple[InputRecord, Entry]
Damaged = Sequence[DamagedRecords] | None


class NothingSelected(InputError):
    """No conversation matches a query."""


def read_selected(
    source: str | Path,
    query: Query,
    output: Tally,
    warnings: list[str],
    keep: Collection[str] = (),
    damaged: Damaged = None,
) -> Iterator[Selected]:
    """Yield the conversations of a set or a file that a query selects; count the others, leave out what is unreadable.

    Records with a flaw are left out, except by the rules in `keep`. `damaged` is as for `read_dump`. Raises InputError
    if the query cannot be answered, NothingSelected if it selects nothing.
    """
    table = scan_table(source)
    if table is None:
        yield from _select_from_dump(source, query, output, warnings, keep, damaged)
        return
    with translate_errors(source):
        frame = select_rows(source, table[0], query, output, warnings)
        for record, entry in read_table(frame, table[1]):
            output.read += 1
            if entry is not None:
                yield record, entry
            else:
                yield from _read_entries((record,), output, keep)


def select_rows(
    source: str | Path, frame: pl.LazyFrame, query: Query, output: Tally, warnings: list[str]
) -> pl.LazyFrame:
    """Return the rows of a table that a query selects, with their numbers as `ROW`; count the others as read."""
    numbered = frame.with_row_index(ROW)
    if not query:
        return numbered
    if query.split is not None and numbered.select(pl.col("split").is_null().any()).collect().item():
        raise _without_splits(source)
    rows = query.rows(numbered)
    output.read = output.not_selected = numbered.select(pl.len()).collect().item() - len(rows)
    selected = numbered.filter(pl.col(ROW).is_in(pl.Series(rows, dtype=pl.UInt32).implode()))
    if query.ids is not None:
        found = selected.select(name_columns(numbered.collect_schema())).collect(engine="streaming")
        _warn_of_missing(query.ids, (value for column in found.iter_columns() for value in column), warnings)
    if not rows:
        raise _nothing_selected(source)
    return selected


def _select_from_dump(
    source: str | Path, query: Query, output: Tally, warnings: list[str], keep: Collection[str], damaged: Damaged
) -> Iterator[Selected]:
    if query.stratify is not None:
        raise InputError(
            f"cannot stratify {str(source)!r} by {query.stratify!r}: that works on a curated set; clean the file first"
        )
    entries = _read_entries(_count(read_dump(source, warnings, damaged), output), output, keep)
    if not query:
        yield from entries
        return
    found: set[str] = set()
    matches = _filter(str(source), entries, query, output, found)
    if query.sample is not None:
        matches = _sample(matches, query.sample, query.seed, output)
    selected = 0
    for match in matches:
        selected += 1
        yield match
    _warn_of_missing(query.ids or (), found, warnings)
    if not selected:
        raise _nothing_selected(source)


def _count(records: Iterable[InputRecord], output: Tally) -> Iterator[InputRecord]:
    for record in records:
        output.read += 1
        yield record


def _read_entries(records: Iterable[InputRecord], output: Tally, keep: Collection[str]) -> Iterator[Selected]:
    """Yield records as conversations; leave out those that cannot be read."""
    for record in records:
        try:
            entry = read_entry(record, keep)
        except RecordError as error:
            output.leave_out(record, None, error)
            continue
        yield record, entry


def _filter(
    source: str, entries: Iterable[Selected], query: Query, output: Tally, found: set[str]
) -> Iterator[Selected]:
    """Yield the conversations that match; `found` gets the names of those."""
    condition, names = _dump_condition(source, query)
    iterator = iter(entries)
    while batch := list(islice(iterator, BATCH_RECORDS)):
        if query.split is not None and any(entry.split is None for _, entry in batch):
            raise _without_splits(batch[0][0].file)
        frame = pl.DataFrame({name: [_VALUES[name](*item) for item in batch] for name in names}, schema=names)
        matches = frame.with_columns(_=condition.fill_null(False))["_"]
        if query.ids is not None:
            found.update(*frame.filter(matches).select(name_columns(frame.columns)).iter_columns())
        output.not_selected += len(batch) - int(matches.sum())
        yield from compress(batch, matches)


def _dump_condition(source: str, query: Query) -> tuple[pl.Expr, columns.Types]:
    """Return the condition for conversations of a dump, and the columns that it needs."""
    frame = pl.LazyFrame(schema=DUMP)
    if query.where is not None:
        _check_columns(source, query.where)
        if not is_row_by_row(parse_condition(query.where, frame)):
            raise InputError(
                f"cannot use the condition {query.where!r} on {source!r}: it compares conversations with each other, "
                "which works on a curated set; clean the file first"
            )
    condition = query.condition(frame)
    needed = {*condition.meta.root_names(), "id"}
    return condition, {name: dtype for name, dtype in {**DUMP, "messages": TEXTS}.items() if name in needed}


def _check_columns(source: str, where: str) -> None:
    """Raise InputError for a column that only a set has."""
    known = pl.LazyFrame(schema={**columns.conversations_schema({}), **DUMP})
    try:
        names = parse_condition(where, known).meta.root_names()
    except InputError:
        return  # raised again for the columns of a dump, with a hint among those
    for name in names:
        if name not in DUMP:
            raise InputError(
                f"cannot use the condition {where!r} on {source!r}: the column {name!r} is known after cleaning, "
                f"so run curate clean first; known before: {', '.join(DUMP)}"
            )


def _sample(matches: Iterable[Selected], count: int, seed: int, output: Tally) -> Iterator[Selected]:
    """Draw conversations as `Query.rows` does, keeping only those that are drawn so far."""
    heap: list[tuple[int, int, Selected]] = []  # the largest key first
    for position, (record, entry) in enumerate(matches):
        text = "\0".join(f"{message.role}\0{message.content}" for message in entry.conversation.messages)
        item = (-sample_key(text, seed), -position, (InputRecord(record.file, record.index, None), entry))
        if len(heap) < count:
            heapq.heappush(heap, item)
        else:
            output.not_selected += 1
            heapq.heappushpop(heap, item)
    for _, _, match in sorted(heap, key=lambda item: -item[1]):
        yield match


def _warn_of_missing(ids: Collection[str], found: Iterable[str | None], warnings: list[str]) -> None:
    missing = sorted(set(ids).difference(name for name in found if name is not None))
    if missing:
        more = ", …" if len(missing) > MAX_NAMES else ""
        named = ", ".join(map(repr, missing[:MAX_NAMES]))
        count = len(missing)
        warnings.append(f"{number(count)} {plural(count, 'id')} of {number(len(ids))} not found: {named}{more}")


def _nothing_selected(source: str | Path) -> NothingSelected:
    return NothingSelected(f"no conversation of {str(source)!r} matches, so nothing is written")


def _without_splits(source: str | Path) -> InputError:
    return InputError(f"{str(source)!r} has no train and eval split; only a curated set has them")


def _metadata(record: InputRecord, entry: Entry) -> str | None:
    metadata = entry.conversation.metadata
    return encode(metadata).decode() if metadata else None


def _texts(record: InputRecord, entry: Entry) -> list[dict[str, str | None]]:
    return [{name: getattr(message, name) for name in TEXT_FIELDS} for message in entry.conversation.messages]


TEXTS = pl.List(pl.Struct(dict.fromkeys(TEXT_FIELDS, pl.String)))  # of messages, to search
_VALUES: dict[str, Callable[[InputRecord, Entry], object]] = {  # the value of each column of a dump
    "id": lambda record, entry: entry.conversation.source_id,
    "source_id": lambda record, entry: entry.source_id,
    "piece": lambda record, entry: entry.piece,
    "split": lambda record, entry: entry.split,
    "model": lambda record, entry: entry.conversation.model,
    "metadata": _metadata,
    "turns": lambda record, entry: len(entry.conversation.messages),
    "characters": lambda record, entry: sum(len(message.content) for message in entry.conversation.messages),
    "edit_names": lambda record, entry: list(dict.fromkeys(edit.rule for edit in entry.conversation.edits)),
    "source_file": lambda record, entry: record.file,
    "source_index": lambda record, entry: record.index,
    "messages": _texts,
}
