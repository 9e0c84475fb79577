"""Decode the bytes of records, each on its own, so that a bad one costs only itself."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import msgspec
import numpy as np

from curate.errors import RecordError
from curate.ingest.chunker import Cut
from curate.ingest.record_starts import comma

MAX_DEPTH = 256  # levels of objects and lists; chat formats have under ten, and parsers that recurse give up near 1,000
HELD_BYTES = 64 << 20  # damage at the start of a file after which it is called no dump
KEY_BLOCK = 1 << 16  # bytes whose keys are counted at a time: the arrays stay in the processor's cache
SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
WHITE = b" \t\r\n"

_decode = msgspec.json.Decoder().decode
_decode_list = msgspec.json.Decoder(list[msgspec.Raw]).decode
_decode_lines = msgspec.json.Decoder(msgspec.Raw).decode_lines


@dataclass(frozen=True)
class Chunk:
    """Whole records of one source: `count` of them, the first at place `first` of its file, `data` at byte `start`.

    `cuts` say where in `data` they are; `head` is a regular expression for what a record of this file begins with.
    """

    source_file: str
    first: int
    count: int
    start: int
    data: bytes
    cuts: tuple[Cut, ...]
    head: bytes = b""


@dataclass(frozen=True, slots=True)
class RawRecord:
    """One record: its bytes exactly as they stand, and its value, or why it has none.

    `surrogates`: texts in the value hold lone surrogates. `note`: what was read otherwise than it stands.
    """

    index: int
    raw: bytes
    value: Any
    problem: RecordError | None = None
    surrogates: bool = False
    note: str = ""


def is_json(chunk: Chunk, cut: Cut) -> bool:
    """Say whether a cut is a record, and not a number or word as any text has them."""
    return cut.kind == "array" or b"{" in chunk.data[cut.start : cut.stop]


def decode_records(chunk: Chunk) -> list[RawRecord]:
    """Return the records of a chunk in their order, decoded; one that cannot be read says why, and costs no other."""
    found: list[RawRecord] = []
    for cut in chunk.cuts:
        if len(found) >= chunk.count:
            break
        index = chunk.first + len(found)
        data = chunk.data[cut.start : cut.stop]
        if cut.kind == "damage":
            problem = RecordError("unreadable", cut.why, excerpt(data))
            found.append(RawRecord(index, data, None, problem))
        elif cut.kind == "record":
            found.append(_read(index, data, chunk.start + cut.start))
        else:
            found.extend(_read_many(index, data, cut, chunk))
    return found[: chunk.count]


def _read_many(index: int, data: bytes, cut: Cut, chunk: Chunk) -> list[RawRecord]:
    raws = _split(data, cut, chunk.head)
    try:
        values = [_decode(raw) for raw in raws]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        values = []
    keys, depth = _measure(values)
    if values and depth <= MAX_DEPTH and keys == _count_keys(data):
        return [RawRecord(place, *pair) for place, pair in enumerate(zip(raws, values, strict=True), index)]
    found = []
    at = 0
    for place, raw in enumerate(_split_exactly(data, cut), index):
        at = data.index(raw, at)
        found.append(_read(place, raw, chunk.start + cut.start + at))
        at += len(raw)
    return found


def _split(data: bytes, cut: Cut, head: bytes) -> list[bytes]:
    """Split proven values, fast if it can be: as many parts as values, each of which decodes, are the values."""
    if cut.kind == "lines":
        parts = [line for part in data.split(b"\n") if (line := part.strip(WHITE))]
    else:
        parts = [part.strip(WHITE) for part in comma(head).split(data)] if head else [data]
    return parts if len(parts) == cut.count else _split_exactly(data, cut)


def _split_exactly(data: bytes, cut: Cut) -> list[bytes]:
    if cut.kind == "lines":
        return [bytes(raw) for raw in _decode_lines(data)]
    return [bytes(raw) for raw in _decode_list(b"[%b]" % data)]


def _measure(values: Sequence[object]) -> tuple[int, int]:
    """Return how many keys all objects in the values have, and how many levels deep the values go."""
    keys = depth = 0
    level = [value for value in values if type(value) in (dict, list)]
    while level:
        depth += 1
        dicts = [value for value in level if type(value) is dict]
        keys += sum(map(len, dicts))
        inside = [part for value in dicts for part in value.values() if type(part) in (dict, list)]
        if len(dicts) < len(level):
            lists = [value for value in level if type(value) is list]
            inside += [part for value in lists for part in value if type(part) in (dict, list)]
        level = inside
    return keys, depth


def _count_keys(data: bytes) -> int:
    """Count the keys that stand in JSON text, as `":` not after a backslash; other spellings cost only time."""
    text = np.frombuffer(data, np.uint8)
    keys = 0
    for start in range(0, len(text), KEY_BLOCK):
        block = text[start : start + KEY_BLOCK + 1]
        quotes = np.flatnonzero((block[:-1] == ord('"')) & (block[1:] == ord(":")))
        keys += int(np.count_nonzero(text[quotes + (start - 1)] != ord("\\")))
    return keys


# ── one record ────────────────────────────────────────────────────────────────────────────────────────────────────


def _read(index: int, raw: bytes, offset: int) -> RawRecord:
    """Decode one record that begins at byte `offset`, as leniently as its meaning stays clear."""
    try:
        value, surrogates, note = _value(raw, offset)
        keys, depth = _measure([value])
        if depth > MAX_DEPTH:
            raise _too_deep(raw, f"{depth} levels deep")
        if keys != _count_keys(raw):
            _refuse_duplicates(raw)
    except RecordError as problem:
        return RawRecord(index, raw, None, problem)
    except RecursionError:
        return RawRecord(index, raw, None, _too_deep(raw, "deeper than can be read"))
    return RawRecord(index, raw, value, None, surrogates, note)


def _value(raw: bytes, offset: int) -> tuple[object, bool, str]:
    try:
        return _decode(raw), False, ""
    except (msgspec.DecodeError, UnicodeDecodeError):
        pass
    text = _text(raw, offset)
    notes: dict[str, None] = {}
    try:
        value = json.loads(text, strict=False, parse_constant=partial(_null, notes), parse_float=partial(_float, notes))
    except json.JSONDecodeError as error:
        at = offset + len(text[: error.pos].encode())
        raise RecordError("unreadable", f"no JSON at byte {at}: {error.msg}", excerpt(raw)) from None
    except ValueError as error:
        words = str(error).split(";")[0]
        raise RecordError("unreadable", f"no JSON that can be read: {words}", excerpt(raw)) from None
    surrogates = SURROGATE.search(raw) is not None and _has_surrogates(value)
    return value, surrogates, f"{', '.join(notes)} read as null" if notes else ""


def _text(raw: bytes, offset: int) -> str:
    if (at := raw.find(b"\0")) >= 0:
        zeros = raw.count(b"\0")
        raise RecordError("unreadable", f"{zeros} zero bytes from byte {offset + at}", excerpt(raw))
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        wrong = raw[error.start : error.end].hex(" ")
        reason = f"bytes {wrong} at byte {offset + error.start} are not UTF-8"
        raise RecordError("encoding", reason, excerpt(raw[max(0, error.start - 40) : error.end + 40])) from None


def _null(notes: dict[str, None], word: str) -> None:
    notes[word] = None


def _float(notes: dict[str, None], digits: str) -> float | None:
    number = float(digits)
    if math.isfinite(number):
        return number
    notes[digits[:20]] = None
    return None


def _has_surrogates(value: object) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return True
    return False


def _refuse_duplicates(raw: bytes) -> None:
    """Raise RecordError if an object has a key twice: which of the two is meant is not clear."""
    json.loads(raw, strict=False, object_pairs_hook=_pairs)


def _pairs(pairs: list[tuple[str, object]]) -> dict[str, object]:
    made = dict(pairs)
    if len(made) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        shown = json.dumps([value for name, value in pairs if name == twice])
        raise RecordError("duplicate_keys", f"the key {twice!r} stands {names.count(twice)} times in one object", shown)
    return made


def _too_deep(raw: bytes, levels: str) -> RecordError:
    return RecordError("too_deep", f"nested {levels}, over the limit of {MAX_DEPTH} levels", excerpt(raw))


def excerpt(raw: bytes) -> str:
    return raw[:200].decode("utf-8", "backslashreplace")
