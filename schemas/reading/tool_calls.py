"""Tool calls and definitions of tools in the shapes that dumps have, as OpenAI's chat format writes them.

A call becomes `{"id", "type": "function", "function": {"name", "arguments"}}` with its arguments as JSON text; a
definition `{"type": "function", "function": {"name", "description", "parameters"}}`. Other keys are kept.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from curate.errors import RecordError
from curate.schemas.conversation import Conversation, Message
from curate.schemas.reading.values import decode_json, describe_type, preview, python_literal, to_json_line

NULLS, ENCODED_TWICE, FROM_TEXT = "null_arguments", "arguments_decoded", "call_from_text"  # repairs
UNREAD = "unread_call"
RESULT_FROM_TEXT, UNLINKED = "result_from_text", "unlinked_result"
_ARGUMENT_KEYS = ("arguments", "parameters", "input", "args", "kwargs")
_MAX_ENCODINGS = 3  # of arguments as JSON text within JSON text

# Hermes' and Qwen's marks around a call, and glaive's, whose calls end with the text or its end token.
_MARKS = (("<tool_call>", "</tool_call>"), ("<functioncall>", "</functioncall>"))
_END_OF_TEXT = "<|endoftext|>"
_CALL_START = re.compile(r"(?:\A|\n|<\|python_tag\|>|\[TOOL_CALLS\])\s*(?=[\[{])")
_FENCE = "```"
# Marks at the start of an answer that is nothing but calls: LLaMA 3.1, Mistral, and Qwen3-Coder without <tool_call>.
_PYTHON_TAG, _TOOL_CALLS, _XML = _LEADING = ("<|python_tag|>", "[TOOL_CALLS]", "<function=")
STARTS = frozenset(mark[:2] for mark in _LEADING)
_END_TOKENS = re.compile(r"(?:\s*(?:<\|e(?:om|ot)_id\|>|<\|endoftext\|>|<\|im_end\|>|</s>))+\s*\Z")
_NAMED = re.compile(r"\s*(?:\[TOOL_CALLS\])?\s*([\w.-]+)(?:\[CALL_ID\]\w+)?\[ARGS\]\s*(?=\{)")  # Mistral, since 2025
_XML_CALL = re.compile(r"\s*<function=([^<>\s]+)>(.*?)</function>", re.DOTALL)  # Qwen3-Coder; LLaMA 3.1 with JSON in it
_XML_ARGUMENT = re.compile(r"\s*<parameter=([^<>\s]+)>\n?(.*?)\n?</parameter>", re.DOTALL)
_RESULT, _END_OF_RESULT = "<tool_response>", "</tool_response>"


@dataclass
class _Notes:
    """Repairs made to one message's calls."""

    nulls: int = 0
    decoded: int = 0

    def record(self, conversation: Conversation, index: int | None, before: object, after: str) -> None:
        for rule, count in ((NULLS, self.nulls), (ENCODED_TWICE, self.decoded)):
            if count:
                conversation.edit(rule, index, preview(before), after, count)


def read_calls(conversation: Conversation, calls: object, index: int, *, strict: bool = False) -> str | None:
    """Return the calls of a turn as JSON text: a list of calls, one call, or either as JSON text; None for no call.

    A call of a provider's own kind is unchanged, unless `strict`. Raises RecordError for what is no call.
    """
    value = _literal(calls) if isinstance(calls, str) else calls
    items = value if isinstance(value, list) else [value]
    if not calls or value == []:
        return None
    notes = _Notes()
    read = [_call(item, notes) or _other_call(item, strict) for item in items]
    if None in read:
        reason = f"the tool calls of turn {index} are {describe_type(calls)}, not a list of calls"
        raise RecordError("bad_value", reason, preview(calls))
    text = to_json_line(read)
    notes.record(conversation, index, calls, text)
    return text


def are_same(first: str, second: str) -> bool:
    """Return whether two lists of calls, as JSON text, have the same functions with the same arguments."""
    return _functions(first) == _functions(second)


def _functions(calls: str) -> list[tuple[object, object]]:
    functions = [call.get("function") or call for call in json.loads(calls)]
    return [(function.get("name"), clean_arguments(_decoded(function.get("arguments")))) for function in functions]


def _decoded(arguments: object) -> object:
    """Return arguments as a value, so that the blanks of JSON text make no difference."""
    return decode_json(arguments) if isinstance(arguments, str) else arguments


def _other_call(value: object, strict: bool) -> dict[str, object] | None:
    return value if isinstance(value, dict) and value and not strict else None


