"""The tables of one batch: the frame that signals and filters read, and the rows of a part."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from operator import attrgetter
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import polars as pl

from curate.dataset import columns as dataset_columns
from curate.errors import RecordError
from curate.filters import duplicates
from curate.pipeline import clusters, repair_turns
from curate.pipeline.repair_text import replace_surrogates
from curate.rendering import splitter
from curate.schemas.conversation import Conversation, Edit, Message
from curate.schemas.prompts import Template, fold_system, has_mid_system, system_positions
from curate.schemas.reading import media

FIELDS = tuple(dataset_columns.MESSAGE.to_schema())
MARKS = tuple(dataset_columns.MARKS.to_schema())
_FIELDS = [(name, attrgetter(name)) for name in FIELDS]
TRANSIENT = ("messages", "prompts", "answers", "html_answers")  # columns of the frame that are not written

Pieces = Mapping[int, Sequence[splitter.Piece]]  # by row; rows without pieces are missing


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a record comes from: its number in the batch, its file, and its index in that."""

    number: int
    source_file: str
    source_index: int


@dataclass(slots=True)
class Draft:
    """A conversation being cleaned: its record's origin and bytes, the conversation, and its rejected exchanges.

    A record whose format keeps several branches of a chat gives one draft for each, numbered by `branch`.
    """

    origin: Origin
    raw: bytes
    conversation: Conversation
    lost: list[repair_turns.LostExchange] = field(default_factory=list)
    branch: int = 0
    alone: bool = True  # it is as it would be if all rules were off that can be turned off

    def lose(self, rejected: Sequence[splitter.RejectedExchange]) -> None:
        """Add exchanges that do not fit the window, by the positions of their messages in the source."""
        messages = self.conversation.messages
        for exchange in rejected:
            span = messages[exchange.start].place, messages[exchange.stop - 1].place + 1
            size = repair_turns.count_characters(messages[exchange.start : exchange.stop])
            self.lost.append(repair_turns.LostExchange(span, exchange.rule, exchange.reason, exchange.evidence, size))

    @property
    def changed(self) -> bool:
        return bool(self.conversation.edits or self.lost)


@dataclass(slots=True)
class Reject:
    """A row of rejected.parquet; `row` is the conversation's row in the batch's frame, if it has one.

    `kept_row` is that of the kept conversation which lost the exchange.
    """

    origin: Origin
    source_id: str | None
    scope: str
    message_range: tuple[int, int] | None
    rule: str
    reason: str
    evidence: str
    record: bytes | None
    row: int | None = None
    branch: int = 0
    kept_row: int | None = None


@dataclass(frozen=True, slots=True)
class Batch:
    """The measured conversations of one task; `messages` and `frame` refer to `drafts` by row."""

    drafts: Sequence[Draft]
    messages: pl.DataFrame  # one row per message
    frame: pl.DataFrame  # one row per conversation
    pieces: Pieces
    template: Template


def reject_record(
    origin: Origin, raw: bytes, source_id: str | None, error: RecordError, row: int | None = None
) -> Reject:
    """Return the reject of a record."""
    return Reject(origin, source_id, "record", None, error.rule, error.reason, error.evidence, raw, row)


def reject_draft(draft: Draft, error: RecordError, row: int | None = None) -> Iterator[Reject]:
    """Yield the rejects of a whole conversation: its own, and one for each exchange that it had lost.

    An only exchange that its own reject describes has none.
    """
    yield replace(reject_record(draft.origin, draft.raw, draft.conversation.source_id, error, row), branch=draft.branch)
    if [lost.rule for lost in draft.lost] != [error.rule]:
        yield from (replace(reject, record=None) for reject in reject_exchanges(draft))


def reject_exchanges(draft: Draft, kept_row: int | None = None) -> Iterator[Reject]:
    """Yield a reject for each lost exchange; only the first has the record's bytes."""
    raw: bytes | None = draft.raw
    source_id, branch = draft.conversation.source_id, draft.branch
    for lost in draft.lost:
        span, evidence = lost.message_range, lost.evidence[:200]
        facts = (lost.rule, lost.reason, evidence, raw)
        yield Reject(draft.origin, source_id, "exchange", span, *facts, branch=branch, kept_row=kept_row)
        raw = None


def _columns(origins: Iterable[Origin]) -> dict[str, list[Any]]:
    origins = list(origins)
    return {name: [getattr(origin, name) for origin in origins] for name in ("number", "source_file", "source_index")}


