"""List the members of a zip, from its directory and from their own headers.

The directory is at the end of a zip. Each member also has a header before its bytes, with its name and, unless the
zip was written to a pipe, its size. Where the directory is lost or does not agree with the headers, the members are
those of both; a member then has an extent for each reading of them, and its checksum shows which is right. Layouts
are from PKWARE's APPNOTE.TXT, sections 4.3.7 (local header), 4.3.9 (data descriptor after the bytes), 4.3.12
(directory), 4.3.16 (its end) and 4.5.3 (zip64).
"""

from __future__ import annotations

import mmap
import re
import struct
import zipfile
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from curate.ingest.containers.zip_members import DESCRIPTOR_MARK, Extent, Member

# signature, version, flags, method, time, date, crc, packed, size, name, extra
HEADER = struct.Struct("<4s5H3I2H")
# signature, 2 versions, flags, method, time, date, crc, packed, size, name, extra, comment, disk, attributes, offset
ENTRY = struct.Struct("<4s6H3I5H2I")
HEADER_MARK, ENTRY_MARK, END_MARK = b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06"
MARKS = (HEADER_MARK, ENTRY_MARK, END_MARK, DESCRIPTOR_MARK, b"PK\x06\x06", b"PK\x06\x08")
ENCRYPTED, HAS_DESCRIPTOR, UTF_8 = 1 << 0, 1 << 3, 1 << 11
ZIP64_FIELD, SEE_ZIP64, SEE_ZIP64_COUNT = 1, 0xFFFFFFFF, 0xFFFF
DESCRIPTOR_BYTES = (16, 24, 12, 20)  # with and without a mark, sizes of 4 or 8 bytes
USUAL_EXTRA_BYTES = (0, 20, 28)  # of a local header: none, zip64, Info-ZIP's times and owner
NAME_SEARCH_BYTES = 1 << 10  # around the place of a damaged header
MAX_EXTENTS = 24  # readings of one member to try
DIRECTORY_ERRORS = (zipfile.BadZipFile, NotImplementedError, ValueError, RuntimeError, IndexError, struct.error)


@dataclass(frozen=True)
class Listing:
    """The members in the order of their bytes, and what is wrong with the directory (may be empty)."""

    members: list[Member]
    damage: str = ""


@dataclass(frozen=True)
class Header:
    """A description of a member: by its own header, or by its entry in the directory."""

    header_at: int  # byte offset of its own header, as far as the description knows
    name: str
    name_bytes: bytes
    extra_bytes: int
    flags: int
    method: int
    crc: int
    packed: int
    size: int

    @property
    def start(self) -> int:
        return self.header_at + HEADER.size + len(self.name_bytes) + self.extra_bytes

    @property
    def is_open(self) -> bool:
        """Whether the sizes follow the member's bytes."""
        return bool(self.flags & HAS_DESCRIPTOR) and not self.packed

    def extent(self, start: int, stop: int | None, file_bytes: int) -> Extent:
        """Return the extent of the member's bytes; `stop` is None if they have no end."""
        return Extent(
            start=start,
            stop=min(stop or file_bytes, file_bytes),
            method=self.method,
            encrypted=bool(self.flags & ENCRYPTED),
            crc=None if self.is_open else self.crc,
            size=None if self.is_open else self.size,
            cut_off=stop is None or stop > file_bytes,
            lost=max(0, (stop or 0) - file_bytes),
        )


