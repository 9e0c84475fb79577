"""Members of a zip archive that has lost its list (a download cut off, most often), by their own headers.

The list of a zip stands at its end. A member also has a header before its bytes, with its name and,
unless the archive was written to a pipe, its size; so what is left of an archive can be walked.
Layouts are those of PKWARE's APPNOTE.TXT, sections 4.3.7 (header), 4.3.9 (sizes behind the bytes) and 4.5.3 (zip64).
"""

from __future__ import annotations

import mmap
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

HEADER = struct.Struct("<4s5H3I2H")  # signature, version, flags, method, time, date, crc, packed, size, name, extra
SIGNATURE, SIZES_BEHIND, IN_LIST = b"PK\x03\x04", b"PK\x07\x08", b"PK\x01\x02"
ENCRYPTED, SIZES_FOLLOW, UTF_8 = 1 << 0, 1 << 3, 1 << 11
ZIP64, IN_ZIP64 = 1, 0xFFFFFFFF
STORED, DEFLATED = 0, 8
READ = 1 << 12  # bytes of a deflated member at a time: they can stand for 4 MiB

Note = Callable[[int, int, str], None]  # byte offset, bytes lost, what happened


@dataclass(frozen=True)
class Member:
    """One member, as its own header tells it. Its bytes are [start, stop) of the file; whole unless `cut`."""

    name: str
    at: int  # the byte at which its header stands
    start: int
    stop: int
    method: int
    encrypted: bool
    crc: int | None  # null where it stands behind the bytes
    lost: int = 0  # bytes that the header promises past the end of the file
    cut: bool = False


def walk(path: Path) -> list[Member]:
    """Return the members of a zip in the order of their bytes; the last may be cut off."""
    with path.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data:
        found: list[Member] = []
        at = data.find(SIGNATURE)
        while at >= 0:
            member = _member(data, at)
            if member is not None:
                found.append(member)
            at = data.find(SIGNATURE, member.stop if member else at + 1)
        return found


def _member(data: mmap.mmap, at: int) -> Member | None:
    """Return the member whose header stands at a byte; null where that header is cut off."""
    if at + HEADER.size > len(data):
        return None
    _, _, flags, method, _, _, crc, packed, size, name_size, extra_size = HEADER.unpack_from(data, at)
    name_at = at + HEADER.size
    start = name_at + name_size + extra_size
    if start > len(data):
        return None
    name = data[name_at : name_at + name_size].decode("utf-8" if flags & UTF_8 else "cp437", "replace")
    if packed == IN_ZIP64:
        packed = _zip64_packed(data[start - extra_size : start], size)
    behind = bool(flags & SIZES_FOLLOW)
    stop = _stop(data, start) if behind and not packed else start + packed
    lost = max(0, (stop or 0) - len(data))
    return Member(
        name=name,
        at=at,
        start=start,
        stop=min(len(data), stop or len(data)),
        method=method,
        encrypted=bool(flags & ENCRYPTED),
        crc=None if behind else crc,
        lost=lost,
        cut=stop is None or lost > 0,
    )


def _zip64_packed(extra: bytes, size: int) -> int:
    """Return the packed size that stands in the extra field, after the whole size if that is there too."""
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, at)
        place = at + 4 + (8 if size == IN_ZIP64 else 0)
        if kind == ZIP64 and place + 8 <= len(extra):
            return int(struct.unpack_from("<Q", extra, place)[0])
        at += 4 + length
    return IN_ZIP64


def _stop(data: mmap.mmap, start: int) -> int | None:
    """Return where a member ends whose size stands behind its bytes; null where it does not end.

    What looks like that place is it if the size there is the distance to the member's start. Most
    writers put a signature before it; where there is none, the next header or the list follows.
    """
    at = start
    while (at := data.find(b"PK", at)) >= 0:
        mark = data[at : at + 4]
        if mark == SIZES_BEHIND and _size_at(data, at + 8, at - start):
            return at
        if mark in (SIGNATURE, IN_LIST):
            for stop in (at - 12, at - 20):  # crc and two sizes, of four bytes each or of eight
                if stop >= start and _size_at(data, stop + 4, stop - start):
                    return stop
        at += 1
    return None


def _size_at(data: mmap.mmap, at: int, size: int) -> bool:
    return data[at : at + 4] == struct.pack("<I", size & 0xFFFFFFFF)


def member_at(path: Path, place: int) -> Member:
    """Return the member whose header stands at a byte of a zip, as `walk` found it there."""
    return next(member for member in walk(path) if member.at == place)


def blocks(path: Path, member: Member, note: Note) -> Iterator[bytes]:
    """Yield what a member expands to, as far as it goes; damage is noted.

    Raises RuntimeError for an encrypted member, NotImplementedError for one packed in an unusual way.
    """
    if member.encrypted:
        raise RuntimeError("it is encrypted")
    if member.method not in (STORED, DEFLATED):
        raise NotImplementedError("the zip is damaged, and its member neither stored nor deflated: pack it anew")
    with path.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data:
        yield from _expand(data, member, note)


def _expand(data: mmap.mmap, member: Member, note: Note) -> Iterator[bytes]:
    inflate = zlib.decompressobj(-zlib.MAX_WBITS)
    done = crc = 0
    for at in range(member.start, member.stop, READ):
        packed = data[at : min(at + READ, member.stop)]
        try:
            out = packed if member.method == STORED else inflate.decompress(packed)
        except zlib.error as error:
            lost = member.stop - at
            note(done, lost, f"the zip member is damaged near byte {at} of the file ({error}): {lost} bytes are lost")
            return
        done += len(out)
        crc = zlib.crc32(out, crc)
        yield out
    if member.cut or (member.method == DEFLATED and not inflate.eof):
        gone = f"{member.lost} bytes of it are lost" if member.lost else "what came after is lost"
        note(done, member.lost, f"the zip member is cut off at byte {member.stop} of the file: {gone}")
    elif member.crc is not None and crc != member.crc:
        note(done, 0, "the zip member is damaged: its checksum does not match what it expands to")
