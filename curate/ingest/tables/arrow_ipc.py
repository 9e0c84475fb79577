"""Read the rows of Arrow IPC files and streams as JSON lines; a damaged record batch costs its own rows.

A file is read as a stream: its footer says nothing that the messages before it do not.
Source: https://arrow.apache.org/docs/format/Columnar.html#serialization-and-interprocess-communication-ipc
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, cast

import polars as pl

from curate.errors import InputError
from curate.ingest.tables.delimited_text import BlockStream
from curate.ingest.tables.flatbuffer import FlatTable
from curate.ingest.tables.frame_rows import ERRORS, cause, encode_frame, quiet
from curate.ingest.tables.table import Rows, Table

MAGIC = b"ARROW1"
CONTINUATION = b"\xff\xff\xff\xff"

END = CONTINUATION + b"\0\0\0\0"
ALIGNMENT = 8  # bytes
MAX_METADATA_BYTES = 1 << 26  # of a message
SEARCH_BYTES = 1 << 20  # of the text in which the next message is looked for, at a time
SCHEMA, DICTIONARY, RECORDS = 1, 2, 3  # kinds of messages that matter here

# Numbers of the fields, by table.
MESSAGE_KIND, MESSAGE_HEADER, MESSAGE_BODY = 1, 2, 3
RECORDS_ROWS, RECORDS_BUFFERS, RECORDS_COMPRESSION = 0, 2, 3
DICTIONARY_ID, DICTIONARY_RECORDS, DICTIONARY_DELTA = 0, 1, 2
BUFFER_BYTES = 16  # offset and length, in the metadata
MAX_ROWS = 1 << 40
BITS = 8  # in a byte; a row takes at least one bit, unless all its columns are null


@dataclass(frozen=True)
class Message:
    """One message: its kind, its number of rows, and its bytes, with those of the body after the metadata.

    `lost`: why the text at this place is no whole message; `rows` is 0 if their number is unknown.
    """

    kind: int
    metadata: bytes
    body: bytes = b""
    rows: int = 0
    lost: str = ""

    @property
    def data(self) -> bytes:
        return b"".join((CONTINUATION, len(self.metadata).to_bytes(4, "little"), self.metadata, self.body))


def read_table(
    blocks: Iterator[bytes],
    name: str,
    split: str,
    *,
    max_bytes: int,
    max_record_bytes: int,
) -> Table:
    """Open a file or stream; `split`, if not empty, is a column of all rows that have no other of this name.

    `max_bytes` is the most that a record batch may take in memory. Raises InputError if nothing can be read.
    """
    messages = MessageReader(cast(BinaryIO, io.BufferedReader(BlockStream(blocks), 1 << 20)), max_bytes)
    unreadable = f"input {name!r} is an Arrow file that cannot be read"
    schema = next((message for message in messages if message.kind == SCHEMA and not message.lost), None)
    if schema is None:
        raise InputError(f"{unreadable}: it has no schema")
    try:
        columns = _decode([schema]).schema
    except ERRORS as error:
        raise InputError(f"{unreadable}: {cause(error)}") from None
    names = tuple(columns) if "split" in columns or not split else (*columns, "split")
    rows = _read_rows(messages, schema, "" if "split" in columns else split, unreadable, max_record_bytes)
    return Table(names, rows)


def _read_rows(
    messages: MessageReader, schema: Message, split: str, unreadable: str, max_record_bytes: int
) -> Iterator[Rows]:
    dictionaries: dict[int, list[Message]] = {}
    lost: list[Rows] = []  # before the first row that can be read
    first = batch = 0
    any_row = False
    for message in messages:
        if message.kind == DICTIONARY and not message.lost:
            _add_dictionary(dictionaries, message)
            continue
        if message.kind != RECORDS and not message.lost:
            continue
        needed = [schema, *(each for group in dictionaries.values() for each in group), message]
        for rows in _decode_rows(needed, first, batch, split, max_record_bytes):
            first = rows.first + rows.count
            if rows.lost and not any_row:
                lost.append(rows)
                continue
            any_row = True
            yield from lost
            lost.clear()
            yield rows
        batch += 1
    if lost:
        raise InputError(f"{unreadable}: {lost[0].lost}")
    if not first:
        raise InputError(f"{unreadable.partition(' that')[0]} without rows")


def _add_dictionary(dictionaries: dict[int, list[Message]], message: Message) -> None:
    header = FlatTable.root(message.metadata).table(MESSAGE_HEADER)
    assert header is not None
    number = header.number(DICTIONARY_ID, 8)
    is_delta = header.number(DICTIONARY_DELTA, 1)
    dictionaries[number] = [*(dictionaries.get(number, []) if is_delta else []), message]


def _decode_rows(needed: list[Message], first: int, batch: int, split: str, max_record_bytes: int) -> Iterator[Rows]:
    message = needed[-1]
    problem = message.lost
    if not problem:
        try:
            frame = _decode(needed)
            if frame.height != message.rows:
                raise ValueError(f"it has {frame.height} rows of {message.rows}")
        except ERRORS as error:
            problem = cause(error)
    if problem:
        size = len(message.metadata) + len(message.body)
        yield Rows(
            first,
            message.rows if message.rows <= BITS * size else 1,
            lost=f"record batch {batch} cannot be read ({problem})",
            bytes=size,
        )
        return
    if split:
        frame = frame.with_columns(split=pl.lit(split))
    yield from encode_frame(frame, first, max_record_bytes)


def _decode(messages: list[Message]) -> pl.DataFrame:
    with quiet():
        return pl.read_ipc_stream(io.BytesIO(b"".join([*(message.data for message in messages), END])))


# ── messages ──────────────────────────────────────────────────────────────────────────────────────────────────────


class MessageReader:
    """The messages of a file or a stream, in order; what lies between whole ones is `lost`."""

    def __init__(self, stream: BinaryIO, max_bytes: int) -> None:
        self.stream = stream
        self.max_bytes = max_bytes
        self.rest = b""  # is read next
        self._messages = self._read()

    def __iter__(self) -> Iterator[Message]:
        return self._messages

    def _take(self, count: int) -> bytes:
        data, self.rest = self.rest[:count], self.rest[count:]
        return data + self.stream.read(count - len(data)) if len(data) < count else data

    def _read(self) -> Iterator[Message]:
        """Yield the messages, and read the stream to its end, past the footer of a file."""
        prefix = self._take(ALIGNMENT)
        if is_file := prefix.startswith(MAGIC):
            prefix = self._take(ALIGNMENT)
            if prefix[:4] == b"\x04\0\0\0":  # a schema without its length, as Polars writes it
                schema, prefix = self._bare_schema(prefix)
                yield schema
        while len(prefix) == ALIGNMENT and prefix != END:
            try:
                yield self._message(prefix)
            except ValueError as error:
                yield Message(0, b"", lost=str(error))
                if not self._find_message():
                    return
            prefix = self._take(ALIGNMENT)
        if is_file and len(prefix) < ALIGNMENT:  # a stream may end without a mark
            yield Message(0, b"", lost="the file is cut off")
        while self.stream.read(SEARCH_BYTES):
            pass

    def _bare_schema(self, data: bytes) -> tuple[Message, bytes]:
        """Return a schema without a prefix, up to the prefix of the next message, and that prefix."""
        parts = [data]
        while (prefix := self._take(ALIGNMENT)) and not prefix.startswith(CONTINUATION):
            parts.append(prefix)
            if len(parts) * ALIGNMENT > MAX_METADATA_BYTES:
                break
        return Message(SCHEMA, b"".join(parts)), prefix

    def _message(self, prefix: bytes) -> Message:
        """Return the message after a prefix; raises ValueError if it is damaged."""
        start = b""
        size = int.from_bytes(prefix[4:], "little")
        if not prefix.startswith(CONTINUATION):  # written before Arrow 0.15: the size, and then the metadata
            start = prefix[4:]
            size = int.from_bytes(prefix[:4], "little")
        if not len(start) <= size <= MAX_METADATA_BYTES:
            raise ValueError("the length of its metadata is damaged")
        metadata = start + self._take(size - len(start))
        try:
            kind, rows, size = _describe(metadata)
        except ValueError:
            self.rest = metadata + self.rest
            raise ValueError("its metadata is damaged") from None
        if size > self.max_bytes:
            self.rest = metadata + self.rest
            raise ValueError(f"it takes {size:,} bytes, past the limit of {self.max_bytes:,}")
        if rows > self.max_bytes:  # of nulls, which take no bytes here, but some for each row once written as JSON
            self.rest = metadata + self.rest
            raise ValueError(f"it has {rows:,} rows, past the limit of {self.max_bytes:,}")
        body = self._take(size)
        if len(body) < size:
            return Message(kind, metadata, body, rows, lost="the file is cut off in it")
        if (expanded := _expanded_bytes(metadata, body)) > self.max_bytes:
            too_long = f"it expands to {expanded:,} bytes, past the limit of {self.max_bytes:,}"
            raise ValueError(f"{too_long}; if that is right, raise max_expansion in the recipe")
        return Message(kind, metadata, body, rows)

    def _find_message(self) -> bool:
        """Go to the next message with records; return whether there is one."""
        while True:
            data = self.rest + self.stream.read(SEARCH_BYTES)
            at = data.find(CONTINUATION)
            while at >= 0:
                size = int.from_bytes(data[at + 4 : at + 8], "little")
                if 0 < size <= MAX_METADATA_BYTES:
                    data += self.stream.read(max(0, at + 8 + size - len(data)))
                    if _is_records(memoryview(data)[at + 8 : at + 8 + size]):
                        self.rest = data[at:]
                        return True
                at = data.find(CONTINUATION, at + 1)
            self.rest = data[-7:]
            if len(data) < SEARCH_BYTES:
                return False


def _describe(metadata: bytes | memoryview) -> tuple[int, int, int]:
    """Return a message's kind, the number of its rows and the bytes of its body; raises ValueError if damaged."""
    message = FlatTable.root(metadata)
    kind, size = message.number(MESSAGE_KIND, 1), message.number(MESSAGE_BODY, 8)
    header = message.table(MESSAGE_HEADER)
    if header is None or size < 0 or kind not in (SCHEMA, DICTIONARY, RECORDS):
        raise ValueError("the metadata of a message is damaged")
    rows = header.number(RECORDS_ROWS, 8) if kind == RECORDS else 0
    if not 0 <= rows < MAX_ROWS:
        raise ValueError("the number of rows is damaged")
    return kind, rows, size


def _is_records(metadata: memoryview) -> bool:
    try:
        return _describe(metadata)[0] in (DICTIONARY, RECORDS)
    except ValueError:
        return False


def _expanded_bytes(metadata: bytes, body: bytes) -> int:
    """Return how many bytes the compressed buffers of a message expand to; raises ValueError if damaged."""
    records = FlatTable.root(metadata).table(MESSAGE_HEADER)
    if records is not None and FlatTable.root(metadata).number(MESSAGE_KIND, 1) == DICTIONARY:
        records = records.table(DICTIONARY_RECORDS)
    if records is None or records.table(RECORDS_COMPRESSION) is None:
        return 0
    total = 0
    for buffer in records.structs(RECORDS_BUFFERS, BUFFER_BYTES):
        at, size = int.from_bytes(buffer[:8], "little"), int.from_bytes(buffer[8:], "little")
        if size >= 8:
            total += max(0, int.from_bytes(body[at : at + 8], "little", signed=True))
    return total
