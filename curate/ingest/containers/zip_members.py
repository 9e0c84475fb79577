"""Read the members of a zip: stored, deflated, bzip2 and LZMA; up to any damage, which is reported."""

from __future__ import annotations

import bz2
import lzma
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

from curate.ingest.damage import Block, Failed, ReportLoss, Verified

STORED, DEFLATED, BZIP2, LZMA = 0, 8, 12, 14  # APPNOTE.TXT 4.4.5
DESCRIPTOR_MARK = b"PK\x07\x08"
READ_BYTES = 1 << 12  # of a member at a time; a failed decoding loses what they expand to
BLOCK_BYTES = 1 << 20  # expanded at a time, at most
MAX_LZMA_DICTIONARY = 1 << 28  # bytes; bounds memory. No common packer uses more
TRIAL_RATIO, MIN_TRIAL_BYTES = 1000, 64 << 20  # a trial stops at so many times the packed size, and not before
DECODE_ERRORS = (zlib.error, lzma.LZMAError, OSError, EOFError, ValueError)  # OSError: from bz2


class UnreadableMember(Exception):
    """A member that is encrypted, or compressed in a way that is not supported."""


@dataclass(frozen=True)
class Extent:
    """One way to read a member: its bytes are [start, stop) of the file; `cut_off` if there should be more."""

    start: int
    stop: int
    method: int
    encrypted: bool
    crc: int | None  # None where it is unknown, or follows the member's bytes
    size: int | None  # when expanded; None where it is unknown
    cut_off: bool = False
    lost: int = 0  # bytes announced by the header but past the end of the file


@dataclass(frozen=True)
class Member:
    """One member. Where its descriptions disagree, it has several extents, the likeliest first."""

    names: tuple[str, ...]  # in the directory, and in its own header if that is another
    header_at: int  # byte offset of its header
    extents: tuple[Extent, ...]

    @property
    def packed_bytes(self) -> int:
        return self.extents[0].stop - self.extents[0].start


def member_blocks(path: Path, member: Member, report: ReportLoss) -> Iterator[Block]:
    """Yield the expanded bytes of a member, and a mark if its checksum was checked.

    Raises UnreadableMember if it is encrypted or its method is not supported.
    """
    with path.open("rb") as file:
        extents = [extent for extent in member.extents if _is_readable(extent)]
        if not extents:
            raise UnreadableMember(_unreadable(member.extents[0]))
        whole = (extent for extent in extents if _is_whole(file, extent))
        yield from _expand(file, extents[0] if len(extents) == 1 else next(whole, extents[0]), report)


def member_head(path: Path, member: Member, size: int) -> bytes:
    """Return the first bytes of a member, as far as they can be read."""
    head = b""
    extent = next(filter(_is_readable, member.extents), None)
    if extent is not None:
        with path.open("rb") as file:
            for block in _expand(file, extent, lambda *_: None):
                head += block if isinstance(block, bytes) else b""
                if len(head) >= size:
                    break
    return head[:size]


def _is_readable(extent: Extent) -> bool:
    return not extent.encrypted and extent.method in DECODERS


def _unreadable(extent: Extent) -> str:
    if extent.encrypted:
        return "it is encrypted"
    return f"its compression method {extent.method} is not supported; zip it again"


def _is_whole(file: IO[bytes], extent: Extent) -> bool:
    """Expand a member for its checksum only."""
    limit = max(MIN_TRIAL_BYTES, TRIAL_RATIO * (extent.stop - extent.start))
    expanded = 0
    for block in _expand(file, extent, lambda *_: None):
        if not isinstance(block, bytes):
            return isinstance(block, Verified)
        expanded += len(block)
        if expanded > limit:
            break
    return False


def _expand(file: IO[bytes], extent: Extent, report: ReportLoss) -> Iterator[Block]:
    expanded = crc = 0
    at = extent.start
    try:
        decoder = DECODERS[extent.method](extent.size)
        file.seek(at)
        while at < extent.stop and not decoder.eof:
            for block in decoder.feed(file.read(min(READ_BYTES, extent.stop - at))):
                expanded += len(block)
                crc = zlib.crc32(block, crc)
                yield block
            at += READ_BYTES
        if not decoder.eof and extent.method != STORED and not extent.cut_off:
            raise EOFError("its end is missing")
    except DECODE_ERRORS as error:
        lost = max(0, extent.stop - at)
        what = f"the zip member is damaged near byte {at} of the file ({str(error).rpartition(': ')[2]})"
        report(expanded, lost, f"{what}: {lost} bytes are lost")
        yield Failed(what)
        return
    if extent.cut_off and not decoder.eof:
        lost_part = f"{extent.lost} bytes of it are lost" if extent.lost else "the rest is lost"
        what = f"the zip member is cut off at byte {extent.stop} of the file: {lost_part}"
        report(expanded, extent.lost or None, what)
        return
    end = min(at, extent.stop) - decoder.unused
    expected = {extent.crc, _crc_at(file, end)} - {None}
    if crc in expected:
        yield Verified()
    elif expected:
        what = "the zip member is damaged: the checksum does not match its content"
        report(expanded, 0, what)
        yield Failed(what)


