"""A batch's conversations as tables: the frame that signals and filters read, and the rows of a part."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import msgspec
import numpy as np
import polars as pl

from curate.dataset import columns as dataset_columns
from curate.errors import RecordError
from curate.filters import duplicates
from curate.pipeline import repair_turns
from curate.rendering import split
from curate.schemas.conversation import Conversation, Message
from curate.schemas.prompts import exchanges

FIELDS = tuple(dataset_columns.MESSAGE.to_schema())
FOR_FILTERS = ("messages", "prompts", "answers", "html_answers")  # columns of the frame that no file holds as they are

Pieces = Mapping[int, Sequence[split.Piece]]  # a row's pieces, for the rows that have any


@dataclass(slots=True)
class Draft:
    """A record in progress: its bytes, the conversation in it, and what it lost."""

    index: int
    raw: bytes
    conversation: Conversation
    lost: list[repair_turns.Lost] = field(default_factory=list)

    def lose(self, rejected: Sequence[split.RejectedExchange]) -> None:
        """Note exchanges that fit no window, by the places their messages had in the source."""
        messages = self.conversation.messages
        for exchange in rejected:
            span = messages[exchange.start].place, messages[exchange.stop - 1].place + 1
            self.lost.append(repair_turns.Lost(span, exchange.rule, exchange.reason, exchange.evidence))

    @property
    def changed(self) -> bool:
        return bool(self.conversation.edits or self.lost)


@dataclass(slots=True)
class Reject:
    """A row of rejected.parquet; `row` is the conversation's row in the batch's frame, if it got that far."""

    index: int
    source_id: str | None
    scope: str
    message_range: tuple[int, int] | None
    rule: str
    reason: str
    evidence: str
    record: bytes | None
    row: int | None = None


def reject_record(index: int, raw: bytes, source_id: str | None, error: RecordError, row: int | None = None) -> Reject:
    """Return the row of a record that is rejected whole."""
    return Reject(index, source_id, "record", None, error.rule, error.reason, error.evidence, raw, row)


def reject_exchanges(draft: Draft) -> Iterator[Reject]:
    """Yield a row for each exchange that a kept record lost; the first carries the record's bytes."""
    raw: bytes | None = draft.raw
    for lost in draft.lost:
        span, source_id = lost.message_range, draft.conversation.source_id
        yield Reject(draft.index, source_id, "exchange", span, lost.rule, lost.reason, lost.evidence[:200], raw)
        raw = None


def messages_table(drafts: Sequence[Draft]) -> pl.DataFrame:
    """Return one row a message, in order; `row` is the conversation's place in `drafts`."""
    messages = [message for draft in drafts for message in draft.conversation.messages]
    counts = [len(draft.conversation.messages) for draft in drafts]
    row = pl.Series("row", np.repeat(np.arange(len(drafts), dtype=np.uint32), counts))
    return _of_messages(messages).insert_column(0, row)


def _of_messages(messages: Sequence[Message]) -> pl.DataFrame:
    columns: dict[str, Any] = {name: [getattr(message, name) for message in messages] for name in FIELDS}
    return pl.DataFrame(columns, schema=dataset_columns.MESSAGE.to_schema())


def frame_of(drafts: Sequence[Draft], flat: pl.DataFrame) -> pl.DataFrame:
    """Return one row a conversation, with the columns that filters read."""
    is_answer = pl.col("role") == "assistant"
    conversations = [draft.conversation for draft in drafts]
    html = [message.was_html for conversation in conversations for message in conversation.messages]
    grouped = flat.with_columns(html=pl.Series(html, dtype=pl.Boolean)).group_by("row", maintain_order=True)
    frame = grouped.agg(
        messages=pl.struct(FIELDS),
        prompts=pl.col("content").filter(pl.col("role") == "user"),
        answers=pl.col("content").filter(is_answer),
        html_answers=pl.col("html").filter(is_answer),
        turns=pl.len().cast(pl.Int32),
        characters=pl.col("content").str.len_chars().sum().cast(pl.Int64),
    )
    return frame.with_columns(
        source_id=_text([conversation.source_id for conversation in conversations]),
        model=_text([conversation.model for conversation in conversations]),
        metadata=_text([_json(conversation.metadata) for conversation in conversations]),
    )


def _text(values: Sequence[str | None]) -> pl.Series:
    return pl.Series(values, dtype=pl.String)


def _json(metadata: Mapping[str, object]) -> str | None:
    if not metadata:
        return None
    try:
        return msgspec.json.encode(metadata).decode()
    except (OverflowError, msgspec.MsgspecError):  # an integer past 64 bits, which the standard library writes
        return json.dumps(metadata, ensure_ascii=False)


def summary(source_file: str, drafts: Sequence[Draft], pieces: Pieces) -> pl.DataFrame:
    """Return what the corpus needs of each conversation: hashes, the id it came with, how many pieces it has."""
    columns = {
        "row": list(range(len(drafts))),
        "source_file": [source_file] * len(drafts),
        "source_index": [draft.index for draft in drafts],
        "source_id": [draft.conversation.source_id for draft in drafts],
        "pieces": [len(pieces.get(row, ())) for row in range(len(drafts))],
    }
    hashes = duplicates.chain_hashes(
        [(m.role, m.content, m.name, m.tool_calls) for m in draft.conversation.messages] for draft in drafts
    )
    found = pl.DataFrame(columns, strict=False).hstack(hashes)
    return found.select(pl.col(name).cast(dtype) for name, dtype in dataset_columns.PART_SUMMARY.items())


