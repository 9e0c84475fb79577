"""Repair line ends and lone surrogates in the text of messages, and check whether a text is empty."""

from __future__ import annotations

import unicodedata

from curate.schemas.conversation import Conversation

# Blank, although Unicode classifies them as letters, marks or symbols.
INVISIBLE = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0")
INVISIBLE_CATEGORIES = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp", "Zs"})
CONTEXT = 40  # characters of an edit on each side of the repair


def clean_text(conversation: Conversation, *, surrogates: bool = True) -> None:
    """Repair lone surrogates and line ends, in place; `surrogates=False` if the decoder found none."""
    if surrogates:
        repair_surrogates(conversation)
    for index, message in enumerate(conversation.messages):
        if "\r" in message.content:
            before = message.content
            message.content = before.replace("\r\n", "\n").replace("\r", "\n")
            position = before.index("\r")
            count = before.count("\r")
            conversation.edit("line_ends", index, _around(before, position), _around(message.content, position), count)


def repair_surrogates(conversation: Conversation) -> None:
    """Replace lone surrogates in all texts of the conversation, in place, so that they can be encoded."""
    for index, message in enumerate(conversation.messages):
        if _is_broken(message.content):
            before = message.content
            message.content = replace_surrogates(before)
            position = next(i for i, character in enumerate(before) if "\ud800" <= character <= "\udfff")
            shown = _around(before, position).encode("utf-8", "backslashreplace").decode()
            count = sum("\ud800" <= character <= "\udfff" for character in before)
            conversation.edit("lone_surrogate", index, shown, _around(message.content, position), count)
        for name in ("name", "tool_calls", "reasoning", "tool_call_id", "extra"):
            if text := getattr(message, name):
                setattr(message, name, replace_surrogates(text))
    conversation.source_id = replace_surrogates(conversation.source_id) if conversation.source_id else None
    conversation.model = replace_surrogates(conversation.model) if conversation.model else None
    conversation.tools = replace_surrogates(conversation.tools) if conversation.tools else None
    for message in conversation.rejected_answer:
        message.content = replace_surrogates(message.content)
    if conversation.metadata:
        conversation.metadata = {
            replace_surrogates(key): _repair_value(item) for key, item in conversation.metadata.items()
        }
    for edit in conversation.edits:
        edit.before, edit.after = replace_surrogates(edit.before), replace_surrogates(edit.after)


def _is_broken(text: str) -> bool:
    if text.isascii():
        return False
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def replace_surrogates(text: str) -> str:
    """Return a text in which each lone surrogate is U+FFFD."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace") if _is_broken(text) else text


def _repair_value(value: object) -> object:
    if isinstance(value, str):
        return replace_surrogates(value)
    if isinstance(value, list):
        return [_repair_value(item) for item in value]
    if isinstance(value, dict):
        return {replace_surrogates(key): _repair_value(item) for key, item in value.items()}
    return value


def _around(text: str, position: int) -> str:
    return text[max(0, position - CONTEXT) : position + CONTEXT]


def is_empty(text: str) -> bool:
    """Return whether a text has no visible character: only white space, control and zero-width characters."""
    for character in text:
        if character.isalnum() and character not in INVISIBLE:
            return False
        invisible = unicodedata.category(character) in INVISIBLE_CATEGORIES or character in INVISIBLE
        if not (invisible or "\ufe00" <= character <= "\ufe0f"):  # variation selectors, whose category is Mn
            return False
    return True
