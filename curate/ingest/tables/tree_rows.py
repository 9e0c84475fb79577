"""Group rows that are one message each, and name the one that they answer, into trees (OASST's flat files).

A tree becomes one record, `{message_tree_id, tree_rows: [row, …]}`, at the place of its first row. Its rows are usually
next to each other; up to `HELD_BYTES` of rows may lie between them. A row that no path of rows links to the first
message of its tree, because another is missing, is too far away or has the same id, stays a record of its own, which
its format rejects by id. Without `message_tree_id`, a row must follow the one that it answers.

Source: https://huggingface.co/datasets/OpenAssistant/oasst2 (the columns of its rows).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import msgspec

from curate.ingest.decode import Chunk, RawRecord, decode_records
from curate.ingest.tables.table import Rows, Table, encode_rows
from curate.ingest.text.spans import TextChunk
from curate.schemas.formats.datasets.oasst import ROWS_KEY, recognises_row

COLUMNS = frozenset({"message_id", "parent_id", "role", "text"})
HELD_BYTES = 16 << 20  # of rows whose trees may go on
BLOCK_BYTES = 1 << 18  # of records that are passed on at once


class Row(NamedTuple):
    """One message: its line of JSON, its id, that of the one it answers (empty for the first), and its tree's."""

    line: bytes
    id: str
    parent: str = ""
    tree: str = ""


@dataclass(slots=True)
class _Tree:
    """The rows of one tree so far."""

    rows: list[Row] = field(default_factory=list)
    bytes: int = 0


@dataclass
class TreeGrouper:
    """Collects rows in their order, and yields records: trees, single rows, and what is no row of a tree."""

    held_bytes: int = HELD_BYTES
    _open: dict[str, _Tree | Rows | bytes] = field(default_factory=dict)  # in the order of their first rows
    _trees: dict[str, str] = field(default_factory=dict)  # of messages in open trees, by id, for rows that name none
    _bytes: int = 0
    _others: int = 0

    def add(self, row: Row | Rows | bytes) -> Iterator[Rows | bytes]:
        """Take a row, a lost one or the line of another record; yield the records that are complete by then."""
        if not isinstance(row, Row):
            self._hold(row)
        elif name := row.tree or (self._trees.get(row.parent, "") if row.parent else row.id):
            self._extend(name, row)
        else:
            self._hold(row.line)
        while self._bytes > self.held_bytes:
            yield from self._close(next(iter(self._open)))

    def finish(self) -> Iterator[Rows | bytes]:
        """Yield the records that are left."""
        for key in list(self._open):
            yield from self._close(key)

    def _hold(self, other: Rows | bytes) -> None:
        """Keep another record at its place among the trees."""
        self._others += 1
        self._open[f"\0{self._others}"] = other
        self._bytes += _size(other)

    def _extend(self, name: str, row: Row) -> None:
        tree = self._open.setdefault(name, _Tree())
        assert isinstance(tree, _Tree)
        tree.rows.append(row)
        tree.bytes += len(row.line)
        self._bytes += len(row.line)
        if not row.tree:
            self._trees[row.id] = name

    def _close(self, key: str) -> Iterator[Rows | bytes]:
        entry = self._open.pop(key)
        self._bytes -= _size(entry)
        if not isinstance(entry, _Tree):
            yield entry
            return
        for row in entry.rows:
            self._trees.pop(row.id, None)
        yield from _records(key, entry.rows)


def _size(entry: _Tree | Rows | bytes) -> int:
    if isinstance(entry, bytes):
        return len(entry)
    return entry.bytes if isinstance(entry, _Tree) else len(entry.data)


def _records(name: str, rows: Sequence[Row]) -> Iterator[bytes]:
    """Yield the line of a tree, and those of the rows that are not linked to its first message."""
    linked = _linked(name, rows)
    members = [row.line.strip() for row, is_linked in zip(rows, linked, strict=True) if is_linked]
    if members:
        yield b'{"message_tree_id":%b,"%b":[%b]}\n' % (
            msgspec.json.encode(name),
            ROWS_KEY.encode(),
            b",".join(members),
        )
    yield from (row.line for row, is_linked in zip(rows, linked, strict=True) if not is_linked)


