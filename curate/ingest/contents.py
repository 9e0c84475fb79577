"""Open a source: undo its compression, split archives into members, and tell the kind of each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from curate import files
from curate.errors import InputError
from curate.ingest import kinds
from curate.ingest.containers.compression import expand
from curate.ingest.containers.tar import Tar
from curate.ingest.damage import Block, CutOff, Failed, Verified
from curate.ingest.damaged_records import DamagedRecords, EndFinder
from curate.ingest.decode import Chunk
from curate.ingest.kinds import Kind
from curate.ingest.sources import Source, is_dump_member, is_negligible_member, list_zip, problem_of, safe_name
from curate.ingest.streams import (
    TEXT_LAYER,
    ExpansionError,
    Limits,
    Meter,
    compression,
    disk_blocks,
    limit_expansion,
    peek,
    zip_blocks,
)
from curate.ingest.tables import saved_dataset

MAX_LAYERS = 5  # containers around a dump: a compressed tar counts as two


@dataclass
class Doubt:
    """The members of an archive that were read since its stream passed a checksum: the next one decides on them.

    If the stream is cut off, no checksum follows: what is in doubt is at the end of the text of all members together.
    """

    members: list[tuple[DamagedRecords, int]] = field(default_factory=list)  # with the number of record 0 in all text
    failed: list[DamagedRecords] = field(default_factory=list)
    cut_off: str = ""
    end: EndFinder = field(default_factory=EndFinder)
    bytes: int = 0  # of all chunks
    records: int = 0
    _has_flaw: bool = False  # of the archive, near the next chunk

    def add_chunk(self, chunk: Chunk) -> None:
        """Take the next chunk of any member."""
        self._settle_flaw()
        self.end.add(replace(chunk, start=self.bytes, first=self.records))
        self.bytes += len(chunk.data)
        self.records += chunk.count

    def add(self, source_file: str, first: int, stop: int) -> None:
        """Note that no checksum covers records `first` to `stop` yet, of the member whose chunks came last."""
        if first < stop:
            self.members.append((DamagedRecords(source_file, first, stop, ""), self.records - stop))

    def note_mark(self, mark: Verified | Failed | CutOff) -> None:
        if isinstance(mark, CutOff):
            self.cut_off = mark.reason
            return
        if isinstance(mark, Failed):
            self.failed += [replace(records, reason=mark.reason) for records, _ in self.members]
        self.members.clear()

    def note_flaw(self) -> None:
        """Note that the archive itself is damaged between the members."""
        self._has_flaw = True

    def finish(self) -> list[DamagedRecords]:
        """Return all records that may be altered; no member follows."""
        if not self.cut_off or not self.members:
            return self.failed
        self._settle_flaw()
        first = self.end.first_in_doubt(self.bytes, self.records)
        ranges = [
            replace(records, first=max(records.first, first - before), reason=self.cut_off)
            for records, before in self.members
        ]
        return self.failed + [records for records in ranges if records.first < records.stop]

    def _settle_flaw(self) -> None:
        if self._has_flaw:
            self.end.note(self.bytes, self.bytes)
            self.bytes += 1  # a byte of its own: it is not the end of the last record
            self._has_flaw = False


Doubts = Sequence[Doubt]


@dataclass(frozen=True)
class Content:
    """What the records of a source, or of a member in it, are read from: text in any encoding, or a file.

    `doubts`: of the archives around it, from the outside.
    """

    source: Source
    kind: Kind
    blocks: Iterator[Block] = field(default_factory=lambda: iter(()))
    path: Path | None = None
    doubts: Doubts = ()


@dataclass(frozen=True)
class Opener:
    """Opens the sources of one file on disk, which `meter` counts.

    `scratch` is the folder for members that are read at random; None is the system's. Called with what is damaged, not
    read, or in doubt: `note_loss` and `note_unread` at once, `note_damaged` when it is known.
    """

    meter: Meter
    limits: Limits
    scratch: Path | None
    note_loss: Callable[[Source, int, int | None, str], None]  # as ReportLoss, with the source
    note_unread: Callable[[Source], None]
    note_damaged: Callable[[Sequence[DamagedRecords]], None]

    def open(self, source: Source) -> Iterator[Content]:
        """Yield the contents of a source in order; each must be used before the next is asked for.

        Raises InputError if it cannot be read any further, ExpansionError if it expands past the limits.
        """
        kind = next((kind for kind in kinds.KINDS if kind.name == source.kind and kind.access == "file"), None)
        if source.kind == kinds.HUB.name:
            yield Content(source, kinds.HUB)
        elif kind is not None:
            yield Content(source, kind, path=source.local)
        elif source.member is not None:
            yield from self._open(source, self._zip_blocks(source, self.meter), 1, ())
        else:
            yield from self._open(source, disk_blocks(source, self.meter), 0, ())

    def _open(
        self, source: Source, blocks: Iterator[Block], layer: int, doubts: Doubts, *, is_expanded: bool = False
    ) -> Iterator[Content]:
        """Yield the contents of a stream; `layer` is the number of containers around it."""
        head, blocks = peek(blocks)
        form = compression(head, "" if is_expanded else source.name)
        kind = kinds.recognise(head, source.name) if head else kinds.TEXT
        is_text = form is None and kind.access == "stream"
        if is_text and layer and saved_dataset.is_about_member(source.name, head):
            return
        if layer:
            blocks = limit_expansion(blocks, source, self.meter, self.limits, TEXT_LAYER if is_text else layer)
        if is_text:
            yield Content(source, kind, blocks, doubts=doubts)
        elif layer == MAX_LAYERS and (form is not None or kind.access == "archive"):
            raise InputError(f"input {source.name!r} is inside {layer} archives or compressed files; unpack it first")
        elif form is not None:
            expanded = expand(form, blocks, partial(self.note_loss, source))
            yield from self._open(source, expanded, layer + 1, doubts, is_expanded=True)
        elif kind is kinds.TAR:
            yield from self._open_tar(source, blocks, layer + 1, doubts)
        else:
            yield from self._open_file(source, kind, blocks, layer + 1, doubts)

    def _open_tar(self, source: Source, blocks: Iterator[Block], layer: int, doubts: Doubts) -> Iterator[Content]:
        doubt = Doubt()
        count = 0
        try:
            tar = Tar(blocks, partial(self._note_tar_loss, source, doubt), doubt.note_mark)
            for member, content in _tar_members(source, tar):
                count += not member.problem
                if member.problem:
                    self.note_unread(member)
                else:
                    yield from self._open_member(member, content, layer, (*doubts, doubt))
        finally:
            self.note_damaged(doubt.finish())
        if not count:
            raise InputError(f"input {source.name!r} is a tar that has no dump: none of its members looks like one")

    def _note_tar_loss(self, source: Source, doubt: Doubt, offset: int, lost: int | None, description: str) -> None:
        if lost is not None:  # more than the end of the tar
            doubt.note_flaw()
        self.note_loss(source, offset, lost, description)

    def _open_member(self, source: Source, blocks: Iterator[Block], layer: int, doubts: Doubts) -> Iterator[Content]:
        """Yield the contents of an archive's member; if it cannot be opened, leave the others to be read."""
        try:
            yield from self._open(source, blocks, layer, doubts)
        except ExpansionError:
            raise
        except InputError as error:
            self.note_unread(source.skip(problem_of(source, error)))

    def _open_file(
        self, source: Source, kind: Kind, blocks: Iterator[Block], layer: int, doubts: Doubts
    ) -> Iterator[Content]:
        """Yield the contents of a stream that must be read at random, from a temporary file."""
        failures: list[Failed] = []
        doubt = Doubt()
        with files.spooling(_without_marks(blocks, failures), self.scratch) as path:
            if kind is kinds.ZIP:
                yield from self._open_zip(source, path, layer, (*doubts, doubt))
            else:
                yield Content(source, kind, path=path, doubts=(*doubts, doubt))
        for failure in failures[:1]:
            doubt.note_mark(failure)
        self.note_damaged(doubt.failed)

    def _open_zip(self, source: Source, path: Path, layer: int, doubts: Doubts) -> Iterator[Content]:
        members = list_zip(source, path)
        damage = next((member.damage for member in members), "")
        if damage:
            self.note_loss(source, 0, 0, damage)
        for member in members:
            if member.problem:
                self.note_unread(member)
            else:
                yield from self._open_member(member, self._zip_blocks(member, Meter()), layer, doubts)

    def _zip_blocks(self, source: Source, meter: Meter) -> Iterator[Block]:
        def note_unread(problem: str) -> None:
            self.note_unread(source.skip(problem))

        return zip_blocks(source, meter, partial(self.note_loss, source), note_unread)


