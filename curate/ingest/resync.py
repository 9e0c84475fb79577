"""Find the next whole record after damage, by decoding every object that begins there.

An object is a record if it has the keys of earlier records. If it has other keys, what follows it decides: an object
inside a record is followed by the rest of that record. Decoding that leads nowhere counts against a budget in
proportion to the text, so hostile text cannot make it slow.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from curate.ingest.json_scan import ScanResult, scan_value
from curate.ingest.record_starts import RECORD_KEYS, Object, RecordStarts, decode, inner_objects
from curate.ingest.text_window import TextWindow

SEARCH_BYTES = 1 << 20  # read at a time
FIRST_TRY_BYTES = 1 << 12  # of an object, then four times as many
OVERLAP_BYTES = 64  # longer than any match of a start
TAIL_BYTES = 1 << 12  # looked at after an object
LOOKAHEAD_BYTES = 1 << 16  # of neighbours that are decoded to learn whether an object is a record
CALL_BYTES = 1 << 10  # what one try costs, as bytes decoded in the same time
EFFORT_BYTES = 4 << 20  # that may be decoded in vain in any text
EFFORT_RATIO = 12  # and this many for each byte of it

OBJECT = re.compile(rb'\{\s{0,60}+"')
LINE_OR_OBJECT = re.compile(rb'\n(?=[\[{])|\{\s{0,60}+"')
LINE_OBJECT = re.compile(rb'\n\{\s{0,60}+"')
LINE = re.compile(rb"\n(?=[\[{])")
MEMBER_BEFORE = re.compile(rb'"\s*:\s*\Z')
INNER_END = re.compile(rb'\s*+(?:\}|,\s*+"(?:[^"\\]|\\.)*+"\s*+:)', re.S)
ARRAY_END = re.compile(rb"\s*+\]")
TEXT_END = {  # after the last record of an array, by whether it is in an object
    False: re.compile(rb"\s*+\]\s*+\Z"),
    True: re.compile(rb"\s*+\]\s*+\}\s*+\Z"),
}
MEMBER_AFTER = re.compile(rb'\s*+\]\s*+,\s*+"(?:[^"\\]|\\.)*+"\s*+:', re.S)
NEXT_ARRAY_OR_LINE = re.compile(rb"\s*+\]\s*+[\[{]")
LINE_END = re.compile(rb"[\s,]*\n(?=[\[{])|[\s,]*+\Z")
NEXT_ELEMENT = re.compile(rb"\s*+,\s*+(?=\{)")


@dataclass
class Effort:
    """Bytes decoded in vain so far, and how far the text was read. Both depend on the text alone, not on windows."""

    spent: int = 0
    reached: int = 0

    def charge(self, cost: int, reached: int) -> None:
        """Charge `cost` bytes of decoding, in a text read up to byte `reached`."""
        self.spent += cost
        self.reached = max(self.reached, reached)

    @property
    def debt(self) -> int:
        """How many bytes of the text must pass before anything is decoded in vain again; 0: none."""
        return max(0, self.spent - EFFORT_BYTES) // EFFORT_RATIO - self.reached


@dataclass(frozen=True)
class Place:
    """Where damage lies: in an array of records, which may be in an object, or among lines.

    `by_line`: the next line that begins with a bracket ends it. `guess`: objects may be records although nothing is
    known of records yet, since the damaged value is malformed and not just too long.
    """

    in_array: bool
    in_wrapper: bool
    by_line: bool
    guess: bool


class Resync:
    """Find records after damage in the window of a text."""

    def __init__(self, text: TextWindow, known: RecordStarts, max_record_bytes: int) -> None:
        self.text = text
        self.known = known
        self.max_record_bytes = max_record_bytes
        self.effort = Effort()
        self.first = 0  # where the search began

    def find(self, position: int, stop: int, place: Place) -> int:
        """Return where the next record at or after `position` begins; -1 if none does before `stop`."""
        text = self.text
        self.first = position
        resume = position  # objects before it are not tried
        while position < stop:
            if not place.by_line:
                position = max(position, resume)
            only_lines = place.by_line and position < resume
            pattern = LINE if only_lines else self._pattern(place)
            limit = min(stop, position + SEARCH_BYTES, resume if only_lines else stop)
            text.fill(limit + OVERLAP_BYTES)
            match = pattern.search(text.data, position, limit + OVERLAP_BYTES)
            if match is None or match.start() >= limit:
                if text.at_end and limit >= len(text.data):
                    return -1
                position = limit
            elif place.by_line and text.data[match.start()] == ord("\n"):
                return match.end()
            else:
                position = text.data.index(b"{", match.start())
                resume = self._try(position, place)
                if resume == position:
                    return position
        return -1

    @staticmethod
    def _pattern(place: Place) -> re.Pattern[bytes]:
        if place.in_array:
            return OBJECT
        return LINE_OR_OBJECT if place.by_line else LINE_OBJECT

    def _try(self, start: int, place: Place) -> int:
        """Return `start` if a record begins there; otherwise where to try next."""
        self.effort.charge(0, self.text.start + start)
        if debt := max(0, self.effort.debt):
            return start + 1 + debt
        end = self.scan(start).end
        if end < 0:
            return start + 1
        value = decode(self.text.data[start:end])
        if not isinstance(value, dict) or self.holds_record(value):
            return start + 1
        is_record = self._are_known(value)
        if is_record is None:
            is_record, end = self._judge(value, start, end, place)
        if not is_record:
            return end
        if frozenset(value) not in self.known.shapes:
            self.known.learn([value])
        return start

    def _are_known(self, value: Object) -> bool | None:
        """Return whether earlier records had the keys of an object (True) or objects inside them had (False)."""
        keys = frozenset(value)
        if keys in self.known.inner_shapes:
            return None if keys in self.known.shapes else False
        return self.known.are_known(keys) or None

    def is_known_record(self, start: int, stop: int) -> bool:
        """Return whether an object from `start` ends before `stop`, and has the keys of records and of nothing else."""
        end = self.scan(start, stop - start).end
        value = decode(self.text.data[start:end]) if end >= 0 else None
        return isinstance(value, dict) and frozenset(value) in self.known.shapes - self.known.inner_shapes

    def _holds_turns(self, value: Object) -> bool:
        """Return whether an object has objects inside that earlier records had inside."""
        return any(frozenset(inner) in self.known.inner_shapes for inner in inner_objects(value))

    def holds_record(self, value: Object) -> bool:
        """Return whether an object has a record inside: two records joined by damage, or what is around records."""
        shapes = self.known.shapes - self.known.inner_shapes
        return bool(shapes) and any(frozenset(inner) in shapes for inner in inner_objects(value))

    def scan(self, start: int, max_bytes: int = 1 << 62) -> ScanResult:
        """Find the end of the object at `start`, if it is shorter; the end is a position in the window."""
        max_bytes = min(max_bytes, self.max_record_bytes)
        size = min(FIRST_TRY_BYTES, max_bytes)
        while True:
            self.text.fill(start + size + 1)
            final = start + size >= len(self.text.data)
            window = memoryview(self.text.data)[start : start + size]
            result = scan_value(window, final=final, in_array=False, deep=False)
            cost = len(window) if result.incomplete or not result.error_at else max(result.end, result.error_at, 0)
            self.effort.charge(cost + CALL_BYTES, self.text.start + start + cost)
            if result.end >= 0:
                return result._replace(end=start + result.end)
            if not result.incomplete or final or size >= max_bytes:
                return result
            size = min(4 * size, max_bytes)

    def _judge(self, value: Object, start: int, end: int, place: Place) -> tuple[bool, int]:
        """Return whether an object with unknown keys is a record, from its surroundings; and where to try next."""
        is_likely = not RECORD_KEYS.isdisjoint(value) or self._holds_turns(value)
        if MEMBER_BEFORE.search(self.text.data, max(self.first, start - OVERLAP_BYTES), start):
            return False, end
        first = end
        while (is_record := self._is_last(start, end, place)) is None:
            element = NEXT_ELEMENT.match(self.text.data, end, end + TAIL_BYTES)
            if element is None:
                return is_likely, end
            if end - first > LOOKAHEAD_BYTES or self.effort.debt > 0:
                return is_likely or (place.guess and not self.known.shapes), end
            result = self.scan(element.end())
            following = decode(self.text.data[element.end() : result.end]) if result.end >= 0 else None
            if not isinstance(following, dict) or self._are_known(following):
                return is_likely, end
            if self._are_known(following) is False:
                return False, result.end
            if not is_likely and 2 * len(value.keys() & following.keys()) < len(value):
                return False, end  # the next is of another kind: a bracket is missing between them
            end = result.end
        return is_record, end

    def _is_last(self, start: int, end: int, place: Place) -> bool | None:
        """Return whether an object is the last of an array of records, or a whole line; False: it is in a record.

        None: what follows it does not say.
        """
        self.text.fill(end + TAIL_BYTES + 1)
        tail = self.text.data[end : end + TAIL_BYTES]
        final = end + TAIL_BYTES >= len(self.text.data)
        if place.in_array and final and TEXT_END[place.in_wrapper].match(tail):
            return True
        if INNER_END.match(tail):
            return False
        if not place.in_array:
            is_line = start > self.first and self.text.data[start - 1] == ord("\n") and LINE_END.match(tail)
            return True if is_line else None
        if not ARRAY_END.match(tail):
            return None
        if place.in_wrapper and MEMBER_AFTER.match(tail):
            return None  # of the object around the records, or of a record
        return not place.in_wrapper and NEXT_ARRAY_OR_LINE.match(tail) is not None
