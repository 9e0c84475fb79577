"""Cut a text into chunks of complete records, each checked by decoding it.

The text is a sequence of JSON values separated by white space or commas; `[` outside a value opens an array of
records, and `]` closes it. This one grammar covers an array, JSON lines, concatenated values, and any mixture.

A batch of records is checked by decoding it as a list of raw values. JSON can be read in one way only, so both its ends
are then record boundaries, and the next batch also begins at a record. Where a batch fails, its records are scanned one
at a time. Bytes that are not a value are damage, which ends where the next record begins.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import msgspec

from curate.ingest.damage import ReportDamage
from curate.ingest.json_scan import ScanResult, scan_value
from curate.ingest.record_starts import RecordStart, is_record, learn_record_start

BATCH_BYTES_AFTER_FAILURE = 1 << 16  # length of the next batch after one that failed; each success doubles it
LAST_CHUNK_DIVISOR = 4  # smaller chunks at the end of a long text, so that all workers finish at about the same time
SAMPLE_BYTES = 1 << 20  # the start of records is learned from this much text
FIRST_SCAN_BYTES = 1 << 16  # a single value is scanned in this many bytes first, then in four times as many
MAX_UNKNOWN_DAMAGE = 64 << 20  # bytes of one damaged span while the start of records is unknown

GAP = re.compile(rb"(?:[ \t\r\n,]++|\xef\xbb\xbf)*+")  # joined files may have a byte-order mark between records
NEXT_LINE = re.compile(rb"\n(?=\{)")
NEXT_LINE_VALUE = re.compile(rb"\n(?=[\[{])")
NEXT_ELEMENT = re.compile(rb"[\]}]\s*,\s*(?=[\[{])")
NEXT_SCALAR = re.compile(rb',\s*(?=["\w\[{-])')
ARRAY_END = re.compile(rb"\]\s*(?:\}\s*)?\Z")  # the end of an array, or of an array in an object
MEMBER = re.compile(rb'[\s,]*"(?:[^"\\]|\\.)*+"\s*:\s*', re.S)
OBJECT_END = re.compile(rb"\s*\}")
OPEN_ARRAY, CLOSE_ARRAY = b"[]"

_list_decoder = msgspec.json.Decoder(list[msgspec.Raw])
_lines_decoder = msgspec.json.Decoder(msgspec.Raw)


@dataclass(frozen=True, slots=True)
class RecordSpan:
    """Bytes `start` to `stop` of a chunk, with `count` records of one kind.

    Kinds: `array`, values separated by commas; `lines`, values separated by white space; `record`, one value;
    `damage`, bytes that are not a value, and the `error` found there.
    """

    start: int
    stop: int
    count: int
    kind: str
    error: str = ""


@dataclass(frozen=True)
class TextChunk:
    """Bytes of the text from byte `start`, the spans of its records, and the pattern they begin with (may be empty)."""

    start: int
    data: bytes
    spans: tuple[RecordSpan, ...]
    record_start: bytes


class TextWindow:
    """A window on a text that only moves forward; `data[0]` is byte `start` of the text."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self.blocks = blocks
        self.data = b""
        self.start = 0
        self.at_end = False

    def move(self, by: int, size: int) -> None:
        """Drop `by` bytes, and read until `size` are available or the text ends."""
        self.start += by
        self._read(memoryview(self.data)[by:], size)

    def fill(self, size: int) -> None:
        """Read until `size` bytes are available or the text ends."""
        if len(self.data) < size:
            self._read(memoryview(self.data), size)

    def _read(self, unread: memoryview, size: int) -> None:
        parts: list[bytes | memoryview] = [unread]
        available = len(unread)  # bytes
        while available < size and not self.at_end:
            block = next(self.blocks, None)
            self.at_end = block is None
            parts.append(block or b"")
            available += len(parts[-1])
        self.data = b"".join(parts)


