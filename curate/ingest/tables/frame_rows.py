"""Encode frames, the batches of Parquet and Arrow files, as JSON lines of bounded size."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator
from pathlib import Path

import polars as pl

from curate.errors import error_message
from curate.ingest.tables.table import Rows, encode_rows

BATCH_ROWS = 1000
BATCH_BYTES = 16 << 20  # of text, about, in one block
SCALAR_BYTES = 8  # of text, about, for a number, a null or the marks around a value
MAX_TEXT_RATIO = 4  # the text of a row may be so much longer by estimate than it is

ERRORS = (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError, ValueError, MemoryError)

PLAIN_TYPES = (pl.String, pl.Boolean, pl.Float64, pl.Null, pl.Int8, pl.Int16, pl.Int32, pl.Int64)
PLAIN_UNSIGNED = (pl.UInt8, pl.UInt16, pl.UInt32, pl.UInt64)


def encode_frame(frame: pl.DataFrame, first: int, max_record_bytes: int) -> Iterator[Rows]:
    """Yield the rows of a frame as JSON lines; a row of `max_record_bytes` or more is lost."""
    for batch in frame.iter_slices(BATCH_ROWS):
        for part in _split(batch):
            yield from _encode(part, first, max_record_bytes)
            first += part.height


def _split(frame: pl.DataFrame) -> Iterator[pl.DataFrame]:
    """Yield parts of a frame whose text is bounded: values that share memory in it do not share it as text."""
    if frame.height == 1 or sum(map(_text_bytes, frame)) <= BATCH_BYTES:
        yield frame
        return
    half = frame.height // 2
    yield from _split(frame[:half])
    yield from _split(frame[half:])


def _text_bytes(values: pl.Series) -> int:
    """Return about how long values are as text, without making it."""
    count = len(values)
    match values.dtype:
        case pl.String:
            return _sum(values.str.len_bytes()) + SCALAR_BYTES * count
        case pl.Binary:
            return _sum(values.bin.size()) + SCALAR_BYTES * count
        case pl.Categorical | pl.Enum:
            return _sum(values.cat.len_bytes()) + SCALAR_BYTES * count
        case pl.List() | pl.Array():
            return _text_bytes(values.explode()) + SCALAR_BYTES * count
        case pl.Struct():
            names = sum(len(name) + SCALAR_BYTES for name in values.struct.fields)
            return names * count + sum(_text_bytes(values.struct.field(name)) for name in values.struct.fields)
    return SCALAR_BYTES * count


def _sum(lengths: pl.Series) -> int:
    return int(lengths.cast(pl.UInt64).sum())  # a sum of 32 bits may overflow


def _encode(frame: pl.DataFrame, first: int, max_record_bytes: int) -> Iterator[Rows]:
    if frame.height == 1 and (size := sum(map(_text_bytes, frame))) > MAX_TEXT_RATIO * max_record_bytes:
        yield Rows(first, 1, lost=_too_long(first, size, max_record_bytes))
        return
    data = _json_lines(frame)
    if len(data) <= max_record_bytes:
        yield Rows(first, frame.height, data)
        return
    for number, line in enumerate(data.splitlines(keepends=True), first):
        too_long = len(line) > max_record_bytes
        yield (
            Rows(number, 1, lost=_too_long(number, len(line), max_record_bytes)) if too_long else Rows(number, 1, line)
        )


def _too_long(row: int, size: int, max_record_bytes: int) -> str:
    return f"row {row} has about {size:,} bytes, past the limit of {max_record_bytes:,} (max_record_bytes)"


def _json_lines(frame: pl.DataFrame) -> bytes:
    if not all(map(_is_plain, frame.dtypes)):
        return encode_rows(list(frame.iter_rows(named=True)))
    text = io.BytesIO()
    frame.write_ndjson(text)
    return text.getvalue()


def _is_plain(dtype: pl.DataType) -> bool:
    """Return whether Polars writes values of a type as JSON in the same way as msgspec, and much faster."""
    if isinstance(dtype, pl.List):
        return _is_plain(dtype.inner)  # type: ignore[arg-type]
    if isinstance(dtype, pl.Struct):
        return all(_is_plain(field.dtype) for field in dtype.fields)  # type: ignore[arg-type]
    return isinstance(dtype, PLAIN_TYPES + PLAIN_UNSIGNED)


# ── errors of Polars ──────────────────────────────────────────────────────────────────────────────────────────────


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Discard what is written to standard error: Polars prints the panics that damage causes, besides raising them."""
    try:
        kept = os.dup(2)
    except OSError:  # it is closed
        yield
        return
    try:
        with Path(os.devnull).open("wb") as null:
            os.dup2(null.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def cause(error: BaseException) -> str:
    """Return the message of an error without the parts that name the library."""
    text = error_message(error).split(". ")[0]
    return text.removeprefix("parquet: ").removeprefix("File out of specification: ")
