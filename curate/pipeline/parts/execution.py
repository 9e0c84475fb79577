"""How a run is done: nothing of it changes the set."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from curate.ingest.ranges.text_range import RANGE_BYTES

Engine = Literal["local", "ray"]


@dataclass(frozen=True)
class Progress:
    """The progress of a run; `bytes_total` (on disk, as `bytes_read`) is None if the input's size is unknown."""

    bytes_read: int
    bytes_total: int | None
    bytes_unpacked: int
    records: int
    kept: int
    rejected: int
    stage: str
    seconds: float


def _ignore(news: object) -> None:
    """Take no note."""


@dataclass(frozen=True)
class Execution:
    """Workers, and whom to tell of progress.

    `fresh`: parts of a run that was killed are made again. `note` is called with lines for the user. Texts are cut into
    ranges of `range_bytes`.
    """

    workers: int | None = None
    progress: Callable[[Progress], None] | None = None
    note: Callable[[str], None] = _ignore
    fresh: bool = False
    engine: Engine = "local"
    address: str | None = None  # of a Ray cluster
    range_bytes: int = RANGE_BYTES
    check_missing: Callable[[Sequence[int]], None] = _ignore  # raises an error that names the units of a plan


AT_ONCE = Execution()
