"""A record's keys: its list of turns, and those beside it that change what it means (an answer, a label, media)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from curate.errors import RecordError
from curate.schemas.conversation import Conversation
from curate.schemas.formats import preference
from curate.schemas.reading import media, turn_columns, turns
from curate.schemas.reading.key_kinds import (
    KINDS,
    RECORD_MARKS,
    TURN_KINDS,
    Kind,
    flag_label,
    flag_nested_labels,
    has_content,
    metadata_objects,
)
from curate.schemas.reading.turn import context, reasoning
from curate.schemas.reading.values import decode_json

_BESIDE = frozenset(key for key, kind in TURN_KINDS.items() if kind in ("context", "reasoning"))
Reader = tuple[Callable[[Mapping[str, object]], bool], Callable[[Mapping[str, object]], Conversation]]


def read_special_keys(conversation: Conversation, chats: Sequence[Reader]) -> None:
    """Read the metadata's keys of a known kind; `chats` reads records with turns.

    Raises RecordError if a second chat, or a chosen answer, contradicts the first.
    """
    keys: dict[Kind, list[str]] = {}
    for key in conversation.metadata:
        if kind := KINDS.get(key):
            keys.setdefault(kind, []).append(key)
    if "turns" in keys:
        _merge_second_chat(conversation, chats)
    if "chosen" in keys or "rejected" in keys or "completion" in keys:
        preference.add_answer(conversation)
    _flag(conversation, keys)


def _merge_second_chat(conversation: Conversation, chats: Sequence[Reader]) -> None:
    """Drop a second chat that the first contains; raises RecordError for one that differs."""
    for recognises, read in chats:
        metadata = conversation.metadata
        if not recognises(metadata):
            continue
        try:
            second = read(metadata)
        except RecordError:
            continue  # not a chat: `items` may be a list of anything
        used = [key for key in metadata if key not in second.metadata and key not in turns.SYSTEM_KEYS]
        if not preference.contains(conversation.messages, second.messages):
            reason = f"the record holds two chats that differ; the second is under {turns.quote_keys(used)}"
            raise RecordError("two_chats", reason, turns.preview(second.messages[0].content))
        for key in used:
            del metadata[key]


def _flag(conversation: Conversation, keys: Mapping[Kind, Sequence[str]]) -> None:
    metadata = conversation.metadata
    labels: tuple[Kind, ...] = ("bad_if_true", "bad_if_false")
    for kind in labels:
        for key in keys.get(kind, ()):
            flag_label(conversation, key, kind, metadata[key], None)
    if names := [key for key in keys.get("media", ()) if has_content(metadata[key])]:
        media.flag_record(conversation, names)


def read_beside(conversation: Conversation) -> None:
    """Read what belongs to the prompt or the answer from the metadata: documents, and how the answer was found."""
    if _BESIDE.isdisjoint(conversation.metadata):
        return
    reasoning.take_record_reasoning(conversation)
    prompts = (index for index, message in enumerate(conversation.messages) if message.role == "user")
    if (first := next(prompts, None)) is not None:
        texts = [message.content for message in conversation.messages]
        keys = [key for key in conversation.metadata if TURN_KINDS.get(key) == "context"]
        documents = {key: value for key in keys if not _is_repeated(value := conversation.metadata[key], texts)}
        rest = dict(documents)
        context.read_context(conversation, conversation.messages[first], rest, first)
        for key in documents.keys() - rest.keys():
            del conversation.metadata[key]


def _is_repeated(value: object, texts: Sequence[str]) -> bool:
    """Return whether a text stands in a message already, such as the prompt under a second key."""
    return isinstance(value, str) and any(value.strip() in text for text in texts)


def flag_marks(conversation: Conversation) -> None:
    """Flag a record that says as a whole that it is not to be trained on, such as by a `weight` of 0."""
    for metadata in metadata_objects(conversation.metadata):
        flag_nested_labels(conversation, metadata, None)
    for key in [key for key in conversation.metadata if key in RECORD_MARKS]:
        flag_label(conversation, key, RECORD_MARKS[key], conversation.metadata[key], None)


def refuse_flaws(conversation: Conversation) -> None:
    """Raise RecordError for the first flaw: for what is not cleaned, and so cannot lose an exchange alone."""
    if conversation.flaws:
        flaw = conversation.flaws[0]
        raise RecordError(flaw.rule, flaw.reason, flaw.evidence)


def read_turn_list(conversation: Conversation, value: object, key: str) -> list[object]:
    """Return a record's list of turns, also if it is text, an object with keys 0, 1, 2… or one with lists."""
    if isinstance(value, str):
        value = _decode_turns(conversation, value, key)
    if isinstance(value, dict):
        columns = turn_columns.is_columns(value)
        value = (turn_columns.read_columns if columns else _numbered_turns)(conversation, value, key)
    if not isinstance(value, list):
        raise RecordError(
            "no_messages", f"{key!r} is {turns.describe_type(value)}, not a list of turns", turns.preview(value)
        )
    if not value:
        raise RecordError("no_messages", f"{key!r} is empty", turns.preview(value))
    return value


def _decode_turns(conversation: Conversation, text: str, key: str) -> object:
    value = decode_json(text)
    if value is None:
        value = turn_columns.read_python(text, key)
    if value is None:
        raise RecordError("no_messages", f"{key!r} is text, not a list of turns", turns.preview(text))
    conversation.edit("turns_from_text", None, turns.preview(text), "")
    return value


def _numbered_turns(conversation: Conversation, value: Mapping[str, object], key: str) -> list[object]:
    """Return the turns of an object with consecutive numbers from 0 or 1 as keys, or with a list of turns only."""
    if len(value) == 1 and isinstance(only := next(iter(value.values())), list):
        conversation.edit("turns_from_dict", None, turns.preview(value), "")
        return only
    numbers = sorted(int(name) for name in value if isinstance(name, str) and name.isdecimal() and len(name) < 8)
    first = numbers[0] if numbers else 0
    if len(numbers) < len(value) or not numbers or first > 1 or numbers != list(range(first, first + len(numbers))):
        reason = f"{key!r} is an object with keys {turns.quote_keys(list(value))}, not a list of turns"
        raise RecordError("no_messages", reason, turns.preview(value))
    conversation.edit("turns_from_dict", None, turns.preview(value), "")
    by_number = {int(name): turn for name, turn in value.items()}
    return [by_number[number] for number in numbers]
