"""Google's chats: those that AI Studio saves in Google Drive, and requests to Gemini's API with their answers.

AI Studio has `chunkedPrompt.chunks` of {text, role, isThought, …}, the API `contents` of {role, parts}; both are parts
of turns. Thoughts become the reasoning of the answer after them, code that the model ran a tool call, and its output
the call's result.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from curate.errors import RecordError
from curate.schemas.conversation import Conversation
from curate.schemas.formats.format import Format
from curate.schemas.reading import turns
from curate.schemas.reading.key_kinds import has_content

NAME = "ai_studio"
SUMMARY = (
    "Google AI Studio's chats in Drive: {runSettings, systemInstruction, chunkedPrompt: {chunks: [{role, text}]}}."
)

API_NAME = "gemini_api"
API_SUMMARY = "Requests to Gemini's API: {systemInstruction, contents: [{role: user|model, parts: [{text}]}], tools}."

Turn = dict[str, object]
TOOL = "code_execution"  # the tool that runs the model's code
_READ = (
    *("text", "parts", "isThought", "thought", "role", "executableCode", "codeExecutionResult"),
    *("functionCall", "functionResponse"),
)
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
    others = {key: value for key, value in record.items() if key not in ("contents", "systemInstruction", "tools")}
    key = "systemInstruction" if "systemInstruction" in record else "system_instruction"
    others.pop(key, None)
    others |= _system(record.get(key))
    others |= _tools(record.get("tools"))
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
        instruction = parts
    return {"system": instruction} if has_content(instruction) else {}


def _other_keys(record: Mapping[str, object]) -> dict[str, object]:
    """Return the record's other keys: the model's name, the system instruction, and settings as metadata."""
    others = {key: value for key, value in record.items() if key not in _USED}
    settings = record.get("runSettings")
    if isinstance(settings, dict):
        model = settings.get("model")
        others["model"] = model.removeprefix("models/") if isinstance(model, str) else None
        settings = {key: value for key, value in settings.items() if key != "model"}
    if has_content(settings):
        others["runSettings"] = settings
    prompt = record["chunkedPrompt"]
    assert isinstance(prompt, dict)
    others |= {key: value for key, value in prompt.items() if key != "chunks" and has_content(value)}
    return others | _system(record.get("systemInstruction"))


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
    reasoning: Turn = {"reasoning_content": "\n\n".join(str(thought["content"]) for thought in thoughts)}
    if others := [rest for thought in thoughts if (rest := _without(thought, "role", "content"))]:
        reasoning["thoughts"] = others
    return reasoning


def _unanswered(thoughts: Sequence[Turn]) -> Turn:
    return {"role": "assistant", "content": "", "stop": False, **_reasoning(thoughts)}


def _split_chunk(chunk: Mapping[str, object]) -> Iterator[tuple[Turn, bool]]:
    """Yield the turns of a chunk, and whether each is only a thought. Its other keys stay with the first."""
    others = _others(chunk, *_READ)
    if has_content(chunk.get("errorMessage")) or str(chunk.get("finishReason") or "STOP") != "STOP":
        others["stop"] = False
    parts = _parts(chunk)
    if isinstance(text := chunk.get("text"), str):
        if more := [rest for part in parts if (rest := _without(part, "text", "thought"))]:
            others["parts"] = more
        parts = [{"text": text}]
    for part, is_thought in _join_texts(parts, bool(chunk.get("isThought"))):
        yield {**_part_turn(part, chunk.get("role")), **others}, is_thought
        others = {}
    if others:  # a chunk without text, such as an image or an error
        yield {"role": chunk.get("role"), "content": "", **others}, False


def _parts(chunk: Mapping[str, object]) -> list[Turn]:
    """Return the parts of a chunk, or itself as its only part; raises RecordError for a part that is not an object."""
    parts = chunk.get("parts")
    if not isinstance(parts, list) or not parts:
        return [dict(chunk)] if has_content(chunk.get("executableCode") or chunk.get("codeExecutionResult")) else []
    if wrong := [part for part in parts if not isinstance(part, dict)]:
        raise RecordError("bad_turn", f"a part of a chunk is {turns.describe_type(wrong[0])}, not an object")
    return parts


def _without(part: Mapping[str, object], *keys: str) -> Turn:
    return {key: value for key, value in part.items() if key not in keys and has_content(value)}


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
            part = {**before, **part, "text": f"{before['text']}{part['text']}"}
        joined.append((part, thought))
    return joined


def _part_turn(part: Mapping[str, object], role: object) -> Turn:
    """Return a part as a turn: a text, code that the model ran, or its output."""
    rest = _others(part, *_READ)
    if (code := part.get("executableCode")) is not None:
        run = {"name": TOOL, "arguments": turns.to_json_line(code)}
        return {"role": role, "content": None, "tool_calls": run, **rest}
    if isinstance(result := part.get("codeExecutionResult"), dict):
        return {
            "role": "tool",
            "name": TOOL,
            "content": result.get("output") or "",
            **_others(result, "output"),
            **rest,
        }
    if isinstance(call := part.get("functionCall"), dict):
        function: Turn = {"name": call.get("name"), "arguments": turns.to_json_line(call.get("args") or {})}
        return {"role": role, "content": None, "tool_calls": function, **_others(call, "name", "args"), **rest}
    if isinstance(result := part.get("functionResponse"), dict):
        content = result.get("response")
        name, others = result.get("name"), _others(result, "name", "response")
        return {"role": "tool", "name": name, "content": content, **others, **rest}
    return {"role": role, "content": part.get("text", ""), **rest}


FORMATS = (
    Format(NAME, SUMMARY, recognises, parse, writes=False),
    Format(API_NAME, API_SUMMARY, recognises_api, parse_api, writes=False),
)
