"""The conversation: what every format is read into and written from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from operator import attrgetter
from typing import Literal, get_args

Role = Literal["system", "user", "assistant", "tool"]
ROLES: tuple[Role, ...] = get_args(Role)
EXCERPT = 200  # characters of `before` and `after` that an edit keeps


@dataclass(slots=True)
class Message:
    """One message. `train`: it may be supervised. `stop`: it was not cut off, so the stop token may be supervised too.

    `tool_calls` is JSON text, as in OpenAI's chat format; `tool_call_id` is the id of the call that a tool's message
    answers. `reasoning` is what the assistant thought before its answer; `train_reasoning`: it may be supervised, if
    `train` is set too. `extra` is JSON text: the keys of the dump's turn that none of the other fields holds.

    `tools`, for rendering: the definitions of the tools that the assistant may call, as JSON text, the same on all
    messages of a conversation. `is_html`: an answer's content is HTML, whatever it looks like, or is not; None if its
    look decides. `was_html`: it was or may have been converted from HTML, at least in part. `place`: its index among
    the messages that were read (of the first, if several were joined), for edits and rejects. None of the four is
    compared or written.
    """

    role: Role
    content: str
    name: str | None = None
    tool_calls: str | None = None
    train: bool = True
    stop: bool = True
    reasoning: str | None = None
    train_reasoning: bool = True
    tool_call_id: str | None = None
    extra: str | None = None
    tools: str | None = field(default=None, compare=False)
    is_html: bool | None = field(default=None, compare=False)
    was_html: bool = field(default=False, compare=False)
    place: int = field(default=0, compare=False)


_values = attrgetter(*(each.name for each in fields(Message)))


def with_tools(messages: Sequence[Message], tools: str | None) -> list[Message]:
    """Return the messages with these definitions of tools, JSON text; the same messages if there are none."""
    return [replace(message, tools=tools) for message in messages] if tools else list(messages)


@dataclass(slots=True)
class Edit:
    """One repair: rule, index of the message (None: the whole record), count, and the text before and after."""

    rule: str
    message: int | None
    count: int
    before: str
    after: str


@dataclass(slots=True)
class Flaw:
    """Why a message (None: the whole record) is not trained on unless a setting asks for it: rule, reason, evidence."""

    rule: str
    message: int | None
    reason: str
    evidence: str


@dataclass(slots=True)
class Conversation:
    """Messages, the record's own id, the repairs made, and the flaws that the dump itself names.

    `tools` is JSON text: the list of the tools' definitions. `rejected_answer` is the one that a preference pair
    rejects, to the messages before the last answer. `metadata` has the record's other keys (title, url, created, …) as
    plain JSON values.
    """

    source_id: str | None
    messages: list[Message]
    model: str | None = None
    tools: str | None = None
    rejected_answer: list[Message] = field(default_factory=list)
    metadata: dict[str, object] = field(default_factory=dict)
    edits: list[Edit] = field(default_factory=list)
    flaws: list[Flaw] = field(default_factory=list, compare=False)

    def copy(self) -> Conversation:
        """Return a copy that can be repaired without changing this one."""
        return replace(
            self,
            messages=[Message(*_values(message)) for message in self.messages],  # faster than `replace`
            edits=[replace(edit) for edit in self.edits],
            flaws=list(self.flaws),
        )

    def edit(self, rule: str, message: int | None, before: str, after: str, count: int = 1) -> None:
        """Record a repair; texts are cut to `EXCERPT` characters."""
        self.edits.append(Edit(rule, message, count, before[:EXCERPT], after[:EXCERPT]))

    def flaw(self, rule: str, message: int | None, reason: str, evidence: str) -> None:
        """Record a flaw; the evidence is cut to `EXCERPT` characters."""
        self.flaws.append(Flaw(rule, message, reason, evidence[:EXCERPT]))

    def messages_with_tools(self) -> list[Message]:
        """Return the messages, each with the definitions of the conversation's tools."""
        return with_tools(self.messages, self.tools)

    def insert_system(self, text: str) -> None:
        """Put a system message first; edits and flaws keep their messages."""
        self.messages.insert(0, Message("system", text))
        self._renumber(0, 1)

    def remove(self, index: int) -> None:
        """Take a message out; edits and flaws keep their messages."""
        del self.messages[index]
        self._renumber(index + 1, -1)

    def _renumber(self, first: int, difference: int) -> None:
        notes: tuple[Edit | Flaw, ...] = (*self.edits, *self.flaws)
        for note in notes:
            if note.message is not None and note.message >= first:
                note.message += difference
