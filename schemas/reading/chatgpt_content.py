"""The content of a node of ChatGPT's export: its text, its media, what the model thought, and what the page shows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from curate.schemas.reading.answers import is_kept
from curate.schemas.reading.key_kinds import has_content
from curate.schemas.reading.values import MAX_NAME, quote_keys, to_json_line

PRIVATE = ("user_editable_context", "model_editable_context")  # custom instructions, memory
PRIVATE_KEYS = ("user_context_message_data",)  # of a message's metadata: the custom instructions once more
_INSTRUCTION_KEYS = ("user_profile", "user_instructions", "model_set_context")
_TEXT_KEYS = ("text", "result", "output_str", "content", "summary")  # of content in one text
_WEB_PAGES = ("tether_quote", "sonic_webpage")


_NOTHING: Mapping[str, object] = {}


class Content(NamedTuple):
    """A node's text; descriptions of what is not text, with evidence; and the keys that hold neither."""

    kind: str
    text: str = ""
    media: Sequence[tuple[str, object]] = ()
    extra: Mapping[str, object] = _NOTHING


def read_content(value: object) -> Content:
    """Read the content of a message, of any type."""
    try:  # the common case: one text
        if len(value) == 2 and value["content_type"] == "text":  # type: ignore[arg-type,index]
            [text] = value["parts"]  # type: ignore[index]
            if text.__class__ is str:
                return Content("text", text)
    except (KeyError, TypeError, ValueError, IndexError):
        pass
    if not isinstance(value, dict):
        return Content("text", *_read_parts(value if isinstance(value, list) else [value]))
    kind = value.get("content_type")
    kind = kind if isinstance(kind, str) else "text"
    reader = _READERS.get(kind, _read_parts_or_text)
    used, content = reader(kind, value)
    others = {key: other for key, other in value.items() if key not in used and is_kept(other)}
    return content._replace(extra={**content.extra, **others}) if others else content


_Result = tuple[Sequence[str], Content]


def _read_parts_or_text(kind: str, value: Mapping[str, object]) -> _Result:
    """Read content in parts, or else in one text under a known key."""
    parts = value.get("parts")
    if parts is not None:
        text, media, extra = _read_parts(parts if isinstance(parts, list) else [parts])
        return ("content_type", "parts"), Content(kind, text, media, extra)
    for key in _TEXT_KEYS:
        if isinstance(own := value.get(key), str) and own:
            return ("content_type", key), Content(kind, own)
    others = {key: other for key, other in value.items() if key != "content_type" and has_content(other)}
    if not others:
        return tuple(value), Content(kind)
    return tuple(value), Content(kind, media=[(f"content of type {kind[:MAX_NAME]!r}", others)], extra=others)


def _read_code(kind: str, value: Mapping[str, object]) -> _Result:
    text, language = value.get("text"), value.get("language")
    extra = {"language": language} if is_kept(language) and language != "unknown" else {}
    return ("content_type", "text", "language"), Content(kind, _text(text), extra=extra)


def _read_thoughts(kind: str, value: Mapping[str, object]) -> _Result:
    """Read what each thought says: its content, else its chunks, else its summary. Summaries are kept as extra."""
    thoughts = value.get("thoughts")
    texts: list[str] = []
    rest: list[object] = []
    for thought in thoughts if isinstance(thoughts, list) else [thoughts]:
        item = thought if isinstance(thought, dict) else {"content": thought}
        chunks = item.get("chunks")
        joined = "".join(map(_text, chunks)) if isinstance(chunks, list) else ""
        texts.append(_text(item.get("content")) or joined or _text(item.get("summary")))
        known = ("content", "finished", *(("chunks",) if joined == texts[-1] or not joined else ()))
        rest.append({key: other for key, other in item.items() if key not in known and is_kept(other)})
    extra = {"thoughts": rest} if any(rest) else {}
    return ("content_type", "thoughts"), Content(kind, "\n\n".join(filter(None, texts)), extra=extra)


def _read_recap(kind: str, value: Mapping[str, object]) -> _Result:
    """Read what the page shows in place of thoughts ("Thought for 4 seconds"): not a text of the chat."""
    return ("content_type", "content"), Content(kind, extra={"reasoning_recap": value.get("content")})


def _read_web_page(kind: str, value: Mapping[str, object]) -> _Result:
    used = ("title", "url", "text")
    return ("content_type", *used), Content(kind, "\n".join(filter(None, (_text(value.get(key)) for key in used))))


def _read_screen(kind: str, value: Mapping[str, object]) -> _Result:
    return ("content_type",), Content(kind, media=[("a picture of a screen", value)] if has_content(value) else ())


def _read_private(kind: str, value: Mapping[str, object]) -> _Result:
    """Read what a user or the model has written about the user for every chat; nothing of it is kept as extra."""
    return tuple(value), Content(kind, "\n\n".join(filter(None, (_text(value.get(key)) for key in _INSTRUCTION_KEYS))))


_READERS: dict[str, Callable[[str, Mapping[str, object]], _Result]] = {
    "code": _read_code,
    "thoughts": _read_thoughts,
    "reasoning_recap": _read_recap,
    "computer_output": _read_screen,
    **dict.fromkeys(_WEB_PAGES, _read_web_page),
    **dict.fromkeys(PRIVATE, _read_private),
}


def _text(value: object) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    return to_json_line(value)


def _read_parts(parts: Sequence[object]) -> tuple[str, list[tuple[str, object]], dict[str, object]]:
    """Return the text of parts, their media, and the keys of parts that are objects."""
    if len(parts) == 1 and isinstance(parts[0], str):
        return parts[0], [], {}
    texts: list[str] = []
    media: list[tuple[str, object]] = []
    objects: list[object] = []
    is_spoken = any(isinstance(part, dict) and part.get("content_type") == "audio_transcription" for part in parts)
    for part in parts:
        if not isinstance(part, dict):
            texts.append(_text(part))
            continue
        text = part.get("text")
        if isinstance(text, str):
            texts.append(text)
        elif not (is_spoken and _is_sound(part)) and has_content(part):
            media.append((_describe(part), part))
        objects.append({key: other for key, other in part.items() if key != "text"})
    return "\n".join(filter(None, texts)), media, {"parts": objects} if objects else {}


def _is_sound(part: Mapping[str, object]) -> bool:
    """Return whether a part is only the sound of what a transcription beside it says."""
    kind = part.get("content_type")
    if kind == "real_time_user_audio_video_asset_pointer":
        return not any(has_content(part.get(key)) for key in ("frames_asset_pointers", "video_container_asset_pointer"))
    return kind == "audio_asset_pointer"


def _describe(part: Mapping[str, object]) -> str:
    kind = part.get("content_type") or part.get("type")
    return f"a part of type {kind[:MAX_NAME]!r}" if isinstance(kind, str) else f"a part with {quote_keys(list(part))}"
