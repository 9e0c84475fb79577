"""Where the records of a text are: chunks of its bytes, and the spans of records in them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RecordSpan:
    """Bytes `start` to `stop` of a chunk, with `count` records of one kind.

    Kinds: `array`, values separated by commas; `lines`, values separated by white space; `rows`, lines that curate has
    encoded from a table; `record`, one value; `damage`, bytes that are not a value, and the `error` found there.
    """

    start: int
    stop: int
    count: int
    kind: str
    error: str = ""


@dataclass(frozen=True)
class TextChunk:
    """Bytes of the text from byte `start`, the spans of its records, and the pattern they begin with (may be empty)."""

    start: int
    data: bytes
    spans: tuple[RecordSpan, ...]
    record_start: bytes