def kept(
    source_file: str, drafts: Sequence[Draft], flat: pl.DataFrame, frame: pl.DataFrame, pieces: Pieces
) -> pl.DataFrame:
    """Return one row a piece, in order: all of conversations.parquet that does not depend on other batches."""
    each = [(row, number, piece) for row, found in pieces.items() for number, piece in enumerate(found)]
    own = pl.DataFrame(
        {
            "row": [row for row, _, _ in each],
            "piece": [number for _, number, _ in each],
            "tokens": [piece.tokens for _, _, piece in each],
            "prompt_tokens": [piece.prompt_tokens for _, _, piece in each],
            "answer_tokens": [piece.answer_tokens for _, _, piece in each],
            "source_file": [source_file] * len(each),
            "source_index": [drafts[row].index for row, _, _ in each],
        },
        schema=dataset_columns.PART_PIECE,
    )
    of_source = frame.drop(*FOR_FILTERS).rename({"turns": "source_turns", "characters": "source_characters"})
    messages = _piece_messages(drafts, flat, each)
    edits = _edits([(row, drafts[row].conversation) for row in pieces])
    return (
        own.hstack(messages)
        .join(edits, on="row", how="left", maintain_order="left")
        .with_columns(
            edits=pl.when(pl.col("piece") == 0).then("edits").fill_null([]),  # told once, with the first piece
            edit_names=pl.col("edit_names").fill_null([]),
        )
        .join(of_source, on="row", how="left", maintain_order="left")
    )


def _edits(conversations: Sequence[tuple[int, Conversation]]) -> pl.DataFrame:
    """Return `edits` and their names for each row that has any; built flat, since nested rows are slow to build."""
    each = [(row, edit) for row, conversation in conversations for edit in conversation.edits]
    fields = tuple(dataset_columns.EDIT.to_schema())
    columns: dict[str, Any] = {name: [getattr(edit, name) for _, edit in each] for name in fields}
    flat = pl.DataFrame(columns, schema=dataset_columns.EDIT.to_schema())
    owners = pl.Series("row", [row for row, _ in each], dtype=pl.UInt32)
    grouped = flat.insert_column(0, owners).group_by("row", maintain_order=True)
    return grouped.agg(edits=pl.struct(fields), edit_names=pl.col("rule").unique().sort())


def _piece_messages(
    drafts: Sequence[Draft], flat: pl.DataFrame, each: Sequence[tuple[int, int, split.Piece]]
) -> pl.DataFrame:
    """Return messages, turns and characters of each piece, gathered from the table of messages."""
    starts = [0, *accumulate(len(draft.conversation.messages) for draft in drafts)]
    table = flat.drop("row")
    places: list[int] = []
    counts: list[int] = []
    ends: list[Message] = []  # answers that were cut: they stand in no source
    for row, _, piece in each:
        messages = drafts[row].conversation.messages
        head = exchanges(messages)[0]
        chosen = [*range(head), *range(piece.start, piece.stop)]
        places.extend(starts[row] + position for position in chosen)
        counts.append(len(chosen))
        if piece.cut is not None:
            places[-1] = table.height + len(ends)
            ends.append(split.piece_messages(messages, piece)[-1])
    if ends:
        table = pl.concat([table, _of_messages(ends)])
    owners = pl.Series("owner", np.repeat(np.arange(len(each), dtype=np.uint32), counts), dtype=pl.UInt32)
    grouped = table[places].insert_column(0, owners).group_by("owner", maintain_order=True)
    return grouped.agg(
        messages=pl.struct(FIELDS),
        turns=pl.len().cast(pl.Int32),
        characters=pl.col("content").str.len_chars().sum().cast(pl.Int64),
    ).drop("owner")


def originals(source_file: str, drafts: Sequence[Draft], pieces: Pieces) -> pl.DataFrame:
    """Return the bytes of each kept record, and whether its messages were changed."""
    chosen = [drafts[row] for row in pieces]
    return pl.DataFrame(
        {
            "row": list(pieces),
            "source_file": [source_file] * len(chosen),
            "source_index": [draft.index for draft in chosen],
            "record": [draft.raw for draft in chosen],
            "changed": [draft.changed for draft in chosen],
        },
        schema=dataset_columns.PART_ORIGINAL,
    )


def rejected(source_file: str, rejects: Sequence[Reject], frame: pl.DataFrame) -> pl.DataFrame:
    """Return the rows of rejected.parquet, in record order, with the signals of those that were measured."""
    ordered = sorted(rejects, key=lambda reject: (reject.index, reject.message_range or (0, 0)))
    rows = pl.DataFrame(
        {
            "row": [reject.row for reject in ordered],
            "source_id": [reject.source_id for reject in ordered],
            "source_file": [source_file] * len(ordered),
            "source_index": [reject.index for reject in ordered],
            "scope": [reject.scope for reject in ordered],
            "message_range": [reject.message_range for reject in ordered],
            "rule": [reject.rule for reject in ordered],
            "reason": [reject.reason for reject in ordered],
            "evidence": [reject.evidence or None for reject in ordered],
            "twin": [None] * len(ordered),
            "record": [reject.record for reject in ordered],
        },
        schema=dataset_columns.PART_REJECT,
    )
    measured = frame.drop(*FOR_FILTERS, "source_id", "metadata")
    return rows.join(measured, on="row", how="left", maintain_order="left")
