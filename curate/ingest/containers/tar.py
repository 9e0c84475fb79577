"""Split a tar into its members as it is read; after damage, go on at the next whole header.

A tar is a sequence of blocks of 512 bytes: for each member a header with a checksum, then its bytes, filled up with
zeros. Nothing marks where a member's bytes really end, so a header among them is where the next member starts: bytes
before it are missing. Layouts: POSIX.1-2017, pax, "ustar Interchange Format"; the GNU tar manual, "Standard Format".
"""

from __future__ import annotations

import re
import tarfile
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass

from curate.ingest.damage import Block, CutOff, Failed, Gap, ReportLoss, Verified
from curate.ingest.kinds import TAR_BLOCK_BYTES, compression_name, is_tar_header

MAGIC, MAGIC_AT = b"ustar", 257
CHECKSUM, CHECKSUM_AT = re.compile(rb" *[0-7]{3,7}[ \0]"), 148
MAX_EXTENSION_BYTES = 1 << 20  # of long names and pax records
SPARSE = tarfile.GNUTYPE_SPARSE
EXTENSIONS = (
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
    tarfile.XHDTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.XGLTYPE,
)
PAX_RECORD = re.compile(rb"(\d{1,9}) ([^=\n]+)=")
PROBLEMS = {
    tarfile.LNKTYPE: "is a link to {link!r}, which is not followed",
    tarfile.SYMTYPE: "is a link to {link!r}, which is not followed",
    tarfile.CHRTYPE: "is a device",
    tarfile.BLKTYPE: "is a device",
    tarfile.FIFOTYPE: "is a pipe",
    SPARSE: "is a sparse file; unpack it and give its own name",
}


@dataclass(frozen=True)
class TarMember:
    """One member. `problem`: why it cannot be read, to be read after its name; `blocks` are its bytes otherwise."""

    name: str
    is_folder: bool
    problem: str
    blocks: Iterator[Block]


class Tar:
    """Splits a stream into the members of a tar, in order; each must be used before the next is asked for.

    `note_mark` is called with each mark of the stream, what a checksum says about the bytes since the mark before (or
    that none follows), when the bytes before it have been used.
    """

    def __init__(
        self, blocks: Iterator[Block], report: ReportLoss, note_mark: Callable[[Verified | Failed | CutOff], None]
    ) -> None:
        self.tape = _Tape(blocks, note_mark)
        self.report = report
        self.name = "a member without a header"  # or the last one with a header
        self.extension: dict[str, str] = {}  # of the next member: what its own header has no room for

    def __iter__(self) -> Iterator[TarMember]:
        while self.tape.skip_zeros():
            header = self.tape.peek(TAR_BLOCK_BYTES)
            if not is_tar_header(header):
                yield from self._salvage(header)
                continue
            self.tape.skip(TAR_BLOCK_BYTES)
            info = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
            if info.type in EXTENSIONS:
                self._read_extension(info)
            else:
                yield from self._member(info)

    def _member(self, info: tarfile.TarInfo) -> Iterator[TarMember]:
        extension, self.extension = self.extension, {}
        self.name = name = extension.get("GNU.sparse.name") or extension.get("path") or info.name
        is_sparse = info.type == SPARSE or any(key.startswith("GNU.sparse.") for key in extension)
        problem = PROBLEMS.get(SPARSE if is_sparse else info.type, "")
        problem = problem.format(link=extension.get("linkpath", info.linkname))
        has_bytes = info.isreg() or info.type not in tarfile.SUPPORTED_TYPES
        with suppress(ValueError):
            info.size = int(extension.get("size", info.size))
        size = max(0, info.size) if has_bytes else 0
        # The map of a sparse file may go on after its header.
        content = self._until_header() if info.type == SPARSE else self._content(size, name)
        yield TarMember(name, info.isdir(), problem, content)
        self._skip_rest(content, size)

    def _content(self, size: int, name: str) -> Iterator[Block]:
        """Yield a member's bytes, up to the next header if that comes first or some of the tar is missing."""
        tape = self.tape
        head = tape.peek(min(size, TAR_BLOCK_BYTES))
        may_have_header = b"\0" in head and compression_name(head) is None  # as a disk image, or a tar in a tar
        while size:
            if not tape.available and not tape.read_more():
                yield from tape.take(0)  # the marks at the end
                self.report(tape.offset, None, f"the tar is cut off in {name!r}: {size:,} bytes of it are missing")
                return
            stop = min(tape.available, size, tape.bytes_to_gap)
            at = -1 if may_have_header else tape.find_header(stop)
            if at >= 0:
                self.report(tape.offset + at, 0, f"the tar is damaged: {size - at:,} bytes of {name!r} are missing")
                yield from self._until_header()
                return
            yield from tape.take(stop)
            size -= stop
            if not tape.bytes_to_gap:
                yield from self._until_header()
                return

    def _skip_rest(self, content: Iterator[Block], size: int) -> None:
        """Skip what is left of a member, and the zeros that fill its last block up, as far as there are zeros."""
        for _ in content:
            pass
        padding = self.tape.peek(-size % TAR_BLOCK_BYTES)
        self.tape.skip(len(padding) - len(padding.lstrip(b"\0")))

    def _salvage(self, header: bytes) -> Iterator[TarMember]:
        """Yield what is between here and the next header as a member, if it may be one whose header is damaged."""
        tape = self.tape
        start = tape.offset
        what = f"the tar is damaged at byte {start:,}: the header of a member cannot be read"
        magic_at = header.find(MAGIC)
        is_header = magic_at >= 0
        tape.peek(2 * TAR_BLOCK_BYTES)
        if not is_header and (tape.available < TAR_BLOCK_BYTES or tape.find_header(TAR_BLOCK_BYTES) >= 0):
            for _ in self._until_header():
                pass
            self.report(start, tape.offset - start, f"{what}; {tape.offset - start:,} bytes are skipped")
            return
        name = header[:100].split(b"\0")[0].decode("utf-8", "replace") if is_header else ""
        name = name if name.isprintable() and name else self.name  # it is most likely of the same kind
        tape.skip(max(0, magic_at - MAGIC_AT + TAR_BLOCK_BYTES) if is_header else 0)  # bytes of it may be missing
        self.report(start, TAR_BLOCK_BYTES, f"{what}; what follows is read as {name!r}")
        content = self._until_header()
        yield TarMember(name, False, "", content)
        self._skip_rest(content, 0)

    def _until_header(self) -> Iterator[Block]:
        """Yield the bytes before the next header or the end, without the zeros before it."""
        tape = self.tape
        zeros = 0
        while tape.available or tape.read_more():
            searched = tape.available  # the search may read more
            at = tape.find_header(searched)
            for block in tape.take(at if at >= 0 else searched):
                if not isinstance(block, bytes):
                    yield block
                    continue
                if text := block.rstrip(b"\0"):
                    yield bytes(min(zeros, TAR_BLOCK_BYTES)) + text
                    zeros = 0
                zeros += len(block) - len(text)
            if at >= 0:
                return
        yield from tape.take(0)  # the marks at the end

    def _read_extension(self, info: tarfile.TarInfo) -> None:
        """Read what comes before a member's own header: a long name, or pax records."""
        size = max(0, info.size)
        data = self.tape.peek(min(size, MAX_EXTENSION_BYTES))
        self._skip_rest(self._content(size, "a long name"), size)
        if info.type in (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK):
            key = "path" if info.type == tarfile.GNUTYPE_LONGNAME else "linkpath"
            self.extension[key] = data.split(b"\0")[0].decode("utf-8", "surrogateescape")
        elif info.type != tarfile.XGLTYPE:
            self.extension |= _pax_records(data)


