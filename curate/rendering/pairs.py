"""Preference pairs: a conversation's chosen and rejected side, each of which trains only what it answers last."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from curate.dataset.arrow import Row
from curate.errors import RecordError
from curate.schemas.reading.key_kinds import REJECTED_KEYS

NO_PAIR, UNUSABLE_PAIR, SAME_ANSWERS = "no_pair", "unusable_pair", "same_answers"


def split_sides(row: Row) -> tuple[Row, Row]:
    """Return the chosen and the rejected side of a row: the same prompt, and nothing else of it is supervised.

    The marks of the rejected answer do not count: it is in the set only to be compared with.
    """
    prompt = [replace(message, train=False) for message in row.messages[:-1]]
    rejected = [replace(message, train=True) for message in row.rejected]
    return (
        replace(row, messages=[*prompt, *row.messages[-1:]], rejected=[]),
        replace(row, name=f"{row.name} (rejected)", messages=[*prompt, *rejected], rejected=[]),
    )


def has_pair(row: Row) -> bool:
    """Return whether a row ends with an answer that has a rejected one beside it."""
    return bool(row.rejected and row.messages) and row.messages[-1].role == "assistant"


def leave_out(row: Row) -> tuple[Row, RecordError]:
    """Return a row without a pair as it is listed: without its messages, as most of a large set may be such rows."""
    problem = RecordError(NO_PAIR, "it has no rejected answer")
    if row.rejected:
        problem = RecordError(UNUSABLE_PAIR, "it has a rejected answer, but its last message is not an answer")
    elif key := _unread_key(row.metadata):
        reason = "could not be read, answers something else, or is as good as the chosen one"
        problem = RecordError(UNUSABLE_PAIR, f"its rejected answer, `{key}` in its metadata, {reason}")
    return replace(row, messages=[], rejected=[], metadata=None), problem


def _unread_key(metadata: str | None) -> str | None:
    """Return the key under which a record's metadata (JSON) has a rejected answer, None if it has none."""
    if not metadata or not any(key in metadata for key in REJECTED_KEYS):
        return None
    values = json.loads(metadata)
    return next((key for key in REJECTED_KEYS if isinstance(values.get(key), str | list | dict)), None)


def find_same(sides: Sequence[NDArray[np.int32]]) -> RecordError | None:
    """Return a problem if both sides have the same ids [tokens]: then there is nothing to prefer."""
    chosen, rejected = sides
    if not np.array_equal(chosen, rejected):
        return None
    return RecordError(SAME_ANSWERS, "the chosen and the rejected answer are the same once rendered")
