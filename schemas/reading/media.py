"""What a text model cannot see: images, video, sound and files, as parts of a turn's content or under keys."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from curate.schemas.conversation import Conversation
from curate.schemas.reading.key_kinds import KINDS, has_content

RULE = "multimodal"
TEXT_TYPES = ("text", "input_text", "output_text")  # of a part of the content

# <image>, <image_1>, <|image_pad|>, <image-placeholder>, <ImageHere>, [IMG]: where a picture stands in a text.
PLACEHOLDER = re.compile(
    r"<\|?(?:im(?:age|g)|video|audio|speech|picture)(?:[_-]?(?:\d+|pad|placeholder|token|here|start|end|soft_token))?\|?>"
    r"|<\|?vision_(?:start|end)\|?>|\[(?:IMG|IMAGE|VIDEO|AUDIO)(?:[ _-]?\d+)?\]",
    re.IGNORECASE,
)
_MEDIA_TYPE = re.compile(r"image|video|audio(?!_transcription)|file|document|speech|media", re.IGNORECASE)


def remove_parts(value: object) -> tuple[object, list[object]]:
    """Return content without its parts that are not text, and these parts."""
    if isinstance(value, list):
        media: list[object] = []
        rest: list[object] = []
        for part in value:
            if isinstance(part, dict):
                kept, removed = remove_parts(part)
                media += removed
                rest += [] if kept == [] else [kept]
            else:
                rest.append(part)
        return rest, media
    if not isinstance(value, dict):
        return value, []
    if isinstance(parts := value.get("parts"), list):
        rest_of_parts, media = remove_parts(parts)
        return {**value, "parts": rest_of_parts}, media
    return _remove_part(value)


def _remove_part(part: Mapping[str, object]) -> tuple[object, list[object]]:
    """Return a part that is text, and itself if it holds media too; nothing is left of one without text."""
    kind = part.get("type") or part.get("content_type") or "text"
    if not isinstance(kind, str):
        return part, []
    if kind not in TEXT_TYPES:
        return ([], [part]) if _MEDIA_TYPE.search(kind) else (part, [])
    if not any(has_content(part[key]) for key in part if KINDS.get(key) == "media" or key == "file"):
        return part, []
    return (part if isinstance(part.get("text"), str) else []), [part]


def flag_record(conversation: Conversation, keys: Iterable[str]) -> None:
    """Flag what needs the record's own media: all messages from the first placeholder on, or the whole record."""
    messages = conversation.messages
    places = [index for index, message in enumerate(messages) if PLACEHOLDER.search(message.content)]
    places += [flaw.message for flaw in conversation.flaws if flaw.rule == RULE and flaw.message is not None]
    names = ", ".join(map(repr, keys))
    if not places or messages[min(places)].role == "system":
        conversation.flaw(RULE, None, f"the record has {names}, which a text model cannot see", names)
        return
    reason = f"it needs the record's {names}, which a text model cannot see"
    for index in range(min(places), len(messages)):
        shown = PLACEHOLDER.search(messages[index].content)
        conversation.flaw(RULE, index, f"turn {index}: {reason}", shown.group() if shown else "")


def remove_placeholders(text: str) -> str:
    """Return a text without its placeholders, and without blanks at its ends if it had any."""
    remaining = PLACEHOLDER.sub("", text)
    return text if remaining == text else remaining.strip()
