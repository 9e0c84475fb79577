"""Read a dump's turns: roles, texts, ids and other keys, repaired where their meaning is clear.

Every repair is recorded as an edit of the conversation. Where the meaning is not clear, RecordError says why. All
formats share this module; a format only adds the keys of its own records.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from curate.errors import RecordError
from curate.schemas.conversation import Conversation, Message, Role
from curate.schemas.reading import media, tool_calls
from curate.schemas.reading.key_kinds import KINDS, SPECIAL_KEYS, flag_label, has_content
from curate.schemas.reading.media import TEXT_TYPES
from curate.schemas.reading.values import MAX_NAME, number_to_text
from curate.schemas.reading.values import describe_type as describe_type
from curate.schemas.reading.values import is_json_list as is_json_list
from curate.schemas.reading.values import preview as preview
from curate.schemas.reading.values import quote_keys as quote_keys
from curate.schemas.reading.values import to_json_line as to_json_line
from curate.schemas.reading.values import to_plain_json as to_plain_json

ROLE_KEYS = ("from", "role")
TEXT_KEYS = ("value", "content", "text")
SYSTEM_KEYS = ("system", "system_prompt", "system_message")  # keys of the record itself
UNTRAINED_KEYS = ("weight", "train", "loss", "learn")  # OpenAI's key and three of trainers; 0 or false means no loss

# Names of the two main formats: read without an edit.
STANDARD_ROLES: dict[str, Role] = {
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
ROLE_ALIASES: dict[str, Role] = {
    **dict.fromkeys(("prompter", "customer", "person", "questioner", "asker", "instruction", "question"), "user"),
    **dict.fromkeys(("chatgpt", "bing", "bard", "claude", "gemini", "llama", "gpt4", "vicuna", "alpaca"), "assistant"),
    **dict.fromkeys(("model", "ai", "bot", "chatbot", "llm", "output", "response", "answer"), "assistant"),
    **dict.fromkeys(("system_prompt", "sys"), "system"),
    **dict.fromkeys(("tool_response", "function_response", "function-response", "ipython", "tool_result"), "tool"),
}
CALL_ROLES = frozenset({"function_call", "function-call", "tool_call", "tool_calls"})  # the assistant calls a tool
OPPOSITE_ROLE: dict[Role, Role] = {"user": "assistant", "assistant": "user"}


def read_source_id(conversation: Conversation, value: object) -> str | None:
    """Return the record's own id as text, or None."""
    if value is None or isinstance(value, str):
        return value or None
    text = to_json_line(value)
    if text == "null":
        return None
    conversation.edit("id_to_text", None, preview(value), text)
    return text


def read_other_keys(conversation: Conversation, record: Mapping[str, object], used: frozenset[str]) -> None:
    """Read the model and a system text next to the turns; keep all other keys, except those in `used`, as metadata."""
    for key, value in record.items():
        if key in used:
            continue
        if key == "model" and isinstance(value, str):
            conversation.model = value or None
        else:
            conversation.metadata[key] = to_plain_json(value)
    for key in SYSTEM_KEYS:
        if key in conversation.metadata:
            _read_system(conversation, key)


def _read_system(conversation: Conversation, key: str) -> None:
    """Move a system text from the metadata to the front of the messages, unless they begin with another.

    Raises RecordError for a list or an object without text.
    """
    value = conversation.metadata[key]
    text = system_text(value)
    if text is None or not text.strip():
        if text is None and isinstance(value, list | dict) and has_content(value):
            raise RecordError("bad_value", f"{key!r} holds {_describe_content(value)}, not text", preview(value))
        return
    messages = conversation.messages
    if messages and messages[0].role == "system":
        if messages[0].content.strip() != text.strip():
            conversation.edit("second_system", 0, text, "")
        return
    del conversation.metadata[key]
    conversation.insert_system(text)
    if not isinstance(value, str):
        conversation.edit("parts_joined", 0, preview(value), text)


def system_text(value: object) -> str | None:
    """Return the text of a system prompt: text, a message, blocks of text, or a list of these; else None."""
    if isinstance(value, dict):
        return system_text(_first_value(value, TEXT_KEYS)) if value.get("type", "text") in TEXT_TYPES else None
    if isinstance(value, list):
        texts = [system_text(item) for item in value]
        return None if None in texts else "\n".join(text for text in texts if text is not None)
    return value if isinstance(value, str) else None