def keys_table(drafts: Sequence[Draft]) -> pl.DataFrame:
    """Return the key of each conversation: its record's, and its branch."""
    columns = {**_columns(draft.origin for draft in drafts), "branch": [draft.branch for draft in drafts]}
    return pl.DataFrame({name: columns[name] for name in dataset_columns.CHAT}, schema=dataset_columns.CHAT)


def messages_table(drafts: Sequence[Draft]) -> pl.DataFrame:
    """Return one row per message, in order; `row` is the conversation's index in `drafts`."""
    messages = [message for draft in drafts for message in draft.conversation.messages]
    counts = [len(draft.conversation.messages) for draft in drafts]
    row = pl.Series("row", np.repeat(np.arange(len(drafts), dtype=np.uint32), counts))
    return _message_rows(messages).insert_column(0, row)


def _message_rows(messages: Sequence[Message]) -> pl.DataFrame:
    columns = {name: list(map(field, messages)) for name, field in _FIELDS}  # three times as fast as by message
    return pl.DataFrame(columns, schema=dataset_columns.MESSAGE.to_schema())


def count_turn_keys(extra: pl.Series) -> Counter[str]:
    """Count the keys that messages keep in their `extra`."""
    return Counter(key for text in extra.drop_nulls() for key in msgspec.json.decode(text))


def conversations_table(drafts: Sequence[Draft], messages: pl.DataFrame) -> pl.DataFrame:
    """Return one row per conversation with the columns that signals and filters read."""
    is_answer = pl.col("role") == "assistant"
    conversations = [draft.conversation for draft in drafts]
    html = [message.was_html for conversation in conversations for message in conversation.messages]
    grouped = messages.with_columns(html=pl.Series(html, dtype=pl.Boolean)).group_by("row", maintain_order=True)
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
        tools=_text([conversation.tools for conversation in conversations]),
        rejected_answer=_rejected_answers([conversation.rejected_answer for conversation in conversations]),
        metadata=_text([json_text(conversation.metadata) for conversation in conversations]),
    )


def _rejected_answers(answers: Sequence[Sequence[Message]]) -> pl.Series:
    """Return a column of rejected answers; null for an empty one."""
    rows = [[{name: getattr(message, name) for name in FIELDS} for message in answer] or None for answer in answers]
    return pl.Series("rejected_answer", rows, dtype=dataset_columns.CONVERSATION["rejected_answer"])


def _text(values: Sequence[str | None]) -> pl.Series:
    return pl.Series(values, dtype=pl.String)


def json_text(metadata: Mapping[str, object]) -> str | None:
    """Return an object as JSON text; None if it is empty."""
    if not metadata:
        return None
    try:
        return msgspec.json.encode(metadata).decode()
    except (OverflowError, msgspec.MsgspecError):  # msgspec has no integers over 64 bits; the standard library has
        return json.dumps(metadata, ensure_ascii=False)


def summary_table(
    drafts: Sequence[Draft], messages: pl.DataFrame, pieces: Pieces, every_prompt: bool = False
) -> pl.DataFrame:
    """Return one row per conversation for decisions over the whole corpus: hashes, source id, number of pieces.

    `every_prompt` hashes the prompts of rejected ones too.
    """
    columns = {
        "row": pl.Series(range(len(drafts)), dtype=pl.UInt32),
        **_columns(draft.origin for draft in drafts),
        "branch": [draft.branch for draft in drafts],
        "source_id": [draft.conversation.source_id for draft in drafts],
        "pieces": [len(pieces.get(row, ())) for row in range(len(drafts))],
        "alone": [draft.alone for draft in drafts],
    }
    prompts = [
        every_prompt or row in pieces or clusters.may_be_piece(draft.conversation.source_id)
        for row, draft in enumerate(drafts)
    ]
    hashes = duplicates.chain_hashes((hashed_fields(draft.conversation) for draft in drafts), prompts)
    frame = pl.DataFrame(columns, strict=False).hstack(hashes)
    frame = frame.join(marks_table(messages), on="row", how="left", maintain_order="left")
    return frame.select(pl.col(name).cast(dtype) for name, dtype in dataset_columns.PART_SUMMARY.items())


def hashed_fields(conversation: Conversation) -> list[duplicates.MessageFields]:
    """Return what makes two conversations the same: all that is trained on, and the tools and media that it needs."""
    fields: list[duplicates.MessageFields] = [
        (m.role, m.content, m.name, m.tool_calls, m.reasoning) for m in conversation.messages
    ]
    add_needs(fields, [conversation.tools, *(flaw.evidence for flaw in conversation.flaws if flaw.rule == media.RULE)])
    return fields


