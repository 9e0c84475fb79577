"""Build conversations from the nodes of a chat application, in which one answer can be several nodes.

Texts, thoughts and tool calls in a row become one message, and so do the results of one call. Each branch of a tree
can become a conversation.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from curate.schemas.conversation import Conversation, Message
from curate.schemas.reading.options import ReadOptions
from curate.schemas.reading.tree import MessageTree
from curate.schemas.reading.values import decode_json, to_json_line

Extra = Mapping[str, object]
# Reads the messages of a path from the root to a leaf; returns the nodes of each message too.
ReadPath = Callable[[Sequence[str]], tuple[Conversation, list[list[str]]]]


@dataclass(slots=True)
class _Sources:
    """What a message was built from: its nodes, the keys that nothing else holds, and its calls."""

    nodes: list[str]
    extras: list[Extra] = field(default_factory=list)
    calls: list[dict[str, object]] = field(default_factory=list)


class MessageBuilder:
    """Append messages to a conversation; `finish` completes them. `node` is the id of each node in the dump."""

    def __init__(self, conversation: Conversation) -> None:
        self.conversation = conversation
        self._sources: list[_Sources] = []
        self._open_calls: list[tuple[str, str]] = []  # id and name of those without a result so far

    def add_prompt(self, node: str, text: str, extra: Extra) -> Message:
        """Append a prompt."""
        self._close_calls()
        return self._append(Message("user", text, is_html=False), node, extra)

    def add_text(self, node: str, text: str, extra: Extra) -> Message:
        """Append text to the answer."""
        self._close_calls()
        message = self._answer(node, extra)
        message.content = _join(message.content, text)
        return message

    def add_reasoning(self, node: str, text: str, extra: Extra) -> Message:
        """Append text to what the assistant thought before its answer."""
        message = self._answer(node, extra)
        message.reasoning = _join(message.reasoning or "", text) or None
        return message

    def add_call(self, node: str, name: str, arguments: str, extra: Extra, call_id: str = "") -> Message:
        """Append a tool call to the answer; `arguments` is JSON text. Its id is the node's unless it has its own."""
        message = self._answer(node, extra)
        function = {"name": name, "arguments": arguments}
        call: dict[str, object] = {"id": call_id or node, "type": "function", "function": function}
        self._sources[-1].calls.append(call)
        self._open_calls.append((call_id or node, name))
        return message

    def add_result(self, node: str, name: str | None, text: str, extra: Extra, call_id: str = "") -> Message:
        """Append a tool's result: to the call of this id, else to one of this name, else to the first one open."""
        last = self.conversation.messages[-1] if self.conversation.messages else None
        index = self._find_call(name, call_id)
        if index is None and last is not None and last.role == "tool" and (last.name == name or not name):
            last.content = _join(last.content, text)
            self._add_source(node, extra)
            return last
        answered, name_of_call = self._open_calls.pop(index) if index is not None else (call_id or None, None)
        result = Message("tool", text, name or name_of_call, tool_call_id=answered)
        return self._append(result, node, extra)

    def add_extra(self, extra: Extra) -> None:
        """Keep other keys with the last message."""
        if extra:
            self._sources[-1].extras.append(extra)

    def awaits_result(self) -> bool:
        """Return whether a call is without a result so far."""
        return bool(self._open_calls)

    def finish(self) -> list[list[str]]:
        """Write calls and other keys into the messages; return the nodes of each message."""
        for message, sources in zip(self.conversation.messages, self._sources, strict=True):
            if sources.calls:
                message.tool_calls = to_json_line(sources.calls)
            if sources.extras:
                first, *others = sources.extras
                message.extra = encode({**first, "joined": others} if others else first)
        return [sources.nodes for sources in self._sources]

    def _answer(self, node: str, extra: Extra) -> Message:
        """Return the answer that a node belongs to: the last message, or a new one."""
        messages = self.conversation.messages
        if not messages or messages[-1].role != "assistant":
            return self._append(Message("assistant", "", is_html=False), node, extra)
        self._add_source(node, extra)
        return messages[-1]

    def _append(self, message: Message, node: str, extra: Extra) -> Message:
        self.conversation.messages.append(message)
        self._sources.append(_Sources([node], [extra] if extra else []))
        return message

    def _add_source(self, node: str, extra: Extra) -> None:
        self._sources[-1].nodes.append(node)
        self.add_extra(extra)

    def _find_call(self, name: str | None, call_id: str) -> int | None:
        """Return the index of the open call that a result answers, or None."""
        calls = self._open_calls
        if call_id and any(call_id == own for own, _ in calls):
            return next(index for index, (own, _) in enumerate(calls) if own == call_id)
        return next((index for index, (_, own) in enumerate(calls) if own == name), 0 if calls else None)

    def _close_calls(self) -> None:
        """Give each call without a result an empty one: the text after it is not a part of the call's message."""
        for call_id, name in self._open_calls:
            self.conversation.edit("missing_result", len(self.conversation.messages), name, "")
            self._append(Message("tool", "", name, tool_call_id=call_id), call_id, {})
        self._open_calls.clear()


def _join(first: str, second: str) -> str:
    return f"{first}\n\n{second}" if first and second else first or second


def to_arguments(text: str, key: str) -> str:
    """Return a call's text as JSON text of an object: itself if it is one, else the text under a key."""
    if text.lstrip()[:1] == "{" and isinstance(decode_json(text), dict):
        return text.strip()
    return json.dumps({key: text}, ensure_ascii=False)


def is_kept(value: object) -> bool:
    """Return whether the value of a key that is not read says anything: not null, nor empty."""
    return value is not None and value != "" and value != [] and value != {}


def encode(value: Mapping[str, object]) -> str:
    """Return an object as compact JSON text."""
    try:
        return msgspec.json.encode(value).decode()
    except (OverflowError, UnicodeEncodeError, RecursionError, TypeError, msgspec.MsgspecError):
        return to_json_line(value)  # large integers, lone surrogates, dates: what msgspec cannot write


def read_branches(
    tree: MessageTree, current: str, others: Sequence[str], read: ReadPath, options: ReadOptions
) -> list[Conversation]:
    """Read the path to the current leaf and, if the options say so, those to other leaves.

    A branch without an answer of its own is left out. An answer of several branches is trained on in the first only.
    """
    conversations: list[Conversation] = []
    known: set[str] = set()  # nodes of answers
    for leaf in (current, *(others if options.branches else ())):
        path = tree.path(leaf)
        conversation, sources = read(path)
        if not tree.is_whole(path):
            conversation.edit("broken_tree", None, str(tree.parents[path[0]]), "")
        if _mask_known_answers(conversation, sources, known) or not conversations:
            conversations.append(conversation)
    if others and not options.branches:
        conversations[0].metadata["other_branches"] = len(others)
    return conversations


def _mask_known_answers(conversation: Conversation, sources: Sequence[Sequence[str]], known: set[str]) -> bool:
    """Do not train on answers whose nodes are all known; add the nodes of others, and return whether there is one."""
    system = len(conversation.messages) - len(sources)  # messages before those of the path
    pairs = zip(conversation.messages[system:], sources, strict=True)
    answers = [(message, nodes) for message, nodes in pairs if message.role == "assistant"]
    for message, nodes in answers:
        message.train = not known.issuperset(nodes)
    known.update(node for _, nodes in answers for node in nodes)
    return any(message.train for message, _ in answers)
