"""OpenAI's Responses API: `input` and `output` items (messages, reasoning, calls and their results).

A stored response alone has no prompt; a log of requests has the response's items beside or within the request's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from curate.errors import RecordError
from curate.schemas.conversation import Conversation
from curate.schemas.formats.format import Format
from curate.schemas.reading import turns
from curate.schemas.reading.key_kinds import has_content

NAME = "responses"
SUMMARY = (
    "OpenAI's Responses API: {instructions, input: text or items, output: [{type: message|reasoning|function_call}]}."
)

Turn = dict[str, object]
CALLS = ("function_call", "custom_tool_call")
RESULTS = ("function_call_output", "custom_tool_call_output")
_USED = ("input", "output", "instructions", "output_text")


def recognises(record: Mapping[str, object]) -> bool:
    """Return whether a record has output or input items of the Responses API."""
    return record.get("object") == "response" or _is_items(record.get("output")) or _is_items(record.get("input"))


def _is_items(value: object) -> bool:
    """Return whether a value is a list of items, at least one of which names a type of the Responses API."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(item, dict) for item in value)
        and any(item.get("type") in ("message", "reasoning", *CALLS, *RESULTS) for item in value)
    )


def parse(record: Mapping[str, object]) -> Conversation:
    """Read one response with its input; raises RecordError if it has no input, or if its meaning is not clear."""
    conversation = Conversation(None, [])
    if previous := record.get("previous_response_id"):
        reason = "the response continues another (`previous_response_id`), whose messages the record does not have"
        raise RecordError("no_messages", reason, turns.preview(previous))
    if not has_content(record.get("input")):
        reason = "the response has no 'input': store the request beside it"
        raise RecordError("no_messages", reason, turns.preview(record.get("output")))
    conversation.source_id = turns.read_source_id(conversation, record.get("id"))
    items = [*_items(record["input"], "input"), *_items(record.get("output") or [], "output")]
    chat = list(_turns(items))
    if record.get("status") == "incomplete" and chat and chat[-1]["role"] == "assistant":
        chat[-1]["stop"] = False
    turns.read_messages(conversation, chat, "role", "content")
    others = {key: value for key, value in record.items() if key not in _USED}
    if has_content(record.get("instructions")):
        others["system"] = record["instructions"]
    turns.read_other_keys(conversation, others, frozenset({"id"}))
    return conversation


def _items(value: object, key: str) -> list[Turn]:
    """Return a list of items; a text is a message of the user or of the assistant."""
    if isinstance(value, str):
        return [{"role": "user" if key == "input" else "assistant", "content": value}]
    if not isinstance(value, list):
        reason = f"{key!r} is {turns.describe_type(value)}, not text or items"
        raise RecordError("no_messages", reason, turns.preview(value))
    for number, item in enumerate(value):
        if not isinstance(item, dict):
            raise RecordError("bad_turn", f"{key} item {number} is {turns.describe_type(item)}, not an object")
    return value


def _turns(items: Sequence[Mapping[str, object]]) -> Iterator[Turn]:
    """Yield the items' turns in OpenAI's chat form: reasoning and calls join the assistant's turn that has them."""
    turn: Turn = {}  # of the assistant, not yet complete
    for item in items:
        kind = str(item.get("type", "message"))
        is_assistant = kind not in RESULTS and (kind != "message" or item.get("role") == "assistant")
        is_complete = "content" in turn or "tool_calls" in turn
        if turn and (not is_assistant or (is_complete and kind in ("message", "reasoning"))):
            yield turn
            turn = {}
        if is_assistant:
            turn = turn or {"role": "assistant"}
            _add(turn, item, kind)
        elif kind in RESULTS:
            result: Turn = {"role": "tool", "tool_call_id": item.get("call_id"), "content": item.get("output")}
            rest = _without(item, "type", "call_id", "output")
            yield {**result, "result_item": rest} if rest else result
        else:
            yield _without(item, "type")
    if turn:
        yield turn


def _add(turn: Turn, item: Mapping[str, object], kind: str) -> None:
    """Add an item to the assistant's turn; one of a tool that OpenAI runs itself stays a key of the turn."""
    if kind == "message":
        turn |= _without(item, "type")
    elif kind == "reasoning":
        texts = [str(turn.get("reasoning_content", "")), _reasoning(item)]
        turn["reasoning_content"] = "\n\n".join(filter(None, texts))
        _append(turn, "reasoning_items", _rest_of_reasoning(item))
    elif kind in CALLS:
        key = "arguments" if "arguments" in item else "input"
        function = {"name": item.get("name"), "arguments": item.get(key, "")}
        _append(turn, "tool_calls", {"id": item.get("call_id"), "type": "function", "function": function})
        _append(turn, "call_items", _without(item, "type", "call_id", "name", key))
        turn.setdefault("content", None)
    else:
        _append(turn, "hosted_tools", dict(item))


def _append(turn: Turn, key: str, value: Turn) -> None:
    """Append a value, unless it is empty, to the list under a key of a turn."""
    if value:
        values = turn.setdefault(key, [])
        assert isinstance(values, list)
        values.append(value)


def _rest_of_reasoning(item: Mapping[str, object]) -> Turn:
    """Return the keys of a reasoning item that its text does not hold."""
    rest = _without(item, "type", "summary", "content")
    for key in ("summary", "content"):
        parts = item.get(key)
        is_text = isinstance(parts, list) and all(isinstance(p, dict) and p.keys() <= {"type", "text"} for p in parts)
        if has_content(parts) and not is_text:
            rest[key] = parts
    return rest


def _reasoning(item: Mapping[str, object]) -> str:
    """Return the text of a reasoning item: its content, or else its summary."""
    for key in ("content", "summary"):
        parts = item.get(key)
        if isinstance(parts, list):
            texts = [part.get("text") for part in parts if isinstance(part, dict)]
            if text := "\n\n".join(text for text in texts if isinstance(text, str) and text):
                return text
    return ""


def _without(item: Mapping[str, object], *keys: str) -> Turn:
    return {key: value for key, value in item.items() if key not in keys}


FORMAT = Format(NAME, SUMMARY, recognises, parse, writes=False)