def has_role(turn: Mapping[object, object]) -> bool:
    """Return whether an object is a turn, which has a role, rather than a part of one."""
    return any(isinstance(turn.get(key), str) for key in ROLE_KEYS)


def is_prompt(turn: Mapping[object, object]) -> bool:
    """Return whether a turn has the role of the user."""
    name = str(_first_value(turn, ROLE_KEYS)).strip().casefold()
    return (STANDARD_ROLES.get(name) or ROLE_ALIASES.get(name)) == "user"


def read_messages(conversation: Conversation, turns: Sequence[object], role_key: str, text_key: str) -> None:
    """Append the messages of turns; `role_key` and `text_key` are the usual keys of this format."""
    messages = conversation.messages
    without_role: list[int] = []
    for turn in turns:
        try:
            role, text, is_usual = STANDARD_ROLES[turn[role_key]], turn[text_key], len(turn) == 2  # type: ignore[index,arg-type]
        except (KeyError, TypeError, IndexError):
            is_usual = False
        if is_usual and text.__class__ is str:
            messages.append(Message(role, text))
        elif not _read_unusual(conversation, turn, text_key):
            without_role.append(len(messages) - 1)
    for index in without_role:
        _infer_role(conversation, index, without_role)


def _read_unusual(conversation: Conversation, turn: object, text_key: str) -> bool:
    """Append the message of a turn that is more than a standard role and a text; return whether it has a role."""
    index = len(conversation.messages)
    if not isinstance(turn, dict):
        raise RecordError(
            "bad_turn", f"turn {index} is {describe_type(turn)}, not an object with role and text", preview(turn)
        )
    role, is_call = _role(conversation, turn, index)
    message = Message(role or "user", "")
    conversation.messages.append(message)
    value = _first_value(turn, (text_key, *TEXT_KEYS))
    message.tool_calls = _tool_calls(conversation, turn, index)
    if is_call and (calls := _call_in_value(conversation, value, index)):
        message.tool_calls = calls
        conversation.edit("tool_call", index, preview(value), calls)
    elif not (value is None and message.tool_calls):
        message.content = read_text(conversation, value, index)
    if isinstance(name := turn.get("name"), str):
        message.name = name or None
    message.train = not any(turn.get(key, True) in (0, False) for key in UNTRAINED_KEYS)
    message.stop = turn.get("stop") is not False
    if value.__class__ is list and (message.role == "assistant" or role is None):
        refuse_alternatives(value, index)
    if not SPECIAL_KEYS.isdisjoint(turn):
        _flag_turn(conversation, turn, index)
    return role is not None


def _flag_turn(conversation: Conversation, turn: Mapping[str, object], index: int) -> None:
    """Flag a message if a key of its turn names media or a bad label."""
    for key, value in turn.items():
        kind = KINDS.get(key)
        if kind == "media" and has_content(value):
            reason = f"turn {index} has {key!r}, which a text model cannot see"
            conversation.flaw(media.RULE, index, reason, preview(value))
        elif kind == "bad_if_true" or kind == "bad_if_false":
            flag_label(conversation, key, kind, value, index)


def refuse_alternatives(value: object, index: int) -> None:
    """Raise RecordError if an answer is a list of several texts, which may be alternatives or parts."""
    texts = value if isinstance(value, list) and all(isinstance(item, str) for item in value) else []
    if len({text.strip() for text in texts if text.strip()}) > 1:
        reason = f"the answer, turn {index}, is a list of {len(texts)} texts, which may be alternatives"
        raise RecordError("several_answers", reason, preview(value))


def _first_value(turn: Mapping[object, object], keys: Sequence[str]) -> object:
    return next((turn[key] for key in keys if turn.get(key) is not None), None)


