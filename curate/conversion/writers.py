"""Writers of conversations: JSON, rendered text and Parquet files, each record as it comes."""

from __future__ import annotations

import gzip
import hashlib
import importlib
import importlib.util
import io
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import msgspec
import polars as pl

from curate.dataset import columns, transaction
from curate.errors import InputError, MissingExtra
from curate.schemas import formats, native
from curate.schemas.conversation import Conversation

PART_BYTES = 32 << 20  # of text gathered before a part of a Parquet file is written
ZSTD_LEVEL = 3
COMPRESSED = (".gz", ".zst")


@dataclass(slots=True)
class Entry:
    """A conversation with what a curated set knows of it besides; its own `source_id` is the row's id."""

    conversation: Conversation
    source_id: str | None
    piece: int | None
    split: str | None


class Writer(Protocol):
    """Takes conversations one by one; raises RecordError for one that the format cannot hold."""

    def write(self, entry: Entry) -> None: ...

    def finish(self) -> None:
        """Complete the file."""

    def close(self) -> None:
        """Let go of files and scratch, whether or not the file is complete."""


def native_record(entry: Entry) -> dict[str, object]:
    """Return our own record of an entry, with nothing lost."""
    beside = {"source_id": entry.source_id, "piece": entry.piece, "split": entry.split}
    return {**native.dump(entry.conversation), **beside}


def encode(record: object) -> bytes:
    """Return a record as JSON on one line."""
    try:
        return msgspec.json.encode(record)
    except (OverflowError, RecursionError, msgspec.MsgspecError, UnicodeEncodeError):  # integers past 64 bits, mostly
        return json.dumps(record, default=str).encode()


def open_writer(partial: Path, target: Path, form: formats.Format, render: Callable[[Entry], str] | None) -> Writer:
    """Open what writes `form` to `partial`, in the layout and compression that the target's name asks for."""
    if form.name == "parquet":
        return Table(partial)
    if form.name == "hf":
        return HuggingFace(partial)
    stream, array = stream_to(partial, target)
    if render is not None:
        return Text(stream, render)
    return Json(stream, form, form.array or array)


def stream_to(partial: Path, target: Path) -> tuple[Stream, bool]:
    """Open a stream compressed as the target's name says, and tell whether that asks for one array."""
    ending = target.suffix if target.suffix in COMPRESSED else ""
    return Stream(partial, ending), target.name.removesuffix(ending).endswith(".json")


class Stream:
    """A file of bytes, compressed as its name's ending says."""

    def __init__(self, path: Path, ending: str = "") -> None:
        self._raw = path.open("wb")
        self._out: BinaryIO = self._raw
        if ending == ".gz":  # no name and no time, so that the same records give the same bytes
            self._out = io.BufferedWriter(gzip.GzipFile("", "wb", fileobj=self._raw, mtime=0))
        elif ending == ".zst":
            import zstandard

            self._out = zstandard.ZstdCompressor(level=ZSTD_LEVEL).stream_writer(self._raw, closefd=False)

    def put(self, data: bytes) -> None:
        self._out.write(data)

    def line(self, data: bytes) -> None:
        self._out.write(data)
        self._out.write(b"\n")

    def record(self, data: bytes, before: int | None) -> None:
        """Write a record: a line, or with `before` one of an array, after so many others."""
        if before is None:
            self.line(data)
            return
        self._out.write(b",\n" if before else b"[\n")
        self._out.write(data)

    def end_array(self, written: int) -> None:
        """End an array of so many records."""
        self._out.write(b"\n]\n" if written else b"[]\n")

    def close(self) -> None:
        try:
            self._out.close()
        finally:
            self._raw.close()


