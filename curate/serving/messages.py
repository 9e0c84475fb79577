"""The messages and tools of a chat request, as the conversation that is rendered."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from curate.schemas.conversation import Conversation, Message, Role
from curate.schemas.reading.tool_calls import read_tools
from curate.serving.errors import ApiError, too_deep

_ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
}
_KEYS = {"role", "content", "name", "tool_calls", "tool_call_id", "reasoning_content"}
_EMPTY: tuple[object, ...] = (None, "", [], {})


def read_messages(values: Sequence[Mapping[str, Any]]) -> list[Message]:
    """Return the messages of a request; raises ApiError for one that cannot be rendered as it is."""
    if not values:
        raise ApiError("messages is empty", param="messages")
    messages = [_message(value, f"messages[{index}]") for index, value in enumerate(values)]
    if messages[-1].role not in ("user", "tool"):
        raise ApiError("the last message must be of user or tool, for the model to answer", param="messages")
    return messages


def _message(value: Mapping[str, Any], place: str) -> Message:
    role = _ROLES.get(value["role"]) if isinstance(value.get("role"), str) else None
    if role is None:
        raise ApiError(f"{place}.role must be one of {', '.join(_ROLES)}", param=f"{place}.role")
    for key, item in value.items():
        if key not in _KEYS and item not in _EMPTY:
            name = f"{place}.{key[:100]}"
            raise ApiError(f"{name} is not supported here", param=name, code="unsupported_parameter")
    calls = _calls(value, place) if role == "assistant" else None
    return Message(
        role,
        _content(value.get("content"), f"{place}.content", may_be_null=calls is not None),
        name=_text(value, "name", place),
        tool_calls=calls,
        reasoning=_text(value, "reasoning_content", place) if role == "assistant" else None,
        tool_call_id=_text(value, "tool_call_id", place) if role == "tool" else None,
    )


def _content(value: object, place: str, *, may_be_null: bool) -> str:
    """Return a message's text: a text, or a list of parts that are texts."""
    if value is None and may_be_null:
        return ""
    if isinstance(value, str):
        return value
    if not isinstance(value, list) or not value:
        raise ApiError(f"{place} must be a text, or a list of parts", param=place)
    return "".join(_part(part, f"{place}[{index}]") for index, part in enumerate(value))


def _part(part: object, place: str) -> str:
    if not isinstance(part, dict) or not isinstance(part.get("type"), str):
        raise ApiError(f"{place} must be an object with a type", param=place)
    if part["type"] != "text":
        raise ApiError(
            f"{place} is {part['type'][:40]!r}; only text is supported", param=place, code="unsupported_parameter"
        )
    if not isinstance(part.get("text"), str):
        raise ApiError(f"{place}.text must be a text", param=f"{place}.text")
    return str(part["text"])


def _text(value: Mapping[str, Any], key: str, place: str) -> str | None:
    found = value.get(key)
    if found is not None and not isinstance(found, str):
        raise ApiError(f"{place}.{key} must be a text", param=f"{place}.{key}")
    return found or None


def _calls(value: Mapping[str, Any], place: str) -> str | None:
    """Return the calls of an earlier answer as JSON text."""
    calls, name = value.get("tool_calls"), f"{place}.tool_calls"
    if calls in _EMPTY:
        return None
    if not isinstance(calls, list) or not all(map(_is_call, calls)):
        raise ApiError(f"{name} must be a list of calls of functions, with their arguments as text", param=name)
    try:
        return json.dumps(calls, ensure_ascii=False)
    except RecursionError:
        raise too_deep(name) from None


def _is_call(call: object) -> bool:
    function = call.get("function") if isinstance(call, dict) and call.get("type", "function") == "function" else None
    return (
        isinstance(function, dict)
        and isinstance(function.get("name"), str)
        and isinstance(function.get("arguments"), str)
    )


def read_definitions(tools: Sequence[Mapping[str, Any]]) -> str:
    """Return the definitions of tools as JSON text; raises ApiError for what is none."""
    for index, tool in enumerate(tools):
        read_function(tool, index)
    try:
        definitions = read_tools(Conversation(None, []), json.dumps(tools, ensure_ascii=False))
    except RecursionError:
        raise too_deep("tools") from None
    if definitions is None:
        raise ApiError("tools holds no definitions of functions", param="tools")
    return definitions


def read_function(tool: Mapping[str, Any], index: int) -> Mapping[str, Any]:
    """Return the function of a tool; raises ApiError for what is none."""
    function, place = tool.get("function"), f"tools[{index}]"
    if tool.get("type") != "function" or not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise ApiError(f"{place} must be a function with a name", param=place)
    if not isinstance(function.get("parameters"), dict | None):
        raise ApiError(f"{place}.function.parameters must be an object", param=f"{place}.function.parameters")
    return function
