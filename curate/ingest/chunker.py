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
from itertools import islice

import msgspec

from curate.ingest.damage import ReportDamage
from curate.ingest.json_scan import ScanResult, scan_value
from curate.ingest.record_starts import (
    RECORD_KEYS,
    RecordStarts,
    decode,
    first_records,
    inner_objects,
    is_record,
    separator,
    skip_objects,
)
from curate.ingest.resync import OBJECT, Place, Resync
from curate.ingest.text_window import TextWindow

BATCH_BYTES_AFTER_FAILURE = 1 << 12  # length of the next batch after one that failed; each success makes it longer
BATCH_GROWTH = 4
RECORD_END_BYTES = 1 << 12  # looked at after a record
MAX_HEAD_TRIES = 200  # objects that are tried as the first whole record after a lost beginning
LAST_CHUNK_DIVISOR = 4  # smaller chunks at the end of a long text, so that all workers finish at about the same time
SAMPLE_BYTES = 1 << 20  # what records look like is learned from this much text
FIRST_VALUE_BYTES = 1 << 12  # a single value is scanned in this many bytes first, then in four times as many
FIRST_SCAN_BYTES = 1 << 16  # the window around a place where the next value, boundary or end is looked for
MAX_DAMAGE_BYTES = 16 << 20  # of one damaged span are kept
MAX_DAMAGED_LINES = (
    100  # in a row that become a record each; the damage after them, up to the next whole record, becomes one
)
HOSTILE_VALUE_BYTES = 1 << 12  # a value must be shorter while too much was decoded in vain
SWALLOWED_RECORDS = 3  # an unclosed value that holds so many is damage

