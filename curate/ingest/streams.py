"""Turn a source into blocks of text: decompress and hash it, and limit how far it expands."""

from __future__ import annotations

import hashlib
import itertools
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from curate.errors import InputError
from curate.ingest.containers.compression import GZIP, ZSTD, Format, expand
from curate.ingest.containers.zip_members import Member, UnreadableMember, member_blocks
from curate.ingest.damage import Block, ReportLoss
from curate.ingest.sources import Source, error_message
from curate.ingest.text.encodings import BOMS

BLOCK_BYTES = 1 << 20  # read from disk at a time
MIN_RATIO_BYTES = 64 << 20  # the expansion ratio is checked from this many expanded bytes on

Buffer = bytes  # in the class `Meter`, `bytes` is a field
COMPRESSED = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"PK\x03\x04": "a zip"}

TEXT_STARTS = tuple(bytes([byte]) for byte in b' \t\r\n,[{"')


class ExpansionError(InputError):
    """An input expands past the limits: the run ends, whatever other inputs hold."""


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


def text_blocks(
    source: Source, meter: Meter, limits: Limits, report: ReportLoss, note_unread: Callable[[str], None]
) -> Iterator[Block]:
    """Yield the text behind a source in its own encoding, block by block, with marks for what a checksum says about it.

    Damage to a compressed stream is reported, not raised. `note_unread` is called with the reason if a zip's member,
    one of several, cannot be read at all.
    """
    zipped = source.path is not None and source.member is not None
    blocks: Iterator[Block] = _disk_blocks(source, meter)
    if source.path is not None and source.member is not None:
        blocks = _zip_blocks(source, source.path, source.member, meter, report, note_unread)
    head, blocks = _peek(blocks)
    if head.startswith((b"PK\x03\x04", b"PAR1")):
        raise InputError(f"input {source.name!r} is a zip or Parquet file inside a stream; give its own path")
    compression = _compression(head, source.name)
    if compression is not None:
        blocks = expand(compression, blocks, report)
    if compression is not None or zipped:
        blocks = _limit_expansion(blocks, source, meter, limits)
    return _refuse_nested(blocks, source)


def is_compressed(source: Source) -> bool:
    """Return whether a file is compressed, or a member of a zip; False for standard input and pipes."""
    if source.path is None or source.bytes is None or source.kind == "parquet":
        return False
    if source.member is not None:
        return True
    with source.path.open("rb") as file:
        return _compression(file.read(4), source.name) is not None


def _compression(head: bytes, name: str) -> Format | None:
    """Return the compression of a stream by its first bytes; by its name where these cannot be text."""
    if head.startswith(b"\x1f\x8b"):
        return GZIP
    # A zstd frame, or a skippable frame: 0x184D2A50 to 0x184D2A5F, little-endian (RFC 8878, section 3.1.2).
    if head.startswith(b"\x28\xb5\x2f\xfd") or (head[1:4] == b"\x2a\x4d\x18" and head[0] >> 4 == 5):
        return ZSTD
    if head[:1] in TEXT_STARTS or head.startswith(tuple(bom for bom, _ in BOMS)):
        return None
    return next((form for suffix, form in ((".gz", GZIP), (".zst", ZSTD)) if name.lower().endswith(suffix)), None)


def _refuse_nested(blocks: Iterator[Block], source: Source) -> Iterator[Block]:
    """Return the blocks; raise InputError if they are compressed once more."""
    head, blocks = _peek(blocks)
    for magic, kind in COMPRESSED.items():
        if head.startswith(magic):
            raise InputError(f"input {source.name!r} is compressed twice, with {kind} inside; unpack it once")
    return blocks


def _peek(blocks: Iterator[Block]) -> tuple[bytes, Iterator[Block]]:
    """Return the first bytes, at least 4 if the stream is that long, and all blocks."""
    first: list[Block] = []
    head = b""
    for block in blocks:
        first.append(block)
        if isinstance(block, bytes):
            head += block
        if len(head) >= 4:
            break
    return head, itertools.chain(first, blocks)


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


def _zip_blocks(
    source: Source, path: Path, member: Member, meter: Meter, report: ReportLoss, note_unread: Callable[[str], None]
) -> Iterator[Block]:
    """Yield the bytes of a zip's member; one of several is reported as damage if it cannot be read."""
    try:
        hash_whole(path, meter)
        yield from member_blocks(path, member, report)
        meter.bytes += member.packed_bytes
    except UnreadableMember as error:
        if not source.optional:
            raise InputError(f"zip member {source.name!r} cannot be read: {error}") from None
        report(0, member.packed_bytes, f"the zip member cannot be read: {error}")
        note_unread(f"cannot be read: {error}")
        meter.bytes += member.packed_bytes
    except OSError as error:
        raise InputError(f"zip member {source.name!r} cannot be read: {error_message(error)}") from None


def _limit_expansion(blocks: Iterator[Block], source: Source, meter: Meter, limits: Limits) -> Iterator[Block]:
    for block in blocks:
        check_expansion(len(block) if isinstance(block, bytes) else 0, source, meter, limits)
        yield block


def check_expansion(size: int, source: Source, meter: Meter, limits: Limits) -> None:
    """Count `size` more bytes of text; raise ExpansionError if a file expands past the limits, as a bomb does."""
    meter.expanded += size  # of all members of a zip, which may share bytes
    packed = max(1, (source.bytes or 0) if source.kind in ("zip", "parquet") else meter.bytes)
    if meter.expanded > limits.expanded_bytes:
        raise ExpansionError(
            f"input {source.name!r} expands past the limit of {limits.expanded_bytes:,} bytes (from {packed:,}); "
            f"if that is right, raise max_expanded_bytes in the recipe"
        )
    if meter.expanded > max(MIN_RATIO_BYTES, packed * limits.expansion):
        raise ExpansionError(
            f"input {source.name!r} expands {meter.expanded // packed:,} times (from {packed:,} bytes to over "
            f"{meter.expanded:,}), past the limit of {limits.expansion:,}; "
            f"if that is right, raise max_expansion in the recipe"
        )
