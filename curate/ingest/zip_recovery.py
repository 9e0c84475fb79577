"""Read the members of a zip without its central directory, most often a download that was cut off.

The directory is at the end of a zip. Each member also has a header before its bytes, with its name and, unless the
zip was written to a pipe, its size. So the members of a damaged zip can be read one after another. Layouts are from
PKWARE's APPNOTE.TXT, sections 4.3.7 (local header), 4.3.9 (data descriptor after the bytes) and 4.5.3 (zip64).
"""

from __future__ import annotations

import mmap
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from curate.ingest.damage import ReportDamage

HEADER = struct.Struct("<4s5H3I2H")  # signature, version, flags, method, time, date, crc, packed, size, name, extra
HEADER_SIGNATURE, DESCRIPTOR_SIGNATURE, DIRECTORY_SIGNATURE = b"PK\x03\x04", b"PK\x07\x08", b"PK\x01\x02"
ENCRYPTED, HAS_DESCRIPTOR, UTF_8 = 1 << 0, 1 << 3, 1 << 11
ZIP64_FIELD, SEE_ZIP64 = 1, 0xFFFFFFFF
STORED, DEFLATED = 0, 8
READ_BYTES = 1 << 12  # of a deflated member at a time; they can expand to 4 MiB


@dataclass(frozen=True)
class Member:
    """One member, from its own header. Its bytes are [start, stop) of the file; all of them unless `truncated`."""

    name: str
    header_at: int  # byte offset of its header
    start: int
    stop: int
    method: int
    encrypted: bool
    crc: int | None  # None where it follows the member's bytes
    lost: int = 0  # bytes announced by the header but past the end of the file
    truncated: bool = False


def find_members(path: Path) -> list[Member]:
    """Return the members of a zip in the order of their bytes; the last may be truncated."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        members: list[Member] = []
        header_at = data.find(HEADER_SIGNATURE)
        while header_at >= 0:
            member = _member(data, header_at)
            if member is not None:
                members.append(member)
            header_at = data.find(HEADER_SIGNATURE, member.stop if member else header_at + 1)
        return members


def _member(data: mmap.mmap, header_at: int) -> Member | None:
    """Return the member with a header at this byte; None where that header is cut off."""
    if header_at + HEADER.size > len(data):
        return None
    _, _, flags, method, _, _, crc, packed, size, name_size, extra_size = HEADER.unpack_from(data, header_at)
    name_at = header_at + HEADER.size
    start = name_at + name_size + extra_size
    if start > len(data):
        return None
    name = data[name_at : name_at + name_size].decode("utf-8" if flags & UTF_8 else "cp437", "replace")
    if packed == SEE_ZIP64:
        packed = _zip64_packed_size(data[start - extra_size : start], size)
    has_descriptor = bool(flags & HAS_DESCRIPTOR)
    stop = _find_stop(data, start) if has_descriptor and not packed else start + packed
    lost = max(0, (stop or 0) - len(data))
    return Member(
        name=name,
        header_at=header_at,
        start=start,
        stop=min(len(data), stop or len(data)),
        method=method,
        encrypted=bool(flags & ENCRYPTED),
        crc=None if has_descriptor else crc,
        lost=lost,
        truncated=stop is None or lost > 0,
    )


def _zip64_packed_size(extra: bytes, size: int) -> int:
    """Return the packed size in the extra field, where it is after the unpacked size if that is there too."""
    offset = 0
    while offset + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, offset)
        packed_at = offset + 4 + (8 if size == SEE_ZIP64 else 0)
        if kind == ZIP64_FIELD and packed_at + 8 <= len(extra):
            return int(struct.unpack_from("<Q", extra, packed_at)[0])
        offset += 4 + length
    return SEE_ZIP64


def _find_stop(data: mmap.mmap, start: int) -> int | None:
    """Return the end of a member whose size is in a descriptor after its bytes; None if it has no end.

    What looks like a descriptor is one if its size equals its distance from the member's start. Most writers put a
    signature before the descriptor; without one, the descriptor is right before the next header or the directory.
    """
    position = start
    while (position := data.find(b"PK", position)) >= 0:
        signature = data[position : position + 4]
        if signature == DESCRIPTOR_SIGNATURE and _has_size(data, position + 8, position - start):
            return position
        if signature in (HEADER_SIGNATURE, DIRECTORY_SIGNATURE):
            for stop in (position - 12, position - 20):  # crc and two sizes, of 4 or 8 bytes each
                if stop >= start and _has_size(data, stop + 4, stop - start):
                    return stop
        position += 1
    return None


def _has_size(data: mmap.mmap, offset: int, size: int) -> bool:
    """Return whether the number at `offset` is `size`, of which the low 32 bits are compared."""
    return data[offset : offset + 4] == struct.pack("<I", size & 0xFFFFFFFF)


def member_at(path: Path, header_at: int) -> Member:
    """Return the member that `find_members` found with a header at this byte."""
    return next(member for member in find_members(path) if member.header_at == header_at)


def member_blocks(path: Path, member: Member, report: ReportDamage) -> Iterator[bytes]:
    """Yield the expanded bytes of a member, up to any damage, which is reported.

    Raises RuntimeError for an encrypted member, NotImplementedError for an unsupported compression method.
    """
    if member.encrypted:
        raise RuntimeError("it is encrypted")
    if member.method not in (STORED, DEFLATED):
        raise NotImplementedError("the zip is damaged, and its member neither stored nor deflated; zip it again")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        yield from _expand(data, member, report)


def _expand(data: mmap.mmap, member: Member, report: ReportDamage) -> Iterator[bytes]:
    """Yield the expanded bytes of a member, and report damage."""
    inflate = zlib.decompressobj(-zlib.MAX_WBITS)  # negative: raw deflate, without zlib's header
    expanded = crc = 0
    for offset in range(member.start, member.stop, READ_BYTES):
        packed = data[offset : min(offset + READ_BYTES, member.stop)]
        try:
            block = packed if member.method == STORED else inflate.decompress(packed)
        except zlib.error as error:
            lost = member.stop - offset
            description = f"the zip member is damaged near byte {offset} of the file ({error}): {lost} bytes are lost"
            report(expanded, lost, description)
            return
        expanded += len(block)
        crc = zlib.crc32(block, crc)
        yield block
    if member.truncated or (member.method == DEFLATED and not inflate.eof):
        lost_part = f"{member.lost} bytes of it are lost" if member.lost else "the rest is lost"
        report(expanded, member.lost, f"the zip member is cut off at byte {member.stop} of the file: {lost_part}")
    elif member.crc is not None and crc != member.crc:
        report(expanded, 0, "the zip member is damaged: the checksum does not match its content")
