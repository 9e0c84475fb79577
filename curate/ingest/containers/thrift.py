"""Thrift's compact protocol, in which a Parquet file describes itself, for structs of any shape.

Source: https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

TRUE, FALSE, BYTE, I16, I32, I64, DOUBLE, BINARY, LIST, SET, MAP, STRUCT = range(1, 13)
MAX_DEPTH = 32  # Parquet's own structs have under ten levels
MAX_VARINT_BYTES = 10
CUT_OFF = "cut off"

Struct = dict[int, "Field"]  # by number


@dataclass(slots=True)
class Field:
    """A value and its type; `item_type` is the type of a list's items."""

    type: int
    value: Any
    item_type: int = 0


class Reader:
    """Read values from bytes, from `position` on; raises ValueError where the bytes are none."""

    def __init__(self, data: bytes, position: int = 0) -> None:
        self.data = data
        self.position = position

    def struct(self, depth: int = 0) -> Struct:
        """Read a struct."""
        if depth > MAX_DEPTH:
            raise ValueError("nested too deeply")
        fields: Struct = {}
        number = 0
        try:
            while header := self.data[self.position]:
                self.position += 1
                number = number + (header >> 4) if header >> 4 else self._integer()
                if number < 1:
                    raise ValueError("a field has no number")
                type_ = header & 15
                fields[number] = Field(type_, self._integer()) if I16 <= type_ <= I64 else self._field(type_, depth)
        except IndexError:
            raise ValueError(CUT_OFF) from None
        self.position += 1
        return fields

    def _field(self, type_: int, depth: int) -> Field:
        if type_ in (TRUE, FALSE):
            return Field(type_, type_ == TRUE)
        if type_ not in (LIST, SET):
            return Field(type_, self._value(type_, depth))
        header = self._byte()
        count = header >> 4 if header >> 4 < 15 else self._varint()
        item_type = header & 15
        return Field(type_, [self._value(item_type, depth) for _ in range(count)], item_type)

    def _value(self, type_: int, depth: int) -> Any:
        if type_ == STRUCT:
            return self.struct(depth + 1)
        if type_ in (I16, I32, I64):
            return self._integer()
        if type_ == BINARY:
            return self._bytes(self._varint())
        if type_ in (TRUE, FALSE, BYTE):
            return self._byte()
        if type_ == DOUBLE:
            return self._bytes(8)
        raise ValueError(f"type {type_} is not used in Parquet")

    def _integer(self) -> int:
        byte = self.data[self.position]
        if byte < 128:  # most are small
            self.position += 1
            return (byte >> 1) ^ -(byte & 1)
        number = self._varint()
        return (number >> 1) ^ -(number & 1)

    def _varint(self) -> int:
        number = shift = 0
        position = self.position
        for byte in self.data[position : position + MAX_VARINT_BYTES]:
            position += 1
            number |= (byte & 127) << shift
            if byte < 128:
                self.position = position
                return number
            shift += 7
        raise ValueError(CUT_OFF if position == len(self.data) else "an integer has more than 64 bits")

    def _byte(self) -> int:
        self.position += 1
        return self.data[self.position - 1]

    def _bytes(self, count: int) -> bytes:
        stop = self.position + count
        if stop > len(self.data):
            raise ValueError(CUT_OFF)
        value = self.data[self.position : stop]
        self.position = stop
        return value


def encode(fields: Struct) -> bytes:
    """Return a struct as bytes."""
    parts = []
    previous = 0
    for number, field in sorted(fields.items()):
        delta = number - previous
        parts.append(bytes([delta << 4 | field.type]) if delta < 16 else bytes([field.type]) + _integer(number))
        parts.append(_encode_field(field))
        previous = number
    return b"".join(parts) + b"\0"


def _encode_field(field: Field) -> bytes:
    if field.type in (TRUE, FALSE):
        return b""
    if field.type not in (LIST, SET):
        return _encode_value(field.type, field.value)
    count = len(field.value)
    header = bytes([count << 4 | field.item_type]) if count < 15 else bytes([0xF0 | field.item_type]) + _varint(count)
    return header + b"".join(_encode_value(field.item_type, item) for item in field.value)


def _encode_value(type_: int, value: Any) -> bytes:
    if type_ in (I16, I32, I64):
        return _integer(value)
    if type_ == BINARY:
        return _varint(len(value)) + bytes(value)
    if type_ == STRUCT:
        return encode(value)
    return bytes(value) if type_ == DOUBLE else bytes([value])


def _integer(number: int) -> bytes:
    return _varint(number << 1 ^ number >> 63)


def _varint(number: int) -> bytes:
    parts = bytearray()
    while number > 127:
        parts.append(number & 127 | 128)
        number >>= 7
    parts.append(number)
    return bytes(parts)
