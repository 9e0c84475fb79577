"""Google's chats: those that AI Studio saves in Google Drive, and requests to Gemini's API with their answers.

AI Studio has `chunkedPrompt.chunks` of {text, role, isThought, …}, the API `contents` of {role, parts}; both are parts
of turns. Thoughts become the reasoning of the answer after them, code that the model ran a tool call, and its output
the call's result.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from curate.errors import RecordError
from curate.schemas.conversation import Conversation
from curate.schemas.formats.format import Format
from curate.schemas.reading import turns
from curate.schemas.reading.answers import is_kept
from curate.schemas.reading.key_kinds import has_content

NAME = "ai_studio"
SUMMARY = (
    "Google AI Studio's chats in Drive: {runSettings, systemInstruction, chunkedPrompt: {chunks: [{role, text}]}}."
)

API_NAME = "gemini_api"
API_SUMMARY = "Requests to Gemini's API: {systemInstruction, contents: [{role: user|model, parts: [{text}]}], tools}."

Turn = dict[str, object]
TOOL = "code_execution"  # the tool that runs the model's code
_CALLS = ("executableCode", "codeExecutionResult", "functionCall", "functionResponse")
_THOUGHTS = ("isThought", "thought")
_READ = ("text", "parts", "role", *_CALLS)  # of a chunk
_OWN = (
    "role",
    "content",
    "name",
    "tool_calls",
    "tool_call_id",
    "function_call",
    "reasoning_content",
    "stop",
    "thoughts",
)
_USED = frozenset({"chunkedPrompt", "systemInstruction", "runSettings"})


def recognises(record: Mapping[str, object]) -> bool:
    """Return whether a record has AI Studio's list of chunks."""
    prompt = record.get("chunkedPrompt")
    return isinstance(prompt, dict) and "chunks" in prompt


def parse(record: Mapping[str, object]) -> Conversation:
    """Read one chat; raises RecordError if its meaning is not clear."""
    conversation = Conversation(None, [])
    prompt = record["chunkedPrompt"]
    chunks = prompt.get("chunks") if isinstance(prompt, dict) else None
    if not isinstance(chunks, list) or not chunks:
        raise RecordError("no_messages", "'chunkedPrompt' has no list of chunks", turns.preview(prompt))
    turns.read_messages(conversation, list(_turns(chunks)), "role", "content")
    turns.read_other_keys(conversation, _other_keys(record), frozenset())
    return conversation


def recognises_api(record: Mapping[str, object]) -> bool:
    """Return whether a record has the contents of the API: turns of parts."""
    contents = record.get("contents")
    return isinstance(contents, list) and bool(contents) and all(isinstance(c, dict) and "parts" in c for c in contents)


def parse_api(record: Mapping[str, object]) -> Conversation:
    """Read one request with its answer; raises RecordError if its meaning is not clear."""
    conversation = Conversation(None, [])
    contents = record["contents"]
    assert isinstance(contents, list)
    turns.read_messages(conversation, list(_turns(contents)), "role", "content")
    system_key = "systemInstruction" if "systemInstruction" in record else "system_instruction"
    others = {key: value for key, value in record.items() if key not in ("contents", system_key, "tools")}
    others = _merge(others, _system(record.get(system_key)), _tools(record.get("tools")))
    turns.read_other_keys(conversation, others, frozenset())
    return conversation


def _tools(value: object) -> Turn:
    """Return the declared functions as `tools`, and the tools that Google runs as `google_tools`."""
    items = value if isinstance(value, list) else [] if value is None else [value]
    groups = [item for item in items if isinstance(item, dict)]
    functions = [
        function
        for group in groups
        for key in ("functionDeclarations", "function_declarations")
        for function in group.get(key) or ()
    ]
    rest = [left for g in groups if (left := _without(g, "functionDeclarations", "function_declarations"))]
    others: Turn = {"tools": functions} if functions else {}
    if rest or len(groups) < len(items):
        others["google_tools"] = rest or value
    return others


