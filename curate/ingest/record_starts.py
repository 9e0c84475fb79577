"""What the records of a file begin with, learned from its first ones: how to find the next one in bytes alone."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass

from curate.ingest.json_scan import scan

RECORD_KEYS = frozenset(
    ("conversations", "conversation", "items", "messages", "mapping", "instruction", "prompt", "turns", "chosen")
)
MAX_RECORDS = 32
MAX_TRIES = 200
MAX_HEADS = 8
SHORT = 1 << 16  # bytes that a value is first looked for in
OBJECT = re.compile(rb'\{\s*"')
BETWEEN = re.compile(rb"[\s,\[]*")
SCALAR = rb'(?:"(?:[^"\\]|\\.){0,256}+"|[-+.\w]{1,40})'


@dataclass(frozen=True)
class Head:
    """How the records of a file begin: `pattern` is a regular expression without groups, from `{` to the first key
    that no object inside a record has."""

    pattern: bytes

    @property
    def start(self) -> re.Pattern[bytes]:
        """Match the empty place before a record."""
        return re.compile(rb"(?=" + self.pattern + rb")", re.S)

    @property
    def comma(self) -> re.Pattern[bytes]:
        """Match the comma between two records, and the white space after it."""
        return comma(self.pattern)


def comma(pattern: bytes) -> re.Pattern[bytes]:
    """Return what matches the comma before a record that begins with `pattern`."""
    return re.compile(rb",\s*(?=" + pattern + rb")", re.S)


def learn(sample: bytes, *, trusting: bool = True) -> Head | None:
    """Learn how records begin from the first of them. `trusting`: the sample begins at a record, whatever its keys."""
    records = list(_records(sample, trusting))
    inner: set[str] = set()
    for record in records:
        inner.update(_inner_keys(record))
    patterns = dict.fromkeys(pattern for record in records if (pattern := _pattern(record, inner)))
    if not patterns:
        return None
    return Head(rb"\{\s*(?:" + b"|".join(list(patterns)[:MAX_HEADS]) + rb")")


def holds_record(raw: bytes) -> bool:
    """Say whether a JSON value is an object with a key that records have."""
    return _is_record(_decode(raw))


def _is_record(value: object) -> bool:
    return isinstance(value, dict) and not RECORD_KEYS.isdisjoint(value)


def _decode(raw: bytes) -> object:
    try:
        return json.loads(raw.decode("utf-8", "replace"), strict=False)
    except (ValueError, RecursionError):
        return None


def _records(sample: bytes, trusting: bool) -> Iterator[dict[str, object]]:
    """Yield objects one after the other; past damage, only those that have a record's keys."""
    pos = found = 0
    for _ in range(MAX_TRIES):
        match = OBJECT.search(sample, pos)
        if match is None or found == MAX_RECORDS:
            return
        between = BETWEEN.match(sample, pos)
        trusting = trusting and between is not None and between.end() == match.start()
        end = _end(sample, match.start())
        value = _decode(sample[match.start() : match.start() + end]) if end >= 0 else None
        trusting = trusting and end >= 0
        if isinstance(value, dict) and (trusting or _is_record(value)):
            found += 1
            yield value
        pos = match.start() + max(1, end)


def _end(sample: bytes, start: int) -> int:
    """Return how long the value at `start` is, or -1."""
    short = memoryview(sample)[start : start + SHORT]
    found = scan(short, final=False, in_array=False)
    if found.open:
        found = scan(memoryview(sample)[start:], final=True, in_array=False)
    return found.end


def _inner_keys(value: object) -> Iterator[str]:
    """Yield the keys of all objects inside a value, not its own."""
    stack = list(value.values()) if isinstance(value, dict) else []
    while stack:
        inside = stack.pop()
        if isinstance(inside, dict):
            yield from inside
            stack.extend(inside.values())
        elif isinstance(inside, list):
            stack.extend(inside)


def _pattern(record: dict[str, object], inner: set[str]) -> bytes:
    """Return the keys and plain values that a record begins with, up to a key that tells it from what is inside."""
    pattern = b""
    for key, value in record.items():
        pattern += re.escape(json.dumps(key, ensure_ascii=False).encode("utf-8", "replace")) + rb"\s*:"
        if key not in inner or isinstance(value, dict | list):
            break
        pattern += rb"\s*" + SCALAR + rb"\s*,\s*"
    return pattern
