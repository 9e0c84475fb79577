"""Read the rows of a Parquet file as JSON lines; a damaged row group costs its own rows."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

import polars as pl

from curate.errors import InputError
from curate.files import is_text
from curate.ingest.containers import parquet_layout
from curate.ingest.containers.parquet_layout import Layout, RowGroup
from curate.ingest.sources import Source
from curate.ingest.streams import MIN_RATIO_BYTES, Limits, Meter, check_expansion, hash_whole
from curate.ingest.tables.frame_rows import ERRORS, cause, encode_frame, quiet
from curate.ingest.tables.table import Rows, Table

RUN_BYTES = 64 << 20  # of memory: row groups are decoded together up to this size
MAX_DECODED_BYTES = 768 << 20  # of memory: a larger row group is decoded in slices
MAX_EXTRACTED_BYTES = 512 << 20  # on disk: a larger row group is not copied to be decoded alone


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


def read_table(
    source: Source, path: Path, meter: Meter, limits: Limits, max_record_bytes: int, report: Callable[[str], None]
) -> Table:
    """Open a file; its rows are lines or lost; damage that costs no row is reported.

    Raises InputError if no row can be read, or if their text exceeds the limits; the rows raise it, too.
    """
    if not is_text(str(path)):
        raise InputError(f"{_unreadable(source)}: its name is not UTF-8; rename it")
    try:
        hash_whole(path, meter)
        layout = parquet_layout.read_layout(path)
    except (OSError, ValueError) as error:
        raise InputError(f"{_unreadable(source)}: {cause(error)}") from None
    without_schema = parquet_layout.drop_arrow_schema(layout)
    schema = _schema(path)
    has_bad_schema = not schema and bool(schema := _schema(io.BytesIO(parquet_layout.encode(without_schema))))
    if has_bad_schema:
        report("the Arrow schema in its footer is damaged: its columns are read by their Parquet types")
        layout = without_schema
    rows = _FileReader(path, layout, limits, source.bytes or 0, max_record_bytes, all_alone=has_bad_schema)
    return Table(tuple(schema), _read_rows(source, rows, meter, limits))


def _unreadable(source: Source) -> str:
    return f"input {source.name!r} is a Parquet file that cannot be read"


def _read_rows(source: Source, reader: _FileReader, meter: Meter, limits: Limits) -> Iterator[Rows]:
    size = source.bytes or 0
    total = sum(group.rows for group in reader.layout.groups)
    lost: list[Rows] = []
    with reader.path.open("rb") as reader.file:
        for rows in reader:
            meter.bytes += size * rows.count // total
            if rows.lost and meter.expanded == 0:  # so far nothing says that the file can be read at all
                lost.append(rows)
                continue
            check_expansion(len(rows.data), source, meter, limits)
            yield from lost
            lost.clear()
            yield rows
    if lost:
        raise InputError(f"{_unreadable(source)}: {lost[0].lost}")
    if not total:
        raise InputError(f"input {source.name!r} is a Parquet file without rows")
    meter.bytes = size


class _FileReader:
    """Decodes the row groups of one file: those that are in order together, the others one by one."""

    def __init__(
        self,
        path: Path,
        layout: Layout,
        limits: Limits,
        size: int,
        max_record_bytes: int,
        *,
        all_alone: bool,  # each row group is decoded apart from the file, by `layout`
    ) -> None:
        self.all_alone = all_alone
        self.path = path
        self.file: IO[bytes]  # open while rows are read
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
                causes.append(cause(error))
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
                    yield _lost(block, first, count, cause(error))
                    continue
                for group in block.groups:
                    yield from self._read(_Block((group,), block.expanded, alone=True))
                return
            yield from encode_frame(frame, first, self.max_record_bytes)

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
    with quiet():
        frame = scan.slice(first, count).collect()
    if frame.height != count:
        raise ValueError(f"it has {frame.height} rows of {count}")
    return frame


def _schema(file: Path | IO[bytes]) -> dict[str, pl.DataType]:
    """Return the columns of a file with their types; none if Polars cannot tell the types."""
    try:
        with quiet():
            return pl.read_parquet_schema(file)
    except ERRORS:
        return {}


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