def _system(instruction: object) -> Turn:
    """Return a system instruction, text or parts, as a record's key `system`."""
    if isinstance(instruction, dict) and isinstance(parts := instruction.get("parts"), list):
        is_plain = instruction.keys() <= {"parts", "role"} and isinstance(instruction.get("role", ""), str)
        instruction = parts if is_plain else instruction
    return {"system": instruction} if has_content(instruction) else {}


def _other_keys(record: Mapping[str, object]) -> dict[str, object]:
    """Return the record's other keys: the model's name, the system instruction, and settings as metadata."""
    others = {key: value for key, value in record.items() if key not in _USED}
    settings = record.get("runSettings")
    if isinstance(settings, dict) and "model" not in others and isinstance(model := settings.get("model"), str):
        others["model"] = model.removeprefix("models/")
        settings = {key: value for key, value in settings.items() if key != "model"}
    if has_content(settings):
        others["runSettings"] = settings
    prompt = record["chunkedPrompt"]
    assert isinstance(prompt, dict)
    return _merge(others, _system(record.get("systemInstruction")), _without(prompt, "chunks"))


def _merge(turn: Turn, *others: Turn) -> Turn:
    """Return all keys of several objects; of those with one name, the later ones are renamed."""
    merged = dict(turn)
    for key, value in (item for each in others for item in each.items()):
        while key in merged:
            key = f"other_{key}"
        merged[key] = value
    return merged


def _turns(chunks: Sequence[object]) -> Iterator[Turn]:
    """Yield the turns of the chunks in OpenAI's form; thoughts without an answer after them are a turn that was cut."""
    thoughts: list[Turn] = []
    open_calls: list[tuple[str, str]] = []  # (id, name) of calls without a result so far
    calls = 0
    for number, chunk in enumerate(chunks):
        if not isinstance(chunk, dict):
            raise RecordError("bad_turn", f"chunk {number} is {turns.describe_type(chunk)}, not an object")
        for turn, is_thought in _split_chunk(chunk):
            if is_thought:
                thoughts.append(turn)
                continue
            if thoughts and turn["role"] == "model":
                turn |= _reasoning(thoughts)
                thoughts = []
            elif thoughts:
                yield _unanswered(thoughts)
                thoughts = []
            if turn["role"] == "model":
                turn["role"] = "assistant"
            if "tool_calls" in turn:
                calls += 1
                function = turn["tool_calls"]
                assert isinstance(function, dict)
                turn["tool_calls"] = [{"id": f"call_{calls}", "type": "function", "function": function}]
                open_calls.append((f"call_{calls}", str(function["name"])))
            elif turn["role"] == "tool" and open_calls:
                position = next((i for i, (_, name) in enumerate(open_calls) if name == turn["name"]), 0)
                turn["tool_call_id"] = open_calls.pop(position)[0]
            yield turn
    if thoughts:
        yield _unanswered(thoughts)


def _reasoning(thoughts: Sequence[Turn]) -> Turn:
    """Return the keys of a turn with these thoughts before it."""
    reasoning: Turn = {"reasoning_content": "\n\n".join(str(thought["content"] or "") for thought in thoughts)}
    if others := [rest for thought in thoughts if (rest := _without(thought, "role", "content"))]:
        reasoning["thoughts"] = others
    return reasoning


def _unanswered(thoughts: Sequence[Turn]) -> Turn:
    return {"role": "assistant", "content": "", "stop": False, **_reasoning(thoughts)}


def _split_chunk(chunk: Mapping[str, object]) -> Iterator[tuple[Turn, bool]]:
    """Yield the turns of a chunk, and whether each is only a thought. Its other keys stay with the first."""
    others = _others(chunk, *_READ, *_flags(chunk))
    if has_content(chunk.get("errorMessage")) or str(chunk.get("finishReason") or "STOP") != "STOP":
        others["stop"] = False
    parts = _parts(chunk)
    text = chunk.get("text")
    if isinstance(text, str):
        if more := [rest for part in parts if (rest := _beside(part, text))]:
            others["parts"] = more
        parts = [{"text": text}]
    elif text is not None:
        others["text"] = text
    if calls := {key: chunk[key] for key in _CALLS if has_content(chunk.get(key))}:
        parts.append(calls)
    for part, is_thought in _join_texts(parts, bool(chunk.get("isThought"))):
        yield _merge(_part_turn(part, chunk.get("role")), others), is_thought
        others = {}
    if others:  # a chunk without text, such as an image or an error
        yield _merge({"role": chunk.get("role"), "content": ""}, others), False