def _call(value: object, notes: _Notes) -> dict[str, object] | None:
    """Return one call in OpenAI's form; None for a value that is none."""
    if isinstance(value, str):
        value = _literal(value)
    if not isinstance(value, dict):
        return None
    call = {key: item for key, item in value.items() if item is not None}
    function = call.pop("function", None)
    if not isinstance(function, dict):  # a bare function, or Anthropic's block
        function, call = call, {key: call.pop(key) for key in ("id",) if key in call}
        kind = function.pop("type", None)
        call |= {"type": kind} if isinstance(kind, str) and kind not in ("tool_use", "tool_call", "function") else {}
    read = _function(function, notes)
    if read is None:
        return None
    head = {"id": call.pop("id")} if call.get("id") not in (None, "") else {}
    return {**head, "type": call.pop("type", "function"), "function": read, **call}


def _function(value: Mapping[str, object], notes: _Notes) -> dict[str, object] | None:
    function = {key: item for key, item in value.items() if item is not None}
    name = function.pop("name", None)
    key = next((key for key in _ARGUMENT_KEYS if key in function), None)
    if not isinstance(name, str) or not name:
        return None
    arguments = clean_arguments(function.pop(key) if key else {}, notes)
    return {"name": name, "arguments": arguments, **function}


def clean_arguments(value: object, notes: _Notes | None = None) -> str:
    """Return a call's arguments as JSON text.

    Nulls under keys of an object are what a table fills a union of columns with, and are removed; JSON text within
    JSON text is decoded. JSON text is otherwise unchanged.
    """
    notes = notes or _Notes()
    if not isinstance(value, str):
        stripped, count = strip_nulls(value)
        notes.nulls += count
        return to_json_line(stripped)
    text = value
    for _ in range(_MAX_ENCODINGS):
        inner = decode_json(text) if text[:1].isspace() or text[:1] == '"' else None
        if not isinstance(inner, str) or not isinstance(decode_json(inner), str | dict | list):
            break
        text = inner
        notes.decoded += 1
    return text


def strip_nulls(value: object) -> tuple[object, int]:
    """Return a value without the keys whose value is null, at any depth, and how many there were."""
    if isinstance(value, dict):
        items = {key: strip_nulls(item) for key, item in value.items() if item is not None}
        count = len(value) - len(items) + sum(inner for _, inner in items.values())
        return ({key: item for key, (item, _) in items.items()}, count) if count else (value, 0)
    if isinstance(value, list):
        entries = [strip_nulls(item) for item in value]
        count = sum(inner for _, inner in entries)
        return ([item for item, _ in entries], count) if count else (value, 0)
    return value, 0


# ---- in the text


def has_calls(text: str) -> bool:
    """Return whether a text has the marks of calls, at little cost."""
    return "<tool_call>" in text or "<functioncall>" in text or text.lstrip().startswith(_LEADING)


def split_calls(conversation: Conversation, text: str, index: int) -> tuple[str, str | None]:
    """Return an answer's text without the calls in marks at its end, and these as JSON text.

    Calls may be JSON, Qwen3-Coder's XML, or have Python's quotes. If anything follows them, or one cannot be read, all
    stay in the text; an edit counts them where the text is nothing else.
    """
    notes = _Notes()
    mark = next(((start, end) for start, end in _MARKS if start in text), None)
    if mark is None:
        before, bodies = "", [text]
        calls = _leading_calls(_END_TOKENS.sub("", text).strip(), notes)
    else:
        before, *bodies = text.split(mark[0])
        calls = [_marked_call(body, notes) for body in (_body(part, mark[1]) for part in bodies)]
    if None in calls or not calls or before.count(_FENCE) % 2:
        if not before.strip():
            conversation.edit(UNREAD, index, text, text, len(bodies))
        return text, None
    read = to_json_line(calls)
    conversation.edit(FROM_TEXT, index, text[len(before) :], read, len(calls))
    notes.record(conversation, index, text, read)
    return before.strip(), read


def _marked_call(body: str, notes: _Notes) -> dict[str, object] | None:
    calls = _xml_calls(body, notes) if body.startswith(_XML) else [_call(_literal(body), notes)]
    return calls[0] if len(calls) == 1 else None


