"""The protocol of a step, and what every engine shares."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

SINGLE_THREADED = {  # environment of a worker, which has one core: more threads would compete with other workers
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
    """A callable that processes one task. The result must not depend on the worker that runs it."""

    def __call__(self, task: Task, /) -> Result: ...


class Pool(Protocol):
    """Workers of an engine, which keep their step between calls."""

    def map(self, tasks: Iterable[Any], /) -> Iterator[Any]:
        """Yield the step's result for each task, or the result of a `Call`, in the order of the tasks."""


def default_workers() -> int:
    """Return the number of cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@dataclass(frozen=True)
class Call:
    """A task that a worker runs instead of its step: a picklable function and its arguments."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...] = ()

    def __call__(self) -> Any:
        """Call the function."""
        return self.function(*self.arguments)


@contextmanager
def gc_disabled() -> Iterator[None]:
    """Disable the garbage collector: a batch makes millions of objects and few cycles."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
