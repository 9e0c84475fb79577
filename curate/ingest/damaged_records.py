"""Find the records that come from a part of a stream that failed its checksum."""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from curate.errors import RecordError
from curate.ingest.damage import FailedText, Verification
from curate.ingest.decode import Chunk, split_exactly

DAMAGED_STREAM = "damaged_stream"  # the rule
DOUBT = "what comes before the damage may be altered"
NOISE_BYTES = 64 << 10  # of text: noise unpacks to text whose flaws are nearer to each other than this
END_BYTES = 4 << 10  # of text, in doubt before an end that has no flaw but itself


@dataclass(frozen=True)
class DamagedRecords:
    """Records `first` to `stop` of a source, which may be altered, and the reason."""

    source_file: str
    first: int
    stop: int
    reason: str

    @property
    def text(self) -> str:
        return f"records {self.first} to {self.stop - 1} may be altered: {self.reason}"


class DamagedIndex:
    """Looks up whether a record may be altered."""

    def __init__(self, ranges: Sequence[DamagedRecords]) -> None:
        self.ranges: list[DamagedRecords] = []  # without overlaps
        for each in sorted(ranges, key=lambda each: (each.source_file, each.first)):
            last = self.ranges[-1] if self.ranges else None
            if last is not None and last.source_file == each.source_file and each.first < last.stop:
                each = replace(each, first=last.stop)
            if each.first < each.stop:
                self.ranges.append(each)
        self.starts = [(each.source_file, each.first) for each in self.ranges]

    def problem(self, source_file: str, index: int) -> RecordError | None:
        """Return why the record may be altered; None if it is sound."""
        at = bisect_right(self.starts, (source_file, index)) - 1
        if at < 0 or self.ranges[at].source_file != source_file or index >= self.ranges[at].stop:
            return None
        return RecordError(DAMAGED_STREAM, f"{self.ranges[at].reason}; {DOUBT}")


class EndFinder:
    """Finds the records at the end of a text that may be altered if its stream is cut off.

    A file whose end is overwritten looks as if it were cut off: the noise unpacks to text, with flaws everywhere. So
    records from NOISE_BYTES before its first flaw are in doubt, and the last whole ones in any case.
    """

    def __init__(self) -> None:
        self._recent: deque[Chunk] = deque()  # chunks that the last NOISE_BYTES lie in
        self._noise: tuple[int, int] | None = None  # flaws near to each other: first record in doubt, byte of the end
        self._before: tuple[int, int] | None = None  # the same before the last flaw
        self._last = (0, 0)  # bytes of the last flaw

    def add(self, chunk: Chunk) -> None:
        """Take the next chunk."""
        self._recent.append(chunk)
        for span in chunk.spans:
            if span.kind == "damage":
                self.note(chunk.start + span.start, chunk.start + span.stop)
        end = chunk.start + len(chunk.data)
        while len(self._recent) > 1 and self._recent[1].start <= end - NOISE_BYTES:
            self._recent.popleft()

    def note(self, start: int, stop: int) -> None:
        """Note a flaw of the text between two of its bytes."""
        self._before = self._noise
        near = self._noise is not None and start - self._noise[1] <= NOISE_BYTES
        first = self._noise[0] if near and self._noise is not None else self._record_at(start - NOISE_BYTES)
        self._noise, self._last = (first, stop), (start, stop)

    def _record_at(self, offset: int) -> int:
        """Return the first record that reaches past a byte of the text."""
        if not self._recent:
            return 0
        chunk = next(each for each in self._recent if each is self._recent[-1] or each.start + len(each.data) > offset)
        return chunk.first + sum(stop <= offset for _, stop in _places(chunk, offset))

    def first_in_doubt(self, end: int, records: int) -> int:
        """Return the first record in doubt of a text that ends at byte `end`."""
        is_open = self._last[1] >= end  # the flaw at the end is the record that is cut off
        noise, end = (self._before, self._last[0]) if is_open else (self._noise, end)
        last = min(max(0, records - 1 - is_open), self._record_at(end - END_BYTES))
        return last if noise is None or end - noise[1] > NOISE_BYTES else min(last, noise[0])


