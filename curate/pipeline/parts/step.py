"""Make one part: the work of one worker, in any engine."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from curate._version import __version__
from curate.filters import duplicates, registry
from curate.ingest.decode import Chunk, batches
from curate.ingest.ranges.text_range import Bounds, TextRange, read_range
from curate.ingest.sources import Source
from curate.pipeline import corpus
from curate.pipeline.near import parts as near_parts
from curate.pipeline.parts import record as records
from curate.pipeline.parts import streams
from curate.pipeline.parts.plan import part_number
from curate.pipeline.parts.record import PartRecord
from curate.pipeline.parts.streams import make_reader
from curate.pipeline.recipe import Recipe
from curate.pipeline.steps import Cleaner, CleanerFactory
from curate.settings import flatten

NOT_IN_PARTS = ("name", "summary", "eval", "output.originals", "input.damaged_streams")  # settings of later steps


@dataclass(frozen=True)
class ChunkTask:
    """Chunks to clean into the part of this number."""

    number: int
    chunks: Sequence[Chunk]


@dataclass(frozen=True)
class RangeTask:
    """A byte range to clean into the part of this number; the worker reads it. The text has `size` bytes."""

    number: int
    range: TextRange
    size: int
    make: bool = True  # if it is not there


@dataclass(frozen=True)
class StreamTask:
    """Sources that a worker reads from their beginning, into the parts of this unit."""

    unit: int
    sources: tuple[Source, ...]


@dataclass(frozen=True)
class WholeTask:
    """A part whose files are only verified."""

    number: int


@dataclass(frozen=True)
class Missing:
    """A part that is missing or not as it was written."""

    number: int


@dataclass(frozen=True)
class PartFactory:
    """Builds a `PartMaker` in each worker: small and picklable.

    `reuse`: parts that are there are taken as they are if they verify. `durable`: parts outlive a loss of power.
    """

    recipe: Recipe
    folder: Path
    ratings: Mapping[str, bool] = field(default_factory=dict)
    reuse: bool = False
    durable: bool = False

    def __call__(self) -> PartMaker:
        return PartMaker(self)


class PartMaker(Cleaner):
    """The step that an engine runs: makes a part, or takes the one that is there, and returns its record."""

    def __init__(self, factory: PartFactory) -> None:
        super().__init__(CleanerFactory(factory.recipe, factory.folder, factory.ratings))
        self.factory = factory
        self.staging: Path | None = None
        facts = [__version__, self.tokenizer.info.hash, *sorted(factory.ratings.items()), *part_settings(self.recipe)]
        self.recipe_key = hashlib.sha256(json.dumps(facts, default=str).encode()).hexdigest()

    def __call__(self, task: Any) -> Any:
        """Do a task: `Missing` stands for a part that may not be made."""
        if isinstance(task, RangeTask):
            return self._range_part(task)
        if isinstance(task, ChunkTask):
            return self._chunks_part(task)
        if isinstance(task, StreamTask):
            return self._stream_parts(task)
        if isinstance(task, WholeTask):
            record = records.read_record(self.factory.folder, task.number)
            if record is None or record.recipe != self.recipe_key:
                return Missing(task.number)
            return record if records.are_whole(self.factory.folder, record) else Missing(task.number)
        return super().__call__(task)

    def _range_part(self, task: RangeTask) -> PartRecord | Missing:
        own, size = task.range, task.size
        key = self._key([own.name, own.start, own.stop, own.begin, size])
        record = self._known(task.number, key)
        if record is not None and record.bounds is not None and record.digest == _digest_range(own, record.bounds):
            return replace(record, reused=True)
        if not task.make:
            return Missing(task.number)
        texts, bounds = read_range(own, size, self.recipe.input.max_record_bytes)
        chunks: list[Chunk] = []
        for text in texts:
            chunks.append(Chunk.of_text(own.name, sum(chunk.count for chunk in chunks), text))
        return self._make(task.number, chunks, key, _digest_range(own, bounds), bounds)

    def _chunks_part(self, task: ChunkTask) -> PartRecord:
        key = self._key([(chunk.source_file, chunk.first, chunk.count, chunk.start) for chunk in task.chunks])
        digest = hashlib.sha256()
        for chunk in task.chunks:
            digest.update(chunk.data)
        record = self._known(task.number, key)
        if record is not None and record.digest == digest.hexdigest():
            return replace(record, reused=True)
        return self._make(task.number, task.chunks, key, digest.hexdigest(), None)

    def _stream_parts(self, task: StreamTask) -> tuple[PartRecord, ...]:
        reader = make_reader(task.sources, self.recipe)
        made = tuple(
            self._chunks_part(ChunkTask(part_number(task.unit, place), chunks))
            for place, chunks in enumerate(batches(reader.read()))
        )
        streams.write_facts(self.factory.folder, task.unit, streams.StreamFacts(len(made), reader.facts()))
        return made

    def _key(self, place: object) -> str:
        return hashlib.sha256(json.dumps([self.recipe_key, place]).encode()).hexdigest()

    def _known(self, number: int, key: str) -> PartRecord | None:
        """Return the record of the part that is there, if it was made of the same place and is whole."""
        record = records.read_record(self.factory.folder, number) if self.factory.reuse else None
        same = record is not None and record.key == key and records.are_whole(self.factory.folder, record)
        return record if same else None

    def _make(self, number: int, chunks: Sequence[Chunk], key: str, digest: str, bounds: Bounds | None) -> PartRecord:
        if self.staging is None:
            self.staging = records.make_staging(self.factory.folder)
        cleaned = self.clean_chunks(number, chunks)
        part = cleaned.part
        if cleaned.texts is not None:
            with self._time_stage("shingles"):
                near_parts.write_texts(self.staging, number, cleaned.texts, len(cleaned.summary))
        with self._time_stage("write"):
            records.write_tables(self.staging, number, {**cleaned.tables, records.SUMMARY: cleaned.summary})
            counts = part.read, dict(part.rejected), dict(part.alone), dict(self.seconds)
            count = sum(chunk.count for chunk in chunks)
            record = PartRecord(number, key, digest, *counts, part.tokenizer, part.branches, bounds, count)
            record = replace(record, recipe=self.recipe_key)
            return records.write_part(self.factory.folder, self.staging, record, durable=self.factory.durable)


def _digest_range(part: TextRange, bounds: Bounds | None) -> str:
    """Return the hash of a range's bytes, up to the end of its last record."""
    start = part.start if part.begin is None else part.begin
    stop = max(part.stop, (bounds and bounds.end) or 0)
    digest = hashlib.sha256()
    with part.path.open("rb") as file:
        file.seek(start)
        while start < stop and (block := file.read(min(1 << 20, stop - start))):
            digest.update(block)
            start += len(block)
    return digest.hexdigest()


def part_settings(recipe: Recipe) -> Iterator[tuple[str, object]]:
    """Yield the settings that decide what is in a part; with size and time of change where one names a file.

    Rules over the whole corpus are applied later: of these it matters only whether those are on that have texts or
    groups in parts, and what is compared.
    """
    later = registry.rules("corpus")
    filters: dict[str, object] = {name: settings for name, settings in recipe.filters.items() if name not in later}
    for name in sorted((later.keys() & recipe.filters.keys()) - {corpus.DUPLICATES}):
        filters[name] = recipe.filters[name].get("of") if name == duplicates.NEAR else True
    values: dict[str, Any] = {**recipe.to_dict(), "filters": {**filters, "files": list(recipe.filter_files)}}
    for name, value in flatten(values):
        if name in NOT_IN_PARTS or name.split(".")[0] in NOT_IN_PARTS:
            continue
        yield name, value
        for path in value if isinstance(value, list | tuple) else [value]:
            if isinstance(path, str) and len(path) < 4096 and "\0" not in path and Path(path).is_file():
                stat = Path(path).stat()
                yield path, (stat.st_size, stat.st_mtime_ns)
