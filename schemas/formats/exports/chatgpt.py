"""ChatGPT's export: each chat is a tree, a `mapping` of nodes, and `current_node` the leaf that was shown last."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from curate.errors import RecordError
from curate.schemas.conversation import Conversation
from curate.schemas.formats.format import Format
from curate.schemas.reading import answers, chatgpt_content, citation_marks, media, ratings, turns
from curate.schemas.reading.chatgpt_content import Content
from curate.schemas.reading.key_kinds import has_content
from curate.schemas.reading.options import DEFAULT, ReadOptions
from curate.schemas.reading.tree import MessageTree
from curate.schemas.reading.turn import roles

NAME = "chatgpt"
SUMMARY = "ChatGPT's export: {title, mapping: {id: {parent, message}}, current_node}; the branch that was shown last."

Node = Mapping[str, object]

_CHAT_KEYS = frozenset({"title", "conversation_id", "update_time"})
_TURN_KEYS = frozenset({"messages", "conversation", "conversations", "prompt", "instruction"})  # of other formats
_USED = frozenset({"conversation_id", "mapping", "current_node"})
_NODE_KEYS = frozenset({"id", "parent", "children", "message"})
_KNOWN_VALUES: tuple[tuple[str, tuple[object, ...]], ...] = (
    ("weight", (0, 1)),
    ("channel", ("analysis", "commentary", "final")),
)  # that are read
_ROLE = frozenset({"role"})
_AUTHOR_KEYS = frozenset({"role", "name", "metadata"})
_MESSAGE_KEYS = frozenset({"author", "content", "recipient", "channel", "status", "end_turn", "weight", "metadata"})
_UNREAD_KEYS = ("id", "create_time", "update_time")  # that all messages have
_USUAL_KEYS = _MESSAGE_KEYS.union(_UNREAD_KEYS)
_METADATA_KEYS = frozenset({*chatgpt_content.PRIVATE_KEYS, "is_user_system_message"})
_UNFINISHED = ("in_progress", "finished_partial_completion")
_ARGUMENT = {"python": "code"}  # the name of a call's only argument, by tool; else "input"


class _Part(NamedTuple):
    """A node that has a message: its id, the message and its parts of use."""

    node: str
    message: Mapping[str, object]
    role: str
    metadata: Mapping[str, object]
    content: Content


def recognises(record: Mapping[str, object]) -> bool:
    """Return whether a record has the tree of a chat, or names its current node, or has all else that a chat has."""
    if "mapping" not in record:
        return "current_node" in record or (_CHAT_KEYS.issubset(record) and _TURN_KEYS.isdisjoint(record))
    mapping = record["mapping"]
    if not mapping or not isinstance(mapping, dict | list):
        return "current_node" in record or _TURN_KEYS.isdisjoint(record)
    first = next(iter(mapping.values())) if isinstance(mapping, dict) else mapping[0]
    return first is None or (isinstance(first, dict) and not _NODE_KEYS.isdisjoint(first))


def parse(record: Mapping[str, object]) -> Conversation:
    """Read the current branch of one record; raises RecordError if it has no message."""
    return parse_all(record, DEFAULT)[0]


def parse_all(record: Mapping[str, object], options: ReadOptions) -> Sequence[Conversation]:
    """Read the current branch first, then the others if asked; raises RecordError if there is no message."""
    nodes = _nodes(record)
    tree = MessageTree(_parents(nodes))
    current = tree.shown_leaf(record.get("current_node"), lambda node: _time(nodes[node]))
    others = [leaf for leaf in tree.leaves() if leaf != current and _message(nodes[leaf])]

    def read(path: Sequence[str]) -> tuple[Conversation, list[list[str]]]:
        return _read_path(record, [(node, nodes[node]) for node in path], options)

    read_rated = ratings.use_ratings(tree, read, options.ratings)
    conversations = answers.read_branches(tree, current, others, read_rated, options)
    if not any(conversation.messages for conversation in conversations):
        raise RecordError("no_messages", f"none of the {len(nodes)} nodes of 'mapping' is a message that was shown")
    return conversations


def _nodes(record: Mapping[str, object]) -> dict[str, Node]:
    """Return the nodes by id; raises RecordError if there is none."""
    mapping = record.get("mapping")
    if isinstance(mapping, list):
        mapping = {str(node.get("id")): node for node in mapping if isinstance(node, dict)}
    nodes: dict[str, Node] = {}
    if isinstance(mapping, dict):
        nodes = {key: node for key, node in mapping.items() if isinstance(node, dict)}
    if not nodes:
        shown = "is missing" if "mapping" not in record else "has no node"
        raise RecordError("no_messages", f"'mapping' {shown}", turns.preview(record.get("title") or ""))
    return nodes


def _parents(nodes: Mapping[str, Node]) -> dict[str, str | None]:
    """Return each node's parent; a node that does not name it has the one that lists it among its children."""
    parents: dict[str, str | None] = {}
    for key, node in nodes.items():
        parent = node.get("parent")
        parents[key] = parent if isinstance(parent, str) else None
    if sum(parent is None for parent in parents.values()) > 1:  # more than the root
        for key, node in nodes.items():
            children = node.get("children")
            for child in children if isinstance(children, list) else ():
                if isinstance(child, str) and parents.get(child, "") is None:
                    parents[child] = key
    return parents


