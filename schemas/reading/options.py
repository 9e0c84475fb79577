"""How records are read, where a format leaves a choice."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ReadOptions:
    """Choices of whoever reads a dump.

    `format`: the name of the only format to read, empty to recognise each record's. `custom_instructions`: what a user
    has written about themselves for every chat becomes the system message. `branches`: every branch of a tree of
    messages becomes a conversation, not only the current one. `columns`: the keys that a record has in place of those
    that the formats read, as pairs of a format's key and the record's.
    """

    format: str = ""
    custom_instructions: bool = False
    branches: bool = False
    columns: tuple[tuple[str, str], ...] = ()


DEFAULT = ReadOptions()
