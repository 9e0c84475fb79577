"""The format that a record of no known format is nearest to, and the keys that it lacks."""

from __future__ import annotations

import difflib
from collections.abc import Mapping

from curate.schemas.formats import alpaca, chatgpt_export, claude_export, openai, sharegpt

REQUIRED: dict[str, tuple[str, ...]] = {  # keys without which a record is not of the format
    sharegpt.NAME: ("conversations",),
    openai.NAME: ("messages",),
    chatgpt_export.NAME: ("mapping",),
    claude_export.NAME: ("chat_messages",),
    alpaca.NAME: ("instruction", "output"),
}
TURN_KEYS: dict[str, frozenset[str]] = {
    sharegpt.NAME: frozenset({"from", "value"}),
    openai.NAME: frozenset({"role", "content"}),
    chatgpt_export.NAME: frozenset({"parent", "message"}),
    claude_export.NAME: frozenset({"sender", "parent_message_uuid"}),
}
MAX_KEYS = 100  # of a record
MAX_NAME = 40  # characters of a key
NEAR = 0.6  # similarity of two keys, 0 to 1, from which one may be meant as the other


def nearest_format(record: Mapping[str, object]) -> tuple[str, list[str]]:
    """Return the name of the nearest format and the keys that the record lacks.

    It is the nearest in the keys that could hold what it requires: turns, or a single text.
    """
    name = max(REQUIRED, key=lambda name: _likeness(record, name))
    return name, [key for key in REQUIRED[name] if record.get(key) is None]


def describe_nearest(record: Mapping[str, object]) -> str:
    """Say which format is nearest, which keys are missing, and which key may be meant in place of one."""
    name, missing = nearest_format(record)
    candidates = _candidates(record, name)
    near = [match for key in missing for match in difflib.get_close_matches(key, list(candidates), 1, NEAR)]
    near += [key for key, likeness in candidates.items() if likeness and name in TURN_KEYS]
    instead = f" (the record has {near[0]!r})" if near else ""
    verb = "is" if len(missing) == 1 else "are"
    return f"the nearest format is {name}: {' and '.join(map(repr, missing))} {verb} missing{instead}"


def _likeness(record: Mapping[str, object], name: str) -> float:
    """Return how much a record is like a format, 0 to 2."""
    candidates = _candidates(record, name)
    required = REQUIRED[name]
    keys = sum(max((_similarity(key, candidate) for candidate in candidates), default=0.0) for key in required)
    shape = max(candidates.values(), default=0.0)
    return keys / len(required) + shape


def _similarity(key: str, candidate: str) -> float:
    return difflib.SequenceMatcher(None, key, candidate).ratio()


def _candidates(record: Mapping[str, object], name: str) -> dict[str, float]:
    """Return the keys that could hold what a format requires, and how much their values are like that, 0 to 1."""
    items = [(str(key)[:MAX_NAME], value) for key, value in list(record.items())[:MAX_KEYS]]
    turn_keys = TURN_KEYS.get(name)
    if turn_keys is None:
        is_flat = not any(isinstance(value, list | dict) for _, value in items)
        return {key: 1.0 for key, value in items if is_flat and isinstance(value, str)}
    return {key: _turn_likeness(value, turn_keys) for key, value in items if isinstance(value, list | dict)}


def _turn_likeness(value: object, turn_keys: frozenset[str]) -> float:
    """Return the share of a turn's keys that the first entry of a list or an object has."""
    entries = value if isinstance(value, list) else list(value.values())[:1] if isinstance(value, dict) else []
    first = entries[0] if entries else None
    return len(turn_keys & first.keys()) / len(turn_keys) if isinstance(first, dict) else 0.0
