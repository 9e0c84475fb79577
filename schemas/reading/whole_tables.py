"""Recognise a whole table that was written by columns, as one object, instead of by records."""

from __future__ import annotations

from collections.abc import Mapping

RULE = "by_columns"
ADVICE = "write it by records: in pandas, df.to_json(path, orient='records', lines=True)"
TEXT_COLUMNS = frozenset(("instruction", "prompt", "question", "query", "input", "text", "conversations", "messages"))


def describe_table(record: Mapping[str, object]) -> str | None:
    """Say that an object is a table by columns, and what to type; None if it is not."""
    if is_split(record):
        return f"the object is a table with its rows apart from their names ('columns', 'data'); {ADVICE}"
    count = _indexed_columns(record) or _listed_columns(record)
    if not count:
        return None
    rows = "1 row" if count == 1 else f"{count:,} rows"
    return f"the object is a table of {rows} by columns, {', '.join(map(repr, list(record)[:4]))}; {ADVICE}"


def _indexed_columns(record: Mapping[str, object]) -> int:
    """Return the number of rows if all values are objects with the same numbers as keys, else 0."""
    first = next(iter(record.values()), None)
    if not isinstance(first, dict) or not first or not all(isinstance(key, str) and key.isdecimal() for key in first):
        return 0
    if any(isinstance(cell, dict) for cell in first.values()):
        return 0  # turns under numbers
    rows = first.keys()
    return len(rows) if all(isinstance(value, dict) and value.keys() == rows for value in record.values()) else 0


def _listed_columns(record: Mapping[str, object]) -> int:
    """Return the number of rows if all values are lists of one length, of texts or lists; else 0."""
    columns = list(record.values())
    lengths = {len(column) for column in columns if isinstance(column, list)}
    if (
        TEXT_COLUMNS.isdisjoint(record)
        or len(columns) < 2
        or len(lengths) != 1
        or not all(isinstance(column, list) for column in columns)
    ):
        return 0
    (rows,) = lengths
    cells = [cell for column in columns if isinstance(column, list) for cell in column]
    return 0 if rows < 2 or any(isinstance(cell, dict) for cell in cells) else rows


def is_split(record: Mapping[str, object]) -> bool:
    """Return whether an object has a table's rows as lists, and the names of their columns beside them."""
    columns, data = record.get("columns"), record.get("data")
    return (
        isinstance(columns, list)
        and isinstance(data, list)
        and bool(data)
        and all(isinstance(row, list) and len(row) == len(columns) for row in data)
    )
