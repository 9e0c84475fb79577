"""Read a text file that is one chat, such as a log with a name before each turn: one record with the whole text."""

from __future__ import annotations

from collections.abc import Iterator

from curate.ingest.tables.table import Rows, Table, encode_rows
from curate.ingest.text.encodings import advise


def read_table(blocks: Iterator[bytes], max_record_bytes: int) -> Table:
    """Read a text into a table of one row; it is lost if it is too long, or not UTF-8."""
    return Table(("text",), _rows(blocks, max_record_bytes))


def _rows(blocks: Iterator[bytes], max_record_bytes: int) -> Iterator[Rows]:
    data = bytearray()
    for block in blocks:
        data += block[: max_record_bytes - len(data)]
        if len(data) >= max_record_bytes:
            yield Rows(0, 1, bytes(data), f"a text of {max_record_bytes:,} bytes or more", len(data))
            return
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        reason = f"its text is not UTF-8 from byte {error.start:,} on{advise(bytes(data))}"
        yield Rows(0, 1, bytes(data), reason, len(data))
        return
    yield Rows(0, 1, encode_rows([{"text": text}]))
