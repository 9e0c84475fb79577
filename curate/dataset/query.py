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
        raise _condition_error(sql, _first_line(error)) from error
    columns = frame.collect_schema()
    for name in expression.meta.root_names():
        if name not in columns:
            quoted = f'"{name}"' in sql
            hint = f"; write text in single quotes: '{name}'" if quoted else did_you_mean(name, columns)
            raise _condition_error(sql, f"there is no column {name!r}{hint}")
    try:
        kind = frame.clear().select(expression.alias("_")).collect().schema["_"]
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        raise _condition_error(sql, _first_line(error)) from error
    if kind != pl.Boolean:
        raise _condition_error(sql, f"it gives {_describe_type(kind)}, not true or false; compare it with a value")
    return expression


def _condition_error(sql: str, reason: str) -> InputError:
    return InputError(f"cannot use the condition {sql!r}: {reason}")


def _first_line(error: BaseException) -> str:
    """Return the first line of a Polars error; what follows is the query plan."""
    return (str(error).splitlines() or [type(error).__name__])[0].partition(": Subscript(")[0]


def _describe_type(kind: pl.DataType) -> str:
    return "a number" if kind.is_numeric() else "text" if kind == pl.String else str(kind)
