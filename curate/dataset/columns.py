"""The columns of a curated set: the only place that lists them."""

from __future__ import annotations

from collections.abc import Mapping

import polars as pl

MESSAGE = pl.Struct(
    {
        "role": pl.String,
        "content": pl.String,
        "name": pl.String,
        "tool_calls": pl.String,
        "train": pl.Boolean,
        "stop": pl.Boolean,
    }
)
EDIT = pl.Struct({"rule": pl.String, "message": pl.Int32, "count": pl.Int32, "before": pl.String, "after": pl.String})
SOURCE = {"source_file": pl.String, "source_index": pl.Int64}
SIGNALS: dict[str, pl.DataType | type[pl.DataType]] = {"language": pl.String, "language_confidence": pl.Float32}
MEASURES: dict[str, pl.DataType | type[pl.DataType]] = {"turns": pl.Int32, "characters": pl.Int64, "model": pl.String}

Schema = Mapping[str, pl.DataType | type[pl.DataType]]


def conversations_schema(signals: Schema) -> dict[str, pl.DataType | type[pl.DataType]]:
    """Return the columns of conversations.parquet; `signals` are those beyond the built-in ones."""
    return {
        "id": pl.String,
        "source_id": pl.String,
        "piece": pl.Int32,
        "messages": pl.List(MESSAGE),
        **SIGNALS,
        "tokens": pl.Int32,
        "turns": pl.Int32,
        "prompt_tokens": pl.Int32,
        "answer_tokens": pl.Int32,
        "characters": pl.Int64,
        "model": pl.String,
        "edits": pl.List(EDIT),
        "edit_names": pl.List(pl.String),
        "cluster": pl.String,
        "split": pl.String,
        **SOURCE,
        "metadata": pl.String,
        **signals,
    }


def rejected_schema(signals: Schema) -> dict[str, pl.DataType | type[pl.DataType]]:
    """Return the columns of rejected.parquet; signals and measures are null where they could not be taken."""
    return {
        "source_id": pl.String,
        **SOURCE,
        "scope": pl.String,
        "message_range": pl.List(pl.Int32),
        "rule": pl.String,
        "reason": pl.String,
        "evidence": pl.String,
        "twin": pl.String,
        "record": pl.Binary,
        **MEASURES,
        **SIGNALS,
        **signals,
    }


ORIGINALS_SCHEMA: Schema = {**SOURCE, "record": pl.Binary}
