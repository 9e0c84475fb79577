"""Make the parts of a plan's units, prove that byte ranges meet, and say what was read."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from pathlib import Path

from curate.engine import base
from curate.errors import InputError, error_message
from curate.ingest.decode import Chunk, batches
from curate.ingest.ranges.text_range import Bounds, RangeChunker, TextRange, read_head
from curate.ingest.reader import Reader
from curate.ingest.remote.remote_file import RemoteFile
from curate.ingest.sources import Source
from curate.pipeline.parts import streams
from curate.pipeline.parts.plan import Unit, part_number, unit_of
from curate.pipeline.parts.record import PartRecord
from curate.pipeline.parts.step import ChunkTask, Missing, RangeTask, StreamTask, WholeTask
from curate.pipeline.parts.streams import StreamFacts, make_reader
from curate.pipeline.recipe import Recipe
from curate.pipeline.steps import Part


@dataclass(frozen=True)
class HashedFile:
    """The SHA-256 of an input."""

    place: str
    sha256: str


def hash_file(place: str, path: Path | RemoteFile) -> HashedFile:
    """Hash an input; raises InputError if it cannot be read."""
    try:
        with path.open("rb") as file:
            return HashedFile(place, hashlib.file_digest(file, "sha256").hexdigest())
    except OSError as error:
        raise InputError(f"input {place!r} cannot be read: {error_message(error)}") from None


@dataclass
class Making:
    """The parts of a run: made in the workers of a pool, or only verified if `make` is not set.

    `chosen`: the units that are this run's. `update` is called with the record of each part that is done. `scratch`
    is a folder for members of archives that are read at random.
    """

    sources: Sequence[Source]
    units: Sequence[Unit]
    folder: Path
    recipe: Recipe
    update: Callable[[PartRecord], None]
    scratch: Path | None = None
    make: bool = True
    remote: bool = False  # workers read streams too, one each: this process is far from them
    chosen: frozenset[int] | None = None
    records: dict[int, PartRecord] = field(default_factory=dict)  # by number
    streams: dict[int, StreamFacts] = field(default_factory=dict)  # by unit
    hashes: dict[str, str] = field(default_factory=dict)  # by place
    missing: set[int] = field(default_factory=set)  # units
    range_bytes: int = 0  # that were read in ranges
    reader: Reader | None = None  # of the stream that is being read
    stream_bytes: int = 0
    stream_unpacked: int = 0

    @property
    def bytes_read(self) -> int:
        """Bytes on disk that were read so far."""
        return self.range_bytes + self.stream_bytes + (self.reader.bytes_read if self.reader else 0)

    @property
    def bytes_unpacked(self) -> int:
        """Bytes of text that were read so far."""
        return self.range_bytes + self.stream_unpacked + (self.reader.bytes_unpacked if self.reader else 0)

    def tasks(self) -> tuple[Iterator[object], bool]:
        """Return the tasks for the workers, and whether there are several."""
        tasks = self._tasks()
        first = list(islice(tasks, 2))
        return chain(first, tasks), len(first) == 2

    def _tasks(self) -> Iterator[object]:
        whole = self.chosen is None
        cut = {self._source(unit) for unit in self.units if unit.stop is not None}
        yield from self._hash_tasks(cut if whole else ())
        for number, unit in enumerate(self.units):
            if self.chosen is not None and number not in self.chosen:
                continue
            if unit.stop is not None:
                yield self._range_task(number, unit)
            elif self.make:
                yield from self._stream_tasks(number, unit)
            else:
                yield from self._stored_stream(number, unit)

    def _hash_tasks(self, sources: Iterable[Source]) -> Iterator[base.Call]:
        paths = {source.place: source.path.absolute() for source in sources if source.path is not None}
        return (base.Call(hash_file, place) for place in sorted(paths.items()))

    def _source(self, unit: Unit) -> Source:
        return self.sources[unit.sources[0]]

    def _range_task(self, number: int, unit: Unit, begin: int | None = None) -> RangeTask:
        source = self._source(unit)
        assert source.path is not None
        assert source.bytes is not None
        assert unit.stop is not None
        part = TextRange(source.path.absolute(), source.name, unit.start, unit.stop, begin)
        return RangeTask(part_number(number), part, source.bytes, self.make or begin is not None)

    def _stream_tasks(self, number: int, unit: Unit) -> Iterator[ChunkTask | StreamTask]:
        if self.remote:
            yield StreamTask(number, tuple(self.sources[place] for place in unit.sources))
            return
        self.reader = reader = make_reader([self.sources[place] for place in unit.sources], self.recipe)
        reader.scratch = self.scratch
        count = 0
        for count, chunks in enumerate(batches(reader.read()), 1):
            yield ChunkTask(part_number(number, count - 1), chunks)
        self.streams[number] = StreamFacts(count, reader.facts())
        if self.chosen is not None:
            streams.write_facts(self.folder, number, self.streams[number])
        self.stream_bytes += reader.bytes_read
        self.stream_unpacked += reader.bytes_unpacked
        self.reader = None

    def _stored_stream(self, number: int, unit: Unit) -> Iterator[object]:
        facts = streams.read_facts(self.folder, number)
        if facts is None:
            self.missing.add(number)
            return
        self.streams[number] = facts
        yield from self._hash_tasks([self.sources[place] for place in unit.sources])
        yield from (WholeTask(part_number(number, place)) for place in range(facts.parts))

    def run(self, pool: base.Pool, tasks: Iterable[object]) -> None:
        """Make the parts; then prove that ranges meet, unless only some units are chosen."""
        for result in pool.map(tasks):
            self._take(result)
        if self.chosen is None and not self.missing:
            self._check_streams()
            for places in self._texts():
                self._meet(pool, places)

    def _take(self, result: object) -> None:
        if isinstance(result, HashedFile):
            self.hashes[result.place] = result.sha256
        elif isinstance(result, Missing):
            self.missing.add(unit_of(result.number))
        elif isinstance(result, tuple):  # the parts of a stream
            for record in result:
                self._take(record)
        elif isinstance(result, PartRecord):
            self.records[result.number] = result
            unit = self.units[unit_of(result.number)]
            self.range_bytes += (unit.stop or unit.start) - unit.start
            self.update(result)

    def _check_streams(self) -> None:
        """Raise InputError if a file has changed since its stream was read by another process."""
        for stream in () if self.make else self.streams.values():
            known = set(self.hashes.values())
            for file in stream.facts.inputs:
                if file.sha256 is not None and file.sha256 not in known:
                    raise InputError(f"input {file.name!r} has changed since it was cleaned; make a new plan")

    def _texts(self) -> Iterator[list[int]]:
        """Yield the units of each text that was cut, in order."""
        by_text: dict[int, list[int]] = defaultdict(list)
        for number, unit in enumerate(self.units):
            if unit.stop is not None:
                by_text[unit.sources[0]].append(number)
        yield from by_text.values()

    def _meet(self, pool: base.Pool, numbers: Sequence[int]) -> None:
        """Read ranges again that do not begin where the one before ends; read on in one go where that is no help."""
        at: int | None = None
        for number in numbers:
            unit = self.units[number]
            bounds = self._bounds(number)
            passed = bounds.begin is None and at is not None and at >= (unit.stop or 0)
            if at is not None and bounds.begin != at and not passed:
                [record] = pool.map([self._range_task(number, unit, at)])
                self.records[record.number] = record
                bounds = self._bounds(number)
            if not bounds.regular:
                self._read_on(pool, number, [other for other in numbers if other >= number], at)
                return
            at = at if bounds.end is None else bounds.end

    def _bounds(self, number: int) -> Bounds:
        bounds = self.records[part_number(number)].bounds
        assert bounds is not None
        return bounds

    def _read_on(self, pool: base.Pool, number: int, numbers: Sequence[int], begin: int | None) -> None:
        """Read the rest of a text from a range on, as one text; its parts replace those of the ranges."""
        source = self._source(self.units[number])
        assert source.path is not None
        assert source.bytes is not None
        for other in numbers:
            del self.records[part_number(other)]
        head = read_head(source.path.absolute(), source.bytes, self.recipe.input.max_record_bytes)
        part = TextRange(source.path.absolute(), source.name, self.units[number].start, source.bytes, begin)
        with source.path.open("rb") as file:
            assert head is not None
            chunker = RangeChunker(file, part, head, self.recipe.input.max_record_bytes)
            tasks = (
                ChunkTask(part_number(number, place), [Chunk.of_text(source.name, 0, text)])
                for place, text in enumerate(chunker, 1)
            )
            last = 0
            for record in pool.map(tasks):
                self.records[record.number] = record
                last = record.number
        if last:
            self.records[last] = replace(self.records[last], bounds=chunker.bounds)

    def parts(self) -> list[Part]:
        """Return the parts in record order, each with the index of its first record."""
        firsts: dict[int, int] = defaultdict(int)  # by source
        parts = []
        for number in sorted(self.records):
            record, unit = self.records[number], self.units[unit_of(number)]
            source = unit.sources[0]
            parts.append(record.to_part(self.folder, firsts[source] if unit.stop is not None else 0))
            firsts[source] += record.records
        return parts

    def collect(self, reader: Reader) -> None:
        """Tell a reader of all sources what was found in them."""
        reports: Mapping[int, list[tuple[int, int, str]]] = defaultdict(list)
        for number in sorted(self.records):
            bounds = self.records[number].bounds
            if bounds is not None:
                reports[self.units[unit_of(number)].sources[0]] += bounds.reports
        seen: set[int] = set()
        for number, unit in enumerate(self.units):
            place = unit.sources[0]
            if number in self.streams:
                reader.collect(self.streams[number].facts)
            elif unit.stop is not None and place not in seen:
                seen.add(place)
                source = self.sources[place]
                reader.collect_text(source, self.hashes[source.place], reports[place])
