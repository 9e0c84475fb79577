"""Bytes → records: whole records in chunks of a few megabytes, and each bad one alone."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

from curate.errors import InputError
from curate.ingest.chunker import Cutter
from curate.ingest.decode import HELD_BYTES, Chunk, is_json
from curate.ingest.sources import Source, describe
from curate.ingest.streams import Limits, Meter, text_blocks


@dataclass(frozen=True)
class Damage:
    """What could not be read of an input: `bytes` lost at byte `offset` of its text (of what it expands to)."""

    source_file: str
    offset: int
    bytes: int
    text: str


@dataclass(frozen=True)
class InputFile:
    """One input as it was read, on disk. `sha256` is null where `limit` stopped before the end."""

    name: str
    bytes: int
    sha256: str | None


class Reader:
    """Read sources into chunks, in order, once; a few chunks are in memory at a time.

    `warnings` and `inputs` are complete when the iteration ends. `bytes_total` is null where a size cannot be known.
    A record of `max_record_bytes` or more is damage.
    Raises InputError for a source that holds nothing whole, or that expands past the limits.
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
        self._harmed: dict[str, str] = {}
        self._any_whole = False

    @property
    def inputs(self) -> list[InputFile]:
        """Return the files read so far, as they are on disk."""
        sizes = {source.file: source.bytes for source in self.sources}
        return [
            InputFile(name, (meter.sha256 and sizes[name]) or meter.bytes, meter.sha256)
            for name, meter in self._meters.items()
        ]

    @property
    def bytes_read(self) -> int:
        """Return how many bytes have been taken from disk."""
        return sum(meter.bytes for meter in self._meters.values())

    @property
    def bytes_unpacked(self) -> int:
        """Return how many bytes of dumps that was: what compressed files held, and the others as they are."""
        return sum(meter.expanded or meter.bytes for meter in self._meters.values())

    @property
    def bytes_total(self) -> int | None:
        """Return how many bytes there are on disk."""
        sizes = {source.file: source.bytes for source in self.sources}
        known = [size for size in sizes.values() if size is not None]
        return sum(known) if len(known) == len(sizes) else None

    def __iter__(self) -> Iterator[Chunk]:
        for source in self.sources:
            if source.trouble and source.file not in self._meters:  # once a file, before its first member
                self._warn(source.file, source.bytes or 0, 0, source.trouble)
            for chunk in self._whole(source):
                left = math.inf if self.limit is None else self.limit - self.records_read
                if left <= 0:
                    return
                chunk = chunk if chunk.count <= left else replace(chunk, count=int(left))
                self.records_read += chunk.count
                yield chunk
        if not self._any_whole:
            names = ", ".join(repr(source.name) for source in self.sources[:3])
            raise InputError(f"no record in {names}: give a dump that holds some")

    def _warn(self, name: str, offset: int, lost: int, what: str) -> None:
        self.warnings.append(Damage(name, offset, lost, f"{name}: {what}"))

    def _harm(self, source: Source, offset: int, lost: int, what: str) -> None:
        """Note that what a source is packed in is damaged."""
        self._harmed[source.name] = what
        self._warn(source.name, offset, lost, what)

    def _whole(self, source: Source) -> Iterator[Chunk]:
        """Yield a source's chunks once one of them holds a whole record; raise InputError if none does.

        A damaged member of a zip, beside others, may hold none.
        """
        held: list[Chunk] = []
        whole = False
        for chunk in self._chunks(source):
            whole = whole or any(cut.kind != "damage" and is_json(chunk, cut) for cut in chunk.cuts)
            held.append(chunk)
            if whole:
                yield from held
                held.clear()
            elif sum(len(chunk.data) for chunk in held) > HELD_BYTES:
                break
        self._any_whole = self._any_whole or whole
        harm = self._harmed.get(source.name, "")
        if harm and source.spare:
            yield from held
        elif held:
            what = describe(held[0].data[:512])
            tail = f"; {harm}" if harm else ": give a JSON or JSONL dump"
            raise InputError(f"input {source.name!r} holds no whole JSON record but {what}{tail}")

    def _chunks(self, source: Source) -> Iterator[Chunk]:
        meter = self._meters.setdefault(source.file, Meter())
        warned = len(self.warnings)
        text = text_blocks(source, meter, self.limits, partial(self._harm, source))
        cutter = Cutter(text, self.chunk_bytes, self.max_record_bytes, partial(self._warn, source.name))
        first = 0
        for stretch in cutter:
            count = sum(cut.count for cut in stretch.cuts)
            yield Chunk(source.name, first, count, stretch.start, stretch.data, stretch.cuts, stretch.head)
            first += count
        if first or (source.spare and source.name in self._harmed):
            return
        why = [damage.text for damage in self.warnings[warned:]]
        if why or not cutter.arrays:
            raise InputError(f"input {source.name!r} holds no record: {'; '.join(why) or 'only white space'}")
        self._warn(source.name, 0, 0, "an empty array, no record")


# ── a chunk's records ─────────────────────────────────────────────────────────────────────────────────────────────
