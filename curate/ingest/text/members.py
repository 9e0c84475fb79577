"""Records that are the members of an object: the key is the record's id."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from curate.ingest.record_starts import RECORD_KEYS, Object, decode

MEMBER = re.compile(rb'[\s,]*"(?:[^"\\]|\\.)*+"\s*:\s*', re.S)
NO_IDS = ("conversation", "message", "chosen", "rejected", "prompt", "response", "request", "body", "turns", "items")
ROLES = ("role", "from", "author", "sender")


def key_of(member: bytes) -> str:
    """Return the key at the beginning of a member; empty if it cannot be read."""
    try:
        key, _ = json.JSONDecoder(strict=False).raw_decode(member.decode("utf-8", "replace").lstrip(" \t\r\n,"))
    except ValueError:
        return ""
    return key if isinstance(key, str) else ""


def read_member(raw: bytes) -> Object | None:
    """Return the record in a member `"id": {…}`, or `"id": [turns]`, with its id; None if it is no such member.

    A key that names a part of a record, such as `conversation_a`, is no id.
    """
    member = MEMBER.match(raw)
    key = key_of(raw) if member else ""
    if member is None or not key or key.lower().startswith(NO_IDS):
        return None
    return with_id(key, decode(raw[member.end() :]))


def with_id(key: str, value: object) -> Object | None:
    """Return a record with its id; its own id, if it has another, comes before the key, which stays beside it."""
    if isinstance(value, list) and value and all(_is_turn(turn) for turn in value):
        return {"id": key, "conversations": value}
    if not isinstance(value, dict) or RECORD_KEYS.isdisjoint(value):
        return None
    if value.get("id") in (None, ""):
        return {**value, "id": key}
    return value if str(value["id"]) == key or "key" in value else {**value, "key": key}


def _is_turn(value: object) -> bool:
    return isinstance(value, Mapping) and not value.keys().isdisjoint(ROLES)
