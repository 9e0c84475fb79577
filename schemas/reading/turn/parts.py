"""The content of a turn: a text, or parts of text, reasoning, tool calls, results of tools, and media."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import groupby

from curate.schemas.reading import media
from curate.schemas.reading.key_kinds import SPECIAL_KEYS, TURN_KINDS, has_content
from curate.schemas.reading.media import TEXT_TYPES
from curate.schemas.reading.values import MAX_NAME, describe_type, number_to_text, preview, quote_keys, to_json_line

TEXT_KEYS = ("text", "value", "content", "refusal", "output_text")  # of a part
REASONING_KEYS = ("thinking", "reasoning", "text", "value", "content", "summary")  # of a part or of an entry
REASONING_TYPES = frozenset(
    {"thinking", "reasoning", "thought", "thoughts", "summary_text"}
    | {"reasoning_text", "reasoning.text", "reasoning.summary"}
)
CALL_TYPES = frozenset({"tool_use", "tool_call", "function_call", "server_tool_use"})
RESULT_TYPES = frozenset({"tool_result", "tool_response", "function_call_output", "web_search_tool_result"})
HIDDEN_TYPES = frozenset({"redacted_thinking", "reasoning.encrypted", "token_budget", "flag"})  # nothing to read
_OTHER_CALLS, _OTHER_RESULTS = "_tool_use", "_tool_result"  # Anthropic's: mcp_tool_use, code_execution_tool_result, …
_RESULT_MEDIA = ("source", "data", "file_id", "image", "image_url", "video_url", "audio_url")  # of a part of a result
CALL_KEYS = ("tool_calls", "function_call", "toolCalls", "functionCall", "tool_call", "toolCall")  # of a turn
_MARKS = frozenset(
    {"train", "masked", "train_parts", "train_reasoning", "hidden_if_true", "hidden_if_false", "channel"}
)
_SHARED = SPECIAL_KEYS | {"role", "from"} | {key for key, kind in TURN_KINDS.items() if kind in _MARKS}
_RESULT_KEYS = ("content", "output", "value", "text")
_CALL_KEYS = ("id", "name", "input", "arguments", "parameters", "function", "value", "call_id")
_TEXT_LIKE = frozenset({*TEXT_KEYS, *REASONING_KEYS, *_RESULT_KEYS})
_RESULT_IDS = ("tool_use_id", "tool_call_id", "call_id", "id")


@dataclass
class Content:
    """What a turn's content holds. `results` are those of tools: the id of the call, or None, the text and other keys.

    `others` are what is not read of the parts: their other keys, media, and parts of which nothing is to be read.
    """

    texts: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    calls: list[object] = field(default_factory=list)
    results: list[tuple[str | None, str, dict[str, object]]] = field(default_factory=list)
    media: list[object] = field(default_factory=list)
    others: list[object] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "\n".join(self.texts)


def read_content(value: object) -> Content | None:
    """Return what content in parts holds; None if a part is of a kind that is not known."""
    content = Content()
    rest, content.media = media.remove_parts(value)
    content.others += content.media
    return content if _add(content, rest) else None


def _add(content: Content, value: object) -> bool:
    """Add a part, or a list of parts; return whether all of them are known."""
    if isinstance(value, str):
        content.texts.append(value)
        return True
    if value is None:
        return True
    if isinstance(value, list):
        return all(_add(content, part) for part in value)
    return isinstance(value, dict) and _add_part(content, value)


def _add_part(content: Content, part: Mapping[str, object]) -> bool:
    if isinstance(parts := part.get("parts"), list):
        return _add(content, parts)
    kind = part.get("type") or "text"
    if not isinstance(kind, str):
        return False
    if kind in HIDDEN_TYPES:
        content.others.append(part)
        return True
    if kind in REASONING_TYPES or part.get("thought") is True:  # Gemini's
        text = reasoning_text(part)
        content.reasoning += [text] if text else []
        _keep_others(content, part, *REASONING_KEYS)
        return text is not None
    if kind in CALL_TYPES or kind.endswith(_OTHER_CALLS):
        content.calls.append(part.get("value", part))
        _keep_others(content, part, *(("value",) if "value" in part else _CALL_KEYS))
        return True
    if _is_result(part):
        value = _result_value(part)
        content.media += result_media(value)
        first = next((key for key in _RESULT_IDS if isinstance(part.get(key), str)), "")
        identity = part.get(first)
        others = _unread(part, *_RESULT_KEYS)
        others.pop(first, None)
        content.results.append((identity if isinstance(identity, str) else None, result_text(value), others))
        read = read_content(value) if _is_parts(value) else None
        content.others += read.others if read is not None else []
        return True
    _keep_others(content, part, *(key for key in TEXT_KEYS if isinstance(part.get(key), str)))
    return kind in (*TEXT_TYPES, "refusal") and _add(content, _text(part))


def _keep_others(content: Content, part: Mapping[str, object], *read: str) -> None:
    """Keep the keys of a part that are not read."""
    if rest := _unread(part, *read):
        content.others.append(rest)


def _unread(part: Mapping[str, object], *read: str) -> dict[str, object]:
    """Return the keys of a part that hold something and are not read; of several keys for one text, the first is."""
    first = next((key for key in read if has_content(part.get(key))), None)
    known = {"type", first, *(key for key in read if key not in _TEXT_LIKE or part.get(key) == part.get(first or ""))}
    return {key: value for key, value in part.items() if key not in known and has_content(value)}


def _text(part: Mapping[str, object]) -> object:
    """Return the text of a part; a value that cannot be one if it has none."""
    return next((part[key] for key in TEXT_KEYS if isinstance(part.get(key), str)), False)


def _result_value(part: Mapping[str, object]) -> object:
    return next((part[key] for key in _RESULT_KEYS if part.get(key) is not None), "")


def _is_result(part: object) -> bool:
    kind = part.get("type") if isinstance(part, dict) else None
    return isinstance(kind, str) and (kind in RESULT_TYPES or kind.endswith(_OTHER_RESULTS))


def result_media(value: object) -> list[object]:
    """Return the parts of a tool's result that hold media; not those of an object of the tool's own."""
    found = media.remove_parts(value)[1] if isinstance(value, list) and _is_parts(value) else []
    return [part for part in found if isinstance(part, dict) and any(key in part for key in _RESULT_MEDIA)]


def split_at_results(turn: dict[str, object], key: str) -> list[dict[str, object]]:
    """Return an answer with results of tools among its parts as turns in their order: calls, results, the answer.

    `key` is that of the parts. Marks for training stay with each answer, reasoning and calls with the first, and what
    the last one does not share with the others, with the last.
    """
    items = turn[key]
    groups = [(result, list(group)) for result, group in groupby(items if isinstance(items, list) else [], _is_result)]
    answers = [index for index, (result, _) in enumerate(groups) if not result]
    if not answers or len(groups) < 2:
        return [turn]
    others = {name: value for name, value in turn.items() if name != key}
    first = {name: value for name, value in others.items() if _is_of_first(name)}
    shared = {name: value for name, value in others.items() if name in _SHARED}
    last = {name: value for name, value in others.items() if name not in first}
    turns: list[dict[str, object]] = []
    for index, (result, group) in enumerate(groups):
        keys = (first if index == answers[0] else {}) | (last if index == answers[-1] else shared)
        turns.append({"role": "user", key: group} if result else {**keys, key: group})
    return turns


def _is_of_first(name: str) -> bool:
    return TURN_KINDS.get(name) == "reasoning" or name in CALL_KEYS


def result_text(value: object) -> str:
    """Return a tool's result as text: its parts joined, or any other value as JSON."""
    read = read_content(value) if _is_parts(value) else None
    if read is not None and not (read.calls or read.results or read.media or read.reasoning):
        return read.text
    return to_json_line(value)


