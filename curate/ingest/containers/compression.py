"""Expand gzip and zstandard; after damage, expand the next whole member or frame."""

from __future__ import annotations

import re
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import zstandard

from curate.ingest.damage import Block, Failed, Gap, ReportLoss, Verified
from curate.ingest.sources import error_message

GZIP_WBITS = 16 + zlib.MAX_WBITS  # zlib's code for a gzip header
READ_BYTES = 1 << 20  # of a compressed stream at a time, and about the size of expanded blocks
GZIP_SLICE_BYTES = 1 << 17
ZSTD_SLICE_BYTES = 1 << 10  # 4 bytes of zstd can expand to 128 KiB: small slices bound the result of one call
ZSTD_BLOCK_BYTES = (128 << 10) + 64  # the most that a frame's first block takes, with its headers (RFC 8878, 3.1.1.2)
LOOKBACK_BYTES = 1 << 20  # of a damaged member or frame, searched for the start of the next
MAX_TRIES = 1000  # false starts after one damaged place; then the rest is lost
WRONG_TRAILERS = {"incorrect data check": 5, "incorrect length check": 1}  # trailer bytes from where zlib stops
TRAILER_TOLERANCE = 1 << 16  # bytes between the size in a gzip trailer and that of a damaged member


class PackedBytes:
    """A compressed stream; the last bytes that were taken can be put back."""

    def __init__(self, blocks: Iterator[Block]) -> None:
        self.blocks = blocks
        self.data = b""
        self.start = 0  # offset of data[0] in the stream
        self.position = 0  # in `data`, of the next byte to take
        self.failure: Failed | None = None  # of the container around the stream

    @property
    def offset(self) -> int:
        return self.start + self.position

    def take(self, size: int) -> bytes:
        """Return the next bytes, at most `size`; none at the end."""
        if self.position == len(self.data):
            self.read_more()
        part = self.data[self.position : self.position + size]
        self.position += len(part)
        return part

    def put_back(self, count: int) -> None:
        self.position -= count

    def skip(self, count: int) -> None:
        """Skip the next bytes, or those that are left."""
        while count and (part := self.take(count)):
            count -= len(part)

    def move_to(self, offset: int) -> None:
        """Go back to a byte of the stream, or as near to it as possible."""
        self.position = max(0, min(offset - self.start, len(self.data)))

    def peek(self, size: int) -> bytes:
        """Return the next bytes, at most `size`, without taking them."""
        while len(self.data) - self.position < size and self.read_more():
            pass
        return self.data[self.position : self.position + size]

    def read_more(self) -> bool:
        """Read about READ_BYTES more; return False at the end."""
        drop = max(0, min(self.position, len(self.data) - LOOKBACK_BYTES))
        parts = [self.data[drop:]]
        count = 0
        for block in self.blocks:
            if isinstance(block, bytes):
                parts.append(block)
                count += len(block)
            elif isinstance(block, Failed):
                self.failure = block
            if count >= READ_BYTES:
                break
        self.data = b"".join(parts)
        self.start += drop
        self.position -= drop
        return count > 0

    def skip_zeros(self) -> bool:
        """Skip the zeros that pad tape archives and disk images; return False at the end."""
        while True:
            while self.data[self.position : self.position + 1] == b"\0":
                rest = self.data[self.position :]
                self.position += len(rest) - len(rest.lstrip(b"\0"))
            if self.position < len(self.data):
                return True
            if not self.read_more():
                return False


class Frame(ABC):
    """One gzip member or zstd frame, iterated over once; `error` and `cut_off` say how it ended.

    `trailer_left`: after an error in its trailer alone, the bytes of the trailer that are not taken.
    """

    def __init__(self, packed: PackedBytes) -> None:
        self.packed = packed
        self.error = ""
        self.cut_off = False
        self.trailer_left = 0

    @abstractmethod
    def __iter__(self) -> Iterator[bytes]: ...


@dataclass(frozen=True)
class Format:
    """A compressed format: its frames, the bytes they begin with, and a test of the bytes after such a beginning."""

    name: str
    frame: type[Frame]
    magic: re.Pattern[bytes]
    expands: Callable[[bytes], bool]
    trial_bytes: int


class GzipMember(Frame):
    """One member of a gzip stream; zlib checks its checksum."""

    def __iter__(self) -> Iterator[bytes]:
        inflate = zlib.decompressobj(GZIP_WBITS)
        expanded = 0
        while not inflate.eof:
            if not (data := self.packed.take(GZIP_SLICE_BYTES)):
                yield (out := inflate.flush())
                self._note_end(expanded + len(out))
                return
            before = inflate.copy()
            try:
                out = inflate.decompress(data, READ_BYTES)
            except zlib.error as error:
                self.error = _cause(error)
                self.trailer_left = WRONG_TRAILERS.get(self.error, 0)
                yield from self._expand_until_damage(before, data)
                return
            self.packed.put_back(len(inflate.unused_data if inflate.eof else inflate.unconsumed_tail))
            expanded += len(out)
            yield out

    def _note_end(self, expanded: int) -> None:
        """Note how the file ends in this member: cut off, or with a trailer that the damaged member ran over."""
        size = int.from_bytes(self.packed.data[-4:], "little")
        if abs(size - expanded % (1 << 32)) <= TRAILER_TOLERANCE:
            self.error = "its end is missing"
        else:
            self.cut_off = True

    def _expand_until_damage(self, inflate: zlib._Decompress, data: bytes) -> Iterator[bytes]:
        """Expand a damaged slice byte by byte, up to the damage."""
        kept = []
        try:
            for offset in range(len(data)):
                kept.append(inflate.decompress(data[offset : offset + 1]))
        except zlib.error:
            self.packed.put_back(len(data) - len(kept))
        yield b"".join(kept)