def add_needs(fields: list[duplicates.MessageFields], needs: Sequence[str | None]) -> None:
    """Add what a conversation needs beside its messages to the fields of the first, in place."""
    if fields and any(needs):
        fields[0] = (*fields[0][:4], json_text({"reasoning": fields[0][4], "needs": needs}))


def marks_table(messages: pl.DataFrame) -> pl.DataFrame:
    """Return `row` and `marks` of the conversations with a message that is not trained, or not in all its parts."""
    reasoned = messages["train_reasoning"] | messages["reasoning"].is_null()
    unusual = messages["row"].filter(~(messages["train"] & messages["stop"] & reasoned)).unique()
    messages = messages.select("row", "train", "stop", reasoned.alias("train_reasoning"))
    chosen = messages.filter(pl.col("row").is_in(unusual.implode()))
    return chosen.group_by("row", maintain_order=True).agg(marks=pl.struct(MARKS))


def kept_table(batch: Batch) -> pl.DataFrame:
    """Return one row per piece, in order: the columns of conversations.parquet that depend only on this batch."""
    drafts = batch.drafts
    pieces = [(row, number, piece) for row, items in batch.pieces.items() for number, piece in enumerate(items)]
    counted = pl.DataFrame(
        {
            "row": [row for row, _, _ in pieces],
            "piece": [number for _, number, _ in pieces],
            "tokens": [piece.tokens for _, _, piece in pieces],
            "prompt_tokens": [piece.prompt_tokens for _, _, piece in pieces],
            "answer_tokens": [piece.answer_tokens for _, _, piece in pieces],
            "positions": _positions(drafts, batch.pieces),
            **_columns(drafts[row].origin for row, _, _ in pieces),
            "branch": [drafts[row].branch for row, _, _ in pieces],
        },
        schema=dataset_columns.PART_PIECE,
    )
    measured = batch.frame.drop(*TRANSIENT).rename({"turns": "source_turns", "characters": "source_characters"})
    endings = [
        drafts[row].conversation.rejected_answer if piece.stop == len(drafts[row].conversation.messages) else []
        for row, _, piece in pieces  # the rejected answer is beside the last answer
    ]
    listed = [drafts[row].conversation.edits if number == 0 else [] for row, number, _ in pieces]  # once
    names = {row: sorted({edit.rule for edit in drafts[row].conversation.edits}) for row in batch.pieces}
    edit_names = pl.Series([names[row] for row, _, _ in pieces], dtype=dataset_columns.CONVERSATION["edit_names"])
    return (
        counted.hstack(_piece_messages(batch))
        .with_columns(_edits(listed), edit_names=edit_names)
        .join(measured.drop("rejected_answer"), on="row", how="left", maintain_order="left")
        .with_columns(_rejected_answers(endings))
    )


def _positions(drafts: Sequence[Draft], pieces: Pieces) -> pl.Series:
    """Return the positions of each piece's messages in their conversation, without system messages."""
    positions: list[int] = []
    counts: list[int] = []
    for row, items in pieces.items():
        system = set(system_positions(drafts[row].conversation.messages))
        for piece in items:
            own = range(piece.start, piece.stop)
            before = len(positions)
            positions += [position for position in own if position not in system] if system else own
            counts.append(len(positions) - before)
    flat = pl.DataFrame({"owner": np.repeat(np.arange(len(counts)), counts), "position": positions})
    return flat.group_by("owner", maintain_order=True).agg("position")["position"]


def _edits(lists: Sequence[Sequence[Edit]]) -> pl.Series:
    """Return a column of lists of edits.

    They are grouped from a flat table, since nested rows are slow to convert. A join with lists would take memory for
    as many edits in each row as there are on average.
    """
    edits = [edit for each in lists for edit in each]
    fields = tuple(dataset_columns.EDIT.to_schema())
    columns: dict[str, Any] = {name: [getattr(edit, name) for edit in edits] for name in fields}
    flat = pl.DataFrame(columns, schema=dataset_columns.EDIT.to_schema())
    places = np.arange(len(lists))
    owners = np.concatenate([places, np.repeat(places, [len(each) for each in lists])])
    flat = pl.concat([flat.clear(len(lists)), flat])  # one without a rule opens each list
    grouped = flat.insert_column(0, pl.Series("owner", owners)).group_by("owner", maintain_order=True)
    return grouped.agg(edits=pl.struct(fields).filter(pl.col("rule").is_not_null()))["edits"]


