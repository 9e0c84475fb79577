"""Read a dump's turns: roles, texts, ids and other keys, repaired where their meaning is clear.

Every repair is recorded as an edit of the conversation. Where the meaning is not clear, RecordError says why. All
formats share this module; a format only adds the keys of its own records.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import pairwise

from curate.errors import RecordError
from curate.schemas.conversation import Conversation, Message, Role
from curate.schemas.reading import media, tool_calls
from curate.schemas.reading.key_kinds import (
    KINDS,
    SPECIAL_KEYS,
    TURN_KINDS,
    flag_label,
    flag_nested_labels,
    has_content,
    metadata_objects,
)
from curate.schemas.reading.media import TEXT_TYPES
from curate.schemas.reading.turn import context, parts, reasoning, threads, training_marks
from curate.schemas.reading.turn.roles import (
    CALL_ROLES,
    ROLE_KEYS,
    STANDARD_ROLES,
    THOUGHT_ROLES,
    known_role,
    take_role,
)
from curate.schemas.reading.turn.roles import has_role as has_role
from curate.schemas.reading.turn.roles import is_prompt as is_prompt
from curate.schemas.reading.turn.roles import role_of as role_of
from curate.schemas.reading.turn.sides import TEXT_KEYS as TEXT_KEYS
from curate.schemas.reading.turn.sides import split_sides
from curate.schemas.reading.values import describe_type as describe_type
from curate.schemas.reading.values import is_json_list as is_json_list
from curate.schemas.reading.values import preview as preview
from curate.schemas.reading.values import quote_keys as quote_keys
from curate.schemas.reading.values import to_json_line as to_json_line
from curate.schemas.reading.values import to_plain_json as to_plain_json

SYSTEM_KEYS = (  # keys of the record itself
    *("system", "system_prompt", "system_message", "system_instruction", "systemPrompt", "systemMessage"),
    *("systemInstruction", "System", "SYSTEM"),
)
THOUGHT_FLAGS = ("thought", "isThought", "is_thought", "isThinking", "is_thinking")  # of a turn
TOOL_KEYS = ("tools", "functions")  # of the record too
EXAMPLES: dict[str, Role] = {"example_user": "user", "example_assistant": "assistant"}  # OpenAI's, of role system
_STARTS = reasoning.STARTS | tool_calls.STARTS
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
    for key in TOOL_KEYS:
        if conversation.tools is None and key in conversation.metadata:
            _read_tools(conversation, key)


def _read_tools(conversation: Conversation, key: str) -> None:
    """Move the tools' definitions from the metadata; what defines no tool stays there."""
    conversation.tools = tool_calls.read_tools(conversation, conversation.metadata[key])
    if conversation.tools is not None:
        del conversation.metadata[key]


def _read_system(conversation: Conversation, key: str) -> None:
    """Move a system text from the metadata to the front of the messages, unless they begin with another.

    Raises RecordError for a list or an object without text.
    """
    value = conversation.metadata[key]
    text = system_text(value)
    if text is None or not text.strip():
        if text is None and isinstance(value, list | dict) and has_content(value):
            raise RecordError("bad_value", f"{key!r} holds {parts.describe_content(value)}, not text", preview(value))
        return
    messages = conversation.messages
    if messages and messages[0].role == "system":
        if messages[0].content.strip() != text.strip():
            conversation.edit("second_system", 0, text, "")
        return
    if _is_plain(value):
        del conversation.metadata[key]
    conversation.insert_system(text)
    if not isinstance(value, str):
        conversation.edit("parts_joined", 0, preview(value), text)


def _is_plain(value: object) -> bool:
    """Return whether a system prompt is text, or blocks with nothing but their text."""
    if isinstance(value, list):
        return all(map(_is_plain, value))
    if not isinstance(value, dict):
        return True
    said = [
        key for key in value if key != "type" and known_role(str(value[key])) != "system" and has_content(value[key])
    ]
    return len(said) <= 1


def system_text(value: object) -> str | None:
    """Return the text of a system prompt: text, a message, blocks of text, or a list of these; else None."""
    if isinstance(value, dict):
        return system_text(_first_value(value, TEXT_KEYS)) if value.get("type", "text") in TEXT_TYPES else None
    if isinstance(value, list):
        texts = [system_text(item) for item in value]
        return None if None in texts else "\n".join(text for text in texts if text is not None)
    return value if isinstance(value, str) else None


