"""Bytes in: a source becomes blocks of UTF-8 text, unpacked, transcoded, hashed, and bounded in what it expands to."""

from __future__ import annotations

import codecs
import hashlib
import itertools
import json
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

import msgspec
import zstandard

from curate.errors import InputError
from curate.ingest import zip_recovery
from curate.ingest.sources import Source, words

BLOCK = 1 << 20  # bytes read from disk, and about what an expander hands on, at a time
GZIP_SLICE = 1 << 17
ZSTD_SLICE = 1 << 10  # 4 bytes of zstd can stand for 128 KiB: small slices bound what one call can expand to
ZIP_READ = 1 << 12  # a failed checksum takes the last read with it
RATIO_FROM = 64 << 20  # expanded bytes from which the expansion ratio is looked at
PARQUET_ROWS = 1000

Buffer = bytes
Note = Callable[[int, int, str], None]  # byte offset, bytes lost, what happened

INSIDE = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"PK\x03\x04": "a zip"}

BOMS = (
    (b"\xff\xfe\x00\x00", "utf-32-le"),
    (b"\x00\x00\xfe\xff", "utf-32-be"),
    (b"\xff\xfe", "utf-16-le"),
    (b"\xfe\xff", "utf-16-be"),
    (codecs.BOM_UTF8, "utf-8"),
)


@dataclass(frozen=True)
class Limits:
    """How far an input may expand: bytes in all, and times its size once past `RATIO_FROM`."""

    expanded_bytes: int = 1 << 40
    expansion: int = 1000


@dataclass
class Meter:
    """What has been read of one file on disk. `sha256` stays null unless the file was read to its end."""

    bytes: int = 0
    expanded: int = 0
    sha256: str | None = None
    digest: hashlib._Hash = field(default_factory=hashlib.sha256, repr=False)

    def take(self, block: Buffer) -> Buffer:
        """Count and hash a block as it stands on disk."""
        self.bytes += len(block)
        self.digest.update(block)
        return block


def text_blocks(source: Source, meter: Meter, limits: Limits, note: Note) -> Iterator[bytes]:
    """Yield the UTF-8 text behind a source, block by block; damage to a compressed stream is noted, not raised."""
    path = source.path
    if path is not None and source.kind == "parquet":
        yield from _parquet_rows(source, path, meter)
        return
    zipped = path is not None and source.kind == "zip"
    blocks = _zip_blocks(source, path, meter, note) if path and zipped else _disk_blocks(source, meter)
    head, blocks = _peek(blocks)
    if head.startswith((b"PK\x03\x04", b"PAR1")):
        raise InputError(f"input {source.name!r} is a zip or parquet file inside a stream: give its own path")
    if head.startswith(b"\x1f\x8b"):
        blocks = _bounded(gunzip(blocks, note), source, meter, limits)
    elif head.startswith(b"\x28\xb5\x2f\xfd") or (head[1:4] == b"\x2a\x4d\x18" and head[0] >> 4 == 5):
        blocks = _bounded(unzstd(blocks, note), source, meter, limits)
    elif zipped:
        blocks = _bounded(blocks, source, meter, limits)
    yield from _utf8(_packed_once(blocks, source))


def _packed_once(blocks: Iterator[bytes], source: Source) -> Iterator[bytes]:
    """Pass text on; raise InputError where it is another archive, since what is in that is anyone's guess."""
    head, blocks = _peek(blocks)
    for start, kind in INSIDE.items():
        if head.startswith(start):
            raise InputError(f"input {source.name!r} is compressed twice, with {kind} inside: unpack it once")
    return blocks


def _peek(blocks: Iterator[bytes]) -> tuple[bytes, Iterator[bytes]]:
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
            with source.path.open("rb") as opened:
                yield from _read(opened, meter)
    except OSError as error:
        raise InputError(f"input {source.name!r} cannot be read past byte {meter.bytes}: {words(error)}") from None
    meter.sha256 = meter.digest.hexdigest()


def _read(opened: IO[bytes], meter: Meter) -> Iterator[bytes]:
    while block := opened.read(BLOCK):
        yield meter.take(block)


def _hash_whole(path: Path, meter: Meter) -> None:
    """Hash a file whose readers jump about in it; its bytes are counted as they are used, not here."""
    if meter.sha256 is None:
        with path.open("rb") as opened:
            meter.sha256 = hashlib.file_digest(opened, "sha256").hexdigest()


def _zip_blocks(source: Source, path: Path, meter: Meter, note: Note) -> Iterator[bytes]:
    try:
        _hash_whole(path, meter)
        if source.trouble:
            member = zip_recovery.member_at(path, source.member)
            yield from zip_recovery.blocks(path, member, note)
            meter.bytes += member.stop - member.start
            return
        with zipfile.ZipFile(path) as archive:
            entry = archive.infolist()[source.member]
            with archive.open(entry) as opened:
                yield from _until_damage(opened, entry.file_size, note)
            meter.bytes += entry.compress_size
    except (OSError, RuntimeError, NotImplementedError, IndexError, zipfile.BadZipFile) as error:
        raise InputError(f"zip member {source.name!r} cannot be read: {words(error)}") from None


def _until_damage(opened: IO[bytes], size: int, note: Note) -> Iterator[bytes]:
    done = 0
    try:
        while block := opened.read(ZIP_READ):
            done += len(block)
            yield block
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        lost = max(0, size - done)
        note(done, lost, f"the zip member is damaged ({words(error)}): up to {lost} bytes are lost")


