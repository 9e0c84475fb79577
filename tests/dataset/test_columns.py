"""Code that reads a set without Polars names columns that the set has."""

from __future__ import annotations

from dataclasses import fields

from curate.dataset import arrow, columns
from curate.schemas.conversation import Edit, Message


def test_training_reads_columns_that_a_set_has() -> None:
    assert set(arrow.COLUMNS) <= set(columns.conversations_schema({}))


def test_messages_and_edits_have_the_fields_of_their_columns() -> None:
    assert [field.name for field in fields(Message) if field.compare] == list(columns.MESSAGE.to_schema())
    assert [field.name for field in fields(Edit)] == list(columns.EDIT.to_schema())
