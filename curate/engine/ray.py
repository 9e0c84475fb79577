"""Run a step over tasks in a Ray cluster: Ray Core tasks only, which read and write shared storage.

A task and its result are small: paths and counts. Nothing large is put into Ray's object store. A task that is lost
with its worker or node is run again elsewhere.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from typing import Any

from curate.engine.base import SINGLE_THREADED, Call, Step, gc_disabled
from curate.errors import CurateError, InputError, MissingExtra, WorkerError

AHEAD = 2  # tasks for each core that are submitted at a time
RETRIES = 5  # of a task whose worker or node is lost


class RayPool:
    """Workers of a Ray cluster; `address` is None for this machine, or `auto`, or a cluster's `ray://host:port`.

    An open connection is used, and left open. Raises MissingExtra without Ray, WorkerError for a task that is lost
    again and again.
    """

    def __init__(self, make_step: Callable[[], Step[Any, Any]], workers: int | None, address: str | None) -> None:
        try:
            import ray
        except ImportError:
            raise MissingExtra("the engine ray", "ray") from None
        self._ray = ray
        self._make_step = pickle.dumps(make_step)
        self._opened = not ray.is_initialized()
        if self._opened:
            self._open(workers, address)

    def _open(self, workers: int | None, address: str | None) -> None:
        cores = {} if address else {"num_cpus": workers}
        try:
            self._ray.init(address=address, log_to_driver=False, include_dashboard=False, **cores)
        except (ConnectionError, ValueError, RuntimeError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(f"no Ray cluster at {address!r}: {reason}; start one, or leave out --address") from None

    def __enter__(self) -> RayPool:
        return self

    def __exit__(self, *_: object) -> None:
        if self._opened:
            self._ray.shutdown()

    def map(self, tasks: Iterable[Any]) -> Iterator[Any]:
        """Yield the step's result for each task, or the result of a `Call`, in order."""
        remote = self._ray.remote(num_cpus=1, max_retries=RETRIES)(_run)
        limit = AHEAD * max(1, int(self._ray.cluster_resources().get("CPU", 1)))
        submitted: list[Any] = []
        for task in tasks:
            submitted.append(remote.remote(self._make_step, pickle.dumps(task)))
            if len(submitted) >= limit:
                yield self._receive(submitted.pop(0))
        while submitted:
            yield self._receive(submitted.pop(0))

    def _receive(self, reference: Any) -> Any:
        try:
            succeeded, result = pickle.loads(self._ray.get(reference))
        except self._ray.exceptions.RayError as error:
            reason = str(error).splitlines()[0]
            raise WorkerError(f"a Ray task was lost {RETRIES + 1} times ({reason}); run it again to go on") from None
        if not succeeded:
            raise result
        return result


@lru_cache(maxsize=2)
def _step(make_step: bytes) -> Step[Any, Any]:
    step: Step[Any, Any] = pickle.loads(make_step)()
    return step


def _run(make_step: bytes, task: bytes) -> bytes:
    """Run a task in a worker, which keeps its step; return (True, result) or (False, error), pickled."""
    os.environ.update(SINGLE_THREADED)
    work = pickle.loads(task)
    try:
        with gc_disabled():
            result = work() if isinstance(work, Call) else _step(make_step)(work)
    except (CurateError, OSError) as error:
        return pickle.dumps((False, error))
    return pickle.dumps((True, result))
