"""How a dump's turns are read: roles, texts, ids and other keys, mended where the meaning is clear.

Every mend is noted as an edit of the conversation. Where the meaning is not clear, RecordError says
why. The formats share this; a format only knows which keys its records have.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence

from curate.errors import RecordError
from curate.schemas.conversation import Conversation, Message, Role

Number = int | float

ROLE_KEYS = ("from", "role")
TEXT_KEYS = ("value", "content", "text")
SYSTEM_KEYS = ("system", "system_prompt")  # beside the turns, as LLaMA-Factory, OpenHermes and Anthropic write it
UNTRAINED_KEYS = ("weight", "train", "loss", "learn")  # OpenAI, and three that trainers read; 0 or false: no loss
MAX_DEPTH = 64  # levels of lists and objects kept in metadata; real ones have fewer than ten
MAX_INT = 2**63 - 1  # what JSON readers hold without rounding
MAX_EVIDENCE = 200

# The two formats' own names: read without a note.
STANDARD: dict[str, Role] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
    "developer": "system",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
}
ALIASES: dict[str, Role] = {
    **dict.fromkeys(("prompter", "customer", "person", "questioner", "asker", "instruction", "question"), "user"),
    **dict.fromkeys(("chatgpt", "bing", "bard", "claude", "gemini", "llama", "gpt4", "vicuna", "alpaca"), "assistant"),
    **dict.fromkeys(("model", "ai", "bot", "chatbot", "llm", "output", "response", "answer"), "assistant"),
    **dict.fromkeys(("system_prompt", "sys"), "system"),
    **dict.fromkeys(("tool_response", "function_response", "function-response", "ipython", "tool_result"), "tool"),
}
CALLS = frozenset({"function_call", "function-call", "tool_call", "tool_calls"})  # a turn that is an assistant's call
OTHER_SIDE: dict[Role, Role] = {"user": "assistant", "assistant": "user"}


def show(value: object) -> str:
    """Return a value as one short text that can be encoded, for a reason's evidence."""
    if isinstance(value, list):
        value = value[:5]
    elif isinstance(value, dict):
        value = dict(list(value.items())[:5])
    try:
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    except (RecursionError, ValueError, TypeError):
        text = kind(value)
    return text[:MAX_EVIDENCE].encode("utf-8", "backslashreplace").decode()


def kind(value: object) -> str:
    """Name a JSON value's kind in words."""
    if isinstance(value, list):
        return f"a list of {len(value)}"
    names: dict[type, str] = {type(None): "null", str: "text", bool: "true or false", dict: "an object"}
    return names.get(type(value), "a number")


def names(keys: Sequence[object]) -> str:
    """Quote keys for a reason: the first six."""
    shown = ", ".join(repr(show(key)[:40]) for key in keys[:6])
    return shown + (f" and {len(keys) - 6} more" if len(keys) > 6 else "")


