"""Read a condition in SQL over a table's columns: `tokens > 1000 and language = 'ko'`."""

from __future__ import annotations

import polars as pl

from curate.errors import InputError, did_you_mean


def parse_condition(sql: str, frame: pl.LazyFrame) -> pl.Expr:
    """Parse a condition and check it against a frame; raises InputError in one line if it cannot be evaluated.

    Conditions compare columns of text, numbers and truth values; `array_contains(edit_names, 'chrome')` searches a
    list. The fields of messages cannot be used.
    """
    try:
        expression = pl.sql_expr(sql)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        raise _refused(sql, _first(error)) from error
    columns = frame.collect_schema()
    for name in expression.meta.root_names():
        if name not in columns:
            quoted = f'"{name}"' in sql
            hint = f"; write text in single quotes: '{name}'" if quoted else did_you_mean(name, columns)
            raise _refused(sql, f"there is no column {name!r}{hint}")
    try:
        kind = frame.clear().select(expression.alias("_")).collect().schema["_"]
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        raise _refused(sql, _first(error)) from error
    if kind != pl.Boolean:
        raise _refused(sql, f"it gives {_kind(kind)}, not true or false; compare it with something")
    return expression


def _refused(sql: str, why: str) -> InputError:
    return InputError(f"cannot use the condition {sql!r}: {why}")


def _first(error: BaseException) -> str:
    """Return the first line of a Polars error; the rest is the query plan."""
    return (str(error).splitlines() or [type(error).__name__])[0].partition(": Subscript(")[0]


def _kind(kind: pl.DataType) -> str:
    return "a number" if kind.is_numeric() else "text" if kind == pl.String else str(kind)
