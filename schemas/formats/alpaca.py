"""Alpaca's records: an instruction, an optional input, and an output."""

from __future__ import annotations

from collections.abc import Mapping

from curate.errors import RecordError
from curate.schemas.conversation import Conversation, Message, Role
from curate.schemas.formats import pairs
from curate.schemas.prompts import INPUT_MARK
from curate.schemas.reading import turns
from curate.schemas.reading.key_kinds import has_content

NAME = "alpaca"
SUMMARY = "Alpaca's single exchanges: {instruction, input, output}; `system` and `history` are read too."

_USED = frozenset({"id", "instruction", "input", "output", "history"})


def recognises(record: Mapping[str, object]) -> bool:
    """Return whether a record has an instruction and an output."""
    return "instruction" in record and "output" in record


def parse(record: Mapping[str, object]) -> Conversation:
    """Read one record; the input is appended to the instruction, after the heading of Alpaca's prompt."""
    conversation = Conversation(None, [])
    conversation.source_id = turns.read_source_id(conversation, record.get("id"))
    pairs.read_history(conversation, record.get("history"))
    _add(conversation, "user", record["instruction"])
    value = record.get("input")
    if has_content(value) or value == 0:
        pairs.append_input(conversation, value)
    elif value not in (None, ""):  # "nan" and "None" are what tables write for nothing
        conversation.edit("empty_value", len(conversation.messages) - 1, turns.preview(value), "")
    turns.refuse_alternatives(record["output"], len(conversation.messages))
    _add(conversation, "assistant", record["output"])
    turns.read_other_keys(conversation, record, _USED if record.get("system") else _USED | {"system"})
    return conversation


def _add(conversation: Conversation, role: Role, value: object) -> None:
    text = turns.read_text(conversation, value, len(conversation.messages))
    conversation.messages.append(Message(role, text))


def dump(conversation: Conversation) -> dict[str, object]:
    """Write a single exchange; raises RecordError for what the format cannot express."""
    messages = conversation.messages
    system = messages[0].content if messages and messages[0].role == "system" else None
    roles = [message.role for message in messages[system is not None :]]
    if roles != ["user", "assistant"]:
        raise RecordError("not_representable", f"{len(messages)} messages; the format has one prompt and one answer")
    prompt, answer = messages[-2:]
    if answer.tool_calls is not None or not (answer.train and answer.stop):
        raise RecordError("not_representable", "the answer calls a tool, was cut, or is not to be trained on")
    record: dict[str, object] = {} if conversation.source_id is None else {"id": conversation.source_id}
    instruction, _, text = prompt.content.partition(INPUT_MARK)
    if not (instruction and text):
        instruction, text = prompt.content, ""
    record |= {"instruction": instruction, "input": text, "output": answer.content}
    if system is not None:
        record["system"] = system
    return turns.add_metadata(record, conversation)
