"""Read the rows of a Parquet file as JSON lines; a damaged row group costs its own rows."""

from __future__ import annotations

import contextlib
import io
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

import msgspec
import polars as pl

from curate.errors import InputError
from curate.ingest.containers import parquet_layout
from curate.ingest.containers.parquet_layout import Layout, RowGroup
from curate.ingest.sources import Source, error_message
from curate.ingest.streams import MIN_RATIO_BYTES, Limits, Meter, check_expansion, hash_whole

BATCH_ROWS = 1000
BATCH_BYTES = 16 << 20  # of text, about, in one block
SCALAR_BYTES = 8  # of text, about, for a number, a null or the marks around a value
MAX_TEXT_RATIO = 4  # the text of a row may be so much longer by estimate than it is
RUN_BYTES = 64 << 20  # of memory: row groups are decoded together up to this size
MAX_DECODED_BYTES = 768 << 20  # of memory: a larger row group is decoded in slices
MAX_EXTRACTED_BYTES = 512 << 20  # on disk: a larger row group is not copied to be decoded alone

ERRORS = (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError, ValueError, MemoryError)


@dataclass(frozen=True)
class Rows:
    """Rows from number `first` of the file: as JSON lines, or `lost`, with the reason and the size on disk."""

    first: int
    count: int
    data: bytes = b""
    lost: str = ""
    bytes: int = 0


@dataclass(frozen=True)
class _Block:
    """Row groups that are decoded together, and the memory they take.

    `alone`: a single row group that is decoded apart from the file, `shift` bytes from where the footer says.
    `lost`: why they cannot be decoded.
    """

    groups: tuple[RowGroup, ...]
    expanded: int = 0
    shift: int = 0
    alone: bool = False
    lost: str = ""

    @property
    def first(self) -> int:
        return self.groups[0].first

    @property
    def rows(self) -> int:
        return sum(group.rows for group in self.groups)


def read_rows(
    source: Source, path: Path, meter: Meter, limits: Limits, max_record_bytes: int, report: Callable[[str], None]
) -> Iterator[Rows]:
    """Yield all rows of a file in order, as lines or as lost; damage that costs no row is reported.

    Raises InputError if no row can be read, or if their text exceeds the limits.
    """
    size = source.bytes or 0
    lost: list[Rows] = []
    unreadable = f"input {source.name!r} is a Parquet file that cannot be read"
    try:
        hash_whole(path, meter)
        layout = parquet_layout.read_layout(path)
        file = path.open("rb")
    except (OSError, ValueError) as error:
        raise InputError(f"{unreadable}: {_cause(error)}") from None
    total = sum(group.rows for group in layout.groups)
    without_schema = parquet_layout.drop_arrow_schema(layout)
    has_bad_schema = not _has_types(path) and _has_types(io.BytesIO(parquet_layout.encode(without_schema)))
    if has_bad_schema:
        report("the Arrow schema in its footer is damaged: its columns are read by their Parquet types")
        layout = without_schema
    with file:
        for rows in _FileReader(path, file, layout, limits, size, max_record_bytes, all_alone=has_bad_schema):
            meter.bytes += size * rows.count // total
            if rows.lost and meter.expanded == 0:  # so far nothing says that the file can be read at all
                lost.append(rows)
                continue
            check_expansion(len(rows.data), source, meter, limits)
            yield from lost
            lost.clear()
            yield rows
    if lost:
        raise InputError(f"{unreadable}: {lost[0].lost}")
    if not total:
        raise InputError(f"input {source.name!r} is a Parquet file without rows")
    meter.bytes = size


