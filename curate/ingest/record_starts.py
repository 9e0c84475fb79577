"""Learn what the records of a file begin with, so that the next record can be located without decoding."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass

from curate.ingest.json_scan import scan_value

RECORD_KEYS = frozenset(
    ("conversations", "conversation", "items", "messages", "mapping", "instruction", "prompt", "turns", "chosen")
)
MAX_RECORDS = 32  # to learn from
MAX_TRIES = 200  # objects to look at
MAX_PATTERNS = 8  # alternatives in one regular expression
FIRST_SCAN_BYTES = 1 << 16  # of a value; all of it is scanned only if it is longer
OBJECT_START = re.compile(rb'\{\s*"')
GAP = re.compile(rb"[\s,\[]*")
SCALAR = rb'(?:"(?:[^"\\]|\\.){0,256}+"|[-+.\w]{1,40})'


@dataclass(frozen=True)
class RecordStart:
    """What the records of a file begin with.

    `pattern` is a regular expression without groups. It matches from `{` to the first key that no object inside a
    record has.
    """

    pattern: bytes

    @property
    def lookahead(self) -> re.Pattern[bytes]:
        """Return a pattern that matches the empty string before a record."""
        return re.compile(rb"(?=" + self.pattern + rb")", re.S)

    @property
    def separator(self) -> re.Pattern[bytes]:
        """Return a pattern that matches the comma between two records, and the white space after it."""
        return separator(self.pattern)


def separator(pattern: bytes) -> re.Pattern[bytes]:
    """Return a pattern for the comma before a record that begins with `pattern`."""
    return re.compile(rb",\s*(?=" + pattern + rb")", re.S)


def learn_record_start(sample: bytes, *, at_record: bool = True) -> RecordStart | None:
    """Learn from the first records of a sample how records begin.

    `at_record`: the sample begins at a record, even if its keys are unknown.
    """
    records = list(_records(sample, at_record))
    inner: set[str] = set()
    for record in records:
        inner.update(_inner_keys(record))
    patterns = dict.fromkeys(pattern for record in records if (pattern := _pattern(record, inner)))
    if not patterns:
        return None
    return RecordStart(rb"\{\s*(?:" + b"|".join(list(patterns)[:MAX_PATTERNS]) + rb")")


def is_record(raw: bytes) -> bool:
    """Return whether a JSON value is an object with a key that records have."""
    return _has_record_key(_decode(raw))


def _has_record_key(value: object) -> bool:
    return isinstance(value, dict) and not RECORD_KEYS.isdisjoint(value)


def _decode(raw: bytes) -> object:
    try:
        return json.loads(raw.decode("utf-8", "replace"), strict=False)
    except (ValueError, RecursionError):
        return None


def _records(sample: bytes, trusted: bool) -> Iterator[dict[str, object]]:
    """Yield consecutive objects; after damage, only those with a record's keys."""
    position = count = 0
    for _ in range(MAX_TRIES):
        match = OBJECT_START.search(sample, position)
        if match is None or count == MAX_RECORDS:
            return
        gap = GAP.match(sample, position)
        trusted = trusted and gap is not None and gap.end() == match.start()
        length = _value_length(sample, match.start())
        value = _decode(sample[match.start() : match.start() + length]) if length >= 0 else None
        trusted = trusted and length >= 0
        if isinstance(value, dict) and (trusted or _has_record_key(value)):
            count += 1
            yield value
        position = match.start() + max(1, length)


def _value_length(sample: bytes, start: int) -> int:
    """Return the length of the value at `start`, or -1."""
    short = memoryview(sample)[start : start + FIRST_SCAN_BYTES]
    result = scan_value(short, final=False, in_array=False)
    if result.incomplete:
        result = scan_value(memoryview(sample)[start:], final=True, in_array=False)
    return result.end


def _inner_keys(value: object) -> Iterator[str]:
    """Yield the keys of all objects inside a value, without its own."""
    stack = list(value.values()) if isinstance(value, dict) else []
    while stack:
        child = stack.pop()
        if isinstance(child, dict):
            yield from child
            stack.extend(child.values())
        elif isinstance(child, list):
            stack.extend(child)


def _pattern(record: dict[str, object], inner: set[str]) -> bytes:
    """Match the keys and scalar values that a record begins with, up to a key that no inner object has."""
    pattern = b""
    for key, value in record.items():
        pattern += re.escape(json.dumps(key, ensure_ascii=False).encode("utf-8", "replace")) + rb"\s*:"
        if key not in inner or isinstance(value, dict | list):
            break
        pattern += rb"\s*" + SCALAR + rb"\s*,\s*"
    return pattern
