"""Bytes → records: whole records in chunks of a few megabytes, and each bad one alone."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import msgspec
import numpy as np

from curate.cutting import Cut, Cutter
from curate.errors import InputError, RecordError
from curate.heads import comma
from curate.inputs import Source, describe, open_inputs
from curate.streams import Limits, Meter, text_blocks

__all__ = ["Chunk", "Damage", "InputFile", "RawRecord", "Reader", "Source", "open_inputs", "records"]

MAX_DEPTH = 256  # levels of objects and lists; chat formats have under ten, and parsers that recurse give up near 1,000
HELD_BYTES = 64 << 20  # damage at the start of a file after which it is called no dump
KEY_BLOCK = 1 << 16  # bytes whose keys are counted at a time: the arrays stay in the processor's cache
SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
WHITE = b" \t\r\n"

_decode = msgspec.json.Decoder().decode
_decode_list = msgspec.json.Decoder(list[msgspec.Raw]).decode
_decode_lines = msgspec.json.Decoder(msgspec.Raw).decode_lines


@dataclass(frozen=True)
class Damage:
    """What could not be read of an input: `bytes` lost at byte `offset` of its text (of what it expands to)."""

    source_file: str
    offset: int
    bytes: int
    text: str


@dataclass(frozen=True)
class InputFile:
    """One input as it was read, on disk. `sha256` is null where `limit` stopped before the end."""

    name: str
    bytes: int
    sha256: str | None


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


class Reader:
    """Read sources into chunks, in order, once; a few chunks are in memory at a time.

    `warnings` and `inputs` are complete when the iteration ends. `bytes_total` is null where a size cannot be known.
    A record of `max_record_bytes` or more is damage.
    Raises InputError for a source that holds nothing whole, or that expands past the limits.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        *,
        limit: int | None = None,
        chunk_bytes: int = 4 << 20,
        max_record_bytes: int = 1 << 28,
        max_expanded_bytes: int = 1 << 40,
        max_expansion: int = 1000,
    ) -> None:
        self.sources = list(sources)
        self.limit = limit
        self.chunk_bytes = chunk_bytes
        self.max_record_bytes = max_record_bytes
        self.limits = Limits(max_expanded_bytes, max_expansion)
        self.records_read = 0
        self.warnings: list[Damage] = []
        self._meters: dict[str, Meter] = {}
        self._harmed: dict[str, str] = {}
        self._any_whole = False

    @property
    def inputs(self) -> list[InputFile]:
        """Return the files read so far, as they are on disk."""
        sizes = {source.file: source.bytes for source in self.sources}
        return [
            InputFile(name, (meter.sha256 and sizes[name]) or meter.bytes, meter.sha256)
            for name, meter in self._meters.items()
        ]

    @property
    def bytes_read(self) -> int:
        """Return how many bytes have been taken from disk."""
        return sum(meter.bytes for meter in self._meters.values())

    @property
    def bytes_unpacked(self) -> int:
        """Return how many bytes of dumps that was: what compressed files held, and the others as they are."""
        return sum(meter.expanded or meter.bytes for meter in self._meters.values())

    @property
    def bytes_total(self) -> int | None:
        """Return how many bytes there are on disk."""
        sizes = {source.file: source.bytes for source in self.sources}
        known = [size for size in sizes.values() if size is not None]
        return sum(known) if len(known) == len(sizes) else None

    def __iter__(self) -> Iterator[Chunk]:
        for source in self.sources:
            if source.trouble and source.file not in self._meters:  # once a file, before its first member
                self._warn(source.file, source.bytes or 0, 0, source.trouble)
            for chunk in self._whole(source):
                left = math.inf if self.limit is None else self.limit - self.records_read
                if left <= 0:
                    return
                chunk = chunk if chunk.count <= left else replace(chunk, count=int(left))
                self.records_read += chunk.count
                yield chunk
        if not self._any_whole:
            names = ", ".join(repr(source.name) for source in self.sources[:3])
            raise InputError(f"no record in {names}: give a dump that holds some")

    def _warn(self, name: str, offset: int, lost: int, what: str) -> None:
        self.warnings.append(Damage(name, offset, lost, f"{name}: {what}"))

    def _harm(self, source: Source, offset: int, lost: int, what: str) -> None:
        """Note that what a source is packed in is damaged."""
        self._harmed[source.name] = what
        self._warn(source.name, offset, lost, what)

    def _whole(self, source: Source) -> Iterator[Chunk]:
        """Yield a source's chunks once one of them holds a whole record; raise InputError if none does.

        A damaged member of a zip, beside others, may hold none.
        """
        held: list[Chunk] = []
        whole = False
        for chunk in self._chunks(source):
            whole = whole or any(cut.kind != "damage" and _is_json(chunk, cut) for cut in chunk.cuts)
            held.append(chunk)
            if whole:
                yield from held
                held.clear()
            elif sum(len(chunk.data) for chunk in held) > HELD_BYTES:
                break
        self._any_whole = self._any_whole or whole
        harm = self._harmed.get(source.name, "")
        if harm and source.spare:
            yield from held
        elif held:
            what = describe(held[0].data[:512])
            tail = f"; {harm}" if harm else ": give a JSON or JSONL dump"
            raise InputError(f"input {source.name!r} holds no whole JSON record but {what}{tail}")

    def _chunks(self, source: Source) -> Iterator[Chunk]:
        meter = self._meters.setdefault(source.file, Meter())
        warned = len(self.warnings)
        text = text_blocks(source, meter, self.limits, partial(self._harm, source))
        cutter = Cutter(text, self.chunk_bytes, self.max_record_bytes, partial(self._warn, source.name))
        first = 0
        for stretch in cutter:
            count = sum(cut.count for cut in stretch.cuts)
            yield Chunk(source.name, first, count, stretch.start, stretch.data, stretch.cuts, stretch.head)
            first += count
        if first or (source.spare and source.name in self._harmed):
            return
        why = [damage.text for damage in self.warnings[warned:]]
        if why or not cutter.arrays:
            raise InputError(f"input {source.name!r} holds no record: {'; '.join(why) or 'only white space'}")
        self._warn(source.name, 0, 0, "an empty array, no record")


