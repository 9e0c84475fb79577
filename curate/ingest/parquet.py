"""Read the rows of a Parquet file as JSON lines."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import msgspec

from curate.errors import InputError
from curate.ingest.sources import Source, error_message
from curate.ingest.streams import Meter, hash_whole

BATCH_ROWS = 1000


def row_blocks(source: Source, path: Path, meter: Meter) -> Iterator[bytes]:
    """Yield the rows of a Parquet file as JSON lines, in batches."""
    import polars as pl

    try:
        hash_whole(path, meter)
        scan = pl.scan_parquet(path)
        rows = max(1, scan.select(pl.len()).collect().item())
        for batch in scan.collect_batches(chunk_size=BATCH_ROWS, maintain_order=True):
            meter.bytes += (source.bytes or 0) * len(batch) // rows
            yield b"".join(map(_json_line, batch.iter_rows(named=True)))
    except (pl.exceptions.PolarsError, OSError) as error:
        cause = error_message(error).split(". ")[0]
        raise InputError(f"input {source.name!r} is a Parquet file that cannot be read: {cause}") from None
    meter.bytes = source.bytes or 0


def _json_line(row: dict[str, object]) -> bytes:
    try:
        return msgspec.json.encode(row) + b"\n"
    except (OverflowError, TypeError):  # integers past 64 bits, types without a JSON form
        return json.dumps(row, default=str).encode() + b"\n"
