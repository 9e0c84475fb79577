"""Write conversations one by one: as JSON, rendered text, Parquet, or a folder of Hugging Face's datasets."""

from __future__ import annotations

import csv
import gzip
import importlib
import importlib.util
import io
import json
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Generic, Protocol, TypeVar

import msgspec
import polars as pl

from curate import files
from curate.dataset import columns, transaction
from curate.errors import MissingExtra
from curate.schemas.conversation import Conversation
from curate.schemas.formats import native

PART_CHARACTERS = 1 << 20  # of CSV collected before it is encoded
PART_BYTES = 32 << 20  # of text collected before a part of a Parquet file is written
ZSTD_LEVEL = 3
COMPRESSED = (".gz", ".zst")
Item = TypeVar("Item", contravariant=True)


@dataclass(slots=True)
class Entry:
    """A conversation with the columns of its row in a set; `conversation.source_id` is the row's id."""

    conversation: Conversation
    source_id: str | None
    piece: int | None
    split: str | None


class Writer(Protocol[Item]):
    """Writes items one by one; raises RecordError for one that the format cannot represent."""

    def write(self, item: Item, /) -> None: ...

    def finish(self) -> None:
        """Complete the file."""

    def close(self) -> None:
        """Close files and delete scratch, whether or not the file is complete."""


def native_record(entry: Entry) -> dict[str, object]:
    """Return an entry as curate's own record, which keeps everything."""
    columns_of_set = {"source_id": entry.source_id, "piece": entry.piece, "split": entry.split}
    return {**native.dump(entry.conversation), **columns_of_set}


def encode(record: object) -> bytes:
    """Return a record as JSON on one line."""
    try:
        return msgspec.json.encode(record)
    except (OverflowError, RecursionError, msgspec.MsgspecError, UnicodeEncodeError):  # mostly integers beyond 64 bits
        return json.dumps(record, default=str).encode()


def stream_to(partial: Path, target: Path) -> tuple[Stream, bool]:
    """Open a stream, compressed by the target's suffix, and return it with whether the target is one JSON array."""
    ending = target.suffix if target.suffix in COMPRESSED else ""
    return Stream(partial, ending), target.name.removesuffix(ending).endswith(".json")


class Stream:
    """A file of bytes, compressed for the suffix `ending` (`.gz` or `.zst`)."""

    def __init__(self, path: Path, ending: str = "") -> None:
        self._raw = path.open("wb")
        self._out: BinaryIO = self._raw
        if ending == ".gz":  # no name or time in the header: the same records give the same bytes
            self._out = io.BufferedWriter(gzip.GzipFile("", "wb", fileobj=self._raw, mtime=0))
        elif ending == ".zst":
            import zstandard

            self._out = zstandard.ZstdCompressor(level=ZSTD_LEVEL).stream_writer(self._raw, closefd=False)

    def put(self, data: bytes) -> None:
        self._out.write(data)

    def line(self, data: bytes) -> None:
        self._out.write(data + b"\n")

    def record(self, data: bytes, before: int | None) -> None:
        """Write a record: a line, or if `before` is given, an item of an array after that many items."""
        if before is None:
            self.line(data)
            return
        self._out.write((b",\n" if before else b"[\n") + data)

    def end_array(self, written: int) -> None:
        """Close an array that has this many records."""
        self._out.write(b"\n]\n" if written else b"[]\n")

    def close(self) -> None:
        try:
            self._out.close()
        finally:
            self._raw.close()


class JsonWriter(Generic[Item]):
    """Writes JSON records: one array, or one per line. `to_records` makes the records of an item."""

    def __init__(self, stream: Stream, array: bool, to_records: Callable[[Item], Iterable[object]]) -> None:
        self._stream = stream
        self._array = array
        self._to_records = to_records
        self._written = 0

    def write(self, item: Item) -> None:
        for record in list(self._to_records(item)):
            self._stream.record(encode(record), self._written if self._array else None)
            self._written += 1

    def finish(self) -> None:
        if self._array:
            self._stream.end_array(self._written)

    def close(self) -> None:
        self._stream.close()


class TextWriter:
    """Writes rendered prompts, each below a line with its id."""

    def __init__(self, stream: Stream, render: Callable[[Entry], tuple[str, str]]) -> None:
        self._stream = stream
        self._render = render  # returns the id and the text

    def write(self, entry: Entry) -> None:
        name, text = self._render(entry)
        self._stream.put(f"===== {' '.join(name.split())} =====\n{text}\n\n".encode())

    def finish(self) -> None:
        pass

    def close(self) -> None:
        self._stream.close()


