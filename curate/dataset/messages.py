"""Messages from a column of a table, read field by field, which takes a fifth of the time of reading rows."""

from __future__ import annotations

from dataclasses import fields
from itertools import islice, repeat

import polars as pl

from curate.dataset.checks import check_messages
from curate.schemas.conversation import Message

FIELDS = [field for field in fields(Message) if field.compare]  # those that are written; the others come last


def decode_messages(column: pl.Series) -> list[list[Message]]:
    """Return the messages of each row; none for null. Fields that a set of an earlier version lacks have defaults.

    Raises SetError for a message without a known role or without a text.
    """
    flat = column.explode(empty_as_null=False, keep_nulls=False).struct.unnest()
    check_messages(flat["role"].unique(), flat["content"].null_count())
    values = [flat[each.name].to_list() if each.name in flat.columns else repeat(each.default) for each in FIELDS]
    messages = map(Message, *values)
    return [list(islice(messages, length)) for length in column.list.len().fill_null(0)]