def _is_json(chunk: Chunk, cut: Cut) -> bool:
    """Say whether a cut is a record, and not a number or word as any text has them."""
    return cut.kind == "array" or b"{" in chunk.data[cut.start : cut.stop]


# ── a chunk's records ─────────────────────────────────────────────────────────────────────────────────────────────


def records(chunk: Chunk) -> list[RawRecord]:
    """Return the records of a chunk in their order, decoded; one that cannot be read says why, and costs no other."""
    found: list[RawRecord] = []
    for cut in chunk.cuts:
        if len(found) >= chunk.count:
            break
        index = chunk.first + len(found)
        data = chunk.data[cut.start : cut.stop]
        if cut.kind == "damage":
            problem = RecordError("unreadable", cut.why, _excerpt(data))
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
        raise RecordError("unreadable", f"no JSON at byte {at}: {error.msg}", _excerpt(raw)) from None
    except ValueError as error:
        words = str(error).split(";")[0]
        raise RecordError("unreadable", f"no JSON that can be read: {words}", _excerpt(raw)) from None
    surrogates = SURROGATE.search(raw) is not None and _has_surrogates(value)
    return value, surrogates, f"{', '.join(notes)} read as null" if notes else ""


def _text(raw: bytes, offset: int) -> str:
    if (at := raw.find(b"\0")) >= 0:
        zeros = raw.count(b"\0")
        raise RecordError("unreadable", f"{zeros} zero bytes from byte {offset + at}", _excerpt(raw))
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        wrong = raw[error.start : error.end].hex(" ")
        reason = f"bytes {wrong} at byte {offset + error.start} are not UTF-8"
        raise RecordError("encoding", reason, _excerpt(raw[max(0, error.start - 40) : error.end + 40])) from None


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
    return RecordError("too_deep", f"nested {levels}, over the limit of {MAX_DEPTH} levels", _excerpt(raw))


def _excerpt(raw: bytes) -> str:
    return raw[:200].decode("utf-8", "backslashreplace")
