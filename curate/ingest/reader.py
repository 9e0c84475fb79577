"""Read inputs into chunks of complete records, a few megabytes each; a damaged record is a record of its own."""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from curate.errors import InputError
from curate.ingest.chunker import Chunker
from curate.ingest.containers import parquet
from curate.ingest.contents import Content, Opener, is_checked
from curate.ingest.damage import GAP_TEXT, Block, Damage, ReportDamage, Verification
from curate.ingest.damaged_records import DamagedRecords, RecordFinder
from curate.ingest.decode import Chunk, is_json_record
from curate.ingest.kinds import ARROW, CHAT, DELIMITED, HUB, describe
from curate.ingest.sources import Source, no_record, problem_of
from curate.ingest.streams import MIN_RATIO_BYTES, ExpansionError, Limits, Meter, check_expansion
from curate.ingest.tables import arrow_ipc, delimited_text, hub, plain_text, tree_rows
from curate.ingest.tables.chunks import RowFinder, TableChunks, check_columns
from curate.ingest.tables.table import Rows, Table
from curate.ingest.text import literals
from curate.ingest.text.encodings import UTF8, advise, transcode
from curate.ingest.text.spans import TextChunk
from curate.ingest.unread import PART_OF_EXPORT, UnreadFile, describe_skipped
from curate.progress import BYTES, stage
from curate.schemas.reading.columns import Columns

MAX_PLACES = 20  # damaged, that are named for each source
LOG_TIME = re.compile(rb"\s*\[?(?:\d{4}-\d\d-\d\d|\d{1,2}:\d\d)[^\]\n]{0,40}\]\s")  # its bracket is not in the damage
TABLE = re.compile(rb"[^\n,;\t{}\[\]]+([,;\t])[^\n{}\[\]]+\n[^\n,;\t{}\[\]]+\1[^\n{}\[\]]")  # its first two lines
MAX_LEADING_DAMAGE = 64 << 20  # bytes; a file with more damage than that at its start is not a dump


TableReader = Callable[[Source, Path, Meter, Limits, int, Callable[[str], None]], Table]
TABLE_READERS: dict[str, TableReader] = {"parquet": parquet.read_table}  # of the kinds that are read at random


@dataclass(frozen=True)
class InputFile:
    """One input file, as it is on disk. `sha256` is None if it was not read to its end, because of `limit`."""

    name: str
    bytes: int
    sha256: str | None


@dataclass(frozen=True)
class ReadFacts:
    """What a reader found beside the records of some sources, to be put together with that of others.

    `advice`: what is wrong with containers. `unpacked`: bytes of text.
    """

    inputs: tuple[InputFile, ...] = ()
    warnings: tuple[Damage, ...] = ()
    damaged_records: tuple[DamagedRecords, ...] = ()
    unread: tuple[UnreadFile, ...] = ()
    problems: tuple[str, ...] = ()
    advice: tuple[str, ...] = ()
    any_record: bool = False
    unpacked: int = 0