GAP = re.compile(rb"(?:[ \t\r\n,]++|\xef\xbb\xbf)*+")  # joined files may have a byte-order mark between records
NEXT_LINE = re.compile(rb"\n(?=\{)")
LINE_START = re.compile(rb"^\{", re.M)
ARRAY_END = re.compile(rb"\]\s*(?:\}\s*)?\Z")  # the end of an array, or of an array in an object
EMPTY_ARRAYS = re.compile(rb"(?:\[\s*+\][\s,]*+)++")
STRAY_ENDS = re.compile(rb"[\]\s,]++")
LINES_AFTER_BRACKET = re.compile(  # two lines without a comma behind them, or one and another bracket
    rb'\[[ \t\r]*+\n\{[ \t]*+"[^\n]*[^\n,\s][ \t\r]*+\n(?=\[|\{[^\n]*[^\n,\s][ \t\r]*+(?:\n|\Z))'
)
MEMBER = re.compile(rb'[\s,]*"(?:[^"\\]|\\.)*+"\s*:\s*', re.S)
SCALAR_MEMBERS = re.compile(
    rb'(?:[\s,]*+"(?:[^"\\]|\\.)*+"\s*+:\s*+(?:"(?:[^"\\]|\\.)*+"|[-+.\w]++|\[[-+.\w\s,]*+\])\s*+(?=[,}]))*+', re.S
)
OBJECT_END = re.compile(rb"\s*\}")
RECORD_END = re.compile(  # white space and marks, then a new line, the start of a value, a closing bracket or no text
    rb"""(?:[ \t\r,;)]|\xef\xbb\xbf)*+(?:
        \Z | [\x00-\x1f]
        | \{ (?: \s*+ (?: \Z | ["}\x00-\x1f] ) | \w++ " \s*+ : )  # also one that lost its first quote
        | \[ \s*+ (?: \Z | [-\d\[{"\]\x00-\x1f] | null | true | false | NaN | Inf )
        | [\]}] [\s,;)\]}]*+ (?: \Z | [\x00-\x1f] | \{ \s*+ ["}] | \[ \s*+ [\[{\]] | "(?:[^"\\]|\\.)*+" \s*+ : )
        | " (?:[^"\\]|\\.)*+ " \s*+ (?: \Z | [:,\]{\["\x00-\x1f] )  # also a record that lost its bracket
        | (?: null | true | false | NaN | -?Infinity | -?\d[-+.\deE]*+ ) \s*+ (?: \Z | [,\]{\["\x00-\x1f] )
        | [^"\\]*? (?: ,\s*+ \{ \s*+ " \w++ " \s*+ : | \] \s*+ \}? \s*+ \Z )  # damage without the end of a text
    )""",
    re.S | re.X,
)
HEAD_END = re.compile(rb'\s*+(?:\]\s*+)?(?:\}|,\s*+"(?:[^"\\]|\\.)*+"\s*+:)', re.S)  # inside a record
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
        self.loose_brackets: list[int] = []  # where a `[` opened lines instead of an array
        self.stray_ends = 0  # each `]` that closes nothing, from byte `first_stray_end`
        self.first_stray_end = 0
        self.known = RecordStarts()  # depends on the text alone
        self.boundaries = RecordStarts()  # to cut batches, which are checked; may depend on chunks
        self.learn_again_at = 0
        self.resync = Resync(self.text, self.known, max_record_bytes)
        self.max_value_bytes = max_record_bytes
        self.damaged_in_a_row = 0
        self.batch_bytes = chunk_bytes  # length of the next batch to try
        self.skip_batches = self.failures = 0  # single records to take before the next batch

    def __iter__(self) -> Iterator[TextChunk]:
        position = self._begin()
        if (stop := self._find_first_record(position)) > position:
            yield self._cut_head(position, stop)
            position = stop
        while (position := self._next_value(position, read_more=True)) < len(self.text.data):
            self.text.move(position, self.chunk_bytes + max(64, self.chunk_bytes // 4))
            if self.text.at_end and self.text.start > self.full_chunk_bytes:
                self.chunk_bytes = max(self.full_chunk_bytes // LAST_CHUNK_DIVISOR, 1)
            chunk, position = self._next_chunk()
            yield chunk
        self._report_brackets(position)

    def _report_brackets(self, position: int) -> None:
        if self.in_array:
            self._report(position, 0, "the array of records is not closed: the file is cut off")
        for name, count, first in (
            ("]", self.stray_ends, self.first_stray_end),
            ("[", len(self.loose_brackets), (self.loose_brackets or [0])[0]),
        ):
            verb = "closes" if name == "]" else "opens"
            if count == 1:
                self.report(first, 1, f"a {name!r} at byte {first} {verb} nothing")
            elif count:
                self.report(first, count, f"{count} {name!r} {verb[:-1]} nothing, the first at byte {first}")

    def _report(self, position: int, lost: int, what: str) -> None:
        self.report(self.text.start + position, lost, what)

    # ── moving between values ────────────────────────────────────────────────────────────────────────────────────

    def _begin(self) -> int:
        """Learn how records begin; enter an object that only wraps an array of records."""
        self.text.fill(SAMPLE_BYTES)
        while (position := self._skip_gap(0)) == len(self.text.data) and not self.text.at_end:
            self.text.move(position, SAMPLE_BYTES)
        if self.text.data[position : position + 1] == b"{" and (inside := self._find_array(position + 1)) >= 0:
            self.in_array = self.in_wrapper = True
            position = inside
        self.text.fill(position + SAMPLE_BYTES)
        records = list(first_records(self.text.data[position : position + SAMPLE_BYTES]))
        if self.in_wrapper and len(records) > 1:
            del records[-1]  # without its bracket it would hold those after it, closed by the end of the object
        self.known.learn(records)
        self.boundaries.learn(records)
        return position

    def _find_first_record(self, position: int) -> int:
        """Return where the first whole record begins if the text begins inside one, and learn from there; else -1."""
        if (
            self.in_wrapper
            or not self.known.shapes
            or any(not RECORD_KEYS.isdisjoint(keys) for keys in self.known.shapes)
        ):
            return -1
        sample = self.text.data[position : position + SAMPLE_BYTES]
        end = skip_objects(sample)
        if not HEAD_END.match(sample, end):
            return -1
        for match in islice(OBJECT.finditer(sample, end), MAX_HEAD_TRIES):
            records = list(first_records(sample, match.start(), 1))
            if records and any(frozenset(inner) in self.known.shapes for inner in inner_objects(records[0])):
                records = list(first_records(sample, match.start()))
                self.in_array = sample[: match.start()].rstrip().endswith(b",")
                for starts in (self.known, self.boundaries):
                    starts.forget()
                    starts.learn(records)
                return position + match.start()
        return -1

    def _cut_head(self, position: int, stop: int) -> TextChunk:
        """Return a chunk with the rest of a record whose beginning is lost."""
        data = self.text.data[position:stop].rstrip(b" \t\r\n,")
        start = self.text.start + position
        error = f"the text begins inside a record; the damage takes {len(data)} bytes from byte {start}"
        self._report(position, len(data), error)
        return TextChunk(start, data, (RecordSpan(0, len(data), 1, "damage", error),), self.boundaries.pattern)

    def _skip_gap(self, position: int) -> int:
        gap = GAP.match(self.text.data, position)
        return gap.end() if gap else position

    def _next_value(self, position: int, *, read_more: bool = False) -> int:
        """Return where the next value begins, or the end of the window (with `read_more`, of the text)."""
        while True:
            position = self._skip_gap(position)
            if position == len(self.text.data):
                if self.text.at_end or not read_more:
                    return position
                self.text.move(position, 1)
                position = 0
            elif self.text.data[position] == CLOSE_ARRAY:
                position = self._leave_array(position)
            elif self.text.data[position] != OPEN_ARRAY:
                return position
            elif self._opens_lines(position):
                self.loose_brackets.append(self.text.start + position)
                position += 1
            elif self.in_array:
                return position
            elif empty := EMPTY_ARRAYS.match(self.text.data, position):
                self.arrays += 1
                position = empty.end()
            else:
                self.in_array = True
                self.arrays += 1
                position += 1

    def _opens_lines(self, position: int) -> bool:
        """Return whether a `[` is followed by JSON lines, which have no commas between them."""
        self.text.fill(position + 2)
        if self.text.data[position + 1 : position + 2] not in (b"\n", b"\r", b" "):
            return False
        self.text.fill(position + SAMPLE_BYTES)
        return LINES_AFTER_BRACKET.match(self.text.data, position, position + SAMPLE_BYTES) is not None

    def _leave_array(self, position: int) -> int:
        if not self.in_array:
            return self._close_nothing(position)
        self.in_array = False
        if not self.in_wrapper:
            return position + 1
        inside = self._find_array(position + 1)
        self.in_array = self.in_wrapper = inside >= 0
        return inside if inside >= 0 else self._leave_wrapper(position + 1)

    def _close_nothing(self, position: int) -> int:
        if self.loose_brackets:
            self.loose_brackets.pop()
            return position + 1
        ends = STRAY_ENDS.match(self.text.data, position)
        stop = ends.end() if ends else position + 1
        if not self.stray_ends:
            self.first_stray_end = self.text.start + position
        self.stray_ends += self.text.data.count(b"]", position, stop)
        return stop

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
        """Walk the members of an object; return the position inside the next array of records, or -1."""
        while position < self.max_record_bytes:
            self.text.fill(position + FIRST_SCAN_BYTES)
            scalars = SCALAR_MEMBERS.match(self.text.data, position)
            position = scalars.end() if scalars else position
            member = MEMBER.match(self.text.data, position)
            if member is None:
                return -1
            if self._opens_records(member.end()):
                return member.end() + 1
            value = self._scan_value(member.end())
            if value.end < 0:
                return -1
            position = value.end
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
        result = self._scan_value(position)
        if result.end < 0 or self._swallows_the_rest(position, result.end):
            return self._damage(position, result)
        if self._is_cut(position, result.end):
            return self._damage(position, ScanResult(-1, result.end - position, "text follows the end of a record"))
        self.damaged_in_a_row = 0
        return RecordSpan(position, result.end, 1, "record")

    def _is_cut(self, position: int, stop: int) -> bool:
        """Return whether text follows an object on its line: a bare quote before a `}` of a text ended it too early."""
        if self.text.data[position] != ord("{"):
            return False
        limit = stop + RECORD_END_BYTES
        self.text.fill(limit)
        return RECORD_END.match(self.text.data, stop, limit) is None

    def _scan_value(self, position: int) -> ScanResult:
        """Find the end of the value at `position`, reading as far as needed; `error_at` is relative to `position`."""
        searched, size = 0, FIRST_VALUE_BYTES
        while True:
            size = min(size, self.max_value_bytes)
            self.text.fill(position + size + 1)
            final = position + size >= len(self.text.data)
            window = memoryview(self.text.data)[position : position + size]
            result = scan_value(window, final=final, in_array=self.in_array)
            if result.end >= 0:
                return result._replace(end=position + result.end)
            cost = len(window) if result.incomplete else result.error_at
            self.resync.effort.charge(cost, self.text.start + position + cost)
            if not result.incomplete:
                return result
            if final:
                return ScanResult(-1, -1, "the file ends inside a record")
            if self._swallows_records(position + searched, position + size):
                return ScanResult(-1, -1, "a record that is not closed")
            if size == self.max_value_bytes:
                return ScanResult(-1, -1, f"no end of the record within {size} bytes (max_record_bytes)")
            searched, size = size, size * 4

    def _swallows_records(self, start: int, stop: int) -> bool:
        """Return whether records begin inside a value that goes on: it lacks a bracket or quote."""
        if not self.known.pattern or self.resync.effort.debt > 0:
            return False
        starts = re.compile(self.known.pattern, re.S).finditer(self.text.data, start + 1, stop)
        tries = (self.resync.is_known_record(match.start(), stop) for match in islice(starts, 2 * SWALLOWED_RECORDS))
        return sum(tries) >= SWALLOWED_RECORDS

    def _swallows_the_rest(self, position: int, stop: int) -> bool:
        """Return whether a value took the end of the array and of the object around it, and records before that."""
        if not self.in_wrapper:
            return False
        self.text.fill(stop + FIRST_SCAN_BYTES)
        data = self.text.data
        if not (self.text.at_end and GAP.fullmatch(data, stop)):
            return False
        value = decode(data[position:stop])
        return isinstance(value, dict) and self.resync.holds_record(value)

    # ── damage ───────────────────────────────────────────────────────────────────────────────────────────────────

    def _damage(self, position: int, result: ScanResult) -> RecordSpan | None:
        """Return the span of the damage at `position`; None if it is longer than MAX_DAMAGE_BYTES."""
        text, effort = self.text, self.resync.effort
        before = effort.spent, effort.reached
        place = self._place(result)
        stop = self.resync.find(position + 1, position + MAX_DAMAGE_BYTES, place)
        if stop < 0 and not (text.at_end and len(text.data) <= position + MAX_DAMAGE_BYTES):
            effort.spent, effort.reached = before
            self.long_damage = result
            return None
        if stop < 0:
            stop = self._damage_at_end(position, result)
        stop = position + len(text.data[position:stop].rstrip(b" \t\r\n,"))
        count = self._count_starts(text.data[position:stop])
        error = self._describe(text.start + position, stop - position, count, result)
        self._report(position, stop - position, error)
        self._note_damage()
        return RecordSpan(position, stop, 1, "damage", error)

    def _long_damage(self) -> tuple[TextChunk, int]:
        """Return a chunk with the beginning of the damage at the start of the window, and the position after it all."""
        text, result = self.text, self.long_damage
        start, head = text.start, text.data[:MAX_DAMAGE_BYTES]
        place = self._place(result)
        position, count = 1, 0
        while (stop := self.resync.find(position, position + MAX_DAMAGE_BYTES, place)) < 0:
            count += self._count_starts(text.data[position - 1 : position + MAX_DAMAGE_BYTES - 1])
            position += MAX_DAMAGE_BYTES
            if text.at_end and position >= len(text.data):
                stop = self._damage_at_end(0, result)
                break
            if 2 * position > len(text.data):
                text.move(position - 1, 0)
                position = 1
        length = text.start + stop - start
        error = self._describe(start, length, count, result) + f"; its first {len(head)} bytes are kept"
        self.report(start, length, error)
        self._note_damage()
        span = RecordSpan(0, len(head), 1, "damage", error)
        return TextChunk(start, head, (span,), self.boundaries.pattern), stop

    def _place(self, result: ScanResult) -> Place:
        by_line = not self.in_array and self.damaged_in_a_row < MAX_DAMAGED_LINES
        return Place(self.in_array, self.in_wrapper, by_line, guess=result.error_at >= 0)

    def _note_damage(self) -> None:
        self.damaged_in_a_row += 1
        self.max_value_bytes = HOSTILE_VALUE_BYTES if self.resync.effort.debt > 0 else self.max_record_bytes

    def _damage_at_end(self, position: int, result: ScanResult) -> int:
        """Return the end of damage after which no record follows: the text's, or that of the array of records."""
        data = self.text.data
        if self.in_array and result.error_at >= 0:
            end = ARRAY_END.search(data, max(position + 1, len(data) - FIRST_SCAN_BYTES))
            return end.start() if end else len(data)
        return len(data)

    def _count_starts(self, damage: bytes) -> int:
        """Return how many records seem to begin in damage."""
        lines = 0 if self.in_array else len(LINE_START.findall(damage))
        return max(lines, self.known.count(damage), int(damage.startswith(b"{")))

    @staticmethod
    def _describe(start: int, length: int, count: int, result: ScanResult) -> str:
        what = f"{result.error} at byte {start + max(0, result.error_at)}"
        what += f"; the damage takes {length} bytes from byte {start}"
        return f"{what}; it seems to hold {count} record{'' if count == 1 else 's'}" if count else what


def _length(value: msgspec.Raw) -> int:
    return memoryview(value).nbytes
