"""Expand gzip, zstandard, bzip2 and xz; after damage, expand the next whole member, frame or stream."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import zstandard

from curate.ingest.containers.frames import (
    GZIP_WBITS,
    ZSTD_SLICE_BYTES,
    Bzip2Stream,
    Frame,
    GzipMember,
    PackedBytes,
    XzStream,
    ZstdFrame,
    zstd_decoder,
)
from curate.ingest.damage import Block, CutOff, Failed, Gap, ReportLoss, Verified

ZSTD_BLOCK_BYTES = (128 << 10) + 64  # the most that a frame's first block takes, with its headers (RFC 8878, 3.1.1.2)
MAX_TRIES = 1000  # false starts in a row; then the rest is lost
MAGIC_BYTES = 10  # of the longest magic below


@dataclass(frozen=True)
class Format:
    """A compressed format: its frames, the bytes they begin with, and a test of the bytes after such a beginning."""

    name: str
    frame: type[Frame]
    magic: re.Pattern[bytes]
    expands: Callable[[bytes], bool]
    trial_bytes: int


def _expands_as_gzip(data: bytes) -> bool:
    inflate = zlib.decompressobj(GZIP_WBITS)
    try:
        return bool(inflate.decompress(data, 1)) or inflate.eof
    except zlib.error:
        return False


def _expands_as_zstd(data: bytes) -> bool:
    frame = zstd_decoder()
    try:
        for start in range(0, len(data), ZSTD_SLICE_BYTES):
            if frame.decompress(data[start : start + ZSTD_SLICE_BYTES]) or frame.eof:
                return True
    except zstandard.ZstdError:
        pass
    return False


def _is_xz_header(data: bytes) -> bool:
    """Return whether the checksum of an xz stream's header is right (xz file format, 2.1.1)."""
    return zlib.crc32(data[6:8]) == int.from_bytes(data[8:12], "little")


def _never(data: bytes) -> bool:
    return False


FORMATS = {
    form.name: form
    for form in (
        Format("gzip", GzipMember, re.compile(rb"\x1f\x8b\x08[\x00-\x1f]"), _expands_as_gzip, 1 << 16),
        Format("zstd", ZstdFrame, re.compile(rb"\x28\xb5\x2f\xfd"), _expands_as_zstd, ZSTD_BLOCK_BYTES),
        Format("bzip2", Bzip2Stream, re.compile(rb"BZh[1-9](?:1AY&SY|\x17rE8P\x90)"), bool, MAGIC_BYTES),
        Format("xz", XzStream, re.compile(rb"\xfd7zXZ\x00\x00[\x00-\x0f]"), _is_xz_header, 12),
        Format("LZMA", XzStream, re.compile(rb"(?!)"), _never, 1),  # nothing marks the start of another stream
    )
}


def expand(form: Format, blocks: Iterator[Block], report: ReportLoss) -> Iterator[Block]:
    """Expand a stream of one or several frames, with a mark after each.

    All bytes before damage are kept, and frames after it if they begin in the stream's own format.
    """
    packed = PackedBytes(blocks)
    expanded = rewound = fruitless = 0
    while packed.skip_zeros():
        start, before = packed.offset, expanded
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
        elif stopped <= start:
            packed.skip(1)
        fruitless = fruitless + 1 if expanded == before else 0
        resumed = _find_frame(form, packed, MAX_TRIES - fruitless)
        if frame.cut_off and not resumed:
            what = f"the {form.name} stream is cut off at byte {stopped} of the file"
            report(expanded, None, f"{what}: the rest is lost")
            yield CutOff(what)
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


def _find_frame(form: Format, packed: PackedBytes, max_tries: int) -> bool:
    """Move to the next start of a frame; return False, at the end of the stream, if there is none."""
    tries = 0
    while True:
        if (match := form.magic.search(packed.data, packed.position)) is None:
            packed.position = max(packed.position, len(packed.data) - MAGIC_BYTES + 1)
            if packed.read_more():
                continue
            packed.position = len(packed.data)
            return False
        packed.position = match.start()
        if tries < max_tries and form.expands(packed.peek(form.trial_bytes)):
            return True
        tries += 1
        packed.position += 1