def _flags(part: Mapping[str, object]) -> list[str]:
    return [key for key in _THOUGHTS if isinstance(part.get(key), bool)]


def _beside(part: Mapping[str, object], text: str) -> Turn:
    """Return the keys of a part that the text of its chunk does not hold."""
    is_held = isinstance(own := part.get("text"), str) and own in text
    return _without(part, *_flags(part), *(("text",) if is_held else ()))


def _parts(chunk: Mapping[str, object]) -> list[Turn]:
    """Return the parts of a chunk; raises RecordError for one that is not an object."""
    parts = chunk.get("parts")
    if not isinstance(parts, list):
        return [{"parts": parts}] if has_content(parts) else []
    if wrong := [part for part in parts if not isinstance(part, dict)]:
        raise RecordError("bad_turn", f"a part of a chunk is {turns.describe_type(wrong[0])}, not an object")
    return list(parts)


def _without(part: Mapping[str, object], *keys: str) -> Turn:
    return {key: value for key, value in part.items() if key not in keys and is_kept(value)}


def _others(part: Mapping[str, object], *keys: str) -> Turn:
    """Return a part's other keys; those that a turn of OpenAI's has, with another meaning, are under `part`."""
    rest = _without(part, *keys)
    if own := {key: rest.pop(key) for key in _OWN if key in rest}:
        rest["part"] = own
    return rest


def _join_texts(parts: Sequence[Turn], is_thought: bool) -> list[tuple[Turn, bool]]:
    """Return the parts with texts in a row joined, as they were written, and whether each is a thought."""
    joined: list[tuple[Turn, bool]] = []
    for part in parts:
        thought = is_thought or bool(part.get("thought"))
        if isinstance(part.get("text"), str) and joined and joined[-1][1] == thought and "text" in joined[-1][0]:
            before = joined.pop()[0]
            text = f"{before['text']}{part['text']}"
            part = {**_merge(_without(before, "text", *_flags(before)), _without(part, "text")), "text": text}
        joined.append((part, thought))
    return joined


def _part_turn(part: Mapping[str, object], role: object) -> Turn:
    """Return a part as a turn: a text, code that the model ran, or its output."""
    for key in _CALLS:
        value = part.get(key)
        if isinstance(value, dict) or (key == "executableCode" and value is not None):
            rest = _others(part, key, *_flags(part))
            return _merge({"role": role, **_call_turn(key, value)}, rest)
    if isinstance(text := part.get("text"), str):
        return {"role": role, "content": text, **_others(part, "text", *_flags(part))}
    return {"role": role, "content": "", **_others(part, *_flags(part))}


def _call_turn(key: str, value: Any) -> Turn:
    """Return the keys of a turn that calls a tool, or holds its result."""
    if key == "executableCode":
        return {"content": None, "tool_calls": {"name": TOOL, "arguments": turns.to_json_line(value)}}
    if key == "codeExecutionResult":
        result: Turn = {"role": "tool", "name": TOOL, "content": value.get("output") or ""}
        return _merge(result, _others(value, "output"))
    if key == "functionCall":
        function: Turn = {"name": value.get("name"), "arguments": turns.to_json_line(value.get("args") or {})}
        return _merge({"content": None, "tool_calls": function}, _others(value, "name", "args"))
    result = {"role": "tool", "name": value.get("name"), "content": value.get("response")}
    return _merge(result, _others(value, "name", "response"))


FORMATS = (
    Format(NAME, SUMMARY, recognises, parse, writes=False),
    Format(API_NAME, API_SUMMARY, recognises_api, parse_api, writes=False),
)
