"""Read any format that curate knows, one conversation at a time, for conversion."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from curate.conversion.writers import Entry
from curate.dataset import manifest
from curate.errors import InputError, RecordError
from curate.pipeline import repair_text
from curate.schemas import formats
from curate.schemas.formats import native
from curate.schemas.reading import record_keys

NATIVE_COLUMNS = frozenset(("messages", "piece", "source_id"))
BATCH_ROWS = 1_000  # of a Parquet file, converted to Python objects at once


@dataclass(slots=True)
class InputRecord:
    """One record: its bytes (None from Parquet) and the value they decode to, or the `problem` that prevented it."""

    file: str
    index: int
    value: object
    raw: bytes | None = None
    problem: RecordError | None = None
    surrogates: bool = False


def read_entry(row: InputRecord) -> Entry:
    """Read a record; raises RecordError if it is not a conversation."""
    if row.problem is not None:
        raise row.problem
    conversation = formats.parse(row.value)
    record_keys.refuse_flaws(conversation)
    if row.surrogates:
        repair_text.repair_surrogates(conversation)
    value = row.value
    if not isinstance(value, dict) or not native.recognises(value):
        return Entry(conversation, conversation.source_id, None, None)
    source_id, piece, split = value.get("source_id"), value.get("piece"), value.get("split")
    return Entry(
        conversation,
        source_id if isinstance(source_id, str) else None,
        piece if isinstance(piece, int) and 0 <= piece < 1 << 31 else None,
        split if isinstance(split, str) else None,
    )


def read_records(source: str | Path, warnings: list[str]) -> Iterator[InputRecord]:
    """Yield the records of a curated set, or of anything that `curate.ingest` reads."""
    path = Path(source)
    if manifest.is_set(path):
        file = manifest.read(path)[0] / manifest.CONVERSATIONS
        yield from _parquet_rows(file, path.name)
    elif path.suffix == ".parquet" and _has_native_columns(path):
        yield from _parquet_rows(path, path.name)
    else:
        yield from _ingest(source, warnings)


def _has_native_columns(file: Path) -> bool:
    """Return whether a Parquet file is of curate's own format; what cannot be read is not."""
    try:
        return set(pl.scan_parquet(file).collect_schema().names()) >= NATIVE_COLUMNS
    except (OSError, pl.exceptions.PolarsError):
        return False


def _parquet_rows(file: Path, name: str) -> Iterator[InputRecord]:
    """Yield the rows as records; of a set, only the columns of a conversation."""
    try:
        frame = pl.scan_parquet(file)
        present = frame.collect_schema().names()
        if set(present) >= NATIVE_COLUMNS:
            frame = frame.select(column for column in native.KEYS if column in present)
        index = 0
        for batch in frame.collect_batches(chunk_size=BATCH_ROWS, maintain_order=True):
            for value in batch.iter_rows(named=True):
                yield InputRecord(name, index, value)
                index += 1
    except (OSError, pl.exceptions.PolarsError) as error:
        raise InputError(f"cannot read {str(file)!r}: {str(error).splitlines()[0]}") from error


def _ingest(source: str | Path, warnings: list[str]) -> Iterator[InputRecord]:
    from curate.ingest.damaged_records import DamagedIndex
    from curate.ingest.decode import decode_records
    from curate.ingest.reader import Reader, find_damaged_records
    from curate.ingest.sources import open_inputs

    sources = open_inputs([source])
    damaged = DamagedIndex(find_damaged_records(sources))
    reader = Reader(sources)
    for chunk in reader:
        for raw in decode_records(chunk):
            problem = raw.problem or damaged.problem(chunk.source_file, raw.index)
            yield InputRecord(chunk.source_file, raw.index, raw.value, raw.raw, problem, raw.surrogates)
    warnings.extend(damage.text for damage in reader.warnings)
    if not sources[0].path:  # standard input can be read only once
        warnings.extend(f"{each.source_file}: {each.text}" for each in reader.damaged_records)
