"""OpenAI's chat records: `messages` of {role, content, name?, tool_calls?, weight?}."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from curate.errors import RecordError
from curate.schemas import writing
from curate.schemas.conversation import Conversation, Message
from curate.schemas.formats.datasets import turn_lists
from curate.schemas.reading import record_keys, turns

NAME = "openai"
SUMMARY = "OpenAI's fine-tuning lines: {messages: [{role, content, tool_calls, weight}]}; Hugging Face's chat form too."

LACKS = ("rejected_answer",)
_USED = frozenset({"id", "messages"})


def recognises(record: Mapping[str, object]) -> bool:
    """Return whether a record has OpenAI's list of messages."""
    return bool(record.get("messages"))


def parse(record: Mapping[str, object]) -> Conversation:
    """Read one record; raises RecordError if its meaning is not clear."""
    conversation = Conversation(None, [])
    conversation.source_id = turns.read_source_id(conversation, record.get("id"))
    value = record["messages"]
    if value.__class__ is not list or not value:
        value = record_keys.read_turn_list(conversation, value, "messages")
    if turn_lists.has_other_turns(value):
        value = turn_lists.expand_turns(value)
    turns.read_messages(conversation, value, "role", "content")
    if len(record) > 1:
        turns.read_other_keys(conversation, record, _USED)
    return conversation


def dump(conversation: Conversation) -> dict[str, object]:
    """Write a conversation; raises RecordError for an answer that was cut off, which the format cannot express."""
    record: dict[str, object] = {} if conversation.source_id is None else {"id": conversation.source_id}
    record["messages"] = messages = []
    ids = call_ids(conversation.messages)
    for index, message in enumerate(conversation.messages):
        if not message.stop:
            raise RecordError("not_representable", f"message {index} was cut off, which the format cannot express")
        messages.append(_message(message, ids[index]))
    if conversation.tools is not None:
        record["tools"] = json.loads(conversation.tools)
    return writing.add_metadata(record, conversation)


def _message(message: Message, call_id: str) -> dict[str, object]:
    turn: dict[str, object] = {"role": message.role, "content": message.content}
    if message.tool_calls is not None and not message.content:
        turn["content"] = None
    if message.role == "assistant" and not message.train:
        turn["weight"] = 0
    writing.add_turn_keys(turn, message)
    if call_id:
        turn.setdefault("tool_call_id", call_id)
    return turn


def call_ids(messages: Sequence[Message]) -> list[str]:
    """Return the id of the tool call that each message answers; empty if it answers none, or one without an id.

    A tool's message answers the first open call of its name, or else the first open call.
    """
    ids: list[str] = []
    open_calls: list[tuple[str, str]] = []  # (id, name) of calls without a result so far
    for message in messages:
        ids.append("")
        if message.tool_calls is not None and turns.is_json_list(message.tool_calls):
            open_calls = [_call_key(call) for call in json.loads(message.tool_calls)]
        if message.role == "tool" and open_calls:
            index = next((i for i, (_, name) in enumerate(open_calls) if name == message.name), 0)
            ids[-1] = open_calls.pop(index)[0]
    return ids


def _call_key(call: object) -> tuple[str, str]:
    """Return a call's id and the name of its function; empty for what is missing."""
    if not isinstance(call, dict):
        return "", ""
    function = call.get("function")
    name = function.get("name") if isinstance(function, dict) else None
    return str(call.get("id") or ""), str(name or "")