def _message(node: Node) -> Mapping[str, object] | None:
    message = node.get("message")
    return message if isinstance(message, dict) else None


def _time(node: Node) -> float | None:
    time = (_message(node) or {}).get("create_time")
    return float(time) if isinstance(time, int | float) and abs(time) < 1e15 else None


def _read_path(
    record: Mapping[str, object], path: Sequence[tuple[str, Node]], options: ReadOptions
) -> tuple[Conversation, list[list[str]]]:
    """Return the conversation of a path from the root to a leaf, and the nodes of each of its messages."""
    conversation = Conversation(None, [])
    key = "id" if record.get("conversation_id") is None else "conversation_id"
    conversation.source_id = turns.read_source_id(conversation, record.get(key))
    reader = _PathReader(conversation)
    for name, node in path:
        reader.read(name, node)
    sources = reader.builder.finish()
    turns.read_other_keys(conversation, record, _USED | ({"id"} if record.get("id") == record.get(key) else set()))
    default = record.get("default_model_slug")
    conversation.model = reader.model or conversation.model or (default if isinstance(default, str) else None) or None
    reader.note_left_out(options.custom_instructions)
    return conversation, sources


class _PathReader:
    """Reads the nodes of one path, from the root to the leaf, into a conversation."""

    def __init__(self, conversation: Conversation) -> None:
        self.conversation = conversation
        self.builder = answers.MessageBuilder(conversation)
        self.model: str | None = None  # of the last answer that names it
        self.private: dict[str, None] = {}  # texts, a set in order of insertion
        self.private_nodes = 0
        self.hidden: list[str] = []
        self.files: tuple[int, object] | None = None  # index of a prompt with files that no tool has read so far

    def read(self, key: str, node: Node) -> None:
        """Add a node to the conversation, or note that it is left out."""
        message = node.get("message")
        if not isinstance(message, dict):
            self._keep_keys(node)
            return
        metadata = message.get("metadata")
        if metadata.__class__ is not dict:
            metadata = {}
        content = chatgpt_content.read_content(message.get("content"))
        part = _Part(key, message, _role(message, len(self.conversation.messages)), metadata, content)
        if content.kind in chatgpt_content.PRIVATE or _has_private(metadata):
            self._leave_out_private(part)
        elif _is_hidden(part) and not (part.role == "tool" and self.builder.awaits_result() and content.text):
            if content.text.strip():
                self.hidden.append(content.text)
        else:
            self._add(part, _extra(node, part))

    def _keep_keys(self, node: Node) -> None:
        """Keep what a node without a message says."""
        others = {key: value for key, value in node.items() if key not in _NODE_KEYS or (key == "message" and value)}
        if others:
            nodes = self.conversation.metadata.setdefault("nodes", [])
            assert isinstance(nodes, list)
            nodes.append(turns.to_plain_json(others))

    def _add(self, part: _Part, extra: Mapping[str, object]) -> None:
        if part.role == "user":
            self.builder.add_prompt(part.node, part.content.text, extra)
            self._note_files(part)
        elif part.role == "tool":
            self._add_result(part, extra)
        else:
            self._add_answer(part, extra)
        index = len(self.conversation.messages) - 1
        for described, evidence in part.content.media:
            reason = f"turn {index} holds {described}, which a text model cannot see"
            self.conversation.flaw(media.RULE, index, reason, turns.preview(evidence))

    def _add_result(self, part: _Part, extra: Mapping[str, object]) -> None:
        """Add a tool's result; an error of a tool that was not called says nothing to the model."""
        if part.content.kind == "system_error" and not self.builder.awaits_result():
            self.hidden.append(part.content.text)
            return
        self.files = None
        self.builder.add_result(part.node, _author_name(part.message), part.content.text, extra)

    def _add_answer(self, part: _Part, extra: Mapping[str, object]) -> None:
        slug = part.metadata.get("model_slug")
        self.model = slug if isinstance(slug, str) and slug else self.model
        recipient, text = part.message.get("recipient"), part.content.text
        if part.content.kind == "system_error":  # what the page showed, not what the model wrote
            self.hidden.append(text)
            return
        if isinstance(recipient, str) and recipient not in ("all", "user", ""):
            arguments = answers.to_arguments(text, _ARGUMENT.get(recipient, "input"))
            message = self.builder.add_call(part.node, recipient, arguments, extra)
            message.stop = part.message.get("status") not in _UNFINISHED
        elif part.content.kind == "thoughts" or part.message.get("channel") in ("analysis", "commentary"):
            self.builder.add_reasoning(part.node, text, extra)
        elif part.content.kind == "reasoning_recap":
            self.builder.add_reasoning(part.node, "", extra)
        else:
            self._add_text(part, text, extra)

    def _add_text(self, part: _Part, text: str, extra: Mapping[str, object]) -> None:
        if part.content.kind == "code" and text:
            text = _fence(text, part.message)
        text, edits = citation_marks.mend(text, part.metadata)
        message = self.builder.add_text(part.node, text, extra)
        message.stop = _is_complete(part.message, part.metadata)
        for edit in edits:
            edit.message = len(self.conversation.messages) - 1
            self.conversation.edits.append(edit)
        self._flag_files()

    def _note_files(self, part: _Part) -> None:
        """Remember files of a prompt, other than pictures, which are parts of its content."""
        self.files = None
        attachments = part.metadata.get("attachments")
        if isinstance(attachments, list) and has_content(attachments) and not part.content.media:
            self.files = len(self.conversation.messages) - 1, attachments

    def _flag_files(self) -> None:
        """Flag a prompt whose files the answer saw, although no tool has read them."""
        if self.files is not None:
            index, attachments = self.files
            reason = f"turn {index} has 'attachments', which are not in the export"
            self.conversation.flaw(media.RULE, index, reason, turns.preview(attachments))
            self.files = None

    def _leave_out_private(self, part: _Part) -> None:
        self.private_nodes += 1
        text = part.content.text
        data = part.metadata.get("user_context_message_data")
        if not text.strip() and isinstance(data, dict):
            text = "\n\n".join(value for value in data.values() if isinstance(value, str) and value)
        if text.strip():
            self.private[text] = None

    def note_left_out(self, as_system: bool) -> None:
        """Record what was left out; or make what the user has written for every chat the system message."""
        if self.hidden:
            self.conversation.edit("hidden_message", None, self.hidden[0], "", len(self.hidden))
        if self.private and as_system:
            self.conversation.insert_system("\n\n".join(self.private))
        elif self.private_nodes:
            self.conversation.edit("private_data", None, "", "", self.private_nodes)


