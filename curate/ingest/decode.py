"""Decode the bytes of records one by one, so that a record that cannot be decoded does not affect the others."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import msgspec
import numpy as np

from curate.errors import RecordError
from curate.ingest.record_starts import separator
from curate.ingest.text import literals
from curate.ingest.text.encodings import advise
from curate.ingest.text.members import MEMBER, key_of, with_id
from curate.ingest.text.spans import RecordSpan, TextChunk

MAX_DEPTH = 256  # levels of objects and lists; chat formats have under ten, recursive parsers fail near 1,000
MAX_ENCODED = 3  # times that a record is encoded as JSON text
BATCH_BYTES = 1 << 20  # of small chunks that are one task
KEY_BLOCK_BYTES = 1 << 16  # keys are counted in blocks of this size, so that the arrays fit the processor's cache
SURROGATE_ESCAPE = re.compile(rb"\\u[dD][89a-fA-F]")
ODD_KEY_END = re.compile(rb'(?<!\\)"[ \t\r\n]++:|\\\\"[ \t\r\n]*+:')
WHITESPACE = b" \t\r\n"

_decode = msgspec.json.Decoder().decode
_decode_list = msgspec.json.Decoder(list[msgspec.Raw]).decode
_decode_lines = msgspec.json.Decoder(msgspec.Raw).decode_lines
_decode_rows_at_once = msgspec.json.Decoder().decode_lines


Repairs = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Chunk:
    """Complete records of one source: `count` of them, the first at index `first` of its file, `data` at byte `start`.

    `spans` locate the records in `data`. `record_start` is a regular expression for the beginning of this file's
    records; empty if unknown.
    """

    source_file: str
    first: int
    count: int
    start: int
    data: bytes
    spans: tuple[RecordSpan, ...]
    record_start: bytes = b""

    @classmethod
    def of_text(cls, source_file: str, first: int, part: TextChunk) -> Chunk:
        """Return a part of a text whose first record has this index."""
        count = sum(span.count for span in part.spans)
        return cls(source_file, first, count, part.start, part.data, part.spans, part.record_start)


@dataclass(frozen=True, slots=True)
class RawRecord:
    """One record: its exact bytes, and its value or the `problem` with them.

    `surrogates`: the value contains lone surrogates. `repairs`: what was read as something else, with its text.
    """

    index: int  # in its file
    raw: bytes
    value: Any  # None if there is a problem
    problem: RecordError | None = None
    surrogates: bool = False
    repairs: Repairs = ()


def batches(chunks: Iterable[Chunk]) -> Iterator[Sequence[Chunk]]:
    """Put small chunks in a row together: each task has a fixed cost, and an archive may have thousands of members."""
    batch: list[Chunk] = []
    size = 0
    for chunk in chunks:
        if batch and size + len(chunk.data) > BATCH_BYTES:
            yield batch
            batch, size = [], 0
        batch.append(chunk)
        size += len(chunk.data)
    if batch:
        yield batch


def is_json_record(chunk: Chunk, span: RecordSpan) -> bool:
    """Return whether a span has JSON records, rather than a number or word as in any text."""
    return span.kind == "array" or b"{" in chunk.data[span.start : span.stop]


def decode_records(chunk: Chunk) -> list[RawRecord]:
    """Decode the records of a chunk in order; a record that cannot be read has a `problem`."""
    records: list[RawRecord] = []
    for span in chunk.spans:
        if len(records) >= chunk.count:
            break
        index = chunk.first + len(records)
        data = chunk.data[span.start : span.stop]
        if span.kind == "damage":
            problem = RecordError("unreadable", span.error + advise(data), excerpt(data))
            records.append(RawRecord(index, data, None, problem))
        elif span.kind == "record":
            records.append(_decode_one(index, data, chunk.start + span.start))
        elif span.kind == "rows" and (rows := _decode_rows(index, data)):
            records.extend(rows)
        else:
            records.extend(_decode_span(index, data, span, chunk))
    return records[: chunk.count]


def _decode_rows(index: int, data: bytes) -> list[RawRecord]:
    """Decode lines that were encoded from a table: their keys are unique, and their depth is that of its schema.

    Return no record if one cannot be decoded.
    """
    try:
        values = _decode_rows_at_once(data)
    except (msgspec.DecodeError, RecursionError):
        return []
    raws = data.split(b"\n")
    return [RawRecord(number, *pair) for number, pair in enumerate(zip(raws, values, strict=False), index)]


def _decode_span(index: int, data: bytes, span: RecordSpan, chunk: Chunk) -> list[RawRecord]:
    """Decode all records of a span at once; where that fails or is ambiguous, decode each by itself to say why."""
    try:
        raws, values = _decode_parts(_split(data, span, chunk.record_start), span)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raws, values = [], []
    keys, depth = _count_keys_and_depth(values)
    # msgspec keeps one of two equal keys, so fewer keys than are written means that one occurs twice.
    is_text = any(value.__class__ is str for value in values)  # which may be JSON once more
    if len(values) == span.count and depth <= MAX_DEPTH and not is_text and _are_unique(keys, data):
        return [RawRecord(number, *pair) for number, pair in enumerate(zip(raws, values, strict=True), index)]
    records = []
    offset = 0  # bytes of the span
    for number, raw in enumerate(split_exactly(data, span), index):
        offset = data.index(raw, offset)
        records.append(_decode_one(number, raw, chunk.start + span.start + offset))
        offset += len(raw)
    return records


def _decode_parts(parts: list[bytes], span: RecordSpan) -> tuple[list[bytes], list[Any]]:
    """Return the bytes of each value in the parts, and the values; a part may hold several where records differ.

    As many as there are in the span, each of which decodes, can only be the values of the span.
    """
    raws: list[bytes] = []
    values: list[Any] = []
    for part in parts:
        try:
            values.append(_decode(part))
            raws.append(part)
        except msgspec.DecodeError:
            several = split_exactly(part, span)
            values += map(_decode, several)
            raws += several
    return raws, values


def _split(data: bytes, span: RecordSpan, record_start: bytes) -> list[bytes]:
    """Split a span by a fast method into its values, or parts of several; exactly if that gives too many parts."""
    if span.kind != "array":
        parts = [line for part in data.split(b"\n") if (line := part.strip(WHITESPACE))]
    else:
        parts = [part.strip(WHITESPACE) for part in separator(record_start).split(data)] if record_start else [data]
    return parts if len(parts) <= span.count else split_exactly(data, span)


def split_exactly(data: bytes, span: RecordSpan) -> list[bytes]:
    if span.kind != "array":
        return [bytes(raw) for raw in _decode_lines(data)]
    return [bytes(raw) for raw in _decode_list(b"[%b]" % data)]


def _count_keys_and_depth(values: Sequence[object]) -> tuple[int, int]:
    """Return the number of keys of all objects in the values, and the number of levels of the deepest value."""
    keys = depth = 0
    level = [value for value in values if type(value) in (dict, list)]
    while level:
        depth += 1
        dicts = [value for value in level if type(value) is dict]
        keys += sum(map(len, dicts))
        children = [child for value in dicts for child in value.values() if type(child) in (dict, list)]
        if len(dicts) < len(level):
            lists = [value for value in level if type(value) is list]
            children += [child for value in lists for child in value if type(child) in (dict, list)]
        level = children
    return keys, depth


def _are_unique(keys: int, data: bytes) -> bool:
    """Return whether no key occurs twice in an object, as far as a count tells: `keys` read are as many as written."""
    counted = _count_written_keys(data)
    return keys == counted or (keys > counted and keys == counted + len(ODD_KEY_END.findall(data)))


def _count_written_keys(data: bytes) -> int:
    """Count the keys in JSON text: `":` without a backslash before it.

    A key with white space before its colon, or with a backslash at its end, is missed.
    """
    if len(data) < KEY_BLOCK_BYTES:
        return data.count(b'":') - data.count(b'\\":')
    text = np.frombuffer(data, np.uint8)
    keys = 0
    for start in range(0, len(text), KEY_BLOCK_BYTES):
        block = text[start : start + KEY_BLOCK_BYTES + 1]
        quotes = np.flatnonzero((block[:-1] == ord('"')) & (block[1:] == ord(":")))
        keys += int(np.count_nonzero(text[quotes + (start - 1)] != ord("\\")))
    return keys


# ── one record ────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True, slots=True)
class _Decoded:
    value: Any
    json: bytes  # strict or lenient JSON that has this value
    surrogates: bool = False
    repairs: Repairs = ()


def _decode_one(index: int, raw: bytes, offset: int) -> RawRecord:
    """Decode one record that begins at byte `offset`, as leniently as its meaning stays clear."""
    try:
        decoded = _decode_member(raw, offset) or _decode_checked(raw, offset)
        if decoded.value.__class__ is str:
            decoded = _decode_text(decoded, offset)
    except RecordError as problem:
        return RawRecord(index, raw, None, problem)
    except RecursionError:
        return RawRecord(index, raw, None, _too_deep(raw, "deeper than can be read"))
    return RawRecord(index, raw, decoded.value, None, decoded.surrogates, decoded.repairs)


def _decode_checked(raw: bytes, offset: int) -> _Decoded:
    """Decode a value; raises RecordError if it is nested too deep or has a key twice in an object."""
    decoded = _decode_leniently(raw, offset)
    keys, depth = _count_keys_and_depth([decoded.value])
    if depth > MAX_DEPTH:
        raise _too_deep(raw, f"{depth} levels deep")
    if not _are_unique(keys, decoded.json):
        _refuse_duplicate_keys(decoded.json)
    return decoded


def _decode_member(raw: bytes, offset: int) -> _Decoded | None:
    """Decode a record that is the member of an object by its id; None if the bytes are no member."""
    member = MEMBER.match(raw) if raw[:1] == b'"' else None
    if member is None or member.end() == len(raw):
        return None
    key = key_of(member[0])
    decoded = _decode_checked(raw[member.end() :], offset + member.end())
    record = with_id(key, decoded.value)
    if record is None:
        return replace(decoded, value={key: decoded.value})
    return replace(decoded, value=record, repairs=((*decoded.repairs, ("record_unwrapped", key))))


def _decode_text(decoded: _Decoded, offset: int) -> _Decoded:
    """Decode a text that is the JSON of an object, perhaps encoded twice; other text is returned as it is."""
    text: str = decoded.value
    if text.lstrip()[:1] not in ("{", '"') or len(decoded.repairs) == MAX_ENCODED:
        return decoded
    try:
        inner = _decode_checked(text.encode("utf-8", "surrogatepass"), offset)
    except RecordError as problem:
        if problem.rule in ("unreadable", "encoding"):
            return decoded
        raise
    inner = replace(inner, repairs=((*decoded.repairs, ("json_in_text", text[:200]), *inner.repairs)))
    return _decode_text(inner, offset) if inner.value.__class__ is str else inner


def _decode_leniently(raw: bytes, offset: int) -> _Decoded:
    """Decode JSON, or what is nearly JSON; note what was read as something else."""
    try:
        return _Decoded(_decode(raw), raw)
    except (msgspec.DecodeError, UnicodeDecodeError):
        pass
    text = _decode_utf8(raw, offset)
    try:
        return _load(text, raw, ())
    except json.JSONDecodeError as error:
        at = offset + len(text[: error.pos].encode())
        strict = RecordError("unreadable", f"no JSON at byte {at}: {error.msg}", excerpt(raw))
    try:
        literal = literals.read_literal(raw)
    except literals.LiteralError as error:
        kind = literals.describe_kind(raw)
        reason = f"{kind}: {error} at byte {offset + error.at}"
        raise (RecordError("unreadable", reason, excerpt(raw)) if kind else strict) from None
    if raw[literal.end :].strip():
        raise strict
    try:
        return _load(literal.json.decode(), literal.json, tuple(literal.repairs.items()))
    except json.JSONDecodeError:
        raise strict from None


def _load(text: str, data: bytes, repairs: Repairs) -> _Decoded:
    """Decode JSON with the standard library, which accepts more; raises JSONDecodeError."""
    nulls: dict[str, None] = {}  # a set that keeps the order of insertion
    try:
        value = json.loads(
            text, strict=False, parse_constant=partial(_parse_constant, nulls), parse_float=partial(_parse_float, nulls)
        )
    except json.JSONDecodeError:
        raise
    except ValueError as error:
        cause = str(error).split(";")[0]
        raise RecordError("unreadable", f"no JSON that can be read: {cause}", excerpt(data)) from None
    surrogates = SURROGATE_ESCAPE.search(data) is not None and _has_surrogates(value)
    if nulls:
        repairs = (*repairs, ("lenient_json", f"{', '.join(nulls)} read as null"))
    return _Decoded(value, data, surrogates, repairs)


def _decode_utf8(raw: bytes, offset: int) -> str:
    if (first := raw.find(b"\0")) >= 0:
        count = raw.count(b"\0")
        raise RecordError("unreadable", f"{count} zero bytes from byte {offset + first}", excerpt(raw))
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        invalid = raw[error.start : error.end].hex(" ")
        reason = f"bytes {invalid} at byte {offset + error.start} are not UTF-8{advise(raw)}"
        raise RecordError("encoding", reason, excerpt(raw[max(0, error.start - 40) : error.end + 40])) from None


def _parse_constant(nulls: dict[str, None], word: str) -> None:
    """Read NaN, Infinity or -Infinity as None, and note it."""
    nulls[word] = None


def _parse_float(nulls: dict[str, None], digits: str) -> float | None:
    number = float(digits)
    if math.isfinite(number):
        return number
    nulls[digits[:20]] = None
    return None


def _has_surrogates(value: object) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return True
    return False


def _refuse_duplicate_keys(raw: bytes) -> None:
    """Raise RecordError if an object has a key twice: it is not clear which of the two is meant."""
    json.loads(raw, strict=False, object_pairs_hook=_unique_dict)


def _unique_dict(pairs: list[tuple[str, object]]) -> dict[str, object]:
    unique = dict(pairs)
    if len(unique) < len(pairs):
        counts = Counter(name for name, _ in pairs)
        repeated, count = next((name, count) for name, count in counts.items() if count > 1)
        values = json.dumps([value for name, value in pairs if name == repeated])
        raise RecordError("duplicate_keys", f"the key {repeated!r} occurs {count} times in one object", values)
    return unique


def _too_deep(raw: bytes, levels: str) -> RecordError:
    return RecordError("too_deep", f"nested {levels}, over the limit of {MAX_DEPTH} levels", excerpt(raw))


def excerpt(raw: bytes) -> str:
    """Return the beginning of a record as text, as evidence."""
    return raw[:200].decode("utf-8", "backslashreplace")
