"""Move from value to value through a text of records.

The text is a sequence of JSON values separated by white space or commas; `[` outside a value opens an array of
records, and `]` closes it. This one grammar covers an array, JSON lines, concatenated values, and any mixture. Around
the records there may be an object that holds them in an array or as members by their ids, comments, and JavaScript.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice

from curate.ingest.damage import ReportDamage
from curate.ingest.json_scan import ScanResult, scan_value
from curate.ingest.record_starts import Object, RecordStarts, decode, first_records, is_record
from curate.ingest.resync import Resync
from curate.ingest.text.literals import MAX_LITERAL_BYTES
from curate.ingest.text.members import MEMBER, key_of, read_member
from curate.ingest.text_window import TextWindow

SAMPLE_BYTES = 1 << 20  # what records look like is learned from this much text
FIRST_VALUE_BYTES = 1 << 12  # a single value is scanned in this many bytes first, then in four times as many
FIRST_SCAN_BYTES = 1 << 16  # the window around a place where the next value, boundary or end is looked for
COMMENT_BYTES = 1 << 16  # the longest comment
SCRIPT_BYTES = 1 << 9
MAX_WRAPPERS = 3  # objects around an array of records
WRAPPERS = frozenset(
    ("data", "result", "results", "response", "payload", "body", "dataset", "export", "content")
)  # keys
MEMBERS_TRIED = 8  # to learn that an object holds records by their ids
LITERAL_COST = 8  # of reading a byte that is nearly JSON, against one of JSON
SWALLOWED_RECORDS = 3  # an unclosed value that holds so many is damage

GAP = re.compile(rb"(?:[ \t\r\n,]++|\xef\xbb\xbf)*+")  # joined files may have a byte-order mark between records
EMPTY_ARRAYS = re.compile(rb"(?:\[\s*+\][\s,]*+)++")
STRAY_ENDS = re.compile(rb"[\]\s,]++")
LINES_AFTER_BRACKET = re.compile(  # two lines without a comma behind them, or one and another bracket
    rb'\[[ \t\r]*+\n\{[ \t]*+"[^\n]*[^\n,\s][ \t\r]*+\n(?=\[|\{[^\n]*[^\n,\s][ \t\r]*+(?:\n|\Z))'
)
SCALAR_MEMBERS = re.compile(
    rb'(?:[\s,]*+"(?:[^"\\]|\\.)*+"\s*+:\s*+(?:"(?:[^"\\]|\\.)*+"|[-+.\w]++|\[[-+.\w\s,]*+\])\s*+(?=[,}]))*+', re.S
)
COMMENT = re.compile(rb"//[^\n]*+(?:\n|\Z)|/\*(?:[^*]++|\*(?!/))*+\*/|#[^\n]*+(?:\n|\Z)")
SCRIPT = re.compile(  # before records: window.DATA = [, callback([, )]}' against inclusion by other sites
    rb"(?:(?:export\s+default|return)\s+|\)\]\}',?\s*\n"
    rb"|(?:(?:var|let|const)\s+)?[A-Za-z_$][\w$.]*+(?:\[[\w\"'-]+\])*\s*(?:=|\()\s*)(?=[\[{])"
)
SCRIPT_REST = re.compile(rb"[A-Za-z_$][^\[\]{}()=\"'\n]{0,200}+(?:[;\n]|\Z)")  # a statement without a value
OBJECT_END = re.compile(rb"\s*\}")
OPEN_ARRAY, CLOSE_ARRAY = b"[]"
CLOSE_OBJECT = ord("}")


class TextWalk:
    """A walk over the values of a text. Where it leads depends only on the text."""

    def __init__(self, blocks: Iterator[bytes], max_record_bytes: int, report: ReportDamage) -> None:
        self.text = TextWindow(blocks)
        self.max_record_bytes = self.max_value_bytes = max_record_bytes
        self.report = report
        self.in_array = False  # within an array of records
        self.wrappers = 0  # objects around that array
        self.in_members = False  # within an object whose members are records, by their ids
        self.in_script = False  # within a script
        self.comments = 0  # between records, the first at byte `first_comment`, up to byte `commented_until`
        self.first_comment = self.commented_until = 0
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
        position = self._skip_script(position)
        if self.text.data[position : position + 1] == b"{":
            if (inside := self._find_array(position + 1)) >= 0:
                self.in_array = True
                self.wrappers += 1
                position = inside
            elif (inside := self._find_members(position + 1)) >= 0:
                self.in_members = True
                return inside
        self.text.fill(position + SAMPLE_BYTES)
        records = list(first_records(self.text.data[position : position + SAMPLE_BYTES]))
        if self.in_wrapper and len(records) > 1:
            del records[-1]  # without its bracket it would hold those after it, closed by the end of the object
        self.known.learn(records)
        return position

    @property
    def in_wrapper(self) -> bool:
        """Whether an object is around the array of records."""
        return self.wrappers > 0

    def _skip_gap(self, position: int) -> int:
        """Skip what may be between values: white space, commas and comments."""
        while True:
            gap = GAP.match(self.text.data, position)
            position = gap.end() if gap else position
            byte = self.text.data[position : position + 1]
            if self.in_script and byte and byte in b";)":
                position += 1
            elif byte not in (b"/", b"#") or (end := self._comment_end(position)) == position:
                return position
            else:
                position = end

    def _comment_end(self, position: int) -> int:
        """Return the end of a comment, which is counted once; `position` if it is none."""
        self.text.fill(position + COMMENT_BYTES + 1)
        comment = COMMENT.match(self.text.data, position, position + COMMENT_BYTES)
        if comment is None or comment.end() == position + COMMENT_BYTES:
            return position
        at = self.text.start + position
        if at >= self.commented_until:
            self.first_comment = self.first_comment if self.comments else at
            self.comments += 1
            self.commented_until = self.text.start + comment.end()
        return comment.end()

    def _skip_script(self, position: int) -> int:
        """Skip JavaScript before the records, such as `window.DATA = `."""
        if self.in_script and (rest := SCRIPT_REST.match(self.text.data, position)):
            return rest.end()
        script = SCRIPT.match(self.text.data, position, position + SCRIPT_BYTES)
        if script is None:
            return position
        if not self.in_script:
            code = script[0].decode("utf-8", "replace").strip()
            self._report(position, 0, f"the text is JavaScript: {code!r} before the records is passed over")
        self.in_script = True
        return script.end()

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
            elif self.in_members and (after := self._skip_scalars(position)) > position:
                position = after
            elif self.in_members and self.text.data[position] == CLOSE_OBJECT:
                self.in_members = False
                position += 1
            elif self.in_script and not self.in_array and (after := self._skip_script(position)) > position:
                position = after
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
        position += 1
        while self.wrappers:
            if (inside := self._find_array(position)) >= 0:
                self.in_array = True
                return inside
            position = self._leave_wrapper(position)
            self.wrappers -= 1
        return position

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

    def _find_array(self, position: int, depth: int = 1) -> int:
        """Walk the members of an object; return the position inside the next array of records, or -1.

        The array may be in further objects, under keys that only wrap; they are counted.
        """
        while position < self.max_record_bytes:
            position = self._skip_scalars(position)
            member = MEMBER.match(self.text.data, position)
            if member is None:
                return -1
            if self._opens_records(member.end()):
                return member.end() + 1
            if depth < MAX_WRAPPERS and key_of(member[0]) in WRAPPERS and self._is_object(member.end()):
                inside = self._find_array(member.end() + 1, depth + 1)
                if inside >= 0:
                    self.wrappers += 1
                    return inside
            value = self._scan_value(member.end())
            if value.end < 0:
                return -1
            position = value.end
        return -1

    def _is_object(self, position: int) -> bool:
        return self.text.data[position : position + 1] == b"{"

    def _find_members(self, position: int) -> int:
        """Return where the first member of an object is that is a record by its id; -1 if not all of them are.

        A few members are looked at. An object that ends before must be the whole text: lines may hold pairs of records.
        """
        first = position = self._skip_scalars(position)
        records: list[Object] = []
        for _ in range(MEMBERS_TRIED):
            self.text.fill(position + FIRST_SCAN_BYTES)
            if (member := MEMBER.match(self.text.data, position)) is None:
                break
            value = self._scan_value(member.end())
            if value.end < 0 and len(records) > 1:  # damaged
                break
            if value.end < 0 or read_member(self.text.data[position : value.end]) is None:
                return -1
            record = decode(self.text.data[member.end() : value.end])
            records.append(record if isinstance(record, dict) else {})
            position = value.end
        if len(records) < MEMBERS_TRIED and not self._is_whole(records, position):
            return -1
        self.known.learn(records)
        return first

    def _is_whole(self, records: list[Object], position: int) -> bool:
        """Return whether an object with these members is the whole text, or goes on at `position`."""
        end = OBJECT_END.match(self.text.data, position)
        self.text.fill(position + FIRST_SCAN_BYTES)
        return len(records) > 1 and (end is None or self._skip_gap(end.end()) == len(self.text.data))

    def _skip_scalars(self, position: int) -> int:
        """Return the end of members that are no record, such as a version."""
        self.text.fill(position + FIRST_SCAN_BYTES)
        scalars = SCALAR_MEMBERS.match(self.text.data, position)
        return scalars.end() if scalars else position

    def _member_value(self, position: int) -> int:
        """Return where the value of the member at `position` begins; `position` if no member begins there."""
        self.text.fill(position + FIRST_SCAN_BYTES)
        member = MEMBER.match(self.text.data, position) if self.in_members else None
        return member.end() if member else position

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
            is_affordable = self.resync.effort.debt <= 0
            result = scan_value(window, final=final, in_array=self.in_array, literal=is_affordable)
            if result.end >= 0:
                return result._replace(end=position + result.end)
            cost = (len(window) if result.incomplete else result.error_at) + LITERAL_COST * result.literal_bytes
            self.resync.effort.charge(cost, self.text.start + position + cost)
            if not result.incomplete:
                return result
            if result.error and (final or size == self.max_value_bytes or size > MAX_LITERAL_BYTES):
                return result._replace(incomplete=False)
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
        """Report brackets without a partner, and comments."""
        if self.in_array or self.in_members:
            what = "array" if self.in_array else "object"
            self._report(position, 0, f"the {what} of records is not closed: the file is cut off")
        if self.comments:
            what = (
                "a comment between records is"
                if self.comments == 1
                else f"{self.comments} comments between records are"
            )
            self.report(self.first_comment, 0, f"{what} passed over, the first at byte {self.first_comment}")
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
