"""ShareGPT's records: `conversations` (dumps) or `items` (its API) of turns {from, value}."""

from __future__ import annotations

from collections.abc import Mapping

from curate.schemas import writing
from curate.schemas.conversation import Conversation, Message, Role
from curate.schemas.formats.datasets import turn_lists
from curate.schemas.formats.format import Format
from curate.schemas.prompts import fold_reasoning
from curate.schemas.reading import record_keys, turns

NAME = "sharegpt"
SUMMARY = "ShareGPT dumps: {id, conversations: [{from: human|gpt|system|tool, value}]}; `items` is read too."

KEYS = ("conversations", "items")
LACKS = ("rejected_answer",)
NAMES: dict[Role, str] = {"user": "human", "assistant": "gpt", "system": "system", "tool": "tool"}
_USED = {key: frozenset({"id", key}) for key in KEYS}


def recognises(record: Mapping[str, object]) -> bool:
    """Return whether a record has ShareGPT's list of turns."""
    return bool(record.get("conversations") or record.get("items"))


def parse(record: Mapping[str, object]) -> Conversation:
    """Read one record; raises RecordError if its meaning is not clear."""
    conversation = Conversation(None, [])
    conversation.source_id = turns.read_source_id(conversation, record.get("id"))
    key = KEYS[0] if record.get(KEYS[0]) else KEYS[1]
    value = record[key]
    if value.__class__ is not list or not value:
        value = record_keys.read_turn_list(conversation, value, key)
    if turn_lists.has_other_turns(value):
        value = turn_lists.read_other_turns(conversation, value)
    turns.read_messages(conversation, value, "from", "value")
    if len(record) > 2 or "id" not in record:
        turns.read_other_keys(conversation, record, _USED[key])
    return conversation


def dump(conversation: Conversation) -> dict[str, object]:
    """Write a conversation; turns have keys besides `from` and `value` only where needed, such as weight and stop."""
    record: dict[str, object] = {} if conversation.source_id is None else {"id": conversation.source_id}
    record["conversations"] = [_turn(message) for message in conversation.messages]
    if conversation.tools is not None:
        record["tools"] = conversation.tools  # as text, which LLaMA-Factory expects
    return writing.add_metadata(record, conversation)


def _turn(message: Message) -> dict[str, object]:
    if message.train_reasoning and "</think>" not in (message.reasoning or ""):
        message = fold_reasoning(message)
    turn: dict[str, object] = {"from": NAMES[message.role], "value": message.content}
    if not message.train:
        turn["weight"] = 0
    if not message.stop:
        turn["stop"] = False
    writing.add_turn_keys(turn, message)
    return turn


FORMAT = Format(
    NAME,
    SUMMARY,
    recognises,
    parse,
    dump,
    lacks=LACKS,
    requires=("conversations",),
    turn_keys=frozenset({"from", "value"}),
)
