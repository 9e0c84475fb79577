"""Where the row groups and pages of a Parquet file are, and how much memory they take, without decoding them.

Source: https://github.com/apache/parquet-format/blob/master/src/main/thrift/parquet.thrift
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

from curate.ingest.containers import thrift
from curate.ingest.containers.thrift import Field, Struct

MAGIC = b"PAR1"
MAX_FOOTER_BYTES = 1 << 28
MAX_SCHEMA_DEPTH = 100
MAX_ROWS = 1 << 48
VALUE_BYTES = 16  # a text's view in memory; the largest of the types whose size is not in the schema
HEADER_BYTES = 1 << 9  # read at a page; longer headers are read again in full
MAX_HEADER_BYTES = 1 << 24
MAX_OVERRUN_BYTES = 100  # old writers did not count the header of a dictionary

# Numbers of the fields, by struct.
FILE_SCHEMA, FILE_ROWS, FILE_GROUPS, FILE_KEY_VALUES = 2, 3, 4, 5
SCHEMA_TYPE_LENGTH, SCHEMA_CHILDREN = 2, 5
GROUP_COLUMNS, GROUP_ROWS, GROUP_OFFSET, GROUP_ORDINAL = 1, 3, 5, 7
CHUNK_FILE, CHUNK_OFFSET, CHUNK_METADATA = 1, 2, 3
CHUNK_INDEXES = ((4, 5), (6, 7))  # offset and length
METADATA_VALUES, METADATA_BYTES, METADATA_STATISTICS = 5, 7, 12
METADATA_OFFSETS = (9, 11)  # of the first data page, and of the dictionary before it
METADATA_BLOOM_OFFSET, METADATA_BLOOM_LENGTH = 14, 15
PAGE_EXPANDED, PAGE_BYTES, PAGE_CRC = 2, 3, 4
DATA_PAGES = (5, 8)  # of versions 1 and 2: the number of values is their first field


@dataclass(frozen=True)
class Column:
    """A column of one row group: its pages are bytes `start` to `stop` of the file."""

    start: int
    stop: int
    values: int
    value_bytes: int


@dataclass(frozen=True)
class RowGroup:
    """One row group. `columns` is empty if its description is damaged."""

    number: int
    first: int  # row of the file
    rows: int
    columns: tuple[Column, ...]
    fields: Struct

    @property
    def start(self) -> int:
        return min(column.start for column in self.columns)

    @property
    def stop(self) -> int:
        return max(column.stop for column in self.columns)

    @property
    def bytes(self) -> int:
        """Its size on disk."""
        return sum(column.stop - column.start for column in self.columns)


@dataclass(frozen=True)
class Layout:
    """The row groups of a file.

    `shift` is how many bytes the file has too many (or, negative, too few) before its footer: where bytes were
    inserted or deleted, everything after it is shifted by as much from where the footer says. `footer_start` is the
    byte at which the footer begins.
    """

    groups: tuple[RowGroup, ...]
    rows: int  # of the file, as the footer says
    shift: int
    fields: Struct
    footer_start: int


def read_layout(path: Path) -> Layout:
    """Read the footer of a file. Raises ValueError if it is damaged or absent, OSError if it cannot be read."""
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - 8))
        tail = file.read(8)
        length = int.from_bytes(tail[:4], "little")
        if len(tail) < 8 or tail[4:] != MAGIC or not 0 < length <= min(size - 12, MAX_FOOTER_BYTES):
            raise ValueError("the footer at its end is cut off or damaged")
        file.seek(size - 8 - length)
        footer = file.read(length)
    try:
        return _layout(thrift.Reader(footer).struct(), size - 8 - length)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise ValueError(f"the footer at its end is damaged ({error or type(error).__name__})") from None


def _layout(fields: Struct, footer_start: int) -> Layout:
    widths = _value_bytes(fields[FILE_SCHEMA].value)
    groups: list[RowGroup] = []
    first = 0
    stop = 4
    for number, group in enumerate(fields[FILE_GROUPS].value):
        rows = group[GROUP_ROWS].value
        if not 0 <= rows < MAX_ROWS:
            raise ValueError(f"row group {number} has {rows} rows")
        groups.append(RowGroup(number, first, rows, _columns(group, widths, footer_start), group))
        first += rows
        stop = max(stop, _end(groups[-1]))
    return Layout(tuple(groups), fields[FILE_ROWS].value, footer_start - stop, fields, footer_start)


def _value_bytes(schema: Sequence[Struct]) -> list[int]:
    """Return the memory of one value of each column; raises ValueError for a schema nested too deeply."""
    widths: list[int] = []
    open_: list[int] = []  # children left, by level
    for element in schema:
        while open_ and not open_[-1]:
            open_.pop()
        if open_:
            open_[-1] -= 1
        children = element[SCHEMA_CHILDREN].value if SCHEMA_CHILDREN in element else 0
        if children > 0:
            open_.append(children)
        else:
            width = element[SCHEMA_TYPE_LENGTH].value if SCHEMA_TYPE_LENGTH in element else 0
            widths.append(max(VALUE_BYTES, width))
        if len(open_) > MAX_SCHEMA_DEPTH:
            raise ValueError(f"its columns are nested over {MAX_SCHEMA_DEPTH} levels deep")
    return widths


def _columns(group: Struct, widths: Sequence[int], footer_start: int) -> tuple[Column, ...]:
    columns = []
    try:
        for chunk, width in zip(group[GROUP_COLUMNS].value, widths, strict=True):
            metadata = chunk[CHUNK_METADATA].value
            start = _start(metadata)
            stop = start + metadata[METADATA_BYTES].value
            columns.append(Column(start, stop, metadata[METADATA_VALUES].value, width))
            if start > stop or stop - start > footer_start or CHUNK_FILE in chunk:
                return ()
    except (KeyError, TypeError, ValueError):
        return ()
    return tuple(columns)


def _start(metadata: Struct) -> int:
    """Return where a column begins; some writers give 0 as the place of a dictionary that is absent."""
    offsets = [metadata[number].value for number in METADATA_OFFSETS if number in metadata]
    return int(min(offset for offset in offsets if offset >= len(MAGIC)))


def _end(group: RowGroup) -> int:
    """Return the byte after everything that belongs to a row group, its indexes among it."""
    if not group.columns:
        return 0
    ends = [group.stop]
    for chunk in group.fields[GROUP_COLUMNS].value:
        metadata = chunk[CHUNK_METADATA].value
        ends += [chunk[at].value + chunk[size].value for at, size in CHUNK_INDEXES if at in chunk and size in chunk]
        if METADATA_BLOOM_OFFSET in metadata and METADATA_BLOOM_LENGTH in metadata:
            ends.append(metadata[METADATA_BLOOM_OFFSET].value + metadata[METADATA_BLOOM_LENGTH].value)
    return max(ends)


def expanded_bytes(file: IO[bytes], group: RowGroup, shift: int = 0) -> int:
    """Return about how much memory a row group takes, by the headers of its pages.

    Raises ValueError if the pages are not where the footer says, or do not match their checksums (if they have any).
    """
    if not group.columns:
        raise ValueError("its description in the footer is damaged")
    total = 0
    try:
        for column in group.columns:
            total += sum(header[PAGE_EXPANDED].value for header in _pages(file, column, shift))
            total += column.values * column.value_bytes
    except (KeyError, TypeError, AttributeError, OverflowError):
        raise ValueError("the header of a page is damaged") from None
    return total


def _pages(file: IO[bytes], column: Column, shift: int) -> Iterator[Struct]:
    """Yield the headers of a column's pages, up to its last value."""
    position, stop = column.start + shift, column.stop + shift
    values = 0
    while position < stop and values < column.values:
        header, start = _page_header(file, position)
        size = header[PAGE_BYTES].value if PAGE_BYTES in header else -1
        if (
            size < 0
            or start + size > stop + MAX_OVERRUN_BYTES
            or PAGE_EXPANDED not in header
            or header[PAGE_EXPANDED].value < 0
        ):
            raise ValueError(f"the page at byte {position} is damaged")
        if PAGE_CRC in header:
            file.seek(start)
            if zlib.crc32(file.read(size)) != header[PAGE_CRC].value & 0xFFFFFFFF:
                raise ValueError(f"the page at byte {position} does not match its checksum")
        yield header
        values += sum(header[kind].value[1].value for kind in DATA_PAGES if kind in header)
        position = start + size
    if values != column.values:
        raise ValueError(f"the pages before byte {position} hold {values} values of {column.values}")