def _role(message: Mapping[str, object], index: int) -> str:
    """Return the role of a message's author; raises RecordError for an unknown one."""
    author = message.get("author")
    name = author.get("role") if isinstance(author, dict) else author
    if isinstance(name, str) and name in roles.STANDARD_ROLES:
        return roles.STANDARD_ROLES[name]
    raise RecordError("unknown_role", f"the role of turn {index} is {turns.preview(name)!r}", turns.preview(author))


def _has_private(metadata: Mapping[str, object]) -> bool:
    return not _METADATA_KEYS.isdisjoint(metadata) and any(
        has_content(metadata.get(key)) for key in chatgpt_content.PRIVATE_KEYS
    )


def _author_name(message: Mapping[str, object]) -> str | None:
    author = message.get("author")
    name = author.get("name") if isinstance(author, dict) else None
    return name if isinstance(name, str) and name else None


def _is_hidden(part: _Part) -> bool:
    """Return whether a node was not shown and is not a turn of the chat."""
    is_hidden = part.metadata.get("is_visually_hidden_from_conversation")
    return part.role == "system" or bool(is_hidden) or part.message.get("weight") == 0


def _is_complete(message: Mapping[str, object], metadata: Mapping[str, object]) -> bool:
    """Return whether an answer ends where the model ended it, rather than being cut off or under way."""
    details = metadata.get("finish_details")
    kind = details.get("type") if isinstance(details, dict) else None
    if message.get("status") in _UNFINISHED or kind not in (None, "stop"):
        return False
    return message.get("end_turn") is True or kind == "stop" or "end_turn" not in message


