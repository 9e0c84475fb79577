"""Turns as tables hold them: a list for each key of the turns, or text as Python and NumPy print a list of turns."""

from __future__ import annotations

import re
from collections.abc import Mapping

from curate.errors import RecordError
from curate.schemas.conversation import Conversation
from curate.schemas.reading.turn.roles import has_role
from curate.schemas.reading.values import decode_json, preview, python_literal, quote_keys

MAX_PYTHON_CHARS = 1 << 23  # of text as Python prints it; parsing takes about 100 times as much memory
_QUOTED_ROLE = re.compile(r"""["'](?:role|from)["']\s*:""")
_ROLES, _TEXTS = ("from", "role"), ("value", "content", "text")

_STRING = r"""'(?:[^'\\]|\\.)*+'|"(?:[^"\\]|\\.)*+\""""
_WITHOUT_COMMA = re.compile(rf"({_STRING})|([}}\]])(?=\s+[{{\[])", re.S)  # NumPy prints no commas
_ARRAY = re.compile(rf"({_STRING})|\barray\(|,\s*dtype=\w+\)", re.S)
_CUT = re.compile(rf"{_STRING}|(\.\.\.)", re.S)


def is_columns(value: Mapping[str, object]) -> bool:
    """Return whether an object has lists under the keys of a turn, as `datasets` stores a sequence of objects."""
    return any(isinstance(value.get(key), list) for key in _ROLES) and any(key in value for key in _TEXTS)


def read_columns(conversation: Conversation, value: Mapping[str, object], key: str) -> list[object]:
    """Return the turns of an object with a list for each key; raises RecordError if the lists differ in length."""
    columns = {name: items for name, items in value.items() if items is not None}
    lengths = {len(items) if isinstance(items, list) else -1 for items in columns.values()}
    if len(lengths) > 1:
        reason = f"{key!r} is an object with lists of different lengths under {quote_keys(list(columns))}"
        raise RecordError("no_messages", reason, preview(value))
    conversation.edit("turns_from_columns", None, preview(value), "")
    rows = zip(*(items for items in columns.values() if isinstance(items, list)), strict=True)
    return [dict(zip(columns, row, strict=True)) for row in rows]


def decode_messages(value: object, key: str) -> list[object] | None:
    """Return the messages of a text that is a list of them, as JSON or as Python prints it; None for any other value.

    Raises RecordError as `read_python`.
    """
    if not isinstance(value, str) or not value.lstrip().startswith(("[{", "array([{")):
        return None
    if not _QUOTED_ROLE.search(value, 0, 4096):
        return None
    decoded = decode_json(value)
    items = read_python(value, key) if decoded is None else decoded
    if not isinstance(items, list) or not all(isinstance(item, dict) and has_role(item) for item in items):
        return None
    return items or None


def read_python(text: str, key: str) -> list[object] | None:
    """Return a list of turns from text as Python or NumPy prints it; None if it is no such list.

    Raises RecordError if NumPy has left out a part of it.
    """
    if len(text) > MAX_PYTHON_CHARS or not text.strip().startswith(("[", "array(")):
        return None
    text = _ARRAY.sub(lambda match: match[1] or "", text.strip())
    if "{" in text and any(match[1] for match in _CUT.finditer(text)):
        raise RecordError("no_messages", f"{key!r} is text that was printed with parts left out (...)", preview(text))
    value = python_literal(_WITHOUT_COMMA.sub(lambda match: match[1] or f"{match[2]},", text))
    return value if isinstance(value, list) and all(isinstance(turn, dict) for turn in value) else None
