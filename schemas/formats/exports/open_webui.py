"""Open WebUI's chats: each a tree, messages by id, and `currentId` the one that was shown last.

Sources of the keys: Open WebUI's export of chats, and the fixture of LibreChat's importer
(api/server/utils/import/__data__/openwebui-export.json). Reasoning and calls of tools stand in the text, as elements
`<details type="reasoning">`, or in newer exports as items of OpenAI's responses in `output`.
"""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from typing import Any

from curate.errors import RecordError
from curate.schemas.conversation import Conversation
from curate.schemas.formats.format import Format
from curate.schemas.reading import answers, media, ratings, turns
from curate.schemas.reading.answers import is_kept
from curate.schemas.reading.key_kinds import has_content, is_false, to_number
from curate.schemas.reading.options import DEFAULT, ReadOptions
from curate.schemas.reading.tree import MessageTree
from curate.schemas.reading.turn import context, roles
from curate.schemas.reading.values import decode_json

NAME = "open_webui"
SUMMARY = (
    "Open WebUI's chats: {title, chat: {models, history: {messages: {id: {parentId, role, content}}, currentId}}}."
)

Message = Mapping[str, Any]

_USED = frozenset({"id", "chat", "user_id", "history"})
_READ = frozenset({"id", "parentId", "childrenIds", "role", "content", "output", "model", "done"})
_DETAILS = re.compile(r"<details(?P<attributes>(?:\s+[\w-]+=\"[^\"]*\")*)\s*>(?P<body>.*?)</details>\s*", re.DOTALL)
_ATTRIBUTE = re.compile(r"([\w-]+)=\"([^\"]*)\"")
_SUMMARY_TAG = re.compile(r"\s*<summary>.*?</summary>\s*", re.DOTALL)
_QUOTE = re.compile(r"^> ?", re.MULTILINE)
_FENCE = re.compile(r"\s*```\w*\n(.*?)\n?```\s*", re.DOTALL)
_KINDS = ("reasoning", "tool_calls", "code_interpreter")  # of details
_ITEMS = ("reasoning", "function_call", "function_call_output", "message")  # of `output`


def recognises(record: Mapping[str, object]) -> bool:
    """Return whether a record has the history of a chat: messages by id."""
    return isinstance(_history(record).get("messages"), dict)


def _chat(record: Mapping[str, object]) -> Mapping[str, Any]:
    chat = record.get("chat")
    return chat if isinstance(chat, dict) else record


def _history(record: Mapping[str, object]) -> Mapping[str, Any]:
    history = _chat(record).get("history")
    return history if isinstance(history, dict) else {}


def parse(record: Mapping[str, object]) -> Conversation:
    """Read the current branch of one record; raises RecordError if it has no message."""
    return parse_all(record, DEFAULT)[0]


def parse_all(record: Mapping[str, object], options: ReadOptions) -> Sequence[Conversation]:
    """Read the current branch first, then the others if asked; raises RecordError if there is no message."""
    messages = {
        name: message for name, message in _history(record)["messages"].items() if isinstance(message, dict) and message
    }
    if not messages:
        raise RecordError("no_messages", "'messages' of the chat's history is empty", turns.preview(record))
    tree = MessageTree({name: _parent(message) for name, message in messages.items()})
    current = tree.shown_leaf(
        _history(record).get("currentId"), lambda name: to_number(messages[name].get("timestamp"))
    )
    others = [leaf for leaf in tree.leaves() if leaf != current]
    rated = {name: rating for name, each in messages.items() if (rating := _rating(each)) is not None}

    def read(path: Sequence[str]) -> tuple[Conversation, list[list[str]]]:
        return _read_path(record, [(name, messages[name]) for name in path], messages)

    read_rated = ratings.use_ratings(tree, read, {**rated, **options.ratings})
    return answers.read_branches(tree, current, others, read_rated, options)


def _parent(message: Message) -> str | None:
    parent = message.get("parentId")
    return parent if isinstance(parent, str) and parent else None


def _rating(message: Message) -> bool | None:
    """Return whether an answer was rated up: 1; down: -1."""
    annotation = message.get("annotation")
    number = to_number(annotation.get("rating")) if isinstance(annotation, dict) else None
    return None if not number else number > 0