def read_messages(conversation: Conversation, turns: Sequence[object], role_key: str, text_key: str) -> None:
    """Append the messages of turns; `role_key` and `text_key` are the usual keys of this format."""
    messages = conversation.messages
    first = len(messages)
    reader: _TurnReader | None = None  # most conversations need none
    append = messages.append
    for turn in threads.read_path(conversation, turns):
        try:
            role, text, is_usual = STANDARD_ROLES[turn[role_key]], turn[text_key], len(turn) == 2  # type: ignore[index,arg-type]
        except (KeyError, TypeError, IndexError):
            is_usual = False
        if is_usual and text.__class__ is str:
            append(Message(role, text))
        else:
            reader = reader or _TurnReader(conversation, text_key)
            reader.read(turn)
    if reader is not None:
        reader.infer_roles()
    has_results = False
    for index, message in enumerate(messages[first:], first):
        text = message.content
        if message.role == "assistant":
            if "</think>" in text or "call>" in text or text.lstrip()[:2] in _STARTS:
                read_marks(conversation, index)
        elif "<tool_response>" in text or message.role == "tool":
            tool_calls.unwrap_results(conversation, message, index)
            has_results = True
    if reader is not None:
        reader.finish()
    if has_results:
        tool_calls.link_results(conversation)


def read_marks(conversation: Conversation, index: int) -> None:
    """Read the reasoning and the tool calls that stand in the text of a message, if it is an answer."""
    message = conversation.messages[index]
    if message.role != "assistant":
        return
    reasoning.split_reasoning(conversation, message, index)
    if message.tool_calls is None and tool_calls.has_calls(message.content):
        message.content, message.tool_calls = tool_calls.split_calls(conversation, message.content, index)


def _flag_alternatives(conversation: Conversation, ranked: Sequence[int]) -> None:
    """Flag an answer that is one of several to the same prompt, as their ranks or labels say."""
    for first, second in pairwise(ranked):
        if second == first + 1:
            text = conversation.messages[second].content
            reason = f"turns {first} and {second} are answers to the same prompt, each with its rank or label"
            conversation.flaw("several_answers", second, reason, text)


def _is_thought(turn: dict[str, object]) -> bool:
    """Return whether a flag says that a turn is nothing but reasoning, as Gemini's do; remove it."""
    keys = [key for key in THOUGHT_FLAGS if turn.get(key) is True]
    for key in keys:
        del turn[key]
    return bool(keys)


def _join_thought(conversation: Conversation, index: int) -> None:
    """Make a turn of nothing but reasoning the reasoning of the answer after it, if that has none of its own."""
    messages = conversation.messages
    following = messages[index + 1] if index + 1 < len(messages) else None
    if following is not None and following.role == "assistant" and not following.reasoning:
        following.reasoning = messages[index].reasoning
        conversation.remove(index)
        conversation.edit("reasoning_turn", index, following.reasoning or "", "")


