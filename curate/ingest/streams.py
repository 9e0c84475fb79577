"""Turn a source into blocks of UTF-8 text: decompress, transcode and hash it, and limit how far it expands."""

from __future__ import annotations

import codecs
import hashlib
import itertools
import sys
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import zstandard

from curate.errors import InputError
from curate.ingest import zip_recovery
from curate.ingest.damage import ReportDamage
from curate.ingest.sources import Source, error_message

BLOCK_BYTES = 1 << 20  # read from disk at a time, and about the size of expanded blocks
GZIP_SLICE_BYTES = 1 << 17
GZIP_WBITS = 16 + zlib.MAX_WBITS  # zlib's code for a gzip header
ZSTD_SLICE_BYTES = 1 << 10  # 4 bytes of zstd can expand to 128 KiB: small slices bound the result of one call
ZIP_READ_BYTES = 1 << 12  # a failed checksum loses the last read
MIN_RATIO_BYTES = 64 << 20  # the expansion ratio is checked from this many expanded bytes on

Buffer = bytes  # in the class `Meter`, `bytes` is a field
COMPRESSED = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"PK\x03\x04": "a zip"}

BOMS = (
    (b"\xff\xfe\x00\x00", "utf-32-le"),
    (b"\x00\x00\xfe\xff", "utf-32-be"),
    (b"\xff\xfe", "utf-16-le"),
    (b"\xfe\xff", "utf-16-be"),
    (codecs.BOM_UTF8, "utf-8"),
)


@dataclass(frozen=True)
class Limits:
    """How far an input may expand."""

    expanded_bytes: int = 1 << 40  # in all
    expansion: int = 1000  # times its size on disk, checked from MIN_RATIO_BYTES on


@dataclass
class Meter:
    """What has been read of one file on disk. `sha256` is None unless the file was read to its end."""

    bytes: int = 0
    expanded: int = 0
    sha256: str | None = None
    digest: hashlib._Hash = field(default_factory=hashlib.sha256, repr=False)

    def update(self, block: Buffer) -> Buffer:
        """Count and hash a block as it is on disk, and return it."""
        self.bytes += len(block)
        self.digest.update(block)
        return block


def text_blocks(source: Source, meter: Meter, limits: Limits, report: ReportDamage) -> Iterator[bytes]:
    """Yield the UTF-8 text behind a source, block by block. Damage to a compressed stream is reported, not raised."""
    path = source.path
    zipped = path is not None and source.kind == "zip"
    blocks = _zip_blocks(source, path, meter, report) if path and zipped else _disk_blocks(source, meter)
    head, blocks = _peek(blocks)
    if head.startswith((b"PK\x03\x04", b"PAR1")):
        raise InputError(f"input {source.name!r} is a zip or Parquet file inside a stream; give its own path")
    if head.startswith(b"\x1f\x8b"):
        blocks = _limit_expansion(gunzip(blocks, report), source, meter, limits)
    # A zstd frame, or a skippable frame: 0x184D2A50 to 0x184D2A5F, little-endian (RFC 8878, section 3.1.2).
    elif head.startswith(b"\x28\xb5\x2f\xfd") or (head[1:4] == b"\x2a\x4d\x18" and head[0] >> 4 == 5):
        blocks = _limit_expansion(unzstd(blocks, report), source, meter, limits)
    elif zipped:
        blocks = _limit_expansion(blocks, source, meter, limits)
    yield from _transcode(_refuse_nested(blocks, source))


def _refuse_nested(blocks: Iterator[bytes], source: Source) -> Iterator[bytes]:
    """Return the blocks; raise InputError if they are compressed once more."""
    head, blocks = _peek(blocks)
    for magic, kind in COMPRESSED.items():
        if head.startswith(magic):
            raise InputError(f"input {source.name!r} is compressed twice, with {kind} inside; unpack it once")
    return blocks


def _peek(blocks: Iterator[bytes]) -> tuple[bytes, Iterator[bytes]]:
    """Return the first bytes, at least 4 if the stream is that long, and all blocks."""
    head = b""
    for block in blocks:
        head += block
        if len(head) >= 4:
            break
    return head, itertools.chain((head,) if head else (), blocks)


def _disk_blocks(source: Source, meter: Meter) -> Iterator[bytes]:
    try:
        if source.path is None:
            yield from _read(sys.stdin.buffer, meter)
        else:
            with source.path.open("rb") as file:
                yield from _read(file, meter)
    except OSError as error:
        raise InputError(
            f"input {source.name!r} cannot be read past byte {meter.bytes}: {error_message(error)}"
        ) from None
    meter.sha256 = meter.digest.hexdigest()


def _read(file: IO[bytes], meter: Meter) -> Iterator[bytes]:
    while block := file.read(BLOCK_BYTES):
        yield meter.update(block)


def hash_whole(path: Path, meter: Meter) -> None:
    """Hash a file that is read at random; its bytes are counted elsewhere, as they are used."""
    if meter.sha256 is None:
        with path.open("rb") as file:
            meter.sha256 = hashlib.file_digest(file, "sha256").hexdigest()


def _zip_blocks(source: Source, path: Path, meter: Meter, report: ReportDamage) -> Iterator[bytes]:
    try:
        hash_whole(path, meter)
        if source.damage:
            member = zip_recovery.member_at(path, source.member_position)
            yield from zip_recovery.member_blocks(path, member, report)
            meter.bytes += member.stop - member.start
            return
        with zipfile.ZipFile(path) as archive:
            entry = archive.infolist()[source.member_position]
            with archive.open(entry) as file:
                yield from _read_until_damage(file, entry.file_size, report)
            meter.bytes += entry.compress_size
    except (OSError, RuntimeError, NotImplementedError, IndexError, zipfile.BadZipFile) as error:
        raise InputError(f"zip member {source.name!r} cannot be read: {error_message(error)}") from None