class ZstdFrame(Frame):
    """One frame of a zstd stream; its checksum is checked if it has one."""

    def __iter__(self) -> Iterator[bytes]:
        frame = _zstd_decoder()
        while not frame.eof:
            if not (data := self.packed.take(ZSTD_SLICE_BYTES)):
                self.cut_off = True
                return
            try:
                out = frame.decompress(data)
            except zstandard.ZstdError as error:
                self.error = _cause(error)
                self.packed.put_back(len(data))
                return
            if frame.eof:
                self.packed.put_back(len(frame.unused_data))
            yield out


def _cause(error: Exception) -> str:
    """Return what a library says about the data, without "Error -3 while decompressing data"."""
    return error_message(error).rpartition(": ")[2]


def _zstd_decoder() -> zstandard.ZstdDecompressionObj:
    # dumps made with `zstd --long=31` are common
    return zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj()


def _expands_as_gzip(data: bytes) -> bool:
    inflate = zlib.decompressobj(GZIP_WBITS)
    try:
        return bool(inflate.decompress(data, 1)) or inflate.eof
    except zlib.error:
        return False


def _expands_as_zstd(data: bytes) -> bool:
    frame = _zstd_decoder()
    try:
        for start in range(0, len(data), ZSTD_SLICE_BYTES):
            if frame.decompress(data[start : start + ZSTD_SLICE_BYTES]) or frame.eof:
                return True
    except zstandard.ZstdError:
        pass
    return False


GZIP = Format("gzip", GzipMember, re.compile(rb"\x1f\x8b\x08[\x00-\x1f]"), _expands_as_gzip, 1 << 16)
ZSTD = Format("zstd", ZstdFrame, re.compile(rb"\x28\xb5\x2f\xfd"), _expands_as_zstd, ZSTD_BLOCK_BYTES)


def expand(form: Format, blocks: Iterator[Block], report: ReportLoss) -> Iterator[Block]:
    """Expand a stream of one or several frames, with a mark after each.

    All bytes before damage are kept, and frames after it if they begin in the stream's own format.
    """
    packed = PackedBytes(blocks)
    expanded = rewound = 0
    while packed.skip_zeros():
        start = packed.offset
        frame = form.frame(packed)
        for block in frame:
            expanded += len(block)
            yield block
        if not frame.error and not frame.cut_off:
            yield Verified()
            continue
        stopped = packed.offset
        if frame.trailer_left and _skip_trailer(form, packed, frame.trailer_left):
            what = f"the {form.name} stream is damaged near byte {stopped} of the file ({frame.error})"
            report(expanded, 0, f"{what}: all of it can be unpacked, but it may be altered")
            yield Failed(what)
            continue
        if rewound <= stopped:  # the damage may have hidden the start of a later frame; bounded, so that time is linear
            packed.move_to(start + 1)
            rewound += stopped - packed.offset
        resumed = _find_frame(form, packed)
        if frame.cut_off and not resumed:
            report(expanded, None, f"the {form.name} stream is cut off at byte {stopped} of the file: the rest is lost")
            break
        what = f"the {form.name} stream is damaged near byte {stopped} of the file"
        what += f" ({frame.error or 'its end is missing'})"
        lost = max(0, packed.offset - stopped)
        report(expanded, lost, f"{what}: {lost} bytes cannot be unpacked")
        yield Failed(what)
        if resumed:
            yield Gap()
    if packed.failure is not None:
        yield packed.failure


def _skip_trailer(form: Format, packed: PackedBytes, count: int) -> bool:
    """Skip the rest of a wrong trailer, unless neither a frame nor the end follows; return whether it was skipped."""
    start = packed.offset
    packed.skip(count)
    head = packed.peek(form.trial_bytes)
    if not head or (form.magic.match(head) and form.expands(head)):
        return True
    packed.move_to(start)
    return False


def _find_frame(form: Format, packed: PackedBytes) -> bool:
    """Move to the next start of a frame; return False, at the end of the stream, if there is none."""
    tries = 0
    while True:
        if (match := form.magic.search(packed.data, packed.position)) is None:
            packed.position = max(packed.position, len(packed.data) - 3)
            if packed.read_more():
                continue
            packed.position = len(packed.data)
            return False
        packed.position = match.start()
        if tries < MAX_TRIES and form.expands(packed.peek(form.trial_bytes)):
            return True
        tries += 1
        packed.position += 1