class RecordFinder:
    """Turns the failed parts of a text into ranges of its records, chunk by chunk.

    A part that failed begins at the last verified byte and is known when it ends, so the chunk with that byte is held.
    """

    def __init__(self, source_file: str, verification: Verification) -> None:
        self.source_file = source_file
        self.verification = verification
        self.records = 0  # in all chunks
        self._end = 0  # byte of the text after the last chunk
        self._held: Chunk | None = None
        self._first: int | None = None  # of the part that reaches past the last chunk
        self._ranges: list[DamagedRecords] = []
        self._settled = 0  # parts that have become ranges
        self.first_unverified = 0  # record that is not covered by a checksum; known after `finish`
        self._end_finder = EndFinder()

    def add(self, chunk: Chunk) -> None:
        """Take the next chunk; the failed parts that end in it are known."""
        end = chunk.start + len(chunk.data)
        for failed in self.verification.failed[self._settled :]:
            if failed.start >= end:
                break
            self._begin(failed, chunk)
            if failed.stop > end:
                break
            self._settle(failed, chunk.first + sum(start < failed.stop for start, _ in _places(chunk, failed.stop)))
        self._hold(chunk, end)
        self._end_finder.add(chunk)
        self.records = chunk.first + chunk.count
        self._end = end

    def finish(self) -> list[DamagedRecords]:
        """Return all ranges; no chunk follows."""
        for failed in self.verification.failed[self._settled :]:
            self._begin(failed, None)
            self._settle(failed, self.records)
        self._begin(FailedText(self.verification.verified, self.verification.offset, ""), None)
        self.first_unverified = self.records if self._first is None else self._first
        self._held = None
        self._doubt_end()
        return self._ranges

    def _doubt_end(self) -> None:
        verification = self.verification
        if verification.cut_off and self.first_unverified < self.records:
            first = self._end_finder.first_in_doubt(verification.offset, self.records)
            first = max(first, self.first_unverified)
            self._ranges.append(DamagedRecords(self.source_file, first, self.records, verification.cut_off))

    def _hold(self, chunk: Chunk, end: int) -> None:
        """Hold the chunk if the last verified byte is in it, or between it and the chunk before."""
        verified = self.verification.verified
        if self._end <= verified < end:
            self._held = chunk if verified > chunk.start else replace(chunk, data=b"", spans=())
        elif verified >= end:
            self._held = None

    def _begin(self, failed: FailedText, chunk: Chunk | None) -> None:
        """Set the first record that reaches past the start of a failed part."""
        if self._first is not None:
            return
        within = self._held or chunk
        if within is None:
            self._first = self.records
        else:
            self._first = within.first + sum(stop <= failed.start for _, stop in _places(within, failed.start))
        self._held = None

    def _settle(self, failed: FailedText, stop: int) -> None:
        if self._first is not None and self._first < stop:
            self._ranges.append(DamagedRecords(self.source_file, self._first, stop, failed.reason))
        self._first = None
        self._settled += 1


def _places(chunk: Chunk, offset: int) -> Iterator[tuple[int, int]]:
    """Yield where a chunk's records start and stop in the text; of each span that ends before `offset`, the span's."""
    for span in chunk.spans:
        span_start, span_stop = chunk.start + span.start, chunk.start + span.stop
        if span_start >= offset:
            return
        if span.count == 1 or span_stop <= offset:
            yield from [(span_start, span_stop)] * span.count
            continue
        start = span.start
        for record in split_exactly(chunk.data[span.start : span.stop], span):
            start = chunk.data.index(record, start)
            yield chunk.start + start, chunk.start + start + len(record)
            start += len(record)
