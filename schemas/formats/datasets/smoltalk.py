"""SmolTalk2's settings of the template, which hold a system text and the definitions of tools."""

from __future__ import annotations

import json

from curate.schemas.conversation import Conversation
from curate.schemas.reading import turns

KEY = "chat_template_kwargs"
_TOOLS = ("python_tools", "xml_tools", "tools")
_SYSTEM = ("custom_instructions", "system_message")


def read_settings(conversation: Conversation) -> None:
    """Read the system text and the tools of the settings in the metadata, where the others stay.

    A system text beside a system message stays there too, and so do tools that are not all objects of JSON.
    """
    settings = conversation.metadata[KEY]
    if not isinstance(settings, dict):
        return
    rest = dict(settings)
    for key in _SYSTEM:
        _read_system(conversation, rest, key)
    if conversation.tools is None:
        _read_tools(conversation, rest)
    del conversation.metadata[KEY]
    if rest:
        conversation.metadata[KEY] = rest


def _read_system(conversation: Conversation, settings: dict[str, object], key: str) -> None:
    text = settings.get(key)
    if not isinstance(text, str) or not text.strip():
        return
    messages = conversation.messages
    if not messages or messages[0].role != "system":
        conversation.insert_system(text)
    elif messages[0].content.strip() != text.strip():
        conversation.edit("second_system", 0, text, "")
        return
    del settings[key]


def _read_tools(conversation: Conversation, settings: dict[str, object]) -> None:
    keys = [key for key in _TOOLS if key in settings]
    definitions = [_definition(item) for key in keys for item in _items(settings[key])]
    if definitions and all(isinstance(item, dict) for item in definitions):
        conversation.tools = turns.to_json_line(definitions)
        for key in keys:
            del settings[key]


def _items(value: object) -> list[object]:
    return value if isinstance(value, list) else [value]


def _definition(item: object) -> object:
    """Return the definition of a tool, which may be an object or JSON text."""
    if isinstance(item, str):
        try:
            return json.loads(item)
        except (ValueError, RecursionError):
            return None
    return item