class _FileReader:
    """Decodes the row groups of one file: those that are in order together, the others one by one."""

    def __init__(
        self,
        path: Path,
        file: IO[bytes],
        layout: Layout,
        limits: Limits,
        size: int,
        max_record_bytes: int,
        *,
        all_alone: bool,  # each row group is decoded apart from the file, by `layout`
    ) -> None:
        self.all_alone = all_alone
        self.path = path
        self.file = file
        self.layout = layout
        self.max_expanded = min(limits.expanded_bytes, max(MIN_RATIO_BYTES, size * limits.expansion))
        self.max_record_bytes = max_record_bytes

    def __iter__(self) -> Iterator[Rows]:
        blocks = [self._check(group) for group in self.layout.groups if group.rows]
        if self.layout.shift:
            _mark_shifted(blocks, self.layout.shift)
        for block in _merge(blocks):
            yield from self._read(block)

    def _check(self, group: RowGroup) -> _Block:
        """Find the pages of a row group, and what it expands to, before any of it is decoded."""
        causes = []
        for shift in dict.fromkeys((0, self.layout.shift)):
            try:
                expanded = parquet_layout.expanded_bytes(self.file, group, shift)
            except ValueError as error:
                causes.append(_cause(error))
                continue
            if expanded > self.max_expanded:
                limit = (
                    f"it expands from {group.bytes:,} bytes to {expanded:,}, past the limit of {self.max_expanded:,}"
                )
                return _Block((group,), lost=f"{limit}; if that is right, raise max_expansion in the recipe")
            return _Block((group,), expanded, shift, alone=self.all_alone or shift != 0)
        return _Block((group,), lost=causes[0])

    def _read(self, block: _Block) -> Iterator[Rows]:
        """Yield the rows of a block; if its row groups cannot be decoded together, those of each one."""
        if block.lost:
            yield _lost(block, block.first, block.rows, block.lost)
            return
        stop = block.first + block.rows
        step = block.rows if block.expanded <= MAX_DECODED_BYTES else _slice_rows(block)
        for first in range(block.first, stop, step):
            count = min(step, stop - first)
            try:
                frame = self._decode(block, first, count)
            except ERRORS as error:
                if len(block.groups) == 1:
                    yield _lost(block, first, count, _cause(error))
                    continue
                for group in block.groups:
                    yield from self._read(_Block((group,), block.expanded, alone=True))
                return
            yield from _lines(frame, first, self.max_record_bytes)

    def _decode(self, block: _Block, first: int, count: int) -> pl.DataFrame:
        group = block.groups[0]
        if not block.alone:
            try:
                return _collect(pl.scan_parquet(self.path, glob=False, hive_partitioning=False), first, count)
            except ERRORS:
                if len(block.groups) > 1 or group.bytes > MAX_EXTRACTED_BYTES:
                    raise
        if group.bytes > MAX_EXTRACTED_BYTES:
            raise ValueError(f"it is {group.bytes:,} bytes away from its place and too large to be read there")
        data = parquet_layout.extract(self.file, self.layout, group, block.shift)
        return _collect(pl.scan_parquet(io.BytesIO(data)), first - group.first, count)


def _slice_rows(block: _Block) -> int:
    return max(1, block.rows * MAX_DECODED_BYTES // block.expanded)


def _collect(scan: pl.LazyFrame, first: int, count: int) -> pl.DataFrame:
    with _quiet():
        frame = scan.slice(first, count).collect()
    if frame.height != count:
        raise ValueError(f"it has {frame.height} rows of {count}")
    return frame


def _has_types(file: Path | IO[bytes]) -> bool:
    """Return whether Polars can tell the types of a file's columns."""
    try:
        with _quiet():
            pl.read_parquet_schema(file)
    except ERRORS:
        return False
    return True


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
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


def _mark_shifted(blocks: list[_Block], shift: int) -> None:
    """Mark the row group in which bytes were inserted or deleted as lost, unless its pages gave it away.

    It is the last one in its place: of what follows, nothing is where the footer says.
    """
    place = max((at for at, block in enumerate(blocks) if not (block.shift or block.lost)), default=None)
    if place is None or (place + 1 == len(blocks) and shift > 0):  # what lies before the footer may belong there
        return
    if place + 1 == len(blocks) or not blocks[place + 1].lost:
        change = f"{abs(shift)} bytes are {'missing' if shift < 0 else 'too many'} in it"
        blocks[place] = replace(blocks[place], lost=change)


def _merge(blocks: Sequence[_Block]) -> Iterator[_Block]:
    """Yield the blocks, with small row groups joined."""
    run: list[_Block] = []
    expanded = 0
    for block in blocks:
        apart = block.alone or bool(block.lost)
        if run and (apart or expanded + block.expanded > RUN_BYTES):
            yield _Block(tuple(each.groups[0] for each in run), expanded)
            run, expanded = [], 0
        if apart:
            yield block
        else:
            run.append(block)
            expanded += block.expanded
    if run:
        yield _Block(tuple(each.groups[0] for each in run), expanded)


def _lost(block: _Block, first: int, count: int, cause: str) -> Rows:
    group = block.groups[0]
    return Rows(first, count, lost=f"row group {group.number} cannot be read ({cause})", bytes=group.bytes)


def _cause(error: BaseException) -> str:
    """Return the message of an error without the parts that name the library."""
    text = error_message(error).split(". ")[0]
    return text.removeprefix("parquet: ").removeprefix("File out of specification: ")


# ── rows as text ──────────────────────────────────────────────────────────────────────────────────────────────────


def _lines(frame: pl.DataFrame, first: int, max_record_bytes: int) -> Iterator[Rows]:
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
    data = b"".join(map(_json_line, frame.iter_rows(named=True)))
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


def _json_line(row: dict[str, object]) -> bytes:
    try:
        return msgspec.json.encode(row) + b"\n"
    except (OverflowError, TypeError):  # integers past 64 bits, types without a JSON form
        return json.dumps(row, default=str).encode() + b"\n"
