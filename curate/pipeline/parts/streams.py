"""Read sources from their beginning: what is found in them beside the records, and the reader."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from curate import files
from curate.ingest.reader import Reader, ReadFacts
from curate.ingest.sources import Source
from curate.ingest.text.encodings import check_encoding
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
    files.write_bytes(_path(folder, unit), msgspec.json.encode(facts))


def read_facts(folder: Path, unit: int) -> StreamFacts | None:
    """Return the facts of a unit; None if it was not read to its end."""
    try:
        return msgspec.json.decode(_path(folder, unit).read_bytes(), type=StreamFacts)
    except (OSError, msgspec.DecodeError):
        return None


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