def _is_parts(value: object) -> bool:
    """Return whether a value is text or typed parts of text, not an object of a tool's own."""
    if isinstance(value, list):
        return all(isinstance(item, dict) and _is_parts(item) for item in value)
    return isinstance(value, str) or (isinstance(value, dict) and isinstance(value.get("type"), str))


def reasoning_text(value: object) -> str | None:
    """Return reasoning as text: a text, an object with one, or a list of these; None for another value."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        texts = [reasoning_text(item) for item in value if not _is_hidden(item)]
        return None if None in texts else "\n\n".join(text for text in texts if text)
    if not isinstance(value, dict):
        return None
    first = next((value[key] for key in REASONING_KEYS if value.get(key) not in (None, "", [])), None)
    if first is None:
        return "" if any(key in value for key in REASONING_KEYS) else None
    return reasoning_text(first)


def _is_hidden(part: object) -> bool:
    kind = part.get("type") if isinstance(part, dict) else None
    return isinstance(kind, str) and kind in HIDDEN_TYPES


def number_text(value: object) -> str | None:
    """Return a number as text; None for another value, true and false included."""
    return number_to_text(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def describe_part(part: object) -> str:
    """Describe a part that is not text by its type, or by its keys."""
    kind = part.get("type") if isinstance(part, dict) else None
    if isinstance(kind, str) and kind not in TEXT_TYPES:
        return f"a part of type {preview(kind)[:MAX_NAME]!r}"
    return f"a part with {quote_keys(list(part))}" if isinstance(part, dict) else describe_type(part)


def describe_content(value: object) -> str:
    """Describe content that is not text, by the type of its first part that is not text."""
    parts = value if isinstance(value, list) else [value]
    for part in parts:
        if isinstance(part, dict) and read_content(part) is None and isinstance(part.get("type"), str):
            return f"a part of type {preview(part['type'])[:MAX_NAME]!r}"
    return describe_type(value)


RESULTS_JOIN = "\n</tool_response>\n<tool_response>\n"  # of LLaMA-Factory, between the results of several calls


def split_joined_results(turn: dict[str, object]) -> list[dict[str, object]]:
    """Return a turn for each of several results that were written as one, with the parts beside it; else the turn.

    Source of the mark: LLaMA-Factory's converter of OpenAI's messages (src/llamafactory/data/converter.py).
    """
    results = turn.get("results")
    if not isinstance(results, list) or turn.keys() != {"from", "value", "results"}:
        return [turn]
    found = [
        {key: item for key, item in each.items() if item is not None} for each in results if isinstance(each, dict)
    ]
    texts = [each.get("value") for each in found]
    if len(found) < len(results) or RESULTS_JOIN.join(map(str, texts)) != turn["value"]:
        return [turn]
    return [{"from": turn["from"], **each} for each in found]
