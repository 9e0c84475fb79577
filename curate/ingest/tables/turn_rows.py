"""Group rows that are one turn each into conversations, as the names of a table's columns say."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from curate.ingest.tables.table import Rows, encode_rows

CONVERSATION_COLUMNS = (
    *("conversation_id", "conv_id", "conversationid", "conversation", "conversation_hash", "convo_id", "chat_id"),
    *(
        "chatid",
        "dialog_id",
        "dialogue_id",
        "dialogid",
        "dialogue",
        "session_id",
        "sessionid",
        "thread_id",
        "ticket_id",
    ),
)
ROLE_COLUMNS = ("role", "from", "speaker", "sender", "author", "author_role")
TEXT_COLUMNS = ("content", "text", "message", "value", "utterance", "body")
ORDER_COLUMNS = (
    *("turn", "turn_id", "turn_index", "turn_idx", "turn_number", "turn_no", "index", "idx", "position", "order"),
    *("seq", "sequence", "message_index", "message_number", "step"),
)
TURN_KEYS = frozenset(  # keys of turns that mean something else, or nothing, as keys of a record
    ("id", "messages", "name", "weight", "loss_weight", "loss", "train", "train_detail", "learn", "stop", "tool_calls")
)
MAX_DIGITS = 18
TREE_COLUMNS = frozenset({"parent_id", "parent", "parent_message_id"})  # rows of a tree are no list of turns


@dataclass(frozen=True)
class TurnColumns:
    """The columns of a table whose rows are one turn each, and the places of those that are known."""

    columns: tuple[str, ...]
    conversation: int
    role: int
    text: int
    order: int | None


@dataclass
class _Chat:
    """The rows of one conversation so far."""

    rows: list[list[str]] = field(default_factory=list)
    problem: str = ""  # a row that may be of this conversation is lost


def turn_columns(columns: Sequence[str]) -> TurnColumns | None:
    """Return which columns have the conversation, the role and the text; None if rows are records of their own."""
    names = [column.casefold().replace(" ", "_").replace("-", "_") for column in columns]
    conversation, role, text, order = (
        next((names.index(name) for name in known if name in names), None)
        for known in (CONVERSATION_COLUMNS, ROLE_COLUMNS, TEXT_COLUMNS, ORDER_COLUMNS)
    )
    if conversation is None or role is None or text is None or not TREE_COLUMNS.isdisjoint(names):
        return None
    return TurnColumns(tuple(columns), conversation, role, text, order)


def group_turns(rows: Iterable[list[str] | Rows], columns: TurnColumns) -> Iterator[Rows]:
    """Yield the conversations in the order of their first rows; the table is in memory, as rows may be in any order.

    A lost row may be a turn of the conversation before it or after it, so these are lost with it.
    """
    chats: dict[str, _Chat] = {}
    alone: list[Rows] = []
    before: _Chat | None = None
    lost: Rows | None = None
    for row in rows:
        if isinstance(row, Rows):
            lost = row
            if before is None:
                alone.append(row)
            else:
                before.problem = before.problem or row.lost
            continue
        before = chats.setdefault(row[columns.conversation], _Chat())
        before.rows.append(row)
        if lost is not None:
            before.problem = before.problem or lost.lost
            lost = None
    yield from _number(chats, columns, alone)


def _number(chats: dict[str, _Chat], columns: TurnColumns, alone: Sequence[Rows]) -> Iterator[Rows]:
    for number, row in enumerate(alone):
        yield Rows(number, 1, row.data, row.lost, row.bytes)
    for number, (name, chat) in enumerate(chats.items(), len(alone)):
        problem = chat.problem
        if not name.strip():
            problem = f"{len(chat.rows)} rows have nothing under {columns.columns[columns.conversation]!r}"
        data = encode_rows([_record(name, chat.rows, columns)])
        yield Rows(number, 1, data, problem, len(data) if problem else 0)


def _record(name: str, rows: list[list[str]], columns: TurnColumns) -> dict[str, object]:
    """Return a conversation; columns that are the same in all of its rows are keys of the record."""
    rows = _sort(rows, columns.order)
    keys = dict(enumerate(columns.columns))
    del keys[columns.conversation]
    keys |= {columns.role: "role", columns.text: "content"}
    of_turns = {columns.role, columns.text, columns.order}
    shared = {
        key: rows[0][number]
        for number, key in keys.items()
        if number not in of_turns and key.casefold() not in TURN_KEYS and len({row[number] for row in rows}) == 1
    }
    turns = [{key: row[number] for number, key in keys.items() if key not in shared} for row in rows]
    return {"id": name, **shared, "messages": turns}


def _sort(rows: list[list[str]], order: int | None) -> list[list[str]]:
    """Return rows by their number, if each has one; rows of the same number stay in the order of the table."""
    if order is None or not all(_is_number(row[order].strip()) for row in rows):
        return rows
    return sorted(rows, key=lambda row: int(row[order]))


def _is_number(text: str) -> bool:
    return text.isdecimal() and len(text) <= MAX_DIGITS