class Json:
    """JSON records: one array, or a line each."""

    def __init__(self, stream: Stream, form: formats.Format, array: bool) -> None:
        self._stream = stream
        self._array = array
        self._form = form
        self._written = 0

    def write(self, entry: Entry) -> None:
        self._stream.record(encode(self._record(entry)), self._written if self._array else None)
        self._written += 1

    def _record(self, entry: Entry) -> dict[str, object]:
        if self._form.name == native.NAME:
            return native_record(entry)
        if self._form.dump is None:
            raise InputError(f"{self._form.name!r} is not written as records")
        record = self._form.dump(entry.conversation)
        if "id" in record and record["id"] is None:
            record["id"] = _content_id(entry.conversation)
        return record

    def finish(self) -> None:
        if self._array:
            self._stream.end_array(self._written)

    def close(self) -> None:
        self._stream.close()


def _content_id(conversation: Conversation) -> str:
    """Name a conversation without an id by its content."""
    data = json.dumps([[message.role, message.content] for message in conversation.messages])
    return f"c-{hashlib.sha256(data.encode()).hexdigest()[:12]}"


class Text:
    """Rendered prompts, each under a line with its id."""

    def __init__(self, stream: Stream, render: Callable[[Entry], str]) -> None:
        self._stream = stream
        self._render = render

    def write(self, entry: Entry) -> None:
        name = entry.conversation.source_id or _content_id(entry.conversation)
        title = " ".join(name.split())
        self._stream.put(f"===== {title} =====\n{self._render(entry)}\n\n".encode())

    def finish(self) -> None:
        pass

    def close(self) -> None:
        self._stream.close()


class Parts:
    """The rows of a Parquet file: gathered into parts of a bounded size, then made one file."""

    def __init__(self, path: Path, schema: columns.Types) -> None:
        self._path = path
        self._schema = schema
        self._parts = path.with_name(f"{path.name}.parts")
        shutil.rmtree(self._parts, ignore_errors=True)
        self._parts.mkdir()
        self._rows: list[dict[str, object]] = []
        self._bytes = 0
        self._count = 0

    def add(self, row: dict[str, object], size: int) -> None:
        """Take a row of about so many bytes."""
        self._rows.append(row)
        self._bytes += size
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
        shutil.rmtree(self._parts, ignore_errors=True)


class Table:
    """A Parquet file with the columns of our own lines."""

    def __init__(self, path: Path) -> None:
        self._parts = Parts(path, columns.CONVERTED)

    def write(self, entry: Entry) -> None:
        record = native_record(entry)
        record["metadata"] = encode(entry.conversation.metadata).decode() if entry.conversation.metadata else None
        self._parts.add(record, sum(len(message.content) for message in entry.conversation.messages))

    def finish(self) -> None:
        self._parts.finish()

    def close(self) -> None:
        self._parts.close()


class HuggingFace:
    """A folder as `datasets` saves it: a table for `train`, and one for `eval` where there is one."""

    def __init__(self, folder: Path) -> None:
        if importlib.util.find_spec("datasets") is None:
            raise MissingExtra("writing a folder of Hugging Face's datasets", "train")
        self._folder = folder
        self._scratch = folder.with_name(f"{folder.name}.scratch")
        shutil.rmtree(self._scratch, ignore_errors=True)
        self._scratch.mkdir()
        self._tables: dict[str, Table] = {}

    def write(self, entry: Entry) -> None:
        split = entry.split or "train"
        if split not in self._tables:
            self._tables[split] = Table(self._scratch / f"{split}.parquet")
        self._tables[split].write(entry)

    def finish(self) -> None:
        library = importlib.import_module("datasets")
        shown = library.is_progress_bar_enabled()
        library.disable_progress_bar()
        try:
            for table in self._tables.values():
                table.finish()
            made = library.DatasetDict({split: self._read(library, split) for split in self._tables})
            made.save_to_disk(str(self._folder))
        finally:
            if shown:
                library.enable_progress_bar()

    def _read(self, library: Any, split: str) -> Any:
        """Open a table from its file, through a cache of its own, so that memory does not grow with it."""
        cache = str(self._scratch / "cache")
        return library.Dataset.from_parquet(str(self._scratch / f"{split}.parquet"), cache_dir=cache, split=split)

    def close(self) -> None:
        for table in self._tables.values():
            table.close()
        shutil.rmtree(self._scratch, ignore_errors=True)
