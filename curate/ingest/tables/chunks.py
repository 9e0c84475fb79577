"""Cut the rows of a table into chunks of records."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from curate.errors import InputError
from curate.ingest.damage import Verification
from curate.ingest.damaged_records import DamagedRecords, EndFinder
from curate.ingest.decode import Chunk
from curate.ingest.tables.table import Rows, Table
from curate.ingest.text.spans import RecordSpan
from curate.schemas.reading.columns import Columns
from curate.schemas.reading.values import quote_keys

READ_AHEAD_BYTES = 4 << 20  # of a text, at most, that is not yet in the rows so far


def check_columns(name: str, table: Table, columns: Columns) -> None:
    """Raise InputError for the first column that is asked for and that the table does not have."""
    for target, column in columns if table.columns else ():
        if column not in table.columns:
            near = difflib.get_close_matches(column, table.columns, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            names = quote_keys(table.columns)
            raise InputError(f"input {name!r} has no column {column!r} for {target}; its columns: {names}{hint}")


@dataclass
class _Part:
    """The next chunk, as far as it is known."""

    first: int
    data: list[bytes] = field(default_factory=list)
    spans: list[RecordSpan] = field(default_factory=list)
    bytes: int = 0
    records: int = 0

    def add(self, rows: Rows) -> None:
        """Append rows: whole ones as lines, a lost one as damage."""
        start = self.bytes
        self.bytes += len(rows.data)
        self.records += rows.count
        self.data.append(rows.data)
        last = self.spans[-1] if self.spans else None
        if rows.lost:
            self.spans.append(RecordSpan(start, self.bytes, 1, "damage", rows.lost))
        elif last is not None and last.kind == "rows":
            self.spans[-1] = RecordSpan(last.start, self.bytes, last.count + rows.count, "rows")
        else:
            self.spans.append(RecordSpan(start, self.bytes, rows.count, "rows"))


class TableChunks:
    """The chunks of a table, and after them the warnings on what is lost of it: text and bytes on disk.

    A lost row with bytes of its own is a record; rows of which nothing is known are one record as long as they last.
    """

    def __init__(self, name: str, table: Table, chunk_bytes: int, verification: Verification) -> None:
        self.name = name
        self.table = table
        self.chunk_bytes = chunk_bytes
        self.finder = RowFinder(name, verification)
        self.warnings: list[tuple[str, int]] = []
        self.sound = 0  # records that are not lost
        self._lost: list[Rows] = []  # with bytes of their own
        self._gap: list[Rows] = []  # lost rows since the last other one

    def __iter__(self) -> Iterator[Chunk]:
        for chunk in self._chunks():
            self.finder.add_chunk(chunk)
            yield chunk

    def _chunks(self) -> Iterator[Chunk]:
        part = _Part(0)
        for rows in self.table.rows:
            self.finder.add(rows, in_order=not self.table.grouped)
            if rows.lost and not rows.data:
                self._gap.append(rows)
                continue
            if self._gap:
                yield from self._finish(part)
                yield self._close_gap()
                part = _Part(rows.first)
            elif part.bytes >= self.chunk_bytes:
                yield from self._finish(part)
                part = _Part(rows.first)
            if rows.lost:
                self._lost.append(rows)
            else:
                self.sound += rows.count
            part.add(rows)
        yield from self._finish(part)
        if self._gap:
            yield self._close_gap()
        self._warn_of_lost()

    def _finish(self, part: _Part) -> Iterator[Chunk]:
        if part.records:
            data = b"".join(part.data)
            yield Chunk(self.name, part.first, part.records, 0, data, tuple(part.spans))

    def _close_gap(self) -> Chunk:
        parts, self._gap = self._gap, []
        count = sum(part.count for part in parts)
        lost = f"about {count:,} record{'s' if count > 1 else ''} from number {parts[0].first:,} on cannot be read"
        more = f" (the first of {len(parts)} such places)" if len(parts) > 1 else ""
        self.warnings.append((f"{lost}: {parts[0].lost}{more}", sum(part.bytes for part in parts)))
        span = RecordSpan(0, 0, 1, "damage", f"{lost}: {parts[0].lost}")
        return Chunk(self.name, parts[0].first, 1, 0, b"", (span,))

    def _warn_of_lost(self) -> None:
        if self._lost and not self.table.warned:
            first = self._lost[0]
            count = len(self._lost)
            text = first.lost if count == 1 else f"{count:,} rows are rejected, the first because {first.lost}"
            self.warnings.append((text, sum(rows.bytes for rows in self._lost)))


class RowFinder:
    """Finds the rows that come from a part of a stream that failed its checksum, or may do so."""

    def __init__(self, name: str, verification: Verification) -> None:
        self.name = name
        self.verification = verification
        self._places: list[tuple[int, int, int, int]] = []  # rows, and the bytes of the text that they lie in
        self._offset = 0
        self._in_order = True
        self._end_finder = EndFinder()
        self._bytes = self._records = 0  # of all chunks

    def add_chunk(self, chunk: Chunk) -> None:
        """Take the next chunk of rows, as JSON lines, which are about as long as their text."""
        self._end_finder.add(replace(chunk, start=self._bytes))
        self._bytes += len(chunk.data)
        self._records = chunk.first + chunk.count

    def add(self, rows: Rows, *, in_order: bool) -> None:
        """Take the next rows; with `in_order`, their text follows that of the rows before."""
        start = self._offset - READ_AHEAD_BYTES if in_order else 0
        self._in_order = self._in_order and in_order
        self._offset = self.verification.offset
        self._places.append((rows.first, rows.first + rows.count, start, self._offset))

    @property
    def first_unverified(self) -> int:
        """The first row that no checksum covers."""
        rows = (first for first, _, _, stop in self._places if stop > self.verification.verified)
        return next(rows, self._places[-1][1] if self._places else 0)

    def finish(self) -> list[DamagedRecords]:
        """Return the ranges of these rows; no rows follow."""
        ranges = []
        for failed in self.verification.failed:
            rows = [place for place in self._places if place[2] < failed.stop and failed.start < place[3]]
            if rows:
                ranges.append(DamagedRecords(self.name, rows[0][0], rows[-1][1], failed.reason))
        return ranges + self._doubt_end()

    def _doubt_end(self) -> list[DamagedRecords]:
        """Return the rows in doubt at the end of a stream that is cut off: all of them if they are in another order."""
        first = self.first_unverified
        if not self.verification.cut_off or first >= self._records:
            return []
        if self._in_order:
            first = max(first, self._end_finder.first_in_doubt(self._bytes, self._records))
        return [DamagedRecords(self.name, first, self._records, self.verification.cut_off)]