class Reader:
    """Read sources into chunks, in order and once, with a few chunks in memory at a time.

    `warnings`, `inputs` and `damaged_records` (those that may be altered, since the checksum of their compressed
    stream failed) are complete when the iteration ends. `bytes_total` counts the bytes on disk of all sources; it is
    None if a size is unknown. A record of `max_record_bytes` or more is damage. `encoding` is that of text without a
    byte-order mark. A table must have the `columns`.
    `scratch` is the folder for members of archives that are read at random; None is the system's.
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
        columns: Columns = (),
    ) -> None:
        self.sources = [source for source in sources if not source.problem]
        self.limit = limit
        self.chunk_bytes = chunk_bytes
        self.max_record_bytes = max_record_bytes
        self.limits = Limits(max_expanded_bytes, max_expansion)
        self.encoding = encoding
        self.columns = columns
        self.records_read = 0
        self.warnings: list[Damage] = []
        self.damaged_records: list[DamagedRecords] = []
        self._found_unread = [source for source in sources if source.problem]
        self.parts_of_exports = [source for source in sources if source.problem == PART_OF_EXPORT]
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
        self._losses: list[tuple[int | None, str, int | None]] = []  # warning if any, file, bytes on disk if known
        self._places: Counter[str] = Counter()  # that are damaged, by source
        self._more_lost: Counter[str] = Counter()  # bytes lost in the places that are only counted, by source
        self._finder: RecordFinder | RowFinder | None = None
        self._problems: list[str] = []  # of the sources that could not be read, as errors
        self.scratch: Path | None = None
        self._collected: list[InputFile] = []  # that other readers have read

    @property
    def inputs(self) -> list[InputFile]:
        """The files read so far, as they are on disk."""
        return self._collected + [
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
        self.warn_of_unread()
        with stage("reading", self.bytes_total, BYTES) as current:
            for chunk in self.read():
                yield chunk
                current.done = self.bytes_read
        if not self._is_at_limit():
            self.check_any_record()

    def _is_at_limit(self) -> bool:
        return self.limit is not None and self.records_read >= self.limit

    def read(self) -> Iterator[Chunk]:
        """Yield the chunks; it is no error if there is none, and what was not opened has no warning."""
        for source in self.sources:
            if source.damage and source.file not in self._meters:  # once for each file, before its first member
                self._warn(source.file, source.bytes or 0, 0, source.damage)
            skipped: list[Source] = []
            for content in self._contents(source, skipped):
                yield from self._limited_chunks(content)
                if self._is_at_limit():
                    break
            self._warn_of_skipped(skipped)
            if self._is_at_limit():
                break
        self._estimate_losses()
        self.warn_of_more()

    def facts(self) -> ReadFacts:
        """Return what was found beside the records."""
        return ReadFacts(
            tuple(self.inputs),
            tuple(self.warnings),
            tuple(self.damaged_records),
            tuple(self.unread[len(self._found_unread) :]),
            tuple(self._problems),
            tuple(self._container_damage.values()),
            self._any_record,
            self.bytes_unpacked,
        )

    def collect(self, facts: ReadFacts) -> None:
        """Add what another reader found in some of the sources."""
        self._collected += facts.inputs
        self.warnings += facts.warnings
        self.damaged_records += facts.damaged_records
        self.unread += facts.unread
        self._problems += facts.problems
        self._container_damage |= {f"{len(self._container_damage)}": text for text in facts.advice}
        self._any_record = self._any_record or facts.any_record
        self._unpacked_before += facts.unpacked

    def collect_text(self, source: Source, sha256: str, reports: Iterable[tuple[int, int, str]]) -> None:
        """Add a text that was read in byte ranges, and the damage in it."""
        for offset, lost, description in reports:
            self._warn(source.name, offset, lost, description)
        file = InputFile(source.file, source.bytes or 0, sha256)
        self.collect(ReadFacts((file,), any_record=True, unpacked=file.bytes))

    def check_any_record(self) -> None:
        """Raise InputError, with the reasons, if no source has a record."""
        if not self._any_record:
            names = ", ".join(repr(source.name) for source in self.sources[:3])
            advice = next(iter(self._container_damage.values()), "give a dump that has records")
            unread = [
                f"input {source.name!r} {source.problem}" for source in self._found_unread if not source.skipped_in
            ]
            raise no_record(unread + self._problems or [f"no record in {names}; {advice}"])

    def _contents(self, source: Source, skipped: list[Source]) -> Iterator[Content]:
        """Yield what a source's records are read from; members of a stream that are not read are added to `skipped`."""
        opener = Opener(
            self._open_meter(source.file),
            self.limits,
            self.scratch,
            self._note_container_damage,
            partial(self._note_unread_member, skipped),
            self.damaged_records.extend,
        )
        try:
            yield from opener.open(source)
        except ExpansionError:
            raise
        except InputError as error:
            self._note_problem(source, error)

    def _limited_chunks(self, content: Content) -> Iterator[Chunk]:
        """Yield chunks up to the limit, and note which of their records may be altered."""
        stop = 0
        self._finder = None
        for chunk in self._chunks_or_problem(content):
            left = math.inf if self.limit is None else self.limit - self.records_read
            if left <= 0:
                break
            chunk = chunk if chunk.count <= left else replace(chunk, count=int(left))
            self.records_read += chunk.count
            stop = chunk.first + chunk.count
            for doubt in content.doubts:
                doubt.add_chunk(chunk)
            yield chunk
        finder: RecordFinder | RowFinder | None = self._finder  # set while the chunks were read
        ranges = finder.finish() if finder is not None else []
        self.damaged_records += [
            replace(records, stop=min(records.stop, stop)) for records in ranges if records.first < stop
        ]
        first = finder.first_unverified if finder is not None and content.path is None else 0
        for doubt in content.doubts:
            doubt.add(content.source.name, first, stop)

    def warn_of_unread(self) -> None:
        """Warn of what was not read: of each file with a problem, and of those with other names by folder or zip."""
        for source in self._found_unread:
            if not source.skipped_in and source.problem != PART_OF_EXPORT:
                self._warn_unread(source.name, source.problem)
        self._warn_of_skipped([source for source in self._found_unread if source.skipped_in])

    def _warn_of_skipped(self, sources: Sequence[Source]) -> None:
        """Warn once for each folder and archive of what is in it that does not look like a dump."""
        places: dict[str, list[str]] = {}
        for source in sources:
            places.setdefault(source.skipped_in, []).append(source.name.removeprefix(f"{source.skipped_in}/"))
        for place, names in places.items():
            self._warn(place, 0, 0, describe_skipped(names))

    def _note_unread_member(self, skipped: list[Source], source: Source) -> None:
        self._note_unread(source, source.problem)
        if source.skipped_in:
            skipped.append(source)
        elif source.problem != PART_OF_EXPORT and source.name not in self._container_damage:  # which has a warning
            self._problems.append(f"input {source.name!r} {source.problem}")
            self._warn_unread(source.name, source.problem)

    def _note_problem(self, source: Source, error: InputError) -> None:
        problem = problem_of(source, error)
        self._problems.append(str(error))
        self._note_unread(source, problem)
        self._warn_unread(source.name, problem)

    def _warn_unread(self, name: str, problem: str) -> None:
        self.warnings.append(Damage(name, 0, 0, f"{name} is not read: it {problem}"))

    def _chunks_or_problem(self, content: Content) -> Iterator[Chunk]:
        """Yield chunks; if a content cannot be read (any further), say so, and leave the others to be read."""
        try:
            yield from self._checked_chunks(content)
        except ExpansionError:
            raise
        except InputError as error:
            self._note_problem(content.source, error)

    def _note_unread(self, source: Source, problem: str) -> None:
        self.unread.append(UnreadFile(source.name, problem))

    def _warn(self, name: str, offset: int, lost: int, description: str) -> None:
        """Warn of a damaged place; of a source that has many, the first ones are named and the others counted."""
        self._places[name] += 1
        if self._places[name] > MAX_PLACES:
            self._more_lost[name] += lost
        else:
            self.warnings.append(Damage(name, offset, lost, f"{name}: {description}"))

    def warn_of_more(self) -> None:
        """Warn of the damaged places that were only counted."""
        for name, lost in self._more_lost.items():
            count = self._places[name] - MAX_PLACES
            places = "place is" if count == 1 else "places are"
            text = f"{name}: {count:,} more {places} damaged; they take {lost:,} bytes"
            self.warnings.append(Damage(name, 0, lost, text))

    def _note_container_damage(self, source: Source, offset: int, lost: int | None, description: str) -> None:
        """Record that the compression or archive around a source is damaged."""
        self._container_damage[source.name] = description
        index = len(self.warnings)
        self._warn(source.name, offset, lost or 0, description)
        if lost != 0:
            self._losses.append((index if index < len(self.warnings) else None, source.file, lost))

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
            if index is None:
                continue
            good_bytes = self._meters[file].bytes - lost_bytes[file]
            estimate = "an unknown number of records"
            if lost and self._records[file] and good_bytes > 0:
                count = round(lost * self._records[file] / good_bytes)
                estimate = f"about {count:,} records" if count > 1 else "at most about one record"
            damage = self.warnings[index]
            self.warnings[index] = replace(damage, text=f"{damage.text}, {estimate}")

    def _checked_chunks(self, content: Content) -> Iterator[Chunk]:
        """Yield chunks once one of them has a complete record; raise InputError if none does.

        One damaged member of an archive may have none, if it has other members.
        """
        source = content.source
        pending: list[Chunk] = []
        has_record = False
        for chunk in self._chunks(content):
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
        damage = self._damage_around(source)
        if damage and source.optional:
            yield from pending
        elif pending and content.kind is DELIMITED:
            raise InputError(f"input {source.name!r} has no row that can be read; {pending[0].spans[0].error}")
        elif pending and content.kind is CHAT:
            raise InputError(f"input {source.name!r} cannot be read: {pending[0].spans[0].error}")
        elif pending:
            found = describe(pending[0].data[:512])
            advice = (
                f"; {damage}"
                if damage
                else advise(pending[0].data) or _kind(pending[0].data) or "; give a JSON or JSONL dump"
            )
            raise InputError(f"input {source.name!r} has no complete JSON record; it is {found}{advice}")

    def _damage_around(self, source: Source) -> str:
        """Return what is wrong with a container that a source is in; empty if nothing is."""
        found = (text for name, text in self._container_damage.items() if f"{source.name}/".startswith(f"{name}/"))
        return next(found, "")

    def _chunks(self, content: Content) -> Iterator[Chunk]:
        source = content.source
        if content.path is not None:
            table = self._read_table(source, TABLE_READERS[content.kind.name], content.path)
            yield from self._table_chunks(source, table, Verification())
            return
        if content.kind is HUB:
            table = hub.read_table(source.name, self.max_record_bytes)
            yield from self._table_chunks(source, replace(table, rows=self._measure_rows(table.rows)), Verification())
            return
        previous_warnings = len(self.warnings)
        verification = Verification()
        if content.kind is ARROW:
            yield from self._table_chunks(source, self._open_arrow(source, content.blocks, verification), verification)
            return
        blocks = transcode(content.blocks, self.encoding, partial(self._warn, source.name, 0, 0))
        text = verification.remove_marks(blocks)
        if content.kind is DELIMITED:
            table = delimited_text.read_table(text, source.name, self.max_record_bytes, group=not self.columns)
            yield from self._table_chunks(source, table, verification)
            return
        if content.kind is CHAT:
            yield from self._table_chunks(source, plain_text.read_table(text, self.max_record_bytes), verification)
            return
        chunker = self._chunker(text, partial(self._note_text_damage, source, verification))
        parts = iter(chunker)
        head = list(itertools.islice(parts, 1))
        if head and not self.columns and tree_rows.has_rows(source.name, head[0]):
            table = tree_rows.read_text(source.name, itertools.chain(head, parts))
            yield from self._table_chunks(source, table, verification)
            return
        self._finder = finder = RecordFinder(source.name, verification)
        count = yield from self._number(source, itertools.chain(head, parts), finder)
        damage_around = self._damage_around(source)
        if count or (source.optional and damage_around):
            return
        reasons = [damage.text for damage in self.warnings[previous_warnings:]] or [damage_around][
            : bool(damage_around)
        ]
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

    def _read_table(self, source: Source, read_table: TableReader, path: Path) -> Table:
        """Open a table: one of the sources, or a temporary file, which has counts and limits of its own."""
        report = partial(self._warn, source.name, 0, 0)
        if source.path == path:
            return read_table(source, path, self._meter, self.limits, self.max_record_bytes, report)
        spooled = replace(source, path=path, bytes=path.stat().st_size)
        table = read_table(spooled, path, Meter(), self.limits, self.max_record_bytes, report)
        return replace(table, rows=self._limit_rows(source, table.rows))

    def _open_arrow(self, source: Source, blocks: Iterator[Block], verification: Verification) -> Table:
        size = MIN_RATIO_BYTES if source.bytes is None else source.bytes * self.limits.expansion
        table = arrow_ipc.read_table(
            verification.remove_marks(blocks),
            source.name,
            source.split,
            max_bytes=min(self.limits.expanded_bytes, max(MIN_RATIO_BYTES, size)),
            max_record_bytes=self.max_record_bytes,
        )
        return replace(table, rows=self._limit_rows(source, table.rows))

    def _measure_rows(self, rows: Iterator[Rows]) -> Iterator[Rows]:
        for each in rows:
            self._meter.bytes += len(each.data)
            yield each

    def _limit_rows(self, source: Source, rows: Iterator[Rows]) -> Iterator[Rows]:
        for each in rows:
            check_expansion(len(each.data), source, self._meter, self.limits)
            yield each

    def _table_chunks(self, source: Source, table: Table, verification: Verification) -> Iterator[Chunk]:
        check_columns(source.name, table, self.columns)
        table = table if self.columns else tree_rows.group_table(table)
        chunks = TableChunks(source.name, table, self.chunk_bytes, verification)
        self._finder = chunks.finder
        yield from chunks
        self._records[source.file] += chunks.sound
        for text, lost in chunks.warnings:
            self._warn(source.name, 0, lost, text)

    def _number(self, source: Source, parts: Iterable[TextChunk], finder: RecordFinder) -> Generator[Chunk, None, int]:
        """Yield chunks with numbers for their records; return how many records there are."""
        number = 0  # of the chunk's first record in the source
        for part in parts:
            chunk = Chunk.of_text(source.name, number, part)
            finder.add(chunk)
            self._records[source.file] += sum(span.count for span in part.spans if span.kind != "damage")
            yield chunk
            number += chunk.count
        return number


def _kind(text: bytes) -> str:
    if LOG_TIME.match(text):
        return "; it seems to be a log with a time before each line: remove the times, so that turns begin with User:"
    if TABLE.match(text[:4096]):
        return "; it seems to be a table: give the file a name that ends in .csv"
    kind = literals.describe_kind(text)
    return f"; it seems to be {kind}" if kind else ""


def find_damaged_records(sources: Sequence[Source]) -> list[DamagedRecords]:
    """Read compressed files once for the records that may be altered; standard input cannot be read twice.

    For those who use each record as it is read: a checksum is known only at the end of its stream.
    """
    compressed = [source for source in sources if is_checked(source)]
    if not compressed:
        return []
    reader = Reader(compressed)
    for _ in reader.read():
        pass
    return reader.damaged_records
