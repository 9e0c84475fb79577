"""What a step is, and what its workers share."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

ONE_THREAD = {  # a worker is one core's; threads of its libraries would only wait for those of the other workers
    "POLARS_MAX_THREADS": "1",
    "RAYON_NUM_THREADS": "1",
    "FASTOKENS_BPE_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_NUM_THREADS": "1",
}

Task = TypeVar("Task", contravariant=True)
Result = TypeVar("Result", covariant=True)
T = TypeVar("T")
R = TypeVar("R")


class Step(Protocol[Task, Result]):
    """Work on one task; must give the same result whichever worker runs it."""

    def __call__(self, task: Task, /) -> Result: ...


def default_workers() -> int:
    """Return the number of cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@dataclass(frozen=True)
class Call:
    """A piece of work that brings its own function, for a worker that waits: picklable, all of it."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...] = ()

    def __call__(self) -> Any:
        """Do it."""
        return self.function(*self.arguments)


@contextmanager
def uncollected() -> Iterator[None]:
    """Let the garbage collector rest: a batch makes millions of objects and few cycles."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()