class _Tape:
    """The bytes of a tar that were read and not used yet, with the marks between them."""

    def __init__(self, blocks: Iterator[Block], note_mark: Callable[[Verified | Failed | CutOff], None]) -> None:
        self.blocks = blocks
        self.note_mark = note_mark
        self.data = b""
        self.position = 0  # in `data`, of the next byte to use
        self.offset = 0  # in the tar, of the next byte to use
        self.marks: deque[tuple[int, Verified | Failed | Gap | CutOff]] = deque()  # with their offsets in the tar

    @property
    def available(self) -> int:
        return len(self.data) - self.position

    @property
    def bytes_to_gap(self) -> int:
        """The number of bytes before the next gap; more than there are if there is no gap."""
        gaps = (at for at, mark in self.marks if isinstance(mark, Gap))
        return next(gaps, self.offset + self.available + 1) - self.offset

    def read_more(self) -> bool:
        """Read the next block of the stream; return False at its end."""
        for block in self.blocks:
            if not isinstance(block, bytes):
                self.marks.append((self.offset + self.available, block))
            elif block:
                self.data = self.data[self.position :] + block
                self.position = 0
                return True
        return False

    def peek(self, count: int) -> bytes:
        """Return the next bytes, at most `count`, without using them."""
        while self.available < count and self.read_more():
            pass
        return self.data[self.position : self.position + count]

    def take(self, count: int) -> Iterator[Block]:
        """Yield the next bytes, at most those available, with the marks between them."""
        stop = self.offset + min(count, self.available)
        while self.marks and self.marks[0][0] <= stop:
            at, mark = self.marks.popleft()
            if at > self.offset:
                yield self._use(at - self.offset)
            if isinstance(mark, Verified | Failed | CutOff):
                self.note_mark(mark)
            yield mark
        if stop > self.offset:
            yield self._use(stop - self.offset)

    def skip(self, count: int) -> None:
        for _ in self.take(count):
            pass

    def _use(self, count: int) -> bytes:
        part = self.data[self.position : self.position + count]
        self.position += count
        self.offset += count
        return part

    def skip_zeros(self) -> bool:
        """Skip the blocks of zeros that end a tar, which may be followed by another; return False at the end."""
        while True:
            if self.data[self.position : self.position + 1].strip(b"\0"):
                return True
            rest = self.data[self.position :].lstrip(b"\0")
            self.skip(self.available - len(rest))
            if not rest and not self.read_more():
                self.skip(0)  # the marks at the end
                return False

    def find_header(self, stop: int) -> int:
        """Return where in the next `stop` bytes a whole header starts; -1 if nowhere."""
        while self.available < stop + TAR_BLOCK_BYTES and self.read_more():
            pass
        last = self.position + stop + MAGIC_AT + len(MAGIC) - 1
        found = self.data.find(MAGIC, self.position + MAGIC_AT, last)
        while found >= 0:
            start = found - MAGIC_AT
            has_checksum = CHECKSUM.match(self.data, start + CHECKSUM_AT)
            if has_checksum and is_tar_header(self.data[start : start + TAR_BLOCK_BYTES]):
                return start - self.position
            found = self.data.find(MAGIC, found + 1, last)
        return -1


def _pax_records(data: bytes) -> dict[str, str]:
    """Return the pax records ("length key=value\\n") up to one that is damaged."""
    records = {}
    at = 0
    while match := PAX_RECORD.match(data, at):
        stop = at + int(match[1])
        if data[stop - 1 : stop] != b"\n" or stop <= match.end():
            break
        records[match[2].decode("utf-8", "replace")] = data[match.end() : stop - 1].decode("utf-8", "surrogateescape")
        at = stop
    return records
