"""Alpaca's records: one instruction, perhaps an input, and its output."""

from __future__ import annotations

from collections.abc import Mapping

from curate.errors import RecordError
from curate.schemas import read_turns
from curate.schemas.conversation import Conversation, Message, Role
from curate.schemas.prompts import INPUT_MARK

NAME = "alpaca"
SUMMARY = "Alpaca's single exchanges: {instruction, input, output}; `system` and `history` are read too."

_USED = frozenset({"id", "instruction", "input", "output", "system", "history"})


def recognises(record: Mapping[str, object]) -> bool:
    """Tell whether the record holds an instruction with its output."""
    return "instruction" in record and "output" in record


def parse(record: Mapping[str, object]) -> Conversation:
    """Read one record: the input stands under the instruction, after the mark that Alpaca's prompt has."""
    conversation = Conversation(None, [])
    conversation.source_id = read_turns.source_id(conversation, record.get("id"))
    if record.get("system"):
        _add(conversation, "system", record["system"])
    for prompt, answer in _history(record.get("history")):
        _add(conversation, "user", prompt)
        _add(conversation, "assistant", answer)
    _add(conversation, "user", record["instruction"])
    if record.get("input") not in (None, ""):
        prompt = conversation.messages[-1]
        given = read_turns.text_of(conversation, record["input"], len(conversation.messages) - 1)
        prompt.content = f"{prompt.content}{INPUT_MARK}{given}" if prompt.content else given
    _add(conversation, "assistant", record["output"])
    read_turns.describe(conversation, record, _USED)
    return conversation


def _add(conversation: Conversation, role: Role, value: object) -> None:
    text = read_turns.text_of(conversation, value, len(conversation.messages))
    conversation.messages.append(Message(role, text))


def _history(value: object) -> list[list[object]]:
    """Return the earlier exchanges, pairs of prompt and answer."""
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in value):
        raise RecordError("bad_turn", "'history' is not a list of pairs of prompt and answer", read_turns.show(value))
    return value


def dump(conversation: Conversation) -> dict[str, object]:
    """Write a single exchange; raises RecordError for what the form cannot hold."""
    messages = conversation.messages
    system = messages[0].content if messages and messages[0].role == "system" else None
    roles = [message.role for message in messages[system is not None :]]
    if roles != ["user", "assistant"]:
        raise RecordError("not_representable", f"{len(messages)} messages; the form holds one prompt and one answer")
    prompt, answer = messages[-2:]
    if answer.tool_calls is not None or not (answer.train and answer.stop):
        raise RecordError("not_representable", "the answer calls a tool, was cut, or is not to be trained on")
    record: dict[str, object] = {} if conversation.source_id is None else {"id": conversation.source_id}
    instruction, _, given = prompt.content.partition(INPUT_MARK)
    if not (instruction and given):
        instruction, given = prompt.content, ""
    record |= {"instruction": instruction, "input": given, "output": answer.content}
    if system is not None:
        record["system"] = system
    return read_turns.with_metadata(record, conversation)
