"""The columns of a curated set, defined only here."""

from __future__ import annotations

from collections.abc import Mapping

import polars as pl

Types = dict[str, pl.DataType | type[pl.DataType]]
Schema = Mapping[str, pl.DataType | type[pl.DataType]]

MESSAGE = pl.Struct(
    {
        "role": pl.String,
        "content": pl.String,
        "name": pl.String,
        "tool_calls": pl.String,
        "train": pl.Boolean,
        "stop": pl.Boolean,
        "reasoning": pl.String,
        "train_reasoning": pl.Boolean,
        "tool_call_id": pl.String,
        "extra": pl.String,
    }
)
EDIT = pl.Struct({"rule": pl.String, "message": pl.Int32, "count": pl.Int32, "before": pl.String, "after": pl.String})
SOURCE: Types = {"source_file": pl.String, "source_index": pl.Int64}
CHAT: Types = {**SOURCE, "branch": pl.Int32}  # `branch`: which of a record's conversations, 0 if it is the only one
SIGNALS: Types = {
    "language": pl.String,
    "language_confidence": pl.Float32,
    "prompt_language": pl.String,
    "answer_language": pl.String,
}
MEASURES: Types = {"turns": pl.Int32, "characters": pl.Int64, "model": pl.String}
CONVERSATION: Types = {
    "id": pl.String,
    "source_id": pl.String,
    "piece": pl.Int32,
    "messages": pl.List(MESSAGE),
    "tools": pl.String,
    "rejected_answer": pl.List(MESSAGE),
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
    **CHAT,
    "metadata": pl.String,
}
REJECT: Types = {
    "source_id": pl.String,
    **CHAT,
    "scope": pl.String,
    "message_range": pl.List(pl.Int32),
    "rule": pl.String,
    "reason": pl.String,
    "evidence": pl.String,
    "twin": pl.String,
    "record": pl.Binary,
}
ORIGINAL: Types = {**SOURCE, "record": pl.Binary}

# Tables of a part, from which the set is written. `row` is the index of the conversation in its batch, `number` that of
# its record.
ROW: Types = {"row": pl.UInt32}
RECORD: Types = {**ROW, "number": pl.UInt32}
PART_PIECE: Types = {
    **RECORD,
    **{name: CONVERSATION[name] for name in ("piece", "tokens", "prompt_tokens", "answer_tokens")},
    "positions": pl.List(pl.UInt32),  # in the conversation, of the piece's messages without system messages
    **CHAT,
}
PART_REJECT: Types = {**RECORD, **REJECT, "kept_row": pl.UInt32}  # of the conversation that lost the exchange
PART_ORIGINAL: Types = {**RECORD, **ORIGINAL, "changed": pl.Boolean}
MARKS = pl.Struct({name: MESSAGE.to_schema()[name] for name in ("train", "stop", "train_reasoning")})
PART_SUMMARY: Types = {  # what decisions over the whole corpus need from each conversation
    **ROW,
    **CHAT,
    "source_id": pl.String,
    "chain": pl.List(pl.UInt64),  # a hash for each prefix of the messages
    "exchange": pl.UInt64,  # hash of the first exchange
    "prompt": pl.UInt64,  # hash of the first prompt, normalised
    "marks": pl.List(MARKS),  # of each message; null if all are trained, with their stop tokens
    "pieces": pl.Int32,
    "alone": pl.Boolean,  # it is as it would be if all rules were off that can be turned off
}
SET_SUMMARY: Types = {  # further ones, of parts that are made of a set's rows
    "protected": pl.Boolean,  # the user keeps it, even if it is a duplicate
    "set": pl.UInt32,  # the number of the set, whose own split holds
    "earlier_split": pl.String,
    "earlier_id": pl.String,
}
GROUP_SUMMARY: Types = {  # further ones, where the recipe limits how many conversations of a group are kept
    **{name: CONVERSATION[name] for name in ("characters", "model", "language")},
}

DECISION: Types = {  # of a conversation that no filter rejected, over the whole corpus
    "part": pl.UInt32,
    **ROW,
    "pieces": pl.Int32,
    "id": pl.String,  # unique; the id of a piece has its number appended
    "cluster": pl.String,
    "split": pl.String,
    "rule": pl.String,  # null if the conversation is kept
    "twin": pl.String,  # its id
    "reason": pl.String,
    "evidence": pl.String,
    "doubt": pl.String,  # why a kept conversation may be altered, or null
    "continues": pl.String,  # the id of a known one
}

# Columns of a converted file: those of `curate convert --to parquet`.
CONVERTED: Types = {
    name: CONVERSATION[name]
    for name in ("id", "source_id", "piece", "messages", "tools", "rejected_answer", "model", "metadata", "split")
}


def conversations_schema(signals: Schema) -> Types:
    """Return the columns of conversations.parquet; `signals` are those beyond the built-in ones."""
    return {**CONVERSATION, **signals}


def rejected_schema(signals: Schema) -> Types:
    """Return the columns of rejected.parquet; signals and measures are None if the record was rejected before them."""
    return {**REJECT, **MEASURES, **SIGNALS, **signals}
