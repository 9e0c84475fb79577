"""Claude's export: `chat_messages`, a tree by `parent_message_uuid`, whose messages are lists of blocks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from curate.errors import RecordError
from curate.schemas.conversation import Conversation
from curate.schemas.formats.format import Format
from curate.schemas.reading import answers, media, turns
from curate.schemas.reading.answers import is_kept
from curate.schemas.reading.key_kinds import has_content
from curate.schemas.reading.options import DEFAULT, ReadOptions
from curate.schemas.reading.tree import MessageTree
from curate.schemas.reading.turn import roles

NAME = "claude"
SUMMARY = (
    "Claude's export: {uuid, name, chat_messages: [{sender, content: [blocks], parent_message_uuid}]}; design chats."
)

Turn = Mapping[str, object]
Block = Mapping[str, object]

ROOT = "00000000-0000-4000-8000-000000000000"  # the parent of a first message
_CURRENT = "current_leaf_message_uuid"
_PRIVATE = frozenset(
    {"account", "account_uuid", "account_id", "organization", "organization_uuid", "organization_id", "sessionToken"}
)
_USED = frozenset({"uuid", "chat_messages", _CURRENT, *_PRIVATE})
_TURN_KEYS = frozenset({"sender", "role", "text", "content", "contentBlocks", "attachments", "parent_message_uuid"})
_NO_BLOCK = "This block is not supported on your current device yet."  # in a flattened text, for a tool's block
_TIMES = ("created_at", "createdAt", "updated_at")
_THOUGHTS = ("thinking", "reasoning")
_CALLS = ("tool_use", "tool_call", "server_tool_use", "mcp_tool_use")
_RESULTS = ("tool_result", "mcp_tool_result", "web_search_tool_result")
_SILENT = ("token_budget", "flag", "flags", "redacted_thinking", "error")  # what the page shows, kept as extra
_MEDIA = ("image", "document", "file", "video", "audio")


def recognises(record: Mapping[str, object]) -> bool:
    """Return whether a record has the messages of a chat with Claude, or those of a design chat."""
    if "chat_messages" in record:
        return True
    messages = record.get("messages")
    return isinstance(messages, list) and bool(messages) and _is_design(messages[0])


def _is_design(message: object) -> bool:
    return isinstance(message, dict) and "contentBlocks" in message


def parse(record: Mapping[str, object]) -> Conversation:
    """Read the current branch of one record; raises RecordError if it has no message."""
    return parse_all(record, DEFAULT)[0]


def parse_all(record: Mapping[str, object], options: ReadOptions) -> Sequence[Conversation]:
    """Read the current branch first, then the others if asked; raises RecordError if there is no message."""
    nodes = _nodes(record)
    tree = MessageTree(_parents(nodes))
    current = tree.shown_leaf(record.get(_CURRENT), lambda node: _time(nodes[node]))
    others = [leaf for leaf in tree.leaves() if leaf != current]

    def read(path: Sequence[str]) -> tuple[Conversation, list[list[str]]]:
        return _read_path(record, [(node, nodes[node]) for node in path])

    return answers.read_branches(tree, current, others, read, options)


def _nodes(record: Mapping[str, object]) -> dict[str, Turn]:
    """Return the messages by id, or by place if they have none; raises RecordError if there is none."""
    key = "chat_messages" if "chat_messages" in record else "messages"
    value = record[key]
    messages = value if isinstance(value, list) else []
    nodes: dict[str, Turn] = {}
    for place, message in enumerate(messages):
        if isinstance(message, dict):
            name = message.get("uuid") or message.get("id")
            nodes[name if isinstance(name, str) and name not in nodes else f"message {place}"] = message
    if not nodes:
        described = "is empty" if value == [] else f"is {turns.describe_type(value)}, without a message"
        raise RecordError("no_messages", f"{key!r} {described}", turns.preview(record.get("name") or ""))
    return nodes


def _parents(nodes: Mapping[str, Turn]) -> dict[str, str | None]:
    """Return each message's parent; one that does not name it follows the message before it."""
    parents: dict[str, str | None] = {}
    previous: str | None = None
    for name, message in nodes.items():
        parent = message.get("parent_message_uuid", previous)
        parents[name] = parent if isinstance(parent, str) and parent != ROOT else None
        previous = name
    return parents


