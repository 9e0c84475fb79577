"""Documents and files beside a prompt: their text is part of it, and without it the answer cannot be understood."""

from __future__ import annotations

from collections.abc import Mapping

from curate.schemas.conversation import Conversation, Message
from curate.schemas.reading.key_kinds import TURN_KINDS, has_content
from curate.schemas.reading.values import preview

JOINED = "context_joined"  # a repair
MISSING = "needs_context"  # a flaw
_TEXT_KEYS = ("extracted_content", "text", "content", "page_content", "contents", "passage", "body", "snippet")
_TITLE_KEYS = ("title", "file_name", "name")


def read_context(conversation: Conversation, message: Message, turn: dict[str, object], index: int) -> None:
    """Put the text of documents and files beside a prompt before it; flag the message if they have no text."""
    for key in [key for key in turn if TURN_KINDS.get(key) in ("context", "files")]:
        value = turn[key]
        if not has_content(value):
            continue
        texts = _texts(value, bare=TURN_KINDS[key] == "context")
        if texts is None:
            if TURN_KINDS[key] == "files" or _lists_documents(value):
                reason = f"turn {index} has {key!r}, whose text is not in the record"
                conversation.flaw(MISSING, index, reason, preview(value))
            continue
        missing = [text for text in texts if text.strip() not in message.content]
        if missing:
            before = message.content
            message.content = "\n\n".join([*missing, *([before] if before else [])])
            conversation.edit(JOINED, index, before, message.content, len(missing))
        if _is_plain(value):  # else it says more than the text, such as an address
            del turn[key]


def _lists_documents(value: object) -> bool:
    return isinstance(value, list) and any(isinstance(item, str | dict) for item in value)


def _is_plain(value: object) -> bool:
    return all(isinstance(item, str) for item in value) if isinstance(value, list) else isinstance(value, str)


def _texts(value: object, bare: bool) -> list[str] | None:
    """Return the texts of documents; None if one has none. `bare`: a text by itself is one, rather than a file's name.

    A single word beside a prompt is a label, not a document.
    """
    if isinstance(value, str):
        return [value] if bare and len(value.split()) > 1 else None
    if isinstance(value, list):
        texts = [_texts(item, bare) for item in value if has_content(item)]
        return None if None in texts or not texts else [text for item in texts if item for text in item]
    return [text] if isinstance(value, dict) and (text := _document(value)) else None


def _document(value: Mapping[str, object]) -> str | None:
    """Return the text of a document below its title; None if it has other keys than these."""
    text = next((text for key in _TEXT_KEYS if isinstance(text := value.get(key), str) and text.strip()), None)
    title = next((title for key in _TITLE_KEYS if isinstance(title := value.get(key), str) and title.strip()), None)
    return f"{title}\n\n{text}" if text and title else text
