"""Read the records of one byte range of a text, without those before it.

The beginning of the text tells what its records look like (`Head`). A range begins at the first boundary between
records at or after its first byte, and ends at the first one at or after its last: where the next range begins. A
boundary is found by bytes alone, so it may be wrong. But the end of a range is proven if its beginning is, since its
records were decoded up to there. So ranges that meet are proven from the first one on (`curate.ingest.ranges.meeting`).
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from curate.errors import InputError, error_message
from curate.ingest import kinds
from curate.ingest.chunker import Chunker
from curate.ingest.record_starts import RecordStarts
from curate.ingest.remote.remote_file import RemoteFile
from curate.ingest.sources import Source
from curate.ingest.streams import compression
from curate.ingest.text.encodings import is_plain
from curate.ingest.text.spans import TextChunk
from curate.ingest.text.walk import FIRST_SCAN_BYTES

RANGE_BYTES = 4 << 20
LAST_RANGES, LAST_DIVISOR = 4, 4  # the last ranges of a text are cut smaller, so that workers finish at the same time
MIN_RANGES = 4  # a shorter text is not cut
BLOCK_BYTES = 1 << 20
ROW_OF_TREE = (b'"message_id"', b'"parent_id"')  # such rows are put together to trees, from the whole text

State = tuple[bool, int, bool, bool, int, int, int, int]
Report = tuple[int, int, str]  # byte offset, bytes lost, what happened


@dataclass(frozen=True)
class TextRange:
    """Bytes `start` to `stop` of a text file; `name` is the `source_file` of its records.

    `begin` is where its first record begins, if that is known.
    """

    path: Path | RemoteFile
    name: str
    start: int
    stop: int
    begin: int | None = None


@dataclass(frozen=True)
class Bounds:
    """Where the records of a range begin and end in the text: `end` is where the next one begins, or the text's end.

    Both are None if no record begins in the range. `regular`: at the end the text is as at its head, or complete;
    otherwise what follows cannot be read by itself. `reports` are of damage.
    """

    begin: int | None
    end: int | None
    regular: bool
    reports: tuple[Report, ...] = ()


@dataclass(frozen=True)
class Head:
    """What the beginning of a text tells about the rest: where it stands between records, and how these begin."""

    state: State
    known: RecordStarts


def cut(size: int, range_bytes: int = RANGE_BYTES) -> list[tuple[int, int]]:
    """Return the byte ranges of a text of a size; a single one if it is short."""
    if size < MIN_RANGES * range_bytes:
        return [(0, size)]
    small = range_bytes // LAST_DIVISOR
    tail = size - LAST_RANGES * range_bytes
    starts = [*range(0, tail, range_bytes), *range(tail, size, small)]
    return list(zip(starts, [*starts[1:], size], strict=True))


def can_cut(source: Source, encoding: str, max_record_bytes: int) -> bool:
    """Return whether a source is a file of UTF-8 text whose records can be found from the middle on."""
    if source.path is None or source.bytes is None or source.kind != kinds.TEXT.name:
        return False
    try:
        with source.path.open("rb") as file:
            head = file.read(FIRST_SCAN_BYTES)
        is_text = compression(head, source.name) is None and kinds.recognise(head, source.name) is kinds.TEXT
        if not is_text or not is_plain(head, encoding) or all(key in head for key in ROW_OF_TREE):
            return False
        return read_head(source.path, source.bytes, max_record_bytes) is not None
    except OSError:
        return False


@functools.lru_cache(maxsize=4)
def read_head(path: Path | RemoteFile, size: int, max_record_bytes: int) -> Head | None:
    """Read the beginning of a text of `size` bytes; None if its records cannot be told apart from the middle on."""
    reports: list[Report] = []
    with path.open("rb") as file:
        chunker = Chunker(_blocks(file), RANGE_BYTES, max_record_bytes, lambda *report: reports.append(report))
        position = chunker._begin()
        if chunker._find_first_record(position) > position:
            return None
        chunker._next_value(position, read_more=True)
    head = Head(_state(chunker), chunker.known)
    is_plain = head.state[2:5] == (False, False, 0) and head.state[6:] == (0, 0)
    can_tell = bool(head.known.patterns) if chunker.in_array else bool(head.known.shapes)
    return head if is_plain and can_tell and not reports else None


def _state(chunker: Chunker) -> State:
    return (
        chunker.in_array,
        chunker.wrappers,
        chunker.in_members,
        chunker.in_script,
        chunker.comments,
        chunker.arrays,
        len(chunker.loose_brackets),
        chunker.stray_ends,
    )


def _blocks(file: IO[bytes]) -> Iterator[bytes]:
    while block := file.read(BLOCK_BYTES):
        yield block


class RangeChunker(Chunker):
    """Cuts the records that begin in a range into chunks; `bounds` has the proof once they are read."""

    bounds: Bounds

    def __init__(self, file: IO[bytes], part: TextRange, head: Head, max_record_bytes: int) -> None:
        self.reports: list[Report] = []
        file.seek(part.begin if part.begin is not None else part.start)
        super().__init__(_blocks(file), RANGE_BYTES, max_record_bytes, lambda *report: self.reports.append(report))
        self.part = part
        self.head = head

    def __iter__(self) -> Iterator[TextChunk]:
        position = self._enter()
        if position is None:
            self.bounds = Bounds(None, None, True)
            return
        begin = None
        ended = self.part.begin or 0  # of the record before
        while (position := self._next_value(position, read_more=True)) < len(self.text.data):
            at = self.text.start + position
            begin = at if begin is None else begin
            if at >= self.part.stop and ended >= self.part.stop:
                self.bounds = self._bounds(begin, at, _state(self) == self.head.state)
                return
            self.chunk_bytes = min(self.full_chunk_bytes, max(self.part.stop - at, 1))
            self.text.move(position, self.chunk_bytes + max(FIRST_SCAN_BYTES, self.chunk_bytes // 4))
            chunk, position = self._next_chunk()
            ended = chunk.start + chunk.spans[-1].stop
            yield chunk
        end = self.text.start + position
        self._report_brackets(position)
        self.bounds = self._bounds(end if begin is None else begin, end, True)

    def _bounds(self, begin: int, end: int, regular: bool) -> Bounds:
        return Bounds(begin, end, regular, tuple(self.reports))

    def _enter(self) -> int | None:
        """Return where to look for the first value; None if no record begins in the range."""
        if self.part.start == 0 and self.part.begin is None:
            position = self._begin()
            self.boundaries = deepcopy(self.known)
            return position
        self.known = self.resync.known = deepcopy(self.head.known)
        self.boundaries = deepcopy(self.known)
        self.in_array, self.wrappers, self.arrays = self.head.state[0], self.head.state[1], self.head.state[5]
        self.text.start = self.part.start if self.part.begin is None else self.part.begin
        return self._first_boundary() if self.part.begin is None else 0

    def _first_boundary(self) -> int | None:
        size = self.part.stop - self.part.start
        self.text.fill(size + FIRST_SCAN_BYTES)
        pattern = self._boundary_pattern()
        match = pattern.search(self.text.data) if pattern else None
        return match.start() if match is not None and match.start() < size else None


def read_range(part: TextRange, size: int, max_record_bytes: int) -> tuple[list[TextChunk], Bounds]:
    """Return the chunks of a range of a text of `size` bytes, and their bounds.

    Raises InputError if the text is no longer as it was when it was cut.
    """
    try:
        head = read_head(part.path, size, max_record_bytes)
        with part.path.open("rb") as file:
            if head is None or file.seek(0, 2) != size:
                raise InputError(f"input {part.name!r} has changed since it was cut; run curate clean again")
            chunker = RangeChunker(file, part, head, max_record_bytes)
            return list(chunker), chunker.bounds
    except OSError as error:
        raise InputError(f"input {part.name!r} cannot be read: {error_message(error)}") from None