def _read_until_damage(file: IO[bytes], size: int, report: ReportDamage) -> Iterator[bytes]:
    done = 0
    try:
        while block := file.read(ZIP_READ_BYTES):
            done += len(block)
            yield block
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        lost = max(0, size - done)
        report(done, lost, f"the zip member is damaged ({error_message(error)}): up to {lost} bytes are lost")


def gunzip(blocks: Iterator[bytes], report: ReportDamage) -> Iterator[bytes]:
    """Expand gzip of one or several members; all bytes before any damage are kept."""
    inflate = zlib.decompressobj(GZIP_WBITS)
    slices = _slices(blocks, GZIP_SLICE_BYTES)
    used = expanded = 0
    for data in slices:
        used += len(data)
        while data:
            if inflate.eof:
                if not (data := data.lstrip(b"\0")):  # tape archives and disk images are padded with zeros
                    break
                inflate = zlib.decompressobj(GZIP_WBITS)
            before = inflate.copy()  # to expand the slice again, up to the damage, if this fails
            try:
                out = inflate.decompress(data, BLOCK_BYTES)
            except zlib.error as error:
                yield (kept := _expand_until_damage(before, data))
                offset, lost = used - len(data), len(data) + sum(map(len, slices))
                report(expanded + len(kept), lost, _damaged_stream("gzip", offset, lost, error))
                return
            expanded += len(out)
            yield out
            data = inflate.unused_data if inflate.eof else inflate.unconsumed_tail
    if not inflate.eof:
        yield (out := inflate.flush())
        report(expanded + len(out), 0, f"the gzip stream is cut off at byte {used} of the file")


def _damaged_stream(kind: str, offset: int, lost: int, error: Exception) -> str:
    description = f"the {kind} stream is damaged near byte {offset} of the file ({error_message(error)})"
    return f"{description}: {lost} bytes cannot be unpacked"


def _expand_until_damage(inflate: zlib._Decompress, data: bytes) -> bytes:
    """Expand a damaged slice byte by byte, up to the damage."""
    kept = []
    try:
        for offset in range(len(data)):
            kept.append(inflate.decompress(data[offset : offset + 1]))
    except zlib.error:
        pass
    return b"".join(kept)


def unzstd(blocks: Iterator[bytes], report: ReportDamage) -> Iterator[bytes]:
    """Expand zstandard of one or several frames; all blocks before any damage are kept."""
    decoder = zstandard.ZstdDecompressor(max_window_size=1 << 31)  # dumps made with `zstd --long=31` are common
    frame = decoder.decompressobj()
    slices = _slices(blocks, ZSTD_SLICE_BYTES)
    used = expanded = 0
    for data in slices:
        used += len(data)
        while data:
            if frame.eof:
                frame = decoder.decompressobj()
            try:
                out = frame.decompress(data)
            except zstandard.ZstdError as error:
                offset, lost = used - len(data), len(data) + sum(map(len, slices))
                report(expanded, lost, _damaged_stream("zstd", offset, lost, error))
                return
            expanded += len(out)
            yield out
            data = frame.unused_data if frame.eof else b""
    if not frame.eof:
        report(expanded, 0, f"the zstd stream is cut off at byte {used} of the file")


def _slices(blocks: Iterator[bytes], size: int) -> Iterator[bytes]:
    for block in blocks:
        for start in range(0, len(block), size):
            yield block[start : start + size]


def _limit_expansion(blocks: Iterator[bytes], source: Source, meter: Meter, limits: Limits) -> Iterator[bytes]:
    """Raise InputError for a stream that expands past the limits, such as a decompression bomb."""
    for block in blocks:
        meter.expanded += len(block)  # of all members of a zip, which may share bytes
        packed = max(1, (source.bytes or 0) if source.kind == "zip" else meter.bytes)
        if meter.expanded > limits.expanded_bytes:
            raise InputError(
                f"input {source.name!r} expands past the limit of {limits.expanded_bytes:,} bytes (from {packed:,}); "
                f"if that is right, raise max_expanded_bytes in the recipe"
            )
        if meter.expanded > max(MIN_RATIO_BYTES, packed * limits.expansion):
            raise InputError(
                f"input {source.name!r} expands {meter.expanded // packed:,} times (from {packed:,} bytes to over "
                f"{meter.expanded:,}), past the limit of {limits.expansion:,}; "
                f"if that is right, raise max_expansion in the recipe"
            )
        yield block


def _transcode(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """Remove a byte-order mark, and transcode to UTF-8 from its encoding; text without one is not changed."""
    head, blocks = _peek(blocks)
    bom, encoding = next(((bom, encoding) for bom, encoding in BOMS if head.startswith(bom)), (b"", ""))
    if not bom:
        yield from blocks
        return
    next(blocks)  # is `head`
    text = itertools.chain((head[len(bom) :],), blocks)
    if encoding == "utf-8":
        yield from text
        return
    decoder = codecs.getincrementaldecoder(encoding)("surrogatepass" if "16" in encoding else "replace")
    for block in text:
        # A lone surrogate becomes its JSON escape, so that it stays distinct from other characters.
        yield decoder.decode(block).encode("utf-8", "backslashreplace")
