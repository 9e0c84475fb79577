"""Read conversations to show: kept rows with their messages, rejected records parsed again, and originals."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import polars as pl

from curate import markdown
from curate.analysis.diff import Change, changes
from curate.analysis.explanation import Rejection, is_chat, rejection
from curate.dataset.checks import check_conversations
from curate.dataset.curated_set import CuratedSet
from curate.display.displayed import Displayed
from curate.errors import RecordError, SetError
from curate.ingest.decode import Chunk, decode_records
from curate.ingest.text.spans import RecordSpan
from curate.pipeline import repair_text
from curate.pipeline.recipe import InputSettings
from curate.schemas import formats
from curate.schemas.conversation import Message
from curate.schemas.reading.options import DEFAULT, ReadOptions

READ_GAP = 1_000  # rows no further apart than this are read together
VIEW_COLUMNS = (
    "id",
    "source_id",
    "source_file",
    "source_index",
    "messages",
    "record",
    "cluster",
)  # columns that are not among a view's facts
REJECTION_COLUMNS = ("scope", "rule", "reason", "evidence", "message_range", "twin")


@dataclass(frozen=True)
class ConversationView(Displayed):
    """One row of a set to show: a kept piece, or a `rejected` record or exchange.

    `id` is the set's id; for a rejected row, the source id or `file:index`. `facts` are the row's other columns.
    `unread` is the text of a record without readable messages.
    """

    id: str
    source_file: str
    source_index: int
    messages: tuple[Message, ...]
    facts: Mapping[str, Any] = field(default_factory=dict)
    rejected: Rejection | None = None
    unread: str | None = None

    @property
    def branch(self) -> int:
        """Which of the record's conversations this is."""
        return self.facts.get("branch") or 0

    @property
    def rejected_answer(self) -> list[Message]:
        """The messages of the answer that a preference pair rejects, which is not trained on; usually empty."""
        return [Message(**message) for message in self.facts.get("rejected_answer") or ()]

    @property
    def place(self) -> str:
        """The record's place in the input, as `file:index`."""
        return f"{self.source_file}:{self.source_index}"


def read_kept(curated: CuratedSet, rows: Sequence[int]) -> list[ConversationView]:
    """Read these rows of conversations.parquet, in the order given."""
    return [view_kept(row) for row in _take(curated.conversations(), rows)]


def read_rejected(curated: CuratedSet, rows: Sequence[int]) -> list[ConversationView]:
    """Read these rows of rejected.parquet; answers in HTML are converted to markdown."""
    rejected = list(_take(curated.rejected(), rows))
    missing = [(row["source_file"], row["source_index"]) for row in rejected if row["record"] is None]
    records = _records(curated.rejected(), missing) if missing else {}
    options = _read_options(curated)
    return [
        _view_rejected(row, row["record"] or records.get((row["source_file"], row["source_index"])), options)
        for row in rejected
    ]


def diff_record(curated: CuratedSet, chat: ConversationView) -> list[Change]:
    """Compare a whole record with its original: every message before and after cleaning.

    A record that is not among the originals was not changed. Raises SetError if the set was written without originals.
    """
    key = (chat.source_file, chat.source_index)
    raw = _records(curated.rejected(), [key]).get(key)
    originals = curated.originals()
    if raw is None and originals is None:
        raise SetError(
            f"{str(curated.path)!r} was written without originals, so its changes cannot be shown; "
            f"curate explain {chat.place} lists the repairs"
        )
    if raw is None and originals is not None:
        raw = _records(originals, [key]).get(key)
    after = _join_pieces(curated, chat)
    if raw is None:
        return changes(after, after)
    before, unread = parse_record(raw, _read_options(curated), chat.branch)
    if unread is not None:
        before = [Message("user", unread)]
    return changes(before, after)


def find_rejections(curated: CuratedSet, chat: ConversationView) -> list[Rejection]:
    """Return the rejections of a record: of exchanges, or of the whole record."""
    is_own = is_chat(chat.source_file, chat.source_index, chat.branch)
    return [
        rejection(row)
        for row in curated.rejected().filter(is_own).select(REJECTION_COLUMNS).collect().iter_rows(named=True)
    ]


def _read_options(curated: CuratedSet) -> ReadOptions:
    """Return how the set's records were read."""
    settings = curated.manifest.recipe.get("input", {})
    known = {each.name: settings[each.name] for each in fields(InputSettings) if each.name in settings}
    return InputSettings(**known).read_options()


