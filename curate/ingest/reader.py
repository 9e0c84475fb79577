"""Read inputs into chunks of complete records, a few megabytes each; a damaged record is a record of its own."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

from curate.errors import InputError
from curate.ingest.chunker import Chunker
from curate.ingest.damage import GAP_TEXT, Block, Damage, Verification
from curate.ingest.damaged_records import DamagedRecords, RecordFinder
from curate.ingest.decode import Chunk, is_json_record
from curate.ingest.parquet import row_blocks
from curate.ingest.sources import Source, describe
from curate.ingest.streams import Limits, Meter, is_compressed, text_blocks

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
    stream failed) are complete when the iteration ends. A record of `max_record_bytes` or more is damage.
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
    ) -> None:
        self.sources = list(sources)
        self.limit = limit
        self.chunk_bytes = chunk_bytes
        self.max_record_bytes = max_record_bytes
        self.limits = Limits(max_expanded_bytes, max_expansion)
        self.records_read = 0
        self.warnings: list[Damage] = []
        self.damaged_records: list[DamagedRecords] = []
        self._meters: dict[str, Meter] = {}
        self._container_damage: dict[str, str] = {}  # by source: what is wrong with its compression or archive
        self._any_record = False
        self._records: Counter[str] = Counter()  # by file, without damage
        self._losses: list[tuple[int, str, int | None]] = []  # index of the warning, file, bytes on disk if known
        self._finder: RecordFinder | None = None

    @property
    def inputs(self) -> list[InputFile]:
        """The files read so far, as they are on disk."""
        sizes = {source.file: source.bytes for source in self.sources}
        return [
            InputFile(name, (meter.sha256 and sizes[name]) or meter.bytes, meter.sha256)
            for name, meter in self._meters.items()
        ]

    @property
    def bytes_read(self) -> int:
        """The number of bytes read from disk so far."""
        return sum(meter.bytes for meter in self._meters.values())

    @property
    def bytes_unpacked(self) -> int:
        """The number of bytes of dumps read so far, after decompression."""
        return sum(meter.expanded or meter.bytes for meter in self._meters.values())

    @cached_property
    def bytes_total(self) -> int | None:
        """The number of bytes on disk, of all sources; None if a size is unknown."""
        sizes = {source.file: source.bytes for source in self.sources}
        known = [size for size in sizes.values() if size is not None]
        return sum(known) if len(known) == len(sizes) else None

    def __iter__(self) -> Iterator[Chunk]:
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
            raise InputError(f"no record in {names}; {advice}")

    def _limited_chunks(self, source: Source) -> Iterator[Chunk]:
        """Yield a source's chunks up to the limit, and note which of their records may be altered."""
        stop = 0
        for chunk in self._checked_chunks(source):
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
        elif pending:
            content = describe(pending[0].data[:512])
            advice = f"; {damage}" if damage else "; give a JSON or JSONL dump"
            raise InputError(f"input {source.name!r} has no complete JSON record; it is {content}{advice}")

    def _text(self, source: Source, meter: Meter) -> Iterator[Block]:
        if source.path is not None and source.kind == "parquet":
            return row_blocks(source, source.path, meter)
        return text_blocks(source, meter, self.limits, partial(self._note_container_damage, source))

    def _chunks(self, source: Source) -> Iterator[Chunk]:
        meter = self._meters.setdefault(source.file, Meter())
        previous_warnings = len(self.warnings)
        verification = Verification()
        self._finder = RecordFinder(source.name, verification)
        text = verification.remove_marks(self._text(source, meter))
        report = partial(self._note_text_damage, source, verification)
        chunker = Chunker(text, self.chunk_bytes, self.max_record_bytes, report)
        first = 0  # index of the chunk's first record in the source
        for part in chunker:
            count = sum(span.count for span in part.spans)
            chunk = Chunk(source.name, first, count, part.start, part.data, part.spans, part.record_start)
            self._finder.add(chunk)
            self._records[source.file] += sum(span.count for span in part.spans if span.kind != "damage")
            yield chunk
            first += count
        if first or (source.optional and source.name in self._container_damage):
            return
        reasons = [damage.text for damage in self.warnings[previous_warnings:]]
        if reasons or not chunker.arrays:
            raise InputError(f"input {source.name!r} has no record: {'; '.join(reasons) or 'only white space'}")
        self._warn(source.name, 0, 0, "an empty array, no record")


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