class CsvWriter(Generic[Item]):
    """Writes a table as CSV, with a byte-order mark, by which spreadsheets know UTF-8."""

    def __init__(
        self, stream: Stream, columns: Sequence[str], to_rows: Callable[[Item], Iterable[dict[str, object]]]
    ) -> None:
        self._stream = stream
        self._text = io.StringIO(newline="")
        self._rows = csv.DictWriter(self._text, columns, quoting=csv.QUOTE_ALL)
        self._to_rows = to_rows
        self._text.write("\ufeff")
        self._rows.writeheader()

    def write(self, item: Item) -> None:
        self._rows.writerows(list(self._to_rows(item)))
        if self._text.tell() > PART_CHARACTERS:
            self._flush()

    def _flush(self) -> None:
        self._stream.put(self._text.getvalue().encode())
        self._text.seek(0)
        self._text.truncate()

    def finish(self) -> None:
        self._flush()

    def close(self) -> None:
        self._stream.close()


class ShardedWriter(Generic[Item]):
    """Writes items to several files in turn."""

    def __init__(self, shards: Sequence[Writer[Item]]) -> None:
        self._shards = shards
        self._written = 0

    def write(self, item: Item) -> None:
        self._shards[self._written % len(self._shards)].write(item)
        self._written += 1

    def finish(self) -> None:
        for shard in self._shards:
            shard.finish()

    def close(self) -> None:
        with ExitStack() as stack:
            for shard in self._shards:
                stack.callback(shard.close)


class ParquetWriter(Generic[Item]):
    """Writes a Parquet file: rows are collected into parts of limited size, which `finish` joins.

    `to_row` makes the row of an item, `size_of` estimates its bytes.
    """

    def __init__(
        self,
        path: Path,
        schema: columns.Types,
        to_row: Callable[[Item], dict[str, object]],
        size_of: Callable[[Item], int],
    ) -> None:
        files.refuse_bytes(path)
        self._path = path
        self._schema = schema
        self._to_row = to_row
        self._size_of = size_of
        self._parts = files.scratch_folder(path.with_name(f"{path.name}.parts"))
        self._rows: list[dict[str, object]] = []
        self._bytes = 0
        self._count = 0

    def write(self, item: Item) -> None:
        self._rows.append(self._to_row(item))
        self._bytes += self._size_of(item)
        if self._bytes > PART_BYTES:
            self._flush()

    def _flush(self) -> None:
        part = self._parts / f"{self._count:06d}.parquet"
        try:
            pl.DataFrame(self._rows, schema=self._schema).write_parquet(part, compression="lz4")
        except pl.exceptions.PolarsError as error:
            raise OSError(transaction.why_not_written(error)) from error
        self._rows, self._bytes = [], 0
        self._count += 1

    def finish(self) -> None:
        self._flush()
        parts = [self._parts / f"{number:06d}.parquet" for number in range(self._count)]
        transaction.sink(self._path, pl.scan_parquet(parts))

    def close(self) -> None:
        files.remove(self._parts, self._parts.parent)


def conversation_table(path: Path) -> ParquetWriter[Entry]:
    """Open a Parquet file with the columns of curate's own records."""
    return ParquetWriter(path, columns.CONVERTED, table_row, _text_size)


def table_row(entry: Entry) -> dict[str, object]:
    """Return an entry as a row of `columns.CONVERTED`."""
    metadata = entry.conversation.metadata
    return {**native_record(entry), "metadata": encode(metadata).decode() if metadata else None}


def _text_size(entry: Entry) -> int:
    return sum(len(message.content) for message in entry.conversation.messages)


class HuggingFaceWriter:
    """Writes a folder as `datasets` saves it: a table for `train`, and one for `eval` if it has rows."""

    def __init__(self, folder: Path) -> None:
        if importlib.util.find_spec("datasets") is None:
            raise MissingExtra("writing a folder of Hugging Face's datasets", "train")
        self._folder = folder
        self._scratch = files.scratch_folder(folder.with_name(f"{folder.name}.scratch"))
        self._tables: dict[str, ParquetWriter[Entry]] = {}

    def write(self, entry: Entry) -> None:
        split = entry.split or "train"
        if split not in self._tables:
            self._tables[split] = conversation_table(self._scratch / f"{split}.parquet")
        self._tables[split].write(entry)

    def finish(self) -> None:
        library = importlib.import_module("datasets")
        shown = library.is_progress_bar_enabled()
        library.disable_progress_bar()
        try:
            for table in self._tables.values():
                table.finish()
            dataset = library.DatasetDict({split: self._read(library, split) for split in self._tables})
            dataset.save_to_disk(str(self._folder))
        finally:
            if shown:
                library.enable_progress_bar()

    def _read(self, library: Any, split: str) -> Any:
        """Open a table as memory-mapped Arrow, cached in the scratch folder, so that memory does not grow with it."""
        cache = str(self._scratch / "cache")
        return library.Dataset.from_parquet(str(self._scratch / f"{split}.parquet"), cache_dir=cache, split=split)

    def close(self) -> None:
        for table in self._tables.values():
            table.close()
        files.remove(self._scratch, self._scratch.parent)
