"""Our own records, with nothing lost: a curated set's rows as JSON lines or Parquet."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields

from curate.errors import RecordError
from curate.schemas import read_turns
from curate.schemas.conversation import ROLES, Conversation, Message

NAME = "jsonl"
SUMMARY = "Our own lines, nothing lost: {id, source_id, piece, messages with train and stop, model, metadata, split}."

KEYS = ("id", "source_id", "piece", "messages", "model", "metadata", "split")
_FIELDS = {field.name for field in fields(Message)}
_TYPES = (str, str, str, bool, bool)


def recognises(record: Mapping[str, object]) -> bool:
    """Tell whether the record is one that curate wrote."""
    return "piece" in record and "source_id" in record and record.get("messages") is not None


def parse(record: Mapping[str, object]) -> Conversation:
    """Read one record; its `source_id` becomes the `id` it had, so that pieces stay apart."""
    conversation = Conversation(None, [])
    conversation.source_id = read_turns.source_id(conversation, record.get("id"))
    value = read_turns.turns_in(conversation, record["messages"], "messages")
    exact = [_exact(turn) for turn in value]
    if None in exact:
        read_turns.read(conversation, value, "role", "content")
    else:
        conversation.messages = [message for message in exact if message is not None]
    model = record.get("model")
    conversation.model = model if isinstance(model, str) else None
    conversation.metadata = _metadata(record.get("metadata"))
    return conversation


def _exact(turn: object) -> Message | None:
    """Return a message that is just as we write it; null for one that needs a closer look."""
    if not isinstance(turn, dict) or turn.keys() != _FIELDS or turn["role"] not in ROLES:
        return None
    values = (turn["content"], turn["name"] or "", turn["tool_calls"] or "", turn["train"], turn["stop"])
    if tuple(map(type, values)) != _TYPES or (turn["tool_calls"] and not read_turns.is_calls(turn["tool_calls"])):
        return None
    return Message(**turn)


def _metadata(value: object) -> dict[str, object]:
    """Return the metadata, which is JSON text in Parquet and an object in JSON lines."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise RecordError("bad_value", "'metadata' is not JSON text", read_turns.show(value)) from None
    return {key: read_turns.plain(item) for key, item in value.items()} if isinstance(value, dict) else {}


def dump(conversation: Conversation) -> dict[str, object]:
    """Write a conversation with every field of every message."""
    return {
        "id": conversation.source_id,
        "source_id": conversation.source_id,
        "piece": None,
        "messages": [_plain(message) for message in conversation.messages],
        "model": conversation.model,
        "metadata": conversation.metadata,
        "split": None,
    }


def _plain(message: Message) -> dict[str, object]:  # dataclasses.asdict copies deeply, at ten times the cost
    return {
        "role": message.role,
        "content": message.content,
        "name": message.name,
        "tool_calls": message.tool_calls,
        "train": message.train,
        "stop": message.stop,
    }
