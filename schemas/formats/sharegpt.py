"""ShareGPT's records: `conversations` (dumps) or `items` (its API) of turns {from, value}."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby

from curate.schemas import writing
from curate.schemas.conversation import Conversation, Message, Role
from curate.schemas.formats.datasets import turn_lists
from curate.schemas.formats.format import Format
from curate.schemas.prompts import fold_reasoning
from curate.schemas.reading import record_keys, turns
from curate.schemas.reading.turn import parts
from curate.schemas.reading.values import decode_json, to_json_line

NAME = "sharegpt"
SUMMARY = (
    "ShareGPT dumps: {id, conversations: [{from: human|gpt|system|function_call|observation, value}]}; `items` too."
)

KEYS = ("conversations", "items")
LACKS = ("rejected_answer",)
NAMES: dict[Role, str] = {"user": "human", "assistant": "gpt", "system": "system", "tool": "observation"}
CALL = "function_call"  # the name of an answer that calls tools
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
    """Write a conversation; turns have keys besides `from` and `value` only where needed, such as weight and stop.

    Calls and results of tools have the turns of LLaMA-Factory: `function_call`, a call or a list of calls as JSON, and
    `observation`. Results in a row are one turn, joined as LLaMA-Factory does, with each beside it (`results`).
    """
    record: dict[str, object] = {} if conversation.source_id is None else {"id": conversation.source_id}
    record["conversations"] = list(_turns(conversation.messages))
    if conversation.tools is not None:
        record["tools"] = conversation.tools  # as text, which LLaMA-Factory expects
    return writing.add_metadata(record, conversation)


def _turns(messages: Sequence[Message]) -> Iterator[dict[str, object]]:
    for is_result, group in groupby(messages, key=lambda message: message.role == "tool"):
        turns_of_group = [_turn(message) for message in group]
        if is_result and len(turns_of_group) > 1:
            text = parts.RESULTS_JOIN.join(str(turn["value"]) for turn in turns_of_group)
            results = [{key: value for key, value in turn.items() if key != "from"} for turn in turns_of_group]
            yield {"from": NAMES["tool"], "value": text, "results": results}
        else:
            yield from turns_of_group


def _turn(message: Message) -> dict[str, object]:
    calls = _call_value(message)
    text = message.content
    if calls is not None:
        message = replace(message, content=calls)
    if message.train_reasoning and "</think>" not in (message.reasoning or ""):
        message = fold_reasoning(message)
    turn: dict[str, object] = {"from": NAMES[message.role] if calls is None else CALL, "value": message.content}
    if calls is not None and text:
        turn["content"] = text
    if not message.train:
        turn["weight"] = 0
    if not message.stop:
        turn["stop"] = False
    writing.add_turn_keys(turn, message)
    return turn


def _call_value(message: Message) -> str | None:
    """Return the calls of an answer as LLaMA-Factory's text of a turn; None if there are none, or of another kind."""
    if message.tool_calls is None:
        return None
    functions = [_function(call) for call in json.loads(message.tool_calls)]
    if None in functions or not functions:
        return None
    return to_json_line(functions[0] if len(functions) == 1 else functions)


def _function(call: object) -> dict[str, object] | None:
    function = call.get("function") if isinstance(call, dict) else None
    arguments = function.get("arguments") if isinstance(function, dict) else None
    value = decode_json(arguments) if isinstance(arguments, str) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not isinstance(value, dict):
        return None
    return {"name": function["name"], "arguments": value}


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
