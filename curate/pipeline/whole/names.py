"""Unique ids of conversations and of their pieces."""

from __future__ import annotations

import polars as pl

RENAMED = r"~[0-9a-f]{8}"  # in the id of a conversation whose plain id another one has


def with_plain(rows: pl.DataFrame) -> pl.DataFrame:
    """Add the `digest` of a conversation's content, and its `plain` id: the dump's own, or one made of the digest."""
    digest = pl.col("chain").list.last().map_elements(lambda h: f"{h:016x}", return_dtype=pl.String)
    return rows.with_columns(digest=digest).with_columns(
        plain=pl.col("source_id").fill_null("c-" + pl.col("digest").str.slice(0, 12))
    )


def with_ids(rows: pl.DataFrame) -> pl.DataFrame:
    """Give each kept conversation an id that differs from those of all other conversations and pieces.

    The first in record order keeps the plain id. A later one with other content gets `~` and eight
    hex digits of its content's hash, and a number if that still clashes.
    """
    rows = with_plain(rows)
    rows = rows.with_columns(id=pl.when("kept").then("plain"))
    for attempt in range(1, rows.height + 2):
        clashing = _clashing(rows)
        if clashing.is_empty():
            break
        suffix = "~" + pl.col("digest").str.slice(0, 8)
        if attempt > 1:
            suffix = suffix + pl.lit(f"-{attempt}")
        rows = rows.with_columns(
            id=pl.when(pl.col("order").is_in(clashing.implode())).then(pl.col("plain") + suffix).otherwise("id")
        )
    return rows


def made_names(rows: pl.DataFrame) -> pl.DataFrame:
    """Return `order` and `name` of the plain ids that are not the dump's: of pieces, and of kept ones without an id."""
    made = rows.select("order", "source_id", "pieces", "chain")
    unnamed = pl.col("source_id").is_null() & (pl.col("pieces") > 0)
    plain = with_plain(made.filter((pl.col("pieces") > 1) | unnamed)).rename({"plain": "id"})
    named = piece_names(plain)
    whole = plain.filter(unnamed & (pl.col("pieces") > 1)).select("order", name="id")
    return pl.concat([named, whole])


def piece_names(rows: pl.DataFrame) -> pl.DataFrame:
    """Return `order` and `name` of each piece; `rows` has order, id and pieces. A single piece has the plain id."""
    pieces = rows.select("order", "id", piece=pl.int_ranges("pieces"), split=pl.col("pieces") > 1).explode("piece")
    name = pl.when("split").then(pl.col("id") + "_" + pl.col("piece").cast(pl.String)).otherwise("id")
    return pieces.select("order", name=name)


def _clashing(rows: pl.DataFrame) -> pl.Series:
    """Return the order of conversations that share a final id with an earlier one."""
    names = piece_names(rows.filter(pl.col("id").is_not_null()))
    return names.filter(~pl.col("name").is_first_distinct())["order"].unique()
