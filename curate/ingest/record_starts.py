"""Learn what the records of a text look like, to tell a record from an object inside one in bytes alone."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence

import msgspec

from curate.ingest.json_scan import scan_value

RECORD_KEYS = frozenset(
    (
        "conversations",
        "conversation",
        "items",
        "messages",
        "mapping",
        "chat_messages",
        "instruction",
        "prompt",
        "turns",
        "chosen",
    )
)
MAX_RECORDS = 32  # learned from at a time
MAX_PATTERNS = 8
MAX_SHAPES = 256
MAX_KEYS = 1000  # an object of more keys is a table, and teaches nothing
GAP = re.compile(rb"[\s,\[]*")
SCALAR = rb'(?:"(?:[^"\\]|\\.){0,256}+"|[-+.\w]{1,40})'

Object = dict[str, object]
Keys = frozenset[str]


class RecordStarts:
    """What the records seen so far begin with, and which keys they and the objects inside them have."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Forget all records."""
        self.patterns: dict[bytes, None] = {}  # a set in order of insertion
        self.shapes: set[Keys] = set()
        self.inner_shapes: set[Keys] = set()
        self.inner_keys: set[str] = set()
        self.common_keys: Keys | None = None  # of all records

    def learn(self, records: Sequence[Object]) -> None:
        """Learn from objects that are records."""
        for record in records:
            for inner in inner_objects(record):
                if len(inner) <= MAX_KEYS and len(self.inner_shapes) < MAX_SHAPES:
                    self.inner_shapes.add(frozenset(inner))
                    self.inner_keys.update(inner)
        for record in records:
            if not 0 < len(record) <= MAX_KEYS:
                continue
            keys = frozenset(record)
            self.common_keys = keys if self.common_keys is None else self.common_keys & keys
            if len(self.shapes) < MAX_SHAPES:
                self.shapes.add(keys)
            if len(self.patterns) < MAX_PATTERNS:
                self.patterns[_pattern(record, self.inner_keys)] = None

    @property
    def pattern(self) -> bytes:
        """A regular expression without groups, from `{` to the first key that only records have; may be empty."""
        return rb"\{\s*(?:" + b"|".join(self.patterns) + rb")" if self.patterns else b""

    def count(self, text: bytes) -> int:
        """Return how many records seem to begin in a text; 0 if nothing is known."""
        return len(re.findall(self.pattern, text, re.S)) if self.patterns else 0

    def are_known(self, keys: Keys) -> bool:
        """Return whether these are the keys of a record: of an earlier one, or those that all have in common."""
        common = self.common_keys or frozenset()
        return keys in self.shapes or (common <= keys and not common <= self.inner_keys)


def separator(pattern: bytes) -> re.Pattern[bytes]:
    """Return a pattern for the comma before a record that begins with `pattern`, and the white space after it."""
    return re.compile(rb",\s*(?=" + pattern + rb")", re.S)


def first_records(sample: bytes, position: int = 0, limit: int = MAX_RECORDS) -> Iterator[Object]:
    """Yield the objects that a sample begins with, up to the first value that is not one."""
    for _ in range(limit):
        gap = GAP.match(sample, position)
        position = gap.end() if gap else position
        result = scan_value(memoryview(sample)[position:], final=True, in_array=False)
        value = decode(sample[position : result.end + position]) if result.end >= 0 else None
        if not isinstance(value, dict):
            return
        yield value
        position += result.end


def skip_objects(sample: bytes) -> int:
    """Return the end of the objects that a sample begins with."""
    end = 0
    while True:
        gap = GAP.match(sample, end)
        start = gap.end() if gap else end
        if sample[start : start + 1] != b"{":
            return end
        result = scan_value(memoryview(sample)[start:], final=True, in_array=False, deep=False)
        if result.end < 0:
            return end
        end = start + result.end


def is_record(raw: bytes) -> bool:
    """Return whether a JSON value is an object with a key that records have, or one around such an object.

    It may be JSON text once more.
    """
    value = decode(raw)
    value = decode(value.encode("utf-8", "replace")) if isinstance(value, str) else value
    if not isinstance(value, dict):
        return False
    inner = [item for item in value.values() if isinstance(item, dict)]
    if "row_idx" in value and len(inner) == 1:  # of the Hub's server of rows
        return True
    return not RECORD_KEYS.isdisjoint(value) or (len(inner) == 1 and any(map(_are_turns, _contents(inner[0]))))


def _contents(record: Object) -> list[object]:
    return [record[key] for key in RECORD_KEYS & record.keys()]


def _are_turns(value: object) -> bool:
    """Return whether a value is turns, rather than the description of a column or a part of a turn."""
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


def decode(raw: bytes) -> object:
    """Decode a JSON value leniently; return None if that fails."""
    try:
        return msgspec.json.decode(raw)
    except (ValueError, RecursionError):  # msgspec's errors are ValueErrors
        pass
    try:
        return json.loads(raw.decode("utf-8", "replace"), strict=False)
    except (ValueError, RecursionError):
        return None


def inner_objects(value: object) -> Iterator[Object]:
    """Yield all objects inside a value, without itself."""
    stack = list(value.values()) if isinstance(value, dict) else []
    while stack:
        child = stack.pop()
        if isinstance(child, dict):
            yield child
            stack.extend(child.values())
        elif isinstance(child, list):
            stack.extend(child)


def _pattern(record: Object, inner_keys: set[str]) -> bytes:
    """Match the keys and scalar values that a record begins with, up to a key that no inner object has."""
    pattern = b""
    for key, value in record.items():
        pattern += re.escape(json.dumps(key, ensure_ascii=False).encode("utf-8", "replace")) + rb"\s*:"
        if key not in inner_keys or isinstance(value, dict | list):
            break
        pattern += rb"\s*" + SCALAR + rb"\s*,\s*"
    return pattern
