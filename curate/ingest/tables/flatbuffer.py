"""Read tables of FlatBuffers, the encoding of Arrow's metadata.

Source: https://flatbuffers.dev/internals/
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class FlatTable:
    """A table at byte `start` of the data. What is not inside the data raises ValueError."""

    data: bytes | memoryview
    start: int

    @classmethod
    def root(cls, data: bytes | memoryview) -> FlatTable:
        """Return the table that the data are about."""
        return cls(data, _int(data, 0, 4, signed=False))

    def number(self, field: int, size: int, default: int = 0) -> int:
        """Return an integer of `size` bytes."""
        at = self._place(field)
        return _int(self.data, at, size) if at else default

    def table(self, field: int) -> FlatTable | None:
        """Return a table within this one."""
        at = self._place(field)
        return FlatTable(self.data, at + _int(self.data, at, 4, signed=False)) if at else None

    def structs(self, field: int, size: int) -> list[bytes]:
        """Return a vector of structs of `size` bytes."""
        at = self._place(field)
        if not at:
            return []
        at += _int(self.data, at, 4, signed=False)
        count = _int(self.data, at, 4, signed=False)
        if at + 4 + count * size > len(self.data):
            raise ValueError("a vector exceeds the metadata")
        return [bytes(self.data[at + 4 + size * number : at + 4 + size * (number + 1)]) for number in range(count)]

    def _place(self, field: int) -> int:
        """Return where a field is; 0 if the table does not have it."""
        directory = self.start - _int(self.data, self.start, 4)
        if 4 + 2 * field >= _int(self.data, directory, 2, signed=False):
            return 0
        offset = _int(self.data, directory + 4 + 2 * field, 2, signed=False)
        return self.start + offset if offset else 0


def _int(data: bytes | memoryview, at: int, size: int, *, signed: bool = True) -> int:
    if not 0 <= at <= len(data) - size:
        raise ValueError("an offset exceeds the metadata")
    return int.from_bytes(data[at : at + size], "little", signed=signed)
