"""Conversations to look at: rows of a curated set with their messages, rejected records read again, originals."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from curate import markdown
from curate.analysis.diff import Change, changes
from curate.analysis.explain import Rejection, rejection
from curate.dataset.curated_set import CuratedSet
from curate.display.displayed import Displayed
from curate.errors import RecordError, SetError
from curate.ingest.chunker import RecordSpan
from curate.ingest.decode import Chunk, decode_records
from curate.pipeline import repair_text
from curate.schemas import formats
from curate.schemas.conversation import Message

NEAR = 1_000  # rows that lie no further apart are read in one go
OWN = ("id", "source_id", "source_file", "source_index", "messages", "record", "cluster")  # not among a chat's facts
LOST = ("scope", "rule", "reason", "evidence", "message_range", "twin")


@dataclass(frozen=True)
class Chat(Displayed):
    """One row of a set: a piece that was kept, or a record or exchange that was `rejected`.

    `id` is the set's; of a rejected one the dump's own, or its place. `facts` are the row's other columns.
    `unread` is the text of a record that holds no messages.
    """

    id: str
    source_file: str
    source_index: int
    messages: tuple[Message, ...]
    facts: Mapping[str, Any] = field(default_factory=dict)
    rejected: Rejection | None = None
    unread: str | None = None

    @property
    def place(self) -> str:
        """Where it stood in the input."""
        return f"{self.source_file}:{self.source_index}"


def kept(curated: CuratedSet, rows: Sequence[int]) -> list[Chat]:
    """Return these rows of conversations.parquet, in the order asked for."""
    return [_kept(row) for row in _take(curated.conversations(), rows)]


def lost(curated: CuratedSet, rows: Sequence[int]) -> list[Chat]:
    """Return these rows of rejected.parquet; HTML of answers is shown as the markdown it stands for."""
    found = list(_take(curated.rejected(), rows))
    missing = [(row["source_file"], row["source_index"]) for row in found if row["record"] is None]
    records = _records(curated.rejected(), missing) if missing else {}
    return [_lost(row, row["record"] or records.get((row["source_file"], row["source_index"]))) for row in found]


def compare(curated: CuratedSet, chat: Chat) -> list[Change]:
    """Return how the whole record of a chat was changed: every message as it came, and as it was kept.

    The text as it came is that of the originals; a record that is not among them was not changed. Raises SetError
    where a set was written without them.
    """
    place = (chat.source_file, chat.source_index)
    raw = _records(curated.rejected(), [place]).get(place)
    originals = curated.originals()
    if raw is None and originals is None:
        raise SetError(
            f"{str(curated.path)!r} was written without originals, so what was changed cannot be shown; "
            f"curate explain {chat.place} tells the repairs"
        )
    if raw is None and originals is not None:
        raw = _records(originals, [place]).get(place)
    after = _whole(curated, place)
    if raw is None:
        return changes(after, after)
    before, unread = read(raw)
    if unread is not None:
        before = [Message("user", unread)]
    return changes(before, after)


def losses(curated: CuratedSet, chat: Chat) -> list[Rejection]:
    """Return what was rejected of a chat's record: exchanges, or the whole."""
    mine = (pl.col("source_file") == chat.source_file) & (pl.col("source_index") == chat.source_index)
    return [rejection(row) for row in curated.rejected().filter(mine).select(LOST).collect().iter_rows(named=True)]


def read(raw: bytes) -> tuple[list[Message], str | None]:
    """Return a record's messages as they came, or no messages and its text where it is no conversation."""
    span = RecordSpan(0, len(raw), 1, "record")
    found = decode_records(Chunk("", 0, 1, 0, raw, (span,)))[0]
    try:
        if found.problem is not None:
            raise found.problem
        conversation = formats.parse(found.value)
        if found.surrogates:
            repair_text.mend_surrogates(conversation)
        if conversation.messages:
            return conversation.messages, None
    except RecordError:
        pass
    return [], raw.decode("utf-8", "backslashreplace")


def readable(messages: Iterable[Message]) -> list[Message]:
    """Return messages with answers that are ChatGPT's HTML as markdown."""
    found = list(messages)
    answers = [m for m in found if m.role == "assistant" and markdown.looks_like_html(m.content)]
    for message, text in zip(answers, markdown.to_markdown([m.content for m in answers]), strict=True):
        message.content = text
    return found


def _take(frame: pl.LazyFrame, rows: Sequence[int]) -> Iterable[Mapping[str, Any]]:
    """Yield rows by number, in the order asked for; those that lie near each other are read together."""
    wanted = sorted(set(rows))
    groups: list[list[int]] = []
    for row in wanted:
        if groups and row - groups[-1][-1] <= NEAR:
            groups[-1].append(row)
        else:
            groups.append([row])
    frames = [frame.slice(g[0], g[-1] - g[0] + 1).select(pl.all().gather([n - g[0] for n in g])) for g in groups]
    if not frames:
        return
    found = pl.concat(pl.collect_all(frames))
    place = {row: at for at, row in enumerate(wanted)}
    for row in rows:
        yield found.row(place[row], named=True)


def _kept(row: Mapping[str, Any]) -> Chat:
    messages = tuple(Message(**message) for message in row["messages"])
    facts = {key: value for key, value in row.items() if key not in OWN}
    return Chat(row["id"], row["source_file"], row["source_index"], messages, facts)


def _lost(row: Mapping[str, Any], record: bytes | None) -> Chat:
    place = f"{row['source_file']}:{row['source_index']}"
    messages, unread = read(record or b"")
    span = row["message_range"]
    if span:
        messages = messages[span[0] : span[1]]
    facts = {key: value for key, value in row.items() if key not in (*OWN, *LOST)}
    shown = tuple(readable(messages))
    return Chat(
        row["source_id"] or place, row["source_file"], row["source_index"], shown, facts, rejection(row), unread
    )


def _records(frame: pl.LazyFrame, places: Sequence[tuple[str, int]]) -> dict[tuple[str, int], bytes]:
    """Return the bytes of records by their places."""
    files, numbers = {file for file, _ in places}, {number for _, number in places}
    near = pl.col("source_file").is_in(list(files)) & pl.col("source_index").is_in(list(numbers))
    rows = frame.filter(near & pl.col("record").is_not_null()).select("source_file", "source_index", "record")
    return {(file, number): record for file, number, record in rows.collect().iter_rows()}


def _whole(curated: CuratedSet, place: tuple[str, int]) -> list[Message]:
    """Return all that was kept of a record: its pieces joined, with the system messages of the first alone."""
    file, number = place
    rows = curated.conversations().filter((pl.col("source_file") == file) & (pl.col("source_index") == number))
    found: list[Message] = []
    for (messages,) in rows.sort("piece").select("messages").collect().iter_rows():
        piece = [Message(**message) for message in messages]
        while found and piece and piece[0].role == "system":
            piece = piece[1:]
        found += piece
    return found