def gunzip(blocks: Iterator[bytes], note: Note) -> Iterator[bytes]:
    """Expand gzip of one or several members; what comes before damage is kept to the byte."""
    inflate = zlib.decompressobj(31)
    pieces = _slices(blocks, GZIP_SLICE)
    used = expanded = 0
    for data in pieces:
        used += len(data)
        while data:
            if inflate.eof:
                if not (data := data.lstrip(b"\0")):  # archives on tape and disk images are padded
                    break
                inflate = zlib.decompressobj(31)
            before = inflate.copy()
            try:
                out = inflate.decompress(data, BLOCK)
            except zlib.error as error:
                yield (kept := _rescued(before, data))
                place, lost = used - len(data), len(data) + sum(map(len, pieces))
                note(expanded + len(kept), lost, _broken("gzip", place, lost, error))
                return
            expanded += len(out)
            yield out
            data = inflate.unused_data if inflate.eof else inflate.unconsumed_tail
    if not inflate.eof:
        yield (out := inflate.flush())
        note(expanded + len(out), 0, f"the gzip stream is cut off at byte {used} of the file")


def _broken(kind: str, place: int, lost: int, error: Exception) -> str:
    return (
        f"the {kind} stream is damaged near byte {place} of the file ({words(error)}): {lost} bytes cannot be unpacked"
    )


def _rescued(inflate: zlib._Decompress, data: bytes) -> bytes:
    """Return what a slice expands to before the byte at which it is damaged."""
    kept = []
    try:
        for place in range(len(data)):
            kept.append(inflate.decompress(data[place : place + 1]))
    except zlib.error:
        pass
    return b"".join(kept)


def unzstd(blocks: Iterator[bytes], note: Note) -> Iterator[bytes]:
    """Expand zstandard of one or several frames; what comes before damage is kept to the block."""
    decoder = zstandard.ZstdDecompressor(max_window_size=1 << 31)  # dumps made with `zstd --long=31` are common
    frame = decoder.decompressobj()
    pieces = _slices(blocks, ZSTD_SLICE)
    used = expanded = 0
    for data in pieces:
        used += len(data)
        while data:
            if frame.eof:
                frame = decoder.decompressobj()
            try:
                out = frame.decompress(data)
            except zstandard.ZstdError as error:
                place, lost = used - len(data), len(data) + sum(map(len, pieces))
                note(expanded, lost, _broken("zstd", place, lost, error))
                return
            expanded += len(out)
            yield out
            data = frame.unused_data if frame.eof else b""
    if not frame.eof:
        note(expanded, 0, f"the zstd stream is cut off at byte {used} of the file")


def _slices(blocks: Iterator[bytes], size: int) -> Iterator[bytes]:
    for block in blocks:
        for place in range(0, len(block), size):
            yield block[place : place + size]


def _bounded(blocks: Iterator[bytes], source: Source, meter: Meter, limits: Limits) -> Iterator[bytes]:
    """Stop a stream that expands past the limits: a bomb, or a file that is not what it seems."""
    for block in blocks:
        meter.expanded += len(block)  # over all members of a zip, which may share their bytes
        packed = max(1, (source.bytes or 0) if source.kind == "zip" else meter.bytes)
        if meter.expanded > limits.expanded_bytes:
            raise InputError(
                f"input {source.name!r} expands past the limit of {limits.expanded_bytes:,} bytes (from {packed:,}): "
                f"raise max_expanded_bytes in the recipe if that is right"
            )
        if meter.expanded > max(RATIO_FROM, packed * limits.expansion):
            raise InputError(
                f"input {source.name!r} expands {meter.expanded // packed:,} times (from {packed:,} bytes to over "
                f"{meter.expanded:,}), past the limit of {limits.expansion:,}: raise max_expansion if that is right"
            )
        yield block


def _utf8(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """Drop a byte-order mark and transcode what it announces; without one, text is UTF-8 and passes as it is."""
    head, blocks = _peek(blocks)
    found = [(mark, encoding) for mark, encoding in BOMS if head.startswith(mark)]
    if not found:
        yield from blocks
        return
    mark, encoding = found[0]
    next(blocks)
    rest = itertools.chain((head[len(mark) :],), blocks)
    if encoding == "utf-8":
        yield from rest
        return
    decoder = codecs.getincrementaldecoder(encoding)("surrogatepass" if "16" in encoding else "replace")
    for block in rest:
        # A lone surrogate becomes its JSON escape, so that it is still told from any other character.
        yield decoder.decode(block).encode("utf-8", "backslashreplace")


def _parquet_rows(source: Source, path: Path, meter: Meter) -> Iterator[bytes]:
    """Yield the rows of a parquet file as lines of JSON, a bounded batch at a time."""
    import polars as pl

    try:
        _hash_whole(path, meter)
        scan = pl.scan_parquet(path)
        rows = max(1, scan.select(pl.len()).collect().item())
        for batch in scan.collect_batches(chunk_size=PARQUET_ROWS, maintain_order=True):
            meter.bytes += (source.bytes or 0) * len(batch) // rows
            yield b"".join(map(_row, batch.iter_rows(named=True)))
    except (pl.exceptions.PolarsError, OSError) as error:
        what = words(error).split(". ")[0]
        raise InputError(f"input {source.name!r} is a parquet file that cannot be read: {what}") from None
    meter.bytes = source.bytes or 0


def _row(row: dict[str, object]) -> bytes:
    try:
        return msgspec.json.encode(row) + b"\n"
    except (OverflowError, TypeError):  # integers past 64 bits, types without a JSON form
        return json.dumps(row, default=str).encode() + b"\n"