def _time(message: Turn) -> str | None:
    """Return a message's time as text that sorts by time, or None."""
    times = (message.get(key) for key in _TIMES)
    return next((time for time in times if isinstance(time, str) and time), None)


def _read_path(record: Mapping[str, object], path: Sequence[tuple[str, Turn]]) -> tuple[Conversation, list[list[str]]]:
    """Return the conversation of a path from the root to a leaf, and the nodes of each of its messages."""
    conversation = Conversation(None, [])
    is_design = "chat_messages" not in record
    key = "id" if "uuid" not in record else "uuid"
    conversation.source_id = turns.read_source_id(conversation, record.get(key))
    builder = answers.MessageBuilder(conversation)
    for name, message in path:
        _read_message(builder, name, message)
    sources = builder.finish()
    turns.read_other_keys(conversation, record, _USED | {key} | ({"messages"} if is_design else set()))
    if private := sum(has_content(record.get(key)) for key in _PRIVATE):
        conversation.edit("private_data", None, "", "", private)
    return conversation, sources


def _read_message(builder: answers.MessageBuilder, name: str, message: Turn) -> None:
    index = len(builder.conversation.messages)
    sender = message.get("sender", message.get("role"))
    role = roles.STANDARD_ROLES.get(sender) if isinstance(sender, str) else None
    if role is None:
        raise RecordError(
            "unknown_role", f"the role of turn {index} is {turns.preview(sender)!r}", turns.preview(message)
        )
    extra: dict[str, object] = {k: value for k, value in message.items() if k not in _TURN_KEYS and is_kept(value)}
    extra |= {k: message[k] for k in ("role", "text") if is_kept(message.get(k)) and not _is_read(message, k)}
    if attachments := _unread_attachments(message.get("attachments")):
        extra["attachments"] = attachments
    if role == "assistant":
        _read_answer(builder, name, message, extra)
    elif role == "user":
        _read_prompt(builder, name, message, extra)
    elif text := _flat_text(message):
        builder.conversation.edit("hidden_message", None, text, "")


def _is_read(message: Turn, key: str) -> bool:
    """Return whether a message's role or flattened text says nothing more than what is read."""
    if key == "role":
        return "sender" not in message
    text = message[key]
    if not isinstance(text, str):
        return False
    for block in _blocks(message):
        text = text.replace(_text(block.get("text")).strip() or _NO_BLOCK, "", 1)
    return not text.replace(_NO_BLOCK, "").strip("`\n ")


def _unread_attachments(value: object) -> object:
    """Return the attachments without their text and its file's name; all of them if they are no list of objects."""
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        return value
    read = ("file_name", "extracted_content")
    texts = [item for item in value if isinstance(item.get("extracted_content"), str)]
    rest = [{k: v for k, v in item.items() if k not in read and is_kept(v)} for item in texts]
    return [item for item in (*rest, *(item for item in value if item not in texts)) if item]


def _blocks(message: Turn) -> list[Block]:
    """Return a message's blocks; its flattened text is one if it has no other."""
    value = message.get("contentBlocks", message.get("content"))
    items = value if isinstance(value, list) else [value]
    blocks = [{"type": "text", "text": item} if isinstance(item, str) else item for item in items]
    found: list[Block] = [block for block in blocks if isinstance(block, dict) and block]
    return found if found or not _flat_text(message) else [{"type": "text", "text": _flat_text(message)}]


def _flat_text(message: Turn) -> str:
    text = message.get("text")
    return text if isinstance(text, str) else ""


