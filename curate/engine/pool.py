"""Choose the engine that runs steps: the only module that names one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Any

from curate.engine import local
from curate.engine.base import Pool, R, Step, T


def open_pool(make_step: Callable[[], Step[Any, Any]], workers: int) -> AbstractContextManager[Pool]:
    """Open a pool of workers that each make the step once; `make_step` must be picklable.

    With one worker, everything runs in this process. Raises WorkerError when a worker dies.
    """
    return local.WorkerPool(make_step, workers)


def open_ray(
    make_step: Callable[[], Step[Any, Any]], workers: int | None, address: str | None
) -> AbstractContextManager[Pool]:
    """Open a pool of a Ray cluster's workers; raises MissingExtra without Ray, InputError for a wrong address."""
    from curate.engine.ray import RayPool

    return RayPool(make_step, workers, address)


def run(make_step: Callable[[], Step[T, R]], tasks: Iterable[T], workers: int) -> Iterator[R]:
    """Yield `make_step()(task)` for each task, in order."""
    with open_pool(make_step, workers) as pool:
        yield from pool.map(tasks)


def prestart(workers: int, module: str) -> None:
    """Start worker processes ahead of `open_pool`, each importing a module; does nothing for an engine without any."""
    local.prestart(workers, module)


def stop_prestarted() -> None:
    """Stop the worker processes that `prestart` started and no pool has used."""
    local.stop_prestarted()
