"""Read inputs into chunks of complete records, a few megabytes each; a damaged record is a record of its own."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

from curate.errors import InputError
from curate.ingest.chunker import Chunker
from curate.ingest.containers import delimited, parquet
from curate.ingest.containers.table import Table
from curate.ingest.damage import GAP_TEXT, Damage, ReportDamage, Verification
from curate.ingest.damaged_records import DamagedRecords, RecordFinder
from curate.ingest.decode import Chunk, is_json_record
from curate.ingest.sources import Source, describe, no_record
from curate.ingest.streams import ExpansionError, Limits, Meter, is_compressed, text_blocks
from curate.ingest.table_chunks import RowFinder, TableChunks
from curate.ingest.text.encodings import UTF8, advise, transcode
from curate.ingest.unread import UnreadFile, describe_skipped

MAX_LEADING_DAMAGE = 64 << 20  # bytes; a file with more damage than that at its start is not a dump


@dataclass(frozen=True)
class InputFile:
    """One input file, as it is on disk. `sha256` is None if it was not read to its end, because of `limit`."""

    name: str
    bytes: int
    sha256: str | None


class Reader:
    """Read sources into chunks, in order and once, with a few chunks in memory at a time.

    `warnings`, `inputs` and `damaged_records` (those that may be altered, since the checksum of their compressed
    stream failed) are complete when the iteration ends. `bytes_total` counts the bytes on disk of all sources; it is
    None if a size is unknown. A record of `max_record_bytes` or more is damage. `encoding` is that of text without a
    byte-order mark.
    Raises InputError for a source without a complete record, or one that expands past the limits.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        *,
        limit: int | None = None,
        chunk_bytes: int = 4 << 20,
        max_record_bytes: int = 1 << 28,
        max_expanded_bytes: int = 1 << 40,
        max_expansion: int = 1000,
        encoding: str = UTF8,
    ) -> None:
        self.sources = [source for source in sources if not source.problem]
        self.limit = limit
        self.chunk_bytes = chunk_bytes
        self.max_record_bytes = max_record_bytes
        self.limits = Limits(max_expanded_bytes, max_expansion)
        self.encoding = encoding
        self.records_read = 0
        self.warnings: list[Damage] = []
        self.damaged_records: list[DamagedRecords] = []
        self._found_unread = [source for source in sources if source.problem]
        self.unread = [UnreadFile(source.name, source.problem) for source in self._found_unread]
        self._sizes = {source.file: source.bytes for source in self.sources}  # of the files on disk
        known = [size for size in self._sizes.values() if size is not None]
        self.bytes_total = sum(known) if len(known) == len(self._sizes) else None
        self._meters: dict[str, Meter] = {}
        self._meter = Meter()  # of the file that is being read
        self._bytes_before = self._unpacked_before = 0  # of the files before it
        self._container_damage: dict[str, str] = {}  # by source: what is wrong with its compression or archive
        self._any_record = False
        self._records: Counter[str] = Counter()  # by file, without damage
        self._losses: list[tuple[int, str, int | None]] = []  # index of the warning, file, bytes on disk if known
        self._finder: RecordFinder | RowFinder | None = None
        self._problems: list[str] = []  # of the sources that could not be read, as errors

    @property
    def inputs(self) -> list[InputFile]:
        """The files read so far, as they are on disk."""
        return [
            InputFile(name, (meter.sha256 and self._sizes[name]) or meter.bytes, meter.sha256)
            for name, meter in self._meters.items()
        ]

    @property
    def bytes_read(self) -> int:
        """The number of bytes read from disk so far."""
        return self._bytes_before + self._meter.bytes

    @property
    def bytes_unpacked(self) -> int:
        """The number of bytes of dumps read so far, after decompression."""
        return self._unpacked_before + (self._meter.expanded or self._meter.bytes)

    def __iter__(self) -> Iterator[Chunk]:
        self._warn_of_unread()
        for source in self.sources:
            if source.damage and source.file not in self._meters:  # once for each file, before its first member
                self._warn(source.file, source.bytes or 0, 0, source.damage)
            yield from self._limited_chunks(source)
            if self.limit is not None and self.records_read >= self.limit:
                break
        else:
            self._check_any_record()
        self._estimate_losses()

    def _check_any_record(self) -> None:
        if not self._any_record:
            names = ", ".join(repr(source.name) for source in self.sources[:3])
            advice = next(iter(self._container_damage.values()), "give a dump that has records")
            unread = [
                f"input {source.name!r} {source.problem}" for source in self._found_unread if not source.skipped_in
            ]
            raise no_record(unread + self._problems or [f"no record in {names}; {advice}"])

    def _limited_chunks(self, source: Source) -> Iterator[Chunk]:
        """Yield a source's chunks up to the limit, and note which of their records may be altered."""
        stop = 0
        for chunk in self._chunks_or_problem(source):
            left = math.inf if self.limit is None else self.limit - self.records_read
            if left <= 0:
                break
            chunk = chunk if chunk.count <= left else replace(chunk, count=int(left))
            self.records_read += chunk.count
            stop = chunk.first + chunk.count
            yield chunk
        ranges = self._finder.finish() if self._finder is not None else []
        self.damaged_records += [
            replace(records, stop=min(records.stop, stop)) for records in ranges if records.first < stop
        ]

    def _warn_of_unread(self) -> None:
        """Warn of what was not read: of each file with a problem, and of those with other names by folder or zip."""
        skipped: dict[str, list[Source]] = {}
        for source in self._found_unread:
            if source.skipped_in:
                skipped.setdefault(source.skipped_in, []).append(source)
            else:
                self._warn_unread(source.name, source.problem)
        for place, sources in skipped.items():
            self._warn(place, 0, 0, describe_skipped([source.member_name or source.file for source in sources]))

    def _warn_unread(self, name: str, problem: str) -> None:
        self.warnings.append(Damage(name, 0, 0, f"{name} is not read: it {problem}"))

    def _chunks_or_problem(self, source: Source) -> Iterator[Chunk]:
        """Yield a source's chunks; if it cannot be read (any further), say so, and leave the others to be read."""
        try:
            yield from self._checked_chunks(source)
        except ExpansionError:
            raise
        except InputError as error:
            problem = str(error).partition(repr(source.name))[2].strip() or str(error)
            self._problems.append(str(error))
            self._note_unread(source, problem)
            self._warn_unread(source.name, problem)

    def _note_unread(self, source: Source, problem: str) -> None:
        self.unread.append(UnreadFile(source.name, problem))

    def _warn(self, name: str, offset: int, lost: int, description: str) -> None:
        self.warnings.append(Damage(name, offset, lost, f"{name}: {description}"))

    def _note_container_damage(self, source: Source, offset: int, lost: int | None, description: str) -> None:
        """Record that the compression or archive around a source is damaged."""
        self._container_damage[source.name] = description
        self._warn(source.name, offset, lost or 0, description)
        if lost != 0:
            self._losses.append((len(self.warnings) - 1, source.file, lost))

    def _note_text_damage(
        self, source: Source, verification: Verification, offset: int, lost: int, description: str
    ) -> None:
        if not (offset in verification.gaps and lost <= len(GAP_TEXT)):  # the container's damage has a warning
            self._warn(source.name, offset, lost, description)

    def _estimate_losses(self) -> None:
        """Add to warnings how many records were lost: as many for each byte on disk as in the rest of the file."""
        lost_bytes: Counter[str] = Counter()
        for _, file, lost in self._losses:
            lost_bytes[file] += lost or 0
        for index, file, lost in self._losses:
            good_bytes = self._meters[file].bytes - lost_bytes[file]
            estimate = "an unknown number of records"
            if lost and self._records[file] and good_bytes > 0:
                count = round(lost * self._records[file] / good_bytes)
                estimate = f"about {count:,} records" if count > 1 else "at most about one record"
            damage = self.warnings[index]
            self.warnings[index] = replace(damage, text=f"{damage.text}, {estimate}")

    def _checked_chunks(self, source: Source) -> Iterator[Chunk]:
        """Yield a source's chunks once one of them has a complete record; raise InputError if none does.

        One damaged member of a zip may have none, if the zip has other members.
        """
        pending: list[Chunk] = []
        has_record = False
        for chunk in self._chunks(source):
            has_record = has_record or any(
                span.kind != "damage" and is_json_record(chunk, span) for span in chunk.spans
            )
            pending.append(chunk)
            if has_record:
                yield from pending
                pending.clear()
            # Nothing but damage so far: the file is most likely something else, so the rest is not read.
            elif sum(len(chunk.data) for chunk in pending) > MAX_LEADING_DAMAGE:
                break
        self._any_record = self._any_record or has_record
        damage = self._container_damage.get(source.name, "")
        if damage and source.optional:
            yield from pending
        elif pending and source.is_delimited:
            raise InputError(f"input {source.name!r} has no row that can be read; {pending[0].spans[0].error}")
        elif pending:
            content = describe(pending[0].data[:512])
            advice = f"; {damage}" if damage else advise(pending[0].data) or "; give a JSON or JSONL dump"
            raise InputError(f"input {source.name!r} has no complete JSON record; it is {content}{advice}")

    def _chunks(self, source: Source) -> Iterator[Chunk]:
        meter = self._open_meter(source.file)
        self._finder = None
        if source.path is not None and source.kind == "parquet":
            report = partial(self._warn, source.name, 0, 0)
            table = parquet.read_table(source, source.path, meter, self.limits, self.max_record_bytes, report)
            yield from self._table_chunks(source, table, Verification())
            return
        previous_warnings = len(self.warnings)
        verification = Verification()
        note_damage, note_unread = partial(self._note_container_damage, source), partial(self._note_unread, source)
        blocks = text_blocks(source, meter, self.limits, note_damage, note_unread)
        blocks = transcode(blocks, self.encoding, partial(self._warn, source.name, 0, 0))
        text = verification.remove_marks(blocks)
        if source.is_delimited:
            table = delimited.read_table(text, source.name, self.max_record_bytes)
            yield from self._table_chunks(source, table, verification)
            return
        self._finder = finder = RecordFinder(source.name, verification)
        report = partial(self._note_text_damage, source, verification)
        chunker = self._chunker(text, report)
        count = yield from self._number(source, chunker, finder)
        if count or (source.optional and source.name in self._container_damage):
            return
        reasons = [damage.text for damage in self.warnings[previous_warnings:]]
        if reasons or not chunker.arrays:
            raise InputError(f"input {source.name!r} has no record: {'; '.join(reasons) or 'only white space'}")
        self._warn(source.name, 0, 0, "an empty array, no record")

    def _open_meter(self, file: str) -> Meter:
        """Return the meter of a file, whose sources are read one after the other."""
        if file not in self._meters:
            self._bytes_before, self._unpacked_before = self.bytes_read, self.bytes_unpacked
            self._meter = self._meters[file] = Meter()
        return self._meters[file]

    def _chunker(self, text: Iterator[bytes], report: ReportDamage) -> Chunker:
        return Chunker(text, self.chunk_bytes, self.max_record_bytes, report)

    def _table_chunks(self, source: Source, table: Table, verification: Verification) -> Iterator[Chunk]:
        chunks = TableChunks(source.name, table, self.chunk_bytes, verification)
        self._finder = chunks.finder
        yield from chunks
        self._records[source.file] += chunks.sound
        for text, lost in chunks.warnings:
            self._warn(source.name, 0, lost, text)

    def _number(self, source: Source, chunker: Chunker, finder: RecordFinder) -> Generator[Chunk, None, int]:
        """Yield chunks with numbers for their records; return how many records there are."""
        number = 0  # of the chunk's first record in the source
        for part in chunker:
            count = sum(span.count for span in part.spans)
            chunk = Chunk(source.name, number, count, part.start, part.data, part.spans, part.record_start)
            finder.add(chunk)
            self._records[source.file] += sum(span.count for span in part.spans if span.kind != "damage")
            yield chunk
            number += count
        return number


def find_damaged_records(sources: Sequence[Source]) -> list[DamagedRecords]:
    """Read compressed files once for the records that may be altered; standard input cannot be read twice.

    For those who use each record as it is read: a checksum is known only at the end of its stream.
    """
    compressed = [source for source in sources if is_compressed(source)]
    if not compressed:
        return []
    reader = Reader(compressed)
    for _ in reader:
        pass
    return reader.damaged_records
