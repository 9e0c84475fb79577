"""What a run of `clean` kept and rejected, by the records' own ids."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import polars as pl

from curate.pipeline.run import CleanResult


def kept(result: CleanResult) -> set[str]:
    """Return the ids of the records that were kept."""
    return set(pl.read_parquet(result.output / "conversations.parquet")["source_id"])


def rejected(result: CleanResult) -> Mapping[str, Mapping[str, Any]]:
    """Return the row of each rejected record, without its bytes."""
    rows = pl.read_parquet(result.output / "rejected.parquet").drop("record")
    return rows.rows_by_key("source_id", named=True, unique=True)