def _read_prompt(builder: answers.MessageBuilder, name: str, message: Turn, extra: dict[str, object]) -> None:
    """Add a prompt with the text of its attachments, which the model saw."""
    texts: list[str] = []
    unread: list[tuple[str, object]] = []
    for block in _blocks(message):
        kind = _kind(block)
        if isinstance(text := block.get("text"), str) and kind not in _MEDIA:
            texts.append(text)
        elif kind in _RESULTS:
            _add_result(builder, name, block)
        elif kind not in _SILENT:
            unread.append((f"a block of type {kind[:40]!r}", block))
        _keep_keys(extra, block, ("type", "text"))
    attached, without_text = _attachments(message)
    builder.add_prompt(name, "\n\n".join(filter(None, [*texts, *attached])), extra)
    index = len(builder.conversation.messages) - 1
    if attached:
        builder.conversation.edit("attachment_text", index, "", attached[0], len(attached))
    for described, evidence in [*unread, *without_text]:
        reason = f"turn {index} holds {described}, which a text model cannot see"
        builder.conversation.flaw(media.RULE, index, reason, turns.preview(evidence))


def _attachments(message: Turn) -> tuple[list[str], list[tuple[str, object]]]:
    """Return the text of each attached file below its name, and the files without text."""
    texts: list[str] = []
    names: set[object] = set()
    unread: list[tuple[str, object]] = []
    for item in _objects(message.get("attachments")):
        name, text = item.get("file_name"), item.get("extracted_content")
        if isinstance(text, str) and text.strip():
            texts.append(f"{name}\n\n{text}" if isinstance(name, str) and name else text)
            names.add(name)
        else:
            unread.append((_describe_file(item), item))
    for item in _objects(message.get("files")):
        if item.get("file_name") not in names or not item.get("file_name"):
            unread.append((_describe_file(item), item))
    return texts, unread


def _describe_file(item: Mapping[str, object]) -> str:
    name = item.get("file_name") or item.get("file_uuid")
    return f"the file {turns.preview(name)!r}" if name else "a file without a name"


def _objects(value: object) -> list[Mapping[str, object]]:
    return [item for item in value if isinstance(item, dict) and has_content(item)] if isinstance(value, list) else []


def _read_answer(builder: answers.MessageBuilder, name: str, message: Turn, extra: dict[str, object]) -> None:
    """Add the blocks of an answer: what was thought, text, calls and their results."""
    blocks = _blocks(message)
    if not any(_kind(block) in _READERS for block in blocks):
        builder.add_text(name, "", {})
    for block in blocks:
        kind = _kind(block)
        if kind in _RESULTS:
            _add_result(builder, name, block)
        elif reader := _READERS.get(kind):
            _keep_keys(extra, block, reader(builder, name, block))
        elif isinstance(text := block.get("text"), str):
            builder.add_text(name, text, {})
            _keep_keys(extra, block, ("type", "text"))
        else:
            _keep_keys(extra, block, ())
            if kind not in _SILENT:
                _flag(builder, f"a block of type {kind[:40]!r}", block)
    builder.add_extra(extra)
    last = builder.conversation.messages[-1]
    if last.role == "assistant":
        last.stop = message.get("stop_reason") in (None, "", "end_turn", "stop_sequence", "tool_use")


def _kind(block: Block) -> str:
    kind = block.get("type", "text")
    return kind if isinstance(kind, str) else turns.preview(kind)


def _keep_keys(extra: dict[str, object], block: Block, used: Sequence[str]) -> None:
    """Keep a block's other keys, as far as they say anything."""
    others = {key: value for key, value in block.items() if key not in used and is_kept(value)}
    if others:
        blocks = extra.setdefault("blocks", [])
        assert isinstance(blocks, list)
        blocks.append({"type": _kind(block), **others})