def _crc_at(file: IO[bytes], end: int) -> int | None:
    """Return the checksum in the descriptor after a member's bytes; None if the file ends before it."""
    file.seek(end)
    crc = file.read(8).removeprefix(DESCRIPTOR_MARK)[:4]
    return int.from_bytes(crc, "little") if len(crc) == 4 else None


# ── decoders ──────────────────────────────────────────────────────────────────────────────────────────────────────


class Decoder(Protocol):
    """Expands the bytes of one member; `unused` counts the bytes fed after its end."""

    @property
    def eof(self) -> bool: ...

    @property
    def unused(self) -> int: ...

    def __init__(self, size: int | None) -> None: ...

    def feed(self, data: bytes) -> Iterator[bytes]: ...


class StoredBytes:
    """Bytes that are not compressed; they end where the extent ends."""

    eof = False
    unused = 0

    def __init__(self, size: int | None) -> None:
        pass

    def feed(self, data: bytes) -> Iterator[bytes]:
        yield data


class DeflateDecoder:
    """A deflate stream."""

    def __init__(self, size: int | None) -> None:
        self.inflate = zlib.decompressobj(-zlib.MAX_WBITS)

    @property
    def eof(self) -> bool:
        return self.inflate.eof

    @property
    def unused(self) -> int:
        return len(self.inflate.unused_data)

    def feed(self, data: bytes) -> Iterator[bytes]:
        while True:
            block = self.inflate.decompress(data, BLOCK_BYTES)
            yield block
            data = self.inflate.unconsumed_tail
            if self.inflate.eof or not (data or len(block) == BLOCK_BYTES):
                return


class Bzip2Decoder:
    """A bzip2 stream."""

    def __init__(self, size: int | None) -> None:
        self.stream: bz2.BZ2Decompressor | lzma.LZMADecompressor = bz2.BZ2Decompressor()

    @property
    def eof(self) -> bool:
        return self.stream.eof

    @property
    def unused(self) -> int:
        return len(self.stream.unused_data)

    def feed(self, data: bytes) -> Iterator[bytes]:
        yield self.stream.decompress(data, BLOCK_BYTES)
        while not (self.stream.needs_input or self.stream.eof):
            yield self.stream.decompress(b"", BLOCK_BYTES)


class LzmaDecoder:
    """A raw LZMA stream after a header with its properties (APPNOTE.TXT 5.8.8); it may lack an end marker."""

    def __init__(self, size: int | None) -> None:
        self.head = b""
        self.stream: lzma.LZMADecompressor | None = None
        self.left = size

    @property
    def eof(self) -> bool:
        return self.left == 0 or (self.stream is not None and self.stream.eof)

    @property
    def unused(self) -> int:
        return len(self.stream.unused_data) if self.stream is not None else 0

    def feed(self, data: bytes) -> Iterator[bytes]:
        if self.stream is None:
            self.head += data
            if len(self.head) < LZMA_HEADER.size:
                return
            data = self.head[LZMA_HEADER.size :]
            self.stream = _open_lzma(self.head)
        while True:
            block = self.stream.decompress(data, BLOCK_BYTES if self.left is None else min(BLOCK_BYTES, self.left))
            if self.left is not None:
                self.left -= len(block)
            yield block
            data = b""
            if self.eof or self.stream.needs_input:
                return


LZMA_HEADER = struct.Struct("<2sHBI")  # version, size of the properties, lc/lp/pb, dictionary size


def _open_lzma(head: bytes) -> lzma.LZMADecompressor:
    _, properties_size, packed, dictionary = LZMA_HEADER.unpack_from(head)
    if properties_size != 5:
        raise ValueError("its LZMA header is damaged")
    rest, lc = divmod(packed, 9)
    pb, lp = divmod(rest, 5)
    dictionary = min(max(dictionary, 1 << 12), MAX_LZMA_DICTIONARY)
    chain = [{"id": lzma.FILTER_LZMA1, "lc": lc, "lp": lp, "pb": pb, "dict_size": dictionary}]
    return lzma.LZMADecompressor(lzma.FORMAT_RAW, filters=chain)


DECODERS: dict[int, type[Decoder]] = {
    STORED: StoredBytes,
    DEFLATED: DeflateDecoder,
    BZIP2: Bzip2Decoder,
    LZMA: LzmaDecoder,
}
