"""Cut a text into chunks of complete records, each checked by decoding it.

A batch of records is checked by decoding it as a list of raw values. JSON can be read in one way only, so both its ends
are then record boundaries, and the next batch also begins at a record. Where a batch fails, its records are scanned one
at a time. Bytes that are not a value are damage, which ends where the next record begins.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from copy import deepcopy

import msgspec

from curate.ingest.damage import ReportDamage
from curate.ingest.json_scan import ScanResult
from curate.ingest.record_starts import RecordStarts, first_records, separator
from curate.ingest.text.damaged_text import ARRAY_END, DamagedText
from curate.ingest.text.spans import RecordSpan, TextChunk
from curate.ingest.text.walk import FIRST_SCAN_BYTES, OPEN_ARRAY, SAMPLE_BYTES

BATCH_BYTES_AFTER_FAILURE = 1 << 12  # length of the next batch after one that failed; each success makes it longer
BATCH_GROWTH = 4
LAST_CHUNK_DIVISOR = 4  # smaller chunks at the end of a long text, so that all workers finish at about the same time

NEXT_LINE = re.compile(rb"\n(?=\{)")

_list_decoder = msgspec.json.Decoder(list[msgspec.Raw])
_lines_decoder = msgspec.json.Decoder(msgspec.Raw)


class Chunker(DamagedText):
    """Cut a text into chunks of about `chunk_bytes`. The cuts depend only on the text."""

    def __init__(self, blocks: Iterator[bytes], chunk_bytes: int, max_record_bytes: int, report: ReportDamage) -> None:
        super().__init__(blocks, max_record_bytes, report)
        self.chunk_bytes = self.full_chunk_bytes = chunk_bytes
        self.boundaries = RecordStarts()  # to cut batches, which are checked; may depend on chunks
        self.learn_again_at = 0
        self.batch_bytes = chunk_bytes  # length of the next batch to try
        self.skip_batches = self.failures = 0  # single records to take before the next batch

    def __iter__(self) -> Iterator[TextChunk]:
        position = self._begin()
        if (stop := self._find_first_record(position)) > position:
            yield self._cut_head(position, stop)
            position = stop
        self.boundaries = deepcopy(self.known)
        while (position := self._next_value(position, read_more=True)) < len(self.text.data):
            self.text.move(position, self.chunk_bytes + max(64, self.chunk_bytes // 4))
            if self.text.at_end and self.text.start > self.full_chunk_bytes:
                self.chunk_bytes = max(self.full_chunk_bytes // LAST_CHUNK_DIVISOR, 1)
            chunk, position = self._next_chunk()
            yield chunk
        self._report_brackets(position)

    def _next_chunk(self) -> tuple[TextChunk, int]:
        """Return one chunk from the start of the window, and the position after it."""
        spans: list[RecordSpan] = []
        position = 0
        self.batch_bytes = self.chunk_bytes
        self.skip_batches = self.failures = 0
        while position < min(self.chunk_bytes, len(self.text.data)):
            span = self._batch(position) or self._single_record(position)
            if span is None and not spans:
                return self._long_damage()
            if span is None:
                break
            spans.append(span)
            position = self._next_value(span.stop)
        data = self.text.data[: spans[-1].stop]
        return TextChunk(self.text.start, data, tuple(spans), self.boundaries.pattern), position

    def _batch(self, position: int) -> RecordSpan | None:
        """Return a span of as many records as one decode confirms, or None."""
        if self.in_members:
            return None
        if self.skip_batches:
            self.skip_batches -= 1
            return None
        stop = self._boundary(position)
        count, error_at = self._count(position, stop)
        if count:
            self.batch_bytes *= BATCH_GROWTH
            self.failures = 0
        else:
            self.failures = min(self.failures + 1, 6)
            self.skip_batches = (1 << self.failures) - 1
            self.batch_bytes = BATCH_BYTES_AFTER_FAILURE
            if stop < 0:
                self._learn_boundaries(position)
            stop = self._last_boundary(position, error_at)  # everything before the unreadable record is whole
            count, _ = self._count(position, stop)
        if not count:
            return None
        self.damaged_in_a_row = 0
        return RecordSpan(position, stop, count, "array" if self.in_array else "lines")

    def _learn_boundaries(self, position: int) -> None:
        """Learn again what records begin with, where it was not found; at most once in SAMPLE_BYTES of the text."""
        if self.in_array and self.text.start + position >= self.learn_again_at:
            self.learn_again_at = self.text.start + position + SAMPLE_BYTES
            self.boundaries = RecordStarts()
            self.boundaries.learn(list(first_records(self.text.data[position : position + FIRST_SCAN_BYTES])))

    def _boundary(self, start: int) -> int:
        """Return the first likely record boundary after the next batch's length; -1 if there is none soon after."""
        data = self.text.data
        length = min(self.batch_bytes, self.max_record_bytes // 2)
        position = min(start + length, self.chunk_bytes)
        stop = position + max(FIRST_SCAN_BYTES, length // 4)
        pattern = self._boundary_pattern()
        match = pattern.search(data, position, stop) if pattern else None
        if match is not None:
            return match.start()
        if not self.text.at_end or stop < len(data):
            return -1
        if not self.in_array:
            return len(data)
        end = data.rfind(b"]", max(start, len(data) - FIRST_SCAN_BYTES))
        return end if end > 0 and ARRAY_END.match(data, end) else -1

    def _last_boundary(self, position: int, stop: int) -> int:
        """Return the last likely record boundary between `position` and `stop`, or -1."""
        pattern = self._boundary_pattern()
        last = -1
        if pattern is not None and stop > 0:
            for match in pattern.finditer(self.text.data, position, stop):
                last = match.start()
        return last

    def _boundary_pattern(self) -> re.Pattern[bytes] | None:
        if not self.in_array:
            return NEXT_LINE
        return separator(self.boundaries.pattern) if self.boundaries.pattern else None

    def _count(self, position: int, stop: int) -> tuple[int, int]:
        """Return (number of records, -1), or (0, position of the error or -1) where they cannot be decoded."""
        if not position < stop < position + self.max_record_bytes:
            return 0, -1
        part = memoryview(self.text.data)[position:stop]
        try:
            if self.in_array:
                values = _list_decoder.decode(b"".join((b"[", part, b"]")))
            else:
                values = _lines_decoder.decode_lines(part)
        except RecursionError:
            return 0, -1
        except msgspec.DecodeError as error:
            offset = str(error).rpartition("(byte ")[2].rstrip(")")
            return 0, position + int(offset) - self.in_array if offset.isdigit() else -1
        if not self.in_array and any(memoryview(value)[0] == OPEN_ARRAY for value in values):
            return 0, -1  # arrays of records, not records
        if stop - position >= self.max_value_bytes and max(map(_length, values)) >= self.max_value_bytes:
            return 0, -1
        return len(values), -1

    def _single_record(self, position: int) -> RecordSpan | None:
        """Return the span of one record, or of damage; None for damage that is too long for a chunk with others."""
        value = self._member_value(position)
        result = self._scan_value(value)
        if result.error_at >= 0:
            result = result._replace(error_at=result.error_at + value - position)
        if result.end < 0 or self._swallows_the_rest(position, result.end):
            return self._damage(position, result)
        if self._is_cut(position, result.end):
            return self._damage(position, ScanResult(-1, result.end - position, "text follows the end of a record"))
        self.damaged_in_a_row = 0
        return RecordSpan(position, result.end, 1, "record")


def _length(value: msgspec.Raw) -> int:
    return memoryview(value).nbytes
