"""Move from value to value through a text of records.

The text is a sequence of JSON values separated by white space or commas; `[` outside a value opens an array of
records, and `]` closes it. This one grammar covers an array, JSON lines, concatenated values, and any mixture.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice

from curate.ingest.damage import ReportDamage
from curate.ingest.json_scan import ScanResult, scan_value
from curate.ingest.record_starts import RecordStarts, first_records, is_record
from curate.ingest.resync import Resync
from curate.ingest.text_window import TextWindow

SAMPLE_BYTES = 1 << 20  # what records look like is learned from this much text
FIRST_VALUE_BYTES = 1 << 12  # a single value is scanned in this many bytes first, then in four times as many
FIRST_SCAN_BYTES = 1 << 16  # the window around a place where the next value, boundary or end is looked for
SWALLOWED_RECORDS = 3  # an unclosed value that holds so many is damage

GAP = re.compile(rb"(?:[ \t\r\n,]++|\xef\xbb\xbf)*+")  # joined files may have a byte-order mark between records
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
OPEN_ARRAY, CLOSE_ARRAY = b"[]"


class TextWalk:
    """A walk over the values of a text. Where it leads depends only on the text."""

    def __init__(self, blocks: Iterator[bytes], max_record_bytes: int, report: ReportDamage) -> None:
        self.text = TextWindow(blocks)
        self.max_record_bytes = self.max_value_bytes = max_record_bytes
        self.report = report
        self.in_array = False  # within an array of records
        self.in_wrapper = False  # within an object that has that array as a member
        self.arrays = 0  # arrays of records opened so far
        self.loose_brackets: list[int] = []  # where a `[` opened lines instead of an array
        self.stray_ends = 0  # each `]` that closes nothing, from byte `first_stray_end`
        self.first_stray_end = 0
        self.known = RecordStarts()  # depends on the text alone
        self.resync = Resync(self.text, self.known, max_record_bytes)

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
        return position

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