def _flag(builder: answers.MessageBuilder, described: str, evidence: object) -> None:
    index = max(len(builder.conversation.messages) - 1, 0)
    reason = f"turn {index} holds {described}, which a text model cannot see"
    builder.conversation.flaw(media.RULE, index, reason, turns.preview(evidence))


def _add_text(builder: answers.MessageBuilder, name: str, block: Block) -> Sequence[str]:
    builder.add_text(name, _text(block.get("text")), {})
    return "type", "text"


def _add_interjection(builder: answers.MessageBuilder, name: str, block: Block) -> Sequence[str]:
    """Add what a user says amid an answer of a design chat."""
    builder.add_prompt(name, _text(block.get("text")), {})
    return "type", "text"


def _add_thoughts(builder: answers.MessageBuilder, name: str, block: Block) -> Sequence[str]:
    keys = [key for key in (*_THOUGHTS, "text") if isinstance(block.get(key), str)]
    builder.add_reasoning(name, _text(block[keys[0]]) if keys else "", {})
    return "type", *keys[:1]


def _add_call(builder: answers.MessageBuilder, name: str, block: Block) -> Sequence[str]:
    """Add a call; a design chat's has its result beside it."""
    key = "input" if "input" in block else "arguments"
    value = block.get(key)
    arguments = value if isinstance(value, dict) else {} if value is None else None
    text = turns.to_json_line(arguments) if arguments is not None else answers.to_arguments(_text(value), "input")
    tool = _text(block.get("name") or block.get("toolName")) or "tool"
    call_id = _text(block.get("id") or block.get("toolCallId"))
    builder.add_call(name, tool, text, {}, call_id or f"{name}-{len(builder.conversation.messages)}")
    results = [other for other in ("result", "output") if other in block]
    if results:
        builder.add_result(name, tool, _result_text(builder, block[results[0]]), {}, call_id)
    return "type", key, "name", "toolName", "id", "toolCallId", *results[:1]


def _add_result(builder: answers.MessageBuilder, name: str, block: Block) -> None:
    others: dict[str, object] = {}
    used = ("type", "name", "content", "text", "tool_use_id", *(("is_error",) if not block.get("is_error") else ()))
    _keep_keys(others, block, used)
    text = _text(block.get("text"))
    content = block.get("content")
    call_id = _text(block.get("tool_use_id"))
    result = builder.add_result(name, _text(block.get("name")) or None, text, others, call_id)
    found = _result_text(builder, content)
    result.content = "\n\n".join(filter(None, (result.content, found)))


def _result_text(builder: answers.MessageBuilder, value: object) -> str:
    """Return the text of a result's blocks: texts, pages found, files written; pictures are flagged."""
    texts = []
    for item in value if isinstance(value, list) else [value]:
        if not isinstance(item, dict):
            texts.append(_text(item))
        elif _kind(item) in _MEDIA:
            _flag(builder, f"a block of type {_kind(item)!r}", item)
        elif set(item) <= {"type", "text"}:
            texts.append(_text(item.get("text")))
        else:
            keys = ("title", "name", "url", "file_path", "text", "content")
            fields = [_text(item[key]) for key in keys if is_kept(item.get(key))]
            texts.append("\n".join(fields) or turns.to_json_line(item))
    return "\n\n".join(filter(None, texts))


def _text(value: object) -> str:
    return value or "" if value is None or isinstance(value, str) else turns.to_json_line(value)


_READERS: dict[str, Callable[[answers.MessageBuilder, str, Block], Sequence[str]]] = {
    "text": _add_text,
    "user_interjection": _add_interjection,
    **dict.fromkeys(_THOUGHTS, _add_thoughts),
    **dict.fromkeys(_CALLS, _add_call),
}


FORMAT = Format(
    NAME,
    SUMMARY,
    recognises,
    parse,
    writes=False,
    parse_all=parse_all,
    requires=("chat_messages",),
    turn_keys=frozenset({"sender", "parent_message_uuid"}),
)