def _fence(code: str, message: Mapping[str, object]) -> str:
    """Return code of an answer as a block of markdown."""
    content = message.get("content")
    language = content.get("language") if isinstance(content, dict) else None
    fence = "```"
    while fence in code:
        fence += "`"
    return f"{fence}{language if isinstance(language, str) and language != 'unknown' else ''}\n{code}\n{fence}"


def _is_bare(author: Mapping[str, object]) -> bool:
    """Return whether an author has nothing but a role."""
    return not author.get("name") and not author.get("metadata") and _AUTHOR_KEYS.issuperset(author)


def _extra(node: Node, part: _Part) -> dict[str, object]:
    """Return the keys of a node that are not read, as far as they say anything (`answers.is_kept`, written out)."""
    message, metadata = part.message, part.metadata
    extra: dict[str, object] = {}
    is_usual = _USUAL_KEYS.issuperset(message)
    for key in _UNREAD_KEYS if is_usual else [key for key in message if key not in _MESSAGE_KEYS]:
        if (value := message.get(key)) or value == 0:
            extra[key] = value
    for key, known in _KNOWN_VALUES:
        if (value := message.get(key)) is not None and value not in known:
            extra[key] = value
    author = message["author"]
    if author.__class__ is dict and not (_ROLE.issuperset(author) or _is_bare(author)):
        known = ("role", "name") if part.role == "tool" else ("role",)
        if others := {key: value for key, value in author.items() if (value or value == 0) and key not in known}:
            extra["author"] = others
    if metadata:
        others = {key: value for key, value in metadata.items() if value or value == 0}
        if not _METADATA_KEYS.isdisjoint(others):
            others = {key: value for key, value in others.items() if key not in _METADATA_KEYS}
        if others:
            extra["metadata"] = others
    elif unread := message.get("metadata"):  # not an object
        extra["metadata"] = unread
    if not _NODE_KEYS.issuperset(node):
        extra["node"] = {key: value for key, value in node.items() if key not in _NODE_KEYS}
    if part.content.extra:
        extra.update(part.content.extra)
    return extra


FORMAT = Format(
    NAME,
    SUMMARY,
    recognises,
    parse,
    writes=False,
    parse_all=parse_all,
    requires=("mapping",),
    turn_keys=frozenset({"parent", "message"}),
    holds="an object of messages",
)