def _leading_calls(text: str, notes: _Notes) -> list[dict[str, object] | None]:
    """Return the calls of a text that begins with one of the leading marks; none if it is anything else too."""
    if text.startswith(_XML):
        return _xml_calls(text, notes)
    if text.startswith(_TOOL_CALLS) and _NAMED.match(text):
        return _named_calls(text, notes)
    value = _literal(text.removeprefix(_PYTHON_TAG).removeprefix(_TOOL_CALLS).strip())
    return [_call(item, notes) for item in (value if isinstance(value, list) else [value])]


def _named_calls(text: str, notes: _Notes) -> list[dict[str, object] | None]:
    calls: list[dict[str, object] | None] = []
    place = 0
    while named := _NAMED.match(text, place):
        try:
            arguments, place = json.JSONDecoder().raw_decode(text, named.end())
        except (ValueError, RecursionError):
            return []
        calls.append(_call({"name": named[1], "arguments": arguments}, notes))
    return calls if not text[place:].strip() else []


def _xml_calls(text: str, notes: _Notes) -> list[dict[str, object] | None]:
    calls: list[dict[str, object] | None] = []
    for name, body in _elements(_XML_CALL, text) or ():
        arguments = _xml_arguments(body)
        calls.append(_call({"name": name, "arguments": arguments}, notes) if arguments is not None else None)
    return calls


def _xml_arguments(text: str) -> object:
    """Return the arguments within a call's tags, an object of JSON or a tag for each; None for anything else.

    A value in a tag is JSON, as Qwen3-Coder's template writes what is not text, or else text.
    """
    if text.lstrip().startswith("{"):
        value = decode_json(text)
        return value if isinstance(value, dict) else None
    elements = _elements(_XML_ARGUMENT, text)
    if elements is None:
        return None
    values = ((name, body, decode_json(body)) for name, body in elements)
    return {name: body if value is None or isinstance(value, str) else value for name, body, value in values}


def _elements(pattern: re.Pattern[str], text: str) -> list[tuple[str, str]] | None:
    """Return the name and the body of each element of a text; None if there is anything between or after them."""
    found: list[tuple[str, str]] = []
    place = 0
    while element := pattern.match(text, place):
        found.append((element[1], element[2]))
        place = element.end()
    return found if not text[place:].strip() else None


def find_calls(text: str) -> tuple[str, str | None]:
    """Return a model's answer without the calls at its end, and these as JSON text; None if it makes none.

    Calls are in the marks of `split_calls`, or JSON in a line of its own or after a mark of LLaMA-3.1 or Mistral.
    """
    content, calls = split_calls(Conversation(None, []), text, 0)
    if calls is not None:
        return content, calls
    for match in _CALL_START.finditer(text):
        value = decode_json(text[match.end() :])
        items = value if isinstance(value, list) else [value]
        read = [_call(item, _Notes()) for item in items]
        if read and None not in read:
            return text[: match.start()].strip(), to_json_line(read)
    return text, None


def _body(part: str, end: str) -> str:
    """Return the text of a call from what follows its mark; no call if there is other text after it."""
    body, _, rest = part.strip().removesuffix(_END_OF_TEXT).partition(end)
    return "" if rest.strip() else body.strip()


def split_results(text: str) -> list[str]:
    """Return the results in a text of nothing but Hermes' <tool_response> marks; an empty list for any other text."""
    before, *results = text.strip().split(_RESULT)
    results = [result.rstrip() for result in results]
    if before or not all(result.endswith(_END_OF_RESULT) for result in results):
        return []
    return [result.removesuffix(_END_OF_RESULT).strip() for result in results]


def _literal(text: str) -> object:
    """Return the value of a text that is JSON, JSON with glaive's quoted arguments, or a Python literal."""
    value = decode_json(text)
    if value is None:
        value = decode_json(_requote(text))
    if value is None:
        value = python_literal(text)
    return value


def _requote(text: str) -> str:
    """Return a call of glaive's, whose arguments are JSON text in single quotes, as JSON."""
    head, key, tail = text.partition('"arguments"')
    colon, quoted, end = tail[:1], tail[1:].strip(), tail.rstrip()[-1:]
    quoted = quoted.removesuffix("}").rstrip()
    if not (key and colon == ":" and end == "}" and quoted[:1] == quoted[-1:] == "'" and len(quoted) > 1):
        return text
    return head + key + ":" + json.dumps(quoted[1:-1].replace("\\'", "'")) + "}"


# ---- results


def unwrap_results(conversation: Conversation, message: Message, index: int) -> None:
    """Make a prompt or a tool's message of nothing but <tool_response> marks the text in them, of a tool."""
    results = split_results(message.content)
    if results and message.role in ("user", "tool"):
        text = "\n".join(results)
        conversation.edit(RESULT_FROM_TEXT, index, message.content, text)
        message.role, message.content = "tool", text


