"""Examples of a filter: a conversation that it drops, and one much like it that it keeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

Record = Mapping[str, object]


def chat(*texts: str, **keys: object) -> Record:
    """Return a record whose messages have these texts, the user's first; `keys` are further keys of the record."""
    turns = [{"role": ("user", "assistant")[place % 2], "content": text} for place, text in enumerate(texts)]
    return {"messages": turns, **keys}


@dataclass(frozen=True)
class Examples:
    """Two records, as a dump has them, and the settings with which the filter drops one and keeps the other.

    Records in `before` come first in the dump, for a rule that compares conversations.
    """

    dropped: Record
    kept: Record
    settings: Mapping[str, object] = field(default_factory=dict)
    before: Sequence[Record] = ()
