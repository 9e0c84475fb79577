"""Alpaca's records: an instruction, an optional input, and an output."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from curate.errors import RecordError
from curate.schemas import writing
from curate.schemas.conversation import Conversation, Message, Role
from curate.schemas.formats import pairs
from curate.schemas.formats.format import Format
from curate.schemas.prompts import INPUT_MARK, fold_reasoning
from curate.schemas.reading import turns
from curate.schemas.reading.key_kinds import has_content
from curate.schemas.writing import WriteOptions

NAME = "alpaca"
SUMMARY = "Alpaca's single exchanges: {instruction, input, output}; `system` and `history` are read too."

LACKS = ("name", "tool_call_id", "extra", "tools", "rejected_answer")
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
    index = len(conversation.messages)
    conversation.messages.append(Message(role, turns.read_text(conversation, value, index)))
    turns.read_marks(conversation, index)


def dump(conversation: Conversation, *, history: bool = False) -> dict[str, object]:
    """Write a single exchange, or with `history` also those before it, as pairs.

    Raises RecordError for what the format cannot express.
    """
    messages = list(map(fold_reasoning, conversation.messages))
    system = messages[0].content if messages and messages[0].role == "system" else None
    turns_of_chat = messages[system is not None :]
    writing.refuse(replace(conversation, messages=messages))
    roles = [message.role for message in turns_of_chat]
    if not roles or roles != ["user", "assistant"] * (len(roles) // 2):
        raise RecordError(writing.RULE, f"{len(messages)} messages; the format has prompts, each with an answer")
    if len(roles) > 2 and not history:
        reason = f"{len(messages)} messages; the format has one prompt and one answer; --history keeps those before it"
        raise RecordError(writing.RULE, reason)
    record: dict[str, object] = {} if conversation.source_id is None else {"id": conversation.source_id}
    prompt, answer = turns_of_chat[-2:]
    instruction, _, text = prompt.content.partition(INPUT_MARK)
    if not (instruction and text):
        instruction, text = prompt.content, ""
    record |= {"instruction": instruction, "input": text, "output": answer.content}
    if system is not None:
        record["system"] = system
    if history:
        earlier = [message.content for message in turns_of_chat[:-2]]
        record["history"] = [list(pair) for pair in zip(earlier[::2], earlier[1::2], strict=True)]
    return writing.add_metadata(record, conversation)


def dump_all(conversation: Conversation, options: WriteOptions) -> list[dict[str, object]]:
    """Write a conversation as one record."""
    return [dump(conversation, history=options.history)]


FORMAT = Format(
    NAME,
    SUMMARY,
    recognises,
    parse,
    dump,
    dump_all=dump_all,
    lacks=LACKS,
    requires=("instruction", "output"),
)
