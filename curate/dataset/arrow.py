"""Read a curated set's conversations with pyarrow, in batches that never divide a source.

A batch is the bytes of an Arrow stream, so that worker processes decode it and not the process that reads the file.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from itertools import groupby
from pathlib import Path
from typing import Any

from curate.dataset import manifest
from curate.dataset.checks import check_messages
from curate.errors import InputError, MissingExtra
from curate.schemas.conversation import Message, with_tools

BATCH_ROWS = 1_000
SAMPLED = 8  # row groups that a sample is taken from, at most
COLUMNS = ["id", "piece", "messages", "language", "split", "source_file", "source_index", "branch", "tools"]
REJECTED, METADATA = "rejected_answer", "metadata"
_MESSAGE_FIELDS = tuple(field.name for field in fields(Message) if field.compare)
Source = tuple[str | None, int | None]
Sampled = tuple[int, "list[Row]"]  # the number of a source's first row, and its pieces
Chat = tuple[str | None, int | None, int | None]  # a source with its branch


@dataclass(frozen=True)
class Row:
    """One row of a set: a conversation, or a piece of one."""

    name: str
    piece: int
    messages: list[Message]
    language: str | None
    split: str
    source: Source  # file, and the record's index in it
    branch: int = 0  # which of the record's conversations
    rejected: list[Message] = field(default_factory=list)  # the rejected answer, where it is read
    metadata: str | None = None  # JSON, read with rejected answers, where there is none


def count_rows(folder: Path, limit: int | None = None) -> int:
    """Return how many rows are read at most; `limit` is in sources."""
    rows = int(_open(folder / manifest.CONVERSATIONS).metadata.num_rows)
    return rows if limit is None else min(rows, limit)


def read_batches(folder: Path, limit: int | None = None, *, pairs: bool = False) -> Iterator[bytes]:
    """Yield the first `limit` sources of a set, or all, about BATCH_ROWS rows at a time.

    `pairs` reads rejected answers too, and the metadata, which has those that were not understood.
    """
    columns = [*COLUMNS, REJECTED, METADATA] if pairs else COLUMNS
    pending: list[Any] = []  # record batches; the last source may continue in the next one
    rows = 0
    last: Chat | None = None
    for batch in record_batches(folder / manifest.CONVERSATIONS, columns):
        starts, last = _source_starts(batch, last)
        if limit is not None and len(starts) > limit:
            pending.append(batch.slice(0, starts[limit]))
            break
        limit = None if limit is None else limit - len(starts)
        if starts and rows + starts[-1] >= BATCH_ROWS:
            yield _bytes([*pending, batch.slice(0, starts[-1])])
            pending, rows = [], 0
            batch = batch.slice(starts[-1])
        pending.append(batch)
        rows += len(batch)
    if pending:
        yield _bytes(pending)


def sample_sources(folder: Path, count: int, limit: int | None = None) -> list[Sampled]:
    """Return about `count` of a set's sources, each with the number of its first row: the same ones each time.

    They come from at most SAMPLED row groups, spread evenly over the first `limit` sources or over all.
    """
    file = folder / manifest.CONVERSATIONS
    metadata = _open(file).metadata
    groups = metadata.num_row_groups
    if limit is not None:  # a source has at least one row
        count, groups = min(count, limit), max(1, round(groups * min(1.0, limit / metadata.num_rows)))
    chosen = sorted({index * groups // SAMPLED for index in range(SAMPLED)})
    sampled: list[Sampled] = []
    for place, group in enumerate(chosen):
        row = sum(metadata.row_group(earlier).num_rows for earlier in range(group))
        for source in _first_sources(file, group, (count - len(sampled)) // (len(chosen) - place)):
            if source[0].piece == 0:  # it did not begin in the group before
                sampled.append((row, source))
            row += len(source)
    return sampled


def _first_sources(file: Path, group: int, count: int) -> list[list[Row]]:
    """Return the first sources of a row group, or what the group has of them."""
    rows: list[Row] = []
    for batch in record_batches(file, COLUMNS, rows=2 * count + 2, row_groups=[group]):
        rows += _decode_rows(batch)
        if len(sources := list(group_sources(rows))) > count + 1:
            break  # the last one may continue in the next batch
    return sources[:count] if rows else []


def _source_starts(batch: Any, last: Chat | None) -> tuple[list[int], Chat | None]:
    """Return the rows at which a source starts, and the source of the last row."""
    starts = []
    keys = zip(*(_values(batch, name) for name in ("source_file", "source_index", "branch")), strict=True)
    for row, source in enumerate(keys):
        if source != last or source[1] is None:
            starts.append(row)
        last = source
    return starts, last


def _values(batch: Any, name: str) -> list[Any]:
    """Return a column's values; a set of an earlier version has no branches."""
    return batch.column(name).to_pylist() if name in batch.schema.names else [0] * len(batch)