def _piece_messages(batch: Batch) -> pl.DataFrame:
    """Return messages, turns and characters of each piece, gathered from the table of messages."""
    starts = [0, *accumulate(len(draft.conversation.messages) for draft in batch.drafts)]
    table = batch.messages.drop("row")
    indices: list[int] = []  # rows of `table`
    counts: list[int] = []  # messages of each piece
    changed: list[Message] = []  # not in `messages`: appended to the table
    for row, pieces in batch.pieces.items():
        source = batch.drafts[row].conversation.messages
        system = system_positions(source)
        folds = not batch.template.mid_system and has_mid_system(source)
        for piece in pieces:
            if piece.cut is None and not folds:
                positions = splitter.piece_positions(piece, system)
                indices += [starts[row] + position for position in positions]
                counts.append(len(positions))
                continue
            messages = splitter.piece_messages(source, piece, system)
            messages = list(fold_system(messages)) if folds else messages
            first = table.height + len(changed)
            indices += range(first, first + len(messages))
            counts.append(len(messages))
            changed += messages
    if changed:
        table = pl.concat([table, _message_rows(changed)])
    owners = pl.Series("owner", np.repeat(np.arange(len(counts), dtype=np.uint32), counts), dtype=pl.UInt32)
    grouped = table[indices].insert_column(0, owners).group_by("owner", maintain_order=True)
    return grouped.agg(
        messages=pl.struct(FIELDS),
        turns=pl.len().cast(pl.Int32),
        characters=pl.col("content").str.len_chars().sum().cast(pl.Int64),
    ).drop("owner")


def originals_table(batch: Batch) -> pl.DataFrame:
    """Return the bytes of each kept record, and whether its messages were changed."""
    kept = [batch.drafts[row] for row in batch.pieces]
    return pl.DataFrame(
        {
            "row": list(batch.pieces),
            **_columns(draft.origin for draft in kept),
            "record": [draft.raw for draft in kept],
            "changed": [draft.changed for draft in kept],
        },
        schema=dataset_columns.PART_ORIGINAL,
    )


def rejected_table(rejects: Sequence[Reject], frame: pl.DataFrame) -> pl.DataFrame:
    """Return the rows of rejected.parquet in record order, with signals for the measured ones."""
    ordered = sorted(rejects, key=lambda reject: (reject.origin.number, reject.branch, reject.message_range or (0, 0)))
    rows = pl.DataFrame(
        {
            "row": [reject.row for reject in ordered],
            "source_id": _texts(reject.source_id for reject in ordered),
            **_columns(reject.origin for reject in ordered),
            "branch": [reject.branch for reject in ordered],
            "scope": [reject.scope for reject in ordered],
            "message_range": [reject.message_range for reject in ordered],
            "rule": [reject.rule for reject in ordered],
            "reason": _texts(reject.reason for reject in ordered),
            "evidence": _texts(reject.evidence or None for reject in ordered),
            "twin": [None] * len(ordered),
            "record": [reject.record for reject in ordered],
            "kept_row": [reject.kept_row for reject in ordered],
        },
        schema=dataset_columns.PART_REJECT,
    )
    measured = frame.drop(*TRANSIENT, "source_id", "metadata", "tools", "rejected_answer")
    return rows.join(measured, on="row", how="left", maintain_order="left")


def _texts(values: Iterable[str | None]) -> pl.Series:
    """Return a column of texts, in which lone surrogates of a rejected record are replaced."""
    texts = list(values)
    try:
        return pl.Series(texts, dtype=pl.String)
    except UnicodeEncodeError:
        return pl.Series([text and replace_surrogates(text) for text in texts], dtype=pl.String)


def part_file(parts: Path, number: int, name: str) -> Path:
    """Return the path of a part's rows; `name` is kept, originals, rejected, summary, shingles or prompts."""
    return parts / f"{number:06d}.{name}.arrow"


def trained(name: str) -> str:
    """Return the name of a table in which more messages are trained (see `train_marks`); the first one stays."""
    return f"{name}-trained"


def read_final(parts: Path, number: int, name: str) -> pl.DataFrame:
    """Return the rows of a part as they are after the decisions over the whole corpus."""
    changed = part_file(parts, number, trained(name))
    return pl.read_ipc(changed if changed.exists() else part_file(parts, number, name))
