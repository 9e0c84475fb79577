"""Mark the records of damaged streams."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from curate.ingest.damaged_records import DamagedRecords


def with_doubt(rows: pl.DataFrame, damaged: Sequence[DamagedRecords]) -> pl.DataFrame:
    """Add `doubt`: why a record may be altered, or null."""
    if not damaged:
        return rows.with_columns(doubt=pl.lit(None, dtype=pl.String))
    ranges = pl.DataFrame(
        {
            "source_file": [records.source_file for records in damaged],
            "first": [records.first for records in damaged],
            "stop": [records.stop for records in damaged],
            "doubt": [records.reason for records in damaged],
        },
        schema={"source_file": pl.String, "first": pl.Int64, "stop": pl.Int64, "doubt": pl.String},
    ).sort("first")
    place = rows.select("source_file", "source_index").with_row_index("place").sort("source_index")
    nearest = place.join_asof(
        ranges, left_on="source_index", right_on="first", by="source_file", check_sortedness=False
    ).sort("place")
    inside = nearest["source_index"] < nearest["stop"]
    return rows.with_columns(doubt=nearest["doubt"].set(~inside.fill_null(False), None))
