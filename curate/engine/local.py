"""Run one step over many tasks in worker processes; results are in the order of the tasks.

A worker is a plain child interpreter with a pipe to its parent. So a caller's script needs no `__main__` guard, and the
death of a worker is noticed at once. When the parent ends, even by kill -9, its end of the pipe closes, and a thread of
the worker ends that, whatever it is doing.
"""

from __future__ import annotations

import gc
import os
import pickle
import select
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from typing import Any

from curate.engine.base import SINGLE_THREADED, Call, Step, gc_disabled
from curate.errors import CurateError, WorkerError


class WorkerPool:
    """Workers that keep their step between calls of `map`. `make_step` must be picklable.

    With one worker, everything runs in this process. Raises WorkerError when a worker dies.
    """

    def __init__(self, make_step: Callable[[], Step[Any, Any]], workers: int) -> None:
        self._make_step = make_step
        self._size = workers
        self._workers: list[_Worker] = []
        self._own_step: Step[Any, Any] | None = None  # of this process, with one worker

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, *_: object) -> None:
        _kill([worker.child for worker in self._workers])
        stop_prestarted()

    def map(self, tasks: Iterable[Any]) -> Iterator[Any]:
        """Yield the step's result for each task, or the result of a `Call`, in order.

        Only one task is read ahead of the workers, so memory is bounded by the number of workers.
        """
        if self._size > 1:
            return self._map_in_workers(iter(tasks))
        stop_prestarted()
        return map(self._run_here, tasks)

    def _run_here(self, task: object) -> object:
        if isinstance(task, Call):
            return task()
        self._own_step = self._own_step or self._make_step()
        with gc_disabled():
            return self._own_step(task)

    def _map_in_workers(self, tasks: Iterator[Any]) -> Iterator[Any]:
        results: dict[int, Any] = {}  # by number of the task, until it is their turn
        position = 0  # number of the next result to yield
        numbered = enumerate(tasks)
        pending = next(numbered, None)
        while pending is not None or any(worker.task is not None for worker in self._workers):
            worker = self._free_worker() if pending is not None else None
            if pending is not None and worker is not None:
                worker.submit(*pending)
                pending = next(numbered, None)  # read while the workers are busy
                continue
            results.update(self._receive_results())
            while position in results:
                yield results.pop(position)
                position += 1

    def _free_worker(self) -> _Worker | None:
        """Return an idle worker, else a new one if the pool is not full, else None."""
        idle = next((worker for worker in self._workers if worker.task is None), None)
        if idle is None and len(self._workers) < self._size:
            idle = _Worker(self._make_step)
            self._workers.append(idle)
        return idle

    def _receive_results(self) -> list[tuple[int, Any]]:
        """Wait until a worker has finished; return the results of all that have."""
        busy = [worker for worker in self._workers if worker.task is not None]
        ready = wait([worker.pipe for worker in busy])
        return [worker.receive() for worker in busy if worker.pipe in ready]


_prestarted: list[_Child] = []  # interpreters that wait for their first step


def prestart(count: int, module: str) -> None:
    """Start interpreters that import `module` while this process still imports its own; the next pool uses them."""
    _prestarted.extend(_Child(module) for _ in range(count))


def stop_prestarted() -> None:
    """Kill the prestarted interpreters that no pool has used."""
    _kill(_prestarted)
    _prestarted.clear()


def _kill(children: Sequence[_Child]) -> None:
    """Kill children: an idle one has nothing to save, and an interpreter is slow to exit by itself."""
    for child in children:
        child.pipe.close()
        child.process.kill()
    for child in children:
        with suppress(subprocess.TimeoutExpired):
            child.process.wait(timeout=10)


class _Child:
    """A child interpreter and the pipe to it."""

    def __init__(self, module: str = "curate.engine.local") -> None:
        ours, theirs = socket.socketpair()
        descriptor = theirs.fileno()
        serve = f"from curate.engine import local; local._end_with_parent({descriptor}); import {module}"
        code = f"import sys; sys.path[:] = {sys.path!r}; {serve}; local._serve({descriptor})"
        self.process = subprocess.Popen(
            [sys.executable, "-c", code],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            process_group=0,  # Ctrl-C in a terminal goes to the parent alone, even during start-up
            env={**os.environ, **SINGLE_THREADED},
        )
        theirs.close()
        self.pipe = Connection(ours.detach())


class _Worker:
    """A child with its step. `task` is the number of the task it runs, or None while it is idle."""

    def __init__(self, make_step: Callable[[], Step[Any, Any]]) -> None:
        self.child = _prestarted.pop() if _prestarted else _Child()
        self.pipe = self.child.pipe
        self.task: int | None = None
        self._send(make_step)

    def _send(self, value: object) -> None:
        try:
            self.pipe.send_bytes(pickle.dumps(value, protocol=5))
        except OSError as error:
            raise self._death_error() from error

    def submit(self, number: int, task: object) -> None:
        """Send a task; the worker must be idle."""
        self.task = number
        self._send(task)

    def receive(self) -> tuple[int, Any]:
        """Return the number and result of the finished task; raises what the step raised."""
        try:
            succeeded, result = pickle.loads(self.pipe.recv_bytes())
        except (EOFError, OSError) as error:
            raise self._death_error() from error
        if not succeeded:
            raise result
        number, self.task = self.task, None
        assert number is not None
        return number, result

    def _death_error(self) -> WorkerError:
        code = self.child.process.wait()
        cause = "killed by signal 9, often a lack of memory" if code == -9 else f"exit code {code}"
        return WorkerError(f"a worker process died ({cause}); nothing was changed; try fewer workers: --workers 1")


def _end_with_parent(file_descriptor: int) -> None:
    """Start a thread that kills this process when the parent's end of the pipe closes (runs in the child).

    A signal at the parent's death (Linux's PR_SET_PDEATHSIG) would come when the thread that started the worker ends.
    """

    def wait_for_end() -> None:
        poll = select.poll()
        poll.register(file_descriptor, 0)  # no event but a hang-up, which is always reported
        poll.poll()
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=wait_for_end, daemon=True).start()


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
        gc.freeze()  # the step's own tables are not scanned again
        gc.disable()  # a batch makes millions of objects and few cycles; collected between batches instead
        while True:
            task = pickle.loads(pipe.recv_bytes())
            pipe.send_bytes(_run_task(step, task))
            del task
            gc.collect()


def _run_task(step: Step[Any, Any], task: object) -> bytes:
    """Return (True, result) or (False, error), pickled."""
    try:
        result = task() if isinstance(task, Call) else step(task)
        return pickle.dumps((True, result), protocol=5)
    except (CurateError, OSError) as error:  # users can fix these, such as a full disk; raised unchanged in the parent
        return pickle.dumps((False, error))
    except Exception as error:
        failure = RuntimeError(f"a worker failed: {type(error).__name__}: {error}")
        failure.add_note(traceback.format_exc())
        return pickle.dumps((False, failure))
