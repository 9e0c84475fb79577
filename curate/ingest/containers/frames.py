"""The frames of compressed formats: gzip members, zstd frames, bzip2 and xz streams; each is expanded up to damage."""

from __future__ import annotations

import bz2
import lzma
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator

import zstandard

from curate.errors import error_message
from curate.ingest.damage import Block, Failed

GZIP_WBITS = 16 + zlib.MAX_WBITS  # zlib's code for a gzip header
READ_BYTES = 1 << 20  # of a compressed stream at a time, and about the size of expanded blocks
GZIP_SLICE_BYTES = 1 << 17
ZSTD_SLICE_BYTES = 1 << 10  # 4 bytes of zstd can expand to 128 KiB: small slices bound the result of one call
BZIP2_SLICE_BYTES = 1 << 12  # what they expand to is lost if it is damaged
LOOKBACK_BYTES = 1 << 20  # of a damaged member or frame, searched for the start of the next
MAX_LZMA_BYTES = 257 << 20  # of memory: for a dictionary of 256 MiB; the largest preset of xz takes 65 MiB
LZMA_CAUSES = {"Memory usage limit exceeded": f"its dictionary takes more than {MAX_LZMA_BYTES >> 20} MiB of memory"}
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
        frame = zstd_decoder()
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
    cause = error_message(error).rpartition(": ")[2]
    return LZMA_CAUSES.get(cause, cause)


def zstd_decoder() -> zstandard.ZstdDecompressionObj:
    # dumps made with `zstd --long=31` are common
    return zstandard.ZstdDecompressor(max_window_size=1 << 31).decompressobj()


class Bzip2Stream(Frame):
    """One bzip2 stream; the checksum of each of its blocks is checked."""

    def open(self) -> bz2.BZ2Decompressor | lzma.LZMADecompressor:
        return bz2.BZ2Decompressor()

    def __iter__(self) -> Iterator[bytes]:
        stream = self.open()
        while not stream.eof:
            data = self.packed.take(BZIP2_SLICE_BYTES) if stream.needs_input else b""
            if stream.needs_input and not data:
                self.cut_off = True
                return
            try:
                out = stream.decompress(data, READ_BYTES)
            except (OSError, EOFError, ValueError, lzma.LZMAError) as error:  # OSError: from bz2
                self.error = _cause(error)
                self.packed.put_back(len(data))
                return
            if stream.eof:
                self.packed.put_back(len(stream.unused_data))
            yield out


class XzStream(Bzip2Stream):
    """One xz stream, or LZMA without a container, which has no checksum."""

    def open(self) -> lzma.LZMADecompressor:
        """Return a decoder whose memory is bounded, whatever dictionary the stream asks for."""
        return lzma.LZMADecompressor(lzma.FORMAT_AUTO, memlimit=MAX_LZMA_BYTES)
