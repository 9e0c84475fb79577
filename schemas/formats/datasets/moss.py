"""MOSS's records: turns with inner thoughts, commands to tools and their results, each text between marks."""

from __future__ import annotations

import re
from collections.abc import Mapping

from curate.errors import RecordError
from curate.schemas.conversation import Conversation
from curate.schemas.formats.datasets.marked_text import Dialect
from curate.schemas.formats.format import Format
from curate.schemas.reading import turns

NAME = "moss"
SUMMARY = "MOSS: {meta_instruction, chat: {turn_1: {Human, 'Inner Thoughts', Commands, MOSS, …}}}, or {plain_text}."

KEYS = ("chat", "conversation")
TEXT = Dialect(
    NAME,
    SUMMARY,
    re.compile(r"(?:<\||\[)(Human|MOSS)(?:\|>|\]): ?"),
    hint="Human",
    ends=("<eoh>", "<eoa>", "<eom>"),
)
_MARK = re.compile(r"\A\s*<\|[^|>]+\|>:[ \t]?")
_END = re.compile(r"\s*<eo[a-z]>\s*\Z")
_CALL = re.compile(r"\s*(\w+)\((.*?)\)\s*(?:,|\Z)", re.DOTALL)
NOTHING = ("None", "None.")
_RESULTS = ("Tool Responses", "Results")
_NAMES = ("Human", "Inner Thoughts", "Commands", *_RESULTS, "MOSS")

Record = Mapping[str, object]


def recognises(record: Record) -> bool:
    """Return whether a record has MOSS's turns, or its text."""
    return _key(record) is not None or TEXT.recognises(record)


def parse(record: Record) -> Conversation:
    """Read one record; raises RecordError if its meaning is not clear."""
    instruction = record.get("meta_instruction")
    if isinstance(instruction, str) and instruction.strip() and "system" not in record:
        record = {**{key: value for key, value in record.items() if key != "meta_instruction"}, "system": instruction}
    key = _key(record)
    if key is None:
        return TEXT.parse(record)
    conversation = Conversation(None, [])
    id_key = "conversation_id" if "conversation_id" in record else "id"
    conversation.source_id = turns.read_source_id(conversation, record.get(id_key))
    items = [turn for name, item in _numbered(record[key]) for turn in _expand(item, name)]
    turns.read_messages(conversation, items, "role", "content")
    turns.read_other_keys(conversation, record, frozenset({key, id_key}))
    return conversation


def _key(record: Record) -> str | None:
    return next((key for key in KEYS if isinstance(value := record.get(key), dict) and "turn_1" in value), None)


def _numbered(value: object) -> list[tuple[str, object]]:
    """Return the turns by number; raises RecordError for a key that is no turn's, or a number that is missing."""
    assert isinstance(value, dict)
    names = [f"turn_{number}" for number in range(1, len(value) + 1)]
    if missing := [name for name in names if name not in value]:
        raise RecordError(
            "bad_turn", f"{missing[0]!r} is missing among {turns.quote_keys(list(value))}", turns.preview(value)
        )
    return [(name, value[name]) for name in names]


def _expand(item: object, name: str) -> list[dict[str, object]]:
    """Return the messages of one turn: the prompt, the calls of tools with their results, and the answer."""
    if not isinstance(item, dict) or not {"Human", "MOSS"} <= item.keys():
        raise RecordError("bad_turn", f"{name!r} has no 'Human' and 'MOSS'", turns.preview(item))
    texts = {key: _text(item[key], f"{name}.{key}") for key in _NAMES if key in item}
    others = {key: value for key, value in item.items() if key not in _NAMES}
    thoughts = {"reasoning_content": texts["Inner Thoughts"]} if texts.get("Inner Thoughts") else {}
    items: list[dict[str, object]] = [{"role": "user", "content": texts["Human"]}]
    if commands := texts.get("Commands"):
        items.append({"role": "assistant", "content": "", **thoughts, "tool_calls": _calls(commands, name)})
        items += [{"role": "tool", "content": texts[key]} for key in _RESULTS if texts.get(key)]
        thoughts = {}
    return [*items, {"role": "assistant", "content": texts["MOSS"], **thoughts, **others}]


def _text(value: object, name: str) -> str:
    """Return a text without its marks; `None` between the marks is nothing."""
    if not isinstance(value, str):
        raise RecordError("bad_value", f"{name!r} is {turns.describe_type(value)}, not text", turns.preview(value))
    text = _END.sub("", _MARK.sub("", value)).strip()
    return "" if text in NOTHING else text


def _calls(commands: str, name: str) -> list[dict[str, object]]:
    """Return the calls in a text such as `Search("tea"), Calculate("2*3")`; a call's argument is named `input`."""
    calls: list[dict[str, object]] = []
    position = 0
    commands = re.sub(r",\s*None\.?\Z", "", commands)
    while position < len(commands):
        match = _CALL.match(commands, position)
        if match is None:
            raise RecordError("bad_value", f'the commands of {name!r} are not calls such as Search("tea")', commands)
        arguments = turns.to_json_line({"input": match[2].strip().removeprefix('"').removesuffix('"')})
        calls.append({"type": "function", "function": {"name": match[1], "arguments": arguments}})
        position = match.end()
    return calls


FORMATS = (
    Format(
        NAME,
        SUMMARY,
        recognises,
        parse,
        writes=False,
        requires=("meta_instruction", "num_turns", "chat"),
        holds="an object with turn_1, turn_2, …",
    ),
)