def _bytes(batches: Sequence[Any]) -> bytes:
    arrow: Any = importlib.import_module("pyarrow")
    out = arrow.BufferOutputStream()
    with arrow.ipc.new_stream(out, batches[0].schema) as stream:
        for batch in batches:
            stream.write_batch(batch)
    return bytes(out.getvalue().to_pybytes())


def decode_batch(batch: bytes) -> list[list[Row]]:
    """Return the sources of a batch, each with its pieces in order."""
    arrow: Any = importlib.import_module("pyarrow")
    with arrow.ipc.open_stream(batch) as stream:
        return list(group_sources(row for part in stream for row in _decode_rows(part)))


def group_sources(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """Yield the rows of each source, its pieces in order."""
    for _, group in groupby(enumerate(rows), key=_source):
        yield sorted((row for _, row in group), key=lambda row: row.piece)


def batch_sources(rows: Iterable[Row], *, joined: bool = True) -> Iterator[list[list[Row]]]:
    """Yield sources, each with its pieces in order, about BATCH_ROWS rows at a time; or each row, unless `joined`."""
    batch: list[list[Row]] = []
    size = 0
    for source in group_sources(rows) if joined else ([row] for row in rows):
        batch.append(source)
        size += len(source)
        if size >= BATCH_ROWS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _source(numbered: tuple[int, Row]) -> tuple[object, ...]:
    """Return a key shared by the pieces of one source; a row without a source index has its own key."""
    number, row = numbered
    return (*row.source, row.branch) if row.source[1] is not None else (number,)


def record_batches(
    file: Path, columns: list[str], *, rows: int = BATCH_ROWS, row_groups: list[int] | None = None
) -> Iterator[Any]:
    """Yield columns of a Parquet file as pyarrow record batches, of all row groups or of some.

    Raises InputError if the file is damaged.
    """
    parquet = _open(file)
    try:
        present = [name for name in columns if name in parquet.schema_arrow.names]
        yield from parquet.iter_batches(rows, columns=present, row_groups=row_groups)
    except (OSError, ValueError) as error:  # pyarrow's errors are ValueErrors or OSErrors
        raise _to_input_error(file, error) from error


def _open(file: Path) -> Any:
    try:
        parquet: Any = importlib.import_module("pyarrow.parquet")
    except ModuleNotFoundError:
        raise MissingExtra("reading a set for training", "train") from None
    try:
        return parquet.ParquetFile(file)
    except (OSError, ValueError) as error:
        raise _to_input_error(file, error) from error


def _to_input_error(file: Path, error: Exception) -> InputError:
    return InputError(f"cannot read {str(file)!r}: {str(error).splitlines()[0]}")


def _decode_rows(batch: Any) -> Iterator[Row]:
    """Yield a record batch's rows. Messages are read by column, which takes a fifth of the time of reading rows.

    Raises SetError for a message without a known role or without a text.
    """
    lists = batch.column("messages")
    flat = lists.flatten()
    check_messages(flat.field("role").unique().to_pylist(), flat.field("content").null_count)
    names = [name for name in _MESSAGE_FIELDS if flat.type.get_field_index(name) >= 0]  # older sets have fewer
    messages = [
        Message(**dict(zip(names, values, strict=True)))
        for values in zip(*(flat.field(name).to_pylist() for name in names), strict=True)
    ]
    counts = lists.value_lengths().fill_null(0).to_pylist()
    start = 0
    values = [_values(batch, name) for name in COLUMNS if name != "messages"]
    rejected, metadata = (
        _values(batch, name) if name in batch.schema.names else [None] * len(batch) for name in (REJECTED, METADATA)
    )
    rows = zip(counts, rejected, metadata, zip(*values, strict=True), strict=True)
    for count, answer, more, (name, piece, language, split, file, index, branch, tools) in rows:
        own = with_tools(messages[start : start + count], tools)
        other = with_tools([Message(**message) for message in answer or ()], tools)
        yield Row(
            name,
            piece or 0,
            own,
            language,
            split or "train",
            (file, index),
            branch or 0,
            other,
            None if other else more,
        )
        start += count
