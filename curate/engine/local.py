"""Run one step over many tasks in worker processes, results in the order of the tasks.

Workers are plain child interpreters with one pipe each, so a caller's script needs no `__main__`
guard, a worker ends when its parent does (its pipe closes, also after kill -9), and the death of a
worker is seen at once. A step is any picklable factory of a callable; a cluster could run the same.
"""

from __future__ import annotations

import gc
import os
import pickle
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from typing import Any

from curate.engine.base import ONE_THREAD, Call, R, Step, T, uncollected
from curate.errors import CurateError


def run(make_step: Callable[[], Step[T, R]], tasks: Iterable[T], workers: int) -> Iterator[R]:
    """Yield `make_step()(task)` for each task, in order; see `Pool`."""
    with Pool(make_step, workers) as pool:
        yield from pool.map(tasks)


class Pool:
    """Workers that keep their step from one call of `map` to the next.

    With one worker all runs in this process. Raises CurateError where a worker died.
    """

    def __init__(self, make_step: Callable[[], Step[Any, Any]], workers: int) -> None:
        self._make_step = make_step
        self._size = workers
        self._workers: list[_Worker] = []
        self._step: Step[Any, Any] | None = None

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        _end([worker.child for worker in self._workers])
        drop_started()

    def map(self, tasks: Iterable[Any]) -> Iterator[Any]:
        """Yield the step's result for each task, or that of a `Call`, in order.

        Tasks are taken one ahead of the workers, so memory is bounded by the number of workers.
        """
        if self._size > 1:
            return self._map_in_workers(iter(tasks))
        drop_started()
        return map(self._here, tasks)

    def _here(self, task: object) -> object:
        if isinstance(task, Call):
            return task()
        self._step = self._step or self._make_step()
        with uncollected():
            return self._step(task)

    def _map_in_workers(self, tasks: Iterator[Any]) -> Iterator[Any]:
        finished: dict[int, Any] = {}
        wanted = 0
        numbered = enumerate(tasks)
        ahead = next(numbered, None)
        while ahead is not None or any(worker.task is not None for worker in self._workers):
            free = self._free_worker() if ahead is not None else None
            if ahead is not None and free is not None:
                free.give(*ahead)
                ahead = next(numbered, None)  # read while the workers work
                continue
            finished.update(self._take_ready())
            while wanted in finished:
                yield finished.pop(wanted)
                wanted += 1

    def _free_worker(self) -> _Worker | None:
        """Return a waiting worker, a new one while there are too few, or None."""
        waiting = next((worker for worker in self._workers if worker.task is None), None)
        if waiting is None and len(self._workers) < self._size:
            waiting = _Worker(self._make_step)
            self._workers.append(waiting)
        return waiting

    def _take_ready(self) -> list[tuple[int, Any]]:
        """Wait until a worker has finished; return what all that have finished give."""
        busy = [worker for worker in self._workers if worker.task is not None]
        ready = wait([worker.pipe for worker in busy])
        return [worker.take() for worker in busy if worker.pipe in ready]


_started: list[_Child] = []  # interpreters that wait for their first step


def prestart(count: int, module: str) -> None:
    """Start interpreters that import `module` while this process still imports its own; `run` will use them."""
    _started.extend(_Child(module) for _ in range(count))


def drop_started() -> None:
    """End the interpreters that were started ahead and not needed."""
    _end(_started)
    _started.clear()


def _end(children: Sequence[_Child]) -> None:
    """Kill children: one that waits has nothing to save, and an interpreter takes its time to leave by itself."""
    for child in children:
        child.pipe.close()
        child.process.kill()
    for child in children:
        with suppress(subprocess.TimeoutExpired):
            child.process.wait(timeout=10)


class _Child:
    """An interpreter with a pipe to it, in which a worker will run."""

    def __init__(self, module: str = "curate.engine.local") -> None:
        ours, theirs = socket.socketpair()
        serve = f"import {module}; from curate.engine.local import _serve; _serve({theirs.fileno()})"
        boot = f"import sys; sys.path[:] = {sys.path!r}; {serve}"
        self.process = subprocess.Popen(
            [sys.executable, "-c", boot],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            process_group=0,  # a terminal's Ctrl-C goes to the parent alone, also while this starts
            env={**os.environ, **ONE_THREAD},
        )
        theirs.close()
        self.pipe = Connection(ours.detach())


class _Worker:
    """A child that has been given its step: `task` is the number it works on, or None when it waits."""

    def __init__(self, make_step: Callable[[], Step[Any, Any]]) -> None:
        self.child = _started.pop() if _started else _Child()
        self.pipe = self.child.pipe
        self.task: int | None = None
        self._send(make_step)

    def _send(self, value: object) -> None:
        try:
            self.pipe.send_bytes(pickle.dumps(value, protocol=5))
        except OSError as error:
            raise self._death() from error

    def give(self, number: int, task: object) -> None:
        self.task = number
        self._send(task)

    def take(self) -> tuple[int, Any]:
        """Return the finished task's number and result; raises what the step raised."""
        try:
            succeeded, result = pickle.loads(self.pipe.recv_bytes())
        except (EOFError, OSError) as error:
            raise self._death() from error
        if not succeeded:
            raise result
        number, self.task = self.task, None
        assert number is not None
        return number, result

    def _death(self) -> CurateError:
        code = self.child.process.wait()
        cause = "killed by signal 9, often a lack of memory" if code == -9 else f"exit code {code}"
        return CurateError(f"a worker process died ({cause}); nothing was changed; try fewer workers: --workers 1")


def _serve(file_descriptor: int) -> None:
    """Serve tasks from the parent until its end of the pipe closes (runs in the child)."""
    pipe = Connection(file_descriptor)
    with suppress(EOFError, OSError):
        try:
            step = pickle.loads(pipe.recv_bytes())()
        except CurateError as error:
            pipe.recv_bytes()
            pipe.send_bytes(pickle.dumps((False, error)))
            return
        gc.freeze()  # the step's own tables are not looked through again
        gc.disable()  # a batch makes millions of objects and few cycles; collected between batches instead
        while True:
            task = pickle.loads(pipe.recv_bytes())
            pipe.send_bytes(_answer(step, task))
            del task
            gc.collect()


def _answer(step: Step[Any, Any], task: object) -> bytes:
    try:
        result = task() if isinstance(task, Call) else step(task)
        return pickle.dumps((True, result), protocol=5)
    except (CurateError, OSError) as error:  # a full disk is the user's to mend, as in the parent
        return pickle.dumps((False, error))
    except Exception as error:
        failure = RuntimeError(f"a worker failed: {type(error).__name__}: {error}")
        failure.add_note(traceback.format_exc())
        return pickle.dumps((False, failure))
