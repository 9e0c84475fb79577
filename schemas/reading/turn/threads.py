"""Turns that name the turn they answer, or hold their replies: of such a tree, the path to the last one is the chat."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from curate.schemas.conversation import Conversation
from curate.schemas.reading.tree import MessageTree
from curate.schemas.reading.turn.roles import ROLE_KEYS, SPEAKER_KEYS, role_of

_IDS = ("messageId", "message_id", "id", "uuid")
_PARENTS = (
    *("parentMessageId", "parent_message_id", "parentId", "parent_id", "parent_message_uuid", "parentUuid"),
    "parent",
)
_REPLIES = ("children", "replies")
_KEYS = frozenset((*_PARENTS, *_REPLIES))
_SPEAKERS = frozenset((*ROLE_KEYS, *SPEAKER_KEYS))

Turn = Mapping[str, object]


def read_path(conversation: Conversation, turns: Sequence[object]) -> Sequence[object]:
    """Return the turns of the path to the last leaf if they are a tree, else all; an edit counts the others.

    Otherwise an answer and its regenerated one would be joined.
    """
    if not turns or not isinstance(turns[-1], dict) or _KEYS.isdisjoint(turns[-1]):
        return turns
    thread = _Thread()
    for turn in turns:
        if not isinstance(turn, dict):
            return turns
        thread.add(turn)
    path = thread.path()
    if path is None:
        return turns
    if others := len(thread.turns) - len(path):
        conversation.edit("other_replies", None, f"{others} of {len(thread.turns)} messages", "", others)
    return path


class _Thread:
    """Turns by id, each with the id of the one that it answers."""

    def __init__(self) -> None:
        self.turns: dict[str, Turn] = {}
        self.parents: dict[str, str | None] = {}

    def add(self, turn: Turn) -> None:
        """Add a turn, after the last one if it does not name another, and the replies that it holds."""
        waiting: list[tuple[Turn, str | None]] = [(turn, next(reversed(self.turns), None))]
        while waiting:
            turn, parent = waiting.pop()
            name = _id(turn, _IDS)
            if name is None or name in self.turns:
                name = f"turn {len(self.turns)}"
            replies = _replies(turn)
            self.turns[name] = {key: value for key, value in turn.items() if key not in replies}
            if any(key in turn for key in _PARENTS) and not self._is_next_result(turn, parent):
                parent = _id(turn, _PARENTS)
            self.parents[name] = parent
            waiting += [(reply, name) for held in replies.values() for reply in reversed(held)]

    def _is_next_result(self, turn: Turn, last: str | None) -> bool:
        """Return whether a turn is a tool's result, as the last one is, of calls in the same turn."""
        if last is None or role_of(turn) != "tool" or role_of(self.turns[last]) != "tool":
            return False
        return _id(turn, _PARENTS) == _id(self.turns[last], _PARENTS)

    def path(self) -> Sequence[Turn] | None:
        """Return the turns up to the last leaf, or None if no turn answers another one."""
        if not any(parent in self.turns for parent in self.parents.values()):
            return None
        tree = MessageTree(self.parents)
        return [self.turns[name] for name in tree.path(tree.leaves()[-1])]


def _id(turn: Turn, keys: Sequence[str]) -> str | None:
    value = next((turn[key] for key in keys if turn.get(key) is not None), None)
    return str(value) if isinstance(value, str | int) else None


def _replies(turn: Turn) -> dict[str, list[Turn]]:
    """Return the keys that hold turns."""
    held = {key: value for key in _REPLIES if isinstance(value := turn.get(key), list)}
    return {key: value for key, value in held.items() if all(map(_is_turn, value))}


def _is_turn(value: object) -> bool:
    return isinstance(value, dict) and not _SPEAKERS.isdisjoint(value)