class Chunker:
    """Cut a text into chunks of about `chunk_bytes`. The cuts depend only on the text."""

    def __init__(self, blocks: Iterator[bytes], chunk_bytes: int, max_record_bytes: int, report: ReportDamage) -> None:
        self.text = TextWindow(blocks)
        self.chunk_bytes = self.full_chunk_bytes = chunk_bytes
        self.max_record_bytes = max_record_bytes
        self.report = report
        self.in_array = False  # within an array of records
        self.in_wrapper = False  # within an object that has that array as a member
        self.arrays = 0  # arrays of records opened so far
        self.record_start: RecordStart | None = None
        self.batch_bytes = chunk_bytes  # length of the next batch to try
        self.skip_batches = self.failures = 0  # single records to scan before the next batch; failures in a row

    def __iter__(self) -> Iterator[TextChunk]:
        position = self._begin()
        while (position := self._next_value(position, read_more=True)) < len(self.text.data):
            # A quarter more than a chunk: the last batch may end at a boundary after `chunk_bytes`.
            self.text.move(position, self.chunk_bytes + max(64, self.chunk_bytes // 4))
            if self.text.at_end and self.text.start > self.full_chunk_bytes:
                self.chunk_bytes = max(self.full_chunk_bytes // LAST_CHUNK_DIVISOR, 1)
            spans, position = self._record_spans()
            pattern = self.record_start.pattern if self.record_start else b""
            yield TextChunk(self.text.start, self.text.data[: spans[-1].stop], tuple(spans), pattern)
        if self.in_array:
            self._report(position, 0, "the array of records is not closed: the file is cut off")

    def _report(self, position: int, lost: int, description: str) -> None:
        """Report damage at a position in the window; `lost` is in bytes."""
        self.report(self.text.start + position, lost, description)

    # ── moving between values ────────────────────────────────────────────────────────────────────────────────────

    def _begin(self) -> int:
        """Learn how records begin; enter an object that only wraps an array of records."""
        self.text.fill(SAMPLE_BYTES)
        while (position := self._skip_gap(0)) == len(self.text.data) and not self.text.at_end:
            self.text.move(position, SAMPLE_BYTES)
        self.record_start = learn_record_start(self.text.data[position : position + SAMPLE_BYTES])
        if self.text.data[position : position + 1] == b"{" and (inside := self._find_array(position + 1)) >= 0:
            self.in_array = self.in_wrapper = True
            return inside
        return position

    def _skip_gap(self, position: int) -> int:
        gap = GAP.match(self.text.data, position)
        return gap.end() if gap else position

    def _next_value(self, position: int, *, read_more: bool = False) -> int:
        """Return where the next value begins, or the end of the window (with `read_more`, of the text).

        Enters and leaves arrays on the way.
        """
        while True:
            position = self._skip_gap(position)
            if position == len(self.text.data):
                if self.text.at_end or not read_more:
                    return position
                self.text.move(position, 1)
                position = 0
            elif self.text.data[position] == CLOSE_ARRAY:
                position = self._leave_array(position)
            elif self.text.data[position] == OPEN_ARRAY and not self.in_array:
                self.in_array = True
                self.arrays += 1
                position += 1
            else:
                return position

    def _leave_array(self, position: int) -> int:
        if not self.in_array:
            self._report(position, 1, "a ']' without a '['")
            return position + 1
        self.in_array = False
        if not self.in_wrapper:
            return position + 1
        inside = self._find_array(position + 1)
        self.in_array = self.in_wrapper = inside >= 0
        return inside if inside >= 0 else self._leave_wrapper(position + 1)

    def _leave_wrapper(self, position: int) -> int:
        while member := MEMBER.match(self.text.data, position):
            value = self._scan_value(member.end())
            if value.end < 0:
                break
            position = value.end
        if end := OBJECT_END.match(self.text.data, position):
            return end.end()
        self._report(position, 0, "the object around the records is not closed")
        return position

    def _find_array(self, position: int) -> int:
        """Scan the members of an object; return the position inside the next array of records, or -1 without one."""
        self.text.fill(position + FIRST_SCAN_BYTES)
        while member := MEMBER.match(self.text.data, position):
            position = member.end()
            if self._opens_records(position):
                return position + 1
            value = self._scan_value(position)
            if value.end < 0:
                return -1
            position = value.end
            self.text.fill(position + FIRST_SCAN_BYTES)
        return -1

    def _opens_records(self, position: int) -> bool:
        """Return whether an array begins here with a record among its first three values."""
        if self.text.data[position : position + 1] != b"[":
            return False
        position += 1
        for _ in range(3):
            position = self._skip_gap(position)
            value = self._scan_value(position)
            if value.end < 0:
                return False
            if is_record(self.text.data[position : value.end]):
                return True
            position = value.end
        return False

    # ── cutting ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _record_spans(self) -> tuple[list[RecordSpan], int]:
        """Return spans for one chunk from the start of the window, and the position after them."""
        spans: list[RecordSpan] = []
        position = 0
        self.batch_bytes = self.chunk_bytes
        self.skip_batches = self.failures = 0
        while position < min(self.chunk_bytes, len(self.text.data)):
            span = self._batch(position) or self._single_record(position)
            spans.append(span)
            position = self._next_value(span.stop)
        return spans, position

    def _batch(self, position: int) -> RecordSpan | None:
        """Return the span of a batch of records that one decode confirms, or None if there is none."""
        if self.skip_batches:
            self.skip_batches -= 1
            return None
        stop = self._boundary(min(position + min(self.batch_bytes, self.max_record_bytes // 2), self.chunk_bytes))
        count, error_at = self._count(position, stop)
        if count:
            self.batch_bytes *= 2
            self.failures = 0
        else:
            self.batch_bytes = BATCH_BYTES_AFTER_FAILURE
            stop = self._last_boundary(position, error_at)  # the records before the unreadable one
            count, _ = self._count(position, stop)
        if count:
            return RecordSpan(position, stop, count, "array" if self.in_array else "lines")
        self.failures = min(self.failures + 1, 6)
        self.skip_batches = 0 if error_at >= 0 else 1 << self.failures
        return None

    def _boundary(self, position: int) -> int:
        """Return the first likely record boundary at or after `position`; -1 if the window has none."""
        if self.in_array:
            match = self.record_start.separator.search(self.text.data, position) if self.record_start else None
            if match is None and self.text.at_end:
                match = ARRAY_END.search(self.text.data, max(0, len(self.text.data) - FIRST_SCAN_BYTES))
        else:
            match = NEXT_LINE.search(self.text.data, position)
            if match is None and self.text.at_end:
                return len(self.text.data)
        return match.start() if match else -1

    def _last_boundary(self, position: int, stop: int) -> int:
        """Return the last likely record boundary between `position` and `stop`, or -1."""
        pattern = (self.record_start.separator if self.record_start else None) if self.in_array else NEXT_LINE
        last = -1
        if pattern is not None and stop > 0:
            for match in pattern.finditer(self.text.data, position, stop):
                last = match.start()
        return last

    def _count(self, position: int, stop: int) -> tuple[int, int]:
        """Return (number of records, -1), or (0, position of the error or -1) where they cannot be decoded."""
        if not position < stop < position + self.max_record_bytes:
            return 0, -1
        part = memoryview(self.text.data)[position:stop]
        try:
            if self.in_array:
                return len(_list_decoder.decode(b"".join((b"[", part, b"]")))), -1
            values = _lines_decoder.decode_lines(part)
        except RecursionError:
            return 0, -1
        except msgspec.DecodeError as error:
            offset = str(error).rpartition("(byte ")[2].rstrip(")")
            return 0, position + int(offset) - self.in_array if offset.isdigit() else -1
        arrays = any(memoryview(value)[0] == OPEN_ARRAY for value in values)  # arrays of records, not records
        return (0, -1) if arrays else (len(values), -1)

    def _single_record(self, position: int) -> RecordSpan:
        """Return the span of one record, or of damage."""
        result = self._scan_value(position)
        if result.end >= 0:
            return RecordSpan(position, result.end, 1, "record")
        stop = self._damage_end(position, truncated=result.error_at < 0)
        error = f"{result.error} at byte {self.text.start + position + max(0, result.error_at)}"
        lost = f"the damage takes {stop - position} bytes from byte {self.text.start + position}"
        self._report(position, stop - position, f"{error}; {lost}")
        return RecordSpan(position, stop, 1, "damage", f"{error}; {lost}")

    def _scan_value(self, position: int) -> ScanResult:
        """Find the end of the value at `position`, reading as far as needed; `error_at` is relative to `position`."""
        size = FIRST_SCAN_BYTES
        while True:
            size = min(size, self.max_record_bytes)
            self.text.fill(position + size)
            final = self.text.at_end and position + size >= len(self.text.data)
            result = scan_value(
                memoryview(self.text.data)[position : position + size], final=final, in_array=self.in_array
            )
            if result.end >= 0:
                return result._replace(end=position + result.end)
            if not result.incomplete:
                return result
            if final:
                return ScanResult(-1, -1, "the file ends inside a record")
            if size == self.max_record_bytes:
                return ScanResult(-1, -1, f"no end of the record within {size} bytes (max_record_bytes)")
            size *= 4

    def _damage_end(self, position: int, *, truncated: bool) -> int:
        """Return the end of the damage that begins at `position`: the next record, without the gap before it."""
        stop = self._next_record(position)
        data = self.text.data
        if stop == len(data) and self.in_array and not truncated:
            end = ARRAY_END.search(data, max(position + 1, len(data) - FIRST_SCAN_BYTES))
            stop = end.start() if end else stop
        while stop > position + 1 and data[stop - 1] in b" \t\r\n,":
            stop -= 1
        return stop

    def _next_record(self, position: int) -> int:
        """Return where the first record after `position` seems to begin, or the end of the text."""
        limit = self.max_record_bytes if self.record_start else min(self.max_record_bytes, MAX_UNKNOWN_DAMAGE)
        limit += position
        search = position + 1
        while self.record_start is None and search < limit:
            self.text.fill(search + SAMPLE_BYTES)
            self.record_start = learn_record_start(self.text.data[search : search + SAMPLE_BYTES], at_record=False)
            if search + SAMPLE_BYTES >= len(self.text.data):
                break
            search += SAMPLE_BYTES
        patterns = self._start_patterns(position)
        search = position + 1
        while True:
            matches = [pattern.search(self.text.data, search) for pattern in patterns]
            starts = [match.end() for match in matches if match]
            if starts or self.text.at_end or len(self.text.data) > limit:
                return min([*starts, len(self.text.data), limit])
            search = max(search, len(self.text.data) - FIRST_SCAN_BYTES)
            self.text.fill(position + 2 * (len(self.text.data) - position))

    def _start_patterns(self, position: int) -> list[re.Pattern[bytes]]:
        """Return patterns that end where the record after the damage at `position` may begin."""
        patterns = [self.record_start.lookahead] if self.record_start else []
        if not self.in_array:
            patterns.append(NEXT_LINE_VALUE)
        elif self.record_start is None:
            patterns.append(NEXT_ELEMENT if self.text.data[position] in b"[{" else NEXT_SCALAR)
        return patterns
