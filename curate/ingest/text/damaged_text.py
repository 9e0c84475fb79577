"""Find where damage to a text of records ends, and describe it."""

from __future__ import annotations

import re
from itertools import islice

from curate.ingest.json_scan import ScanResult
from curate.ingest.record_starts import RECORD_KEYS, decode, first_records, inner_objects, skip_objects
from curate.ingest.resync import OBJECT, Place
from curate.ingest.text import literals
from curate.ingest.text.spans import RecordSpan, TextChunk
from curate.ingest.text.walk import FIRST_SCAN_BYTES, GAP, SAMPLE_BYTES, TextWalk

MAX_HEAD_TRIES = 200  # objects that are tried as the first whole record after a lost beginning
MAX_DAMAGE_BYTES = 16 << 20  # of one damaged span are kept
MAX_DAMAGED_LINES = (
    100  # in a row that become a record each; the damage after them, up to the next whole record, becomes one
)
HOSTILE_VALUE_BYTES = 1 << 12  # a value must be shorter while too much was decoded in vain
RECORD_END_BYTES = 1 << 12  # looked at after a record

COMMENT_AFTER = re.compile(rb'[ \t,]*+(?:/\*(?:[^*"]|\*(?!/))*+\*/|(?://|\#)[^\n"]*+(?=\n|\Z))')
PYTHON_END = re.compile(rb"[ \t\r,]*+(?:\Z|[\n{\])])")  # after a record as Python prints it
SCRIPT_END = re.compile(rb"[\s\]})]*+;")
LINE_START = re.compile(rb"^\{", re.M)
ARRAY_END = re.compile(rb"\]\s*(?:\}\s*)?\Z")  # the end of an array, or of an array in an object
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


class DamagedText(TextWalk):
    """A walk that finds its way past damage: bytes that are not a value, up to where the next record begins."""

    damaged_in_a_row = 0
    long_damage: ScanResult

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
                self.known.forget()
                self.known.learn(records)
                return position + match.start()
        return -1

    def _cut_head(self, position: int, stop: int) -> TextChunk:
        """Return a chunk with the rest of a record whose beginning is lost."""
        data = self.text.data[position:stop].rstrip(b" \t\r\n,")
        start = self.text.start + position
        error = f"the text begins inside a record; the damage takes {len(data)} bytes from byte {start}"
        self._report(position, len(data), error)
        return TextChunk(start, data, (RecordSpan(0, len(data), 1, "damage", error),), self.known.pattern)

    def _is_cut(self, position: int, stop: int) -> bool:
        """Return whether text follows an object on its line: a bare quote before a `}` of a text ended it too early."""
        if self.text.data[position] != ord("{"):
            return False
        limit = stop + RECORD_END_BYTES
        self.text.fill(limit)
        if literals.PYTHON_START.match(self.text.data, position) and PYTHON_END.match(self.text.data, stop, limit):
            return False
        if self.in_script and SCRIPT_END.match(self.text.data, stop, limit):
            return False
        return RECORD_END.match(self.text.data, self._skip_comment(stop), limit) is None

    def _skip_comment(self, stop: int) -> int:
        """Return the end of a comment after a record on its line, if it is plainly one."""
        comment = COMMENT_AFTER.match(self.text.data, stop, stop + RECORD_END_BYTES)
        return comment.end() if comment else stop

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
        return TextChunk(start, head, (span,), self.known.pattern), stop

    def _place(self, result: ScanResult) -> Place:
        by_line = not (self.in_array or self.in_members) and self.damaged_in_a_row < MAX_DAMAGED_LINES
        return Place(self.in_array or self.in_members, self.in_wrapper, by_line, guess=result.error_at >= 0)

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
