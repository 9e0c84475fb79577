"""A table's rows as JSON lines: what the readers of CSV, Arrow and Parquet files share."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

import msgspec


@dataclass(frozen=True)
class Rows:
    """Rows from number `first` of a table: as JSON lines in `data`.

    Or `lost`, with the reason and the size on disk; then `data` has their own bytes, where these are known.
    """

    first: int
    count: int
    data: bytes = b""
    lost: str = ""
    bytes: int = 0


@dataclass(frozen=True)
class Table:
    """A table that is being read: the names of its columns (none if unknown), and its rows in order.

    `grouped`: its rows are not in the order of its text. `warned`: its reader has warned of each row that is lost.
    """

    columns: tuple[str, ...]
    rows: Iterator[Rows]
    grouped: bool = False
    warned: bool = False


def encode_rows(rows: list[dict[str, object]]) -> bytes:
    """Return rows as JSON lines."""
    try:
        return _encode_lines(rows)
    except (OverflowError, TypeError):  # integers past 64 bits, types without a JSON form
        return b"".join(map(_json_line, rows))


_encode_lines = msgspec.json.Encoder().encode_lines


def _json_line(row: dict[str, object]) -> bytes:
    try:
        return msgspec.json.encode(row) + b"\n"
    except (OverflowError, TypeError):
        return json.dumps(row, default=str).encode() + b"\n"