class _TurnReader:
    """Reads turns that are more than a standard role and a text, each into one message or several.

    `without_role`, `thoughts` and `ranked` are the messages of turns without a role, of nothing but reasoning, and of
    answers with a rank or a label.
    """

    def __init__(self, conversation: Conversation, text_key: str) -> None:
        self.conversation = conversation
        self.text_keys = (text_key, *(key for key in TEXT_KEYS if key != text_key))
        self.without_role: list[int] = []
        self.thoughts: list[int] = []
        self.ranked: list[int] = []

    def infer_roles(self) -> None:
        """Set the missing roles; raises RecordError for one that its neighbours do not settle."""
        for index in self.without_role:
            _infer_role(self.conversation, index, self.without_role)

    def finish(self) -> None:
        """Name what concerns several messages, when all texts are read."""
        _flag_alternatives(self.conversation, self.ranked)
        for index in reversed(self.thoughts):
            _join_thought(self.conversation, index)

    def read(self, value: object) -> None:
        """Append the messages of a turn; raises RecordError if its meaning is not clear."""
        index = len(self.conversation.messages)
        if not isinstance(value, dict):
            reason = f"turn {index} is {describe_type(value)}, not an object with role and text"
            raise RecordError("bad_turn", reason, preview(value))
        for turn in (part for side in split_sides(_unwrap(value)) for part in parts.split_joined_results(side)):
            key = next((key for key in self.text_keys if isinstance(turn.get(key), list)), None)
            is_answer = key is not None and any(known_role(turn.get(name)) == "assistant" for name in ROLE_KEYS)
            for part in parts.split_at_results(turn, key) if key is not None and is_answer else [turn]:
                self._read(part, value)

    def _read(self, turn: dict[str, object], original: Mapping[str, object]) -> None:
        conversation, index = self.conversation, len(self.conversation.messages)
        role, name = take_role(conversation, turn, index)
        message = Message(role or "user", "")
        conversation.messages.append(message)
        content = self._read_content(message, turn, index, name)
        if content is not None and content.others:
            turn["parts" if "parts" not in turn else "content_parts"] = content.others
        if (name in THOUGHT_ROLES or _is_thought(turn)) and message.content:
            message.reasoning, message.content = message.content, ""
            self.thoughts.append(index)
        if isinstance(turn.get("name"), str):
            message.name = str(turn.pop("name")) or None
            if role == "system" and message.name in EXAMPLES:
                message.role, message.train = EXAMPLES[message.name], False
                conversation.edit("example_turn", index, message.content, message.content)
        if message.role == "assistant":
            reasoning.take_reasoning(conversation, message, turn, index)
        elif message.role == "tool":
            self._take_call_id(message, turn)
        elif role == "user":
            context.read_context(conversation, message, turn, index)
        training_marks.read_marks(conversation, message, turn, index)
        if not SPECIAL_KEYS.isdisjoint(original):
            _flag_turn(conversation, turn, index)
        for nested in metadata_objects(original):
            flag_nested_labels(conversation, nested, index)
        message.extra = to_json_line(turn) if turn else None
        if role is None:
            self.without_role.append(index)
        if role == "assistant" and any(TURN_KINDS.get(key) == "alternative" for key in turn):
            self.ranked.append(index)
        if content is not None and content.results:
            self._add_results(message, content, index)

    def _read_content(self, message: Message, turn: dict[str, object], index: int, name: str) -> parts.Content | None:
        """Read the text and the calls of a turn with this name of a role; return its content if that is in parts."""
        conversation = self.conversation
        value = self._take_text(turn, message)
        for key in parts.CALL_KEYS:
            if key in turn and (message.tool_calls is None or not turn[key]):
                message.tool_calls = tool_calls.read_calls(conversation, turn.pop(key), index) or message.tool_calls
        if name in CALL_ROLES and self._read_call(message, turn, value, index):
            return None
        if value is None and message.tool_calls:
            return None
        if message.role == "tool" and isinstance(value, bool | list | dict):
            message.content = parts.result_text(value)
            conversation.edit("value_to_text", index, preview(value), message.content)
            _flag_media(conversation, parts.result_media(value), index)
            return None
        if value.__class__ is list and (message.role == "assistant" or not name):
            refuse_alternatives(value, index)
        message.content, content = read_parts(conversation, value, index)
        if content is not None:
            message.reasoning = "\n\n".join(text for text in content.reasoning if text.strip()) or None
            calls = tool_calls.read_calls(conversation, content.calls, index)
            message.tool_calls = message.tool_calls or calls
        return content

    def _read_call(self, message: Message, turn: dict[str, object], value: object, index: int) -> bool:
        """Read the calls in the value of a turn that is nothing else; return whether there are any."""
        if isinstance(value, str) and value.lstrip()[:2] in reasoning.STARTS:
            message.content = value
            reasoning.split_reasoning(self.conversation, message, index)
            value, message.content = message.content, ""
        calls = _call_in_value(self.conversation, value, index)
        if calls is None:
            message.reasoning = None  # is a part of the text
            return False
        if message.tool_calls is None or not tool_calls.are_same(message.tool_calls, calls):
            if message.tool_calls is not None:  # the turn has two
                turn["tool_calls"] = json.loads(message.tool_calls)
            message.tool_calls = calls
            self.conversation.edit("tool_call", index, preview(value), calls)
        if isinstance(turn.get("content"), str):  # beside `value`
            message.content = str(turn.pop("content"))
        return True

    def _take_text(self, turn: dict[str, object], message: Message) -> object:
        """Remove the text from a turn: that of its usual key, or of another one where that is blank."""
        keys = [key for key in self.text_keys if key in turn]
        present = [key for key in keys if not isinstance(turn[key], bool)] or keys
        if message.role == "assistant" and isinstance(turn.get("refusal"), str):
            present.append("refusal")
        full = next((key for key in present if has_content(turn[key])), None)
        if full is None:
            return turn.pop(present[0]) if present else None
        if full != present[0]:
            if turn[present[0]] is not None and (present[0] in self.text_keys[:3] or full == "refusal"):
                del turn[present[0]]
            index = len(self.conversation.messages) - 1
            self.conversation.edit("text_from_key", index, "", f"{full}: {preview(turn[full])}")
        value = turn.pop(full)
        for key in present:  # the same text once more says nothing
            if key in turn and turn[key] == value:
                del turn[key]
        return value

    def _take_call_id(self, message: Message, turn: dict[str, object]) -> None:
        key = next((key for key, value in turn.items() if TURN_KINDS.get(key) == "call_id" and value), None)
        if key is not None and isinstance(turn[key], str | int):
            message.tool_call_id = str(turn.pop(key))

    def _add_results(self, message: Message, content: parts.Content, index: int) -> None:
        """Make each result of a tool in a turn's parts a message, before the text that the user adds."""
        results = [
            Message("tool", text, tool_call_id=identity, extra=to_json_line(others) if others else None)
            for identity, text, others in content.results
        ]
        messages = self.conversation.messages
        messages[index:] = [*results, *([message] if message.content else [])]
        if not message.content and message.extra:
            own = json.loads(results[0].extra or "{}")
            keys = {f"turn_{key}" if key in own else key: value for key, value in json.loads(message.extra).items()}
            results[0].extra = to_json_line({**own, **keys})


