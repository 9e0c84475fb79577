"""The one shape every format is read into and written from: a conversation of messages."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

Role = Literal["system", "user", "assistant", "tool"]
ROLES: tuple[Role, ...] = get_args(Role)
EXCERPT = 200  # characters of `before` and `after` that an edit keeps


@dataclass(slots=True)
class Message:
    """One turn. `train`: it may be supervised. `stop`: its end is a real end, so the stop token is supervised.

    `tool_calls` is JSON text, as in OpenAI's chat format.
    """

    role: Role
    content: str
    name: str | None = None
    tool_calls: str | None = None
    train: bool = True
    stop: bool = True


@dataclass(slots=True)
class Edit:
    """One repair: its rule, the message it touched (null: the whole record), how often, and what changed."""

    rule: str
    message: int | None
    count: int
    before: str
    after: str


@dataclass(slots=True)
class Conversation:
    """Messages, where they came from, and what has been changed in them.

    `metadata` holds what else the record said (title, url, created and other keys), as plain JSON values.
    """

    source_id: str | None
    messages: list[Message]
    model: str | None = None
    metadata: dict[str, object] = field(default_factory=dict)
    edits: list[Edit] = field(default_factory=list)

    def edit(self, rule: str, message: int | None, before: str, after: str, count: int = 1) -> None:
        """Note a repair; texts are cut at `EXCERPT` characters."""
        self.edits.append(Edit(rule, message, count, before[:EXCERPT], after[:EXCERPT]))