def _role(conversation: Conversation, turn: Mapping[object, object], index: int) -> tuple[Role | None, bool]:
    """Return the role, or None if it is missing, and whether the turn is a tool call."""
    name = _first_value(turn, ROLE_KEYS)
    if name is None or name == "":
        return None, False
    if not isinstance(name, str):
        raise RecordError("unknown_role", f"the role of turn {index} is {describe_type(name)}", preview(name))
    if name in STANDARD_ROLES:
        return STANDARD_ROLES[name], False
    folded = name.strip().casefold()
    if folded in CALL_ROLES:
        return "assistant", True
    role = (
        STANDARD_ROLES.get(folded)
        or ROLE_ALIASES.get(folded)
        or ("assistant" if folded.startswith(("gpt-", "claude-")) else None)
    )
    if role is None:
        raise RecordError("unknown_role", f"the role of turn {index} is {preview(name)[:MAX_NAME]!r}", preview(name))
    conversation.edit("role_alias", index, name, role)
    return role, False


def _infer_role(conversation: Conversation, index: int, without_role: Sequence[int]) -> None:
    """Set a missing role to the one that alternates with its neighbours, if there is only one."""
    messages = conversation.messages
    neighbours = [neighbour for neighbour in (index - 1, index + 1) if 0 <= neighbour < len(messages)]
    candidates = {
        OPPOSITE_ROLE[role] for role in (messages[neighbour].role for neighbour in neighbours) if role in OPPOSITE_ROLE
    }
    if len(candidates) != 1 or any(neighbour in without_role for neighbour in neighbours):
        raise RecordError("unknown_role", f"turn {index} has no role and its neighbours do not settle it")
    messages[index].role = candidates.pop()
    conversation.edit("role_inferred", index, "", messages[index].role)


def read_text(conversation: Conversation, value: object, index: int) -> str:
    """Return a turn's text: numbers become text, parts are joined, null becomes empty.

    Raises RecordError for any other value.
    """
    if isinstance(value, str):
        return value
    if value is None:
        conversation.edit("empty_value", index, "null", "")
        return ""
    if isinstance(value, int | float) and not isinstance(value, bool):
        if (text := number_to_text(value)) is not None:
            conversation.edit("value_to_text", index, text, text)
            return text
    else:
        rest, removed = media.remove_parts(value)
        if (joined := _join_parts(rest)) is not None:
            conversation.edit("parts_joined", index, preview(value), joined)
            for part in removed:
                reason = f"turn {index} holds {_describe_part(part)}, which a text model cannot see"
                conversation.flaw(media.RULE, index, reason, preview(part))
            return joined
    raise RecordError("bad_value", f"turn {index} holds {_describe_content(value)}, not text", preview(value))


def _join_parts(value: object) -> str | None:
    """Join content in parts, as in OpenAI's and ChatGPT's records; None if a part is not text."""
    if isinstance(value, dict):
        if isinstance(parts := value.get("parts"), list):
            return _join_parts(parts)
        text = value.get("text")
        return text if isinstance(text, str) and value.get("type", "text") in TEXT_TYPES else None
    if not isinstance(value, list):
        return None
    texts = [part if isinstance(part, str) else _join_parts(part) if isinstance(part, dict) else None for part in value]
    return None if None in texts else "\n".join(text for text in texts if text is not None)


def _describe_part(part: object) -> str:
    """Describe a part that is not text by its type, or by its keys."""
    kind = part.get("type") if isinstance(part, dict) else None
    if isinstance(kind, str) and kind not in TEXT_TYPES:
        return f"a part of type {preview(kind)[:MAX_NAME]!r}"
    return f"a part with {quote_keys(list(part))}" if isinstance(part, dict) else describe_type(part)


def _describe_content(value: object) -> str:
    """Describe content that is not text, by the type of its first part that is not text."""
    parts = value if isinstance(value, list) else [value]
    for part in parts:
        if isinstance(part, dict) and _join_parts(part) is None and isinstance(part.get("type"), str):
            return f"a part of type {preview(part['type'])[:MAX_NAME]!r}"
    return describe_type(value)


def _tool_calls(conversation: Conversation, turn: Mapping[object, object], index: int) -> str | None:
    """Return a turn's tool calls, under OpenAI's key or its older one."""
    return tool_calls.read_calls(conversation, turn.get("tool_calls") or turn.get("function_call"), index)


def _call_in_value(conversation: Conversation, value: object, index: int) -> str | None:
    """Return the calls in the value of a `function_call` turn, JSON text or an object; None if it has none."""
    try:
        return tool_calls.read_calls(conversation, value, index)
    except RecordError:
        return None
