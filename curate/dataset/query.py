"""Read a condition in SQL over a table's columns: `tokens > 1000 and language = 'ko'`."""

from __future__ import annotations

import polars as pl

from curate.errors import InputError, did_you_mean


def condition(sql: str, frame: pl.LazyFrame) -> pl.Expr:
    """Return what `pl.sql_expr` makes of a condition; raises InputError in one line where the frame can't answer it.

    Columns of text, numbers and truth values are compared, `array_contains(edit_names, 'chrome')` looks into a
    list; the fields of messages are out of its reach.
    """
    try:
        found = pl.sql_expr(sql)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        raise _refused(sql, _first(error)) from error
    columns = frame.collect_schema()
    for name in found.meta.root_names():
        if name not in columns:
            quoted = f'"{name}"' in sql
            hint = f"; text stands in single quotes: '{name}'" if quoted else did_you_mean(name, columns)
            raise _refused(sql, f"there is no column {name!r}{hint}")
    try:
        kind = frame.clear().select(found.alias("_")).collect().schema["_"]
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        raise _refused(sql, _first(error)) from error
    if kind != pl.Boolean:
        raise _refused(sql, f"it gives {_kind(kind)}, not true or false; compare it with something")
    return found


def _refused(sql: str, why: str) -> InputError:
    return InputError(f"cannot use the condition {sql!r}: {why}")


def _first(error: BaseException) -> str:
    """Return the first line of what Polars says; the rest is its query plan."""
    return (str(error).splitlines() or [type(error).__name__])[0].partition(": Subscript(")[0]


def _kind(kind: pl.DataType) -> str:
    return "a number" if kind.is_numeric() else "text" if kind == pl.String else str(kind)
