"""Where records begin and end: a text is cut into stretches of whole records, each proven by a decode.

The text is a run of JSON values with white space or commas between them; `[` outside a value opens an array of
records, and `]` closes it. So one grammar holds for an array, JSON lines, values one after the other, and a mixture.
A stretch is proven whole by decoding it as a list of raw values: as JSON can be read in one way only, both its ends
then lie between records, and the next stretch begins at a record too. Where a stretch cannot be proven, its records
are taken one at a time; what is no value at all is damage, which ends where the next record begins.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import msgspec

from curate.ingest.json_scan import Found, scan
from curate.ingest.record_starts import Head, holds_record, learn
from curate.ingest.streams import Note

SHORT = 1 << 16  # bytes that the next proof reaches over after one that failed; doubled by each that succeeds
LAST = 4  # the end of a long text is cut so many times finer: workers then end at about one time
SAMPLE = 1 << 20  # bytes that the look of a record is learned from
WINDOW = 1 << 16  # bytes that a single value is first looked for in; four times as many each time it is longer
UNKNOWN = 64 << 20  # bytes of damage in one piece while it is not known what a record looks like

SPACE = re.compile(rb"(?:[ \t\r\n,]++|\xef\xbb\xbf)*+")  # a byte-order mark stands where files were joined
LINE = re.compile(rb"\n(?=\{)")
LINE_START = re.compile(rb"\n(?=[\[{])")
ELEMENT = re.compile(rb"[\]}]\s*,\s*(?=[\[{])")
PLAIN = re.compile(rb',\s*(?=["\w\[{-])')
TAIL = re.compile(rb"\]\s*(?:\}\s*)?\Z")  # the end of an array, or of an array in an object
MEMBER = re.compile(rb'[\s,]*"(?:[^"\\]|\\.)*+"\s*:\s*', re.S)
CLOSED = re.compile(rb"\s*\}")
OPEN_ARRAY, CLOSE_ARRAY = b"[]"

_list = msgspec.json.Decoder(list[msgspec.Raw])
_lines = msgspec.json.Decoder(msgspec.Raw)


@dataclass(frozen=True, slots=True)
class Cut:
    """Bytes `start` to `stop` of a chunk: `count` records of one kind.

    `array`: values with commas between them; `lines`: values with white space between them; `record`: one value;
    `damage`: one stretch that is no value, and why.
    """

    start: int
    stop: int
    count: int
    kind: str
    why: str = ""


@dataclass(frozen=True)
class Stretch:
    """Bytes of the text from byte `start`, and the records in them."""

    start: int
    data: bytes
    cuts: tuple[Cut, ...]
    head: bytes


class Text:
    """A window on a text that moves forward only; `data[0]` is byte `start` of it."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self.blocks = blocks
        self.data = b""
        self.start = 0
        self.ended = False

    def move(self, by: int, size: int) -> None:
        """Drop `by` bytes, and read on until `size` are at hand or the text ends."""
        self.start += by
        self._read(memoryview(self.data)[by:], size)

    def fill(self, size: int) -> None:
        """Read on until `size` bytes are at hand or the text ends."""
        if len(self.data) < size:
            self._read(memoryview(self.data), size)

    def _read(self, rest: memoryview, size: int) -> None:
        parts: list[bytes | memoryview] = [rest]
        have = len(rest)
        while have < size and not self.ended:
            block = next(self.blocks, None)
            self.ended = block is None
            parts.append(block or b"")
            have += len(parts[-1])
        self.data = b"".join(parts)


