"""JSON values: as plain JSON, as text, and described for a reason."""

from __future__ import annotations

import ast
import json
import math
import warnings
from collections.abc import Sequence

Number = int | float

MAX_DEPTH = 64  # levels of lists and objects that are kept; real records have fewer than ten
MAX_INT = 2**63 - 1  # JSON readers may round larger integers
MAX_EVIDENCE = 200  # characters
MAX_NAME = 40  # characters of a key or role quoted in a reason


def preview(value: object) -> str:
    """Return a value as one short text that can be encoded, as evidence for a reason."""
    if isinstance(value, list):
        value = value[:5]
    elif isinstance(value, dict):
        value = dict(list(value.items())[:5])
    try:
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    except (RecursionError, ValueError, TypeError):
        text = describe_type(value)
    return text[:MAX_EVIDENCE].encode("utf-8", "backslashreplace").decode()


def describe_type(value: object) -> str:
    """Describe the type of a JSON value."""
    if isinstance(value, list):
        return f"a list of {len(value)}"
    names: dict[type, str] = {type(None): "null", str: "text", bool: "true or false", dict: "an object"}
    return names.get(type(value), "a number")


def quote_keys(keys: Sequence[object]) -> str:
    """Quote the first six keys, for a reason."""
    quoted = ", ".join(repr(preview(key)[:MAX_NAME]) for key in keys[:6])
    return quoted + (f" and {len(keys) - 6} more" if len(keys) > 6 else "")


def to_plain_json(value: object, depth: int = 0) -> object:
    """Return a value that any JSON reader can represent.

    NaN, infinities and values nested too deep become None; integers past 64 bits, dates and decimals become text.
    """
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, int):
        return value if abs(value) <= MAX_INT else number_to_text(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if depth >= MAX_DEPTH:
        return None
    if isinstance(value, list):
        return [to_plain_json(item, depth + 1) for item in value]
    if isinstance(value, dict):
        return {str(key): to_plain_json(item, depth + 1) for key, item in value.items()}
    return str(value)  # dates and decimals, from Parquet


def number_to_text(value: Number) -> str | None:
    """Return a number as JSON text, or None if JSON cannot express it."""
    try:
        return json.dumps(value, allow_nan=False)
    except ValueError:  # not finite, or more digits than Python converts
        return None


def to_json_line(value: object) -> str:
    """Return a value as compact JSON text."""
    return json.dumps(to_plain_json(value), ensure_ascii=False, separators=(",", ":"))


def decode_json(text: str) -> object:
    """Return the value of a JSON text, or None if it is not JSON."""
    try:
        value: object = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value


def python_literal(text: str) -> object:
    """Return the value of a text that Python has printed, or None if it is none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes that Python does not know
            return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        return None


def is_json_list(text: str) -> bool:
    """Return whether a text is a JSON list, as tool calls are."""
    return isinstance(decode_json(text), list)
