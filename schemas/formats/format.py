"""What a format is: how its records are recognised, read and written."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from curate.schemas.conversation import Conversation
from curate.schemas.reading.options import ReadOptions
from curate.schemas.writing import WriteOptions

Record = Mapping[str, object]


@dataclass(frozen=True)
class Format:
    """One format: how its records are recognised and parsed, and how a conversation is written.

    `recognises` and `parse` are None for a format that is only written, `dump` for one without a record of its own.
    `dump` raises RecordError for a conversation that the format cannot express; `dump_all` is there for a format with
    options, or that writes several records for one conversation. `lacks` are those of `writing.FIELDS` that the records
    have no place for. `parse_all` is there for a format with options, or whose record can hold several conversations:
    it returns at least one. `requires` are keys of its records; the last one holds what `holds` says, whose entries
    have `turn_keys`, for records that are nearly of it.
    """

    name: str
    summary: str
    recognises: Callable[[Record], bool] | None = None
    parse: Callable[[Record], Conversation] | None = None
    dump: Callable[[Conversation], dict[str, object]] | None = None
    array: bool = False  # written as one JSON array, not as lines
    writes: bool = True
    parse_all: Callable[[Record, ReadOptions], Sequence[Conversation]] | None = None
    dump_all: Callable[[Conversation, WriteOptions], Sequence[dict[str, object]]] | None = None
    lacks: tuple[str, ...] = ()
    requires: tuple[str, ...] = ()
    turn_keys: frozenset[str] = frozenset()
    holds: str = "a list of turns"

    @property
    def reads(self) -> bool:
        """Whether records of this format can be read."""
        return self.parse is not None
