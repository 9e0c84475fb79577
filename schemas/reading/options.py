"""How records are read, where a format leaves a choice."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class ReadOptions:
    """Choices of whoever reads a dump.

    `format`: the name of the only format to read, empty to recognise each record's. `custom_instructions`: what a user
    has written about themselves for every chat becomes the system message. `branches`: every branch of a tree of
    messages becomes a conversation, not only the current one. `columns`: the keys that a record has in place of those
    that the formats read, as pairs of a format's key and the record's. `ratings`: of messages by id, true for good
    answers, as an export has them in a file of their own.
    """

    format: str = ""
    custom_instructions: bool = False
    branches: bool = False
    columns: tuple[tuple[str, str], ...] = ()
    ratings: Mapping[str, bool] = field(default_factory=dict, hash=False)


DEFAULT = ReadOptions()