def _tar_members(source: Source, tar: Tar) -> Iterator[tuple[Source, Iterator[Block]]]:
    """Yield each member that is read or named, with its bytes."""
    names: Counter[str] = Counter()
    for member in tar:
        if member.is_folder or is_negligible_member(member.name):
            continue
        name = safe_name(member.name)
        names[name] += 1
        inside = replace(source.inside(f"{name}#{names[name]}" if names[name] > 1 else name), optional=True)
        head, blocks = peek(member.blocks)
        reason = member.problem or ("" if is_dump_member(member.name) else kinds.unread_reason(head, member.name))
        yield (inside.skip(reason, source) if reason else inside), blocks


def _without_marks(blocks: Iterator[Block], failures: list[Failed]) -> Iterator[bytes]:
    """Yield the bytes of a stream; the marks that say they may be altered are added to `failures`."""
    for block in blocks:
        if isinstance(block, bytes):
            yield block
        elif isinstance(block, Failed):
            failures.append(block)


def is_checked(source: Source) -> bool:
    """Return whether a checksum is around the records of a source; False for standard input and pipes."""
    if source.path is None or source.bytes is None:
        return False
    if source.member is not None:
        return True
    with source.path.open("rb") as file:
        head = file.read(kinds.HEAD_BYTES)
    return compression(head, source.name) is not None or kinds.recognise(head, source.name).access == "archive"