def list_members(path: Path) -> Listing:
    """Return the members of a zip; raises OSError if the file cannot be read."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            return Listing(_listed_members(path, data))
        except DIRECTORY_ERRORS as error:
            reason = " ".join(str(error).split())
            has_directory = data.find(ENTRY_MARK) >= 0
            members = list(_Recovery(data).members())
        return Listing(members, _directory_damage(len(data), len(members), reason, has_directory))


def _directory_damage(file_bytes: int, count: int, reason: str, has_directory: bool) -> str:
    found = f"{count} member{'' if count == 1 else 's'} found"
    if has_directory:
        return f"the directory of the zip is damaged ({reason}): {found} by it or by their own headers"
    return (
        f"the zip has lost the directory at its end ({reason}): it is cut off at byte {file_bytes:,}, or damaged; "
        f"{found} by their own headers, the rest is lost"
    )


# ── a sound zip ───────────────────────────────────────────────────────────────────────────────────────────────────


def _listed_members(path: Path, data: mmap.mmap) -> list[Member]:
    """Return the members in the directory; raises BadZipFile if it does not agree with their own headers."""
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    end = data.rfind(END_MARK)
    (count,) = struct.unpack_from("<H", data, end + 10)
    if count not in (len(entries), SEE_ZIP64_COUNT):
        raise zipfile.BadZipFile(f"{len(entries)} of {count} entries can be read")
    return sorted((_listed_member(data, entry) for entry in entries), key=lambda member: member.header_at)


def _listed_member(data: mmap.mmap, entry: zipfile.ZipInfo) -> Member:
    header = _read_header(data, entry.header_offset)
    listed = (entry.orig_filename, entry.compress_type, entry.flag_bits & ENCRYPTED)
    if header is None or (header.name, header.method, header.flags & ENCRYPTED) != listed:
        raise zipfile.BadZipFile(f"{entry.orig_filename!r} does not agree with its own header")
    sizes = (entry.CRC, entry.compress_size, entry.file_size)
    stop = header.start + entry.compress_size
    own_sizes = sizes if header.flags & HAS_DESCRIPTOR else (header.crc, header.packed, header.size)
    if own_sizes != sizes or not _ends_well(data, stop):
        raise zipfile.BadZipFile(f"the size of {entry.orig_filename!r} does not agree with its own header")
    encrypted = bool(header.flags & ENCRYPTED)
    extent = Extent(header.start, stop, header.method, encrypted, entry.CRC, entry.file_size)
    return Member((entry.filename,), entry.header_offset, (extent,))


# ── a damaged zip ─────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class _Descriptions:
    """What describes the member at byte `header_at`: its own header, an entry of the directory, or both."""

    header_at: int
    header: Header | None
    entry: Header | None

    def all(self) -> list[Header]:
        return [description for description in (self.entry, self.header) if description is not None]


class _Recovery:
    """Finds the members of a zip whose directory is lost or damaged."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data = data
        self.headers: dict[int, Header] = {}
        for match in re.finditer(re.escape(HEADER_MARK), data):
            if (header := _read_header(data, match.start())) is not None:
                self.headers[match.start()] = header
        last = max(self.headers, default=0)
        self.directory_at = data.find(ENTRY_MARK, last)
        if self.directory_at < 0:
            end = data.find(END_MARK, last)
            self.directory_at = end if end >= 0 else len(data)
        self.search_bytes = 8 * len(data)  # left for searching the ends of members, so that time is linear

    def members(self) -> Iterator[Member]:
        """Yield the members in the order of their bytes; no headers within another member's bytes."""
        described = sorted(self._described(), key=lambda each: each.header_at)
        inside = 0
        for number, each in enumerate(described, 1):
            next_at = described[number].header_at if number < len(described) else self.directory_at
            if each.header_at < inside:
                continue
            extents = self._extents(each, next_at)
            if _ends_well(self.data, extents[0].stop):
                inside = extents[0].stop
            names = dict.fromkeys(description.name for description in each.all())
            yield Member(tuple(names), each.header_at, tuple(extents))

    def _described(self) -> Iterator[_Descriptions]:
        """Yield each header with its entry in the directory, each entry with its header, and those without."""
        by_name: defaultdict[str, list[int]] = defaultdict(list)
        for header_at, header in self.headers.items():
            by_name[header.name].append(header_at)
        unused = dict(self.headers)
        shift = 0  # of the members' bytes against the offsets in the directory, where bytes were lost or added
        unmatched: list[tuple[Header, int]] = []
        for entry in _entries(self.data, self.directory_at):
            at = _nearest(by_name[entry.name], entry.header_at + shift, unused)
            if at is None:
                unmatched.append((entry, shift))
                continue
            shift = at - entry.header_at
            yield _Descriptions(at, unused.pop(at), entry)
        for entry, shift_before in unmatched:
            place = self._place(entry, (shift_before, shift), unused)
            yield _Descriptions(place, unused.pop(place, None), entry)
        for header_at, header in unused.items():
            yield _Descriptions(header_at, header, None)

    def _place(self, entry: Header, shifts: Sequence[int], headers: dict[int, Header]) -> int:
        """Return where the damaged header of a listed member must be."""
        places = [entry.header_at + shift for shift in shifts]
        for at in places:
            if at in headers:  # its name is damaged, here or in the directory
                return at
        for at in places:
            first = max(0, at - NAME_SEARCH_BYTES)
            stop = max(0, at + HEADER.size + NAME_SEARCH_BYTES)
            if entry.name_bytes and (name_at := self.data.find(entry.name_bytes, first, stop)) >= HEADER.size:
                return name_at - HEADER.size
        return max(0, places[0])

    def _extents(self, each: _Descriptions, next_at: int) -> list[Extent]:
        """Return the ways to read a member, the likeliest first: those that end before a header or the directory."""
        size = len(self.data)
        extents: list[Extent] = []
        for description in each.all():
            for start in _starts(each)[: 1 if description.is_open else None]:
                stop = self._find_stop(start) if description.is_open else start + description.packed
                extents.append(description.extent(start, stop, size))
        sound = [extent for extent in extents if not extent.cut_off and _ends_well(self.data, extent.stop)]
        known_crcs = {extent.crc for extent in extents if extent.crc is not None}
        if sound and len(known_crcs) <= 1 and len({(extent.method, extent.encrypted) for extent in extents}) == 1:
            return [sound[0]]
        for description in each.all():
            for after in (0, *DESCRIPTOR_BYTES):
                if (start := next_at - after - description.packed) > each.header_at and description.packed:
                    extents.append(description.extent(start, next_at - after, size))
            for start in _starts(each):
                extents.append(description.extent(start, next_at, size))
        cut_off = next_at == size  # a member that reaches the end of the file is most likely cut off there
        likely = sorted(
            (extent for extent in dict.fromkeys(extents) if extent.start <= extent.stop),
            key=lambda extent: (extent not in sound, extent.cut_off != cut_off),
        )
        return likely[:MAX_EXTENTS] or [each.all()[0].extent(each.header_at, next_at, size)]

    def _find_stop(self, start: int) -> int | None:
        """Return the end of a member whose size is in a descriptor after its bytes; None if it has no end.

        A likely descriptor is one if its size equals its distance from the member's start. Most writers put a mark
        before the descriptor; without one, the next header or the directory follows it.
        """
        position = start
        limit = start + max(0, self.search_bytes)
        while (position := self.data.find(b"PK", position, limit)) >= 0:
            mark = self.data[position : position + 4]
            stops = [position] if mark == DESCRIPTOR_MARK and self._has_size(position + 8, position - start) else []
            if mark in (HEADER_MARK, ENTRY_MARK):  # crc and two sizes before it, of 4 or 8 bytes each
                stops = [
                    at for at in (position - 12, position - 20) if at >= start and self._has_size(at + 4, at - start)
                ]
            if stops:
                self.search_bytes -= position - start
                return stops[0]
            position += 1
        self.search_bytes -= len(self.data) - start
        return None

    def _has_size(self, offset: int, size: int) -> bool:
        return self.data[offset : offset + 4] == struct.pack("<I", size & 0xFFFFFFFF)