def _linked(name: str, rows: Sequence[Row]) -> list[bool]:
    """Return which rows are the first message of a tree or linked to it; of rows with one id, only the first is."""
    roots = [row for row in rows if not row.parent]
    root = next((row for row in roots if row.id == name), roots[0] if roots else None)
    first: dict[str, Row] = {}
    children: dict[str, list[str]] = {}
    for row in (root, *rows) if root else ():
        if row.id not in first:
            first[row.id] = row
            children.setdefault(row.parent, []).append(row.id)
    found: set[str] = set()
    to_visit = [root.id] if root else []
    while to_visit:
        found.add(node := to_visit.pop())
        to_visit += [child for child in children.get(node, ()) if child not in found]
    return [row.id in found and first[row.id] is row for row in rows]


# ── the rows of tables and texts ──────────────────────────────────────────────────────────────────────────────────


def group_table(table: Table) -> Table:
    """Return a table with its rows as trees, if its columns say that they are messages of trees."""
    if not COLUMNS.issubset(table.columns) or table.grouped:
        return table
    return replace(table, rows=_group(row for each in table.rows for row in _table_rows(each)), grouped=True)


def has_rows(name: str, part: TextChunk) -> bool:
    """Return whether the first record of a text that can be decoded is a message of a tree."""
    if b'"message_id"' not in part.data or b'"parent_id"' not in part.data:
        return False
    values = (record.value for record in decode_records(Chunk.of_text(name, 0, part)) if record.problem is None)
    return _is_row(next(values, None))


def read_text(name: str, parts: Iterable[TextChunk]) -> Table:
    """Return the records of a text as a table of trees; its reader has warned of what is damaged."""
    records = (record for part in parts for record in decode_records(Chunk.of_text(name, 0, part)))
    return Table((), _group(map(_text_row, records)), grouped=True, warned=True)


def _table_rows(rows: Rows) -> Iterator[Row | Rows | bytes]:
    if rows.lost:
        yield rows
        return
    for line in rows.data.splitlines(keepends=True):
        yield _to_row(line, msgspec.json.decode(line)) or line


def _text_row(record: RawRecord) -> Row | Rows | bytes:
    if record.problem is not None:
        return Rows(0, 1, record.raw, record.problem.reason, len(record.raw))
    line = record.raw + b"\n"
    if b"\n" in record.raw or not isinstance(record.value, dict) or record.raw[:1] != b"{":
        line = encode_rows([record.value])
    return _to_row(line, record.value) or line


def _is_row(value: object) -> bool:
    return isinstance(value, dict) and recognises_row(value) and not value.get("replies")


def _to_row(line: bytes, value: dict[str, object]) -> Row | None:
    """Return a row of a tree; None for another record."""
    if not _is_row(value):
        return None
    names = (value["message_id"], value["parent_id"], value.get("message_tree_id"))
    name, parent, tree = ("" if each is None else str(each) for each in names)
    return Row(line, name, parent, tree) if name else None


def _group(rows: Iterable[Row | Rows | bytes]) -> Iterator[Rows]:
    """Yield the records of rows in blocks, numbered in their order."""
    number, block, size = 0, list[bytes](), 0
    for record in _all_records(rows):
        if isinstance(record, Rows) or size > BLOCK_BYTES:
            if block:
                yield Rows(number - len(block), len(block), b"".join(block))
            block, size = [], 0
        if isinstance(record, Rows):
            yield replace(record, first=number)
            number += record.count
        else:
            block.append(record)
            size += len(record)
            number += 1
    if block:
        yield Rows(number - len(block), len(block), b"".join(block))


def _all_records(rows: Iterable[Row | Rows | bytes]) -> Iterator[Rows | bytes]:
    grouper = TreeGrouper()
    for row in rows:
        yield from grouper.add(row)
    yield from grouper.finish()
