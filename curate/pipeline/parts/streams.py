"""Read sources from their beginning: what is found in them beside the records, and the reader."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from curate import files
from curate.ingest.reader import Reader, ReadFacts
from curate.ingest.sources import Source
from curate.ingest.text.encodings import check_encoding
from curate.pipeline.parts.plan import PARTS_BITS
from curate.pipeline.parts.record import read_sealed, write_sealed
from curate.pipeline.recipe import Recipe


@dataclass(frozen=True)
class StreamFacts:
    """What was found in a unit that is read from its beginning, and how many parts it has."""

    parts: int
    facts: ReadFacts


def _path(folder: Path, unit: int) -> Path:
    return folder / f"stream-{unit:06d}.json"


def write_facts(folder: Path, unit: int, facts: StreamFacts) -> None:
    """Write the facts of a unit beside its parts."""
    with files.replacing(_path(folder, unit), sync=True) as partial:
        write_sealed(partial, facts)


def read_facts(folder: Path, unit: int) -> StreamFacts | None:
    """Return the facts of a unit; None if it was not read to its end, or they are damaged."""
    facts = read_sealed(_path(folder, unit), StreamFacts)
    return facts if facts is not None and 0 <= facts.parts <= 1 << PARTS_BITS else None


def make_reader(sources: Sequence[Source], recipe: Recipe) -> Reader:
    """Return a reader of sources, with the settings of a recipe."""
    settings = recipe.input
    return Reader(
        sources,
        limit=settings.limit or None,
        max_record_bytes=settings.max_record_bytes,
        max_expanded_bytes=settings.max_expanded_bytes,
        max_expansion=settings.max_expansion,
        encoding=check_encoding(settings.encoding),
        columns=settings.read_options().columns,
    )