def _unwrap(turn: dict[str, object]) -> dict[str, object]:
    """Return the keys of a turn without nulls, with those of a message within it."""
    present = {key: value for key, value in turn.items() if value is not None}
    inner = present.get("message")
    if isinstance(inner, dict) and not any(key in present for key in ROLE_KEYS) and inner.keys().isdisjoint(present):
        del present["message"]
        present |= {key: value for key, value in inner.items() if value is not None}
    return present


def _flag_turn(conversation: Conversation, turn: dict[str, object], index: int) -> None:
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
    """Return a text: numbers become text, parts are joined, null becomes empty.

    Raises RecordError for any other value.
    """
    return read_parts(conversation, value, index)[0]


def read_parts(conversation: Conversation, value: object, index: int) -> tuple[str, parts.Content | None]:
    """Return a turn's text as `read_text`, and what else its content holds if that is in parts."""
    if isinstance(value, str):
        return value, None
    if value is None:
        conversation.edit("empty_value", index, "null", "")
        return "", None
    if (text := parts.number_text(value)) is not None:
        conversation.edit("value_to_text", index, text, text)
        return text, None
    content = parts.read_content(value) if isinstance(value, list | dict) else None
    if content is None:
        reason = f"turn {index} holds {parts.describe_content(value)}, not text"
        raise RecordError("bad_value", reason, preview(value))
    conversation.edit("parts_joined", index, preview(value), content.text)
    _flag_media(conversation, content.media, index)
    return content.text, content


def _flag_media(conversation: Conversation, found: Sequence[object], index: int) -> None:
    for part in found:
        reason = f"turn {index} holds {parts.describe_part(part)}, which a text model cannot see"
        conversation.flaw(media.RULE, index, reason, preview(part))


def _call_in_value(conversation: Conversation, value: object, index: int) -> str | None:
    """Return the calls in the value of a `function_call` turn, JSON text or an object; None if it has none."""
    try:
        return tool_calls.read_calls(conversation, value, index, strict=True)
    except RecordError:
        return None