def link_results(conversation: Conversation) -> None:
    """Give results the ids of the calls that they answer; name a result whose id no call before it has."""
    messages = conversation.messages
    known: set[str] = set()
    for index, (message, call_id) in enumerate(zip(messages, call_ids(messages), strict=True)):
        if message.tool_calls is not None:
            known |= {identity for identity, _ in _call_keys(message.tool_calls)}
        if message.role != "tool":
            continue
        if message.tool_call_id is None:
            message.tool_call_id = call_id or None
        elif message.tool_call_id not in known:
            conversation.edit(UNLINKED, index, message.tool_call_id, "")


def call_ids(messages: Sequence[Message]) -> list[str]:
    """Return the id of the tool call that each message answers; empty if it answers none, or one without an id.

    A tool's message without an id answers the first open call of its name, or else the first open call.
    """
    ids: list[str] = []
    claimed = {message.tool_call_id for message in messages if message.role == "tool" and message.tool_call_id}
    open_calls: list[tuple[str, str]] = []  # (id, name) of calls that no result names
    for message in messages:
        if message.tool_calls is not None:
            open_calls = [call for call in _call_keys(message.tool_calls) if call[0] not in claimed]
        ids.append("")
        if message.role != "tool":
            continue
        if message.tool_call_id:
            ids[-1] = message.tool_call_id
        elif open_calls:
            index = next((i for i, (_, name) in enumerate(open_calls) if name == message.name), 0)
            ids[-1] = open_calls.pop(index)[0]
    return ids


def order_results(messages: Sequence[Message]) -> list[Message]:
    """Return messages with the results of each answer in the order of its calls, as templates without ids link them.

    Results that answer no call of the answer come last, in their order.
    """
    ordered = list(messages)
    if sum(message.role == "tool" for message in messages) < 2:
        return ordered
    links = list(zip(messages, call_ids(messages), strict=True))
    positions: dict[str, int] = {}  # of the calls of the last answer, by id
    start = 0
    for role, group in groupby(links, key=lambda link: link[0].role):
        results = list(group)
        if role == "assistant":
            keys = _call_keys(results[-1][0].tool_calls or "")
            positions = {identity: index for index, (identity, _) in enumerate(keys)}
        elif role == "tool":
            results.sort(key=lambda link: positions.get(link[1], len(positions)))
            ordered[start : start + len(results)] = [message for message, _ in results]
        start += len(results)
    return ordered


def _call_keys(text: str) -> list[tuple[str, str]]:
    """Return the id and the name of the function of each call; empty for what is missing."""
    calls = decode_json(text)
    return [_call_key(call) for call in calls] if isinstance(calls, list) else []


def _call_key(call: object) -> tuple[str, str]:
    if not isinstance(call, dict):
        return "", ""
    function = call.get("function")
    name = function.get("name") if isinstance(function, dict) else None
    return str(call.get("id") or ""), str(name or "")


# ---- definitions


def read_tools(conversation: Conversation, value: object) -> str | None:
    """Return the definitions of a record's tools as JSON text; None if it has none, or for what is no definition."""
    tools = decode_json(value) if isinstance(value, str) else value
    items = tools if isinstance(tools, list) else [tools]
    if not items or not all(isinstance(item, dict) and item for item in items):
        return None
    notes = _Notes()
    stripped = [strip_nulls(item) for item in items]
    if not isinstance(value, str):
        notes.nulls = sum(count for _, count in stripped)
    read = [_definition(item) for item in (items if isinstance(value, str) else [item for item, _ in stripped])]
    if None in read:
        return None
    text = to_json_line(read)
    notes.record(conversation, None, value, text)
    return text


def _definition(tool: object) -> dict[str, object] | None:
    """Return a tool's definition in OpenAI's form; a tool of a provider's own, such as web search, is unchanged."""
    if not isinstance(tool, dict):
        return None
    if isinstance(tool.get("function"), dict):
        return {"type": "function", **tool}
    if not isinstance(tool.get("name"), str):
        return tool if isinstance(tool.get("type"), str) and tool["type"] != "function" else None
    function = {key: item for key, item in tool.items() if key not in ("type", "input_schema")}
    if "input_schema" in tool:  # Anthropic's
        function["parameters"] = tool["input_schema"]
    if tool.get("type", "function") not in ("function", "custom"):
        return tool
    return {"type": "function", "function": function}
