"""Read inputs into chunks of complete records, a few megabytes each; a damaged record is a record of its own."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

from curate.errors import InputError
from curate.ingest.chunker import Chunker
from curate.ingest.damage import Damage
from curate.ingest.decode import Chunk, is_json_record
from curate.ingest.parquet import row_blocks
from curate.ingest.sources import Source, describe
from curate.ingest.streams import Limits, Meter, text_blocks

MAX_LEADING_DAMAGE = 64 << 20  # bytes; a file with more damage than that at its start is not a dump


@dataclass(frozen=True)
class InputFile:
    """One input file, as it is on disk. `sha256` is None if it was not read to its end, because of `limit`."""

    name: str
    bytes: int
    sha256: str | None


class Reader:
    """Read sources into chunks, in order and once, with a few chunks in memory at a time.

    `warnings` and `inputs` are complete when the iteration ends. A record of `max_record_bytes` or more is damage.
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
        self._meters: dict[str, Meter] = {}
        self._container_damage: dict[str, str] = {}  # by source: what is wrong with its compression or archive
        self._any_record = False

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

    @property
    def bytes_total(self) -> int | None:
        """The number of bytes on disk, of all sources; None if a size is unknown."""
        sizes = {source.file: source.bytes for source in self.sources}
        known = [size for size in sizes.values() if size is not None]
        return sum(known) if len(known) == len(sizes) else None

    def __iter__(self) -> Iterator[Chunk]:
        for source in self.sources:
            if source.damage and source.file not in self._meters:  # once for each file, before its first member
                self._warn(source.file, source.bytes or 0, 0, source.damage)
            for chunk in self._checked_chunks(source):
                left = math.inf if self.limit is None else self.limit - self.records_read
                if left <= 0:
                    return
                chunk = chunk if chunk.count <= left else replace(chunk, count=int(left))
                self.records_read += chunk.count
                yield chunk
        if not self._any_record:
            names = ", ".join(repr(source.name) for source in self.sources[:3])
            raise InputError(f"no record in {names}; give a dump that has records")

    def _warn(self, name: str, offset: int, lost: int, description: str) -> None:
        self.warnings.append(Damage(name, offset, lost, f"{name}: {description}"))

    def _note_container_damage(self, source: Source, offset: int, lost: int, description: str) -> None:
        """Record that the compression or archive around a source is damaged."""
        self._container_damage[source.name] = description
        self._warn(source.name, offset, lost, description)

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

    def _text(self, source: Source, meter: Meter) -> Iterator[bytes]:
        if source.path is not None and source.kind == "parquet":
            return row_blocks(source, source.path, meter)
        return text_blocks(source, meter, self.limits, partial(self._note_container_damage, source))

    def _chunks(self, source: Source) -> Iterator[Chunk]:
        meter = self._meters.setdefault(source.file, Meter())
        previous_warnings = len(self.warnings)
        chunker = Chunker(
            self._text(source, meter), self.chunk_bytes, self.max_record_bytes, partial(self._warn, source.name)
        )
        first = 0  # index of the chunk's first record in the source
        for part in chunker:
            count = sum(span.count for span in part.spans)
            yield Chunk(source.name, first, count, part.start, part.data, part.spans, part.record_start)
            first += count
        if first or (source.optional and source.name in self._container_damage):
            return
        reasons = [damage.text for damage in self.warnings[previous_warnings:]]
        if reasons or not chunker.arrays:
            raise InputError(f"input {source.name!r} has no record: {'; '.join(reasons) or 'only white space'}")
        self._warn(source.name, 0, 0, "an empty array, no record")