def _starts(each: _Descriptions) -> list[int]:
    """Return where a member's bytes may start: after its header, whose lengths may be damaged."""
    header, entry = each.header, each.entry
    starts = [header.start] if header is not None else []
    if entry is not None:
        after_name = each.header_at + HEADER.size + len(entry.name_bytes)
        sizes = [header.extra_bytes] if header is not None else []
        starts += [after_name + size for size in (*sizes, entry.extra_bytes, *USUAL_EXTRA_BYTES)]
    return list(dict.fromkeys(starts))


def _ends_well(data: mmap.mmap, stop: int) -> bool:
    """Return whether a member may end here: a mark follows, at once or after a descriptor; or the file ends."""
    offsets = (stop, stop + 12, stop + 20)  # a descriptor may lack its mark
    return stop == len(data) or any(data[offset : offset + 4] in MARKS for offset in offsets)


def _nearest(places: list[int], place: int, unused: Container[int]) -> int | None:
    """Return the nearest of the unused places, among the next ones before and after."""
    index = bisect_left(places, place)
    near = [at for at in places[max(0, index - 2) : index + 2] if at in unused]
    return min(near, key=lambda at: abs(at - place), default=None)


def _read_header(data: mmap.mmap, at: int) -> Header | None:
    """Return the header of a member at this byte; None where it is cut off, or is not one."""
    if not 0 <= at <= len(data) - HEADER.size:
        return None
    mark, _, flags, method, _, _, crc, packed, size, name_size, extra_size = HEADER.unpack_from(data, at)
    name_at = at + HEADER.size
    extra_at = name_at + name_size
    if mark != HEADER_MARK or extra_at + extra_size > len(data):
        return None
    size, packed = _zip64(data[extra_at : extra_at + extra_size], [size, packed])
    name = data[name_at:extra_at]
    return Header(at, _text(name, flags), name, extra_size, flags, method, crc, packed, size)


def _entries(data: mmap.mmap, directory_at: int) -> Iterator[Header]:
    """Yield the entries of the directory that can be read."""
    for match in re.finditer(re.escape(ENTRY_MARK), data[directory_at:]):
        at = directory_at + match.start()
        if at + ENTRY.size > len(data):
            return
        fields = ENTRY.unpack_from(data, at)
        flags, method, crc, packed, size, name_size, extra_size = (*fields[3:5], *fields[7:12])
        name_at = at + ENTRY.size
        extra_at = name_at + name_size
        name = data[name_at:extra_at]
        size, packed, header_at = _zip64(data[extra_at : extra_at + extra_size], [size, packed, fields[-1]])
        yield Header(header_at, _text(name, flags), name, extra_size, flags, method, crc, packed, size)


def _text(name: bytes, flags: int) -> str:
    return name.decode("utf-8" if flags & UTF_8 else "cp437", "replace")


def _zip64(extra: bytes, values: list[int]) -> list[int]:
    """Return the values with those of the zip64 field, which has the ones that are too large for the header."""
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<2H", extra, at)
        if kind == ZIP64_FIELD:
            field = extra[at + 4 : at + 4 + length]
            large = iter(struct.unpack(f"<{len(field) // 8}Q", field[: len(field) // 8 * 8]))
            return [next(large, value) if value == SEE_ZIP64 else value for value in values]
        at += 4 + length
    return values
