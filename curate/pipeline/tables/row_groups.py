"""Join Parquet files of the same columns into one by their row groups, without decoding them."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from curate import files
from curate.ingest.containers import parquet_layout, thrift
from curate.ingest.containers.parquet_layout import (
    CHUNK_INDEXES,
    CHUNK_METADATA,
    CHUNK_OFFSET,
    GROUP_COLUMNS,
    GROUP_OFFSET,
    GROUP_ORDINAL,
    MAGIC,
    METADATA_BLOOM_OFFSET,
    METADATA_OFFSETS,
)
from curate.ingest.containers.thrift import Field, Struct


def join(sections: Sequence[Path], target: Path) -> None:
    """Write a file with the row groups of all sections, in order, and remove these.

    Raises OSError if a file cannot be read or written.
    """
    groups: list[Struct] = []
    rows = 0
    with target.open("wb") as file:
        file.write(MAGIC)
        for path in sections:
            layout = parquet_layout.read_layout(path)
            by = file.tell() - len(MAGIC)
            with path.open("rb") as section:
                section.seek(len(MAGIC))
                shutil.copyfileobj(section, file, 1 << 20)
            file.seek(by + layout.footer_start)
            groups += [_moved(group.fields, by, len(groups) + place) for place, group in enumerate(layout.groups)]
            rows += layout.rows
            files.remove(path, path.parent)
        file.write(parquet_layout.encode_footer(layout, rows, groups))
        file.truncate()


def _moved(group: Struct, by: int, ordinal: int) -> Struct:
    """Return the description of a row group whose bytes lie `by` further on, as the one with this number."""
    chunks = [_moved_chunk(chunk, by) for chunk in group[GROUP_COLUMNS].value]
    moved = _shift(group, (GROUP_OFFSET,), by) | {GROUP_COLUMNS: Field(thrift.LIST, chunks, thrift.STRUCT)}
    return moved | ({GROUP_ORDINAL: Field(thrift.I16, ordinal)} if GROUP_ORDINAL in group else {})


def _moved_chunk(chunk: Struct, by: int) -> Struct:
    metadata = _shift(chunk[CHUNK_METADATA].value, (*METADATA_OFFSETS, METADATA_BLOOM_OFFSET), by)
    indexes = (offset for offset, _ in CHUNK_INDEXES)
    return _shift(chunk, (CHUNK_OFFSET, *indexes), by) | {CHUNK_METADATA: Field(thrift.STRUCT, metadata)}


def _shift(fields: Struct, numbers: Sequence[int], by: int) -> Struct:
    """Return the fields with these offsets moved, if they are there; 0 stands for one that is not."""
    moved = {number: fields[number] for number in numbers if number in fields and fields[number].value}
    return fields | {number: Field(field.type, field.value + by) for number, field in moved.items()}