def parse_record(raw: bytes, options: ReadOptions = DEFAULT, branch: int = 0) -> tuple[list[Message], str | None]:
    """Parse a record without repairs, to messages and None, or no messages and its text if it is not a conversation."""
    span = RecordSpan(0, len(raw), 1, "record")
    record = decode_records(Chunk("", 0, 1, 0, raw, (span,)))[0]
    try:
        if record.problem is not None:
            raise record.problem
        conversations = formats.parse_all(record.value, options)
        conversation = conversations[branch if branch < len(conversations) else 0]
        if record.surrogates:
            repair_text.repair_surrogates(conversation)
        if conversation.messages:
            return conversation.messages, None
    except RecordError:
        pass
    return [], raw.decode("utf-8", "backslashreplace")


def convert_html(messages: Iterable[Message]) -> list[Message]:
    """Return the messages, with answers in ChatGPT's HTML converted to markdown in place."""
    converted = list(messages)
    answers = [
        m for m in converted if m.role == "assistant" and m.is_html is not False and markdown.looks_like_html(m.content)
    ]
    for message, text in zip(answers, markdown.to_markdown([m.content for m in answers]), strict=True):
        message.content = text
    return converted


def _take(frame: pl.LazyFrame, rows: Sequence[int]) -> Iterable[Mapping[str, Any]]:
    """Yield rows by number, in the order given."""
    return gather(frame, rows).iter_rows(named=True) if rows else ()


def gather(frame: pl.LazyFrame, rows: Sequence[int]) -> pl.DataFrame:
    """Return rows by number, in the order given; rows near each other are read together."""
    ordered = sorted(set(rows))
    groups: list[list[int]] = []
    for row in ordered:
        if groups and row - groups[-1][-1] <= READ_GAP:
            groups[-1].append(row)
        else:
            groups.append([row])
    frames = [frame.slice(g[0], g[-1] - g[0] + 1).select(pl.all().gather([n - g[0] for n in g])) for g in groups]
    table = pl.concat(pl.collect_all(frames))
    positions = {row: position for position, row in enumerate(ordered)}
    return table[[positions[row] for row in rows]]


def view_kept(row: Mapping[str, Any]) -> ConversationView:
    """Return a row of conversations.parquet."""
    check_conversations(row["messages"] is None)
    messages = tuple(Message(**message) for message in row["messages"])
    facts = {key: value for key, value in row.items() if key not in VIEW_COLUMNS}
    return ConversationView(row["id"], row["source_file"], row["source_index"], messages, facts)


def _view_rejected(row: Mapping[str, Any], record: bytes | None, options: ReadOptions) -> ConversationView:
    place = f"{row['source_file']}:{row['source_index']}"
    messages, unread = parse_record(record or b"", options, row["branch"] or 0)
    span = row["message_range"]
    if span:
        messages = messages[span[0] : span[1]]
    facts = {key: value for key, value in row.items() if key not in (*VIEW_COLUMNS, *REJECTION_COLUMNS)}
    shown = tuple(convert_html(messages))
    return ConversationView(
        row["source_id"] or place, row["source_file"], row["source_index"], shown, facts, rejection(row), unread
    )


def _records(frame: pl.LazyFrame, keys: Sequence[tuple[str, int]]) -> dict[tuple[str, int], bytes]:
    """Return the bytes of records by key."""
    files, indices = {file for file, _ in keys}, {index for _, index in keys}
    near = pl.col("source_file").is_in(list(files)) & pl.col("source_index").is_in(list(indices))
    rows = frame.filter(near & pl.col("record").is_not_null()).select("source_file", "source_index", "record")
    return {(file, index): record for file, index, record in rows.collect().iter_rows()}


def _join_pieces(curated: CuratedSet, chat: ConversationView) -> list[Message]:
    """Return the kept messages of a record: its pieces joined, with system messages from the first only."""
    rows = curated.conversations().filter(is_chat(chat.source_file, chat.source_index, chat.branch))
    joined: list[Message] = []
    for (messages,) in rows.sort("piece").select("messages").collect().iter_rows():
        check_conversations(messages is None)
        piece = [Message(**message) for message in messages]
        while joined and piece and piece[0].role == "system":
            piece = piece[1:]
        joined += piece
    return joined