class Cutter:
    """Cut a text into stretches of about `chunk_bytes`; where they are cut depends on the text alone."""

    def __init__(self, blocks: Iterator[bytes], chunk_bytes: int, max_record_bytes: int, note: Note) -> None:
        self.text = Text(blocks)
        self.chunk_bytes = self.whole = chunk_bytes
        self.max_record_bytes = max_record_bytes
        self.note = note
        self.in_array = False
        self.in_wrapper = False
        self.arrays = 0  # of records, entered so far
        self.head: Head | None = None
        self.reach = chunk_bytes  # bytes that the next proof is tried on
        self.wait = self.failures = 0  # records to take singly before the next proof

    def __iter__(self) -> Iterator[Stretch]:
        pos = self._begin()
        while (pos := self._next(pos, reading=True)) < len(self.text.data):
            self.text.move(pos, self.chunk_bytes + max(64, self.chunk_bytes // 4))
            if self.text.ended and self.text.start > self.whole:
                self.chunk_bytes = max(self.whole // LAST, 1)
            cuts, pos = self._stretch()
            head = self.head.pattern if self.head else b""
            yield Stretch(self.text.start, self.text.data[: cuts[-1].stop], tuple(cuts), head)
        if self.in_array:
            self._note(pos, 0, "the array of records is not closed: the file is cut off")

    def _note(self, pos: int, lost: int, what: str) -> None:
        self.note(self.text.start + pos, lost, what)

    # ── moving between values ────────────────────────────────────────────────────────────────────────────────────

    def _begin(self) -> int:
        """Learn what a record looks like; step into an object that only holds an array of records."""
        self.text.fill(SAMPLE)
        while (pos := self._space(0)) == len(self.text.data) and not self.text.ended:
            self.text.move(pos, SAMPLE)
        self.head = learn(self.text.data[pos : pos + SAMPLE])
        if self.text.data[pos : pos + 1] == b"{" and (inside := self._find_array(pos + 1)) >= 0:
            self.in_array = self.in_wrapper = True
            return inside
        return pos

    def _space(self, pos: int) -> int:
        found = SPACE.match(self.text.data, pos)
        return found.end() if found else pos

    def _next(self, pos: int, *, reading: bool = False) -> int:
        """Return where the next value begins, or the end of what is at hand (`reading`: of the text)."""
        while True:
            pos = self._space(pos)
            if pos == len(self.text.data):
                if self.text.ended or not reading:
                    return pos
                self.text.move(pos, 1)
                pos = 0
            elif self.text.data[pos] == CLOSE_ARRAY:
                pos = self._leave(pos)
            elif self.text.data[pos] == OPEN_ARRAY and not self.in_array:
                self.in_array = True
                self.arrays += 1
                pos += 1
            else:
                return pos

    def _leave(self, pos: int) -> int:
        if not self.in_array:
            self._note(pos, 1, "a ']' closes nothing")
            return pos + 1
        self.in_array = False
        if not self.in_wrapper:
            return pos + 1
        inside = self._find_array(pos + 1)
        self.in_array = self.in_wrapper = inside >= 0
        return inside if inside >= 0 else self._leave_wrapper(pos + 1)

    def _leave_wrapper(self, pos: int) -> int:
        while found := MEMBER.match(self.text.data, pos):
            value = self._value(found.end())
            if value.end < 0:
                break
            pos = value.end
        if closed := CLOSED.match(self.text.data, pos):
            return closed.end()
        self._note(pos, 0, "the object around the records is not closed")
        return pos

    def _find_array(self, pos: int) -> int:
        """Walk the members of an object; return the place inside the next array of records, or -1."""
        self.text.fill(pos + WINDOW)
        while found := MEMBER.match(self.text.data, pos):
            pos = found.end()
            if self._opens_records(pos):
                return pos + 1
            value = self._value(pos)
            if value.end < 0:
                return -1
            pos = value.end
            self.text.fill(pos + WINDOW)
        return -1

    def _opens_records(self, pos: int) -> bool:
        """Say whether an array begins here that has a record among its first values (the very first may be odd)."""
        if self.text.data[pos : pos + 1] != b"[":
            return False
        pos += 1
        for _ in range(3):
            pos = self._space(pos)
            value = self._value(pos)
            if value.end < 0:
                return False
            if holds_record(self.text.data[pos : value.end]):
                return True
            pos = value.end
        return False

    # ── cutting ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _stretch(self) -> tuple[list[Cut], int]:
        """Cut records from the front of what is at hand until there are enough bytes of them."""
        cuts: list[Cut] = []
        pos = 0
        self.reach = self.chunk_bytes
        self.wait = self.failures = 0
        while pos < min(self.chunk_bytes, len(self.text.data)):
            cut = self._proven(pos) or self._single(pos)
            cuts.append(cut)
            pos = self._next(cut.stop)
        return cuts, pos

    def _proven(self, pos: int) -> Cut | None:
        """Return a cut of as many records as one decode can prove, if any."""
        if self.wait:
            self.wait -= 1
            return None
        edge = self._edge(min(pos + min(self.reach, self.max_record_bytes // 2), self.chunk_bytes))
        count, bad = self._count(pos, edge)
        if count:
            self.reach *= 2
            self.failures = 0
        else:
            self.reach = SHORT
            edge = self._last_edge(pos, bad)  # what comes before the record that cannot be read is whole
            count, _ = self._count(pos, edge)
        if count:
            return Cut(pos, edge, count, "array" if self.in_array else "lines")
        self.failures = min(self.failures + 1, 6)
        self.wait = 0 if bad >= 0 else 1 << self.failures
        return None

    def _edge(self, pos: int) -> int:
        """Return the end of the first record that seems to end at or after `pos`; -1 if none is at hand."""
        if self.in_array:
            found = self.head.comma.search(self.text.data, pos) if self.head else None
            if found is None and self.text.ended:
                found = TAIL.search(self.text.data, max(0, len(self.text.data) - WINDOW))
        else:
            found = LINE.search(self.text.data, pos)
            if found is None and self.text.ended:
                return len(self.text.data)
        return found.start() if found else -1

    def _last_edge(self, pos: int, bad: int) -> int:
        pattern = (self.head.comma if self.head else None) if self.in_array else LINE
        last = -1
        if pattern is not None and bad > 0:
            for found in pattern.finditer(self.text.data, pos, bad):
                last = found.start()
        return last

    def _count(self, pos: int, edge: int) -> tuple[int, int]:
        """Count the records from `pos` to `edge`: (count, -1), or (0, where it cannot be read, -1 if not known)."""
        if not pos < edge < pos + self.max_record_bytes:
            return 0, -1
        part = memoryview(self.text.data)[pos:edge]
        try:
            if self.in_array:
                return len(_list.decode(b"".join((b"[", part, b"]")))), -1
            values = _lines.decode_lines(part)
        except RecursionError:
            return 0, -1
        except msgspec.DecodeError as error:
            place = str(error).rpartition("(byte ")[2].rstrip(")")
            return 0, pos + int(place) - self.in_array if place.isdigit() else -1
        arrays = any(memoryview(value)[0] == OPEN_ARRAY for value in values)  # these hold records, and are none
        return (0, -1) if arrays else (len(values), -1)

    def _single(self, pos: int) -> Cut:
        """Cut one record, or one stretch of damage."""
        found = self._value(pos)
        if found.end >= 0:
            return Cut(pos, found.end, 1, "record")
        stop = self._damage_end(pos, cut_off=found.place < 0)
        what = f"{found.why} at byte {self.text.start + pos + max(0, found.place)}"
        lost = f"the damage takes {stop - pos} bytes from byte {self.text.start + pos}"
        self._note(pos, stop - pos, f"{what}; {lost}")
        return Cut(pos, stop, 1, "damage", f"{what}; {lost}")

    def _value(self, pos: int) -> Found:
        """Find the end of the value at `pos`, reading on as far as it takes; `place` counts from `pos`."""
        size = WINDOW
        while True:
            size = min(size, self.max_record_bytes)
            self.text.fill(pos + size)
            final = self.text.ended and pos + size >= len(self.text.data)
            found = scan(memoryview(self.text.data)[pos : pos + size], final=final, in_array=self.in_array)
            if found.end >= 0:
                return found._replace(end=pos + found.end)
            if not found.open:
                return found
            if final:
                return Found(-1, -1, "the file ends inside a record")
            if size == self.max_record_bytes:
                return Found(-1, -1, f"no end of the record within {size} bytes (max_record_bytes)")
            size *= 4

    def _damage_end(self, pos: int, *, cut_off: bool) -> int:
        """Return the end of what is damaged from `pos` on: the next record's start, less what stands between."""
        stop = self._resume(pos)
        data = self.text.data
        if stop == len(data) and self.in_array and not cut_off:
            closed = TAIL.search(data, max(pos + 1, len(data) - WINDOW))
            stop = closed.start() if closed else stop
        while stop > pos + 1 and data[stop - 1] in b" \t\r\n,":
            stop -= 1
        return stop

    def _resume(self, pos: int) -> int:
        """Return where the first record after `pos` seems to begin, or the end of the text."""
        limit = pos + (self.max_record_bytes if self.head else min(self.max_record_bytes, UNKNOWN))
        search = pos + 1
        while self.head is None and search < limit:
            self.text.fill(search + SAMPLE)
            self.head = learn(self.text.data[search : search + SAMPLE], trusting=False)
            if search + SAMPLE >= len(self.text.data):
                break
            search += SAMPLE
        patterns = [self.head.start] if self.head else []
        if not self.in_array:
            patterns.append(LINE_START)
        elif self.head is None:
            patterns.append(ELEMENT if self.text.data[pos] in b"[{" else PLAIN)
        search = pos + 1
        while True:
            found = [match.end() for pattern in patterns if (match := pattern.search(self.text.data, search))]
            if found or self.text.ended or len(self.text.data) > limit:
                return min([*found, len(self.text.data), limit])
            search = max(search, len(self.text.data) - WINDOW)
            self.text.fill(pos + 2 * (len(self.text.data) - pos))
