"""Curate's own records, a lossless format: the rows of a curated set as JSON lines or Parquet."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields

from curate.errors import RecordError
from curate.schemas.conversation import ROLES, Conversation, Message
from curate.schemas.formats.format import Format
from curate.schemas.reading import record_keys, turns
from curate.schemas.reading.key_kinds import KINDS, flag_label

NAME = "jsonl"
SUMMARY = "curate's own lines, lossless: {id, source_id, piece, messages with every field, tools, model, metadata, …}."

KEYS = ("id", "source_id", "piece", "messages", "tools", "rejected_answer", "model", "metadata", "split")
_FIELDS = {field.name for field in fields(Message) if field.compare}
_FIRST_FIELDS = {"role", "content", "name", "tool_calls", "train", "stop"}  # of the first version
_TEXTS = ("name", "tool_calls", "reasoning", "tool_call_id", "extra")  # or null
_FLAGS = ("train", "stop", "train_reasoning")


def recognises(record: Mapping[str, object]) -> bool:
    """Return whether curate wrote this record."""
    return "piece" in record and "source_id" in record and record.get("messages") is not None


def parse(record: Mapping[str, object]) -> Conversation:
    """Read one record; its `id` becomes the `source_id`, so that pieces stay distinct."""
    conversation = Conversation(None, [])
    conversation.source_id = turns.read_source_id(conversation, record.get("id"))
    value = record_keys.read_turn_list(conversation, record["messages"], "messages")
    exact = [_exact(turn) for turn in value]
    if None in exact:
        turns.read_messages(conversation, value, "role", "content")
    else:
        conversation.messages = [message for message in exact if message is not None]
    if record.get("piece") is not None:  # a row of a curated set, which does not record which answers were HTML
        for message in conversation.messages:
            message.was_html = message.role == "assistant"
    model = record.get("model")
    conversation.model = model if isinstance(model, str) else None
    conversation.metadata = _metadata(record.get("metadata"))
    tools = record.get("tools")
    conversation.tools = tools if isinstance(tools, str) and turns.is_json_list(tools) else None
    rejected = [_exact(turn) for turn in record.get("rejected_answer") or ()]  # type: ignore[attr-defined]
    conversation.rejected_answer = [message for message in rejected if message is not None]
    _read_other_keys(conversation, record)
    return conversation


def _read_other_keys(conversation: Conversation, record: Mapping[str, object]) -> None:
    """Read labels that were added to a record; keep the other keys of a line, but not the columns of a set."""
    for key in record:
        kind = KINDS.get(key)
        if kind == "bad_if_true" or kind == "bad_if_false":
            flag_label(conversation, key, kind, record[key], None)
    if record.get("piece") is None:
        others = {key: turns.to_plain_json(value) for key, value in record.items() if key not in KEYS}
        if record.get("tools") and conversation.tools is None:  # of a line that someone has edited
            others["tools"] = turns.to_plain_json(record["tools"])
        clashes = {f"record_{key}": others.pop(key) for key in conversation.metadata.keys() & others.keys()}
        conversation.metadata = {**others, **conversation.metadata, **clashes}


def _exact(turn: object) -> Message | None:
    """Return the message of a turn exactly as `dump` writes it, or None for any other turn."""
    if not isinstance(turn, dict) or not _FIRST_FIELDS <= turn.keys() <= _FIELDS or turn["role"] not in ROLES:
        return None
    texts = all(isinstance(turn.get(name) or "", str) for name in _TEXTS) and isinstance(turn["content"], str)
    if turn.get("train_reasoning") is None:  # in a set of an earlier version
        turn = {**turn, "train_reasoning": True}
    flags = all(isinstance(turn[name], bool) for name in _FLAGS)
    if not (texts and flags) or (turn["tool_calls"] and not turns.is_json_list(turn["tool_calls"])):
        return None
    return Message(**turn)


def _metadata(value: object) -> dict[str, object]:
    """Return the metadata, which is JSON text in Parquet and an object in JSON lines."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise RecordError("bad_value", "'metadata' is not JSON text", turns.preview(value)) from None
    return {key: turns.to_plain_json(item) for key, item in value.items()} if isinstance(value, dict) else {}


def dump(conversation: Conversation) -> dict[str, object]:
    """Write a conversation with every field of every message."""
    return {
        "id": conversation.source_id,
        "source_id": conversation.source_id,
        "piece": None,
        "messages": [_plain(message) for message in conversation.messages],
        "tools": conversation.tools,
        "rejected_answer": [_plain(message) for message in conversation.rejected_answer] or None,
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
        "reasoning": message.reasoning,
        "train_reasoning": message.train_reasoning,
        "tool_call_id": message.tool_call_id,
        "extra": message.extra,
    }


FORMAT = Format(NAME, SUMMARY, recognises, parse, dump)