def _read_path(
    record: Mapping[str, object], path: Sequence[tuple[str, Message]], known: Mapping[str, Message]
) -> tuple[Conversation, list[list[str]]]:
    """Return the conversation of a path from the root to a leaf, and the nodes of each of its messages."""
    conversation = Conversation(None, [])
    conversation.source_id = turns.read_source_id(conversation, record.get("id"))
    builder = answers.MessageBuilder(conversation)
    for name, message in path:
        _read_message(builder, name, message)
    sources = builder.finish()
    others = {key: value for key, value in record.items() if key not in _USED} if "chat" in record else {}
    turns.read_other_keys(conversation, {**_rest(record, known, others), **others}, frozenset())
    models = [message.get("model") for _, message in path if isinstance(message.get("model"), str)]
    conversation.model = (models[-1] if models else None) or conversation.model
    if has_content(record.get("user_id")):
        conversation.edit("private_data", None, "", "")
    return conversation, sources


def _rest(
    record: Mapping[str, object], known: Mapping[str, Message], others: Mapping[str, object]
) -> dict[str, object]:
    """Return what the chat says beside its messages and `others`; the prompt of the system is under `system`."""
    chat = _chat(record)
    rest = {key: value for key, value in chat.items() if key not in ("history", "user_id", "id") and is_kept(value)}
    shown = rest.get("messages")
    if isinstance(shown, list) and all(isinstance(each, dict) and each.get("id") in known for each in shown):
        del rest["messages"]  # the current branch, once more
    params = rest.get("params")
    if isinstance(params, dict) and isinstance(params.get("system"), str) and "system" not in rest:
        rest["system"] = params["system"]
        rest["params"] = {key: value for key, value in params.items() if key != "system"}
    history = {key: value for key, value in _history(record).items() if key not in ("messages", "currentId")}
    if unread := {name: each for name, each in _history(record)["messages"].items() if name not in known and each}:
        history["messages"] = unread  # that are no messages
    rest |= {"history": history} if history else {}
    inner = {key: rest.pop(key) for key in [key for key in rest if key in others and rest[key] != others[key]]}
    if chat is not record and chat.get("id") not in (None, "", record.get("id")):
        inner["id"] = chat["id"]
    return {**rest, **({"chat": inner} if inner else {})}


def _read_message(builder: answers.MessageBuilder, name: str, message: Message) -> None:
    index = len(builder.conversation.messages)
    role = roles.STANDARD_ROLES.get(str(message.get("role")))
    if role is None:
        reason = f"the role of turn {index} is {turns.preview(message.get('role'))!r}"
        raise RecordError("unknown_role", reason, turns.preview(message))
    extra = {key: value for key, value in message.items() if key not in _READ and is_kept(value)}
    if role == "assistant":
        _read_answer(builder, name, message, extra)
    elif role == "user":
        builder.add_prompt(name, _text(builder, message, index), extra)
        _flag_files(builder, message)
    else:
        text = _text(builder, message, index)
        builder.conversation.edit("hidden_message", None, text, "")


def _text(builder: answers.MessageBuilder, message: Message, index: int) -> str:
    return turns.read_text(builder.conversation, message.get("content"), index)


def _flag_files(builder: answers.MessageBuilder, message: Message) -> None:
    """Flag a prompt with pictures or files: their text is not in the export, or only a part of it was seen."""
    index = len(builder.conversation.messages) - 1
    files = message.get("files")
    for file in files if isinstance(files, list) else [files]:
        if has_content(file):
            is_image = isinstance(file, dict) and file.get("type") == "image"
            reason = f"turn {index} has 'files', which a text model cannot see"
            rule = media.RULE if is_image else context.MISSING
            builder.conversation.flaw(rule, index, reason, turns.preview(file))


def _read_answer(builder: answers.MessageBuilder, name: str, message: Message, extra: Mapping[str, object]) -> None:
    """Add an answer: its items, or else its text with the elements in it."""
    index = len(builder.conversation.messages)
    items = message.get("output")
    if isinstance(items, list) and items and all(map(_is_item, items)):
        for item in items:
            _add_item(builder, name, item)
    else:
        extra = {**extra, "output": items} if is_kept(items) else extra
        _add_text(builder, name, _text(builder, message, index))
    last = builder.conversation.messages[-1]
    builder.add_extra(extra)
    if last.role == "assistant":
        last.stop = not is_false(message.get("done")) and not has_content(message.get("error"))
    if has_content(message.get("sources")):
        place = len(builder.conversation.messages) - 1
        reason = f"turn {place} has 'sources', which the model was shown, but not as messages"
        builder.conversation.flaw(context.MISSING, place, reason, turns.preview(message["sources"]))


