"""Objects that hold what several say, under keys that name who speaks: {"user": …, "assistant": …}."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from curate.errors import RecordError
from curate.schemas.conversation import Role
from curate.schemas.reading.key_kinds import TURN_KINDS
from curate.schemas.reading.turn.roles import ROLE_KEYS, known_role
from curate.schemas.reading.values import preview, quote_keys

TEXT_KEYS = ("value", "content", "text", "message", "utterance", "body", "parts", "markdown")  # of a turn
_SIDES: dict[str, Role] = {  # in the order of a chat; other names of roles are keys too
    "system": "system",
    **dict.fromkeys(("human", "user", "prompt", "question", "query", "instruction", "input"), "user"),
    **dict.fromkeys(("assistant", "gpt", "bot", "ai", "answer", "response", "output", "completion"), "assistant"),
}
_ORDER: tuple[Role, ...] = ("system", "user", "assistant", "tool")


def find_sides(turn: Mapping[str, object]) -> dict[Role, list[str]]:
    """Return the keys of an object that hold a system text, a prompt and an answer; none if it has a text or a role.

    So `{user: "ann", text: "Hi"}` has none.
    """
    if any(turn.get(key) is not None for key in (*ROLE_KEYS, *TEXT_KEYS)):
        return {}
    found: dict[Role, list[str]] = {}
    for key, value in turn.items():
        role = _SIDES.get(key) or (known_role(key) if isinstance(value, str) else None)
        if role and value not in (None, "", [], {}) and not isinstance(value, bool):
            found.setdefault(role, []).append(key)
    return {role: found[role] for role in _ORDER if role in found}


def split_sides(turn: dict[Any, Any]) -> list[dict[str, Any]]:
    """Return a turn for each side of an object, or the object itself if it is a turn already.

    Its other keys stay with the last, what the prompt is about with the prompt. Raises RecordError if two keys of one
    side differ.
    """
    sides = find_sides(turn)
    if not sides:
        return [turn]
    turns = {role: {"role": role, "content": _agreed(turn, keys)} for role, keys in sides.items()}
    read = {key for keys in sides.values() for key in keys}
    last = next(reversed(turns))
    for key, value in turn.items():
        if key not in read:
            is_about = TURN_KINDS.get(key) in ("context", "files") and "user" in turns
            turns["user" if is_about else last][key] = value
    return list(turns.values())


def _agreed(turn: Mapping[str, object], keys: list[str]) -> object:
    values = [turn[key] for key in keys]
    if any(value != values[0] for value in values):
        reason = f"a turn has texts that differ under {quote_keys(keys)}, which name the same role"
        raise RecordError("unclear_roles", reason, preview(dict(turn)))
    return values[0]
