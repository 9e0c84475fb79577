"""Read any format that curate knows, one conversation at a time, for conversion."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from curate import files
from curate.conversion.writers import Entry
from curate.dataset import columns, manifest
from curate.dataset.curated_set import open_set
from curate.dataset.messages import decode_messages
from curate.dataset.query import ROW
from curate.errors import InputError, RecordError
from curate.ingest.damaged_records import DamagedRecords
from curate.pipeline import repair_text, repair_turns
from curate.progress import stage
from curate.schemas import formats
from curate.schemas.conversation import ROLES, Conversation, Message
from curate.schemas.formats import native
from curate.schemas.reading import media, record_keys
from curate.schemas.reading.options import DEFAULT, ReadOptions

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
    options: ReadOptions = DEFAULT


def read_entry(row: InputRecord, keep: Collection[str] = ()) -> Entry:
    """Read a record; raises RecordError if it is not a conversation, or has a flaw of a rule that is not in `keep`."""
    if row.problem is not None:
        raise row.problem
    conversation = formats.parse(row.value, row.options)
    if conversation.flaws and keep:
        _keep_flaws(conversation, keep)
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


def _keep_flaws(conversation: Conversation, keep: Collection[str]) -> None:
    """Pass over flaws of these rules, as a recipe with "keep" does; what a text cannot show is removed."""
    for flaw in conversation.flaws:
        if flaw.rule in keep and flaw.rule == media.RULE:
            repair_turns.remove_media(conversation, flaw)
    conversation.flaws = [flaw for flaw in conversation.flaws if flaw.rule not in keep]


def scan_table(source: str | Path) -> tuple[pl.LazyFrame, str] | None:
    """Return the table of a curated set, or a Parquet file of curate's own format, and its name; None for a dump."""
    path = Path(source)
    if manifest.is_set(path):
        return open_set(path).conversations(), path.name
    if path.suffix == ".parquet" and files.is_text(str(path)) and _has_native_columns(path):
        return pl.scan_parquet(path), path.name
    return None


def _has_native_columns(file: Path) -> bool:
    """Return whether a Parquet file is of curate's own format; what cannot be read is not."""
    try:
        return set(pl.scan_parquet(file).collect_schema().names()) >= NATIVE_COLUMNS
    except (OSError, pl.exceptions.PolarsError):
        return False


def read_table(frame: pl.LazyFrame, name: str) -> Iterator[tuple[InputRecord, Entry | None]]:
    """Yield the rows of a table of curate's own format, with an entry where it is as curate writes them.

    The column `ROW` has the index of each record.
    """
    schema = frame.collect_schema()
    is_exact = all(schema.get(column) == dtype for column, dtype in columns.CONVERTED.items())
    for batch in read_batches(frame, (ROW, *native.KEYS)):
        rows = batch.drop("messages").rows(named=True) if is_exact else ()
        messages = decode_messages(batch["messages"]) if is_exact else ()
        known = is_exact and _are_plain(batch["messages"])
        entries = [_plain_entry(*pair, known) for pair in zip(rows, messages, strict=True)]
        if not is_exact or None in entries:
            rows, entries = batch.rows(named=True), entries or [None] * len(batch)
        for row, entry in zip(rows, entries, strict=True):
            yield InputRecord(name, row.pop(ROW), row), entry


def _plain_entry(row: Mapping[str, Any], messages: list[Message], are_plain: bool) -> Entry | None:
    """Return a row as an entry, without checks that the types of its columns make needless; None if it needs others.

    `are_plain`: all messages are known to be plain.
    """
    if not row["id"] or not messages or row["tools"] or row["rejected_answer"]:
        return None
    if not (are_plain or all(map(_is_plain, messages))):
        return None
    try:
        metadata = json.loads(row["metadata"]) if row["metadata"] else {}
    except (ValueError, RecursionError):
        return None
    if not isinstance(metadata, dict):
        return None
    return Entry(
        Conversation(row["id"], messages, row["model"], metadata=metadata), row["source_id"], row["piece"], row["split"]
    )


def _are_plain(messages: pl.Series) -> bool:
    """Return whether all messages of a column, whose roles and texts are checked, are plain."""
    fields = messages.explode(empty_as_null=False, keep_nulls=False).struct
    nulls = {name: fields.field(name).null_count() for name in ("train", "stop", "train_reasoning", "tool_calls")}
    return nulls.pop("tool_calls") == len(fields.field("role")) and not any(nulls.values())


def _is_plain(message: Message) -> bool:
    complete = None not in (message.content, message.train, message.stop, message.train_reasoning)
    return complete and message.role in ROLES and message.tool_calls is None


def read_batches(frame: pl.LazyFrame, names: Sequence[str]) -> Iterator[pl.DataFrame]:
    """Yield batches of rows in order, with those of the columns that the table has."""
    present = frame.collect_schema()
    columns_there = frame.select(name for name in names if name in present)
    with stage("converting", frame.select(pl.len()).collect().item()) as current:
        for batch in columns_there.collect_batches(chunk_size=BATCH_ROWS, maintain_order=True):
            yield batch
            current.done += batch.height


@contextmanager
def translate_errors(source: str | Path) -> Iterator[None]:
    """Raise errors of reading a damaged table as an InputError in one line."""
    try:
        yield
    except (OSError, pl.exceptions.PolarsError) as error:
        raise InputError(f"cannot read {str(source)!r}: {str(error).splitlines()[0]}") from error


class AlteredRecords(Exception):
    """Records that were read may be altered, as a checksum after them says: what was made of them is to be dropped."""

    def __init__(self, records: Sequence[DamagedRecords]) -> None:
        super().__init__()
        self.records = records


def read_dump(
    source: str | Path, warnings: list[str], damaged: Sequence[DamagedRecords] | None = None
) -> Iterator[InputRecord]:
    """Yield the records of anything that `curate.ingest` reads.

    Those of `damaged` have a problem. None: compressed files are read once before, to find them. If there is none in
    `damaged` and some are found, AlteredRecords is raised at the end; standard input only gives a warning.
    """
    from curate.ingest.damaged_records import DamagedIndex
    from curate.ingest.decode import decode_records
    from curate.ingest.ratings import read_ratings
    from curate.ingest.reader import Reader, find_damaged_records
    from curate.ingest.sources import open_inputs

    sources = open_inputs([source])
    index = DamagedIndex(find_damaged_records(sources) if damaged is None else damaged)
    reader = Reader(sources)
    options = ReadOptions(ratings=read_ratings(reader.parts_of_exports))
    for chunk in reader:
        for raw in decode_records(chunk):
            problem = raw.problem or index.problem(chunk.source_file, raw.index)
            yield InputRecord(chunk.source_file, raw.index, raw.value, raw.raw, problem, raw.surrogates, options)
    warnings.extend(damage.text for damage in reader.warnings)
    if sources[0].path and damaged is not None and not damaged and reader.damaged_records:
        raise AlteredRecords(reader.damaged_records)
    if not sources[0].path:  # standard input can be read only once
        warnings.extend(f"{each.source_file}: {each.text}" for each in reader.damaged_records)