def _page_header(file: IO[bytes], position: int) -> tuple[Struct, int]:
    """Return the header of a page, and the byte after it."""
    size = HEADER_BYTES
    if position < len(MAGIC):
        raise ValueError("a page lies before the file")
    while True:
        file.seek(position)
        reader = thrift.Reader(file.read(size))
        try:
            return reader.struct(), position + reader.position
        except (ValueError, TypeError) as error:
            if len(reader.data) < size or size > MAX_HEADER_BYTES or str(error) != thrift.CUT_OFF:
                raise ValueError(f"the page at byte {position} is damaged") from None
        size *= 16


def extract(file: IO[bytes], layout: Layout, group: RowGroup, shift: int) -> bytes:
    """Return a Parquet file of one row group alone, which lies `shift` bytes from where the footer says."""
    start = group.start
    file.seek(start + shift)
    data = file.read(group.stop - start)
    columns = [_moved(chunk, len(MAGIC) - start) for chunk in group.fields[GROUP_COLUMNS].value]
    fields = {number: field for number, field in group.fields.items() if number != GROUP_OFFSET}
    fields[GROUP_COLUMNS] = Field(thrift.LIST, columns, thrift.STRUCT)
    return encode(layout, data, group.rows, [fields])


def encode(layout: Layout, data: bytes = b"", rows: int = 0, groups: Sequence[Struct] = ()) -> bytes:
    """Return a Parquet file with the columns of another one, and the row groups that are in `data`."""
    return b"".join((MAGIC, data, encode_footer(layout, rows, groups)))


def encode_footer(layout: Layout, rows: int, groups: Sequence[Struct]) -> bytes:
    """Return the end of a Parquet file with the columns of another one and these row groups."""
    footer = layout.fields | {
        FILE_ROWS: Field(thrift.I64, rows),
        FILE_GROUPS: Field(thrift.LIST, list(groups), thrift.STRUCT),
    }
    encoded = thrift.encode(footer)
    return b"".join((encoded, len(encoded).to_bytes(4, "little"), MAGIC))


def drop_arrow_schema(layout: Layout) -> Layout:
    """Return a layout without the keys and values of the footer, one of which is the Arrow schema."""
    fields = {number: field for number, field in layout.fields.items() if number != FILE_KEY_VALUES}
    return replace(layout, fields=fields)


def _moved(chunk: Struct, by: int) -> Struct:
    """Return the description of a column with its offsets moved, without its statistics and indexes."""
    metadata = dict(chunk[CHUNK_METADATA].value)
    for number in (METADATA_STATISTICS, METADATA_BLOOM_OFFSET, METADATA_BLOOM_LENGTH):
        metadata.pop(number, None)
    for number in METADATA_OFFSETS:
        if number in metadata:
            metadata[number] = Field(thrift.I64, metadata[number].value + by)
    return {CHUNK_OFFSET: Field(thrift.I64, 0), CHUNK_METADATA: Field(thrift.STRUCT, metadata)}
