"""What all formats share when they write a conversation: options, and what a record has no place for."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from operator import attrgetter

from curate.errors import RecordError
from curate.schemas.conversation import Conversation, Message

RULE = "not_representable"


@dataclass(frozen=True)
class WriteOptions:
    """How to write: alpaca's earlier exchanges as `history`, and the `shape` of trl's records (empty: by content)."""

    history: bool = False
    shape: str = ""


DEFAULT = WriteOptions()


def _has_any(field: str) -> Callable[[Conversation], bool]:
    """Return a function that says whether any message has a field; searching a list is faster than `any`."""
    value = attrgetter(field)
    return lambda chat: (values := [*map(value, chat.messages)]).count(None) < len(values)


# Fields that some formats have no place for. Each says whether a conversation has it.
FIELDS: Mapping[str, Callable[[Conversation], bool]] = {
    "name": _has_any("name"),
    "reasoning": _has_any("reasoning"),
    "tool_call_id": _has_any("tool_call_id"),
    "extra": _has_any("extra"),
    "tools": lambda chat: chat.tools is not None,
    "rejected_answer": lambda chat: bool(chat.rejected_answer),
    "model": lambda chat: chat.model is not None,
    "metadata": lambda chat: bool(chat.metadata),
}


def find_lost(conversation: Conversation, lacks: Collection[str]) -> list[str]:
    """Return which of the fields that a format lacks a conversation has."""
    return [name for name in lacks if FIELDS[name](conversation)]


def refuse(conversation: Conversation, *, tools: bool = True, weights: bool = True, reasoning: bool = True) -> None:
    """Raise RecordError for what would be trained on wrongly: each flag is for one kind of it.

    `tools`: calls and results. `weights`: answers that are not to be trained on, or were cut off.
    """
    for index, message in enumerate(conversation.messages):
        if problem := _problem(message, tools, weights, reasoning):
            raise RecordError(RULE, f"message {index} {problem}, which the format cannot express", message.content)


def _problem(message: Message, tools: bool, weights: bool, reasoning: bool) -> str | None:
    if tools and message.tool_calls is not None:
        return "calls a tool"
    if tools and message.role == "tool":
        return "is a tool's result"
    if reasoning and message.reasoning is not None:
        return "has reasoning"
    if weights and message.role == "assistant" and not (message.train and message.stop):
        return "is not to be trained on" if message.stop else "was cut off"
    return None


def add_turn_keys(turn: dict[str, object], message: Message) -> None:
    """Add the fields that a turn has only where they are set; raises RecordError as `add_keys`."""
    if message.name is not None:
        turn["name"] = message.name
    if message.tool_calls is not None:
        turn["tool_calls"] = json.loads(message.tool_calls)
    if message.reasoning is not None:
        turn["reasoning_content"] = message.reasoning
        if not message.train_reasoning:
            turn["train_reasoning"] = False
    if message.tool_call_id is not None:
        turn["tool_call_id"] = message.tool_call_id
    if message.extra is not None:
        add_keys(turn, json.loads(message.extra))


def add_keys(record: dict[str, object], others: Mapping[str, object]) -> None:
    """Add other keys of a dump; raises RecordError for one that the record has already, with another meaning."""
    for key, value in others.items():
        if key in record:
            raise RecordError(RULE, f"the dump's own key {key!r} has another meaning in the format", str(value))
        record[key] = value


def add_metadata(record: dict[str, object], conversation: Conversation) -> dict[str, object]:
    """Add the model and the metadata to a record, and return it; raises RecordError as `add_keys`."""
    if conversation.model is not None:
        add_keys(record, {"model": conversation.model})
    add_keys(record, conversation.metadata)
    return record
