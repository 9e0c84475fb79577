"""Keep an answer that only a dropped copy trains: train it in a kept conversation that says the same up to there.

The running hash after a message identifies it with all that comes before, so no text is read to find the same answer
in other conversations.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import polars as pl

from curate.dataset import columns
from curate.rendering.splitter import TokenCounter
from curate.schemas.conversation import EXCERPT, Message

RULE = "train_joined"
GAINS: columns.Types = {
    "part": pl.UInt32,
    "row": pl.UInt32,
    "position": pl.Int64,
    "stop": pl.Boolean,
    "train_reasoning": pl.Boolean,
    "source": pl.String,
}
REASONED = pl.col("train") & pl.col("train_reasoning")


def count_untrained(marks: pl.Expr) -> pl.Expr:
    """Return the number of answers and reasonings that a conversation does not train; null marks train all."""
    mark = pl.element().struct
    answer, reasoning = mark.field("train"), mark.field("train_reasoning")
    return marks.list.eval(answer.not_().cast(pl.UInt32) + (answer & reasoning).not_()).list.sum().fill_null(0)


WORTH = {  # by which the best of several conversations is chosen, from their chain and marks
    "untrained": count_untrained(pl.col("marks")),
    "messages": pl.col("chain").list.len(),
    "last": pl.col("chain").list.last(),
}


def find_gains(rows: pl.DataFrame) -> pl.DataFrame:
    """Return the messages to train in kept conversations: part, row, position, their marks, and the `source` of these.

    `rows` has part, row, order, twin (null: kept), chain, marks, source_id, source_file and source_index. A message is
    gained by one conversation at most, and by none if another kept one trains it already.
    """
    kept = rows.filter(pl.col("twin").is_null())
    untrained = explode(kept.filter(pl.col("marks").is_not_null())).filter(~REASONED)
    dropped = rows.filter(pl.col("twin").is_in(untrained["order"].unique().implode()))
    name = pl.coalesce("source_id", pl.format("{}:{}", "source_file", "source_index"))
    donors = explode(dropped.with_columns(source=name)).filter("train").rename({"order": "donor"})
    gains = untrained.join(
        donors, left_on=["order", "chain"], right_on=["twin", "chain"], suffix="_gained", maintain_order="left_right"
    ).filter(~pl.col("train") | pl.col("train_reasoning_gained"))
    if gains.is_empty():
        return pl.DataFrame(schema=GAINS)
    same = gains.select("chain").unique()
    trained = explode(kept).filter("train").join(same, on="chain", how="semi").group_by("chain").agg(REASONED.any())
    gains = gains.join(trained.rename({"train": "reasoned"}), on="chain", how="left", maintain_order="left")
    needed = pl.col("reasoned").is_null() | (~pl.col("reasoned") & pl.col("train_reasoning_gained"))
    gains = (
        gains.filter(needed)
        .group_by("order", "position", maintain_order=True)
        .agg(
            pl.col("part", "row", "chain", "source").first(),
            stop=pl.col("stop").first() & pl.col("stop_gained").all(),
            train_reasoning=REASONED.first() | pl.col("train_reasoning_gained").any(),
        )
        .unique("chain", keep="first", maintain_order=True)
    )
    return gains.select(pl.col(name).cast(dtype) for name, dtype in GAINS.items())


def explode(rows: pl.DataFrame) -> pl.DataFrame:
    """Return one row per message, with its hash, position and marks; without marks, all are trained."""
    rows = rows.filter(pl.col("chain").list.len() > 0).with_columns(position=pl.int_ranges(pl.col("chain").list.len()))
    known = pl.col("marks").is_not_null()
    marked = rows.filter(known).explode("chain", "position", "marks").unnest("marks")
    usual = rows.filter(~known).drop("marks").explode("chain", "position")
    usual = usual.with_columns(pl.lit(True).alias(name) for name in columns.MARKS.to_schema())
    return pl.concat([marked, usual.select(marked.columns)])


def train_messages(pieces: pl.DataFrame, gains: pl.DataFrame, counter: TokenCounter) -> pl.DataFrame:
    """Return the rows of a part's pieces with the gained messages trained, their tokens counted again, and an edit."""
    by_row = {row: messages for (row,), messages in gains.partition_by("row", as_dict=True).items()}
    chosen = pieces.with_row_index("index").filter(pl.col("row").is_in(list(by_row)))
    messages = [
        _train(piece, by_row[piece["row"]].rows_by_key("position", named=True, unique=True))
        for piece in chosen.select("row", "positions", "messages").iter_rows(named=True)
    ]
    sizes = counter.sizes([([Message(**message) for message in piece], True) for piece in messages])
    answer_tokens = pl.Series([size.answer_tokens for size in sizes], dtype=pl.Int32)
    edits = pl.Series([_edit(by_row[row]) for row in chosen["row"]], dtype=columns.EDIT)
    changed = chosen.with_columns(
        messages=pl.Series(messages, dtype=pieces.schema["messages"]),
        answer_tokens=answer_tokens,
        prompt_tokens=pl.col("tokens") - answer_tokens,
        edits=pl.when(pl.col("piece") == 0).then(pl.concat_list("edits", edits)).otherwise("edits"),
        edit_names=pl.concat_list("edit_names", pl.lit(RULE)).list.sort(),
    )
    others = pieces.with_row_index("index").filter(~pl.col("row").is_in(list(by_row)))
    return pl.concat([others, changed.select(others.columns)]).sort("index").drop("index")


def _train(piece: Mapping[str, Any], gains: Mapping[int, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return a piece's messages, of which those at the positions in `gains` are trained."""
    messages: list[dict[str, Any]] = piece["messages"]
    spoken = (message for message in messages if message["role"] != "system")
    for position, message in zip(piece["positions"], spoken, strict=True):
        marks = gains.get(position)
        if marks is not None:
            message["train"] = True
            message["stop"] = message["stop"] and marks["stop"]
            message["train_reasoning"] = marks["train_reasoning"]
    return messages


def _edit(gains: pl.DataFrame) -> dict[str, object]:
    sources: Collection[str] = gains["source"].unique(maintain_order=True)
    after = f"trained, as in {', '.join(sources)}"[:EXCERPT]
    return {"rule": RULE, "message": None, "count": gains.height, "before": "not trained", "after": after}