def plain(value: object, depth: int = 0) -> object:
    """Return a value as plain JSON: no NaN or infinity (null), no integer past 64 bits (text), not too deep (null)."""
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, int):
        return value if abs(value) <= MAX_INT else number_text(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if depth >= MAX_DEPTH:
        return None
    if isinstance(value, list):
        return [plain(item, depth + 1) for item in value]
    if isinstance(value, dict):
        return {str(key): plain(item, depth + 1) for key, item in value.items()}
    return str(value)  # dates and decimals, from Parquet


def number_text(value: Number) -> str | None:
    """Return a number as JSON writes it; null for what JSON has no text for."""
    try:
        return json.dumps(value, allow_nan=False)
    except ValueError:  # not finite, or past Python's limit of digits
        return None


def compact(value: object) -> str:
    """Return a value as JSON text on one line."""
    return json.dumps(plain(value), ensure_ascii=False, separators=(",", ":"))


def source_id(conversation: Conversation, value: object) -> str | None:
    """Return the record's own id as text, null if it has none."""
    if value is None or isinstance(value, str):
        return value or None
    text = compact(value)
    if text == "null":
        return None
    conversation.edit("id_to_text", None, show(value), text)
    return text


def describe(conversation: Conversation, record: Mapping[str, object], used: frozenset[str]) -> None:
    """Take the model and a system text beside the turns, and keep every other key that is not in `used` as metadata."""
    for key, value in record.items():
        if key in used:
            continue
        if key == "model" and isinstance(value, str):
            conversation.model = value or None
        else:
            conversation.metadata[key] = plain(value)
    for key in SYSTEM_KEYS:
        if key in conversation.metadata:
            _take_system(conversation, key)


def _take_system(conversation: Conversation, key: str) -> None:
    """Put a system text that stands beside the turns before them, unless they begin with one."""
    text = conversation.metadata[key]
    if not isinstance(text, str) or not text.strip() or conversation.messages[0].role == "system":
        return
    del conversation.metadata[key]
    conversation.messages.insert(0, Message("system", text))
    for edit in conversation.edits:
        edit.message = None if edit.message is None else edit.message + 1


def read(conversation: Conversation, turns: Sequence[object], role_key: str, text_key: str) -> None:
    """Append the turns' messages; `role_key` and `text_key` are the keys this format mostly has."""
    messages = conversation.messages
    unknown: list[int] = []
    for turn in turns:
        try:
            role, text, plain_turn = STANDARD[turn[role_key]], turn[text_key], len(turn) == 2  # type: ignore[index,arg-type]
        except (KeyError, TypeError, IndexError):
            plain_turn = False
        if plain_turn and text.__class__ is str:
            messages.append(Message(role, text))
        elif _read_odd(conversation, turn, text_key):
            unknown.append(len(messages) - 1)
    for index in unknown:
        _infer_role(conversation, index, unknown)


def _read_odd(conversation: Conversation, turn: object, text_key: str) -> bool:
    """Append the message of a turn that is not just a known role and a text; tell if its role is missing."""
    index = len(conversation.messages)
    if not isinstance(turn, dict):
        raise RecordError("bad_turn", f"turn {index} is {kind(turn)}, not an object with role and text", show(turn))
    role, is_call = _role(conversation, turn, index)
    message = Message(role or "user", "")
    conversation.messages.append(message)
    value = _first(turn, (text_key, *TEXT_KEYS))
    message.tool_calls = _tool_calls(turn, index)
    if is_call and (calls := _call_in_text(value)):
        message.tool_calls = calls
        conversation.edit("tool_call", index, show(value), calls)
    elif not (value is None and message.tool_calls):
        message.content = text_of(conversation, value, index)
    if isinstance(name := turn.get("name"), str):
        message.name = name or None
    message.train = not any(turn.get(key, True) in (0, False) for key in UNTRAINED_KEYS)
    message.stop = turn.get("stop") is not False
    return role is None


def _first(turn: Mapping[object, object], keys: Sequence[str]) -> object:
    return next((turn[key] for key in keys if turn.get(key) is not None), None)


def _role(conversation: Conversation, turn: Mapping[object, object], index: int) -> tuple[Role | None, bool]:
    """Return the role (null: none is given) and whether the turn is a call of a tool."""
    given = _first(turn, ROLE_KEYS)
    if given is None or given == "":
        return None, False
    if not isinstance(given, str):
        raise RecordError("unknown_role", f"the role of turn {index} is {kind(given)}", show(given))
    if given in STANDARD:
        return STANDARD[given], False
    name = given.strip().casefold()
    if name in CALLS:
        return "assistant", True
    role = STANDARD.get(name) or ALIASES.get(name) or ("assistant" if name.startswith(("gpt-", "claude-")) else None)
    if role is None:
        raise RecordError("unknown_role", f"the role of turn {index} is {show(given)[:40]!r}", show(given))
    conversation.edit("role_alias", index, given, role)
    return role, False


def _infer_role(conversation: Conversation, index: int, unknown: Sequence[int]) -> None:
    """Set a missing role to the one that alternates with its neighbours, if they leave just one."""
    messages = conversation.messages
    beside = [at for at in (index - 1, index + 1) if 0 <= at < len(messages)]
    sides = {OTHER_SIDE[messages[at].role] for at in beside if messages[at].role in OTHER_SIDE}
    if len(sides) != 1 or any(at in unknown for at in beside):
        raise RecordError("unknown_role", f"turn {index} has no role and its neighbours do not settle it")
    messages[index].role = sides.pop()
    conversation.edit("role_inferred", index, "", messages[index].role)


def text_of(conversation: Conversation, value: object, index: int) -> str:
    """Return a turn's text; numbers become text, parts are joined, null is empty, anything else is refused."""
    if isinstance(value, str):
        return value
    if value is None:
        conversation.edit("empty_value", index, "null", "")
        return ""
    if isinstance(value, int | float) and not isinstance(value, bool):
        if (text := number_text(value)) is not None:
            conversation.edit("value_to_text", index, text, text)
            return text
    elif (joined := _join_parts(value)) is not None:
        conversation.edit("parts_joined", index, show(value), joined)
        return joined
    raise RecordError("bad_value", f"turn {index} holds {_what(value)}, not text", show(value))


def _join_parts(value: object) -> str | None:
    """Return the text of content in parts, as OpenAI and ChatGPT write it; null if a part is not text."""
    if isinstance(value, dict):
        if isinstance(parts := value.get("parts"), list):
            return _join_parts(parts)
        text = value.get("text")
        return text if isinstance(text, str) and value.get("type", "text") in _TEXT_TYPES else None
    if not isinstance(value, list):
        return None
    texts = [part if isinstance(part, str) else _join_parts(part) if isinstance(part, dict) else None for part in value]
    return None if None in texts else "\n".join(text for text in texts if text is not None)


_TEXT_TYPES = ("text", "input_text", "output_text")


def _what(value: object) -> str:
    """Say what kind of content this is, naming the kind of the first part that is not text."""
    parts = value if isinstance(value, list) else [value]
    for part in parts:
        if isinstance(part, dict) and _join_parts(part) is None and isinstance(part.get("type"), str):
            return f"a part of type {show(part['type'])[:40]!r}"
    return kind(value)


def _tool_calls(turn: Mapping[object, object], index: int) -> str | None:
    """Return a turn's tool calls as JSON text in OpenAI's form."""
    calls = turn.get("tool_calls")
    if isinstance(function := turn.get("function_call"), dict):  # OpenAI's older form
        calls = [{"type": "function", "function": function}]
    if not calls:
        return None
    if isinstance(calls, list):
        return compact(calls)
    if isinstance(calls, str) and is_calls(calls):
        return calls
    raise RecordError(
        "bad_value", f"the tool calls of turn {index} are {kind(calls)}, not a list of calls", show(calls)
    )


def _call_in_text(value: object) -> str | None:
    """Return the calls that a turn of role function_call holds as JSON text or object; null if it holds none."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return None
    calls = value if isinstance(value, list) else [value]
    functions = [_function(call) for call in calls]
    return (
        compact([{"type": "function", "function": one} for one in functions]) if functions and all(functions) else None
    )


def _function(call: object) -> dict[str, object] | None:
    if not isinstance(call, dict) or not isinstance(call.get("name"), str):
        return None
    arguments = call.get("arguments", call.get("parameters", {}))
    return {"name": call["name"], "arguments": arguments if isinstance(arguments, str) else compact(arguments)}


def is_calls(text: str) -> bool:
    """Tell whether a text is a JSON list, as tool calls are."""
    try:
        return isinstance(json.loads(text), list)
    except (ValueError, RecursionError):
        return False


def turns_in(conversation: Conversation, value: object, key: str) -> list[object]:
    """Return a record's list of turns, also where it is JSON text or an object with keys 0, 1, 2…"""
    if isinstance(value, str):
        value = _decoded(conversation, value, key)
    if isinstance(value, dict):
        value = _from_numbered(conversation, value, key)
    if not isinstance(value, list):
        raise RecordError("no_messages", f"{key!r} is {kind(value)}, not a list of turns", show(value))
    if not value:
        raise RecordError("no_messages", f"{key!r} is empty", show(value))
    return value


def _decoded(conversation: Conversation, text: str, key: str) -> object:
    try:
        value: object = json.loads(text)
    except (ValueError, RecursionError):
        raise RecordError("no_messages", f"{key!r} is text, not a list of turns", show(text)) from None
    conversation.edit("turns_from_text", None, show(text), "")
    return value


def _from_numbered(conversation: Conversation, value: Mapping[str, object], key: str) -> list[object]:
    numbers = sorted(int(name) for name in value if isinstance(name, str) and name.isdecimal() and len(name) < 8)
    first = numbers[0] if numbers else 0
    if len(numbers) < len(value) or not numbers or first > 1 or numbers != list(range(first, first + len(numbers))):
        reason = f"{key!r} is an object with keys {names(list(value))}, not a list of turns"
        raise RecordError("no_messages", reason, show(value))
    conversation.edit("turns_from_dict", None, show(value), "")
    by_number = {int(name): turn for name, turn in value.items()}
    return [by_number[number] for number in numbers]


def with_metadata(record: dict[str, object], conversation: Conversation) -> dict[str, object]:
    """Add the model and the metadata whose keys the format does not use itself."""
    if conversation.model is not None:
        record["model"] = conversation.model
    for key, value in conversation.metadata.items():
        record.setdefault(key, value)
    return record
