"""OpenAI's chat records: `messages` of {role, content, name?, tool_calls?, weight?}."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from curate.errors import RecordError
from curate.schemas import read_turns
from curate.schemas.conversation import Conversation, Message

NAME = "openai"
SUMMARY = "OpenAI's fine-tuning lines: {messages: [{role, content, tool_calls, weight}]}; Hugging Face's chat form too."

_USED = frozenset({"id", "messages"})


def recognises(record: Mapping[str, object]) -> bool:
    """Tell whether the record holds OpenAI's list of messages."""
    return record.get("messages") is not None


def parse(record: Mapping[str, object]) -> Conversation:
    """Read one record; raises RecordError where its meaning is not clear."""
    conversation = Conversation(None, [])
    conversation.source_id = read_turns.source_id(conversation, record.get("id"))
    value = record["messages"]
    if value.__class__ is not list or not value:
        value = read_turns.turns_in(conversation, value, "messages")
    read_turns.read(conversation, value, "role", "content")
    if len(record) > 1:
        read_turns.describe(conversation, record, _USED)
    return conversation


def dump(conversation: Conversation) -> dict[str, object]:
    """Write a conversation; raises RecordError for an answer that was cut, since the form always teaches the end."""
    record: dict[str, object] = {} if conversation.source_id is None else {"id": conversation.source_id}
    record["messages"] = messages = []
    answered = call_ids(conversation.messages)
    for index, message in enumerate(conversation.messages):
        if not message.stop:
            raise RecordError("not_representable", f"message {index} was cut, and this form cannot say so")
        messages.append(_message(message, answered[index]))
    return read_turns.with_metadata(record, conversation)


def _message(message: Message, call_id: str) -> dict[str, object]:
    turn: dict[str, object] = {"role": message.role, "content": message.content}
    if message.name is not None:
        turn["name"] = message.name
    if message.tool_calls is not None:
        turn["tool_calls"] = json.loads(message.tool_calls)
        if not message.content:
            turn["content"] = None
    if call_id:
        turn["tool_call_id"] = call_id
    if message.role == "assistant" and not message.train:
        turn["weight"] = 0
    return turn


def call_ids(messages: Sequence[Message]) -> list[str]:
    """Return the id of the call that each message answers, empty where it answers none that has one.

    A tool's message answers the call of its name that is open, else the first that is.
    """
    found: list[str] = []
    open_calls: list[tuple[str, str]] = []  # (id, name) of calls whose results have not come yet
    for message in messages:
        found.append("")
        if message.tool_calls is not None and read_turns.is_calls(message.tool_calls):
            open_calls = [_call_key(call) for call in json.loads(message.tool_calls)]
        if message.role == "tool" and open_calls:
            at = next((at for at, (_, name) in enumerate(open_calls) if name == message.name), 0)
            found[-1] = open_calls.pop(at)[0]
    return found


def _call_key(call: object) -> tuple[str, str]:
    """Return a call's id and the name of its function, empty where it has none."""
    if not isinstance(call, dict):
        return "", ""
    function = call.get("function")
    name = function.get("name") if isinstance(function, dict) else None
    return str(call.get("id") or ""), str(name or "")