def _is_item(item: object) -> bool:
    """Return whether an item of an answer is of a kind that is read."""
    return isinstance(item, dict) and item.get("type") in _ITEMS


def _add_item(builder: answers.MessageBuilder, name: str, item: Message) -> None:
    kind, call_id = item["type"], str(item.get("call_id") or item.get("id") or "")
    if kind == "reasoning":
        builder.add_reasoning(name, _item_text(item.get("content") or item.get("summary")), {})
    elif kind == "message":
        builder.add_text(name, _item_text(item.get("content")), {})
    elif kind == "function_call":
        builder.add_call(
            name, str(item.get("name")), answers.to_arguments(_item_text(item.get("arguments")), "input"), {}, call_id
        )
    else:
        builder.add_result(name, None, _item_text(item.get("output")), {}, call_id)
    read = ("type", "content", "name", "arguments", "output", "call_id", "summary" if not item.get("content") else "")
    if others := {key: value for key, value in item.items() if key not in read and is_kept(value)}:
        builder.add_extra({"item": {"type": kind, **others}})


def _item_text(value: object) -> str:
    """Return the text of an item: text, or parts with texts."""
    if isinstance(value, list) and all(isinstance(part, dict) and set(part) <= {"type", "text"} for part in value):
        return "\n\n".join(str(part.get("text") or "") for part in value)
    return value if isinstance(value, str) else "" if value is None else turns.to_json_line(value)


# ── elements in the text ──────────────────────────────────────────────────────────────────────────────────────────


def _add_text(builder: answers.MessageBuilder, name: str, text: str) -> None:
    """Add a text, with what was thought and the calls of tools in its elements; other elements stay in the text."""
    start, shown = 0, ""
    for found in _DETAILS.finditer(text):
        attributes = {key: html.unescape(value) for key, value in _ATTRIBUTE.findall(found["attributes"])}
        if attributes.get("type") not in _KINDS:
            continue
        shown += text[start : found.start()]
        start = found.end()
        if attributes["type"] == "reasoning":
            body = _SUMMARY_TAG.sub("", found["body"], count=1)
            builder.add_reasoning(name, _QUOTE.sub("", html.unescape(body)).strip(), {})
            continue
        if shown.strip():
            builder.add_text(name, shown.strip(), {})
        shown = ""
        _add_call(builder, name, attributes, found["body"])
    rest = shown + text[start:]
    if rest.strip() or not start:
        builder.add_text(name, rest.strip() if start else rest, {})


def _add_call(builder: answers.MessageBuilder, name: str, attributes: Mapping[str, str], body: str) -> None:
    """Add the call of a tool and its result; one without a name is flagged, since the answer rests on it."""
    place = len(builder.conversation.messages)
    code = _FENCE.search(_SUMMARY_TAG.sub("", body, count=1))
    tool = attributes.get("name") or ("code_interpreter" if code else "")
    if not tool:
        message = builder.add_text(name, "", {"details": body})
        assert message is not None
        place = len(builder.conversation.messages) - 1
        reason = f"turn {place} calls a tool whose name and arguments are not in the record"
        builder.conversation.flaw(context.MISSING, place, reason, body)
        return
    arguments = _decoded(attributes.get("arguments", ""))
    if code and not arguments:
        arguments = turns.to_json_line({"code": html.unescape(code[1])})
    call_id = attributes.get("id") or f"{name}-{place}"
    builder.add_call(name, tool, answers.to_arguments(arguments, "input"), {}, call_id)
    known = ("type", "done", "id", "name", "arguments", "result", "output", "duration")
    others = {key: value for key, value in attributes.items() if key not in known and value not in ("", '""')}
    result = _decoded(attributes.get("result") or attributes.get("output") or "")
    builder.add_result(name, tool, result, {"details": others} if others else {}, call_id)


def _decoded(text: str) -> str:
    """Return a text that was written as JSON text, perhaps as a text within it."""
    value = decode_json(text)
    return value if isinstance(value, str) else text


FORMAT = Format(
    NAME,
    SUMMARY,
    recognises,
    parse,
    writes=False,
    parse_all=parse_all,
    requires=("chat",),
    turn_keys=frozenset({"history"}),
    holds="a chat with its history",
)
