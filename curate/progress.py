"""Progress of long work: a function names its stage, and whoever watches shows it. Without a watcher nothing happens.

    with watch() as stages:  # the command line, see `curate.cli.progress.stages`
        with stage("converting", total=len(rows)) as current:
            ...  # current.done += 1

Only the watching thread's stages are seen; code in other threads and processes reports through what it returns.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

BYTES = "bytes"  # the unit of a stage that is shown in MB


@dataclass(eq=False)
class Stage:
    """A part of the work: `done` of `total` units, None if that is unknown. Whoever works sets `done`."""

    name: str
    total: int | None = None
    unit: str = "rows"
    done: int = 0
    started: float = field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        """The seconds since its begin."""
        return time.monotonic() - self.started


_watched: ContextVar[list[Stage] | None] = ContextVar("stages", default=None)


@contextmanager
def watch() -> Iterator[list[Stage]]:
    """Yield a list that has the stages which run at any moment, the innermost last."""
    stages: list[Stage] = []
    token = _watched.set(stages)
    try:
        yield stages
    finally:
        _watched.reset(token)


@contextmanager
def stage(name: str, total: int | None = None, unit: str = "rows") -> Iterator[Stage]:
    """Name what is done within the block."""
    entered, stages = Stage(name, total, unit), _watched.get()
    if stages is not None:
        stages.append(entered)
    try:
        yield entered
    finally:
        if stages is not None and entered in stages:
            stages.remove(entered)
