"""Read a source from disk in blocks: hash it, and limit how far it expands."""

from __future__ import annotations

import hashlib
import itertools
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from curate.errors import InputError, error_message
from curate.ingest.containers.compression import FORMATS, Format
from curate.ingest.containers.zip_members import UnreadableMember, member_blocks
from curate.ingest.damage import Block, ReportLoss
from curate.ingest.kinds import HEAD_BYTES, TEXT, compression_name, recognise
from curate.ingest.sources import Source
from curate.ingest.text.encodings import BOMS

BLOCK_BYTES = 1 << 20  # read from disk at a time
MIN_RATIO_BYTES = 64 << 20  # the expansion ratio is checked from this many expanded bytes on

Buffer = bytes  # in the class `Meter`, `bytes` is a field
TEXT_LAYER = -1
TEXT_STARTS = tuple(bytes([byte]) for byte in b' \t\r\n,[{"')
SUFFIX_FORMATS = ((".gz", "gzip"), (".zst", "zstd"), (".bz2", "bzip2"), (".xz", "xz"), (".lzma", "LZMA"))


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
    layers: Counter[int] = field(default_factory=Counter)  # bytes that containers expanded to, by layer
    sha256: str | None = None
    digest: hashlib._Hash = field(default_factory=hashlib.sha256, repr=False)

    @property
    def expanded(self) -> int:
        """The bytes of text in compressed files and archives."""
        return self.layers[TEXT_LAYER]

    def update(self, block: Buffer) -> Buffer:
        """Count and hash a block as it is on disk, and return it."""
        self.bytes += len(block)
        self.digest.update(block)
        return block


def compression(head: bytes, name: str) -> Format | None:
    """Return the compression of a stream by its first bytes; by its name where these are of no known kind."""
    if (found := compression_name(head)) is not None:
        return FORMATS[found]
    if head[:1] in TEXT_STARTS or head.startswith(tuple(bom for bom, _ in BOMS)) or recognise(head) is not TEXT:
        return None
    return next((FORMATS[form] for suffix, form in SUFFIX_FORMATS if name.lower().endswith(suffix)), None)


def peek(blocks: Iterator[Block]) -> tuple[bytes, Iterator[Block]]:
    """Return the first bytes, at least HEAD_BYTES if the stream is that long, and all blocks."""
    first: list[Block] = []
    head = b""
    for block in blocks:
        first.append(block)
        if isinstance(block, bytes):
            head += block
        if len(head) >= HEAD_BYTES:
            break
    return head, itertools.chain(first, blocks)


def disk_blocks(source: Source, meter: Meter) -> Iterator[Block]:
    """Yield the bytes of a file or of standard input."""
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


def zip_blocks(source: Source, meter: Meter, report: ReportLoss, note_unread: Callable[[str], None]) -> Iterator[Block]:
    """Yield the bytes of a zip's member; one of several is reported as damage if it cannot be read."""
    path, member = source.local, source.member
    if path is None or member is None:
        raise TypeError(f"{source.name!r} is not a member of a zip")
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


def limit_expansion(
    blocks: Iterator[Block], source: Source, meter: Meter, limits: Limits, layer: int
) -> Iterator[Block]:
    """Yield the blocks; raise ExpansionError if they expand past the limits.

    `layer` numbers the containers around them, from the outside; TEXT_LAYER is the innermost, the text of dumps.
    """
    for block in blocks:
        check_expansion(len(block) if isinstance(block, bytes) else 0, source, meter, limits, layer)
        yield block


def check_expansion(size: int, source: Source, meter: Meter, limits: Limits, layer: int = TEXT_LAYER) -> None:
    """Count `size` more bytes of a layer; raise ExpansionError if a file expands past the limits, as a bomb does."""
    meter.layers[layer] += size  # of all members of an archive, which may share bytes
    expanded = meter.layers[layer]
    packed = max(1, source.bytes or meter.bytes)
    if expanded > limits.expanded_bytes:
        raise ExpansionError(
            f"input {source.name!r} expands past the limit of {limits.expanded_bytes:,} bytes (from {packed:,}); "
            f"if that is right, raise max_expanded_bytes in the recipe"
        )
    if expanded > max(MIN_RATIO_BYTES, packed * limits.expansion):
        raise ExpansionError(
            f"input {source.name!r} expands {expanded // packed:,} times (from {packed:,} bytes to over "
            f"{expanded:,}), past the limit of {limits.expansion:,}; "
            f"if that is right, raise max_expansion in the recipe"
        )
