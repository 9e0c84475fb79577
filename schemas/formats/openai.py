"""OpenAI's chat records: `messages` of {role, content, name?, tool_calls?, weight?}."""

from __future__ import annotations

import json
from collections.abc import Mapping

from curate.errors import RecordError
from curate.schemas import writing
from curate.schemas.conversation import Conversation, Message
from curate.schemas.formats.datasets import turn_lists
from curate.schemas.formats.format import Format
from curate.schemas.reading import record_keys, turns
from curate.schemas.reading.tool_calls import call_ids

NAME = "openai"
SUMMARY = (
    "OpenAI's fine-tuning lines: {tools, messages: [{role, content, reasoning_content, tool_calls, weight}]}; "
    "Hugging Face's chat form too."
)

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
        value = turn_lists.read_other_turns(conversation, value)
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
    if not message.train:
        turn["weight"] = 0
    writing.add_turn_keys(turn, message)
    if call_id:
        turn.setdefault("tool_call_id", call_id)
    return turn


FORMAT = Format(
    NAME,
    SUMMARY,
    recognises,
    parse,
    dump,
    lacks=LACKS,
    requires=("messages",),
    turn_keys=frozenset({"role", "content"}),
)
